"""The command ``capsdesc demo``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from capsdesc.commands.options import (
    add_detector_option,
    add_device_option,
    add_matcher_option,
    add_weights_option,
    positive,
)
from capsdesc.demo.page import build_page, check_gradio, serve
from capsdesc.demo.photographs import EXAMPLE, read_photograph
from capsdesc.describe.extractor import CAPSExtractor

DESCRIPTION = """\
Serve a page, on this machine only, that shows what the descriptors find in two photographs: click a point in one and
see where it is in the other; matches, pose, epipolar lines, homography, descriptors. It needs no network.
"""


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Register ``demo`` among the subcommands of ``capsdesc``; its ``run`` takes the parsed arguments.

    Args:
        subparsers: what :meth:`argparse.ArgumentParser.add_subparsers` returned.
    """
    parser: argparse.ArgumentParser = subparsers.add_parser("demo", description=DESCRIPTION)
    for k, default in enumerate(EXAMPLE):
        parser.add_argument(
            f"--image{k}", type=Path, default=default, metavar="PATH", help="to begin with (default: an example)"
        )
    parser.add_argument("--port", type=positive, default=7860, help="of 127.0.0.1 (default: %(default)s)")
    parser.add_argument("--share", action="store_true", help="also by a public link, through Gradio's servers")
    add_detector_option(parser)
    add_matcher_option(parser)
    add_weights_option(parser)
    add_device_option(parser)
    parser.add_argument(
        "--max-size",
        type=positive,
        default=1024,
        metavar="PX",
        help="shrink photographs whose longer edge is longer (default: %(default)s)",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Serve the page until the user interrupts; returns the exit code.

    Args:
        options: the parsed arguments.

    Raises:
        OSError, ValueError, ImportError: a photograph, the weights, the port or Gradio cannot be had.
    """
    pair = read_photograph(options.image0, options.max_size), read_photograph(options.image1, options.max_size)
    check_gradio()  # whoever has not got it hears of it before the weights are read
    caps = CAPSExtractor(options.weights, detector=options.detector, device=options.device)
    serve(build_page(caps, pair, options.max_size, options.matcher), options.port, options.share)
    return 0
