"""Pairs of photographs that overlap, against comparing every photograph with every other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from capsdesc.geometry import rotation_error
from capsdesc.io.colmap import overlap
from capsdesc.training import covisibility
from capsdesc.training.covisibility import find_pairs
from capsdesc.types import PosedImage


def photographs(count: int, seed: int) -> list[PosedImage]:
    """Random rotations and points with ids far apart; some see nothing, some the same as others."""
    rng = np.random.default_rng(seed)
    made = []
    for k in range(count):
        nearby = 10**12 + 7 * rng.integers(20 * (k // 8), 20 * (k // 8) + 90, rng.integers(0, 60))
        ids = np.unique(nearby) if k % 11 else np.zeros(0, dtype=np.int64)
        R = Rotation.from_rotvec(rng.normal(0, 0.6, 3)).as_matrix()
        made.append(PosedImage(Path("unused"), None, R, np.zeros(3), np.zeros((len(ids), 3)), ids))
    return made


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("least", "rotations"), [(0.0, (0.0, 180.0)), (0.15, (3.0, 80.0)), (0.4, (10.0, 60.0))])
def test_pairs_are_those_found_one_by_one(
    seed: int, least: float, rotations: tuple[float, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(covisibility, "BLOCK", 16)
    scene = photographs(70, seed)
    expected = [
        [i, j]
        for i in range(len(scene))
        for j in range(i + 1, len(scene))
        if 0 < overlap(scene[i], scene[j]) >= least
        and rotations[0] <= rotation_error(scene[i].R, scene[j].R) <= rotations[1]
    ]
    pairs = find_pairs(scene, least, *rotations)
    assert len(expected) > 10
    assert pairs.tolist() == expected
    assert pairs.dtype == np.int64


def test_shares_at_the_limit_count() -> None:
    def sees(*ids: int) -> PosedImage:
        return PosedImage(Path("unused"), None, np.eye(3), np.zeros(3), np.zeros((len(ids), 3)), np.array(ids))

    scene = [sees(*range(10)), sees(*range(7, 27)), sees(*range(8, 28))]
    assert find_pairs(scene, 0.3, 0, 0).tolist() == [[0, 1], [1, 2]]


def test_nothing_to_pair() -> None:
    assert find_pairs([], 0.15, 0, 180).shape == (0, 2)
    assert find_pairs([photographs(1, 0)[0]] * 3, 0.0, 0, 180).shape == (0, 2)
