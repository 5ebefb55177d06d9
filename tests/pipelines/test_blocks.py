"""Blocks of listed pairs: each pair once, few images a block, and files that hold what was written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from capsdesc.io.hloc import ScoredMatches
from capsdesc.pipelines.blocks import Block, cut_into_blocks

# Of N images along a street, each with the four after it; their names do not tell where they are.
STREET = [f"{k}.jpg" for k in np.random.default_rng(0).permutation(1500)]
PAIRS = [(STREET[i], STREET[j]) for i in range(1500) for j in range(i + 1, min(i + 5, 1500))]


def test_blocks_hold_each_pair_once_and_come_back_to_few_images(tmp_path: Path) -> None:
    blocks = cut_into_blocks(PAIRS, tmp_path, {})
    assert sorted(pair for block in blocks for pair in block.pairs) == sorted(PAIRS)
    assert len({block.path for block in blocks}) == len(blocks) > 50
    # 94 pairs are of 94 / 4 images and the four after these; as many more where two parts of the street meet.
    images = [len({name for pair in block.pairs for name in pair}) for block in blocks]
    assert np.mean(images) < 94 / 4 + 2 * 4 + 1
    # Whatever the order in which they are listed.
    assert cut_into_blocks(PAIRS[::-1], tmp_path, {}) == blocks


def test_files_of_blocks_are_told_apart_by_pairs_and_settings(tmp_path: Path) -> None:
    (block,) = cut_into_blocks(PAIRS[:9], tmp_path, {"ratio": 0.8})
    assert cut_into_blocks(PAIRS[:9], tmp_path, {"ratio": 0.8}) == [block]
    others = [
        cut_into_blocks(PAIRS[:9], tmp_path, {"ratio": 0.9}),
        cut_into_blocks(PAIRS[:8], tmp_path, {"ratio": 0.8}),
    ]
    assert len({block.path, *(other.path for (other,) in others)}) == 3
    assert cut_into_blocks([], tmp_path, {}) == []
    (of_itself,) = cut_into_blocks([("a", "a")], tmp_path, {})
    assert of_itself.pairs == (("a", "a"),)


def test_a_file_holds_what_was_written(tmp_path: Path) -> None:
    block = Block((("a", "b"), ("a", "c"), ("d", "b")), tmp_path / "block.npz")
    indices = [np.array([[0, 2], [3, 1]]), np.zeros((0, 2), np.int64), np.array([[6, 70000]])]
    scores = [np.array([0.5, 0.75], np.float32), np.zeros(0, np.float32), np.array([1], np.float32)]
    written = [(7, ScoredMatches(rows, values)) for rows, values in zip(indices, scores, strict=True)]
    block.write(written)
    read = list(block.read())
    assert [names for names, _, _ in read] == list(block.pairs)
    for (_, count, found), rows, values in zip(read, indices, scores, strict=True):
        assert count == 7
        assert found.indices.dtype == np.int64
        np.testing.assert_array_equal(found.indices, rows)
        np.testing.assert_array_equal(found.scores, values)


def test_what_is_no_file_of_a_block_is_named(tmp_path: Path) -> None:
    block = Block((("a", "b"),), tmp_path / "block.npz")
    block.path.write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(ValueError, match=r"block\.npz holds no matches.*remove it"):
        list(block.read())
