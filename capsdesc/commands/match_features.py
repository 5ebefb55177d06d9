"""The command ``capsdesc match-features``."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm.contrib.logging import logging_redirect_tqdm

from capsdesc.commands.options import (
    add_device_option,
    add_engine_options,
    add_matcher_option,
    add_max_shift_option,
    add_ratio_option,
)
from capsdesc.io.pairs import read_pairs
from capsdesc.matching import MAX_SHIFT
from capsdesc.pipelines.match import match_pairs
from capsdesc.pipelines.stores import feature_source

logger = logging.getLogger(__name__)


def add_parser(commands: argparse._SubParsersAction[Any]) -> None:
    """Register ``match-features`` among the subcommands of ``capsdesc``; its ``run`` takes the parsed arguments."""
    parser = commands.add_parser(
        "match-features",
        description="Match pairs of images whose features `capsdesc extract` wrote, or hloc. "
        "A pair listed in both orders is matched once. A pair that cannot be matched or kept is reported and left out; "
        "the others are matched, and the exit code is 1.",
    )
    parser.add_argument("features", type=Path, help="features file of hloc, or folder of .npz files")
    parser.add_argument("pairs", type=Path, metavar="PAIRS.txt", help="two names of images on each line")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="MATCHES.h5")
    add_matcher_option(parser)
    add_ratio_option(parser)
    add_max_shift_option(parser, argparse.SUPPRESS, " where features have derivatives, as those of `capsdesc extract`")
    add_device_option(parser, "cpu")
    add_engine_options(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace the output if it exists")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run ``capsdesc match-features``; returns the exit code: 1 where a pair was left out."""
    if options.output.exists() and not options.overwrite:
        raise FileExistsError(f"{options.output} exists; name another output, or replace it with --overwrite")
    pairs = read_pairs(options.pairs)
    with logging_redirect_tqdm():
        done = match_pairs(
            options.features,
            pairs,
            options.output,
            ratio=options.ratio,
            max_shift=_max_shift(options, pairs),
            method=options.matcher,
            device=options.device,
            engine=options.engine,
            workers=options.workers,
            progress=True,
        )
    left_out = f", {len(done.left_out)} left out" if done.left_out else ""
    if not options.quiet:
        print(f"wrote {options.output}: {len(done.matched)} pairs{left_out}")
    return 1 if done.left_out else 0


def _max_shift(options: argparse.Namespace, pairs: Sequence[tuple[str, str]]) -> float | None:
    """What the user says, and else the check wherever it can be made."""
    if "max_shift" in options:
        given: float | None = options.max_shift
        return given
    if feature_source(options.features).have_derivatives({name for pair in pairs for name in pair}):
        return MAX_SHIFT
    logger.warning("%s has no derivatives, as `capsdesc extract` keeps: matches are not checked", options.features)
    return None
