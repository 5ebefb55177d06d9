"""Listed pairs of images, matched from the features in a file of hloc."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from capsdesc.io.hloc import ScoredMatches, read_features, read_names, write_matches
from capsdesc.matching import match
from capsdesc.types import Features

# Features of so many images are kept in memory, as lists of pairs come back to an image soon or not at all.
_CACHED_IMAGES = 64


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
