"""Listed pairs of images, matched from features that are kept in files."""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from capsdesc.describe.orientation import Orientation, check_orientation
from capsdesc.devices import usable_device
from capsdesc.io.files import sweep, sweep_folder
from capsdesc.io.hloc import ScoredMatches, pair_name, write_matches
from capsdesc.io.locks import lock_path, sole_use
from capsdesc.matching import MAX_SHIFT, match
from capsdesc.matching.rows import as_torch
from capsdesc.pipelines.blocks import Block, cut_into_blocks
from capsdesc.pipelines.ray import Engine, check_engine, share_out
from capsdesc.pipelines.stores import HlocFile, NpzFolder, feature_source
from capsdesc.types import Features, Matches, MatchMethod

logger = logging.getLogger(__name__)

# Features of so many images are kept in memory, as lists of pairs come back to an image soon or not at all.
_CACHED_IMAGES = 64


@dataclasses.dataclass(frozen=True)
class MatchingConfig:
    """How photographs are described and matched where structure comes of it.

    Attributes:
        max_keypoints: at most so many a photograph.
        orientation: ``"any"`` for photographs that may be turned or zoomed at will; takes longer.
        ratio: of the ratio test on matches, above 0; 1 keeps nearly all.
        matcher: ``"nearest"`` or ``"context"``, as ``method`` of :func:`capsdesc.match`; the second has no ratio test.
        max_shift: as for :func:`capsdesc.match`; None for no check, which makes smaller files of features.

    Raises:
        ValueError: an attribute is out of range.
    """

    max_keypoints: int = 4096
    orientation: Orientation = "upright"
    ratio: float = 0.8
    matcher: MatchMethod = "nearest"
    max_shift: float | None = MAX_SHIFT

    def __post_init__(self) -> None:
        check_orientation(self.orientation)
        if self.max_keypoints < 1:
            raise ValueError(f"max_keypoints is {self.max_keypoints}; expected a number, at least 1")
        if not 0 < self.ratio <= 1:
            raise ValueError(f"ratio is {self.ratio}; expected a number above 0 and at most 1")
        if self.matcher not in ("nearest", "context"):
            raise ValueError(f"matcher is {self.matcher!r}; expected 'nearest' or 'context'")
        if self.max_shift is not None and not self.max_shift > 0:
            raise ValueError(f"max_shift is {self.max_shift}; expected a positive number of pixels, or None")


class MatchedPair(NamedTuple):
    """Two images, their features and the matches of these, on the device on which they were matched."""

    names: tuple[str, str]
    features: tuple[Features, Features]
    matches: Matches


def match_listed(
    pairs: Sequence[tuple[str, str]],
    load: Callable[[str], Features],
    *,
    ratio: float | None = None,
    max_shift: float | None = None,
    method: MatchMethod = "nearest",
    device: torch.device | str | None = None,
    cached: int = _CACHED_IMAGES,
    progress: bool | None = None,
) -> Iterator[MatchedPair]:
    """Match pairs of images one after the other, each as :func:`capsdesc.match` does.

    Args:
        pairs: names of two images each.
        load: the features of an image by its name, in numpy.
        ratio: as for :func:`capsdesc.match`.
        max_shift: likewise.
        method: likewise; ``"context"`` has no ratio test.
        device: where to match; ``None``: in numpy.
        cached: features of so many images are kept in memory.
        progress: whether to show progress on standard error; ``None``: where that is a terminal.
    """

    @functools.lru_cache(maxsize=cached)
    def features(name: str) -> Features:
        return load(name) if device is None else _moved(load(name), usable_device(device))

    for names in tqdm(pairs, desc="matches", unit="pair", disable=None if progress is None else not progress):
        first, second = (features(name) for name in names)
        found = match(first, second, ratio=ratio if method == "nearest" else None, max_shift=max_shift, method=method)
        yield MatchedPair(names, (first, second), found)


def _moved(features: Features, device: torch.device) -> Features:
    """The same features with what matching reads on a device."""
    return dataclasses.replace(
        features,
        descriptors=as_torch(features.descriptors).to(device),
        derivatives=None if features.derivatives is None else as_torch(features.derivatives).to(device),
    )


def match_on_cluster(
    pairs: Sequence[tuple[str, str]],
    load: Callable[[str], Features],
    folder: Path,
    *,
    lock: Path,
    origin: Mapping[str, Any],
    ratio: float | None = None,
    max_shift: float | None = None,
    method: MatchMethod = "nearest",
    device: torch.device | str | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> Iterator[Block]:
    """Match pairs of images on a Ray cluster, as :func:`match_listed` does.

    Pairs are cut into blocks. Workers read the features and write the matches of each block to a file of its own;
    blocks whose files an earlier run left are not matched again.

    Args:
        pairs: as for :func:`match_listed`.
        load: likewise, by an absolute path, for workers to call.
        folder: for the files of the blocks, on storage that all machines see; made where it is not there.
        lock: as for :func:`capsdesc.pipelines.ray.share_out`, which says what is raised.
        origin: tells features from others under the same names, for JSON.
        ratio: as for :func:`match_listed`.
        max_shift: likewise.
        method: likewise.
        device: likewise.
        workers: as for :func:`capsdesc.pipelines.ray.share_out`.
        progress: whether to show progress on standard error, where that is a terminal.

    Returns:
        Blocks that are matched, those that were so before the others.
    """
    settings = {**origin, "ratio": ratio if method == "nearest" else None, "max_shift": max_shift, "method": method}
    blocks = cut_into_blocks(pairs, folder.absolute(), settings)
    folder.mkdir(parents=True, exist_ok=True)
    sweep_folder(folder, ".npz")
    # Listed, not asked for one by one: shared storage may remember for a while that a file was not there.
    written = {path.name for path in folder.iterdir()}
    done = [block for block in blocks if block.path.name in written]
    left = [block for block in blocks if block.path.name not in written]
    work = functools.partial(_match_blocks, load=load, ratio=ratio, max_shift=max_shift, method=method, device=device)
    kind = usable_device(device or "cpu")
    with tqdm(total=len(pairs), desc="matches", unit="pair", disable=None if progress else True) as bar:
        for block in done:
            bar.update(len(block.pairs))
            yield block
        for block in share_out(left, work, lock=lock, device=kind, per_task=1, workers=workers):
            bar.update(len(block.pairs))
            yield block


def _match_blocks(
    blocks: Sequence[Block],
    threads: int,
    *,
    load: Callable[[str], Features],
    ratio: float | None,
    max_shift: float | None,
    method: MatchMethod,
    device: torch.device | str | None,
) -> Iterator[Block]:
    """What a worker does: each block once its file is written."""
    torch.set_num_threads(threads)
    for block in blocks:
        found = match_listed(
            block.pairs, load, ratio=ratio, max_shift=max_shift, method=method, device=device, progress=False
        )
        block.write([(len(pair.features[0]), scored(pair)) for pair in found])
        yield block


@dataclasses.dataclass(frozen=True)
class PairMatching:
    """What became of listed pairs.

    Attributes:
        matched: pairs whose matches were written.
        left_out: pairs that were not matched, with what is wrong with them.
    """

    matched: tuple[tuple[str, str], ...]
    left_out: Mapping[tuple[str, str], str]


def match_pairs(
    features: str | os.PathLike[str],
    pairs: Sequence[tuple[str, str]],
    output: str | os.PathLike[str],
    *,
    ratio: float | None = None,
    max_shift: float | None = None,
    method: MatchMethod = "nearest",
    device: torch.device | str | None = None,
    engine: Engine = "local",
    workers: int | None = None,
    progress: bool = False,
) -> PairMatching:
    """Match pairs of images whose features are in files, and write hloc's matches file, whole or not at all.

    Matches are mutual nearest neighbours, see :func:`capsdesc.match`. Their score is (1 + c) / 2 for the cosine c of
    the angle between the descriptors, which is what hloc's nearest neighbours give; with ``method="context"`` it is the
    matcher's. A pair that the file cannot hold, as hloc's format gives it the name of another one, and a pair of an
    image whose features are broken are logged as a warning and left out; both are found before any pair is matched.

    With ``engine="ray"`` workers of a Ray cluster match, as :func:`match_on_cluster` does, and keep matches in a folder
    beside the output, ``OUTPUT.h5.parts``, until all pairs are done: a run that was stopped goes on where it was.

    Args:
        features: file of hloc's format, see :mod:`capsdesc.io.hloc`, or folder of archives, see :class:`NpzFolder`.
        pairs: names of two images each; of a pair in both orders the first is taken.
        output: the matches file; replaced if it exists.
        ratio: of the ratio test, or ``None`` for none.
        max_shift: as for :func:`capsdesc.match`, or ``None`` for no check.
        method: as for :func:`match_listed`.
        device: where to match; ``None``: on the CPU.
        engine: ``"local"``, in this process, or ``"ray"``.
        workers: of Ray; ``None``: as many as the cluster has CPUs, or GPUs where ``device`` is one.
        progress: whether to show progress on standard error, where that is a terminal.

    Returns:
        What became of the pairs.

    Raises:
        ImportError: h5py is not installed, or Ray is asked for and not installed.
        OSError: ``features`` is not there or no HDF5 file, ``output`` cannot be written, or another run is at work on
            it.
        ValueError: an image is not in ``features``, ``ratio``, ``max_shift``, ``engine`` or ``workers`` is out of
            range, or there are no derivatives for ``max_shift``.
    """
    check_engine(engine, workers)
    unique: dict[frozenset[str], tuple[str, str]] = {}
    for pair in pairs:
        unique.setdefault(frozenset(pair), pair)
    source = feature_source(features)
    missing = sorted({name for pair in pairs for name in pair} - set(source.names()))
    if missing:
        raise ValueError(f"pairs name {len(missing)} images that are not in {features}, the first is {missing[0]!r}")
    with sole_use(output, is_folder=False):
        sweep(Path(output))
        left_out = _unfit_pairs(source, list(unique.values()))
        for names, what in left_out.items():
            logger.warning("left out %s and %s: %s", *names, what)
        kept = [names for names in unique.values() if names not in left_out]
        settings: dict[str, Any] = {"ratio": ratio, "max_shift": max_shift, "method": method, "device": device}
        if engine == "ray":
            parts = Path(f"{os.fspath(output)}.parts")
            blocks = match_on_cluster(
                kept,
                source.absolute().read,
                parts,
                lock=lock_path(output, is_folder=False),
                origin=source.origin(),
                workers=workers,
                progress=progress,
                **settings,
            )
            # In the order of the pairs, whichever block was done first.
            matched = sorted(blocks, key=lambda block: block.pairs)
            write_matches(output, (pair for block in matched for pair in block.read()))
            shutil.rmtree(parts)
        else:
            found = match_listed(
                kept,
                source.read,
                progress=None if progress else False,
                **settings,
            )
            write_matches(output, ((pair.names, len(pair.features[0]), scored(pair)) for pair in found))
    return PairMatching(tuple(kept), left_out)


def _unfit_pairs(source: NpzFolder | HlocFile, pairs: Sequence[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """What is wrong with those pairs that cannot be matched or kept."""
    broken = source.check({name for pair in pairs for name in pair})
    unfit: dict[tuple[str, str], str] = {}
    called: dict[frozenset[str], tuple[str, str]] = {}
    for names in pairs:
        group = pair_name(*names)
        # Readers look for a pair in either order.
        either = frozenset(group.split("/"))
        wrong = [broken[name] for name in names if name in broken]
        if wrong:
            unfit[names] = wrong[0]
        elif len(either) == 1 and names[0] != names[1]:
            unfit[names] = f"hloc's files call them {group!r}, whichever comes first"
        elif either in called:
            first = called[either]
            unfit[names] = f"hloc's files call them {group!r}, no other than {first[0]} and {first[1]}"
        else:
            called[either] = names
    return unfit


def scored(pair: MatchedPair) -> ScoredMatches:
    """The matches of a pair with their scores, or else such as the nearest neighbours of hloc give them.

    See :func:`match_pairs`.
    """
    indices = _to_numpy(pair.matches.indices)
    if pair.matches.scores is not None:
        return ScoredMatches(indices, _to_numpy(pair.matches.scores))
    a, b = (_to_numpy(features.descriptors)[indices[:, column]] for column, features in enumerate(pair.features))
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosines = (a * b).sum(axis=1) / np.maximum(norms, np.finfo(np.float32).tiny)
    return ScoredMatches(indices, np.asarray((1 + cosines) / 2, dtype=np.float32))


def _to_numpy(values: object) -> npt.NDArray[Any]:
    return values.cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)
