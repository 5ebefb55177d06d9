"""Matching against brute force: numpy in float64, and OpenCV's own matcher."""

from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import torch

from capsdesc import Features, Keypoints
from capsdesc.matching import Matches, match, nearest
from capsdesc.types import Array


def descriptors(count: int, dim: int = 32, seed: int = 0) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(count, dim)).astype(np.float32)


def distance_matrix(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    return np.asarray(np.sqrt(((a[:, None].astype(np.float64) - b[None].astype(np.float64)) ** 2).sum(axis=2)))


def brute_force(
    a: npt.NDArray[Any],
    b: npt.NDArray[Any],
    mutual: bool = True,
    ratio: float | None = None,
    max_distance: float | None = None,
) -> list[tuple[int, int]]:
    distances = distance_matrix(a, b)
    pairs = []
    for i, row in enumerate(distances):
        j = int(row.argmin())
        if mutual and distances[:, j].argmin() != i:
            continue
        if ratio is not None and len(row) > 1 and not row[j] < ratio * np.sort(row)[1]:
            continue
        if max_distance is not None and row[j] > max_distance:
            continue
        pairs.append((i, j))
    return pairs


def pairs_of(matches: Matches) -> list[tuple[int, int]]:
    return [(int(i), int(j)) for i, j in matches.indices]


@pytest.mark.parametrize("block", [(2**21, 2**11), (60, 7), (6, 2), (50, 1000)])
@pytest.mark.parametrize("mutual", [True, False])
@pytest.mark.parametrize("ratio", [None, 0.85, 1.0])
@pytest.mark.parametrize("max_distance", [None, 6.0])
def test_agrees_with_brute_force_whatever_the_blocks(
    block: tuple[int, int],
    mutual: bool,
    ratio: float | None,
    max_distance: float | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(nearest, "_BLOCK_SIZE", block[0])
    monkeypatch.setattr(nearest, "_BLOCK_COLUMNS", block[1])
    a, b = descriptors(53, seed=1), descriptors(38, seed=2)
    expected = brute_force(a, b, mutual, ratio, max_distance)
    assert expected
    found = match(a, b, mutual=mutual, ratio=ratio, max_distance=max_distance)
    assert pairs_of(found) == expected
    np.testing.assert_allclose(found.distances, [distance_matrix(a, b)[pair] for pair in expected], rtol=1e-5)


@pytest.mark.parametrize("normalize", [True, False])
def test_agrees_with_opencv_cross_check(normalize: bool) -> None:
    a, b = descriptors(700, 128, seed=3), descriptors(500, 128, seed=4)
    if normalize:
        a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
    reference = sorted(cv2.BFMatcher(cv2.NORM_L2, crossCheck=True).match(a, b), key=lambda m: m.queryIdx)
    found = match(a, b)
    assert pairs_of(found) == [(m.queryIdx, m.trainIdx) for m in reference]
    np.testing.assert_allclose(found.distances, [m.distance for m in reference], rtol=1e-5)


def test_result_types_follow_the_input() -> None:
    a, b = descriptors(20), descriptors(15, seed=1)
    from_numpy = match(a, b)
    assert isinstance(from_numpy.indices, np.ndarray)
    assert isinstance(from_numpy.distances, np.ndarray)
    assert from_numpy.indices.dtype == np.int64
    assert from_numpy.distances.dtype == np.float32
    from_torch = match(torch.from_numpy(a).requires_grad_(), torch.from_numpy(b))
    assert isinstance(from_torch.indices, torch.Tensor)
    assert isinstance(from_torch.distances, torch.Tensor)
    assert from_torch.indices.dtype == torch.int64
    assert from_torch.distances.dtype == torch.float32
    assert not from_torch.distances.requires_grad
    assert len(from_torch) == len(from_numpy)
    np.testing.assert_array_equal(from_torch.indices.numpy(), from_numpy.indices)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_match_as_their_float32_values(dtype: torch.dtype) -> None:
    a, b = torch.from_numpy(descriptors(60)).to(dtype), torch.from_numpy(descriptors(50, seed=1)).to(dtype)
    found = match(a, b)
    assert pairs_of(found) == brute_force(a.float().numpy(), b.float().numpy())
    assert len(match(a, b.float())) == len(found)


@pytest.mark.parametrize("dtype", ["<f2", "<f4", ">f4", "<f8", ">f8"])
def test_numpy_layouts(dtype: str) -> None:
    a, b = descriptors(30).astype(dtype), descriptors(25, seed=1).astype(dtype)
    b.flags.writeable = False
    expected = brute_force(a, b)
    assert pairs_of(match(a, b)) == expected
    reversed_back = a[::-1].copy()[::-1]
    assert pairs_of(match(reversed_back, np.asfortranarray(b))) == expected


def test_objects_with_descriptors() -> None:
    @dataclass(frozen=True)
    class Described:
        descriptors: npt.NDArray[np.float32]

    a, b = descriptors(30), descriptors(25, seed=1)
    assert pairs_of(match(Described(a), Described(b))) == pairs_of(match(a, b))
    assert pairs_of(match(Described(a), b)) == pairs_of(match(a, b))


def test_common_offset_and_identical_descriptors_do_not_cancel() -> None:
    a = descriptors(300, 256) * 1e-2 + 50
    order = np.random.default_rng(5).permutation(300)
    found = match(a, a[order])
    assert pairs_of(found) == [(i, int(np.argsort(order)[i])) for i in range(300)]
    np.testing.assert_array_equal(found.distances, 0)
    nudged = a.copy()
    nudged[:, 0] += np.float32(1e-3)
    expected = np.abs(nudged[:, 0].astype(np.float64) - a[:, 0])
    np.testing.assert_allclose(match(a, nudged).distances, expected, rtol=1e-5)


def described_field(points: Array, reliability: float | None, *views: int) -> Features:
    """Features at points whose descriptors grow linearly with the place, so that one step finds a place exactly."""
    rng = np.random.default_rng(0)
    slope, at_origin = rng.normal(size=(2, 16)), 1000 * rng.normal(size=16)
    rows, derivatives = at_origin + points @ slope, np.broadcast_to(slope, (len(points), 2, 16))
    if reliability is not None:  # the place is then known from what is left of unit length
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        rows, along = rows / lengths, (rows / lengths)[:, None]
        derivatives = (derivatives - (derivatives * along).sum(-1, keepdims=True) * along) / lengths[:, None]
        rows = np.c_[np.sqrt(reliability) * rows, np.full(len(rows), np.sqrt(1 - reliability))]
    fields: Any = (points, rows, None, None, None, (640, 480), derivatives)
    return Features(*fields)


@pytest.mark.parametrize("reliabilities", [(None, None), (0.9, 0.4)])
@pytest.mark.parametrize("as_torch", [False, True])
def test_pairs_that_should_move_are_dropped(reliabilities: tuple[float | None, float | None], as_torch: bool) -> None:
    rng = np.random.default_rng(1)
    points = np.stack(np.meshgrid(np.arange(50, 600, 50.0), np.arange(50, 450, 50.0)), axis=-1).reshape(-1, 2)
    angles, lengths = rng.uniform(0, 2 * np.pi, len(points)), rng.uniform(0, 6, len(points))
    moved = points + (lengths * (np.cos(angles), np.sin(angles))).T
    first, second = described_field(points, reliabilities[0]), described_field(moved, reliabilities[1])
    if as_torch:
        first, second = (
            replace(
                each, descriptors=torch.tensor(each.descriptors), derivatives=torch.tensor(np.array(each.derivatives))
            )
            for each in (first, second)
        )
    everything = match(first, second)
    assert pairs_of(everything) == [(i, i) for i in range(len(points))]
    for max_shift in (1.0, 3.0, 5.5):
        # A unit vector's place is linear only nearly.
        clear = np.abs(lengths - max_shift) > (1e-6 if reliabilities[0] is None else 0.1)
        kept = np.zeros(len(points), dtype=bool)
        kept[np.asarray(match(first, second, max_shift=max_shift).indices)[:, 0]] = True
        assert clear.mean() > 0.9
        np.testing.assert_array_equal(kept[clear], (lengths <= max_shift)[clear])


def test_derivatives_are_those_of_the_views_that_go_together() -> None:
    points = np.random.default_rng(1).uniform(0, 400, (60, 2))
    first, second = described_field(points, None), described_field(points + np.array([0.5, 2]), None)
    rng = np.random.default_rng(2)
    descriptors: Any
    derivatives: Any
    descriptors, derivatives = (
        rng.normal(size=(9, 3, *np.asarray(each).shape)) for each in (second.descriptors, second.derivatives)
    )
    descriptors[4, 1], derivatives[4, 1] = second.descriptors, second.derivatives
    turned = replace(second, descriptors=descriptors, derivatives=derivatives)
    assert pairs_of(match(first, turned, max_shift=2.1)) == pairs_of(match(first, second)) != []
    assert len(match(first, turned, max_shift=2.0)) == 0


def test_pairs_of_which_nothing_can_be_said_are_dropped() -> None:
    same = described_field(np.zeros((1, 2)), None)
    flat = replace(same, derivatives=torch.zeros(1, 2, 16))
    assert len(match(same, same, max_shift=1)) == 1
    assert len(match(flat, flat, max_shift=1)) == 0
    none = described_field(np.zeros((0, 2)), None)
    assert len(match(none, same, max_shift=1)) == 0


@pytest.mark.parametrize(
    ("derivatives", "message"),
    [
        (None, r"b has no derivatives; max_shift needs .*extract\(derivatives=True\)"),
        (np.zeros((3, 2, 9)), r"b has derivatives of shape \(3, 2, 9\) .* of \(3, 16\); expected \(3, 2, C\)"),
        (np.zeros((4, 2, 16)), "b has derivatives of shape"),
        (np.zeros((3, 16)), "b has derivatives of shape"),
        (np.zeros((3, 2, 15)), "a has derivatives of 16 dimensions and b of 15; expected features of one model"),
    ],
)
def test_wrong_derivatives_are_named(derivatives: Any, message: str) -> None:
    features = described_field(np.eye(3, 2), None)
    with pytest.raises(ValueError, match=message):
        match(features, replace(features, derivatives=derivatives), max_shift=3)
    with pytest.raises(ValueError, match="a has no derivatives"):
        match(np.asarray(features.descriptors), np.asarray(features.descriptors), max_shift=3)


@pytest.mark.parametrize("max_shift", [0.0, -1.0, float("nan")])
def test_wrong_max_shift(max_shift: float) -> None:
    with pytest.raises(ValueError, match="max_shift is"):
        match(descriptors(3), descriptors(3), max_shift=max_shift)


def test_ties_go_to_the_lowest_index(monkeypatch: pytest.MonkeyPatch) -> None:
    one = np.array([[1.0, 0.0]], dtype=np.float32)
    other = np.array([[0.0, 1.0]], dtype=np.float32)
    a, b = np.concatenate([other, one, one, other]), np.concatenate([one, one, other, other])
    for size in (2**21, 4, 2, 1):
        monkeypatch.setattr(nearest, "_BLOCK_SIZE", size)
        monkeypatch.setattr(nearest, "_BLOCK_COLUMNS", min(size, 3))
        assert pairs_of(match(a, b)) == [(0, 2), (1, 0)]
        assert pairs_of(match(a, b, mutual=False)) == [(0, 2), (1, 0), (2, 0), (3, 2)]
        assert pairs_of(match(a, b, ratio=1.0)) == []


def test_ratio_passes_a_single_candidate() -> None:
    a, b = descriptors(3), descriptors(1, seed=1)
    assert pairs_of(match(a, b, mutual=False, ratio=0.5)) == [(0, 0), (1, 0), (2, 0)]


@pytest.mark.parametrize(("count_a", "count_b"), [(0, 5), (5, 0), (0, 0)])
@pytest.mark.parametrize("ratio", [None, 0.8])
def test_empty_in_empty_out(count_a: int, count_b: int, ratio: float | None) -> None:
    a, b = descriptors(count_a), descriptors(count_b)
    found = match(a, b, ratio=ratio)
    assert len(found) == 0
    assert found.indices.shape == (0, 2)
    assert found.indices.dtype == np.int64
    assert found.distances.shape == (0,)
    assert found.distances.dtype == np.float32
    assert isinstance(match(torch.from_numpy(a), torch.from_numpy(b)).indices, torch.Tensor)


def test_memory_stays_far_below_the_distance_matrix() -> None:
    a, b = descriptors(9_000, 8), descriptors(9_000, 8, seed=1)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        found = match(a, b)
    largest = max(event.cpu_memory_usage for event in profile.events())
    assert 0 < largest <= 4 * nearest._BLOCK_SIZE < 4 * len(a) * len(b) / 30
    sample = np.random.default_rng(0).choice(len(found), 20, replace=False)
    for i, j in np.asarray(found.indices)[sample]:
        assert np.linalg.norm(b - a[i], axis=1).argmin() == j
        assert np.linalg.norm(a - b[j], axis=1).argmin() == i


@pytest.mark.parametrize(
    ("a", "b", "error", "message"),
    [
        (descriptors(3).tolist(), descriptors(3), TypeError, "a is list"),
        (descriptors(3), descriptors(3).astype(np.uint8), TypeError, "b has dtype uint8"),
        (torch.zeros(3, 4, dtype=torch.int64), torch.zeros(3, 4), TypeError, "a has dtype torch.int64"),
        (descriptors(3), torch.from_numpy(descriptors(3)), TypeError, "a is numpy and b is torch"),
        (descriptors(3)[0], descriptors(3), ValueError, r"a has shape \(32,\)"),
        (descriptors(3), descriptors(3)[None], ValueError, r"b has shape \(1, 3, 32\)"),
        (descriptors(3, 32), descriptors(3, 16), ValueError, "a has 32 dimensions and b has 16"),
        (descriptors(3), descriptors(3) * np.float32("nan"), ValueError, "b has NaN or infinite values in 3 of 3 rows"),
        (descriptors(3) * np.float32("inf"), descriptors(3), ValueError, "a has NaN or infinite"),
    ],
)
def test_wrong_descriptors_are_named(a: Any, b: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        match(a, b)


@pytest.mark.parametrize("ratio", [0.0, -1.0, 1.1, float("nan")])
def test_wrong_ratio(ratio: float) -> None:
    with pytest.raises(ValueError, match="ratio is"):
        match(descriptors(3), descriptors(3), ratio=ratio)


@pytest.mark.parametrize("max_distance", [-1.0, float("nan")])
def test_wrong_max_distance(max_distance: float) -> None:
    with pytest.raises(ValueError, match="max_distance is"):
        match(descriptors(3), descriptors(3), max_distance=max_distance)


@pytest.mark.parametrize("convert", [np.asarray, torch.as_tensor])
def test_there_and_back_through_opencv(convert: Any) -> None:
    matches = match(convert(descriptors(30)), convert(descriptors(40, seed=1)))
    listed = matches.to_cv2()
    assert len(listed) > 3
    assert all(isinstance(pair, cv2.DMatch) for pair in listed)
    assert [(pair.queryIdx, pair.trainIdx) for pair in listed] == [tuple(pair) for pair in matches.indices.tolist()]
    back = Matches.from_cv2(listed)
    assert isinstance(back.indices, np.ndarray)
    assert isinstance(back.distances, np.ndarray)
    assert back.indices.dtype == np.int64
    assert back.distances.dtype == np.float32
    np.testing.assert_array_equal(back.indices, np.asarray(matches.indices))
    np.testing.assert_array_equal(np.asarray(back.distances), np.asarray(matches.distances))


def test_matches_of_opencv_are_those_of_match() -> None:
    a, b = descriptors(30), descriptors(40, seed=1)
    theirs = Matches.from_cv2(cv2.BFMatcher(cv2.NORM_L2, crossCheck=True).match(a, b))
    ours = match(a, b)
    np.testing.assert_array_equal(theirs.indices, ours.indices)
    np.testing.assert_allclose(theirs.distances, ours.distances, rtol=1e-5)


def test_opencv_matches_empty_and_wrong() -> None:
    empty = Matches.from_cv2([])
    assert (empty.indices.shape, empty.distances.shape) == ((0, 2), (0,))
    assert empty.to_cv2() == []
    for wrong in ([[cv2.DMatch(0, 1, 0.5)]], [(0, 1)], 3):
        with pytest.raises(TypeError, match=r"cv2\.DMatch"):
            Matches.from_cv2(wrong)  # type: ignore[arg-type]


# Matches.points


def test_points_of_matches_are_those_of_the_keypoints() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.uniform(0, 99, (5, 2)).astype(np.float32), rng.uniform(0, 99, (7, 2))
    indices = np.array([[0, 6], [3, 2], [4, 2]])
    matches = Matches(indices, np.zeros(3, np.float32))
    points0, points1 = matches.points(first, second)
    expected0 = np.array([first[i] for i, _ in indices])
    expected1 = np.array([second[j] for _, j in indices], np.float32)
    np.testing.assert_array_equal(points0, expected0)
    np.testing.assert_array_equal(points1, expected1)
    assert points1.dtype == np.float32

    for keypoints in (torch.from_numpy(first), Keypoints(torch.from_numpy(first))):
        for pairs in (indices, torch.from_numpy(indices)):
            found = Matches(pairs, torch.zeros(3)).points(keypoints, second)
            assert isinstance(found[0], torch.Tensor)
            assert isinstance(found[1], np.ndarray)
            np.testing.assert_array_equal(found[0].numpy(), expected0)
            np.testing.assert_array_equal(found[1], expected1)
    as_cv2 = [cv2.KeyPoint(float(x), float(y), 1) for x, y in first]
    features = Features(first, np.zeros((5, 4), np.float32), None, None, None, (99, 99))
    np.testing.assert_array_equal(matches.points(as_cv2, second)[0], expected0)
    np.testing.assert_array_equal(matches.points(features, second)[0], expected0)
    empty = Matches(np.zeros((0, 2), np.int64), np.zeros(0, np.float32)).points(np.zeros((0, 2)), second)
    assert [points.shape for points in empty] == [(0, 2), (0, 2)]


def test_points_of_other_keypoints_are_refused() -> None:
    matches = Matches(np.array([[0, 6]]), np.zeros(1, np.float32))
    with pytest.raises(ValueError, match="features1 has 5 keypoints, but the matches speak of number 6"):
        matches.points(np.zeros((7, 2)), np.zeros((5, 2)))


@pytest.mark.parametrize("as_torch", [False, True])
@pytest.mark.parametrize(
    ("dtype", "exponents"), [(np.float32, (-100, -70, 30, 63, 110, 120)), (np.float64, (-100, -70, 63, 110, 120))]
)
def test_matches_know_no_scale(dtype: Any, exponents: tuple[int, ...], as_torch: bool) -> None:
    """Squares of these vanish or overflow in float32. Powers of two change no digit, so results are the same."""
    rng = np.random.default_rng(0)
    a, moved = rng.normal(size=(2, 40, 16)).astype(dtype)
    b = a[rng.permutation(40)] + (moved / 4).astype(dtype)
    slopes = rng.normal(size=(2, 40, 2, 16)).astype(dtype)

    def matched(scale: float) -> Matches:
        convert: Any = torch.from_numpy if as_torch else np.asarray
        places = convert(np.zeros((40, 2)))
        both = [
            Features(places, convert(scale * rows), None, None, None, (9, 9), convert(scale * slope))
            for rows, slope in zip((a, b), slopes, strict=True)
        ]
        return match(*both, ratio=0.9, max_distance=float(np.float32(1.5)) * scale, max_shift=0.3)

    expected = matched(1.0)
    assert 0 < len(expected) < len(match(a, b))
    for exponent in exponents:
        found = matched(dtype(2.0**exponent))
        np.testing.assert_array_equal(found.indices, expected.indices)
        np.testing.assert_array_equal(found.distances, np.asarray(expected.distances) * np.float32(2.0**exponent))


def test_scale_changes_no_choice_of_views() -> None:
    rng = np.random.default_rng(1)
    a = rng.normal(size=(3, 2, 30, 8)).astype(np.float32)
    b = a[2, 0] + 0.01
    expected = match(a, b)
    assert len(expected) == 30
    for scale in (2.0**-100, 2.0**100):
        np.testing.assert_array_equal(match(a * np.float32(scale), b * np.float32(scale)).indices, expected.indices)


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_distances_that_no_float32_holds_are_refused(scale: float) -> None:
    a = scale * np.random.default_rng(0).normal(size=(5, 4))
    with pytest.raises(ValueError, match=r"a and b have numbers up to .*e[+-]\d+, and float32 cannot hold.*5 of 5"):
        match(a, 1.5 * a, mutual=False)
    # Distances of none are held by any type.
    assert pairs_of(match(a / scale * 1e-150, a / scale * 1e-150)) == [(k, k) for k in range(5)]
    assert len(match(np.zeros((2, 3)), np.zeros((3, 3)))) == 1


def test_smallest_and_largest_numbers_of_float32() -> None:
    limits = np.finfo(np.float32)
    for unit in (limits.smallest_subnormal, limits.max / 8):
        a = np.float32(unit) * np.array([[0, 1], [1, 0], [8, 8]], np.float32)
        assert pairs_of(match(a, a[::-1].copy())) == [(0, 2), (1, 1), (2, 0)]
