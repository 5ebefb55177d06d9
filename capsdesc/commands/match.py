"""The command ``capsdesc match``."""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from capsdesc.commands.options import (
    add_json_option,
    add_matching_options,
    add_network_options,
    add_seed_option,
    extractor_of,
    positive,
)
from capsdesc.commands.results import (
    MATCH_FILES,
    PairResult,
    check_outputs,
    matrix_lines,
    say_written,
    write_picture,
    write_results,
)
from capsdesc.geometry import estimate_homography, estimate_pose
from capsdesc.images import read_image
from capsdesc.io.npz import load_features
from capsdesc.io.pairs import read_pairs
from capsdesc.matching import match
from capsdesc.pipelines.extract import extract_images, name_images
from capsdesc.pipelines.match import MatchedPair, match_listed
from capsdesc.pipelines.retrieval import NEIGHBOURS, retrieved_pairs
from capsdesc.pipelines.stores import NpzFolder
from capsdesc.types import Array, RelativePose
from capsdesc.visualization import draw_matches

DESCRIPTION = """\
Match two images, or the images of a folder: each with each, the pairs of a list, or those that look alike as a whole,
with a line of names and numbers for each pair. With intrinsics the relative pose is estimated, without them a
homography.
"""
RETRIEVAL = "retrieval"


def add_parser(commands: argparse._SubParsersAction[Any]) -> None:
    """Register ``match`` among the subcommands of ``capsdesc``; its ``run`` takes the parsed arguments."""
    parser: argparse.ArgumentParser = commands.add_parser("match", description=DESCRIPTION)
    parser.add_argument("image0", type=Path, metavar="image0|FOLDER")
    parser.add_argument("image1", type=Path, nargs="?")
    parser.add_argument(
        "--pairs",
        metavar="TXT|retrieval",
        help="of the folder: a file with two names of images on each line, or each image with those most like it",
    )
    parser.add_argument(
        "--neighbours",
        type=positive,
        default=NEIGHBOURS,
        metavar="N",
        help="of each image, by retrieval (%(default)s)",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="the matches as .npz, .csv, .json or .h5, or a picture of them, as .png or .jpg, with the inliers "
        "coloured; may be given again for another one",
    )
    add_json_option(parser)
    for name, which in (("--K", "all images"), ("--K0", "image0"), ("--K1", "image1")):
        parser.add_argument(
            name, nargs=4, type=float, metavar=("FX", "FY", "CX", "CY"), help=f"intrinsics of {which}, in pixels"
        )
    add_matching_options(parser)
    parser.add_argument("--threshold", type=float, metavar="PX", help="of inliers (default: 1 for a pose, else 3)")
    parser.add_argument("--backend", choices=("opencv", "poselib"), default="opencv", help="robust estimator")
    add_seed_option(parser, "the robust estimator")
    add_network_options(parser)
    parser.set_defaults(run=run, refuse=parser.error)


def run(options: argparse.Namespace) -> int:
    """Run ``capsdesc match``; returns the exit code: 1 where an image of a folder was left out."""
    if options.image1 is not None and options.pairs is not None:
        options.refuse("argument --pairs: not allowed with two images; expected a folder")
    if options.image1 is None and not options.image0.is_dir():
        options.refuse("the following arguments are required: image1; or a folder of images in the place of image0")
    return _match_folder(options) if options.image1 is None else _match_two(options)


def _match_two(options: argparse.Namespace) -> int:
    check_outputs(options.output)
    cameras = _cameras(options)
    images = read_image(options.image0), read_image(options.image1)
    extractor = extractor_of(options, options.detector)
    features0, features1 = (
        extractor.extract(image, options.max_keypoints, orientation=options.orientation, derivatives=True)
        for image in images
    )
    matches = match(features0, features1, ratio=options.ratio, max_shift=options.max_shift, method=options.matcher)
    names = options.image0.name, options.image1.name
    result = _with_geometry(MatchedPair(names, (features0, features1), matches), cameras, options)
    print(json.dumps(result.summary()) if options.json else _described(result, posed=cameras is not None))
    for path in options.output:
        if path.suffix.lower() in MATCH_FILES:
            write_results(path, [result])
        else:
            write_picture(path, draw_matches(*images, *result.points, result.inliers))
        say_written(path, options)
    return 0


def _match_folder(options: argparse.Namespace) -> int:
    check_outputs(options.output, pairs="many")
    cameras = _cameras(options)
    images = name_images([options.image0])
    pairs: Sequence[tuple[str, str]] | None = None  # by retrieval, as soon as the images are described
    if options.pairs is None:
        pairs = list(itertools.combinations(images, 2))
    elif options.pairs != RETRIEVAL:
        pairs = read_pairs(Path(options.pairs))
    wanted = images if pairs is None else dict.fromkeys(name for pair in pairs for name in pair)
    missing = [name for name in wanted if name not in images]
    if missing:
        raise ValueError(f"{options.pairs} names {len(missing)} images that are not in {options.image0}: {missing[0]}")
    results = []
    if not options.json:
        print("image0\timage1\tmatches\tinliers")
    with tempfile.TemporaryDirectory() as folder, logging_redirect_tqdm():
        store = NpzFolder(Path(folder))
        done = extract_images(
            extractor_of(options, options.detector),
            {name: images[name] for name in wanted},
            store,
            max_keypoints=options.max_keypoints,
            orientation=options.orientation,
            derivatives=True,
            progress=True,
        )
        if pairs is None:
            pairs = retrieved_pairs([name for name in wanted if name not in done.broken], store, options.neighbours)
        found = match_listed(
            [pair for pair in pairs if done.broken.keys().isdisjoint(pair)],
            lambda name: load_features(store.path(name)),
            ratio=options.ratio,
            max_shift=options.max_shift,
            method=options.matcher,
            progress=None,
        )
        for pair in found:
            result = _with_geometry(pair, cameras, options)
            counts = f"{len(result.pair.matches)}\t{int(result.inliers.sum())}"
            # Not print, which would run into the progress.
            tqdm.write(json.dumps(result.summary()) if options.json else "\t".join([*pair.names, counts]))
            if options.output:
                results.append(result)
    for path in options.output:
        write_results(path, results, many=True)
        say_written(path, options)
    return 1 if done.broken else 0


def _with_geometry(pair: MatchedPair, cameras: tuple[Array, Array] | None, options: argparse.Namespace) -> PairResult:
    points = pair.matches.points(*pair.features)
    settings = {"backend": options.backend, "seed": options.seed}
    if options.threshold is not None:
        settings["threshold"] = options.threshold
    model = (
        estimate_homography(*points, **settings) if cameras is None else estimate_pose(*points, *cameras, **settings)
    )
    return PairResult(pair, (np.asarray(points[0]), np.asarray(points[1])), model)


def _described(result: PairResult, posed: bool) -> str:
    """For people."""
    features, model = result.pair.features, result.model
    lines = [
        f"keypoints  {len(features[0])} and {len(features[1])}",
        f"matches    {len(result.pair.matches)}",
        f"inliers    {int(result.inliers.sum())}",
    ]
    if model is None:
        lines.append("no pose found" if posed else "no homography found")
    elif isinstance(model, RelativePose):
        angle = np.rad2deg(np.linalg.norm(cv2.Rodrigues(model.R)[0]))
        lines += [
            f"rotation   {angle:.2f} degrees",
            "R",
            matrix_lines(model.R),
            "t (unit length)",
            matrix_lines(model.t[None]),
        ]
    else:
        lines += ["H", matrix_lines(model.H)]
    return "\n".join(lines)


def _cameras(options: argparse.Namespace) -> tuple[Array, Array] | None:
    """The intrinsics of both images, or None where there are none."""
    K0, K1 = (_intrinsics(values or options.K) for values in (options.K0, options.K1))
    if (K0 is None) != (K1 is None):
        raise ValueError("intrinsics are given for one image only: give --K, or both --K0 and --K1")
    return None if K0 is None or K1 is None else (K0, K1)


def _intrinsics(values: Sequence[float] | None) -> Array | None:
    if values is None:
        return None
    fx, fy, cx, cy = values
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
