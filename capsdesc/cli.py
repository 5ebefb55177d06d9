"""The command ``capsdesc``."""

from __future__ import annotations

import argparse
import csv
import logging
import math
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from capsdesc.demo.cli import add_parser as add_demo
from capsdesc.evaluation.bench import add_parser as add_bench
from capsdesc.evaluation.cli import add_parser as add_eval
from capsdesc.export import add_parser as add_export
from capsdesc.extraction import add_detector_option, add_network_options, add_orientation_option, extractor_of
from capsdesc.extraction import add_parser as add_extract
from capsdesc.geometry import RelativePose, estimate_homography, estimate_pose
from capsdesc.io.files import atomic_path
from capsdesc.io.images import UInt8Array, read_image
from capsdesc.matching import MAX_SHIFT, add_max_shift_option, match
from capsdesc.pairs import add_parser as add_match_features
from capsdesc.sfm import add_parser as add_sfm
from capsdesc.visualization import draw_located, draw_matches
from capsdesc.weights import convert_official
from capsdesc.weights.publish import add_parser as add_publish

Array = npt.NDArray[Any]


def build_parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = argparse.ArgumentParser(prog="capsdesc", description="Local descriptors learned from camera poses.")
    parser.add_argument("--version", action="version", version=f"capsdesc {metadata.version('capsdesc')}")
    commands = parser.add_subparsers(required=True, title="commands")
    _add_match(commands)
    add_extract(commands)
    add_match_features(commands)
    _add_locate(commands)
    add_sfm(commands)
    add_demo(commands)
    add_eval(commands)
    add_bench(commands)
    add_export(commands)
    add_publish(commands)
    _add_convert(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``capsdesc``; returns the exit code: 0, or 1 with a message on standard error."""
    options = build_parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        code: int = options.run(options)
    except (OSError, ValueError, TypeError, ImportError) as error:
        # Messages that OpenCV or torch had a part in have several lines.
        print("capsdesc:", " ".join(str(error).split()), file=sys.stderr)
        return 1
    return code


def _add_pair_options(parser: argparse.ArgumentParser, picture: str) -> None:
    parser.add_argument("image0", type=Path)
    parser.add_argument("image1", type=Path)
    parser.add_argument("-o", "--output", type=Path, metavar="PNG", help=f"picture {picture}")


# ---- match


def _add_match(commands: argparse._SubParsersAction[Any]) -> None:
    parser = commands.add_parser(
        "match",
        help="match two images, estimate their geometry, draw it",
        description="Match two images. With intrinsics the relative pose is estimated, without them a homography.",
    )
    _add_pair_options(parser, picture="of the matches, inliers coloured")
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
    parser.set_defaults(run=_run_match)


def _run_match(options: argparse.Namespace) -> int:
    _check_picture(options.output)
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
        _write_picture(options.output, draw_matches(image0, image1, points0, points1, inliers))
    return 0


def _intrinsics(values: Sequence[float] | None) -> Array | None:
    if values is None:
        return None
    fx, fy, cx, cy = values
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])


def _matrix(values: Array) -> str:
    return "\n".join("  " + " ".join(f"{value:12.6f}" for value in row) for row in values)


def _check_picture(path: Path | None) -> None:
    """Refuse a path that no picture can be written to, before the work is done."""
    if path is None or path.is_dir() or not path.parent.is_dir():
        return  # no picture is asked for, or writing will say what is wrong
    if not path.suffix or not cv2.haveImageWriter(path.name):
        raise ValueError(f"cannot write a picture to {path}: expected an ending such as .png or .jpg")


def _write_picture(path: Path, picture: UInt8Array) -> None:
    with atomic_path(path) as temporary:
        # Not imwrite, which fails on Windows where a path is not ASCII.
        done, encoded = cv2.imencode(path.suffix, cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
        if not done:
            raise ValueError(f"cannot write a picture to {path}")
        temporary.write_bytes(encoded.tobytes())
    print(f"wrote {path}")


# ---- locate


def _add_locate(commands: argparse._SubParsersAction[Any]) -> None:
    parser = commands.add_parser(
        "locate",
        help="find points of one image in another",
        description="Where are these points of image0 in image1? Prints a line of x0,y0,x1,y1,std for each.",
    )
    _add_pair_options(parser, picture="with circles of one deviation")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--points", nargs="+", type=_point, metavar="X,Y", help="points in image0, in pixels")
    where.add_argument("--points-file", type=Path, metavar="CSV", help="a file with x,y on each line")
    add_network_options(parser)
    parser.set_defaults(run=_run_locate)


def _point(text: str) -> tuple[float, float]:
    try:
        x, y = (float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not X,Y") from None
    return x, y


def _read_points(path: Path) -> Array:
    rows = []
    with open(path, newline="", encoding="utf-8-sig") as file:
        for number, row in enumerate(csv.reader(file), start=1):
            if not row:
                continue
            try:
                x, y = (float(value) for value in row)
                if not (math.isfinite(x) and math.isfinite(y)):
                    raise ValueError
            except ValueError:
                raise ValueError(f"{path}, line {number}: expected x,y and found {','.join(row)!r}") from None
            rows.append((x, y))
    return np.asarray(rows, dtype=np.float32).reshape(-1, 2)


def _run_locate(options: argparse.Namespace) -> int:
    _check_picture(options.output)
    points = np.asarray(options.points, dtype=np.float32) if options.points else _read_points(options.points_file)
    image0, image1 = read_image(options.image0), read_image(options.image1)
    located = extractor_of(options).locate(points, image0, image1)
    print("x0,y0,x1,y1,std")
    for (x0, y0), (x1, y1), std in zip(points, located.points, located.std, strict=True):
        print(f"{x0:.2f},{y0:.2f},{x1:.2f},{y1:.2f},{std:.2f}")
    if options.output is not None:
        _write_picture(options.output, draw_located(image0, image1, points, located.points, np.asarray(located.std)))
    return 0


# ---- convert


def _add_convert(commands: argparse._SubParsersAction[Any]) -> None:
    parser = commands.add_parser(
        "convert",
        help="an official CAPS checkpoint to safetensors",
        description="Read an official CAPS checkpoint (.pth) strictly and write config.json and model.safetensors.",
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("output", type=Path, metavar="DIR")
    parser.set_defaults(run=_run_convert)


def _run_convert(options: argparse.Namespace) -> int:
    weights = convert_official(options.checkpoint, options.output)
    print(f"wrote {options.output}: {weights.config.encoder}, {len(weights.state_dict)} tensors")
    return 0


if __name__ == "__main__":
    sys.exit(main())
