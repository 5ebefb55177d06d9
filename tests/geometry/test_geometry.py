"""Geometry against exact synthetic scenes, OpenCV, PoseLib and definitions worked out point by point."""

import sys
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy.optimize import minimize
from scipy.spatial.transform import Rotation

from capsdesc.checks import real_array
from capsdesc.geometry import (
    epipolar_distance,
    essential_from_pose,
    estimate_fundamental,
    estimate_homography,
    estimate_pose,
    fundamental_from_pose,
    homography_corner_error,
    project_homography,
    relative_pose,
    rotation_error,
    sampson_distance,
    translation_error,
)
from capsdesc.geometry.ransac import valid_poses

Array = npt.NDArray[np.float64]
Backend = Literal["opencv", "poselib"]
BACKENDS: tuple[Backend, ...] = ("opencv", "poselib")
K0 = np.array([[400.0, 0, 320], [0, 410, 240], [0, 0, 1]])
K1 = np.array([[1600.0, 2, 800], [0, 1580, 600], [0, 0, 1]])
R = Rotation.from_euler("xyz", [4, -12, 7], degrees=True).as_matrix()
T = np.array([0.8, -0.1, 0.3]) / np.linalg.norm([0.8, -0.1, 0.3])

ESTIMATORS: dict[str, Any] = {
    "pose": lambda x0, x1, **options: estimate_pose(x0, x1, K0, K1, **options),
    "homography": estimate_homography,
    "fundamental": estimate_fundamental,
}


def project(K: Array, X: Array) -> Array:
    x = X @ K.T
    return np.asarray(x[:, :2] / x[:, 2:])


def world_points(count: int = 200, seed: int = 0) -> Array:
    rng = np.random.default_rng(seed)
    return np.column_stack([rng.uniform(-3, 3, count), rng.uniform(-2, 2, count), rng.uniform(4, 9, count)])


def two_views(X: Array, rotation: Array = R, translation: Array = T) -> tuple[Array, Array]:
    return project(K0, X), project(K1, X @ rotation.T + translation)


def with_noise_and_outliers(
    x0: Array, x1: Array, sigma: float = 0.5, outliers: float = 0.4
) -> tuple[Array, Array, npt.NDArray[np.bool_]]:
    rng = np.random.default_rng(7)
    x0, x1 = x0 + rng.normal(scale=sigma, size=x0.shape), x1 + rng.normal(scale=sigma, size=x1.shape)
    wrong = np.arange(len(x0)) < outliers * len(x0)
    x1[wrong] = rng.uniform([0, 0], [1600, 1200], (wrong.sum(), 2))
    return x0, x1, ~wrong


@pytest.mark.parametrize("backend", BACKENDS)
def test_pose_of_an_exact_scene(backend: Backend) -> None:
    pose = estimate_pose(*two_views(world_points()), K0, K1, backend=backend)
    assert pose is not None
    assert pose.inliers.dtype == np.bool_
    assert pose.inliers.all()
    np.testing.assert_allclose(pose.R, R, atol=1e-4)
    np.testing.assert_allclose(pose.t, T, atol=1e-4)
    np.testing.assert_allclose(pose.R @ pose.R.T, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(pose.t), 1)
    np.testing.assert_allclose(pose.E, np.cross(pose.t, pose.R.T).T, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_pose_with_noise_and_outliers(backend: Backend) -> None:
    x0, x1, right = with_noise_and_outliers(*two_views(world_points(400)))
    pose = estimate_pose(x0, x1, K0, K1, threshold=1.5, backend=backend)
    assert pose is not None
    assert rotation_error(pose.R, R) < 0.3
    assert translation_error(pose.t, T, sign_matters=True) < 1
    assert pose.inliers[right].mean() > 0.98
    assert pose.inliers[~right].mean() < 0.1


def test_backends_agree() -> None:
    x0, x1, _ = with_noise_and_outliers(*two_views(world_points(400)))
    ours, theirs = (estimate_pose(x0, x1, K0, K1, threshold=1.5, backend=backend) for backend in BACKENDS)
    assert ours is not None
    assert theirs is not None
    assert rotation_error(ours.R, theirs.R) < 0.2
    assert translation_error(ours.t, theirs.t, sign_matters=True) < 0.7
    assert (ours.inliers == theirs.inliers).mean() > 0.97


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ESTIMATORS)
def test_one_seed_one_result_for_numpy_torch_and_keypoints(name: str, backend: Backend) -> None:
    @dataclass(frozen=True)
    class Located:
        points: torch.Tensor

    x0, x1, _ = with_noise_and_outliers(*two_views(world_points()), outliers=0.3)
    x0, x1 = x0.astype(np.float32).astype(np.float64), x1.astype(np.float32).astype(np.float64)
    as_torch = torch.from_numpy(x0).float().requires_grad_(), torch.from_numpy(x1).float()
    inputs = [(x0, x1), (x0, x1), as_torch, (Located(as_torch[0]), Located(as_torch[1]))]
    first, *others = (ESTIMATORS[name](*points, threshold=2.0, backend=backend, seed=3) for points in inputs)
    for other in others:
        for key, value in vars(first).items():
            np.testing.assert_array_equal(getattr(other, key), value)
    for seed in (0, 1, 2**40):
        assert ESTIMATORS[name](x0, x1, threshold=2.0, backend=backend, seed=seed) is not None


def test_seed_changes_the_samples() -> None:
    x0, x1, _ = with_noise_and_outliers(*two_views(world_points()))
    poses = [estimate_pose(x0, x1, K0, K1, max_iterations=40, seed=seed) for seed in range(5)]
    assert len({pose.R.tobytes() for pose in poses if pose is not None}) > 1


@pytest.mark.parametrize("threshold", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("view", [0, 1])
@pytest.mark.parametrize("backend", BACKENDS)
def test_threshold_is_in_pixels_of_each_camera(threshold: float, view: int, backend: Backend) -> None:
    x0, x1 = two_views(world_points(300))
    F = fundamental_from_pose(R, T, K0, K1)
    # Move four points at right angles to their epipolar lines, in one image, until the nearest exact match of both
    # points together is 0.7 or 1.5 thresholds away; the shorter the focal length, the more a pixel counts.
    moved = (x0, x1)[view]
    line = np.column_stack([(x1, x0)[view], np.ones(len(x0))]) @ (F if view == 0 else F.T)
    normal = line[:, :2] / np.linalg.norm(line[:, :2], axis=1, keepdims=True)
    step = np.empty(4)
    for i, factor in enumerate((0.7, 1.5, 0.7, 1.5)):
        start = moved[i].copy()
        low, high = 0.0, 100 * threshold
        while high - low > 1e-6:
            step[i] = (low + high) / 2
            moved[i] = start + step[i] * normal[i]
            nearest = sampson_distance(x0[i : i + 1], x1[i : i + 1], F)[0]
            low, high = (step[i], high) if nearest < factor * threshold else (low, step[i])
    if view == 0:
        np.testing.assert_allclose(step, np.array([0.7, 1.5, 0.7, 1.5]) * threshold, rtol=0.15)
    else:
        assert (step[:2] / threshold > 2).all()
    pose = estimate_pose(x0, x1, K0, K1, threshold=threshold, backend=backend)
    assert pose is not None
    assert pose.inliers[:4].tolist() == [True, False, True, False]
    assert pose.inliers[4:].all()


def test_equal_cameras_share_a_displacement() -> None:
    X = world_points(300)
    x0, x1 = project(K0, X), project(K0, X @ R.T + T)
    lines = cv2.computeCorrespondEpilines(x0[:, None], 1, fundamental_from_pose(R, T, K0, K0))[:, 0]
    # Each of two like images takes half: a displacement d of one point is d / sqrt(2) for the match.
    x1[:2] += np.array([[0.7], [1.5]]) * np.sqrt(2) * lines[:2, :2]
    pose = estimate_pose(x0, x1, K0, K0, threshold=1.0)
    assert pose is not None
    assert pose.inliers[:2].tolist() == [True, False]


def test_points_behind_a_camera_are_no_inliers() -> None:
    X = world_points(200)
    X[:20] *= -1
    x0, x1 = two_views(X)
    pose = estimate_pose(x0, x1, K0, K1)
    assert pose is not None
    assert rotation_error(pose.R, R) < 0.01
    assert not pose.inliers[:20].any()
    assert pose.inliers[20:].all()


def test_far_points_stay_inliers() -> None:
    X = world_points(200)
    X[:50] *= 1e6
    x0, x1 = two_views(X)
    x1[:50] += np.random.default_rng(0).normal(scale=0.3, size=(50, 2))
    pose = estimate_pose(x0, x1, K0, K1)
    assert pose is not None
    assert pose.inliers.all()
    np.testing.assert_allclose(pose.t, T, atol=0.02)


@pytest.mark.parametrize("backend", BACKENDS)
def test_pose_of_a_planar_scene(backend: Backend) -> None:
    X = world_points()
    X[:, 2] = 6 + 0.4 * X[:, 0]
    for seed in range(5):
        pose = estimate_pose(*two_views(X), K0, K1, backend=backend, seed=seed)
        assert pose is not None
        assert pose.inliers.all()
        assert rotation_error(pose.R, R) < 0.01
        assert translation_error(pose.t, T, sign_matters=True) < 0.01


@pytest.mark.parametrize("backend", BACKENDS)
def test_pure_rotation_keeps_the_rotation(backend: Backend) -> None:
    pose = estimate_pose(*two_views(world_points(), translation=np.zeros(3)), K0, K1, backend=backend)
    assert pose is not None
    assert rotation_error(pose.R, R) < 0.05
    np.testing.assert_allclose(np.linalg.norm(pose.t), 1)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ESTIMATORS)
def test_degenerate_input_gives_none(name: str, backend: Backend) -> None:
    estimate = ESTIMATORS[name]
    x0, x1 = two_views(world_points(60))
    along = np.linspace(0, 1, 60)[:, None]
    line0, line1 = two_views(np.array([[-1.0, -1, 5]]) + along * [[2.0, 1.5, 2]])
    for count in (0, 1, 3):
        assert estimate(x0[:count], x1[:count], backend=backend) is None
    assert estimate(np.full((50, 2), 100.0), np.full((50, 2), 70.0), backend=backend) is None
    assert estimate(np.repeat(x0[:3], 20, axis=0), np.repeat(x1[:3], 20, axis=0), backend=backend) is None
    assert estimate(line0, line1, backend=backend) is None


def test_fewest_points() -> None:
    x0, x1 = two_views(world_points(60))
    assert estimate_pose(x0[:4], x1[:4], K0, K1) is None
    assert estimate_fundamental(x0[:6], x1[:6]) is None
    four = estimate_homography(x0[:4], x1[:4])
    assert four is not None
    np.testing.assert_allclose(project_homography(four.H, x0[:4]), x1[:4], atol=1e-2)


@pytest.mark.parametrize("backend", BACKENDS)
def test_unrelated_points_find_next_to_no_support(backend: Backend) -> None:
    rng = np.random.default_rng(0)
    x0, x1 = rng.uniform(0, 1000, (2, 200, 2))
    pose = estimate_pose(x0, x1, K0, K0, threshold=0.5, backend=backend)
    assert pose is None or pose.inliers.mean() < 0.1


@pytest.mark.parametrize("backend", BACKENDS)
def test_homography_with_noise_and_outliers(backend: Backend) -> None:
    H = np.array([[1.1, 0.1, -30], [-0.05, 0.95, 20], [1e-4, -5e-5, 1]])
    x0 = np.random.default_rng(0).uniform([0, 0], [640, 480], (300, 2))
    x0, x1, right = with_noise_and_outliers(x0, cv2.perspectiveTransform(x0[None], H)[0], sigma=0.3)
    found = estimate_homography(x0, x1, backend=backend)
    assert found is not None
    assert found.H[2, 2] == 1
    assert homography_corner_error(found.H, H, 640, 480) < 0.5
    assert found.inliers[right].all()
    errors = np.linalg.norm(cv2.perspectiveTransform(x0[None], found.H)[0] - x1, axis=1)
    np.testing.assert_array_equal(found.inliers, errors <= 3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_fundamental_with_noise_and_outliers(backend: Backend) -> None:
    x0, x1, right = with_noise_and_outliers(*two_views(world_points(400)), sigma=0.3)
    found = estimate_fundamental(x0, x1, backend=backend)
    assert found is not None
    np.testing.assert_allclose(np.linalg.norm(found.F), 1)
    assert np.linalg.svd(found.F, compute_uv=False)[2] < 1e-6
    assert found.inliers[right].mean() > 0.95
    exact0, exact1 = two_views(world_points(400))
    assert np.median(sampson_distance(exact0, exact1, found.F)) < 0.2


def test_relative_pose_composes() -> None:
    R0, R1 = Rotation.random(2, random_state=0).as_matrix()
    t0, t1 = np.random.default_rng(0).normal(size=(2, 3))
    rotation, translation = relative_pose(R0, t0, R1, t1)
    X = world_points(10)
    np.testing.assert_allclose((X @ R0.T + t0) @ rotation.T + translation, X @ R1.T + t1, atol=1e-12)


def test_essential_and_fundamental_vanish_on_matches() -> None:
    X = world_points(20)
    E = essential_from_pose(R, 3 * T)
    np.testing.assert_allclose(np.einsum("ni,ij,nj->n", X @ R.T + 3 * T, E, X), 0, atol=1e-9)
    F = fundamental_from_pose(R, 3 * T, K0, K1)
    np.testing.assert_allclose(np.linalg.norm(F), 1)
    x0, x1 = two_views(X, translation=3 * T)
    for distance in (epipolar_distance, sampson_distance):
        np.testing.assert_allclose(distance(x0, x1, F), 0, atol=1e-6)


def test_epipolar_distances_against_opencv_lines() -> None:
    x0, x1, _ = with_noise_and_outliers(*two_views(world_points(50)), sigma=3)
    F = fundamental_from_pose(R, T, K0, K1)
    # OpenCV's lines come with normals of unit length.
    lines1 = cv2.computeCorrespondEpilines(x0[:, None], 1, F)[:, 0]
    lines0 = cv2.computeCorrespondEpilines(x1[:, None], 2, F)[:, 0]
    d1 = np.abs((lines1[:, :2] * x1).sum(1) + lines1[:, 2])
    d0 = np.abs((lines0[:, :2] * x0).sum(1) + lines0[:, 2])
    np.testing.assert_allclose(epipolar_distance(x0, x1, F), d1, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(epipolar_distance(x1, x0, F.T), d0, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(sampson_distance(torch.from_numpy(x0), x1, F * -7), sampson_distance(x0, x1, F))


def test_sampson_distance_is_the_least_movement() -> None:
    x0, x1, _ = with_noise_and_outliers(*two_views(world_points(6)), sigma=1, outliers=0)
    F = fundamental_from_pose(R, T, K0, K1)
    scale = np.sqrt(np.abs(F).max())

    def constraint(move: Array, i: int) -> float:
        a, b = np.append(x0[i] + move[:2], 1), np.append(x1[i] + move[2:], 1)
        return float(b @ F @ a / scale)

    for i, distance in enumerate(sampson_distance(x0, x1, F)):
        least = minimize(
            lambda move: float(move @ move),
            np.full(4, 1e-3),
            constraints={"type": "eq", "fun": constraint, "args": (i,)},
            options={"ftol": 1e-12},
        )
        np.testing.assert_allclose(distance, np.linalg.norm(least.x), rtol=0.02, atol=1e-3)


def test_distance_at_the_epipole_is_zero() -> None:
    F = fundamental_from_pose(np.eye(3), np.array([0.0, 0, 1]), np.eye(3), np.eye(3))
    assert epipolar_distance(np.zeros((1, 2)), np.ones((1, 2)), F) == 0
    assert sampson_distance(np.zeros((1, 2)), np.zeros((1, 2)), F) == 0


def test_project_homography() -> None:
    H = np.array([[1.0, 0.2, 3], [0, 0.9, -2], [1e-3, 0, 1]])
    points = np.random.default_rng(0).uniform(0, 500, (10, 2))
    expected = cv2.perspectiveTransform(points[None], H)[0]
    np.testing.assert_allclose(project_homography(H, points), expected)
    np.testing.assert_allclose(project_homography(torch.from_numpy(H), torch.from_numpy(points)), expected)
    assert project_homography(H, np.empty((0, 2))).shape == (0, 2)
    assert not np.isfinite(project_homography(H, np.array([[-1000.0, 0]]))).any()


@pytest.mark.parametrize("angle", [0, 1e-7, 1e-3, 1, 90, 179.999, 180 - 1e-7, 180])
def test_rotation_error(angle: float) -> None:
    axis = np.array([1.0, -2, 3]) / np.sqrt(14)
    turned = Rotation.from_rotvec(np.radians(angle) * axis).as_matrix() @ R
    np.testing.assert_allclose(rotation_error(R, turned), angle, rtol=1e-9, atol=2e-14 if angle == 0 else 1e-13)
    assert rotation_error(R, R) < 1e-13


@pytest.mark.parametrize("angle", [0, 1e-7, 30, 90, 120, 180])
def test_translation_error(angle: float) -> None:
    a, b = np.array([1.0, 0, 0]), 5 * np.array([np.cos(np.radians(angle)), np.sin(np.radians(angle)), 0])
    np.testing.assert_allclose(translation_error(a, b, sign_matters=True), angle, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(translation_error(a, b), min(angle, 180 - angle), rtol=1e-9, atol=1e-12)


def test_homography_corner_error() -> None:
    shift = np.array([[1.0, 0, 3], [0, 1, 4], [0, 0, 1]])
    assert homography_corner_error(np.eye(3), -2 * shift, 640, 480) == pytest.approx(5)
    zoom = np.diag([2.0, 2, 1])
    expected = np.mean([0, 639, 479, np.hypot(639, 479)])
    assert homography_corner_error(np.eye(3), zoom, 640, 480) == pytest.approx(expected)
    to_infinity = np.array([[1.0, 0, 0], [0, 1, 0], [1, 0, 0]])
    assert homography_corner_error(np.eye(3), to_infinity, 640, 480) == float("inf")


@pytest.mark.parametrize("name", ESTIMATORS)
def test_wrong_points_are_named(name: str) -> None:
    estimate, points = ESTIMATORS[name], np.zeros((10, 2))
    with pytest.raises(ValueError, match=r"kpts0 has shape \(10, 3\); expected \(N, 2\)"):
        estimate(np.zeros((10, 3)), points)
    with pytest.raises(ValueError, match=r"kpts1 has shape \(2,\)"):
        estimate(points, points[0])
    with pytest.raises(ValueError, match="kpts0 has 10 points and kpts1 has 9"):
        estimate(points, points[1:])
    with pytest.raises(ValueError, match="kpts1 has NaN"):
        estimate(points, np.full((10, 2), np.nan))
    with pytest.raises(TypeError, match="kpts0 is str"):
        estimate("points", points)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("threshold", 0.0),
        ("threshold", float("nan")),
        ("confidence", 1.0),
        ("confidence", 0.0),
        ("max_iterations", 0),
        ("backend", "ransac"),
        ("seed", -1),
    ],
)
@pytest.mark.parametrize("name", ESTIMATORS)
def test_wrong_options_are_named(name: str, option: str, value: Any) -> None:
    points = np.zeros((10, 2))
    with pytest.raises(ValueError, match=f"{option} is {value!r}"):
        ESTIMATORS[name](points, points, **{option: value})


@pytest.mark.parametrize(
    "K",
    [
        np.eye(4),
        K1.T,
        np.diag([-400.0, 400, 1]),
        np.diag([400.0, 0, 1]),
        np.diag([400.0, 400, 2]),
        np.full((3, 3), np.inf),
    ],
)
def test_wrong_intrinsics_are_named(K: Array) -> None:
    points = np.zeros((10, 2))
    with pytest.raises(ValueError, match="K0 "):
        estimate_pose(points, points, K, K1)
    with pytest.raises(ValueError, match="K1 "):
        fundamental_from_pose(R, T, K0, K)


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        ((0, 0), 1e-5, r"focal lengths of 1e-05 and \d+; expected 0\.0001 to 1e\+09"),
        ((1, 1), 2e9, r"focal lengths of \d+ and 2e\+09; expected 0\.0001 to 1e\+09"),
        ((1, 1), 2.0, r"focal lengths of \d+ and 2; expected the one at most 100 times the other"),
        ((0, 1), -1e5, r"a skew of -100000; expected at most 100 times the focal length \d+"),
        ((0, 2), 1e6, r"a principal point of \(1e\+06, \d+\); expected at most 1000 times the focal lengths"),
        ((1, 2), -1e6, r"a principal point of \(\d+, -1e\+06\); expected at most 1000 times the focal lengths"),
    ],
)
def test_intrinsics_that_no_camera_has_are_told_by_what_is_wrong(
    place: tuple[int, int], value: float, words: str
) -> None:
    points = np.zeros((10, 2))
    wrong = K0.copy()
    wrong[place] = value
    for name, cameras in (("K0", (wrong, K1)), ("K1", (K0, wrong))):
        with pytest.raises(ValueError, match=f"{name} is that of no camera, with {words}"):
            estimate_pose(points, points, *cameras)


@pytest.mark.parametrize("unit", [1e-6, 1e-3, 1.0])
@pytest.mark.parametrize("backend", BACKENDS)
def test_cameras_at_the_limits_and_in_other_units_have_poses(backend: Backend, unit: float) -> None:
    """Microscopes, telescopes and crops; all in micrometres, millimetres or normalised by the focal length."""
    scale = np.diag([unit, unit, 1.0])
    strange = np.array([[900.0, 300, -20_000], [0, 300, 30_000], [0, 0, 1]])
    for camera in (K0, strange, np.diag([1e6, 1e6, 1.0])):
        X = world_points()
        x0, x1 = (project(scale @ camera, Y) for Y in (X, X @ R.T + T))
        threshold = unit * camera[1, 1] / 1000
        pose = estimate_pose(x0, x1, scale @ camera, scale @ camera, threshold=threshold, backend=backend)
        assert pose is not None
        assert rotation_error(pose.R, R) < 0.05
        assert pose.inliers.all()


def test_thresholds_under_which_anything_agrees_are_refused() -> None:
    """As of points that were normalised without their threshold, or of cameras in millimetres."""
    x0, x1 = two_views(world_points())
    with pytest.raises(ValueError, match=r"threshold is 1, more than the focal length 0\.5 of K1"):
        estimate_pose(x0, x1, K0, np.diag([0.5, 0.5, 1]))
    with pytest.raises(ValueError, match=r"threshold is 500, more than the focal length 404\.969 of K0"):
        estimate_pose(x0, x1, K0, K1, threshold=500)


def test_matrices_that_are_no_rotations_are_no_poses() -> None:
    t = np.array([0, 3.0, 4])
    wrong = [np.diag([1.0, 1, -1]), 1.001 * np.eye(3), np.zeros((3, 3)), np.full((3, 3), np.nan)]
    found = valid_poses([(R, t), *((matrix, t) for matrix in wrong), (R, np.zeros(3)), (R, np.full(3, np.inf))])
    assert len(found) == 1
    np.testing.assert_array_equal(found[0][1], [0, 0.6, 0.8])


def test_arguments_of_a_pose_are_checked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    checked = []

    def counted(value: object, name: str, shape: tuple[int | None, ...]) -> Array:
        checked.append(name)
        return real_array(value, name, shape)

    for module in ("checks", "geometry.points", "geometry.epipolar"):
        monkeypatch.setattr(f"capsdesc.{module}.real_array", counted)
    assert estimate_pose(*two_views(world_points()), K0, K1) is not None
    assert checked == ["kpts0", "kpts1", "K0", "K1"]


def test_vanishing_translations_are_named() -> None:
    with pytest.raises(ValueError, match="t is zero"):
        fundamental_from_pose(R, np.zeros(3), K0, K1)
    with pytest.raises(ValueError, match="tb is zero"):
        translation_error(T, np.zeros(3))
    with pytest.raises(ValueError, match="width x height is 0 x 5"):
        homography_corner_error(np.eye(3), np.eye(3), 0, 5)


def test_missing_poselib_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "poselib", None)
    with pytest.raises(ImportError, match=r"pip install 'capsdesc\[poselib\]'"):
        estimate_homography(np.zeros((10, 2)), np.zeros((10, 2)), backend="poselib")


def test_keypoints_of_opencv_and_empty_lists_are_taken() -> None:
    points = np.random.default_rng(3).uniform(0, 400, (40, 2)).astype(np.float32)
    moved = points * 1.5 + 7
    as_cv2 = [[cv2.KeyPoint(float(x), float(y), 1) for x, y in array] for array in (points, moved)]
    found, same = estimate_homography(*as_cv2), estimate_homography(points, moved)
    assert found is not None
    assert same is not None
    np.testing.assert_array_equal(found.H, same.H)
    assert estimate_homography([], []) is None
    assert estimate_homography(np.empty(0), np.empty(0)) is None


@pytest.mark.parametrize(
    ("name", "value"), [("threshold", "1"), ("confidence", None), ("max_iterations", 10.5), ("seed", 1.5)]
)
def test_arguments_of_the_wrong_type_are_named(name: str, value: Any) -> None:
    points = np.random.default_rng(3).uniform(0, 400, (40, 2))
    with pytest.raises(TypeError, match=name):
        estimate_homography(points, points + 1, **{name: value})
