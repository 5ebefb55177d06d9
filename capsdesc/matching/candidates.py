"""Which pairs of keypoints may be right, and what the descriptors and the keypoints around say of each."""

from __future__ import annotations

import torch
from torch import Tensor

from capsdesc.matching.nearest import nearest_neighbours
from capsdesc.models.context import Candidates


def find_candidates(
    descriptors: tuple[Tensor, Tensor],
    reliabilities: tuple[Tensor, Tensor],
    places: tuple[Tensor, Tensor],
    count: int,
    neighbours: int,
) -> Candidates:
    """The nearest partners of all keypoints of two images, in either direction.

    Args:
        descriptors: (N0, D) and (N1, D) of unit length.
        reliabilities: (N0,) and (N1,) from 0 to 1.
        places: (N0, 2) and (N1, 2), the images' longer edges being from -1 to 1.
        count: partners of each keypoint.
        neighbours: anchors around a candidate, in each image.
    """
    a, b = descriptors
    ranked = [nearest_neighbours(x, y, min(count + 1, len(y)))[0] for x, y in ((a, b), (b, a))]
    rows = torch.arange(len(a), device=a.device)
    columns = torch.arange(len(b), device=b.device)
    forth = rows[:, None] * len(b) + ranked[0][:, :count]
    back = ranked[1][:, :count] * len(b) + columns[:, None]
    keys: Tensor = torch.unique(torch.cat([forth.flatten(), back.flatten()]))
    i, j = keys // len(b), keys % len(b)
    similarity = (a[i] * b[j]).sum(1)
    best, margins = [], []
    for own, other, x, y, nearest in ((i, j, a, b, ranked[0]), (j, i, b, a, ranked[1])):
        # The strongest rival: the nearest of all, or the second where the candidate is the nearest itself.
        first = nearest[:, 0][own] == other
        rival = torch.where(first, nearest[:, -1 if nearest.shape[1] < 2 else 1][own], nearest[:, 0][own])
        margins.append(similarity - (x[own] * y[rival]).sum(1))
        best.append(first)
    mutual = best[0] & best[1]
    anchors = mutual.nonzero()[:, 0]
    evidence = torch.stack(
        [
            similarity,
            4 * margins[0],
            4 * margins[1],
            best[0].float(),
            best[1].float(),
            mutual.float(),
            reliabilities[0][i],
            reliabilities[1][j],
        ],
        dim=1,
    )
    at = torch.stack([places[0][i], places[1][j]])
    near, present = [], []
    for side, own in ((0, i), (1, j)):
        found, there = _nearest_anchors(places[side], own[anchors], neighbours)
        near.append(found[own])
        present.append(there[own])
    return Candidates(i, j, evidence, at, anchors, torch.stack(near), torch.stack(present))


def _nearest_anchors(places: Tensor, anchors: Tensor, count: int, block: int = 1024) -> tuple[Tensor, Tensor]:
    """(N, count) indices of the anchors nearest to each keypoint, without its own; and whether there is one."""
    found = anchors.new_zeros(len(places), count)
    present = torch.zeros_like(found, dtype=torch.bool)
    held = min(count, len(anchors))
    if held == 0:
        return found, present
    for start in range(0, len(places), block):
        part = slice(start, start + block)
        members = torch.arange(start, min(start + block, len(places)), device=places.device)
        distances = torch.cdist(places[part], places[anchors])
        distances[members[:, None] == anchors[None]] = torch.inf
        nearest = distances.topk(held, dim=1, largest=False)
        found[part, :held] = nearest.indices
        present[part, :held] = nearest.values.isfinite()
    return found, present
