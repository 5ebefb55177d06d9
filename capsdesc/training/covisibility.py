"""Which photographs of a scene see enough in common to be matched."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import sparse

from capsdesc.types import Array, PosedImage

# Photographs that are compared with all others at once, which bounds the memory in large scenes.
BLOCK = 256


def find_pairs(
    photographs: Sequence[PosedImage], min_covisibility: float, min_rotation: float, max_rotation: float
) -> Array:
    """Pairs of photographs that overlap and are turned against each other as asked (supplement).

    Args:
        photographs: of one scene.
        min_covisibility: least share of the scene points of the poorer photograph that both see. Pairs without a common
            point never count.
        min_rotation: least relative rotation in degrees.
        max_rotation: largest relative rotation in degrees.

    Returns:
        (P, 2) int64 indices i < j, sorted.
    """
    counts = np.array([len(photograph.point_ids) for photograph in photographs], dtype=np.int64)
    if counts.sum() == 0:
        return np.zeros((0, 2), dtype=np.int64)
    _, points = np.unique(np.concatenate([photograph.point_ids for photograph in photographs]), return_inverse=True)
    first_of_each = np.concatenate([[0], counts.cumsum()])
    sees = sparse.csr_array((np.ones(len(points), dtype=np.int32), points, first_of_each))
    seen_by = sees.T.tocsr()
    rotations = np.array([photograph.R for photograph in photographs])
    pairs = []
    for start in range(0, len(photographs), BLOCK):
        shared = (sees[start : start + BLOCK] @ seen_by).tocoo()
        i, j = shared.row.astype(np.int64) + start, shared.col.astype(np.int64)
        overlapping = (i < j) & (shared.data / np.minimum(counts[i], counts[j]) >= min_covisibility)
        i, j = i[overlapping], j[overlapping]
        degrees = _rotation_errors(rotations[i], rotations[j])
        turned = (min_rotation <= degrees) & (degrees <= max_rotation)
        pairs.append(np.stack([i[turned], j[turned]], axis=1))
    found = np.concatenate(pairs)
    return found[np.lexsort(found.T[::-1])]


def _rotation_errors(Ra: Array, Rb: Array) -> Array:
    """(P,) angles in degrees between (P, 3, 3) rotations, as :func:`capsdesc.geometry.rotation_error` of each."""
    R = Ra.transpose(0, 2, 1) @ Rb
    axes = np.stack([R[:, 2, 1] - R[:, 1, 2], R[:, 0, 2] - R[:, 2, 0], R[:, 1, 0] - R[:, 0, 1]], axis=1)
    sine, trace = np.linalg.norm(axes, axis=1) / 2, np.trace(R, axis1=1, axis2=2)
    degrees: Array = np.degrees(np.arctan2(sine, (trace - 1) / 2))
    return degrees
