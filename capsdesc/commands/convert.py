"""The command ``capsdesc convert``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from capsdesc.weights import convert_official


def add_parser(commands: argparse._SubParsersAction[Any]) -> None:
    """Register ``convert`` among the subcommands of ``capsdesc``; its ``run`` takes the parsed arguments."""
    parser = commands.add_parser(
        "convert",
        description="Read an official CAPS checkpoint (.pth) strictly and write config.json and model.safetensors.",
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("output", type=Path, metavar="DIR")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run ``capsdesc convert``; returns the exit code."""
    weights = convert_official(options.checkpoint, options.output)
    print(f"wrote {options.output}: {weights.config.encoder}, {len(weights.state_dict)} tensors")
    return 0
