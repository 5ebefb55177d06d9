"""Where in an image keypoints may lie."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from capsdesc.types import ArrayOrTensor


def check_mask(mask: npt.NDArray[Any], shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """A mask of where keypoints may lie, refused unless it fits the image.

    Args:
        mask: (H, W) bool or uint8, non-zero where keypoints may lie.
        shape: Height and width of the image.

    Raises:
        TypeError: The mask is neither bool nor uint8.
        ValueError: The mask has another size than the image.
    """
    if not isinstance(mask, np.ndarray) or mask.dtype not in (np.bool_, np.uint8):
        got = mask.dtype if isinstance(mask, np.ndarray) else type(mask).__name__
        raise TypeError(f"mask must be a bool or a uint8 array, got {got}")
    if mask.shape != shape:
        raise ValueError(f"mask must have the image's shape {shape}, height and width, got {mask.shape}")
    return np.ascontiguousarray(mask, dtype=np.uint8)


def inside_mask(points: ArrayOrTensor, mask: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """(N,) whether the pixel that each of (N, 2) points inside the image lies on is non-zero in the (H, W) mask."""
    column, row = np.rint(np.asarray(points)).astype(int).T
    inside: npt.NDArray[np.bool_] = mask[row, column] > 0
    return inside
