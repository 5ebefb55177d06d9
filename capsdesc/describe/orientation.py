"""Images seen turned and from farther away, so that points are found again whatever way the camera was held.

Descriptors are upright: they bear turns of some 20 degrees and zooms of some 1.5. Instead of asking a detector for
the angle and the scale of every single point, which it often gets wrong, the whole image is described turned and shrunk
in steps finer than that; whoever matches finds out which view of one image goes with which of the other.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Literal, TypeAlias

import cv2
import numpy as np
import torch
from torch import Tensor

from capsdesc.models import Tile
from capsdesc.types import Array

Orientation: TypeAlias = Literal["upright", "any"]
ORIENTATIONS: tuple[Orientation, ...] = ("upright", "any")


def check_orientation(orientation: object) -> None:
    """Raise a ValueError unless this is one of :data:`ORIENTATIONS`."""
    if orientation not in ORIENTATIONS:
        raise ValueError(f"orientation is {orientation!r}; expected one of {', '.join(map(repr, ORIENTATIONS))}")


# Clockwise, in degrees. The half step at the end halves all steps, where one of two images is seen under it and the
# other under a whole step: as the two scales of a vernier do.
TURNS = (*range(0, 360, 45), 22.5)
# Only shrunk: of two images the one that shows things larger is shrunk, which loses nothing that the other one could
# have matched.
ZOOMS = (1.0, 0.5, 0.25)


@dataclasses.dataclass(frozen=True, eq=False)
class TurnedView:
    """An image turned and shrunk, and points in it; its pixels are made where they are needed.

    Attributes:
        size: width and height in pixels.
        points: (N, 2) pixels of the view.
        crop: the (3, h, w) pixels of a part of it.
    """

    size: tuple[int, int]
    points: Tensor
    crop: Callable[[Tile], Tensor]

    @classmethod
    def of(cls, image: Tensor, points: Tensor) -> TurnedView:
        """A (3, H, W) image as it is, and (N, 2) points."""
        return cls((image.shape[2], image.shape[1]), points, lambda tile: tile.crop(image))


def turned_views(image: Tensor, points: Tensor) -> Iterator[TurnedView]:
    """The image under all zooms and, within a zoom, all turns; the first is the image itself.

    In this order only one smoothed image is held at a time.

    Args:
        image: (3, H, W) float.
        points: (N, 2) pixels in it, on its device.

    Yields:
        Views just large enough to hold the whole image.
    """
    pixels = np.ascontiguousarray(image.permute(1, 2, 0).cpu().numpy())
    height, width = image.shape[1:]
    corners = np.array([[0, 0], [width - 1, 0], [0, height - 1], [width - 1, height - 1]])
    for zoom in ZOOMS:
        source = pixels if zoom == 1 else _blur(pixels, zoom)
        for degrees in TURNS:
            # Rounded, so that quarter turns move pixels onto pixels exactly.
            cos, sin = np.round([np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))], 12)
            if degrees == 0 and zoom == 1:
                yield TurnedView.of(image, points)
                continue
            linear = zoom * np.array([[cos, -sin], [sin, cos]])
            low, high = (corners @ linear.T).min(0), (corners @ linear.T).max(0)
            columns, rows = (np.ceil(high - low).astype(int) + 1).tolist()
            moved = points @ points.new_tensor(linear).T - points.new_tensor(low)
            yield TurnedView((columns, rows), moved, functools.partial(_warp, source, linear, low, image.device))


def _warp(source: Array, linear: Array, low: Array, device: torch.device, tile: Tile) -> Tensor:
    """The part of a view that is seen under a linear map, with the view's first pixel at ``low``."""
    origin, end = np.array(tile.origin), np.array(tile.end)
    width, height = (end - origin).tolist()
    transform = np.c_[linear, -low - origin]
    part = cv2.warpAffine(source, transform, (width, height), borderMode=cv2.BORDER_REPLICATE, flags=cv2.INTER_LINEAR)
    return torch.from_numpy(part).permute(2, 0, 1).to(device)


def _blur(pixels: Array, zoom: float) -> Array:
    """Smoothed so that shrinking does not alias, as if the image had half a pixel of blur before and after."""
    return np.asarray(cv2.GaussianBlur(pixels, (0, 0), 0.5 * np.sqrt(1 / zoom**2 - 1)))
