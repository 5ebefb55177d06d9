"""How deep a scene is, measured by SIFT matches that agree with its poses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from capsdesc.geometry import essential_from_pose, relative_pose, rotation_error, sampson_distance
from capsdesc.images import read_image, shrink, to_gray
from capsdesc.keypoints.sift import sift_features
from capsdesc.matching import match
from capsdesc.types import Array, PosedImage

DepthRange = tuple[float, float]
SiftFeatures = tuple[Array, Array, float]
# Depth is measured on so many listed pairs, or around so many photographs with their neighbours of these ranks by
# distance: frames of a video are far too close to their next ones.
MEASURED_PAIRS = 32
MEASURED_PHOTOGRAPHS = 8
NEIGHBOUR_RANKS = (1, 2, 4, 8, 16)
# SIFT hardly matches beyond this rotation in degrees.
LARGEST_MEASURED_ROTATION = 40.0
MEASURED_SIZE = 800
MEASURED_POINTS = 2000
# A match counts within this many pixels of the reduced photograph, and at this angle between its rays in degrees.
EPIPOLAR_TOLERANCE = 1.5
SMALLEST_ANGLE = 2.0
FEWEST_MEASURED = 50
# The share of measured depths left out at either end.
OUTLYING_PERCENT = 2.0


def measure_depth(photographs: Sequence[PosedImage], pairs: Array | None = None) -> DepthRange:
    """The depths of a scene, from SIFT matches of a few pairs, triangulated with the known poses.

    Args:
        photographs: the photographs.
        pairs: (P, 2) indices of photographs that overlap; without any, neighbours are tried.

    Returns:
        Nearest and farthest depth in the unit of the poses, without the outermost 2 % at either end.

    Raises:
        ValueError: too few matches agree with the poses.
    """
    tried = _neighbours(photographs) if pairs is None else pairs
    tried = [(i, j) for i, j in tried if rotation_error(photographs[i].R, photographs[j].R) < LARGEST_MEASURED_ROTATION]
    if pairs is not None and len(tried) > MEASURED_PAIRS:
        tried = [tried[k] for k in np.linspace(0, len(tried) - 1, MEASURED_PAIRS).astype(int)]
    features = {k: _sift(photographs[k].path) for k in {int(k) for pair in tried for k in pair}}
    depths = np.concatenate(
        [np.empty(0)]
        + [_triangulated_depths(photographs[i], photographs[j], features[i], features[j]) for i, j in tried]
    )
    if len(depths) < FEWEST_MEASURED:
        raise ValueError(
            f"the scene's depth cannot be measured: {len(depths) // 2} SIFT matches of {len(tried)} pairs agree with "
            "the poses; check poses and intrinsics, or say 'depth: [near, far]' in the unit of the poses"
        )
    near, far = np.percentile(depths, [OUTLYING_PERCENT, 100 - OUTLYING_PERCENT])
    return float(near), float(far)


def _neighbours(photographs: Sequence[PosedImage]) -> list[tuple[int, int]]:
    centers = np.array([-posed.R.T @ posed.t for posed in photographs]).reshape(-1, 3)
    around = np.unique(np.linspace(0, max(0, len(centers) - 1), MEASURED_PHOTOGRAPHS).astype(int))
    pairs = set()
    for i in around[: len(centers)].tolist():
        order = np.argsort(np.linalg.norm(centers - centers[i], axis=1), kind="stable")
        others = order[order != i]
        pairs |= {(i, int(others[rank - 1])) for rank in NEIGHBOUR_RANKS if rank <= len(others)}
    return sorted(pairs)


def _triangulated_depths(
    first: PosedImage, second: PosedImage, features0: SiftFeatures, features1: SiftFeatures
) -> Array:
    """Depths, in both cameras, of matches that agree with the poses."""
    R, t = relative_pose(first.R, first.t, second.R, second.t)
    (points0, descriptors0, scale), (points1, descriptors1, _) = features0, features1
    if not t.any() or min(len(points0), len(points1)) < 2:
        return np.empty(0)
    matches = match(descriptors0, descriptors1, ratio=0.8).indices
    rays0, rays1 = first.pixels_to_rays(points0[matches[:, 0]]), second.pixels_to_rays(points1[matches[:, 1]])
    known = np.isfinite(np.c_[rays0, rays1]).all(1)
    rays0, rays1 = rays0[known], rays1[known]
    if len(rays0) == 0:
        return np.empty(0)
    focal = first.camera.mean_focal_length() * scale
    homogeneous = cv2.triangulatePoints(np.eye(3, 4), np.c_[R, t], rays0.T, rays1.T)
    points = (homogeneous[:3] / np.where(homogeneous[3] == 0, 1e-12, homogeneous[3])).T
    depths = np.stack([points[:, 2], (points @ R.T + t)[:, 2]], axis=1)
    directions0, directions1 = (np.c_[rays, np.ones(len(rays))] for rays in (rays0, rays1))
    cosines = ((directions0 @ R.T) * directions1).sum(1) / (
        np.linalg.norm(directions0, axis=1) * np.linalg.norm(directions1, axis=1)
    )
    agree = sampson_distance(rays0, rays1, essential_from_pose(R, t)) * focal < EPIPOLAR_TOLERANCE
    return np.asarray(depths[agree & (depths > 0).all(1) & (cosines < np.cos(np.radians(SMALLEST_ANGLE)))].ravel())


def _sift(path: Path) -> SiftFeatures:
    """(N, 2) pixels of the photograph, (N, 128) descriptors, and by how much it was reduced."""
    gray = to_gray(read_image(path))
    smaller = shrink(gray, MEASURED_SIZE)
    points, descriptors = sift_features(smaller, MEASURED_POINTS)
    factors = np.array(smaller.shape[::-1]) / gray.shape[::-1]
    return (points + 0.5) / factors - 0.5, descriptors, float(max(factors))
