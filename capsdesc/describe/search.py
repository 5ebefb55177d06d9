"""The differentiable coarse-to-fine search of the paper (section 3.2 and 3.3); training and ``locate`` share it.

A point of one image is looked for in another: the softmax of its coarse feature's dot products with all coarse cells
gives a distribution over the image (equation 2), the fine feature then searches a window around the coarse maximum.
The expectation of a distribution is the correspondence, its standard deviation tells how sure it is.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from capsdesc.models.maps import DenseFeatures, FeatureMap

WINDOW = 0.125
"""Half the fine window's edge in normalised coordinates, in which an image spans -1 to 1 (supplement)."""


@dataclasses.dataclass(frozen=True, eq=False)
class Correspondence:
    """Where points of one image are in another, as a distribution's moments.

    Attributes:
        expected: (B, N, 2) expected location in pixels; differentiable.
        argmax: (B, N, 2) centre of the most probable cell in pixels; carries no gradient.
        std: (B, N, 2) standard deviation along x and y in pixels; carries no gradient.
    """

    expected: Tensor
    argmax: Tensor
    std: Tensor


def search(
    queries: Tensor,
    target: FeatureMap,
    inverse_temperature: Tensor | float = 1.0,
    center: Tensor | None = None,
    radius: tuple[float, float] = (0.0, 0.0),
) -> Correspondence:
    """Expected location of each query feature on a map (equation 2).

    Args:
        queries: (B, N, C) features.
        target: a map of B images with C channels.
        inverse_temperature: factor on the dot products.
        center: (B, N, 2) pixel centre of the window that is searched, or None for the whole map.
        radius: half the window's width and height in pixels; never less than one cell.

    Returns:
        Locations on the map, (B, N, 2) each.
    """
    columns, rows = target.columns, target.rows
    height, width = target.values.shape[-2:]
    logits = (queries * inverse_temperature) @ target.values.flatten(2)
    if center is not None:
        x, out_x = _window(columns, target.scale[0], center[..., 0], radius[0])
        y, out_y = _window(rows, target.scale[1], center[..., 1], radius[1])
        # A window has few of the map's cells: the rest need no softmax, and no memory until the backward pass.
        logits = logits.gather(2, (y[..., :, None] * width + x[..., None, :]).flatten(2))
        logits = logits.masked_fill((out_y[..., :, None] | out_x[..., None, :]).flatten(2), -torch.inf)
        columns, rows = columns[x], rows[y]
        height, width = y.shape[-1], x.shape[-1]
    probability = logits.softmax(-1)

    best = probability.argmax(-1, keepdim=True)
    # The moments of a 2-D distribution are those of its marginals; centred sums keep float32 exact enough.
    probability = probability.view(*probability.shape[:2], height, width)
    argmax_x, expected_x, std_x = _moments(probability.sum(2), columns, best % width)
    argmax_y, expected_y, std_y = _moments(probability.sum(3), rows, best // width)
    return Correspondence(
        expected=torch.stack([expected_x, expected_y], dim=-1),
        argmax=torch.stack([argmax_x, argmax_y], dim=-1),
        std=torch.stack([std_x, std_y], dim=-1),
    )


def _window(positions: Tensor, step: float, center: Tensor, radius: float) -> tuple[Tensor, Tensor]:
    """The cells along an axis that may lie within a radius of each centre, equally many for all.

    Args:
        positions: (w,) pixel coordinates of the cells, ascending.
        step: pixels from one to the next.
        center: (B, N) pixel coordinates.
        radius: in pixels; never less than one cell.

    Returns:
        (B, N, k) indices of cells, and whether each is farther away than the radius after all.
    """
    radius = max(radius, step)
    count = min(int(2 * radius / step) + 2, len(positions))
    first = ((center - radius - positions[0]) / step).floor().long().clamp(0, len(positions) - count)
    cells = first[..., None] + torch.arange(count, device=positions.device)
    return cells, (positions[cells] - center[..., None]).abs() > radius


def _moments(probability: Tensor, positions: Tensor, best: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Position of the best, mean and standard deviation of (B, N, k) probabilities over (k,) or (B, N, k) positions."""
    mean = (probability * positions).sum(-1)
    with torch.no_grad():
        variance = (probability * (positions - mean[..., None]).square()).sum(-1)
    return positions.expand(probability.shape).gather(-1, best).squeeze(-1), mean, variance.sqrt()


def coarse_to_fine(
    points: Tensor,
    features0: DenseFeatures,
    features1: DenseFeatures,
    inverse_temperatures: tuple[Tensor | float, Tensor | float] = (1.0, 1.0),
) -> tuple[Correspondence, Correspondence]:
    """Where points of image 0 are in image 1: the coarse and the fine answer.

    Args:
        points: (B, N, 2) pixel coordinates in image 0.
        features0: maps of image 0.
        features1: maps of image 1.
        inverse_temperatures: factors on the coarse and on the fine dot products.

    Returns:
        Coarse correspondence over the whole image; fine one within the window around the coarse argmax.
    """
    coarse_query, fine_query = features0.sample(points)
    coarse = search(coarse_query, features1.coarse, inverse_temperatures[0])
    fine = search(fine_query, features1.fine, inverse_temperatures[1], coarse.argmax, window_radius(features1))
    return coarse, fine


def back_again(
    points: Tensor,
    coarse: Correspondence,
    fine: Correspondence,
    features0: DenseFeatures,
    features1: DenseFeatures,
    inverse_temperatures: tuple[Tensor | float, Tensor | float] = (1.0, 1.0),
) -> tuple[Correspondence, Correspondence]:
    """From the correspondences in image 1 back to image 0, for the cycle loss (section 3.1).

    The coarse search starts from the coarse argmax. The fine one starts from the fine expected location, through which
    its gradient flows, and searches the window around the original points.

    Args:
        points: (B, N, 2) pixel coordinates in image 0 that ``coarse`` and ``fine`` belong to.
        coarse: as :func:`coarse_to_fine` returns it.
        fine: likewise.
        features0: maps of image 0.
        features1: maps of image 1.
        inverse_temperatures: factors on the coarse and on the fine dot products.

    Returns:
        Coarse and fine correspondence in image 0.
    """
    coarse_query, _ = features1.sample(coarse.argmax)
    _, fine_query = features1.sample(fine.expected)
    coarse_loop = search(coarse_query, features0.coarse, inverse_temperatures[0])
    fine_loop = search(fine_query, features0.fine, inverse_temperatures[1], points, window_radius(features0))
    return coarse_loop, fine_loop


def window_radius(features: DenseFeatures) -> tuple[float, float]:
    """Half the fine window's width and height in pixels."""
    width, height = features.image_size
    return WINDOW * (width - 1) / 2, WINDOW * (height - 1) / 2
