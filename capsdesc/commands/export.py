"""The command ``capsdesc export``."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from capsdesc.commands.options import add_weights_option
from capsdesc.images import find_images
from capsdesc.onnx import export_matcher_onnx, export_onnx, quantize_onnx

DESCRIPTION = """\
Write the network for ONNX Runtime and its like: an image in, the coarse and the fine descriptor map out, and with a
reliability the map of its logits. Batch, height and width are free. What the file computes is compared with torch
first. Its metadata say how to read descriptors from the maps; examples/describe_with_onnxruntime.py does so, without
torch. With --matcher it is the network that judges candidate matches by their context; to find the candidates is not
in the graph, and examples/match_with_onnxruntime.py does so without torch. With --int8 the network's convolutions
compute in 8-bit integers, over the ranges of values that the photographs given show.
"""


def add_parser(commands: argparse._SubParsersAction[Any]) -> None:
    """Register ``export`` among the subcommands of ``capsdesc``; its ``run`` takes the parsed arguments.

    Args:
        commands: what :meth:`argparse.ArgumentParser.add_subparsers` returned.
    """
    parser: argparse.ArgumentParser = commands.add_parser(
        "export",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--onnx", type=Path, required=True, metavar="FILE", help="the file to write")
    add_weights_option(parser)
    parser.add_argument(
        "--matcher",
        nargs="?",
        const="",
        metavar="DIR",
        help="write a matcher that sees context instead: of a folder of capsdesc-train matcher, or the bundled one",
    )
    parser.add_argument(
        "--int8",
        nargs="+",
        type=Path,
        metavar="PHOTOGRAPH",
        help="8-bit integers, calibrated on image files or folders: a dozen photographs like those to be described",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run ``capsdesc export``; returns the exit code."""
    if options.matcher is not None:
        if options.int8 is not None:
            raise ValueError("--int8 is of a descriptor, and --matcher writes a matcher; give one of the two")
        if options.weights is not None:
            raise ValueError("--weights are of a descriptor, and --matcher writes a matcher; give one of the two")
        export_matcher_onnx(options.onnx, options.matcher or None)
    elif options.int8 is not None:
        _export_int8(options)
    else:
        export_onnx(options.onnx, options.weights)
    print(f"wrote {options.onnx}")
    return 0


def _export_int8(options: argparse.Namespace) -> None:
    photographs = [path for given in options.int8 for path in (find_images(given) if given.is_dir() else [given])]
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "float32.onnx"
        export_onnx(whole, options.weights)
        alike = quantize_onnx(whole, options.onnx, photographs, progress=not options.quiet)
    if not options.quiet:
        print(f"cosine with float32: {alike.coarse:.4f} coarse, {alike.fine:.4f} fine")
