"""The coarse-to-fine search, against loops in numpy."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from reference import (
    Found,
    dense,
    numpy_back_again,
    numpy_coarse_to_fine,
    numpy_search,
    random_maps,
    random_pixels,
)
from torch import Tensor
from torch.autograd import gradcheck

from capsdesc.describe.search import Correspondence, back_again, coarse_to_fine, search
from capsdesc.models import FeatureMap

Array = npt.NDArray[Any]


def assert_agree(found: Correspondence, reference: Found, image: int, atol: float = 1e-6) -> None:
    np.testing.assert_allclose(found.expected[image].detach(), reference.expected, atol=atol)
    np.testing.assert_allclose(found.argmax[image], reference.argmax, atol=1e-5)
    np.testing.assert_allclose(found.std[image], reference.std, atol=atol)


@pytest.mark.parametrize("inverse_temperature", [0.0, 1.0, 3.5])
def test_search_over_the_whole_map(inverse_temperature: float) -> None:
    values, _ = random_maps((160, 100), 0)
    queries = torch.randn(2, 9, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = search(queries, FeatureMap(values, (16.0, 16.0)), inverse_temperature)
    for image in (0, 1):
        reference = numpy_search(queries[image].numpy(), values[image].numpy(), 16, inverse_temperature)
        assert_agree(found, reference, image)


def test_uniform_scores_expect_the_middle() -> None:
    found = search(torch.zeros(1, 1, 2), FeatureMap(torch.ones(1, 2, 3, 5), (10.0, 10.0), (2.0, 7.0)))
    np.testing.assert_allclose(found.expected[0, 0], [22, 17], rtol=1e-6)
    # Of k equally likely positions, a step apart.
    spread = [10 * np.sqrt((5**2 - 1) / 12), 10 * np.sqrt((3**2 - 1) / 12)]
    np.testing.assert_allclose(found.std[0, 0], spread, rtol=1e-5)


def test_a_certain_answer_has_no_spread() -> None:
    values = torch.zeros(1, 3, 6, 8)
    values[0, :, 4, 5] = torch.tensor([1.0, 2.0, 3.0])
    found = search(torch.full((1, 1, 3), 50.0), FeatureMap(values, (4.0, 4.0)))
    assert found.expected.tolist() == [[[20.0, 16.0]]]
    assert found.argmax.tolist() == [[[20.0, 16.0]]]
    assert found.std.tolist() == [[[0.0, 0.0]]]


def test_spread_stays_exact_far_from_the_origin_in_float32() -> None:
    # Two neighbouring cells of a large image, three to one: expected 1/4 cell, standard deviation sqrt(3)/4 cells.
    values = torch.full((1, 1, 1, 2000), -1e4)
    values[..., 1500:1502] = torch.tensor([np.log(3.0), 0.0], dtype=torch.float32)
    found = search(torch.ones(1, 1, 1), FeatureMap(values, (4.0, 4.0)))
    assert float(found.expected[0, 0, 0]) == pytest.approx(6001, abs=2e-3)
    assert float(found.std[0, 0, 0]) == pytest.approx(np.sqrt(3), rel=1e-3)


@pytest.mark.parametrize("radius", [(0.0, 0.0), (3.0, 9.0), (4.0, 8.0), (13.0, 5.0), (1000.0, 1000.0)])
def test_search_within_a_window(radius: tuple[float, float]) -> None:
    size = (80, 48)
    _, values = random_maps(size, 2)
    queries = torch.randn(2, 12, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    center = random_pixels(size, 12)
    found = search(queries, FeatureMap(values, (4.0, 4.0)), 0.7, center, radius)
    # Never less than a cell: whatever the radius, there is something to search.
    widened = max(radius[0], 4.0), max(radius[1], 4.0)
    for image in (0, 1):
        reference = numpy_search(queries[image].numpy(), values[image].numpy(), 4, 0.7, center[image].numpy(), widened)
        assert_agree(found, reference, image)
    outside = (found.argmax - center).abs() > torch.tensor(widened) + 1e-9
    assert not outside.any()


@pytest.mark.parametrize("size", [(32, 24), (97, 65), (352, 160)])
def test_coarse_to_fine_and_back(size: tuple[int, int]) -> None:
    maps0, maps1 = random_maps(size, 0), random_maps(size, 1)
    points, temperatures = random_pixels(size, 6), np.array([1.3, 0.8])
    features0, features1 = dense(size, *maps0), dense(size, *maps1)
    found = coarse_to_fine(points, features0, features1, (1.3, 0.8))
    loop = back_again(points, *found, features0, features1, (1.3, 0.8))
    for image in (0, 1):
        at = points[image].numpy()
        arrays0, arrays1 = ((maps[0][image].numpy(), maps[1][image].numpy()) for maps in (maps0, maps1))
        reference = numpy_coarse_to_fine(at, arrays0, arrays1, size, temperatures)
        back = numpy_back_again(at, reference, arrays0, arrays1, size, temperatures)
        for answer, wanted in zip((*found, *loop), (*reference, *back), strict=True):
            # The loop starts from float32 places, and random maps are steep there.
            assert_agree(answer, wanted, image, atol=2e-3)


def test_fine_window_spans_an_eighth_of_normalized_coordinates_around_the_coarse_argmax() -> None:
    size = (641, 321)
    coarse0, fine0 = torch.ones(1, 1, 21, 41), torch.zeros(1, 1, 81, 161)
    coarse1, fine1 = torch.zeros(1, 1, 21, 41), torch.zeros(1, 1, 81, 161)
    coarse1[0, 0, 10, 20] = 100.0
    _, fine = coarse_to_fine(torch.zeros(1, 1, 2), dense(size, coarse0, fine0), dense(size, coarse1, fine1))
    # The image's centre (320, 160), and 40 x 20 px around it: 21 columns and 11 rows of equal probability.
    np.testing.assert_allclose(fine.expected[0, 0], [320, 160], atol=1e-3)
    np.testing.assert_allclose(
        fine.std[0, 0], [4 * np.sqrt((21**2 - 1) / 12), 4 * np.sqrt((11**2 - 1) / 12)], rtol=1e-4
    )


def test_corner_aligned_maps_answer_in_pixels_of_the_whole_image() -> None:
    values = torch.zeros(1, 1, 5, 7)
    values[0, 0, 4, 6] = 100.0
    found = search(torch.ones(1, 1, 1), FeatureMap(values, (99 / 6, 63 / 4)))
    np.testing.assert_allclose(found.expected[0, 0], [99, 63], rtol=1e-6)


def test_expected_location_is_differentiable_and_the_rest_is_not() -> None:
    values, fine = random_maps((64, 48), 3, images=1)
    queries = torch.randn(1, 4, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()
    temperature = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    center = random_pixels((64, 48), 4, images=1)

    def whole(queries: Tensor, values: Tensor, temperature: Tensor) -> Tensor:
        return search(queries, FeatureMap(values, (16.0, 16.0)), temperature).expected

    def windowed(queries: Tensor, values: Tensor, temperature: Tensor) -> Tensor:
        return search(queries, FeatureMap(values, (4.0, 4.0)), temperature, center, (9.0, 6.0)).expected

    assert gradcheck(whole, (queries, values.requires_grad_(), temperature))
    assert gradcheck(windowed, (queries, fine.requires_grad_(), temperature), fast_mode=True)
    found = search(queries, FeatureMap(values, (16.0, 16.0)), temperature)
    assert found.expected.requires_grad
    assert not found.argmax.requires_grad
    assert not found.std.requires_grad


def test_whole_search_and_loop_have_the_gradients_of_finite_differences() -> None:
    size = (48, 32)
    points = random_pixels(size, 3, images=1)
    maps = [values.requires_grad_() for seed in (4, 5) for values in random_maps(size, seed, channels=3, images=1)]

    def answers(coarse0: Tensor, fine0: Tensor, coarse1: Tensor, fine1: Tensor) -> tuple[Tensor, ...]:
        features0, features1 = dense(size, coarse0, fine0), dense(size, coarse1, fine1)
        found = coarse_to_fine(points, features0, features1)
        return tuple(answer.expected for answer in (*found, *back_again(points, *found, features0, features1)))

    assert gradcheck(answers, maps, fast_mode=True)


def test_loop_gradient_flows_through_the_fine_expectation_and_not_through_the_argmax() -> None:
    size = (96, 64)
    features0, features1 = dense(size, *random_maps(size, 6)), dense(size, *random_maps(size, 7))
    points = random_pixels(size, 5)
    coarse, fine = coarse_to_fine(points, features0, features1)
    expected = fine.expected.clone().requires_grad_()

    def loop(expected: Tensor) -> Tensor:
        moved = dataclasses.replace(fine, expected=expected)
        return back_again(points, coarse, moved, features0, features1)[1].expected

    assert gradcheck(loop, (expected,))
    (gradient,) = torch.autograd.grad(loop(expected).sum(), expected)
    assert bool((gradient.abs().sum(-1) > 0).all())

    coarse_expected = coarse.expected.clone().requires_grad_()
    moved = dataclasses.replace(coarse, expected=coarse_expected)
    coarse_loop, fine_loop = back_again(points, moved, fine, features0, features1)
    assert not coarse_loop.expected.requires_grad
    assert not fine_loop.expected.requires_grad


def test_no_points_no_answers() -> None:
    size = (64, 48)
    features = dense(size, *random_maps(size, 8))
    points = torch.zeros(2, 0, 2, dtype=torch.float64)
    found = coarse_to_fine(points, features, features)
    for answer in (*found, *back_again(points, *found, features, features)):
        assert answer.expected.shape == answer.argmax.shape == answer.std.shape == (2, 0, 2)
