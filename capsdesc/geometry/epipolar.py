"""The algebra of two views: essential and fundamental matrices, and the distances of matches from them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from capsdesc.checks import as_intrinsics, real_array
from capsdesc.geometry.points import homogeneous, matched_points
from capsdesc.types import Float64Array, Matrix, Points


def relative_pose(R0: Matrix, t0: Matrix, R1: Matrix, t1: Matrix) -> tuple[Float64Array, Float64Array]:
    """Compose two world-to-camera poses, x = R X + t, into the one that takes camera 0 to camera 1.

    Args:
        R0: (3, 3) rotation of camera 0.
        t0: (3,) translation of camera 0.
        R1: (3, 3) rotation of camera 1.
        t1: (3,) translation of camera 1.

    Returns:
        R (3, 3) and t (3,), t in the scale of the world.

    Raises:
        ValueError: an argument has the wrong shape or is not finite.
    """
    R = real_array(R1, "R1", (3, 3)) @ real_array(R0, "R0", (3, 3)).T
    return R, real_array(t1, "t1", (3,)) - R @ real_array(t0, "t0", (3,))


def essential_from_pose(R: Matrix, t: Matrix) -> Float64Array:
    """Essential matrix E = [t]x R of a relative pose (Hartley & Zisserman, section 9.6).

    Args:
        R: (3, 3) rotation.
        t: (3,) translation, of any length.

    Returns:
        (3, 3) E, in the scale of t.

    Raises:
        ValueError: an argument has the wrong shape or is not finite.
    """
    t = real_array(t, "t", (3,))
    return essential(real_array(R, "R", (3, 3)), t)


def essential(R: Float64Array, t: Float64Array) -> Float64Array:
    """:func:`essential_from_pose` of a pose that is checked."""
    x, y, z = t
    return np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]]) @ R


def fundamental_from_pose(R: Matrix, t: Matrix, K0: Matrix, K1: Matrix) -> Float64Array:
    """Fundamental matrix F = K1^-T [t]x R K0^-1 of a relative pose (Hartley & Zisserman, section 9.6).

    Args:
        R: (3, 3) rotation.
        t: (3,) translation, of any length but zero.
        K0: (3, 3) intrinsics of camera 0.
        K1: (3, 3) intrinsics of camera 1.

    Returns:
        (3, 3) F of unit norm.

    Raises:
        ValueError: an argument has the wrong shape or is not finite, or t is zero.
    """
    E = essential_from_pose(R, t)
    if not E.any():
        raise ValueError("t is zero; expected a translation: two views from one place have no epipolar geometry")
    F = np.linalg.inv(as_intrinsics(K1, "K1")).T @ E @ np.linalg.inv(as_intrinsics(K0, "K0"))
    return np.asarray(F / np.linalg.norm(F))


def epipolar_distance(kpts0: Points, kpts1: Points, F: Matrix) -> Float64Array:
    """Distance of each point of image 1 to the epipolar line F x0 of its match.

    Args:
        kpts0: (M, 2) points in image 0.
        kpts1: (M, 2) points in image 1 matched to them.
        F: (3, 3) fundamental matrix.

    Returns:
        (M,) distances in pixels of image 1; 0 where x0 is the epipole, which constrains nothing.

    Raises:
        ValueError: an argument has the wrong shape or is not finite.
    """
    points0, points1 = matched_points(kpts0, kpts1)
    algebraic, _, norms1 = _epipolar_terms(points0, points1, real_array(F, "F", (3, 3)))
    return _divide(np.abs(algebraic), norms1)


def sampson_distance(kpts0: Points, kpts1: Points, F: Matrix) -> Float64Array:
    """How far, to first order, a match has to move in both images together to satisfy x1^T F x0 = 0.

    The root of the Sampson error (Hartley & Zisserman, eq. 11.9); the threshold of `estimate_pose` and
    `estimate_fundamental` is on this distance.

    Args:
        kpts0: (M, 2) points in image 0.
        kpts1: (M, 2) points in image 1 matched to them.
        F: (3, 3) fundamental matrix.

    Returns:
        (M,) distances in pixels.

    Raises:
        ValueError: an argument has the wrong shape or is not finite.
    """
    points0, points1 = matched_points(kpts0, kpts1)
    return sampson(points0, points1, real_array(F, "F", (3, 3)))


def in_front(R: Float64Array, t: Float64Array, rays0: Float64Array, rays1: Float64Array) -> npt.NDArray[np.bool_]:
    """Whether the rays meet in front of both cameras: the signs of their depths where they come closest."""
    turned = rays0 @ R.T
    cosine, squared0, squared1 = (turned * rays1).sum(1), (turned**2).sum(1), (rays1**2).sum(1)
    depth0 = cosine * (rays1 @ t) - squared1 * (turned @ t)
    depth1 = squared0 * (rays1 @ t) - cosine * (turned @ t)
    return np.asarray((depth0 > 0) & (depth1 > 0))


def parallel(R: Float64Array, rays0: Float64Array, rays1: Float64Array, angle: float) -> npt.NDArray[np.bool_]:
    """Whether the rays point the same way to within `angle` radians."""
    turned = rays0 @ R.T
    between = np.arctan2(np.linalg.norm(np.cross(turned, rays1), axis=1), (turned * rays1).sum(1))
    return np.asarray(between <= angle)


def _epipolar_terms(
    points0: Float64Array, points1: Float64Array, F: Float64Array
) -> tuple[Float64Array, Float64Array, Float64Array]:
    """x1^T F x0, and the norms of the normals of the epipolar lines in image 0 and in image 1."""
    x0, x1 = homogeneous(points0), homogeneous(points1)
    lines0, lines1 = x1 @ F, x0 @ F.T
    return (x1 * lines1).sum(1), np.linalg.norm(lines0[:, :2], axis=1), np.linalg.norm(lines1[:, :2], axis=1)


def sampson(points0: Float64Array, points1: Float64Array, F: Float64Array) -> Float64Array:
    """:func:`sampson_distance` of points that are checked."""
    algebraic, norms0, norms1 = _epipolar_terms(points0, points1, F)
    return _divide(np.abs(algebraic), np.hypot(norms0, norms1))


def _divide(numerator: Float64Array, denominator: Float64Array) -> Float64Array:
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator > 0)
