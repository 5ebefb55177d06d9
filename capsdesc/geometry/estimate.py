"""The robust estimators: the models that a back-end finds, judged, the best of them with its inliers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from capsdesc.checks import as_intrinsics
from capsdesc.geometry import opencv, poselib
from capsdesc.geometry.epipolar import essential, in_front, parallel, sampson
from capsdesc.geometry.points import homogeneous, matched_points, project
from capsdesc.geometry.ransac import Backend, RansacOptions
from capsdesc.isolation import isolated
from capsdesc.types import Float64Array, Fundamental, Homography, Matrix, Points, RelativePose


@isolated(threads=False)
def estimate_pose(
    kpts0: Points,
    kpts1: Points,
    K0: Matrix,
    K1: Matrix,
    *,
    threshold: float = 1.0,
    confidence: float = 0.99999,
    max_iterations: int = 10000,
    backend: Backend = "opencv",
    seed: int = 0,
) -> RelativePose | None:
    """Estimate the relative pose of two calibrated cameras from matched points.

    The five-point algorithm in a RANSAC: `"opencv"` is USAC with MAGSAC++ scoring (Barath et al., CVPR 2020), the best
    of a few restarts and of the poses of a dominant plane, refined by minimising the Sampson distance under a Cauchy
    loss as wide as the inliers' median; `"poselib"` is LO-RANSAC with its own refinement, twice as fast. A match is an
    inlier if its Sampson distance is within `threshold` and the point it triangulates to lies in front of both cameras.
    A point so far away that its two rays are parallel to within `threshold` has no depth to judge and passes.

    Under pure rotation, R is right and t is arbitrary. If all matches lie on one plane there may be a second pose that
    explains them as well (Longuet-Higgins, Proc. R. Soc. B 1986), and either may come back. The result is the same on
    every run for the same `seed`.

    Args:
        kpts0: (M, 2) points in image 0, in pixels.
        kpts1: (M, 2) points in image 1 matched to them.
        K0: (3, 3) intrinsics of camera 0, such as cameras have; see :func:`capsdesc.geometry.as_intrinsics`.
        K1: (3, 3) intrinsics of camera 1.
        threshold: largest Sampson distance of an inlier, in pixels of the cameras' own images; at most their focal
            lengths.
        confidence: probability with which the search should have met an all-inlier sample before it stops early.
        max_iterations: most samples drawn in the search, all restarts together; less than 2^31.
        backend: `"opencv"` or `"poselib"` (needs the `poselib` extra).
        seed: of the random sampling, at least 0 and less than 2^63.

    Returns:
        The pose, or `None` when there is none to be found: fewer than 5 distinct inliers, or inliers on one line.

    Raises:
        ValueError: an argument has the wrong shape, a value that is not finite or one out of range.
        ImportError: `backend="poselib"` without PoseLib.
    """
    points0, points1 = matched_points(kpts0, kpts1)
    K0, K1 = as_intrinsics(K0, "K0"), as_intrinsics(K1, "K1")
    options = RansacOptions(threshold, confidence, max_iterations, seed)
    _check_backend(backend)
    _check_threshold(threshold, K0, K1)
    if len(points0) < 5:
        return None
    K0_inverse, K1_inverse = np.linalg.inv(K0), np.linalg.inv(K1)
    rays0, rays1 = homogeneous(points0) @ K0_inverse.T, homogeneous(points1) @ K1_inverse.T
    # The angle, to first order, between rays that are off by `threshold` pixels in both images.
    angle = threshold * float(np.hypot(1 / _focal(K0), 1 / _focal(K1)))

    def distance(R: Float64Array, t: Float64Array) -> Float64Array:
        return sampson(points0, points1, K1_inverse.T @ essential(R, t) @ K0_inverse)

    def possible(R: Float64Array, t: Float64Array) -> npt.NDArray[np.bool_]:
        return np.asarray(in_front(R, t, rays0, rays1) | parallel(R, rays0, rays1, angle))

    def cost(pose: tuple[Float64Array, Float64Array]) -> float:
        return _truncated_cost(np.where(possible(*pose), distance(*pose), np.inf), threshold)

    if backend == "opencv":
        poses = opencv.find_poses(points0, points1, K0, K1, angle, options)
        # The matches of a plane fit two essential matrices, and a search for either may miss the one that is possible.
        plane = _best_homography(points0, points1, options, backend)
        if plane is not None:
            poses += opencv.decompose_homography(K1_inverse @ plane.H @ K0)
    else:
        poses = poselib.find_poses(rays0, rays1, angle, options)
    if not poses:
        return None
    R, t = min(poses, key=cost)
    if backend == "opencv":
        R, t = opencv.refine_pose(R, t, distance, threshold)
    inliers = (distance(R, t) <= threshold) & possible(R, t)
    if _is_degenerate(points0[inliers], points1[inliers], 5, threshold):
        return None
    return RelativePose(R, t, inliers, essential(R, t))


@isolated(threads=False)
def estimate_homography(
    kpts0: Points,
    kpts1: Points,
    *,
    threshold: float = 3.0,
    confidence: float = 0.99999,
    max_iterations: int = 10000,
    backend: Backend = "opencv",
    seed: int = 0,
) -> Homography | None:
    """Estimate the homography between two views of a plane, or of one camera centre.

    Args:
        kpts0: (M, 2) points in image 0, in pixels.
        kpts1: (M, 2) points in image 1 matched to them.
        threshold: largest transfer error |x1 - H x0| of an inlier, in pixels of image 1.
        confidence: as in `estimate_pose`.
        max_iterations: as in `estimate_pose`.
        backend: as in `estimate_pose`.
        seed: as in `estimate_pose`.

    Returns:
        The homography, or `None` when there is none to be found: fewer than 4 distinct inliers, or inliers on one line.

    Raises:
        ValueError: an argument has the wrong shape, a value that is not finite or one out of range.
        ImportError: `backend="poselib"` without PoseLib.
    """
    points0, points1 = matched_points(kpts0, kpts1)
    options = RansacOptions(threshold, confidence, max_iterations, seed)
    _check_backend(backend)
    return _best_homography(points0, points1, options, backend)


def _best_homography(
    points0: Float64Array, points1: Float64Array, options: RansacOptions, backend: Backend
) -> Homography | None:
    """:func:`estimate_homography` of points that are checked."""
    if len(points0) < 4:
        return None

    models = (opencv if backend == "opencv" else poselib).find_homographies(points0, points1, options)
    best = _best(models, lambda H: _transfer(H, points0, points1), points0, points1, 4, options.threshold)
    if best is None:
        return None
    H, inliers = best[0] / np.linalg.norm(best[0]), best[1]
    return Homography(H / H[2, 2] if abs(H[2, 2]) > np.finfo(np.float64).eps else H, inliers)


@isolated(threads=False)
def estimate_affine(
    kpts0: Points,
    kpts1: Points,
    *,
    similarity: bool = False,
    threshold: float = 3.0,
    confidence: float = 0.99999,
    max_iterations: int = 10000,
    seed: int = 0,
) -> Homography | None:
    """Estimate the affine map between two views of something flat and far away, or seen straight from above.

    Args:
        kpts0: (M, 2) points in image 0, in pixels.
        kpts1: (M, 2) points in image 1 matched to them.
        similarity: whether it may only turn, scale by one factor and shift.
        threshold: largest transfer error |x1 - H x0| of an inlier, in pixels of image 1.
        confidence: as in `estimate_pose`.
        max_iterations: as in `estimate_pose`.
        seed: as in `estimate_pose`.

    Returns:
        The map as a homography whose last row is (0, 0, 1), or `None` when there is none to be found: fewer than 3
        distinct inliers, of a similarity 2, or inliers on one line, of a similarity in one point.

    Raises:
        ValueError: an argument has the wrong shape, a value that is not finite or one out of range.
    """
    points0, points1 = matched_points(kpts0, kpts1)
    options = RansacOptions(threshold, confidence, max_iterations, seed)
    minimum = 2 if similarity else 3
    if len(points0) < minimum:
        return None
    models = opencv.find_affines(points0, points1, options, similarity=similarity)
    # A map onto a line or a point, to which points that coincide lead, is none.
    models = [model for model in models if abs(np.linalg.det(model)) > np.finfo(np.float64).eps]
    best = _best(models, lambda H: _transfer(H, points0, points1), points0, points1, minimum, threshold)
    return None if best is None else Homography(*best)


@isolated(threads=False)
def estimate_fundamental(
    kpts0: Points,
    kpts1: Points,
    *,
    threshold: float = 1.0,
    confidence: float = 0.99999,
    max_iterations: int = 10000,
    backend: Backend = "opencv",
    seed: int = 0,
) -> Fundamental | None:
    """Estimate the fundamental matrix of two views with unknown intrinsics.

    A scene that is a single plane does not determine F: what comes back then is one of many that fit. Use
    `estimate_pose` where the intrinsics are known.

    Args:
        kpts0: (M, 2) points in image 0, in pixels.
        kpts1: (M, 2) points in image 1 matched to them.
        threshold: largest Sampson distance of an inlier, in pixels.
        confidence: as in `estimate_pose`.
        max_iterations: as in `estimate_pose`.
        backend: as in `estimate_pose`.
        seed: as in `estimate_pose`.

    Returns:
        The fundamental matrix, or `None` when there is none to be found: fewer than 7 distinct inliers, or inliers on
        one line.

    Raises:
        ValueError: an argument has the wrong shape, a value that is not finite or one out of range.
        ImportError: `backend="poselib"` without PoseLib.
    """
    points0, points1 = matched_points(kpts0, kpts1)
    options = RansacOptions(threshold, confidence, max_iterations, seed)
    _check_backend(backend)
    if len(points0) < 7:
        return None

    def distance(F: Float64Array) -> Float64Array:
        return sampson(points0, points1, F)

    models = (opencv if backend == "opencv" else poselib).find_fundamentals(points0, points1, options)
    best = _best(models, distance, points0, points1, 7, threshold)
    return None if best is None else Fundamental(best[0] / np.linalg.norm(best[0]), best[1])


def _transfer(H: Float64Array, points0: Float64Array, points1: Float64Array) -> Float64Array:
    """(M,) transfer errors |x1 - H x0|."""
    return np.asarray(np.linalg.norm(points1 - project(H, points0), axis=1))


def _best(
    models: Sequence[Float64Array],
    distance: Callable[[Float64Array], Float64Array],
    points0: Float64Array,
    points1: Float64Array,
    minimum: int,
    threshold: float,
) -> tuple[Float64Array, npt.NDArray[np.bool_]] | None:
    """The matrix that fits the matches best, and its inliers; none where these are fewer than ``minimum`` or a line."""
    if not models:
        return None
    best = min(models, key=lambda model: _truncated_cost(distance(model), threshold))
    inliers = distance(best) <= threshold
    return None if _is_degenerate(points0[inliers], points1[inliers], minimum, threshold) else (best, inliers)


def _check_backend(backend: str) -> None:
    if backend == "poselib":
        poselib.import_poselib()
    elif backend != "opencv":
        raise ValueError(f"backend is {backend!r}; expected 'opencv' or 'poselib'")


def _check_threshold(threshold: float, K0: Float64Array, K1: Float64Array) -> None:
    """Refuse a threshold under which matches agree whatever the pose, as of points in other units than the cameras."""
    for name, K in (("K0", K0), ("K1", K1)):
        if threshold > _focal(K):
            raise ValueError(
                f"threshold is {threshold:g}, more than the focal length {_focal(K):g} of {name}, so that rays would "
                "agree that are 45 degrees apart; expected points, threshold and intrinsics all in pixels, or all in "
                "one other unit"
            )


def _truncated_cost(distances: Float64Array, threshold: float) -> float:
    """Squared distances, an outlier costing as much as the last inlier (MSAC: Torr & Zisserman, CVIU 2000)."""
    return float((np.fmin(distances, threshold) ** 2).sum())


def _is_degenerate(points0: Float64Array, points1: Float64Array, minimum: int, threshold: float) -> bool:
    """Whether inliers are too few distinct ones, or so close to a line (of two: a point) in an image that they fix no
    model.
    """
    if len(np.unique(np.hstack([points0, points1]), axis=0)) < minimum:
        return True
    # Two points fix a similarity, and all others need points beside the line through them.
    across = 0 if minimum == 2 else 1
    deviations = (np.linalg.svd(points - points.mean(0), compute_uv=False)[across] for points in (points0, points1))
    return any(deviation <= threshold * np.sqrt(len(points0)) for deviation in deviations)


def _focal(K: Float64Array) -> float:
    return float(np.sqrt(K[0, 0] * K[1, 1]))
