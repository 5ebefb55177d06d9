"""Matches against distances worked out pair by pair."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from fuzzing import anything, examples, result_or_refusal
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from capsdesc import Features, match

Array = npt.NDArray[Any]

# From -20 to 20 in steps of a sixteenth, so that near and equal distances are common.
values = st.integers(-320, 320).map(lambda step: step / 16)


@st.composite
def descriptor_pairs(draw: st.DrawFn) -> tuple[Array, Array]:
    dtype, width = draw(st.sampled_from([np.float32, np.float64])), draw(st.integers(1, 4))
    scale = draw(st.sampled_from([1e-3, 1.0, 1e4]))
    offset = draw(st.sampled_from([0.0, 100.0]))
    first, second = (
        draw(arrays.arrays(dtype, (draw(st.integers(0, 12)), width), elements=values)) * scale + offset for _ in "ab"
    )
    return first.astype(dtype), second.astype(dtype)


def distances(a: Array, b: Array) -> Array:
    return np.asarray(np.linalg.norm(a[:, None].astype(np.float64) - b[None].astype(np.float64), axis=2))


def tolerance(a: Array, b: Array) -> float:
    """How far two squared distances may be apart and still change their order, by rounding."""
    largest = max((float(np.abs(rows).max()) for rows in (a, b) if rows.size), default=0.0)
    return 64 * float(np.finfo(a.dtype).eps) * largest**2 + 1e-30


@examples(150)
@given(descriptor_pairs(), st.booleans())
def test_matches_are_nearest_neighbours(pair: tuple[Array, Array], mutual: bool) -> None:
    a, b = pair
    matches = match(a, b, mutual=mutual)
    indices, found = np.asarray(matches.indices), np.asarray(matches.distances)
    assert indices.shape == (len(matches), 2)
    assert indices.dtype == np.int64
    assert found.dtype == np.float32
    assert (np.diff(indices[:, 0]) > 0).all()
    if not (len(a) and len(b)):
        assert len(matches) == 0
        return
    all_distances = distances(a, b)
    i, j = indices.T
    np.testing.assert_allclose(found, all_distances[i, j], rtol=1e-5, atol=1e-5 * all_distances.max())
    close = tolerance(a, b)
    assert (found.astype(np.float64) ** 2 <= all_distances.min(1)[i] ** 2 + close + 1e-5 * found**2).all()
    if not mutual:
        assert i.tolist() == list(range(len(a)))
        return
    assert (found.astype(np.float64) ** 2 <= all_distances.min(0)[j] ** 2 + close + 1e-5 * found**2).all()
    assert len(np.unique(j)) == len(j)
    # Who is the other's nearest by a margin, both ways, is matched.
    squares = all_distances**2
    listed = set(map(tuple, indices.tolist()))
    for row, column in np.argwhere(squares <= squares.min(1, keepdims=True)).tolist():
        others = np.r_[np.delete(squares[row], column), np.delete(squares[:, column], row)]
        if (others > squares[row, column] + 2 * close).all():
            assert (row, column) in listed


@examples(60)
@given(st.integers(0, 2**32 - 1), st.integers(0, 60), st.integers(0, 60), st.integers(1, 40))
def test_matching_is_a_mirror(seed: int, count_a: int, count_b: int, width: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = (rng.normal(size=(count, width)).astype(np.float32) for count in (count_a, count_b))
    there, back = match(a, b), match(b, a)
    assert sorted(map(tuple, np.asarray(there.indices).tolist())) == sorted(
        (i, j) for j, i in np.asarray(back.indices).tolist()
    )


@examples(60)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 40), st.floats(0.05, 1), st.floats(0, 10))
def test_limits_leave_out_and_change_nothing_else(
    seed: int, count_a: int, count_b: int, ratio: float, limit: float
) -> None:
    rng = np.random.default_rng(seed)
    a, b = (rng.normal(size=(count, 8)).astype(np.float32) for count in (count_a, count_b))
    everything = match(a, b, mutual=False)
    limited = match(a, b, mutual=False, ratio=ratio, max_distance=limit)
    ranked = np.sort(distances(a, b), axis=1)
    second = ranked[:, 1] if count_b > 1 else np.full(count_a, np.inf)
    # Within rounding either answer is right.
    sure = (np.abs(ranked[:, 0] - ratio * second) > 1e-4) & (np.abs(ranked[:, 0] - limit) > 1e-4)
    expected = (ranked[:, 0] < ratio * second) & (ranked[:, 0] <= limit)
    kept = np.isin(np.arange(count_a), np.asarray(limited.indices)[:, 0])
    np.testing.assert_array_equal(kept[sure], expected[sure])
    np.testing.assert_array_equal(limited.indices, np.asarray(everything.indices)[kept])


@examples(60)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(0, 30),
    st.integers(0, 30),
    st.integers(3, 40),
    st.sampled_from([1e-3, 1.0, 1e3]),
    st.floats(0.1, 10),
)
def test_the_check_leaves_out_what_least_squares_would_move(
    seed: int, count_a: int, count_b: int, width: int, scale: float, max_shift: float
) -> None:
    rng = np.random.default_rng(seed)

    def features(count: int) -> Features:
        rows, derivatives = rng.normal(size=(count, width)), rng.normal(size=(count, 2, width)) / 3
        fields: Any = (np.zeros((count, 2)), scale * rows, None, None, None, (9, 9), scale * derivatives)
        return Features(*fields)

    a, b = features(count_a), features(count_b)
    pairs, checked = (np.asarray(match(a, b, max_shift=limit).indices) for limit in (None, max_shift))
    kept, clear = [], []
    for i, j in pairs.tolist():
        jacobian = (np.asarray(a.derivatives)[i] + np.asarray(b.derivatives)[j]).T / 2
        difference = np.asarray(a.descriptors)[i] - np.asarray(b.descriptors)[j]
        shift = float(np.linalg.norm(np.linalg.lstsq(jacobian, difference, rcond=None)[0]))
        kept.append(shift <= max_shift)
        clear.append(abs(shift - max_shift) > 1e-6 * max_shift)
    found, sure = np.isin(pairs[:, 0], checked[:, 0]), np.array(clear, dtype=bool)
    np.testing.assert_array_equal(found[sure], np.array(kept, dtype=bool)[sure])
    np.testing.assert_array_equal(checked, pairs[found])


@examples(60)
@given(descriptor_pairs(), st.randoms(use_true_random=False))
def test_torch_and_any_memory_layout_agree_with_numpy(pair: tuple[Array, Array], random: Any) -> None:
    a, b = pair
    expected = match(a, b)
    in_torch = match(torch.from_numpy(a), torch.from_numpy(b))
    assert isinstance(in_torch.indices, torch.Tensor)
    np.testing.assert_array_equal(in_torch.indices.numpy(), expected.indices)
    laid_out = random.choice(
        [np.asfortranarray, lambda rows: rows[::-1][::-1], lambda rows: rows.astype(rows.dtype.newbyteorder())]
    )
    np.testing.assert_array_equal(match(laid_out(a), laid_out(b)).indices, expected.indices)


@examples(200)
@given(
    st.one_of(
        anything,
        arrays.arrays(arrays.array_dtypes() | arrays.scalar_dtypes(), arrays.array_shapes(min_side=0, max_side=4)),
    ),
    st.sampled_from([np.zeros((3, 2), np.float32), torch.zeros(3, 2), np.zeros((2, 2, 3, 2))]),
    st.none() | st.floats(),
    st.none() | st.floats(),
)
def test_whatever_is_no_descriptors_is_refused(
    wrong: Any, right: Any, ratio: float | None, max_distance: float | None
) -> None:
    for first, second in ((wrong, right), (right, wrong)):
        matches = result_or_refusal(match, first, second, ratio=ratio, max_distance=max_distance)
        if matches is not None:
            assert np.asarray(matches.indices).shape == (len(matches), 2)
