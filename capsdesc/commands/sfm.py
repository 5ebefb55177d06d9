"""The command ``capsdesc sfm``."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm.contrib.logging import logging_redirect_tqdm

from capsdesc.commands.options import (
    add_engine_options,
    add_matching_options,
    add_network_options,
    add_sampling_options,
    sampling_of,
)
from capsdesc.images.video import Sampling, is_video
from capsdesc.pipelines.colmap import find_photographs
from capsdesc.pipelines.frames import write_frames
from capsdesc.pipelines.sfm import PAIRINGS, SfmConfig, reconstruct, reconstruct_with_sift, sfm_extractor
from capsdesc.pipelines.summary import Reconstruction


def add_parser(commands: argparse._SubParsersAction[Any]) -> None:
    """Register ``sfm`` among the subcommands of ``capsdesc``; its ``run`` takes the parsed arguments."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "sfm",
        description="Reconstruct photographs by structure from motion: CAPS describes their keypoints, COLMAP verifies "
        "the matches and maps. Writes a COLMAP database and models. Run the same command again to resume.",
    )
    parser.add_argument("photographs", type=Path, help="folder of the photographs, subfolders included, or a video")
    parser.add_argument(
        "out",
        type=Path,
        help="folder for features/, database.db, sparse/ and summary.json; of a video, for its frames in images/ too",
    )
    add_matching_options(parser, SfmConfig.max_keypoints, SfmConfig.ratio)
    parser.add_argument(
        "--pairs",
        choices=PAIRINGS,
        default=SfmConfig.pairs,
        help="which photographs are matched: each with each, with those after it by name, or with those that look most "
        "like it (%(default)s)",
    )
    parser.add_argument(
        "--overlap",
        type=int,
        default=SfmConfig.overlap,
        metavar="N",
        help="sequential: with the next N, and with N at distances 1, 2, 4, ... (%(default)s)",
    )
    parser.add_argument(
        "--neighbours",
        type=int,
        default=SfmConfig.neighbours,
        metavar="N",
        help="retrieval: with so many (%(default)s)",
    )
    parser.add_argument("--camera-model", default=SfmConfig.camera_model, help="COLMAP's lens model (%(default)s)")
    parser.add_argument("--single-camera", action="store_true", help="one camera took all photographs, without zooming")
    parser.add_argument(
        "--compare", choices=("sift",), help="do the same with COLMAP's own SIFT, in OUT/sift, and show both"
    )
    parser.add_argument("--threads", type=int, default=-1, metavar="N", help="(default: all cores)")
    add_engine_options(parser)
    add_sampling_options(parser)
    add_network_options(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run ``capsdesc sfm``; returns the exit code: 1 where there is no model."""
    config = SfmConfig(**{field.name: getattr(options, field.name) for field in dataclasses.fields(SfmConfig)})
    if options.threads > 0:
        torch.set_num_threads(options.threads)
    with logging_redirect_tqdm():
        extractor = sfm_extractor(
            options.weights, detector=options.detector, device=options.device, max_size=options.max_size
        )
        photographs, chosen = _chosen(options)
        found = reconstruct(
            photographs,
            options.out,
            extractor,
            config,
            chosen=chosen,
            threads=options.threads,
            engine=options.engine,
            workers=options.workers,
        )
        results = {"caps": found}
        if options.compare == "sift":
            results["sift"] = reconstruct_with_sift(
                photographs, options.out, found.names, config, threads=options.threads
            )
    print(_table(results))
    if not found.models:
        print(
            f"capsdesc: no two of the {len(found.names)} photographs could be related to each other: do they overlap, "
            "and is there enough of texture and enough of sideways motion between them?",
            file=sys.stderr,
        )
    registered = {name for model in found.models for name in model.names}
    if len(registered) < len(found.names) and config.orientation == "upright":
        print(
            "capsdesc: were some of the photographs taken with the camera turned? Then try --orientation any, in "
            "another folder.",
            file=sys.stderr,
        )
    return 0 if found.models else 1


def _chosen(options: argparse.Namespace) -> tuple[Path, Sequence[str] | None]:
    """The folder of the photographs, and which of them take part, by name; None for all."""
    sampling = sampling_of(options)
    if is_video(options.photographs):
        folder = options.out / "images"
        return folder, write_frames(options.photographs, folder, sampling, progress=True)
    if sampling == Sampling():
        return options.photographs, None
    return options.photographs, sampling.of(list(find_photographs(options.photographs)), options.photographs)


def _table(results: Mapping[str, Reconstruction]) -> str:
    """A line for each model."""
    lines = [f"{'':14}{'registered':>14}{'points':>10}{'track length':>14}{'error (px)':>12}{'seconds':>10}"]
    for method, result in results.items():
        seconds = f"{sum(result.seconds.values()):10.1f}"
        total = len(result.names)
        if not result.models:
            lines.append(f"{method:14}{f'0 of {total}':>14}{'':36}{seconds}")
        for number, model in enumerate(result.models):
            title = method if number == 0 else f"{method}, model {number}"
            lines.append(
                f"{title:14}{f'{len(model.names)} of {total}':>14}{model.points:10}{model.track_length:14.2f}"
                f"{model.reprojection_error:12.2f}{seconds if number == 0 else ''}"
            )
    return "\n".join(lines)
