"""Keypoints out of score maps, against their definitions in plain loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from capsdesc.keypoints.learned import BORDER, RADIUS, peaks, refine, strongest


def random_scores(height: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(height, width))).float()


@pytest.mark.parametrize("size", [(40, 53), (9, 9), (8, 60), (3, 3), (1, 1)])
def test_peaks_are_the_largest_around_them(size: tuple[int, int]) -> None:
    scores = random_scores(*size)
    values, (height, width) = scores.numpy(), size
    expected = [
        (x, y)
        for y in range(BORDER, height - BORDER)
        for x in range(BORDER, width - BORDER)
        if values[y, x] == values[max(0, y - RADIUS) : y + RADIUS + 1, max(0, x - RADIUS) : x + RADIUS + 1].max()
    ]
    assert list(map(tuple, peaks(scores).tolist())) == expected


def test_without_a_border_peaks_may_lie_at_it() -> None:
    scores = torch.zeros(10, 10)
    scores[0, 0], scores[9, 4] = 1, 2
    assert peaks(scores, border=0).tolist() == [[0, 0], [4, 9]]
    assert len(peaks(scores)) == 0


def test_a_flat_map_has_no_peak() -> None:
    assert len(peaks(torch.zeros(30, 30))) == 0


@pytest.mark.parametrize("width", [1, 2, 3, 12])
def test_flat_parts_have_no_peak_and_plateaus_have_some(width: int) -> None:
    values = np.random.default_rng(width).integers(0, 3, size=(40, width)).astype(np.float32)
    values[10:24] = 1
    expected = []
    for y in range(40):
        for x in range(width):
            around = values[max(0, y - RADIUS) : y + RADIUS + 1, max(0, x - RADIUS) : x + RADIUS + 1]
            if values[y, x] == around.max() and around.min() < around.max():
                expected.append((x, y))
    assert list(map(tuple, peaks(torch.from_numpy(values), border=0).tolist())) == expected


def test_the_strongest_come_first_and_equal_ones_in_their_order() -> None:
    scores = torch.zeros(20, 20)
    pixels = torch.tensor([[5, 5], [10, 5], [15, 5], [5, 10]])
    scores[5, 10], scores[10, 5] = 2.0, 3.0
    assert strongest(scores, pixels, 3).tolist() == [[5, 10], [10, 5], [5, 5]]
    assert len(strongest(scores, pixels, 0)) == 0
    assert len(strongest(scores, pixels[:0], 7)) == 0


def test_positions_between_pixels_are_means_weighted_by_the_softmax_and_shifted() -> None:
    scores = 3 * random_scores(30, 40, seed=1)
    shifts = torch.stack([random_scores(30, 40, seed=2), random_scores(30, 40, seed=3)]).tanh()
    pixels = torch.tensor([[0, 0], [39, 29], [20, 11], [7, 28]])
    found = refine(torch.cat([scores[None], shifts]), pixels).numpy()
    for (x, y), point in zip(pixels.tolist(), found, strict=True):
        around = [
            (column, row)
            for row in range(max(0, y - RADIUS), min(30, y + RADIUS + 1))
            for column in range(max(0, x - RADIUS), min(40, x + RADIUS + 1))
        ]
        weights = np.exp([float(scores[row, column]) for column, row in around])
        expected = weights @ np.array(around) / weights.sum() + shifts[:, y, x].numpy()
        np.testing.assert_allclose(point, expected, rtol=1e-5)


def test_the_top_of_a_hill_is_found_between_pixels() -> None:
    y, x = np.mgrid[:21, :21]
    for top in ((10.0, 10.0), (10.3, 9.8), (9.6, 10.45)):
        # Logits of a Gaussian narrower than the window.
        hill = torch.from_numpy(-((x - top[0]) ** 2 + (y - top[1]) ** 2) / (2 * 0.6**2)).float()
        (pixel,) = peaks(hill)
        unshifted = torch.stack([hill, torch.zeros_like(hill), torch.zeros_like(hill)])
        np.testing.assert_allclose(refine(unshifted, pixel[None])[0].numpy(), top, atol=0.02)


def test_positions_have_the_gradient_of_the_scores() -> None:
    scores = torch.stack([random_scores(12, 12, seed) for seed in range(3)]).double().requires_grad_()
    pixels = torch.tensor([[5, 6], [0, 11]])
    assert torch.autograd.gradcheck(lambda values: refine(values, pixels), scores)
