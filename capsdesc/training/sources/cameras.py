"""Cameras of any source as COLMAP's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from capsdesc.io.colmap import import_pycolmap
from capsdesc.types import Array, PosedImage

# In pixels; what is larger is no image's.
LARGEST_EDGE = 2**20


def last_pixel(posed: PosedImage) -> tuple[int, int]:
    """The x and y of the last pixel's centre."""
    return posed.camera.width - 1, posed.camera.height - 1


def posed_image(path: Path, camera: Any, R: Array, t: Array) -> PosedImage:
    """A photograph without scene points."""
    return PosedImage(path, camera, R, t, np.empty((0, 3)), np.empty(0, dtype=np.int64))


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
