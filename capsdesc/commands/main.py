"""The command ``capsdesc``."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from capsdesc.commands import program

# Each is a module beside this one, loaded when it is called: networks take seconds, and help is there at once.
COMMANDS = {
    "match": "match images, estimate their geometry, draw it",
    "extract": "keypoints and descriptors of images, for numpy or for hloc",
    "match-features": "match listed pairs of images in a features file of hloc",
    "locate": "find points of one image in another",
    "register": "move an image onto another one that shows the same",
    "sfm": "reconstruct cameras and a sparse model from photographs, with COLMAP",
    "localize": "find the poses of photographs in a COLMAP model",
    "demo": "look at two photographs in the browser",
    "eval": "measure descriptors on benchmarks",
    "bench": "measure time and memory beside peers",
    "export": "the network as an ONNX file",
    "publish": "upload a model to the Hugging Face hub",
    "convert": "an official CAPS checkpoint to safetensors",
}


def build_parser(called: str | None) -> argparse.ArgumentParser:
    """The command's arguments.

    Args:
        called: the one of :data:`COMMANDS` whose arguments are known; of the others there are the names alone.
    """
    parser = argparse.ArgumentParser(prog="capsdesc", description="Local descriptors learned from camera poses.")
    program.add_version_option(parser)
    commands = parser.add_subparsers(required=True, title="commands")
    for name, summary in COMMANDS.items():
        if name == called:
            importlib.import_module(f"capsdesc.commands.{name.replace('-', '_')}").add_parser(commands)
            program.add_common_options(commands.choices[name])
        else:
            commands.add_parser(name, help=summary)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``capsdesc``; returns the exit code, see :func:`capsdesc.commands.program.run`."""
    arguments = sys.argv[1:] if arguments is None else arguments
    return program.run("capsdesc", build_parser(next(iter(arguments), None)).parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
