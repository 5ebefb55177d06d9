"""Affine maps and similarities from matched points, against known ones and least squares in numpy."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import torch

from capsdesc.geometry import estimate_affine

Array = npt.NDArray[Any]

SIMILARITY = np.array([[0.8, -0.6, 20.0], [0.6, 0.8, -35.0], [0, 0, 1]]) @ np.diag([1.3, 1.3, 1])
AFFINE = np.array([[1.1, 0.25, -12.0], [-0.1, 0.7, 50.0], [0, 0, 1]])


def matches(H: Array, count: int = 200, outliers: float = 0.4, noise: float = 0.5) -> tuple[Array, Array, Array]:
    """Points in both images, and which of them are right."""
    rng = np.random.default_rng(4)
    x0 = rng.uniform(0, 640, (count, 2))
    x1 = x0 @ H[:2, :2].T + H[:2, 2] + rng.normal(0, noise, (count, 2))
    wrong = np.arange(count) < outliers * count
    x1[wrong] = rng.uniform(0, 640, (int(wrong.sum()), 2))
    return x0, x1, ~wrong


@pytest.mark.parametrize("similarity", [False, True])
def test_maps_with_noise_and_outliers(similarity: bool) -> None:
    H = SIMILARITY if similarity else AFFINE
    x0, x1, right = matches(H)
    found = estimate_affine(x0, x1, similarity=similarity, threshold=2)
    assert found is not None
    mapped = x0 @ found.H[:2, :2].T + found.H[:2, 2]
    np.testing.assert_array_equal(found.inliers, np.linalg.norm(mapped - x1, axis=1) <= 2)
    assert (found.inliers == right).mean() > 0.97
    np.testing.assert_array_equal(found.H[2], [0, 0, 1])
    # The least squares of the right matches, in numpy.
    x, y = x0[right].T
    one, zero = np.ones_like(x), np.zeros_like(x)
    if similarity:
        design = np.vstack([np.column_stack([x, -y, one, zero]), np.column_stack([y, x, zero, one])])
        a, b, tx, ty = np.linalg.lstsq(design, x1[right].T.ravel(), rcond=None)[0]
        expected = np.array([[a, -b, tx], [b, a, ty]])
        assert found.H[0, 0] == pytest.approx(found.H[1, 1], abs=1e-12)
        assert found.H[0, 1] == pytest.approx(-found.H[1, 0], abs=1e-12)
    else:
        expected = np.linalg.lstsq(np.column_stack([x, y, one]), x1[right], rcond=None)[0].T
    corners = np.array([[0, 0, 1], [640, 0, 1], [0, 640, 1], [640, 640, 1.0]])
    np.testing.assert_allclose(corners @ found.H[:2].T, corners @ expected.T, atol=0.15)
    np.testing.assert_allclose(corners @ found.H[:2].T, corners @ H[:2].T, atol=0.4)


def test_one_seed_one_result_in_every_form() -> None:
    x0, x1, _ = matches(AFFINE)
    x0, x1 = x0.astype(np.float32), x1.astype(np.float32)
    first = estimate_affine(x0, x1, seed=2)
    assert first is not None
    keypoints = [[cv2.KeyPoint(float(x), float(y), 1) for x, y in points] for points in (x0, x1)]
    for points in ((x0, x1), (torch.from_numpy(x0), torch.from_numpy(x1)), keypoints):
        again = estimate_affine(*points, seed=2)
        assert again is not None
        np.testing.assert_array_equal(again.H, first.H)


@pytest.mark.parametrize("similarity", [False, True])
def test_degenerate_points_give_none(similarity: bool) -> None:
    line = np.column_stack([np.linspace(0, 600, 30), np.full(30, 7.0)])
    same = np.full((30, 2), 5.0)
    for points in (np.empty((0, 2)), line[:1], same):
        assert estimate_affine(points, points, similarity=similarity) is None
    on_a_line = estimate_affine(line, line + 3, similarity=similarity)
    assert (on_a_line is not None) == similarity
    if on_a_line is not None:
        np.testing.assert_allclose(on_a_line.H, [[1, 0, 3], [0, 1, 3], [0, 0, 1]], atol=1e-4)


@pytest.mark.parametrize("similarity", [False, True])
def test_fewest_points(similarity: bool) -> None:
    H, count = (SIMILARITY, 2) if similarity else (AFFINE, 3)
    x0 = np.array([[10.0, 20], [300, 50], [80, 400]])[:count]
    found = estimate_affine(x0, x0 @ H[:2, :2].T + H[:2, 2], similarity=similarity)
    assert found is not None
    np.testing.assert_allclose(found.H, H, atol=1e-6)
    assert found.inliers.all()


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="kpts0 has 3 points and kpts1 has 4"):
        estimate_affine(np.zeros((3, 2)), np.zeros((4, 2)))
    with pytest.raises(ValueError, match="threshold is 0"):
        estimate_affine(np.zeros((3, 2)), np.zeros((3, 2)), threshold=0)
