"""The command ``capsdesc publish``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from capsdesc.weights.publish import REQUIRED_FILES, TRAINING_FILES, publish

DESCRIPTION = f"""\
Upload a model to the Hugging Face hub, in one commit: {", ".join(REQUIRED_FILES)}, {" and ".join(TRAINING_FILES)} where
they are, and the pictures that the card shows. The model is loaded first, as strictly as any: what cannot be loaded is
not published. The token is the one of `hf auth login` or of the environment variable HF_TOKEN. Prints org/name@commit,
which CAPSExtractor takes.
"""


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Register ``publish`` among the subcommands of ``capsdesc``; its ``run`` takes the parsed arguments.

    Args:
        subparsers: what :meth:`argparse.ArgumentParser.add_subparsers` returned.
    """
    parser: argparse.ArgumentParser = subparsers.add_parser("publish", description=DESCRIPTION)
    parser.add_argument("folder", type=Path, help="with the model and its card, such as capsdesc-train writes")
    parser.add_argument("repository", metavar="org/name", help="on the hub; made if it does not exist")
    parser.add_argument("--private", action="store_true", help="make the repository private")
    parser.add_argument("--revision", metavar="BRANCH", help="made if it does not exist (default: main)")
    parser.add_argument("--message", metavar="M", help="of the commit")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run ``capsdesc publish``.

    Args:
        arguments: as the parser of :func:`add_parser` gives them.

    Returns:
        The exit code.
    """
    published = publish(
        arguments.folder,
        arguments.repository,
        private=arguments.private,
        revision=arguments.revision,
        message=arguments.message,
    )
    print(published)
    return 0
