"""The command ``capsdesc``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

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
    program,
    publish,
    sfm,
)

COMMANDS = (match, extract, match_features, locate, sfm, demo, eval, bench, export, publish, convert)


def build_parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = argparse.ArgumentParser(prog="capsdesc", description="Local descriptors learned from camera poses.")
    program.add_version_option(parser)
    commands = parser.add_subparsers(required=True, title="commands")
    for command in COMMANDS:
        command.add_parser(commands)
    for command_parser in commands.choices.values():
        program.add_common_options(command_parser)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``capsdesc``; returns the exit code, see :func:`capsdesc.commands.program.run`."""
    return program.run("capsdesc", build_parser().parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
