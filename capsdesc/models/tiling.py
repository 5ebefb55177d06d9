"""The parts of an image that a network must see to describe points of it, so that large images need little memory."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from capsdesc.models.network import COARSE_STRIDE

# Points are taken together within so many pixels along x and y, which needs some 1 GB.
_TILE = 3072
# Where keypoints are looked for, which needs more memory a pixel.
_SEARCHED_TILE = 2048


@dataclasses.dataclass(frozen=True, eq=False)
class Tile:
    """A part of an image and the points that are described from it.

    Attributes:
        origin: x, y of its first pixel, multiples of the coarse stride: its cells are cells of the whole image.
        end: x, y beyond its last pixel.
        members: indices of the points.
    """

    origin: tuple[int, int]
    end: tuple[int, int]
    members: Tensor

    def crop(self, image: Tensor) -> Tensor:
        """This part of a (..., H, W) image."""
        return image[..., self.origin[1] : self.end[1], self.origin[0] : self.end[0]]


def tiles(points: Tensor, image_size: tuple[int, int], reach: int) -> Iterator[Tile]:
    """Parts of an image in which points have the same features as in the whole.

    Args:
        points: (N, 2) pixels.
        image_size: width and height.
        reach: how many pixels to each side of a cell its features depend on.

    Yields:
        Tiles of at most some 3072 pixels and what is around them within reach; every point is a member of one.
    """
    size = points.new_tensor(image_size)
    count = (size / _TILE).ceil()
    column, row = ((points + 0.5) * (count / size)).floor().clamp(min=0).minimum(count - 1).unbind(-1)
    tile = row * count[0] + column
    # The farthest cell that a sample reads is not quite a coarse stride away.
    margin = reach + COARSE_STRIDE
    for key in sorted(set(tile.tolist())):
        members = (tile == key).nonzero()[:, 0]
        low = ((points[members].amin(0) - margin) / COARSE_STRIDE).floor().clamp(min=0) * COARSE_STRIDE
        high = (((points[members].amax(0) + margin) / COARSE_STRIDE).ceil() * COARSE_STRIDE + 1).minimum(size)
        (left, top), (right, bottom) = low.long().tolist(), high.long().tolist()
        yield Tile((left, top), (right, bottom), members)


def cover(image_size: tuple[int, int], reach: int) -> Iterator[tuple[Tile, tuple[int, int, int, int]]]:
    """Parts of an image that together show all of it, each with what is around it within reach.

    Args:
        image_size: width and height.
        reach: how many pixels to each side of a cell its features depend on.

    Yields:
        A tile without points, and left, top, right and bottom of the pixels of the image that are its own; every pixel
        is one tile's own. Features of these are as in the whole image, and so are the scores around them.
    """
    margin = reach + COARSE_STRIDE
    columns, rows = (_split(size) for size in image_size)
    for top, bottom in rows:
        for left, right in columns:
            low = (max(0, (edge - margin) // COARSE_STRIDE * COARSE_STRIDE) for edge in (left, top))
            high = (
                min(size, -(-(edge + margin) // COARSE_STRIDE) * COARSE_STRIDE + 1)
                for edge, size in zip((right, bottom), image_size, strict=True)
            )
            (x0, y0), (x1, y1) = low, high
            yield Tile((x0, y0), (x1, y1), torch.empty(0, dtype=torch.int64)), (left, top, right, bottom)


def _split(size: int) -> list[tuple[int, int]]:
    """A line of so many pixels in nearly equal parts of at most a tile's edge."""
    count = -(-size // _SEARCHED_TILE)
    edges = [size * k // count for k in range(count + 1)]
    return list(itertools.pairwise(edges))
