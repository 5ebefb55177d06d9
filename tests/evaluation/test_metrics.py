from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from capsdesc.evaluation.metrics import (
    accuracy,
    error_auc,
    mean_average_accuracy,
    pose_error,
    repeatability,
    symmetric_epipolar_distance,
)
from capsdesc.evaluation.rows import PoseRow, summarize


def test_accuracy_counts_errors_at_most_the_threshold_and_failures_never() -> None:
    errors = [0.0, 1.0, 1.5, 4.0, math.inf, math.nan, 2.0, 3.0]
    np.testing.assert_allclose(accuracy(errors, (1, 3, 1e9)), [2 / 8, 5 / 8, 6 / 8])


def test_auc_of_three_errors_by_hand() -> None:
    # Through (0, 0), (1, 1/3), (3, 2/3), then level to 5: 1/6 + 1 + 4/3 = 5/2, of 5.
    # To 20 it goes on to (10, 1), then level: 1/6 + 1 + 7 * 5/6 + 10 = 17, of 20.
    np.testing.assert_allclose(error_auc([3.0, 10.0, 1.0], (5, 20)), [0.5, 0.85])


def test_auc_with_failures_by_hand() -> None:
    # Through (0, 0) and (2, 1/4), then level to 4: 1/4 + 1/2 = 3/4, of 4.
    np.testing.assert_allclose(error_auc([math.nan, 2.0, math.inf, 7.0], (4,)), [0.1875])


@pytest.mark.parametrize(("errors", "expected"), [([0.0, 0.0], 1.0), ([math.inf], 0.0), ([6.0, 5.0], 0.0), ([], 0.0)])
def test_auc_at_its_ends(errors: list[float], expected: float) -> None:
    assert error_auc(errors, (5,)).tolist() == [expected]


def test_auc_is_the_area_under_the_interpolated_curve() -> None:
    errors = np.random.default_rng(0).gamma(2.0, 4.0, size=60)
    x = np.linspace(0, 10, 200_001)
    below = np.sort(errors[errors < 10])
    curve = np.interp(x, np.append(0, below), np.arange(len(below) + 1) / 60)
    np.testing.assert_allclose(error_auc(errors, (10,)), [curve.mean()], atol=1e-4)


def test_no_errors_have_no_accuracy() -> None:
    assert accuracy([], (1, 2)).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("metric", [accuracy, error_auc])
def test_what_is_no_list_of_errors_is_refused(metric: Callable[..., object]) -> None:
    with pytest.raises(ValueError, match="errors has shape"):
        metric(np.zeros((2, 2)), (1,))
    with pytest.raises(ValueError, match="negative value, -1"):
        metric([-1.0], (1,))
    with pytest.raises(ValueError, match="thresholds"):
        metric([1.0], (0,))


def test_pose_error_is_the_larger_angle_or_infinite() -> None:
    assert pose_error(3.0, 5.0) == 5.0
    assert pose_error(7.0, 5.0) == 7.0
    assert pose_error(1.0, math.nan) == math.inf
    assert pose_error(math.nan, 1.0) == math.inf


def test_repeatability_by_hand() -> None:
    # Twice as large and 10 px to the right. The last point of image 0 lands outside of image 1, at (210, 20).
    H = np.array([[2.0, 0, 10], [0, 2, 0], [0, 0, 1]])
    points0 = np.array([[10.0, 10], [20, 20], [30, 30], [40, 10], [100, 10]])
    # 0, 0.8 and 2.4 px from the first three, far from the fourth. In the pixels of image 0 that is half.
    points1 = np.array([[30.0, 20], [50, 40.8], [70, 62.4]])
    shares = repeatability(points0, points1, H, (120, 60), (180, 90), (1, 3))
    np.testing.assert_allclose(shares, [(2 / 4 + 2 / 3) / 2, (3 / 4 + 3 / 3) / 2])
    np.testing.assert_array_equal(repeatability(points0, points1[:0], H, (120, 60), (180, 90), (1, 3)), [0, 0])
    np.testing.assert_array_equal(repeatability(points0 + 1000, points1, H, (120, 60), (180, 90), (3,)), [0])


def test_maa_is_the_mean_of_a_histogram_summed_up() -> None:
    # As the Image Matching Challenge of 2020 computes it, of the larger angle.
    rng = np.random.default_rng(0)
    rotations, translations = rng.gamma(1.0, 4.0, size=(2, 50))
    rotations[:2] = math.inf, math.nan
    larger = np.nan_to_num(np.maximum(rotations, translations), nan=1e6, posinf=1e6)
    shares = np.cumsum(np.histogram(larger, np.arange(11))[0]) / 50
    limits = tuple(range(1, 11))
    assert mean_average_accuracy((rotations, limits), (translations, limits)) == pytest.approx(shares.mean())
    assert mean_average_accuracy(([], limits)) == 0
    with pytest.raises(ValueError, match="as many of every kind"):
        mean_average_accuracy((rotations, limits), (translations, limits[:5]))
    with pytest.raises(ValueError, match="as many of every kind"):
        mean_average_accuracy((rotations, limits), (translations[1:], limits))


def test_figures_of_the_challenge_are_those_of_translations_themselves() -> None:
    rng = np.random.default_rng(1)
    rows, rotations, offsets = [], [], []
    for number in range(60):
        truth, rotation = rng.normal(size=3) * rng.uniform(1, 20), rng.gamma(1.0, 4.0)
        estimate = truth + rng.normal(size=3) * rng.uniform(0, 4)
        # As in 2022: the estimate, which has neither length nor sign, made as long as the truth.
        estimate *= np.linalg.norm(truth) / np.linalg.norm(estimate)
        rotations.append(rotation)
        offsets.append(min(float(np.linalg.norm(truth - estimate)), float(np.linalg.norm(truth + estimate))))
        cosine = float(abs(truth @ estimate) / (truth @ truth))
        angle = math.degrees(math.acos(min(1.0, cosine)))
        rows.append(PoseRow(str(number), "g", 9, 9, 9, 9, rotation, angle, float(np.linalg.norm(truth))))
    rows.append(PoseRow("lost", "g", 9, 9, 9, 0, math.inf, math.inf, 3.0))
    np.testing.assert_allclose([row.offset for row in rows], [*offsets, math.inf], atol=1e-5)
    shares = [
        np.mean([r < degrees and o < metres for r, o in zip(rotations, offsets, strict=True)]) * 60 / 61
        for degrees, metres in zip(np.linspace(1, 10, 10), np.geomspace(0.2, 5, 10), strict=True)
    ]
    assert 0.2 < np.mean(shares) < 0.8
    assert summarize(rows)["maa"] == pytest.approx(np.mean(shares))
    with pytest.raises(ValueError, match="how many metres"):
        _ = PoseRow("unknown", "g", 9, 9, 9, 9, 1.0, 1.0).offset


def test_symmetric_epipolar_distance_is_of_both_lines() -> None:
    rng = np.random.default_rng(2)
    F, points0, points1 = rng.normal(size=(3, 3)), rng.uniform(0, 500, (7, 2)), rng.uniform(0, 500, (7, 2))
    expected = []
    for x, y in zip(np.column_stack([points0, np.ones(7)]), np.column_stack([points1, np.ones(7)]), strict=True):
        squared = (y @ F @ x) ** 2 * (1 / ((F @ x)[:2] ** 2).sum() + 1 / ((F.T @ y)[:2] ** 2).sum())
        expected.append(math.sqrt(squared))
    np.testing.assert_allclose(symmetric_epipolar_distance(points0, points1, F), expected)
