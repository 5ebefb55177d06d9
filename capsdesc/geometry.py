"""Matches to geometry: relative pose, homography, fundamental matrix, and the distances and errors that judge them.

Points are (N, 2) x, y in pixels, pixel (0, 0) being the centre of the top-left pixel. They may be numpy arrays, torch
tensors on any device, lists of `cv2.KeyPoint`, or objects with such `points`; results are numpy arrays in
float64. Image 0 comes first throughout: a pose takes camera 0 to camera 1, x1 ~ K1 (R X + t) for x0 ~ K0 X, a
homography is x1 ~ H x0, and x1^T F x0 = 0.

The robust estimators share one meaning of `threshold`: how many pixels a match may be off and still be an inlier. For
epipolar geometry that is the Sampson distance, measured in each camera's own pixels, so that cameras of different focal
lengths are weighted as they should be; for a homography it is the transfer error in image 1.
"""

import contextlib
import numbers
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import least_squares
from scipy.spatial.transform import Rotation

Array: TypeAlias = npt.NDArray[np.float64]
Backend: TypeAlias = Literal["opencv", "poselib"]


class HasPoints(Protocol):
    """Anything that carries (N, 2) points, such as the keypoints of an image."""

    @property
    def points(self) -> npt.NDArray[Any] | torch.Tensor:
        """(N, 2) x, y in pixels."""


Points: TypeAlias = npt.NDArray[Any] | torch.Tensor | Sequence[cv2.KeyPoint] | HasPoints
Matrix: TypeAlias = npt.NDArray[Any] | torch.Tensor

# How far a rotation read from a file may be off, by rounding.
ROTATION_TOLERANCE = 0.01

# Short runs from different samples, of which the best is kept: a single USAC run stops as soon as its inlier count
# suggests that it is done, often in a local optimum when the baseline is short.
_RESTARTS = 4
# No camera has larger ones, and float64 holds all that is computed from these.
_LARGEST_INTRINSIC = 1e9


@dataclass(frozen=True, eq=False)
class RelativePose:
    """The pose of camera 1 relative to camera 0: x0 ~ K0 X and x1 ~ K1 (R X + t).

    Attributes:
        R: (3, 3) rotation.
        t: (3,) translation of unit length; its scale cannot be known from two views.
        inliers: (M,) bool, the matches that agree with the pose and lie in front of both cameras.
        E: (3, 3) essential matrix [t]x R.
    """

    R: Array
    t: Array
    inliers: npt.NDArray[np.bool_]
    E: Array


@dataclass(frozen=True, eq=False)
class Homography:
    """A plane-to-plane map, x1 ~ H x0.

    Attributes:
        H: (3, 3) with H[2, 2] = 1, or of unit norm where H[2, 2] vanishes.
        inliers: (M,) bool.
    """

    H: Array
    inliers: npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Fundamental:
    """The epipolar geometry of two uncalibrated views, x1^T F x0 = 0.

    Attributes:
        F: (3, 3) of rank 2 and unit norm.
        inliers: (M,) bool.
    """

    F: Array
    inliers: npt.NDArray[np.bool_]


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
        K0: (3, 3) intrinsics of camera 0, upper triangular with positive focal lengths and K[2, 2] = 1.
        K1: (3, 3) intrinsics of camera 1.
        threshold: largest Sampson distance of an inlier, in pixels of the cameras' own images.
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
    points0, points1 = _matched(kpts0, kpts1)
    K0, K1 = as_intrinsics(K0, "K0"), as_intrinsics(K1, "K1")
    options = _RansacOptions(threshold, confidence, max_iterations, backend, seed)
    if len(points0) < 5:
        return None
    K0_inverse, K1_inverse = np.linalg.inv(K0), np.linalg.inv(K1)
    rays0, rays1 = _homogeneous(points0) @ K0_inverse.T, _homogeneous(points1) @ K1_inverse.T
    # The angle, to first order, between rays that are off by `threshold` pixels in both images.
    angle = threshold * float(np.hypot(1 / _focal(K0), 1 / _focal(K1)))

    def distance(R: Array, t: Array) -> Array:
        return _sampson(points0, points1, K1_inverse.T @ essential_from_pose(R, t) @ K0_inverse)

    def possible(R: Array, t: Array) -> npt.NDArray[np.bool_]:
        return np.asarray(_in_front(R, t, rays0, rays1) | _parallel(R, rays0, rays1, angle))

    def cost(pose: tuple[Array, Array]) -> float:
        return _truncated_cost(np.where(possible(*pose), distance(*pose), np.inf), threshold)

    if backend == "opencv":
        # OpenCV compares the root of the summed squares of both epipolar distances, in units of the focal length,
        # with its threshold divided by the mean of the four focal lengths.
        mean_focal = (K0[0, 0] + K0[1, 1] + K1[0, 0] + K1[1, 1]) / 4
        essentials = _usac(
            lambda params: cv2.findEssentialMat(points0, points1, K0, K1, None, None, params)[0],
            options,
            np.sqrt(2) * angle * mean_focal,
        )
        poses = [pose for E in essentials for pose in _decompose_essential(E)]
        # The matches of a plane fit two essential matrices, and a search for either may miss the one that is possible.
        plane = estimate_homography(
            points0, points1, threshold=threshold, confidence=confidence, max_iterations=max_iterations, seed=seed
        )
        if plane is not None:
            poses += _decompose_homography(K1_inverse @ plane.H @ K0)
    else:
        # The Sampson distance in units of the focal length: the two views share the angle.
        normalized = angle / np.sqrt(2)
        camera = {"model": "SIMPLE_PINHOLE", "width": 1, "height": 1, "params": [1.0, 0.0, 0.0]}
        pose, _ = _import_poselib().estimate_relative_pose(
            rays0[:, :2],
            rays1[:, :2],
            camera,
            camera,
            {**options.for_poselib(), "max_epipolar_error": normalized},
            {"loss_scale": normalized / 2},
        )
        poses = _valid_poses([(pose.R, pose.t)])
    if not poses:
        return None
    R, t = min(poses, key=cost)
    if backend == "opencv":
        R, t = _refine_pose(R, t, distance, threshold)
    inliers = (distance(R, t) <= threshold) & possible(R, t)
    if _is_degenerate(points0[inliers], points1[inliers], 5, threshold):
        return None
    return RelativePose(R, t, inliers, essential_from_pose(R, t))


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
    points0, points1 = _matched(kpts0, kpts1)
    options = _RansacOptions(threshold, confidence, max_iterations, backend, seed)
    if len(points0) < 4:
        return None

    def distance(H: Array) -> Array:
        return np.asarray(np.linalg.norm(points1 - _project(H, points0), axis=1))

    if backend == "opencv":
        models = _usac(lambda params: cv2.findHomography(points0, points1, params)[0], options, threshold)
    else:
        model, _ = _import_poselib().estimate_homography(
            points0, points1, {**options.for_poselib(), "max_reproj_error": threshold}, {"loss_scale": threshold / 2}
        )
        models = _valid_models([model])
    if not models:
        return None
    H = min(models, key=lambda H: _truncated_cost(distance(H), threshold))
    inliers = distance(H) <= threshold
    if _is_degenerate(points0[inliers], points1[inliers], 4, threshold):
        return None
    H = H / np.linalg.norm(H)
    return Homography(H / H[2, 2] if abs(H[2, 2]) > np.finfo(np.float64).eps else H, inliers)


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
    points0, points1 = _matched(kpts0, kpts1)
    options = _RansacOptions(threshold, confidence, max_iterations, backend, seed)
    if len(points0) < 7:
        return None

    def distance(F: Array) -> Array:
        return _sampson(points0, points1, F)

    if backend == "opencv":
        models = _usac(lambda params: cv2.findFundamentalMat(points0, points1, params)[0], options, threshold)
    else:
        model, _ = _import_poselib().estimate_fundamental(
            points0, points1, {**options.for_poselib(), "max_epipolar_error": threshold}, {"loss_scale": threshold / 2}
        )
        models = _valid_models([model])
    if not models:
        return None
    F = min(models, key=lambda F: _truncated_cost(distance(F), threshold))
    inliers = distance(F) <= threshold
    if _is_degenerate(points0[inliers], points1[inliers], 7, threshold):
        return None
    return Fundamental(F / np.linalg.norm(F), inliers)


def relative_pose(R0: Matrix, t0: Matrix, R1: Matrix, t1: Matrix) -> tuple[Array, Array]:
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
    R = _array(R1, "R1", (3, 3)) @ _array(R0, "R0", (3, 3)).T
    return R, _array(t1, "t1", (3,)) - R @ _array(t0, "t0", (3,))


def essential_from_pose(R: Matrix, t: Matrix) -> Array:
    """Essential matrix E = [t]x R of a relative pose (Hartley & Zisserman, section 9.6).

    Args:
        R: (3, 3) rotation.
        t: (3,) translation, of any length.

    Returns:
        (3, 3) E, in the scale of t.

    Raises:
        ValueError: an argument has the wrong shape or is not finite.
    """
    x, y, z = _array(t, "t", (3,))
    return np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]]) @ _array(R, "R", (3, 3))


def fundamental_from_pose(R: Matrix, t: Matrix, K0: Matrix, K1: Matrix) -> Array:
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


def epipolar_distance(kpts0: Points, kpts1: Points, F: Matrix) -> Array:
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
    points0, points1 = _matched(kpts0, kpts1)
    algebraic, _, norms1 = _epipolar_terms(points0, points1, _array(F, "F", (3, 3)))
    return _divide(np.abs(algebraic), norms1)


def symmetric_epipolar_distance(kpts0: Points, kpts1: Points, F: Matrix) -> Array:
    """Root mean square of the two distances of a match to its epipolar lines, one in each image.

    Twice its square is the symmetric epipolar distance of Hartley & Zisserman, eq. 11.10.

    Args:
        kpts0: (M, 2) points in image 0.
        kpts1: (M, 2) points in image 1 matched to them.
        F: (3, 3) fundamental matrix.

    Returns:
        (M,) distances in pixels.

    Raises:
        ValueError: an argument has the wrong shape or is not finite.
    """
    points0, points1 = _matched(kpts0, kpts1)
    algebraic, norms0, norms1 = _epipolar_terms(points0, points1, _array(F, "F", (3, 3)))
    return np.asarray(np.hypot(_divide(algebraic, norms0), _divide(algebraic, norms1)) / np.sqrt(2))


def sampson_distance(kpts0: Points, kpts1: Points, F: Matrix) -> Array:
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
    points0, points1 = _matched(kpts0, kpts1)
    return _sampson(points0, points1, _array(F, "F", (3, 3)))


def project_homography(H: Matrix, points: Points) -> Array:
    """Map points through a homography.

    Args:
        H: (3, 3) homography.
        points: (N, 2) points in image 0.

    Returns:
        (N, 2) points in image 1; infinite or NaN where a point maps to infinity.

    Raises:
        ValueError: an argument has the wrong shape or is not finite.
    """
    return _project(_array(H, "H", (3, 3)), _points(points, "points"))


def rotation_error(Ra: Matrix, Rb: Matrix) -> float:
    """Angle of the rotation between two rotations, in degrees from 0 to 180.

    Args:
        Ra: (3, 3) rotation.
        Rb: (3, 3) rotation.

    Raises:
        ValueError: an argument has the wrong shape or is not finite.
    """
    R = _array(Ra, "Ra", (3, 3)).T @ _array(Rb, "Rb", (3, 3))
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
    a, b = _array(ta, "ta", (3,)), _array(tb, "tb", (3,))
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


def as_rotation(R: Matrix, name: str = "R") -> Array:
    """The rotation next to a matrix that was rounded when it was written.

    Args:
        R: (3, 3), off by less than `ROTATION_TOLERANCE` in every entry.
        name: what the error message calls it.

    Raises:
        ValueError: it is no (3, 3) matrix of finite numbers, or there is no rotation near it.
    """
    R = _array(R, name, (3, 3))
    U, _, Vt = np.linalg.svd(R)
    nearest = np.asarray(U @ Vt)
    if np.abs(nearest - R).max() > ROTATION_TOLERANCE or np.linalg.det(nearest) < 0:
        raise ValueError(f"{name} is no rotation: {np.round(R, 4).tolist()}")
    return nearest


def as_intrinsics(K: Matrix, name: str = "K") -> Array:
    """The intrinsics of a pinhole camera as float64 numpy.

    Args:
        K: (3, 3), upper triangular with positive focal lengths and K[2, 2] = 1; no number of it above 1e9, no focal
            length below 1e-9.
        name: what the error message calls it.

    Raises:
        ValueError: it is not of this form.
    """
    K = _array(K, name, (3, 3))
    if np.tril(K, -1).any() or K[2, 2] != 1 or K[0, 0] <= 0 or K[1, 1] <= 0:
        raise ValueError(f"{name} is {K.tolist()}; expected [[fx, s, cx], [0, fy, cy], [0, 0, 1]] with fx, fy > 0")
    if max(np.abs(K).max(), 1 / min(K[0, 0], K[1, 1])) > _LARGEST_INTRINSIC:
        raise ValueError(
            f"{name} is {K.tolist()}; expected numbers of at most {_LARGEST_INTRINSIC:g} and focal lengths of at least "
            f"{1 / _LARGEST_INTRINSIC:g}"
        )
    return K


@dataclass(frozen=True)
class _RansacOptions:
    threshold: float
    confidence: float
    max_iterations: int
    backend: str
    seed: int

    def __post_init__(self) -> None:
        kinds = {"threshold": numbers.Real, "confidence": numbers.Real, "max_iterations": int, "seed": int}
        for name, kind in kinds.items():
            value = getattr(self, name)
            if not isinstance(value, numbers.Integral if kind is int else kind):
                raise TypeError(f"{name} is {value!r}; expected {'an integer' if kind is int else 'a number'}")
        if not 0 < self.threshold <= sys.float_info.max:
            raise ValueError(f"threshold is {self.threshold}; expected a positive number of pixels")
        if not 0 < self.confidence < 1:
            raise ValueError(f"confidence is {self.confidence}; expected a probability between 0 and 1")
        if not 1 <= self.max_iterations < 2**31:
            raise ValueError(f"max_iterations is {self.max_iterations}; expected at least 1 and less than 2^31")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed is {self.seed}; expected at least 0 and less than 2^63")
        if self.backend == "poselib":
            _import_poselib()
        elif self.backend != "opencv":
            raise ValueError(f"backend is {self.backend!r}; expected 'opencv' or 'poselib'")

    def for_poselib(self) -> dict[str, float | int]:
        return {
            "max_iterations": self.max_iterations,
            "min_iterations": min(1000, self.max_iterations),
            "success_prob": self.confidence,
            "seed": self.seed,
        }


def _import_poselib() -> Any:
    try:
        import poselib
    except ImportError as error:
        raise ImportError("backend='poselib' needs PoseLib: pip install 'capsdesc[poselib]'") from error
    return poselib


def _usac(find: Callable[[cv2.UsacParams], Any], options: _RansacOptions, threshold: float) -> list[Array]:
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
    return _valid_models(models)


def _valid_models(models: Iterable[Any]) -> list[Array]:
    """Those that were found: neither None nor zero nor broken."""
    return [np.asarray(model) for model in models if model is not None and np.isfinite(model).all() and np.any(model)]


def _valid_poses(poses: Iterable[tuple[Any, Any]]) -> list[tuple[Array, Array]]:
    """Those with a direction to move in, which is scaled to unit length."""
    found = [(np.asarray(R), np.ravel(t), np.linalg.norm(t)) for R, t in poses]
    return [(R, t / norm) for R, t, norm in found if np.isfinite(R).all() and 1e-12 < norm < np.inf]


def _truncated_cost(distances: Array, threshold: float) -> float:
    """Squared distances, an outlier costing as much as the last inlier (MSAC: Torr & Zisserman, CVIU 2000)."""
    return float((np.fmin(distances, threshold) ** 2).sum())


def _decompose_essential(E: Array) -> list[tuple[Array, Array]]:
    Ra, Rb, t = cv2.decomposeEssentialMat(E)
    return _valid_poses((R, sign * t) for R in (Ra, Rb) for sign in (1, -1))


def _decompose_homography(H: Array) -> list[tuple[Array, Array]]:
    _, rotations, translations, _ = cv2.decomposeHomographyMat(H, np.eye(3))
    return _valid_poses(zip(rotations, translations, strict=True))


def _refine_pose(
    R: Array, t: Array, distance: Callable[[Array, Array], Array], threshold: float
) -> tuple[Array, Array]:
    """Minimise the robust Sampson distance over the five degrees of freedom of a pose."""
    before = distance(R, t)
    inliers = before[before <= threshold]
    if len(inliers) == 0:
        return R, t
    near = before <= 3 * threshold
    # Where keypoints are localised well, most inliers are much nearer than the threshold, and those near it say little.
    scale = max(float(np.median(inliers)), threshold / 100)
    tangent = np.linalg.svd(t[None])[2][1:]

    def pose(step: Array) -> tuple[Array, Array]:
        moved = t + step[3:] @ tangent
        return Rotation.from_rotvec(step[:3]).as_matrix() @ R, moved / np.linalg.norm(moved)

    def residuals(step: Array) -> Array:
        return distance(*pose(step))[near]

    return pose(least_squares(residuals, np.zeros(5), loss="cauchy", f_scale=scale).x)


def _in_front(R: Array, t: Array, rays0: Array, rays1: Array) -> npt.NDArray[np.bool_]:
    """Whether the rays meet in front of both cameras: the signs of their depths where they come closest."""
    turned = rays0 @ R.T
    cosine, squared0, squared1 = (turned * rays1).sum(1), (turned**2).sum(1), (rays1**2).sum(1)
    depth0 = cosine * (rays1 @ t) - squared1 * (turned @ t)
    depth1 = squared0 * (rays1 @ t) - cosine * (turned @ t)
    return np.asarray((depth0 > 0) & (depth1 > 0))


def _parallel(R: Array, rays0: Array, rays1: Array, angle: float) -> npt.NDArray[np.bool_]:
    """Whether the rays point the same way to within `angle` radians."""
    turned = rays0 @ R.T
    between = np.arctan2(np.linalg.norm(np.cross(turned, rays1), axis=1), (turned * rays1).sum(1))
    return np.asarray(between <= angle)


def _is_degenerate(points0: Array, points1: Array, minimum: int, threshold: float) -> bool:
    """Whether inliers are too few distinct ones, or so close to a line in an image that they fix no model."""
    if len(np.unique(np.hstack([points0, points1]), axis=0)) < minimum:
        return True
    deviations = (np.linalg.svd(points - points.mean(0), compute_uv=False)[1] for points in (points0, points1))
    return any(deviation <= threshold * np.sqrt(len(points0)) for deviation in deviations)


def _epipolar_terms(points0: Array, points1: Array, F: Array) -> tuple[Array, Array, Array]:
    """x1^T F x0, and the norms of the normals of the epipolar lines in image 0 and in image 1."""
    x0, x1 = _homogeneous(points0), _homogeneous(points1)
    lines0, lines1 = x1 @ F, x0 @ F.T
    return (x1 * lines1).sum(1), np.linalg.norm(lines0[:, :2], axis=1), np.linalg.norm(lines1[:, :2], axis=1)


def _sampson(points0: Array, points1: Array, F: Array) -> Array:
    algebraic, norms0, norms1 = _epipolar_terms(points0, points1, F)
    return _divide(np.abs(algebraic), np.hypot(norms0, norms1))


def _divide(numerator: Array, denominator: Array) -> Array:
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator > 0)


def _project(H: Array, points: Array) -> Array:
    projected = _homogeneous(points) @ H.T
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(projected[:, :2] / projected[:, 2:])


def _homogeneous(points: Array) -> Array:
    return np.hstack([points, np.ones((len(points), 1))])


def _focal(K: Array) -> float:
    return float(np.sqrt(K[0, 0] * K[1, 1]))


def _matched(kpts0: Points, kpts1: Points) -> tuple[Array, Array]:
    points0, points1 = _points(kpts0, "kpts0"), _points(kpts1, "kpts1")
    if len(points0) != len(points1):
        raise ValueError(
            f"kpts0 has {len(points0)} points and kpts1 has {len(points1)}; expected matched points: "
            "index the keypoints with the columns of Matches.indices"
        )
    return points0, points1


def _points(points: Points, name: str) -> Array:
    values: Any = getattr(points, "points", points)
    if isinstance(values, Sequence) and all(isinstance(value, cv2.KeyPoint) for value in values):
        values = np.array([keypoint.pt for keypoint in values]).reshape(-1, 2)
    elif getattr(values, "shape", None) == (0,):
        values = values.reshape(0, 2)
    return _array(values, name, (None, 2))


def _array(value: object, name: str, shape: tuple[int | None, ...]) -> Array:
    """`value` as finite float64 numpy of this shape, None standing for any length."""
    if isinstance(value, torch.Tensor) and not value.is_complex():
        value = value.detach().cpu().to(torch.float64).numpy()
    try:
        # The cast would drop imaginary parts, and read dates and texts as numbers.
        if isinstance(value, torch.Tensor) or np.asarray(value).dtype.kind not in "biufO":
            raise TypeError("no real numbers")
        array = np.ascontiguousarray(value, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise TypeError(f"{name} is {type(value).__name__}; expected a real array or tensor") from error
    if array.ndim != len(shape) or any(want not in (None, have) for want, have in zip(shape, array.shape, strict=True)):
        expected = tuple("N" if length is None else length for length in shape)
        raise ValueError(f"{name} has shape {array.shape}; expected {expected}".replace("'", ""))
    if not np.isfinite(array).all():
        raise ValueError(f"{name} has NaN or infinite values; expected finite ones")
    return array
