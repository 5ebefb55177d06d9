"""Listed pairs in blocks, the matches of each in a file of its own: what workers share out among themselves."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import reverse_cuthill_mckee

from capsdesc.io.files import atomic_path
from capsdesc.io.hloc import ScoredMatches

# Work of some minutes at most, which is lost with the worker, and so many blocks at least that workers come out even.
_MAX_PAIRS, _MIN_PAIRS, _BLOCKS = 256, 16, 64


@dataclasses.dataclass(frozen=True)
class Block:
    """Some pairs and the file that holds their matches when they are matched.

    Attributes:
        pairs: names of two images each.
        path: the file, ``.npz``; its name is a digest of the pairs and of all that their matches depend on.
    """

    pairs: tuple[tuple[str, str], ...]
    path: Path

    def write(self, matches: Sequence[tuple[int, ScoredMatches]]) -> None:
        """Write the file, whole or not at all.

        Args:
            matches: for each pair the number of keypoints in its first image, and the matches.
        """
        counts = np.array([count for count, _ in matches], dtype=np.int64)
        lengths = np.array([len(found) for _, found in matches], dtype=np.int64)
        indices = np.concatenate([found.indices for _, found in matches]).astype(np.int32)
        scores = np.concatenate([found.scores for _, found in matches]).astype(np.float32)
        with atomic_path(self.path) as temporary, open(temporary, "wb") as file:
            np.savez(file, counts=counts, lengths=lengths, indices=indices, scores=scores)

    def read(self) -> Iterator[tuple[tuple[str, str], int, ScoredMatches]]:
        """Each pair with the number of keypoints in its first image, and its matches.

        Raises:
            OSError: the file cannot be read.
            ValueError: it holds no matches of these pairs.
        """
        try:
            with np.load(self.path) as stored:
                counts, lengths, indices, scores = (stored[name] for name in ("counts", "lengths", "indices", "scores"))
        except (zipfile.BadZipFile, EOFError, KeyError) as error:
            raise ValueError(f"{self.path} holds no matches: {error}; remove it, and run the same again") from error
        ends = np.cumsum(lengths)
        for names, count, end, length in zip(self.pairs, counts, ends, lengths, strict=True):
            rows = slice(end - length, end)
            yield names, int(count), ScoredMatches(indices[rows].astype(np.int64), scores[rows])


def cut_into_blocks(pairs: Sequence[tuple[str, str]], folder: Path, settings: Mapping[str, Any]) -> list[Block]:
    """Cut pairs into blocks such that each comes back to the same images, as these must be read.

    Images are put into an order in which those that are paired stand close together, and pairs into that of their
    images. Blocks of the same pairs and settings are the same on every run, whatever the workers: files that a stopped
    run left are found again, and files of other settings are not.

    Args:
        pairs: names of two images each.
        folder: where the files of the blocks are.
        settings: all that matches depend on beside the names, for JSON.
    """
    ordered = _close_together(sorted(pairs))
    size = min(_MAX_PAIRS, max(_MIN_PAIRS, -(-len(ordered) // _BLOCKS)))
    blocks = []
    for start in range(0, len(ordered), size):
        block = tuple(ordered[start : start + size])
        digest = hashlib.sha256(json.dumps([settings, block], sort_keys=True).encode()).hexdigest()
        blocks.append(Block(block, folder / f"{digest[:32]}.npz"))
    return blocks


def _close_together(pairs: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """The pairs in an order in which those that share images are near to each other (Cuthill and McKee, 1969)."""
    if not pairs:
        return []
    names, both = np.unique(np.array(pairs, dtype=object), return_inverse=True)
    rows, columns = both.reshape(-1, 2).T
    graph = coo_array((np.ones(len(rows), dtype=np.int8), (rows, columns)), shape=(len(names), len(names))).tocsr()
    places = np.empty(len(names), dtype=np.int64)
    places[reverse_cuthill_mckee((graph + graph.T).tocsr(), symmetric_mode=True)] = np.arange(len(names))
    ends = np.sort(places[np.stack([rows, columns], axis=1)], axis=1)
    return [pairs[k] for k in np.lexsort((ends[:, 1], ends[:, 0]))]
