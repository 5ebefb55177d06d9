"""The command ``capsdesc match``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from capsdesc.commands.options import (
    add_detector_option,
    add_max_shift_option,
    add_network_options,
    add_orientation_option,
    add_pair_options,
    extractor_of,
)
from capsdesc.commands.pictures import check_picture, write_picture
from capsdesc.geometry import estimate_homography, estimate_pose
from capsdesc.images import read_image
from capsdesc.matching import MAX_SHIFT, match
from capsdesc.types import Array, RelativePose
from capsdesc.visualization import draw_matches


def add_parser(commands: argparse._SubParsersAction[Any]) -> None:
    """Register ``match`` among the subcommands of ``capsdesc``; its ``run`` takes the parsed arguments."""
    parser = commands.add_parser(
        "match",
        help="match two images, estimate their geometry, draw it",
        description="Match two images. With intrinsics the relative pose is estimated, without them a homography.",
    )
    add_pair_options(parser, picture="of the matches, inliers coloured")
    for name, which in (("--K", "both images"), ("--K0", "image0"), ("--K1", "image1")):
        parser.add_argument(
            name, nargs=4, type=float, metavar=("FX", "FY", "CX", "CY"), help=f"intrinsics of {which}, in pixels"
        )
    parser.add_argument("--max-keypoints", type=int, default=2048, metavar="N", help="per image (%(default)s)")
    add_detector_option(parser)
    add_orientation_option(parser)
    parser.add_argument("--ratio", type=float, help="ratio test on the matches (default: none)")
    add_max_shift_option(parser, MAX_SHIFT)
    parser.add_argument("--threshold", type=float, metavar="PX", help="of inliers (default: 1 for a pose, else 3)")
    parser.add_argument("--backend", choices=("opencv", "poselib"), default="opencv", help="robust estimator")
    parser.add_argument("--seed", type=int, default=0, help="of the robust estimator (%(default)s)")
    add_network_options(parser)
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    check_picture(options.output)
    K0, K1 = (_intrinsics(values or options.K) for values in (options.K0, options.K1))
    if (K0 is None) != (K1 is None):
        raise ValueError("intrinsics are given for one image only: give --K, or both --K0 and --K1")
    image0, image1 = read_image(options.image0), read_image(options.image1)
    extractor = extractor_of(options, options.detector)
    features0, features1 = (
        extractor.extract(
            image,
            options.max_keypoints,
            orientation=options.orientation,
            derivatives=True,
        )
        for image in (image0, image1)
    )
    matches = match(features0, features1, ratio=options.ratio, max_shift=options.max_shift)
    points0 = features0.keypoints[matches.indices[:, 0]]
    points1 = features1.keypoints[matches.indices[:, 1]]
    print(f"keypoints  {len(features0)} and {len(features1)}")
    print(f"matches    {len(matches)}")

    settings = {"backend": options.backend, "seed": options.seed}
    if options.threshold is not None:
        settings["threshold"] = options.threshold
    model: Any
    if K0 is not None and K1 is not None:
        model = estimate_pose(points0, points1, K0, K1, **settings)
    else:
        model = estimate_homography(points0, points1, **settings)
    inliers = np.zeros(len(matches), dtype=bool) if model is None else model.inliers
    print(f"inliers    {int(inliers.sum())}")
    if model is None:
        print("no pose found" if K0 is not None else "no homography found")
    elif isinstance(model, RelativePose):
        angle = np.rad2deg(np.linalg.norm(cv2.Rodrigues(model.R)[0]))
        print(f"rotation   {angle:.2f} degrees\nR\n{_matrix(model.R)}\nt (unit length)\n{_matrix(model.t[None])}")
    else:
        print(f"H\n{_matrix(model.H)}")
    if options.output is not None:
        write_picture(options.output, draw_matches(image0, image1, points0, points1, inliers))
    return 0


def _intrinsics(values: Sequence[float] | None) -> Array | None:
    if values is None:
        return None
    fx, fy, cx, cy = values
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])


def _matrix(values: Array) -> str:
    return "\n".join("  " + " ".join(f"{value:12.6f}" for value in row) for row in values)
