"""Points in any form as float64, and homogeneous coordinates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from capsdesc.checks import real_array
from capsdesc.types import Float64Array, Matrix, Points


def project_homography(H: Matrix, points: Points) -> Float64Array:
    """Map points through a homography.

    Args:
        H: (3, 3) homography.
        points: (N, 2) points in image 0.

    Returns:
        (N, 2) points in image 1; infinite or NaN where a point maps to infinity.

    Raises:
        ValueError: an argument has the wrong shape or is not finite.
    """
    return project(real_array(H, "H", (3, 3)), real_points(points, "points"))


def project(H: Float64Array, points: Float64Array) -> Float64Array:
    """:func:`project_homography` of points that are checked."""
    projected = homogeneous(points) @ H.T
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(projected[:, :2] / projected[:, 2:])


def homogeneous(points: Float64Array) -> Float64Array:
    """(N, 2) to (N, 3)."""
    return np.hstack([points, np.ones((len(points), 1))])


def matched_points(kpts0: Points, kpts1: Points) -> tuple[Float64Array, Float64Array]:
    """Points in any form as float64, refused unless they are as many in both images."""
    points0, points1 = real_points(kpts0, "kpts0"), real_points(kpts1, "kpts1")
    if len(points0) != len(points1):
        raise ValueError(
            f"kpts0 has {len(points0)} points and kpts1 has {len(points1)}; expected matched points: "
            "index the keypoints with the columns of Matches.indices"
        )
    return points0, points1


def real_points(points: Points, name: str) -> Float64Array:
    """(N, 2) points in any form as float64."""
    values: Any = getattr(points, "points", points)
    if isinstance(values, Sequence) and all(isinstance(value, cv2.KeyPoint) for value in values):
        values = np.array([keypoint.pt for keypoint in values]).reshape(-1, 2)
    elif getattr(values, "shape", None) == (0,):
        values = values.reshape(0, 2)
    return real_array(values, name, (None, 2))
