"""Images of any depth and number of channels as the network, and people, see them: 8-bit RGB."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from capsdesc.images.files import repeat_grey
from capsdesc.images.resize import shrink
from capsdesc.types import UInt8Array

# Brighter and darker values than these percentiles are clipped.
_DARKEST, _BRIGHTEST = 0.5, 99.5


def as_seen(pixels: npt.NDArray[Any], max_edge: int | None = None, nodata: float | None = None) -> UInt8Array:
    """An image of any depth and number of channels as 8-bit RGB.

    Of three channels or more the first three are red, green and blue; of one or two, the first is grey. 8-bit values
    stay as they are. Of others nobody knows which are black and white (16-bit files may hold 12 bits, or reflectances):
    they are stretched so that 99 % of them lie in 0..255.

    Args:
        pixels: (H, W) or (H, W, C) of any real type.
        max_edge: images with a longer edge are shrunk to this many pixels; None never shrinks.
        nodata: the value of pixels that show nothing; they become black, as those do that are not finite.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    if pixels.ndim == 3:
        pixels = pixels[..., :3] if pixels.shape[2] >= 3 else pixels[..., 0]
    if pixels.dtype.name not in ("uint8", "uint16", "int16", "float32"):
        # Before shrinking, which is OpenCV's.
        pixels = pixels.astype(np.float32)
    pixels = shrink(pixels, max_edge)
    if pixels.dtype != np.uint8:
        pixels = _stretched(pixels, nodata)
    return np.ascontiguousarray(pixels) if pixels.ndim == 3 else repeat_grey(pixels)


def _stretched(pixels: npt.NDArray[Any], nodata: float | None) -> UInt8Array:
    valid = np.isfinite(pixels)
    if nodata is not None:
        valid &= pixels != nodata
    known = pixels[valid]
    if not len(known):
        return np.zeros(pixels.shape, np.uint8)
    low, high = np.percentile(known, (_DARKEST, _BRIGHTEST))
    scale = 255 / (high - low) if high > low else 0
    stretched = np.zeros(pixels.shape, np.uint8)
    for row, is_valid, out in zip(pixels, valid, stretched, strict=True):
        values = np.where(is_valid, row, low).astype(np.float64)
        out[...] = np.rint(np.clip((values - low) * scale, 0, 255))
        out[~is_valid] = 0
    return stretched
