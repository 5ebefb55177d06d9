"""What is measured on a pair and how pairs are summed up: homography sequences and relative pose."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import cv2
import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from capsdesc.evaluation.datasets import Benchmark, Camera, HomographyPair, PosePair
from capsdesc.evaluation.features import FeatureStore, ViewFeatures
from capsdesc.evaluation.methods import Method, PairMatcher
from capsdesc.evaluation.metrics import accuracy, error_auc, pose_error, repeatability
from capsdesc.geometry import (
    estimate_homography,
    estimate_pose,
    homography_corner_error,
    project_homography,
    rotation_error,
    translation_error,
)
from capsdesc.matching import MAX_SHIFT, match
from capsdesc.types import Float64Array, Matches

Backend = Literal["opencv", "poselib"]

ESTIMATORS = ("opencv", "poselib", "paper")
MATCHING_THRESHOLDS = tuple(range(1, 11))  # pixels
REPEATABILITY_THRESHOLDS = (1, 3)  # pixels
CORNER_THRESHOLDS = (1, 3, 5)  # pixels
POSE_THRESHOLDS = (5, 10, 20)  # degrees
ANGLE_THRESHOLDS = (5, 10)  # degrees, of the paper's table
TURNED_SEQUENCES = frozenset({"bark", "boat"})  # of Oxford: their images are turned and zoomed against each other
FEWEST_MATCHES = 50  # the paper's protocol falls back on the best nearest neighbours below that


@dataclasses.dataclass(frozen=True)
class Settings:
    """How features are matched and geometry is estimated. Every number depends on these.

    Attributes:
        max_keypoints: the budget of an image.
        max_edge: the longer edge images are shrunk to; all pixels below are pixels after that.
        ratio: of a ratio test on the mutual nearest neighbours; None for no test.
        max_shift: of the check of matches by derivatives, in pixels, for methods that have them.
        estimator: ``"opencv"`` or ``"poselib"`` (:func:`capsdesc.estimate_pose`), or ``"paper"``: the protocol of
            the CAPS paper for poses, with homographies by OpenCV.
        threshold: inlier threshold of poses, in pixels.
        homography_threshold: inlier threshold of homographies, in pixels.
        seed: of the estimators.
        detector: whose keypoints the shared ones are.

    Raises:
        ValueError: the estimator is unknown.
    """

    max_keypoints: int = 2048
    max_edge: int = 1024
    ratio: float | None = None
    max_shift: float = MAX_SHIFT
    estimator: str = "opencv"
    threshold: float = 1.0
    homography_threshold: float = 3.0
    seed: int = 0
    detector: str = "sift"

    def __post_init__(self) -> None:
        if self.estimator not in ESTIMATORS:
            raise ValueError(f"estimator is {self.estimator!r}; expected one of {', '.join(ESTIMATORS)}")

    @property
    def backend(self) -> Backend:
        """The library that estimates homographies, and poses unless the paper's protocol does."""
        return "poselib" if self.estimator == "poselib" else "opencv"

    def describe(self, pose: bool) -> str:
        """The estimator in words, for reports."""
        if pose and self.estimator == "paper":
            name, threshold = "OpenCV RANSAC with the mean intrinsics (paper)", self.threshold
        else:
            name, threshold = self.backend, self.threshold if pose else self.homography_threshold
        return f"{name}, {threshold:g} px, seed {self.seed}"


@dataclasses.dataclass(frozen=True)
class HomographyRow:
    """What was measured on a :class:`HomographyPair`.

    Attributes:
        pair: its name.
        group: its group.
        keypoints0: number of keypoints in image 0.
        keypoints1: number of keypoints in image 1.
        matches: number of matches.
        repeatability: share of keypoints that are found again in the other image within 1 and 3 px.
        matching_accuracy: share of matches within 1, 2, .. 10 px.
        corner_error: mean distance of the corners of image 0 under the estimated and the true homography, px.
    """

    pair: str
    group: str
    keypoints0: int
    keypoints1: int
    matches: int
    repeatability: tuple[float, ...]
    matching_accuracy: tuple[float, ...]
    corner_error: float


@dataclasses.dataclass(frozen=True)
class PoseRow:
    """What was measured on a :class:`PosePair`.

    Attributes:
        pair: its name.
        group: its difficulty.
        keypoints0: number of keypoints in image 0.
        keypoints1: number of keypoints in image 1.
        matches: number of matches.
        inliers: those that agree with the estimated pose.
        rotation_error: angle of the estimated against the true rotation, degrees.
        translation_error: angle between the directions of translation, sign disregarded, degrees.
    """

    pair: str
    group: str
    keypoints0: int
    keypoints1: int
    matches: int
    inliers: int
    rotation_error: float
    translation_error: float


Row = HomographyRow | PoseRow


@dataclasses.dataclass(frozen=True, eq=False)
class Result:
    """One method on one benchmark.

    Attributes:
        benchmark: name of the benchmark.
        kind: its kind.
        path: what it was read from.
        method: name of the method.
        method_settings: its settings.
        keypoints: ``"shared"`` or ``"own"``.
        settings: of matching and estimation.
        summary: figures over all pairs, and by group under the group's name.
        rows: one per pair.
    """

    benchmark: str
    kind: str
    path: str
    method: str
    method_settings: Mapping[str, Any]
    keypoints: str
    settings: Settings
    summary: Mapping[str, Mapping[str, float]]
    rows: tuple[Row, ...]


def evaluate(benchmark: Benchmark, method: Method, keypoints: str, store: FeatureStore, settings: Settings) -> Result:
    """Measure a method on a benchmark; features that are missing in the store are computed first.

    Args:
        benchmark: the pairs.
        method: the method.
        keypoints: ``"shared"``, those of the store's detector for every method, or ``"own"``.
        store: where features are kept.
        settings: of matching and estimation.
    """
    store.export(benchmark.views(), method, keypoints)
    rows: list[Row] = []
    for pair in tqdm(benchmark.pairs, desc=f"{method.name} on {benchmark.name}", unit="pair", disable=None):
        features0 = store.load(pair.view0, method, keypoints)
        features1 = store.load(pair.view1, method, keypoints)
        matches = (
            method.match(features0, features1)
            if isinstance(method, PairMatcher)
            else nearest_neighbours(features0, features1, settings)
        )
        if isinstance(pair, HomographyPair):
            rows.append(evaluate_homography(pair, features0, features1, matches, settings))
        else:
            rows.append(evaluate_pose(pair, features0, features1, matches, settings))
    groups = {"all": rows}
    if benchmark.kind == "oxford" and {row.group for row in rows} & TURNED_SEQUENCES:
        groups["upright"] = [row for row in rows if row.group not in TURNED_SEQUENCES]
    for row in rows:
        groups.setdefault(row.group, []).append(row)
    return Result(
        benchmark=benchmark.name,
        kind=benchmark.kind,
        path=str(benchmark.path),
        method=method.name,
        method_settings=dict(method.settings),
        keypoints=keypoints,
        settings=settings,
        summary={name: summarize(members) for name, members in groups.items()},
        rows=tuple(rows),
    )


def evaluate_homography(
    pair: HomographyPair, features0: ViewFeatures, features1: ViewFeatures, matches: Matches, settings: Settings
) -> HomographyRow:
    """Compare matches of two views of a plane, and a homography estimated from them, with the truth."""
    points0, points1 = _matched_points(features0.keypoints, features1.keypoints, matches)
    H = features1.scaling @ pair.H @ np.linalg.inv(features0.scaling)
    errors = np.linalg.norm(project_homography(H, points0) - points1, axis=1)
    estimate = estimate_homography(
        points0, points1, threshold=settings.homography_threshold, backend=settings.backend, seed=settings.seed
    )
    return HomographyRow(
        pair=pair.name,
        group=pair.group,
        keypoints0=len(features0.keypoints),
        keypoints1=len(features1.keypoints),
        matches=len(points0),
        repeatability=tuple(
            repeatability(
                features0.keypoints,
                features1.keypoints,
                H,
                features0.image_size,
                features1.image_size,
                REPEATABILITY_THRESHOLDS,
            ).tolist()
        ),
        matching_accuracy=tuple(accuracy(errors, MATCHING_THRESHOLDS).tolist()),
        corner_error=(
            float("inf") if estimate is None else float(homography_corner_error(estimate.H, H, *features0.image_size))
        ),
    )


def evaluate_pose(
    pair: PosePair, features0: ViewFeatures, features1: ViewFeatures, matches: Matches, settings: Settings
) -> PoseRow:
    """Compare the pose estimated from matches of two views of a scene with the truth."""
    paper = settings.estimator == "paper"
    if paper and len(matches.indices) < FEWEST_MATCHES:
        matches = _best_neighbours(match(features0.descriptors, features1.descriptors, mutual=False), FEWEST_MATCHES)
    points0, points1 = _matched_points(
        _undistorted(features0, pair.camera0), _undistorted(features1, pair.camera1), matches
    )
    K0, K1 = features0.scaling @ pair.camera0.K, features1.scaling @ pair.camera1.K
    estimate = (_estimate_paper if paper else _estimate)(points0, points1, K0, K1, settings)
    if estimate is None:
        rotation = translation = float("inf")
    else:
        rotation = min(rotation_error(R, pair.R) for R in estimate.rotations)
        translation = translation_error(estimate.t, pair.t)
    return PoseRow(
        pair=pair.name,
        group=pair.group,
        keypoints0=len(features0.keypoints),
        keypoints1=len(features1.keypoints),
        matches=len(points0),
        inliers=0 if estimate is None else estimate.inliers,
        rotation_error=rotation,
        translation_error=translation,
    )


def summarize(rows: Sequence[Row]) -> dict[str, float]:
    """The figures of a benchmark, from its rows.

    Both kinds: ``pairs``, ``keypoints`` (mean of both images) and ``matches``. Homographies: ``rep@1/3``, the share
    of keypoints that are found again, ``mma@1..10``, ``accuracy@1/3/5`` and ``auc@1/3/5`` of the corner error in px.
    Poses: ``inliers``, ``auc@5/10/20`` of the larger angle in degrees, and the paper's ``rotation@5/10`` and
    ``translation@5/10``: shares of pairs within these degrees.
    """
    summary = {
        "pairs": float(len(rows)),
        "keypoints": float(np.mean([(row.keypoints0 + row.keypoints1) / 2 for row in rows])),
        "matches": float(np.mean([row.matches for row in rows])),
    }

    def add(name: str, thresholds: Sequence[int], values: npt.ArrayLike) -> None:
        summary.update({f"{name}@{t}": float(v) for t, v in zip(thresholds, np.asarray(values), strict=True)})

    homographies = [row for row in rows if isinstance(row, HomographyRow)]
    if homographies:
        errors = [row.corner_error for row in homographies]
        add("rep", REPEATABILITY_THRESHOLDS, np.mean([row.repeatability for row in homographies], axis=0))
        add("mma", MATCHING_THRESHOLDS, np.mean([row.matching_accuracy for row in homographies], axis=0))
        add("accuracy", CORNER_THRESHOLDS, accuracy(errors, CORNER_THRESHOLDS))
        add("auc", CORNER_THRESHOLDS, error_auc(errors, CORNER_THRESHOLDS))
    poses = [row for row in rows if isinstance(row, PoseRow)]
    if poses:
        summary["inliers"] = float(np.mean([row.inliers for row in poses]))
        errors = [pose_error(row.rotation_error, row.translation_error) for row in poses]
        add("auc", POSE_THRESHOLDS, error_auc(errors, POSE_THRESHOLDS))
        add("rotation", ANGLE_THRESHOLDS, accuracy([row.rotation_error for row in poses], ANGLE_THRESHOLDS))
        add("translation", ANGLE_THRESHOLDS, accuracy([row.translation_error for row in poses], ANGLE_THRESHOLDS))
    return summary


@dataclasses.dataclass(frozen=True, eq=False)
class _Estimate:
    rotations: tuple[Float64Array, ...]
    t: Float64Array
    inliers: int


def nearest_neighbours(features0: ViewFeatures, features1: ViewFeatures, settings: Settings) -> Matches:
    """Mutual nearest neighbours, checked where there are derivatives."""
    max_shift = None if features0.derivatives is None else settings.max_shift
    return match(features0, features1, ratio=settings.ratio, max_shift=max_shift)


def _matched_points(keypoints0: npt.NDArray[Any], keypoints1: npt.NDArray[Any], matches: Matches) -> list[Float64Array]:
    return [np.asarray(points, dtype=np.float64) for points in matches.points(keypoints0, keypoints1)]


def _best_neighbours(matches: Matches, count: int) -> Matches:
    best = np.argsort(np.asarray(matches.distances), kind="stable")[:count]
    return Matches(matches.indices[best], matches.distances[best])


def _undistorted(features: ViewFeatures, camera: Camera) -> Float64Array:
    points = features.keypoints.astype(np.float64)
    if camera.undistort is None or len(points) == 0:
        return points
    in_file = project_homography(np.linalg.inv(features.scaling), points)
    return np.asarray(project_homography(features.scaling, camera.undistort(in_file)), dtype=np.float64)


def _estimate(
    points0: Float64Array, points1: Float64Array, K0: Float64Array, K1: Float64Array, settings: Settings
) -> _Estimate | None:
    pose = estimate_pose(
        points0, points1, K0, K1, threshold=settings.threshold, backend=settings.backend, seed=settings.seed
    )
    return None if pose is None else _Estimate((pose.R,), pose.t, int(np.count_nonzero(pose.inliers)))


def _estimate_paper(
    points0: Float64Array, points1: Float64Array, K0: Float64Array, K1: Float64Array, settings: Settings
) -> _Estimate | None:
    """The authors' evaluation: one pinhole of mean intrinsics, and the better of the two rotations of E.

    OpenCV's RANSAC draws from a generator of its own with a fixed seed.
    """
    if len(points0) < 5:
        return None
    K = (K0 + K1) / 2
    focal, centre = float(K[0, 0] + K[1, 1]) / 2, (K[0, 2], K[1, 2])
    E, mask = cv2.findEssentialMat(
        points0, points1, focal=focal, pp=centre, method=cv2.RANSAC, prob=0.999, threshold=settings.threshold
    )
    if E is None or E.shape != (3, 3):
        return None
    R0, R1, t = (np.asarray(part, dtype=np.float64) for part in cv2.decomposeEssentialMat(E))
    return _Estimate((R0, R1), t[:, 0], int(np.count_nonzero(mask)))
