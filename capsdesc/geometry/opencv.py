"""Robust estimation by OpenCV: USAC with MAGSAC++ scoring (Barath et al., CVPR 2020)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np

from capsdesc.geometry.ransac import RansacOptions, valid_models, valid_poses
from capsdesc.types import Float64Array

# Short runs from different samples, of which the best is kept: a single USAC run stops as soon as its inlier count
# suggests that it is done, often in a local optimum when the baseline is short.
_RESTARTS = 4


def find_poses(
    points0: Float64Array,
    points1: Float64Array,
    K0: Float64Array,
    K1: Float64Array,
    angle: float,
    options: RansacOptions,
) -> list[tuple[Float64Array, Float64Array]]:
    """Rotations and translations of the essential matrices that fit best.

    Args:
        points0: (M, 2) pixels of image 0.
        points1: (M, 2) pixels of image 1.
        K0: (3, 3) intrinsics of camera 0.
        K1: (3, 3) intrinsics of camera 1.
        angle: between rays that are off by the threshold in both images, to first order, in radians.
        options: of the search.
    """
    # OpenCV compares the root of the summed squares of both epipolar distances, in units of the focal length,
    # with its threshold divided by the mean of the four focal lengths.
    mean_focal = (K0[0, 0] + K0[1, 1] + K1[0, 0] + K1[1, 1]) / 4
    essentials = _usac(
        lambda params: cv2.findEssentialMat(points0, points1, K0, K1, None, None, params)[0],
        options,
        np.sqrt(2) * angle * mean_focal,
    )
    return [pose for E in essentials for pose in _decompose_essential(E)]


def find_homographies(points0: Float64Array, points1: Float64Array, options: RansacOptions) -> list[Float64Array]:
    """(3, 3) homographies that fit best."""
    return _usac(lambda params: cv2.findHomography(points0, points1, params)[0], options, options.threshold)


def find_affines(
    points0: Float64Array, points1: Float64Array, options: RansacOptions, *, similarity: bool
) -> list[Float64Array]:
    """(3, 3) affine maps that fit best, or similarities."""
    estimate = cv2.estimateAffinePartial2D if similarity else cv2.estimateAffine2D
    models = []
    rng = np.random.default_rng(options.seed)
    for _ in range(_RESTARTS):
        # OpenCV draws the same places of a list every time, so that another order makes other samples.
        order = rng.permutation(len(points0))
        found, _ = estimate(
            points0[order],
            points1[order],
            method=cv2.RANSAC,
            ransacReprojThreshold=options.threshold,
            maxIters=-(-options.max_iterations // _RESTARTS),
            confidence=options.confidence,
            refineIters=10,
        )
        models.append(None if found is None else np.vstack([found, [0, 0, 1]]))
    return valid_models(models)


def find_fundamentals(points0: Float64Array, points1: Float64Array, options: RansacOptions) -> list[Float64Array]:
    """(3, 3) fundamental matrices that fit best."""
    return _usac(lambda params: cv2.findFundamentalMat(points0, points1, params)[0], options, options.threshold)


def _usac(find: Callable[[cv2.UsacParams], Any], options: RansacOptions, threshold: float) -> list[Float64Array]:
    """The models that a few runs of OpenCV's MAGSAC++ from different samples end in."""
    models = []
    for state in np.random.default_rng(options.seed).integers(2**30, size=_RESTARTS):
        params = cv2.UsacParams()
        params.randomGeneratorState = int(state)
        params.threshold = threshold
        params.confidence = options.confidence
        params.maxIterations = -(-options.max_iterations // _RESTARTS)
        # What the flag cv2.USAC_MAGSAC stands for, which itself cannot be seeded.
        params.score = cv2.SCORE_METHOD_MAGSAC
        params.loMethod = cv2.LOCAL_OPTIM_SIGMA
        params.loSampleSize = 50
        params.loIterations = 10
        # Where points coincide OpenCV may fail an assertion, having found no model in them.
        with contextlib.suppress(cv2.error):
            models.append(find(params))
    return valid_models(models)


def _decompose_essential(E: Float64Array) -> list[tuple[Float64Array, Float64Array]]:
    Ra, Rb, t = cv2.decomposeEssentialMat(E)
    return valid_poses((R, sign * t) for R in (Ra, Rb) for sign in (1, -1))


def decompose_homography(H: Float64Array) -> list[tuple[Float64Array, Float64Array]]:
    """The poses that move the points of a plane by a homography between rays."""
    _, rotations, translations, _ = cv2.decomposeHomographyMat(H, np.eye(3))
    return valid_poses(zip(rotations, translations, strict=True))


def refine_pose(
    R: Float64Array, t: Float64Array, distance: Callable[[Float64Array, Float64Array], Float64Array], threshold: float
) -> tuple[Float64Array, Float64Array]:
    """Minimise the robust Sampson distance over the five degrees of freedom of a pose."""
    # Here and not above: it takes a while to load, and whoever estimates no pose has no need of it.
    from scipy.optimize import least_squares
    from scipy.spatial.transform import Rotation

    before = distance(R, t)
    inliers = before[before <= threshold]
    if len(inliers) == 0:
        return R, t
    near = before <= 3 * threshold
    # Where keypoints are localised well, most inliers are much nearer than the threshold, and those near it say little.
    scale = max(float(np.median(inliers)), threshold / 100)
    tangent = np.linalg.svd(t[None])[2][1:]

    def pose(step: Float64Array) -> tuple[Float64Array, Float64Array]:
        moved = t + step[3:] @ tangent
        return Rotation.from_rotvec(step[:3]).as_matrix() @ R, moved / np.linalg.norm(moved)

    def residuals(step: Float64Array) -> Float64Array:
        return distance(*pose(step))[near]

    return pose(least_squares(residuals, np.zeros(5), loss="cauchy", f_scale=scale).x)
