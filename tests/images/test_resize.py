"""Shrinking against means of blocks, and against the places of pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from capsdesc.images import shrink, size_at_edge


@pytest.mark.parametrize(
    ("size", "edge", "expected"),
    [
        ((640, 480), 320, (320, 240)),
        ((480, 640), 320, (240, 320)),
        ((1000, 3), 100, (100, 1)),
        ((1000, 333), 500, (500, 166)),
        ((20, 10), 40, (40, 20)),
    ],
)
def test_the_longer_edge_is_as_long_as_asked(size: tuple[int, int], edge: int, expected: tuple[int, int]) -> None:
    assert size_at_edge(*size, edge) == expected


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("channels", [(), (3,)])
def test_pixels_are_means_of_blocks(dtype: Any, channels: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (12, 20, *channels)).astype(dtype)
    smaller = shrink(pixels, 5)
    assert (smaller.dtype, smaller.shape) == (dtype, (3, 5, *channels))
    means = pixels.reshape(3, 4, 5, 4, *channels).mean(axis=(1, 3))
    np.testing.assert_allclose(smaller, means, atol=0.5 if dtype == np.uint8 else 1e-4)


def test_pixels_are_where_they_are_said_to_be() -> None:
    """But for what a mean over parts of pixels leaves of a ramp of whole ones."""
    columns, rows = np.meshgrid(np.arange(100.0), np.arange(61.0))
    smaller = shrink(np.dstack([columns, rows]).astype(np.float32), 30)
    assert smaller.shape == (18, 30, 2)
    x, y = ((np.arange(count) + 0.5) / (count / whole) - 0.5 for count, whole in ((30, 100), (18, 61)))
    np.testing.assert_allclose(smaller[..., 0], np.broadcast_to(x, (18, 30)), atol=0.05)
    np.testing.assert_allclose(smaller[..., 1], np.broadcast_to(y[:, None], (18, 30)), atol=0.05)


@pytest.mark.parametrize("edge", [None, 20, 21])
def test_what_is_small_enough_is_left_alone(edge: int | None) -> None:
    pixels = np.zeros((10, 20, 3), np.uint8)
    assert shrink(pixels, edge) is pixels
