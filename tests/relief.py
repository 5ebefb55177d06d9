"""A relief, z = 0.4 sin(2 x) cos(1.7 y), painted with blobs, and its photographs from known cameras."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from scipy.spatial.transform import Rotation

Array = npt.NDArray[Any]


def blobs() -> Array:
    """Coloured blobs of all sizes, (900, 900, 3)."""
    rng = np.random.default_rng(0)
    grids = [rng.normal(size=(cells, cells, 3)).astype(np.float32) for cells in (12, 40, 120)]
    layers = [cv2.resize(grid, (900, 900), interpolation=cv2.INTER_CUBIC) for grid in grids]
    return np.asarray(np.clip(128 + 40 * np.sum(layers, axis=0), 0, 255).astype(np.uint8))


TEXTURE = blobs()


def orbit(count: int, spread: float = 28) -> list[tuple[Array, Array]]:
    """World-to-camera poses of cameras on an arc of twice ``spread`` degrees that look at the origin."""
    rng = np.random.default_rng(5)
    poses = []
    for azimuth in np.linspace(-spread, spread, count):
        turn = [rng.uniform(-4, 4), rng.uniform(-10, 10), azimuth]
        R = Rotation.from_euler("zxy", turn, degrees=True).as_matrix()
        poses.append((R, np.array([0, 0, rng.uniform(3.6, 4.4)])))
    return poses


def pixel_grid(width: int, height: int) -> Array:
    """(height, width, 2) x and y of each pixel."""
    return np.stack(np.meshgrid(np.arange(width, dtype=float), np.arange(height, dtype=float)), axis=-1)


def photograph(R: Array, t: Array, rays: Array) -> tuple[Array, Array]:
    """What a camera sees of the relief where each pixel looks along (h, w, 2) x/z, y/z.

    Returns:
        (h, w, 3) uint8 and the (h, w) depths.
    """
    center, directions = -R.T @ t, np.dstack([rays, np.ones(rays.shape[:2])]) @ R
    depths = -center[2] / directions[..., 2]
    for _ in range(25):
        x, y, _ = np.moveaxis(center + directions * depths[..., None], -1, 0)
        depths = (0.4 * np.sin(2 * x) * np.cos(1.7 * y) - center[2]) / directions[..., 2]
    places = ((center + directions * depths[..., None])[..., :2] + 4) * 112
    u, v = np.moveaxis(places.astype(np.float32), -1, 0)
    return np.asarray(cv2.remap(TEXTURE, u, v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)), depths
