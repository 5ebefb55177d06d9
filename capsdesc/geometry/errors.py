"""How far poses and homographies are from each other."""

from __future__ import annotations

import numpy as np

from capsdesc.checks import real_array
from capsdesc.geometry.points import project_homography
from capsdesc.types import Matrix


def rotation_error(Ra: Matrix, Rb: Matrix) -> float:
    """Angle of the rotation between two rotations, in degrees from 0 to 180.

    Args:
        Ra: (3, 3) rotation.
        Rb: (3, 3) rotation.

    Raises:
        ValueError: an argument has the wrong shape or is not finite.
    """
    R = real_array(Ra, "Ra", (3, 3)).T @ real_array(Rb, "Rb", (3, 3))
    # The arc cosine of the trace alone loses half the digits near 0 and 180 degrees.
    sine = np.linalg.norm([R[2, 1] - R[1, 2], R[0, 2] - R[2, 0], R[1, 0] - R[0, 1]]) / 2
    return float(np.degrees(np.arctan2(sine, (np.trace(R) - 1) / 2)))


def translation_error(ta: Matrix, tb: Matrix, *, sign_matters: bool = False) -> float:
    """Angle between the directions of two translations, in degrees.

    Args:
        ta: (3,) translation, of any length but zero.
        tb: (3,) translation, of any length but zero.
        sign_matters: whether opposite directions are 180 degrees apart. By default they agree, since the essential
            matrix leaves the sign open, and the error is at most 90: the custom of the pose benchmarks since SuperGlue
            (Sarlin et al., CVPR 2020).

    Raises:
        ValueError: an argument has the wrong shape, is not finite or is zero.
    """
    a, b = real_array(ta, "ta", (3,)), real_array(tb, "tb", (3,))
    for name, t in (("ta", a), ("tb", b)):
        if not t.any():
            raise ValueError(f"{name} is zero; expected a translation with a direction")
    error = float(np.degrees(np.arctan2(np.linalg.norm(np.cross(a, b)), a @ b)))
    return error if sign_matters else min(error, 180 - error)


def homography_corner_error(Ha: Matrix, Hb: Matrix, width: int, height: int) -> float:
    """Mean distance between the corners of an image under two homographies (DeTone et al., CVPRW 2018).

    Args:
        Ha: (3, 3) homography.
        Hb: (3, 3) homography.
        width: of the image that is mapped, in pixels.
        height: of the image that is mapped, in pixels.

    Returns:
        Pixels in the image mapped to; infinite where either homography takes a corner to infinity.

    Raises:
        ValueError: a homography has the wrong shape or is not finite, or the image is empty.
    """
    if width < 1 or height < 1:
        raise ValueError(f"width x height is {width} x {height}; expected at least 1 x 1")
    corners = np.array([[0, 0], [width - 1, 0], [0, height - 1], [width - 1, height - 1]], dtype=np.float64)
    mapped = project_homography(Ha, corners), project_homography(Hb, corners)
    if not np.isfinite(mapped).all():
        return float("inf")
    return float(np.linalg.norm(mapped[0] - mapped[1], axis=1).mean())
