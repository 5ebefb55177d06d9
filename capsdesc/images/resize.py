"""Images made smaller."""

from __future__ import annotations

from typing import TypeVar

import cv2
import numpy as np

from capsdesc.types import Array

_Array = TypeVar("_Array", bound=Array)


def size_at_edge(width: int, height: int, edge: int) -> tuple[int, int]:
    """Width and height of an image of these proportions whose longer edge has so many pixels."""
    factor = edge / max(width, height)
    return max(1, round(width * factor)), max(1, round(height * factor))


def shrink(pixels: _Array, max_edge: int | None) -> _Array:
    """An image whose longer edge is no longer than this, by averaging areas.

    A pixel p is at (p + 0.5) * r - 0.5 in it, r being the quotient of the two widths along x, of the heights along y.

    Args:
        pixels: (H, W) or (H, W, C), of a type that OpenCV resizes.
        max_edge: in pixels; None never shrinks.

    Returns:
        The same type; the image itself where it is small enough.
    """
    height, width = pixels.shape[:2]
    if max_edge is None or max(width, height) <= max_edge:
        return pixels
    smaller = cv2.resize(pixels, size_at_edge(width, height, max_edge), interpolation=cv2.INTER_AREA)
    return np.asarray(smaller, dtype=pixels.dtype)  # type: ignore[return-value]
