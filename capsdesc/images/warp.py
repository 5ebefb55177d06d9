"""Images of any depth and number of channels, moved onto another grid of pixels, a tile at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from capsdesc.types import Float64Array

INTERPOLATIONS = {
    "nearest": cv2.INTER_NEAREST,
    "linear": cv2.INTER_LINEAR,
    "cubic": cv2.INTER_CUBIC,
    "lanczos": cv2.INTER_LANCZOS4,
}
# OpenCV warps no more channels at a time than a cv::Scalar has.
_CHANNELS = 4
# It warps these depths; others go through float64, which holds them all.
_DEPTHS = ("uint8", "uint16", "int16", "float32", "float64")
# Its coordinates are 16-bit integers.
_MAX_EDGE = 2**15 - 1
_TILE = 2048
# As far as the widest kernel reaches, and a pixel for rounding.
_MARGIN = 5
# Where pixels are this much larger than those they are made of, there is something to average.
_COARSER = 2.0


def warp(
    pixels: npt.NDArray[Any],
    H: Float64Array,
    size: tuple[int, int],
    *,
    interpolation: str = "linear",
    fill: float = 0,
    progress: bool = False,
) -> npt.NDArray[Any]:
    """Move an image onto another grid of pixels.

    Beside the image and the result there is never more than a tile in memory, unless the new pixels are more than twice
    as large as the old ones: then the image is first shrunk by averaging areas, so that nothing is aliased (not with
    ``"nearest"``, which makes no new values).

    Args:
        pixels: (H, W) or (H, W, C) of any real type.
        H: (3, 3), takes pixels of the image to those of the result; none of the image may lie beyond its horizon.
        size: width and height of the result.
        interpolation: one of :data:`INTERPOLATIONS`.
        fill: the value where there is no image.
        progress: whether to show progress on standard error, where that is a terminal.

    Returns:
        The result, of the same type and number of channels.

    Raises:
        ValueError: another interpolation is asked for, H has no inverse, or the image's type does not hold ``fill``.
    """
    if interpolation not in INTERPOLATIONS:
        raise ValueError(f"interpolation is {interpolation!r}; expected one of {', '.join(INTERPOLATIONS)}")
    if not np.isfinite(H).all() or np.linalg.matrix_rank(H) < 3:
        raise ValueError(f"H is {np.asarray(H).tolist()}; expected an invertible (3, 3) matrix")
    if not holds(pixels.dtype, fill):
        raise ValueError(f"fill is {fill}, which no {pixels.dtype} is; expected a value that the image can hold")
    width, height = size
    if interpolation != "nearest":
        pixels, H = _averaged(pixels, H)
    backwards = np.linalg.inv(H.astype(np.float64))
    result = np.full((height, width, *pixels.shape[2:]), fill, pixels.dtype)
    with tqdm(total=width * height, desc="warp", unit="px", unit_scale=True, disable=None if progress else True) as bar:
        for x in range(0, width, _TILE):
            for y in range(0, height, _TILE):
                tile = result[y : y + _TILE, x : x + _TILE]
                _warp_tile(pixels, backwards, tile, (x, y), INTERPOLATIONS[interpolation], fill)
                bar.update(tile.shape[0] * tile.shape[1])
    return result


def holds(dtype: np.dtype[Any], value: float) -> bool:
    """Whether pixels of a type can have a value."""
    if dtype.kind not in "iu":
        return True
    limits = np.iinfo(dtype)
    return value == np.rint(value) and limits.min <= value <= limits.max


def outline(width: int, height: int) -> Float64Array:
    """(4, 2) corners of an image, in order around it: pixels reach from -0.5 to width - 0.5 and to height - 0.5."""
    return np.array([[0, 0], [width, 0], [width, height], [0, height]], dtype=np.float64) - 0.5


def _averaged(pixels: npt.NDArray[Any], H: Float64Array) -> tuple[npt.NDArray[Any], Float64Array]:
    """The image shrunk to about the resolution of the result, and what takes its pixels there."""
    height, width = pixels.shape[:2]
    scale = math.sqrt(_density(H, width, height))
    if scale <= _COARSER or pixels.dtype.name not in _DEPTHS:
        return pixels, H
    small_width, small_height = max(1, round(width / scale)), max(1, round(height / scale))
    small = np.empty((small_height, small_width, *pixels.shape[2:]), pixels.dtype)
    for group, part in _groups(small):
        group[...] = cv2.resize(pixels[part], (small_width, small_height), interpolation=cv2.INTER_AREA).reshape(
            group.shape
        )
    # A pixel p of the small image is at (p + 0.5) r - 0.5 in the large one.
    x, y = width / small_width, height / small_height
    enlarge = np.array([[x, 0, (x - 1) / 2], [0, y, (y - 1) / 2], [0, 0, 1]])
    return small, H @ enlarge


def _density(H: Float64Array, width: int, height: int) -> float:
    """How many pixels of an image go into one of the result where they are least dense."""
    scaled = np.column_stack([outline(width, height), np.ones(4)]) @ H[2]
    # The determinant of the derivative of x -> H x is det H over the cube of the last coordinate.
    return float((np.abs(scaled) ** 3).min() / abs(np.linalg.det(H)))


def _warp_tile(
    pixels: npt.NDArray[Any],
    backwards: Float64Array,
    tile: npt.NDArray[Any],
    corner: tuple[int, int],
    interpolation: int,
    fill: float,
) -> None:
    """Fill a tile of the result from that part of the image that it shows."""
    height, width = tile.shape[:2]
    seen = _part_seen(pixels.shape[1], pixels.shape[0], backwards, corner, width, height)
    if seen is None:
        return
    left, top, right, bottom = seen
    if max(right - left, bottom - top) > _MAX_EDGE and max(width, height) > 1:
        across, down = -(-width // 2), -(-height // 2)
        for x in range(0, width, across):
            for y in range(0, height, down):
                there = corner[0] + x, corner[1] + y
                _warp_tile(pixels, backwards, tile[y : y + down, x : x + across], there, interpolation, fill)
        return
    to_image = np.array([[1, 0, -left], [0, 1, -top], [0, 0, 1]]) @ backwards
    M = to_image @ np.array([[1, 0, corner[0]], [0, 1, corner[1]], [0, 0, 1]])
    part = pixels[top:bottom, left:right]
    known = pixels.dtype.name in _DEPTHS
    for group, channels in _groups(tile):
        source = np.ascontiguousarray(part[channels], dtype=None if known else np.float64)
        warped = cv2.warpPerspective(
            source, M, (width, height), flags=interpolation | cv2.WARP_INVERSE_MAP, borderValue=(fill,) * _CHANNELS
        )
        if not known and tile.dtype.kind in "iu":
            limits = np.iinfo(tile.dtype)
            warped = np.clip(np.rint(warped), limits.min, limits.max)
        group[...] = warped.reshape(group.shape)


def _part_seen(
    image_width: int, image_height: int, backwards: Float64Array, corner: tuple[int, int], width: int, height: int
) -> tuple[int, int, int, int] | None:
    """Left, top, right and bottom of the part of an image that a tile shows; None where that is nothing."""
    corners = np.column_stack([outline(width, height) + corner, np.ones(4)]) @ backwards.T
    if corners[:, 2].min() * corners[:, 2].max() <= 0:
        # The horizon runs through the tile: it may show anything.
        return 0, 0, image_width, image_height
    places = corners[:, :2] / corners[:, 2:]
    limit = np.array([image_width, image_height])
    left, top = np.clip(np.floor(places.min(axis=0)) - _MARGIN, 0, limit).astype(int).tolist()
    right, bottom = np.clip(np.ceil(places.max(axis=0)) + _MARGIN + 1, 0, limit).astype(int).tolist()
    return (left, top, right, bottom) if left < right and top < bottom else None


def _groups(pixels: npt.NDArray[Any]) -> Iterator[tuple[npt.NDArray[Any], Any]]:
    """Views of a few channels each, and what selects these in another image."""
    if pixels.ndim == 2 or pixels.shape[2] <= _CHANNELS:
        yield pixels, Ellipsis
        return
    for first in range(0, pixels.shape[2], _CHANNELS):
        part = (..., slice(first, first + _CHANNELS))
        yield pixels[part], part
