"""Options that several commands have, each defined once."""

from __future__ import annotations

import argparse
from pathlib import Path

from capsdesc.describe.extractor import CAPSExtractor
from capsdesc.describe.orientation import ORIENTATIONS
from capsdesc.keypoints import DETECTORS
from capsdesc.matching import MAX_SHIFT


def add_pair_options(parser: argparse.ArgumentParser, picture: str) -> None:
    """Add two images, and where a picture of them is written."""
    parser.add_argument("image0", type=Path)
    parser.add_argument("image1", type=Path)
    parser.add_argument("-o", "--output", type=Path, metavar="PNG", help=f"picture {picture}")


def positive(text: str) -> int:
    """An argument that is a positive integer."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not positive")
    return value


def add_network_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose the network; :func:`extractor_of` reads them."""
    parser.add_argument("--weights", help="bundled name, file, folder or hub name (default: the bundled weights)")
    parser.add_argument("--device", help="cpu, cuda, ... (default: cuda if there is one)")
    parser.add_argument("--max-size", type=int, metavar="PX", help="shrink images whose longer edge is longer")


def add_detector_option(parser: argparse.ArgumentParser) -> None:
    """Add the option that chooses the detector, for :func:`extractor_of`."""
    parser.add_argument(
        "--detector",
        choices=DETECTORS,
        default="sift",
        help="of keypoints (%(default)s); superpoint gets Magic Leap's weights, for non-commercial research only",
    )


def add_orientation_option(parser: argparse.ArgumentParser) -> None:
    """Add the option that chooses between upright descriptors and those of any orientation."""
    parser.add_argument(
        "--orientation",
        choices=ORIENTATIONS,
        default="upright",
        help="any: the images may be turned or zoomed at will; takes some 15 times as long (%(default)s)",
    )


def extractor_of(options: argparse.Namespace, detector: str = "sift") -> CAPSExtractor:
    """The extractor that the options of :func:`add_network_options` choose, with this detector."""
    return CAPSExtractor(options.weights, detector=detector, device=options.device, max_size=options.max_size)


def add_max_shift_option(parser: argparse.ArgumentParser, default: float | None = None, needs: str = "") -> None:
    """Add the option for `max_shift` of `match`."""
    parser.add_argument(
        "--max-shift",
        type=float,
        default=default,
        metavar="PX",
        help="drop matches that would look more alike with one of the points moved by more than this "
        f"({f'default: none, {MAX_SHIFT:g} suits' if default is None else '%(default)s'}{needs})",
    )
