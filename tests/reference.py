"""Maps of features read and searched in plain numpy, for comparison."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from capsdesc.models import DenseFeatures, FeatureMap

Array = npt.NDArray[Any]


def bilinear(values: Array, cells: Array) -> Array:
    """(C, h, w) values at (N, 2) fractional cells (column, row), to (N, C); the border value goes on outside."""
    height, width = values.shape[1:]
    samples = []
    for column, row in cells:
        x, y = min(max(column, 0), width - 1), min(max(row, 0), height - 1)
        left, top = math.floor(x), math.floor(y)
        right, bottom = min(left + 1, width - 1), min(top + 1, height - 1)
        a, b = x - left, y - top
        upper = (1 - a) * values[:, top, left] + a * values[:, top, right]
        lower = (1 - a) * values[:, bottom, left] + a * values[:, bottom, right]
        samples.append((1 - b) * upper + b * lower)
    return np.asarray(samples).reshape(-1, values.shape[0])


@dataclasses.dataclass(frozen=True)
class Found:
    """What a search should have found: (N, 2) each."""

    expected: Array
    argmax: Array
    std: Array


def numpy_search(
    queries: Array,
    values: Array,
    stride: float,
    inverse_temperature: float = 1.0,
    center: Array | None = None,
    radius: tuple[float, float] = (0.0, 0.0),
) -> Found:
    """One image's (N, C) queries on its (C, h, w) map of cells at ``stride * (column, row)``, one by one."""
    row, column = np.indices(values.shape[1:])
    cells = stride * np.stack([column.ravel(), row.ravel()], axis=1)
    found: list[list[Array]] = [[], [], []]
    for n, query in enumerate(queries):
        near = np.full(len(cells), True) if center is None else (np.abs(cells - center[n]) <= radius).all(1)
        places, scores = cells[near], inverse_temperature * query @ values.reshape(len(query), -1)[:, near]
        probability = np.exp(scores - scores.max())
        probability /= probability.sum()
        mean = probability @ places
        found[0].append(mean)
        found[1].append(places[np.argmax(probability)])
        found[2].append(np.sqrt(probability @ (places - mean) ** 2))
    return Found(*(np.array(part).reshape(-1, 2) for part in found))


def paper_radius(size: tuple[int, int], stride: float) -> tuple[float, float]:
    """+-0.125 where -1..1 spans the image, but a cell at least so that the window is never empty."""
    return max(0.125 * (size[0] - 1) / 2, stride), max(0.125 * (size[1] - 1) / 2, stride)


def numpy_coarse_to_fine(
    points: Array, maps0: tuple[Array, Array], maps1: tuple[Array, Array], size: tuple[int, int], temperatures: Array
) -> tuple[Found, Found]:
    """Of one pair whose (coarse, fine) maps lie at strides 16 and 4."""
    coarse = numpy_search(bilinear(maps0[0], points / 16), maps1[0], 16, temperatures[0])
    fine = numpy_search(
        bilinear(maps0[1], points / 4), maps1[1], 4, temperatures[1], coarse.argmax, paper_radius(size, 4)
    )
    return coarse, fine


def numpy_back_again(
    points: Array,
    found: tuple[Found, Found],
    maps0: tuple[Array, Array],
    maps1: tuple[Array, Array],
    size: tuple[int, int],
    temperatures: Array,
) -> tuple[Found, Found]:
    """Back from the coarse argmax and from the fine expected location."""
    coarse = numpy_search(bilinear(maps1[0], found[0].argmax / 16), maps0[0], 16, temperatures[0])
    query = bilinear(maps1[1], found[1].expected / 4)
    fine = numpy_search(query, maps0[1], 4, temperatures[1], points, paper_radius(size, 4))
    return coarse, fine


def dense(size: tuple[int, int], coarse: Tensor, fine: Tensor) -> DenseFeatures:
    return DenseFeatures(FeatureMap(coarse, (16.0, 16.0)), FeatureMap(fine, (4.0, 4.0)), size, normalized=False)


def random_maps(size: tuple[int, int], seed: int, channels: int = 5, images: int = 2) -> tuple[Tensor, Tensor]:
    """Float64 maps at strides 16 and 4."""
    generator = torch.Generator().manual_seed(seed)

    def values(stride: int) -> Tensor:
        shape = (images, channels, -(-size[1] // stride), -(-size[0] // stride))
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    return values(16), values(4)


def random_pixels(size: tuple[int, int], count: int, seed: int = 0, images: int = 2) -> Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.uniform(0, 1, (images, count, 2)) * (np.asarray(size) - 1))
