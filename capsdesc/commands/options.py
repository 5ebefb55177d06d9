"""Options that several commands have, each defined once."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from capsdesc.describe.extractor import CAPSExtractor
from capsdesc.describe.orientation import ORIENTATIONS
from capsdesc.images.video import Sampling
from capsdesc.keypoints import DEFAULT_DETECTOR, DETECTORS, OWN
from capsdesc.matching import MAX_SHIFT
from capsdesc.pipelines.ray import Engine


def positive(text: str) -> int:
    """An argument that is a positive integer."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not positive")
    return value


def add_pair_options(parser: argparse.ArgumentParser) -> None:
    """Add two images."""
    parser.add_argument("image0", type=Path)
    parser.add_argument("image1", type=Path)


def add_json_option(parser: argparse.ArgumentParser) -> None:
    """Add the option by which standard output is JSON and nothing else."""
    parser.add_argument("--json", action="store_true", help="print the results as JSON")


def add_weights_option(parser: argparse._ActionsContainer, of: str = "") -> None:
    """Add the option that chooses the weights."""
    parser.add_argument("--weights", help=f"{of}bundled name, file, folder or hub name (default: the bundled weights)")


def add_device_option(parser: argparse.ArgumentParser, default: str = "cuda if there is one") -> None:
    """Add the option that chooses where networks run, or whatever else torch computes."""
    parser.add_argument("--device", help=f"cpu, cuda, ... (default: {default})")


def add_engine_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose the machines that work."""
    parser.add_argument(
        "--engine",
        choices=get_args(Engine),
        default="local",
        help="ray: on the Ray cluster of RAY_ADDRESS, or one started here; its machines share input and output "
        "(%(default)s)",
    )
    parser.add_argument("--workers", type=int, metavar="N", help="of Ray (default: one a GPU or, without, a CPU)")


def add_network_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose the network and the size it sees; :func:`extractor_of` reads them."""
    add_weights_option(parser)
    add_device_option(parser)
    parser.add_argument("--max-size", type=int, metavar="PX", help="shrink images whose longer edge is longer")


def add_max_keypoints_option(parser: argparse._ActionsContainer, default: int = 2048) -> None:
    """Add the option that bounds the number of keypoints."""
    parser.add_argument("--max-keypoints", type=int, default=default, metavar="N", help="per image (%(default)s)")


def add_shared_detector_option(parser: argparse.ArgumentParser, choices: Sequence[str]) -> None:
    """Add the option that chooses whose keypoints several methods are compared at."""
    parser.add_argument(
        "--detector", choices=choices, default="sift", help="whose keypoints the shared ones are (%(default)s)"
    )


def add_detector_option(parser: argparse.ArgumentParser) -> None:
    """Add the option that chooses the detector, for :func:`extractor_of`."""
    without = ", or sift with weights that find none" if DEFAULT_DETECTOR == OWN else ""
    parser.add_argument(
        "--detector",
        choices=DETECTORS,
        help="of keypoints: caps, the network's own, with weights that find some; sift; superpoint, which gets Magic "
        f"Leap's weights, for non-commercial research only (default: {DEFAULT_DETECTOR}{without})",
    )


def add_orientation_option(parser: argparse.ArgumentParser) -> None:
    """Add the option that chooses between upright descriptors and those of any orientation."""
    parser.add_argument(
        "--orientation",
        choices=ORIENTATIONS,
        default="upright",
        help="any: the images may be turned or zoomed at will; takes some 15 times as long (%(default)s)",
    )


def add_ratio_option(parser: argparse.ArgumentParser, default: float | None = None) -> None:
    """Add the option of the ratio test."""
    shown = "none" if default is None else "%(default)s"
    parser.add_argument(
        "--ratio", type=float, default=default, metavar="R", help=f"of the ratio test on matches, up to 1 ({shown})"
    )


def add_matcher_option(parser: argparse.ArgumentParser) -> None:
    """Add the option that chooses how features are matched, `method` of :func:`capsdesc.match`."""
    parser.add_argument(
        "--matcher",
        choices=("nearest", "context"),
        default="nearest",
        help="mutual nearest neighbours, or the bundled network that looks at what is around each keypoint too, for "
        "features of the bundled weights; it has no ratio test (default: %(default)s)",
    )


def add_max_shift_option(
    parser: argparse.ArgumentParser, default: float | str | None = MAX_SHIFT, more: str = ""
) -> None:
    """Add the option of the check by derivatives, `max_shift` of :func:`capsdesc.match`."""
    parser.add_argument(
        "--max-shift",
        type=_shift,
        default=default,
        metavar="PX",
        help="drop matches that would look more alike with one of the points moved by more than this; none: keep them "
        f"({MAX_SHIFT:g}{more})",
    )


def _shift(text: str) -> float | None:
    return None if text == "none" else float(text)


def add_matching_options(
    parser: argparse.ArgumentParser, max_keypoints: int = 2048, ratio: float | None = None
) -> None:
    """Add all that says how images are described and matched, but for the network; with these defaults."""
    add_max_keypoints_option(parser, max_keypoints)
    add_detector_option(parser)
    add_orientation_option(parser)
    add_matcher_option(parser)
    add_ratio_option(parser, ratio)
    add_max_shift_option(parser)


def add_threads_option(parser: argparse.ArgumentParser) -> None:
    """Add the option of how many images are described side by side."""
    parser.add_argument(
        "--threads", type=int, metavar="N", help="images at work at a time (default: one a CPU, up to 8)"
    )


def add_sampling_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose frames of videos and images of folders; :func:`sampling_of` reads them."""
    group = parser.add_argument_group("of videos, and of folders of frames")
    which = group.add_mutually_exclusive_group()
    which.add_argument("--every", type=positive, default=1, metavar="N", help="take each N-th frame (%(default)s)")
    which.add_argument("--fps", type=float, metavar="F", help="take F frames a second; of videos alone")
    group.add_argument("--max-frames", type=positive, metavar="N", help="take no more than the first N of these")


def sampling_of(options: argparse.Namespace) -> Sampling:
    """What the options of :func:`add_sampling_options` choose."""
    return Sampling(options.every, options.fps, options.max_frames)


def add_seed_option(parser: argparse.ArgumentParser, of: str) -> None:
    """Add the option that makes random choices the same again."""
    parser.add_argument("--seed", type=int, default=0, help=f"of {of} (%(default)s)")


def extractor_of(options: argparse.Namespace, detector: str | None = "sift") -> CAPSExtractor:
    """The extractor that the options of :func:`add_network_options` choose, with this detector or the default."""
    return CAPSExtractor(options.weights, detector=detector, device=options.device, max_size=options.max_size)
