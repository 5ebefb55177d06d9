"""The command ``capsdesc extract``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from tqdm.contrib.logging import logging_redirect_tqdm

from capsdesc.commands.options import (
    add_detector_option,
    add_engine_options,
    add_max_keypoints_option,
    add_network_options,
    add_orientation_option,
    add_sampling_options,
    add_threads_option,
    extractor_of,
    sampling_of,
)
from capsdesc.io.storage import STORES
from capsdesc.pipelines.extract import extract_images, name_sources
from capsdesc.pipelines.stores import feature_sink


def add_parser(commands: argparse._SubParsersAction[Any]) -> None:
    """Register ``extract`` among the subcommands of ``capsdesc``; its ``run`` takes the parsed arguments."""
    parser = commands.add_parser(
        "extract",
        description="Detect and describe keypoints. Images whose features are in the output are passed over, so a run "
        "that was stopped is continued by the same command. An image that cannot be read is reported and left out; "
        "the others are described, and the exit code is 1.",
    )
    parser.add_argument(
        "images",
        nargs="+",
        type=Path,
        help="image files, folders that are searched for them, or videos, whose frames are called frame_000123",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        help="folder for a .npz file an image; or, if it ends in .h5, a features file of hloc",
    )
    add_max_keypoints_option(parser)
    add_detector_option(parser)
    add_orientation_option(parser)
    parser.add_argument(
        "--derivatives",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="keep the descriptors' derivatives, by which match-features checks matches; half of the output",
    )
    parser.add_argument(
        "--store",
        choices=STORES,
        default="float32",
        help="type of descriptors in the output: float16 takes half the bytes, int8 a quarter (%(default)s)",
    )
    parser.add_argument("--overwrite", action="store_true", help="describe images again that are in the output")
    add_threads_option(parser)
    add_engine_options(parser)
    add_sampling_options(parser)
    add_network_options(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run ``capsdesc extract``; returns the exit code: 1 where an image was left out."""
    images = name_sources(options.images, sampling_of(options), progress=True)
    sink = feature_sink(options.output, options.store)
    with logging_redirect_tqdm():
        done = extract_images(
            extractor_of(options, options.detector),
            images,
            sink,
            max_keypoints=options.max_keypoints,
            orientation=options.orientation,
            derivatives=options.derivatives,
            overwrite=options.overwrite,
            threads=options.threads,
            engine=options.engine,
            workers=options.workers,
            progress=True,
        )
    there = f", {len(done.kept)} were there already" if done.kept else ""
    broken = f", {len(done.broken)} left out" if done.broken else ""
    if not options.quiet:
        print(f"described {len(done.described)} of {len(images)} images in {options.output}{there}{broken}")
    return 1 if done.broken else 0
