"""Which pairs of keypoints may be right, and what the descriptors and the keypoints around say of each."""

from __future__ import annotations

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from capsdesc.matching.nearest import most_similar
from capsdesc.models.context import EVIDENCE, Candidates


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
    if len(a) == 0 or len(b) == 0:
        return _none(a, neighbours)
    # Two at least: the second is the rival of the first.
    ranked = most_similar(a, b, max(2, count))
    forth = torch.arange(len(a), device=a.device)[:, None] * len(b) + ranked[0][1][:, :count]
    back = ranked[1][1][:, :count] * len(b) + torch.arange(len(b), device=b.device)[:, None]
    keys, where = torch.unique(torch.cat([forth.flatten(), back.flatten()]), return_inverse=True)
    i, j = keys // len(b), keys % len(b)
    similarity = a.new_empty(len(keys))
    similarity[where] = torch.cat([products[:, :count].flatten() for products, _ in ranked])
    best, margins = [], []
    for own, other, (products, nearest) in ((i, j, ranked[0]), (j, i, ranked[1])):
        # The strongest rival: the nearest of all, or the second where the candidate is the nearest itself.
        first = nearest[:, 0][own] == other
        second = products[:, min(1, products.shape[1] - 1)]
        margins.append(similarity - torch.where(first, second[own], products[:, 0][own]))
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


def _nearest_anchors(places: Tensor, anchors: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """(N, count) indices of the anchors nearest to each keypoint, without its own; and whether there is one."""
    spots, held = places.cpu().double().numpy(), anchors.cpu().numpy()
    own = np.full(len(spots), -1)
    own[held] = np.arange(len(held))
    # One more, as one may be its own: it goes to the end. As others may lie where it lies, it need not be the first.
    distances, found = cKDTree(spots[held]).query(spots, k=range(1, count + 2))
    absent = (found == own[:, None]) | ~np.isfinite(distances)
    order = absent.argsort(axis=1, kind="stable")[:, :count]
    absent = np.take_along_axis(absent, order, axis=1)
    found = np.where(absent, 0, np.take_along_axis(found, order, axis=1))
    return torch.from_numpy(found).to(anchors), torch.from_numpy(~absent).to(anchors.device)


def _none(descriptors: Tensor, neighbours: int) -> Candidates:
    """No candidates, as where an image has no keypoints."""
    indices = torch.empty(0, dtype=torch.int64, device=descriptors.device)
    near = indices.new_empty(2, 0, neighbours)
    return Candidates(
        rows=indices,
        columns=indices,
        evidence=descriptors.new_empty(0, EVIDENCE),
        places=descriptors.new_empty(2, 0, 2),
        anchors=indices,
        near=near,
        present=near.bool(),
    )
