"""The command ``capsdesc``."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from importlib import metadata

from capsdesc.commands import (
    bench,
    convert,
    demo,
    eval,
    export,
    extract,
    locate,
    match,
    match_features,
    publish,
    sfm,
)

COMMANDS = (match, extract, match_features, locate, sfm, demo, eval, bench, export, publish, convert)


def build_parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = argparse.ArgumentParser(prog="capsdesc", description="Local descriptors learned from camera poses.")
    parser.add_argument("--version", action="version", version=f"capsdesc {metadata.version('capsdesc')}")
    commands = parser.add_subparsers(required=True, title="commands")
    for command in COMMANDS:
        command.add_parser(commands)
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


if __name__ == "__main__":
    sys.exit(main())
