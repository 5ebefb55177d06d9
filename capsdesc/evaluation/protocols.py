"""How pairs are matched, how geometry is estimated and what is measured: homographies, poses, epipolar geometry."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import cv2
import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from capsdesc.evaluation.datasets import Benchmark, Camera, CorrespondencePair, HomographyPair, PosePair
from capsdesc.evaluation.features import FeatureStore, ViewFeatures
from capsdesc.evaluation.methods import Method, PairMatcher
from capsdesc.evaluation.metrics import accuracy, repeatability, symmetric_epipolar_distance
from capsdesc.evaluation.rows import (
    EPIPOLAR_THRESHOLDS,
    MATCHING_THRESHOLDS,
    REPEATABILITY_THRESHOLDS,
    EpipolarRow,
    HomographyRow,
    PoseRow,
    Row,
    summarize,
)
from capsdesc.geometry import (
    estimate_fundamental,
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

ESTIMATORS = ("opencv", "poselib", "paper", "fundamental")
EDGES = ("longer", "shorter")
TURNED_SEQUENCES = frozenset({"bark", "boat"})  # of Oxford: their images are turned and zoomed against each other
# Whose groups are scenes, of which the challenge averages.
AVERAGED_OVER_GROUPS = frozenset({"imc2021", "imc2022"})
FEWEST_MATCHES = 50  # the paper's protocol falls back on the best nearest neighbours below that


@dataclasses.dataclass(frozen=True)
class Settings:
    """How features are matched and geometry is estimated. Every number depends on these.

    Attributes:
        max_keypoints: the budget of an image.
        max_edge: the edge images are shrunk to; all pixels below are pixels after that.
        edge: which edge that is, the ``"longer"`` or the ``"shorter"``.
        ratio: of a ratio test on the mutual nearest neighbours; None for no test.
        max_shift: of the check of matches by derivatives, in pixels, for methods that have them.
        estimator: ``"opencv"`` or ``"poselib"`` (:func:`capsdesc.estimate_pose`); for poses also ``"paper"``, the
            protocol of the CAPS paper, and ``"fundamental"``, that of the Image Matching Challenge, where intrinsics
            are applied to a fundamental matrix that was estimated without, with all else by OpenCV.
        threshold: inlier threshold of poses and fundamental matrices, in pixels.
        homography_threshold: inlier threshold of homographies, in pixels.
        seed: of the estimators.
        detector: whose keypoints the shared ones are.

    Raises:
        ValueError: the estimator or the edge is unknown.
    """

    max_keypoints: int = 2048
    max_edge: int = 1024
    edge: str = "longer"
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
        if self.edge not in EDGES:
            raise ValueError(f"edge is {self.edge!r}; expected one of {', '.join(EDGES)}")

    @property
    def backend(self) -> Backend:
        """The library that estimates homographies, and poses unless the paper's protocol does."""
        return "poselib" if self.estimator == "poselib" else "opencv"

    def describe(self, row: type[Row]) -> str:
        """The estimator of what such rows tell, in words, for reports."""
        name: str = self.backend
        threshold = self.threshold
        if row is HomographyRow:
            threshold = self.homography_threshold
        elif row is EpipolarRow or self.estimator == "fundamental":
            name = f"fundamental matrix by {self.backend}"
        elif self.estimator == "paper":
            name = "OpenCV RANSAC with the mean intrinsics (paper)"
        return f"{name}, {threshold:g} px, seed {self.seed}"


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
        elif isinstance(pair, CorrespondencePair):
            rows.append(evaluate_epipolar(pair, features0, features1, matches, settings))
        else:
            rows.append(evaluate_pose(pair, features0, features1, matches, settings))
    groups = {"all": rows}
    if benchmark.kind == "oxford" and {row.group for row in rows} & TURNED_SEQUENCES:
        groups["upright"] = [row for row in rows if row.group not in TURNED_SEQUENCES]
    for row in rows:
        groups.setdefault(row.group, []).append(row)
    summary = {name: summarize(members) for name, members in groups.items()}
    if benchmark.kind in AVERAGED_OVER_GROUPS:
        scenes = [figures for name, figures in summary.items() if name != "all"]
        for name in ("maa", "maa@5", "maa@10"):
            if name in summary["all"]:
                summary["all"][name] = float(np.mean([figures[name] for figures in scenes]))
    return Result(
        benchmark=benchmark.name,
        kind=benchmark.kind,
        path=str(benchmark.path),
        method=method.name,
        method_settings=dict(method.settings),
        keypoints=keypoints,
        settings=settings,
        summary=summary,
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
    estimators = {"paper": _estimate_paper, "fundamental": _estimate_uncalibrated}
    estimate = estimators.get(settings.estimator, _estimate)(points0, points1, K0, K1, settings)
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
        baseline=float(np.linalg.norm(pair.t)) if pair.metric else None,
    )


def evaluate_epipolar(
    pair: CorrespondencePair, features0: ViewFeatures, features1: ViewFeatures, matches: Matches, settings: Settings
) -> EpipolarRow:
    """Compare a fundamental matrix estimated from matches with points that were marked by hand."""
    points0, points1 = _matched_points(features0.keypoints, features1.keypoints, matches)
    estimate = estimate_fundamental(
        points0, points1, threshold=settings.threshold, backend=settings.backend, seed=settings.seed
    )
    if estimate is None:
        recall = np.zeros(len(EPIPOLAR_THRESHOLDS))
    else:
        F = features1.scaling.T @ estimate.F @ features0.scaling
        recall = accuracy(symmetric_epipolar_distance(pair.points0, pair.points1, F), EPIPOLAR_THRESHOLDS)
    return EpipolarRow(
        pair=pair.name,
        group=pair.group,
        keypoints0=len(features0.keypoints),
        keypoints1=len(features1.keypoints),
        matches=len(points0),
        inliers=0 if estimate is None else int(np.count_nonzero(estimate.inliers)),
        recall=tuple(recall.tolist()),
    )


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


def _estimate_uncalibrated(
    points0: Float64Array, points1: Float64Array, K0: Float64Array, K1: Float64Array, settings: Settings
) -> _Estimate | None:
    """The Image Matching Challenge's: F without intrinsics, then the better of the two rotations of K1^T F K0."""
    fundamental = estimate_fundamental(
        points0, points1, threshold=settings.threshold, backend=settings.backend, seed=settings.seed
    )
    if fundamental is None:
        return None
    R0, R1, t = (np.asarray(part, np.float64) for part in cv2.decomposeEssentialMat(K1.T @ fundamental.F @ K0))
    return _Estimate((R0, R1), t[:, 0], int(np.count_nonzero(fundamental.inliers)))
