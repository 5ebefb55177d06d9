"""Pairs of images matched from hloc's files; and the command ``capsdesc match-features``."""

from __future__ import annotations

import argparse
import functools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from capsdesc.extractor import Features
from capsdesc.io.hloc import ScoredMatches, read_features, read_names, write_matches
from capsdesc.io.text import read_lines, shown
from capsdesc.matching import add_max_shift_option, match

# Features of so many images are kept in memory, as lists of pairs come back to an image soon or not at all.
_CACHED_IMAGES = 64


def add_parser(commands: argparse._SubParsersAction[Any]) -> None:
    """Register ``match-features`` among the subcommands of ``capsdesc``; its ``run`` takes the parsed arguments."""
    parser = commands.add_parser(
        "match-features",
        help="match listed pairs of images in a features file of hloc",
        description="Match pairs of images whose features `capsdesc extract -o FEATURES.h5` wrote, or hloc. "
        "A pair listed in both orders is matched once.",
    )
    parser.add_argument("features", type=Path, metavar="FEATURES.h5")
    parser.add_argument("pairs", type=Path, metavar="PAIRS.txt", help="two names of images on each line")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="MATCHES.h5")
    parser.add_argument("--ratio", type=float, help="ratio test on the matches (default: none)")
    add_max_shift_option(parser, needs="; needs features of `capsdesc extract --derivatives`")
    parser.add_argument("--overwrite", action="store_true", help="replace the output if it exists")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    if options.output.exists() and not options.overwrite:
        raise FileExistsError(f"{options.output} exists; name another output, or replace it with --overwrite")
    pairs = read_pairs(options.pairs)
    count = match_pairs(
        options.features, pairs, options.output, ratio=options.ratio, max_shift=options.max_shift, progress=True
    )
    print(f"wrote {options.output}: {count} pairs")
    return 0


def read_pairs(path: str | os.PathLike[str]) -> list[tuple[str, str]]:
    """The pairs of a list as hloc writes it: two names of images on each line.

    Empty lines and comments (#) are left out.

    Raises:
        OSError: the file cannot be opened.
        ValueError: a line has not two names, which is named, or the file is not UTF-8.
    """
    pairs = []
    for where, names in read_lines(path):
        if len(names) != 2:
            raise ValueError(f"{where}: expected two names of images and found {shown(' '.join(names))}")
        pairs.append((names[0], names[1]))
    return pairs


def match_pairs(
    features: str | os.PathLike[str],
    pairs: Sequence[tuple[str, str]],
    output: str | os.PathLike[str],
    *,
    ratio: float | None = None,
    max_shift: float | None = None,
    progress: bool = False,
) -> int:
    """Match pairs of images of a features file and write hloc's matches file, whole or not at all.

    Matches are mutual nearest neighbours, see :func:`capsdesc.match`. Their score is (1 + c) / 2 for the cosine c of
    the angle between the descriptors, which is what hloc's nearest neighbours give.

    Args:
        features: file of hloc's format, see :mod:`capsdesc.io.hloc`.
        pairs: names of two images each; of a pair in both orders the first is taken.
        output: the matches file; replaced if it exists.
        ratio: of the ratio test, or ``None`` for none.
        max_shift: as for :func:`capsdesc.match`, or ``None`` for no check.
        progress: whether to show progress on standard error, where that is a terminal.

    Returns:
        How many pairs were matched.

    Raises:
        ImportError: h5py is not installed.
        OSError: ``features`` is not there or no HDF5 file, or ``output`` cannot be written.
        ValueError: an image is not in ``features``, ``ratio`` or ``max_shift`` is out of range, or there are no
            derivatives for ``max_shift``.
    """
    unique: dict[frozenset[str], tuple[str, str]] = {}
    for pair in pairs:
        unique.setdefault(frozenset(pair), pair)
    missing = sorted({name for pair in pairs for name in pair} - set(read_names(features)))
    if missing:
        raise ValueError(f"pairs name {len(missing)} images that are not in {features}, the first is {missing[0]!r}")

    @functools.lru_cache(maxsize=_CACHED_IMAGES)
    def image(name: str) -> Features:
        return read_features(features, name)

    def matched() -> Iterator[tuple[tuple[str, str], int, ScoredMatches]]:
        for names in tqdm(unique.values(), desc="match", unit="pair", disable=None if progress else True):
            first, second = (image(name) for name in names)
            indices = np.asarray(match(first, second, ratio=ratio, max_shift=max_shift).indices)
            scores = _scores(
                np.asarray(first.descriptors)[indices[:, 0]], np.asarray(second.descriptors)[indices[:, 1]]
            )
            yield names, len(first), ScoredMatches(indices, scores)

    write_matches(output, matched())
    return len(unique)


def _scores(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosines = (a * b).sum(axis=1) / np.maximum(norms, np.finfo(np.float32).tiny)
    return np.asarray((1 + cosines) / 2, dtype=np.float32)
