"""The command ``capsdesc-train prepare``."""

from __future__ import annotations

import argparse
from pathlib import Path

from capsdesc.commands import program
from capsdesc.pipelines.prepare import MATCHERS, PrepareConfig, prepare


def build_parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    defaults = PrepareConfig()
    parser = argparse.ArgumentParser(
        prog="capsdesc-train prepare",
        description="Reconstruct cameras and poses from photographs by structure from motion, as scenes for "
        "capsdesc-train. Run the same command again to resume.",
    )
    parser.add_argument("photographs", type=Path, help="folder of the photographs, subfolders included")
    parser.add_argument("out", type=Path, help="folder for images/, sparse/ and the database")
    parser.add_argument(
        "--camera-model", default=defaults.camera_model, help="COLMAP's lens model (default: %(default)s)"
    )
    parser.add_argument(
        "--matcher",
        choices=MATCHERS,
        default=defaults.matcher,
        help="which photographs are matched: each with each, or with the next by name (default: %(default)s)",
    )
    parser.add_argument(
        "--max-size",
        type=int,
        metavar="PIXELS",
        help="shrink to this longer edge (default: link the files as they are)",
    )
    parser.add_argument("--threads", type=int, default=-1, help="threads to use (default: all cores)")
    program.add_version_option(parser)
    program.add_common_options(parser)
    parser.set_defaults(run=run)
    return parser


def run(options: argparse.Namespace) -> int:
    """Reconstruct as the options say and print what came out; returns the exit code."""
    config = PrepareConfig(options.camera_model, options.matcher, options.max_size)
    for number, model in enumerate(prepare(options.photographs, options.out, config, threads=options.threads)):
        print(
            f"model {number}: {len(model.names)} photographs, {model.points} points, mean track length "
            f"{model.track_length:.2f}, mean reprojection error {model.reprojection_error:.2f} px, in {model.folder}"
        )
    return 0
