"""Images seen turned and from farther away, so that points are found again whatever way the camera was held.

Descriptors are upright: they bear turns of some 20 degrees and zooms of some 1.5. Instead of asking a detector for
the angle and the scale of every single point, which it often gets wrong, the whole image is described turned and shrunk
in steps finer than that; whoever matches finds out which view of one image goes with which of the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, TypeAlias

import cv2
import numpy as np
import torch
from torch import Tensor

Orientation: TypeAlias = Literal["upright", "any"]
ORIENTATIONS: tuple[Orientation, ...] = ("upright", "any")

# Clockwise, in degrees. The half step at the end halves all steps, where one of two images is seen under it and the
# other under a whole step: as the two scales of a vernier do.
TURNS = (*range(0, 360, 45), 22.5)
# Only shrunk: of two images the one that shows things larger is shrunk, which loses nothing that the other one could
# have matched.
ZOOMS = (1.0, 0.5, 0.25)


def turned_views(image: Tensor, points: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """The image under all turns and, within a turn, all zooms; the first is the image itself.

    Args:
        image: (3, H, W) float.
        points: (N, 2) pixels in it, on its device.

    Yields:
        The (3, h, w) view, just large enough to hold the whole image, and the (N, 2) points in its pixels.
    """
    pixels = image.permute(1, 2, 0).cpu().numpy()
    smaller = [pixels if zoom == 1 else _blur(pixels, zoom) for zoom in ZOOMS]
    height, width = image.shape[1:]
    corners = np.array([[0, 0], [width - 1, 0], [0, height - 1], [width - 1, height - 1]])
    for degrees in TURNS:
        # Rounded, so that quarter turns move pixels onto pixels exactly.
        cos, sin = np.round([np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))], 12)
        for zoom, source in zip(ZOOMS, smaller, strict=True):
            if degrees == 0 and zoom == 1:
                yield image, points
                continue
            linear = zoom * np.array([[cos, -sin], [sin, cos]])
            low, high = (corners @ linear.T).min(0), (corners @ linear.T).max(0)
            size = np.ceil(high - low).astype(int) + 1
            transform = np.c_[linear, -low]
            view = cv2.warpAffine(
                source, transform, (int(size[0]), int(size[1])), borderMode=cv2.BORDER_REPLICATE, flags=cv2.INTER_LINEAR
            )
            moved = points @ points.new_tensor(linear).T - points.new_tensor(low)
            yield torch.from_numpy(view).permute(2, 0, 1).to(image), moved


def _blur(pixels: np.ndarray[Any, Any], zoom: float) -> np.ndarray[Any, Any]:
    """Smoothed so that shrinking does not alias, as if the image had half a pixel of blur before and after."""
    return np.asarray(cv2.GaussianBlur(pixels, (0, 0), 0.5 * np.sqrt(1 / zoom**2 - 1)))
