"""Which views of two images, described under several turns and zooms, go together."""

from __future__ import annotations

from collections.abc import Iterable
from types import EllipsisType
from typing import TypeAlias

import torch
from torch import Tensor

from capsdesc.matching.nearest import nearest_neighbours

# Descriptors of the first image, at least, that decide which views go together.
_VIEW_SAMPLE = 512
# Turn and zoom of a view; all of an image that was seen upright only.
_View: TypeAlias = tuple[int, int] | EllipsisType
# Turn and zoom of the first image's view, turn and zoom of the second's.
_Views: TypeAlias = tuple[int, int, int, int]


def agreeing_views(a: Tensor, b: Tensor) -> tuple[_View, _View]:
    """The views of each, of (..., N, D) and (..., M, D) descriptors, that go together best, as indices.

    Under the right views many mutual nearest neighbours are much nearer than the second nearest, under wrong ones few
    are. It is enough to turn one image, and to shrink one; then the other's last turn, half a step, may fit better.
    """
    views_a = a if a.ndim == 4 else a[None, None]
    views_b = b if b.ndim == 4 else b[None, None]

    def indices(found: _Views) -> tuple[_View, _View]:
        return found[:2] if a.ndim == 4 else ..., found[2:] if b.ndim == 4 else ...

    if (a.ndim == 2 and b.ndim == 2) or a.shape[-2] == 0 or b.shape[-2] == 0:
        return indices((0, 0, 0, 0))
    sample = slice(None, None, max(1, a.shape[-2] // _VIEW_SAMPLE))

    def best(pairs: Iterable[_Views]) -> tuple[float, _Views]:
        rated = ((_distinctiveness(views_a[i, k][sample], views_b[j, m]), (i, k, j, m)) for i, k, j, m in pairs)
        return max(rated, key=lambda pair: pair[0])

    turns, zooms_b, zooms_a = range(len(views_b)), range(views_b.shape[1]), range(1, views_a.shape[1])
    zooms = [*((0, zoom_b) for zoom_b in zooms_b), *((zoom_a, 0) for zoom_a in zooms_a)]
    rating, found = best((0, zoom_a, turn, zoom_b) for zoom_a, zoom_b in zooms for turn in turns)
    if len(views_a) > 1:
        rating_between, found_between = best((len(views_a) - 1, found[1], turn, found[3]) for turn in turns)
        found = found_between if rating_between > rating else found
    return indices(found)


def _distinctiveness(a: Tensor, b: Tensor) -> float:
    """Sum over mutual nearest neighbours of (1 - d1 / d2)^2 for the distances to the two nearest rows of b.

    Only mutual ones: where nothing matches, many rows of a may share a nearest neighbour, nearer than all others.
    """
    if len(b) < 2:
        return 0.0
    neighbours, is_mutual = nearest_neighbours(a, b, 2)
    first, second = (torch.linalg.vector_norm(a - b[neighbours[:, k]], dim=1) for k in range(2))
    return float((1 - first / second.clamp_min(1e-12)).square()[is_mutual].sum())
