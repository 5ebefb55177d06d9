"""The command ``capsdesc export``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from capsdesc.commands.options import add_weights_option
from capsdesc.onnx import export_onnx

DESCRIPTION = """\
Write the network for ONNX Runtime and its like: an image in, the coarse and the fine descriptor map out, and with a
reliability the map of its logits. Batch, height and width are free. What the file computes is compared with torch
first. Its metadata say how to read descriptors from the maps; examples/describe_with_onnxruntime.py does so, without
torch.
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
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run ``capsdesc export``; returns the exit code."""
    export_onnx(options.onnx, options.weights)
    print(f"wrote {options.onnx}")
    return 0
