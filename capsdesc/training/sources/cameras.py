"""Cameras of any source as COLMAP's."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from capsdesc.io.colmap import import_pycolmap
from capsdesc.types import Array, PosedImage

logger = logging.getLogger(__name__)

# In pixels; what is larger is no image's.
LARGEST_EDGE = 2**20
# How far from the middle principal points are not worth a word, as a share of the image's edge. Intrinsics of an image
# twice or half as large are .5 or .25 off.
CENTRED = 0.2


def last_pixel(posed: PosedImage) -> tuple[int, int]:
    """The x and y of the last pixel's centre."""
    return posed.camera.width - 1, posed.camera.height - 1


def posed_image(path: Path, camera: Any, R: Array, t: Array) -> PosedImage:
    """A photograph without scene points."""
    return PosedImage(path, camera, R, t, np.empty((0, 3)), np.empty(0, dtype=np.int64))


def warn_if_off_centre(photographs: Sequence[PosedImage], where: str) -> None:
    """Warn, once, of intrinsics that look like those of files of another size, where they do not say of which."""
    off = [
        posed
        for posed in photographs
        if max(
            abs(posed.camera.principal_point_x / posed.camera.width - 0.5),
            abs(posed.camera.principal_point_y / posed.camera.height - 0.5),
        )
        > CENTRED
    ]
    if off:
        camera = off[0].camera
        logger.warning(
            "%s: the principal points of %d of %d photographs are far from the middle, the first is (%g, %g) in %s "
            "of %d x %d pixels; are these the files that the intrinsics belong to?",
            where,
            len(off),
            len(photographs),
            camera.principal_point_x - 0.5,
            camera.principal_point_y - 0.5,
            off[0].path,
            camera.width,
            camera.height,
        )


def colmap_camera(model: str, size: tuple[int, int], params: Sequence[float]) -> Any:
    """A ``pycolmap.Camera``; its principal point is COLMAP's, half a pixel up from ours."""
    return import_pycolmap().Camera(model=model, width=size[0], height=size[1], params=list(params))


def pinhole_of(size: tuple[int, int], K: Array, where: str) -> Any:
    """A ``pycolmap.Camera`` of (3, 3) intrinsics; ``where`` is where they stand, for messages."""
    fx, fy, cx, cy = K[0, 0], K[1, 1], K[0, 2], K[1, 2]
    if not (np.allclose(K, [[fx, 0, cx], [0, fy, cy], [0, 0, 1]]) and fx > 0 and fy > 0):
        raise ValueError(f"{where}: K is {K.tolist()}; expected [fx 0 cx; 0 fy cy; 0 0 1] with positive focal lengths")
    return opencv_camera(size, [fx, fy, cx, cy], [])


def opencv_camera(size: tuple[int, int], intrinsics: Sequence[float], distortion: Sequence[float]) -> Any:
    """A ``pycolmap.Camera`` of OpenCV's fx, fy, cx, cy and k1, k2, p1, p2, k3."""
    fx, fy, cx, cy = intrinsics
    pinhole = [fx, fy, cx + 0.5, cy + 0.5]
    if not any(distortion):
        return colmap_camera("PINHOLE", size, pinhole)
    k1, k2, p1, p2, k3 = distortion
    return colmap_camera("FULL_OPENCV", size, [*pinhole, k1, k2, p1, p2, k3, 0, 0, 0])
