"""Scenes of which only cameras and poses are known: stand-ins take the place of scene points."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence

import numpy as np

from capsdesc.geometry import rotation_error
from capsdesc.training.dataset import DataConfig, Scene, covisible_pairs
from capsdesc.training.sources.cameras import last_pixel
from capsdesc.training.sources.depth import DepthRange, measure_depth
from capsdesc.types import Array, PosedImage

logger = logging.getLogger(__name__)

# Stand-in points per photograph; fewer where so many photographs would bring more than the total.
STAND_INS = 64
STAND_INS_IN_TOTAL = 8192
FEWEST_STAND_INS = 8


def pose_scene(
    name: str,
    photographs: Sequence[PosedImage],
    config: DataConfig,
    depth: DepthRange | None = None,
    pairs: Array | None = None,
) -> Scene:
    """A scene of photographs of which only cameras and poses are known.

    Args:
        name: what it is called in messages.
        photographs: the photographs; their points are replaced by stand-ins.
        config: which pairs may be drawn.
        depth: nearest and farthest depth of the scene, in the unit of the poses; None measures it.
        pairs: (P, 2) indices of photographs that are known to overlap. Of these only such with too large a rotation or
            frustums that do not meet are left out. Without any, all pairs are tried as those of a reconstruction are.

    Raises:
        ValueError: the depth cannot be measured.
    """
    if depth is None:
        depth = measure_depth(photographs, pairs)
        logger.info("%s: measured depths of %.3g to %.3g", name, *depth)
    photographs = add_stand_ins(photographs, depth, pairs)
    if pairs is None:
        return Scene(name, photographs, covisible_pairs(photographs, config))
    kept = [
        (i, j)
        for i, j in pairs
        if rotation_error(photographs[i].R, photographs[j].R) <= config.max_rotation
        and np.isin(photographs[i].point_ids, photographs[j].point_ids).any()
    ]
    return Scene(name, photographs, np.asarray(kept, dtype=np.int64).reshape(-1, 2))


def add_stand_ins(
    photographs: Sequence[PosedImage], depth: DepthRange, pairs: Array | None = None, seed: int = 0
) -> list[PosedImage]:
    """Photographs with stand-ins as their scene points.

    Args:
        photographs: the photographs.
        depth: nearest and farthest depth of the points from the camera they were drawn for; they are uniform in pixels
            and in log depth.
        pairs: (P, 2) indices; a photograph then sees points of its own and of its partners only.
        seed: of the points.
    """
    near, far = depth
    count = len(photographs)
    each = (
        STAND_INS
        if pairs is not None
        else int(np.clip(STAND_INS_IN_TOTAL / max(1, count), FEWEST_STAND_INS, STAND_INS))
    )
    rng = np.random.default_rng(seed)
    points = np.empty((count, each, 3))
    for own, posed in zip(points, photographs, strict=True):
        rays = posed.pixels_to_rays(rng.uniform((0, 0), last_pixel(posed), (each, 2)))
        camera = np.c_[rays, np.ones(each)] * np.exp(rng.uniform(np.log(near), np.log(far), (each, 1)))
        own[:] = (camera - posed.t) @ posed.R
    partners: list[Array] = [np.arange(count)] * count
    if pairs is not None:
        known = [{k} for k in range(count)]
        for i, j in pairs.tolist():
            known[i].add(j)
            known[j].add(i)
        partners = [np.array(sorted(indices)) for indices in known]
    completed = []
    for posed, indices in zip(photographs, partners, strict=True):
        candidates = points[indices].reshape(-1, 3)
        ids = (indices[:, None] * each + np.arange(each)).ravel()
        seen = _in_frustum(posed, candidates, depth)
        completed.append(dataclasses.replace(posed, points=candidates[seen], point_ids=ids[seen]))
    return completed


def _in_frustum(posed: PosedImage, points: Array, depth: DepthRange) -> Array:
    """Indices of the world points that lie in the photograph's view between the two depths."""
    camera = points @ posed.R.T + posed.t
    seen = np.flatnonzero((camera[:, 2] >= depth[0]) & (camera[:, 2] <= depth[1]))
    rays = camera[seen, :2] / camera[seen, 2:]
    pixels = posed.rays_to_pixels(rays)
    shown = ((pixels >= 0) & (pixels <= last_pixel(posed))).all(1)
    seen, rays, pixels = seen[shown], rays[shown], pixels[shown]
    # Far outside the view a distortion polynomial folds back into it; such rays do not survive the way back.
    back = posed.pixels_to_rays(pixels)
    return np.asarray(seen[(np.abs(back - rays) < 1e-3).all(1)])
