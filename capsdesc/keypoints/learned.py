"""Keypoints out of a network's score map: strongest first, at most so many, between the pixels."""

from __future__ import annotations

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

# Keypoints are the largest within so many pixels to each side along x and y, and placed by as many.
RADIUS = 2
# No keypoint is so close to the border of an image: half of what it looks like is not there.
BORDER = 4


def peaks(scores: Tensor, radius: int = RADIUS, border: int = BORDER) -> Tensor:
    """The pixels of a (H, W) map of logits that are larger than what is around them.

    Args:
        scores: logits, one a pixel.
        radius: how many pixels to each side a peak must be the largest of. Where all of them are equal, none is.
        border: no peak is so close to the border.

    Returns:
        (N, 2) int64 x, y, row by row.
    """
    found = scores == _largest_around(scores, radius)
    found[:border] = found[len(found) - min(border, len(found)) :] = False
    found[:, :border] = found[:, found.shape[1] - min(border, found.shape[1]) :] = False
    rows, columns = found.nonzero(as_tuple=True)
    # Flat is only what is like the pixel beside it: elsewhere, which is nearly always, the smallest need not be known.
    beside = torch.where(columns > 0, columns - 1, min(1, scores.shape[1] - 1))
    if (scores[rows, columns] == scores[rows, beside]).any():
        smallest = -_largest_around(-scores, radius)
        rows, columns = (scores > smallest).logical_and_(found).nonzero(as_tuple=True)
    return torch.stack([columns, rows], dim=-1)


def strongest(scores: Tensor, pixels: Tensor, count: int) -> Tensor:
    """At most ``count`` of (N, 2) pixels, in the order of their (H, W) scores; of equal ones the first come first."""
    columns, rows = pixels.unbind(-1)
    order = scores[rows, columns].argsort(descending=True, stable=True)
    return pixels[order[:count]]


def refine(scores: Tensor, pixels: Tensor, radius: int = RADIUS) -> Tensor:
    """Positions between pixels: :func:`centres`, and beside them what the network says.

    Args:
        scores: (3, H, W) logits and shifts along x and y, see :class:`capsdesc.models.DenseFeatures`.
        pixels: (N, 2) int64 x, y.
        radius: how many pixels to each side count.

    Returns:
        (N, 2) float32 x, y, at most ``radius`` and a pixel away along each axis; it has the gradient of the scores.
    """
    return centres(scores[0], pixels, radius) + scores[1:, pixels[:, 1], pixels[:, 0]].T


def centres(scores: Tensor, pixels: Tensor, radius: int = RADIUS) -> Tensor:
    """The mean of the pixels around each peak, weighted by the softmax of their logits.

    Args:
        scores: (H, W) logits.
        pixels: (N, 2) int64 x, y.
        radius: how many pixels to each side count.

    Returns:
        (N, 2) float32 x, y; it has the gradient of the scores.
    """
    steps = torch.arange(-radius, radius + 1, device=scores.device)
    offsets = torch.stack(torch.meshgrid(steps, steps, indexing="xy"), dim=-1).view(-1, 2)
    around = pixels[:, None] + offsets
    last = around.new_tensor([scores.shape[1] - 1, scores.shape[0] - 1])
    inside = ((around >= 0) & (around <= last)).all(-1)
    columns, rows = torch.where(inside[..., None], around, pixels[:, None]).unbind(-1)
    logits = scores[rows, columns].masked_fill(~inside, -torch.inf)
    return pixels + logits.softmax(-1) @ offsets.to(scores.dtype)


def _largest_around(values: Tensor, radius: int) -> Tensor:
    """The largest of (H, W) values within ``radius`` along both axes."""
    size = 2 * radius + 1
    if values.device.type == "cpu":  # where OpenCV is many times as fast
        square = np.ones((size, size), dtype=np.uint8)
        return torch.from_numpy(
            np.asarray(cv2.dilate(values.detach().numpy(), square, borderType=cv2.BORDER_REPLICATE))
        )
    rows = F.max_pool2d(values[None], (1, size), 1, (0, radius))
    return F.max_pool2d(rows, (size, 1), 1, (radius, 0))[0]
