"""Geometry: what holds for all points and poses, exact scenes found again, and nothing that crashes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from fuzzing import anything, examples, result_or_refusal
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy.spatial.transform import Rotation

from capsdesc.geometry import (
    Fundamental,
    Homography,
    RelativePose,
    as_intrinsics,
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

Array = npt.NDArray[np.float64]

BACKENDS = ("opencv", "poselib")
K = np.array([[800.0, 0, 320], [0, 800, 240], [0, 0, 1]])
ESTIMATORS: dict[str, Callable[..., RelativePose | Homography | Fundamental | None]] = {
    "pose": lambda x0, x1, **options: estimate_pose(x0, x1, K, K, **options),
    "homography": estimate_homography,
    "fundamental": estimate_fundamental,
}
DISTANCES = (epipolar_distance, sampson_distance)

seeds = st.integers(0, 2**32 - 1)
angles = st.floats(-40, 40)
rotations = st.tuples(angles, angles, angles).map(
    lambda turn: Rotation.from_euler("xyz", turn, degrees=True).as_matrix()
)
pixels = arrays.arrays(np.float64, st.tuples(st.integers(0, 8), st.just(2)), elements=st.floats(-5000, 5000, width=32))
matrices = arrays.arrays(np.float64, (3, 3), elements=st.floats(-100, 100, width=32))


@st.composite
def matched_pixels(draw: st.DrawFn, elements: st.SearchStrategy[float]) -> tuple[Array, Array]:
    shape = (draw(st.integers(0, 14)), 2)
    x0, x1 = (draw(arrays.arrays(np.float64, shape, elements=elements)) for _ in range(2))
    return x0, x1


def project(points: Array, camera: Array = K) -> Array:
    x = points @ camera.T
    return np.asarray(x[:, :2] / x[:, 2:])


# ---- distances


@examples(150)
@given(matched_pixels(st.floats(-5000, 5000, width=32)), matrices, st.sampled_from([-1.0, 1e-6, 3.7, 1e6]))
def test_distances_know_no_scale_and_no_order(points: tuple[Array, Array], F: Array, scale: float) -> None:
    x0, x1 = points
    if not F.any():
        F = np.eye(3)
    for distance in DISTANCES:
        found = distance(x0, x1, F)
        assert found.shape == (len(x0),)
        assert (found >= 0).all()
        assert np.isfinite(found).all()
        np.testing.assert_allclose(distance(x0, x1, scale * F), found, rtol=1e-6, atol=1e-9)
        order = np.arange(len(x0))[::-1]
        np.testing.assert_allclose(distance(x0[order], x1[order], F), found[order], rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(sampson_distance(x1, x0, F.T), sampson_distance(x0, x1, F), rtol=1e-6, atol=1e-9)


@examples(100)
@given(matched_pixels(st.floats(-5000, 5000, width=32)), matrices)
def test_sampson_is_the_least_of_the_distances(points: tuple[Array, Array], F: Array) -> None:
    x0, x1 = points
    sampson, to_line = sampson_distance(x0, x1, F), epipolar_distance(x0, x1, F)
    # At an epipole the distance to its line is 0 by definition.
    defined = to_line > 0
    assert (sampson[defined] <= to_line[defined] * (1 + 1e-9)).all()


# ---- poses and homographies, from one form to another


@examples(100)
@given(rotations, rotations, rotations, seeds)
def test_relative_poses_are_a_group(R0: Array, R1: Array, R2: Array, seed: int) -> None:
    t0, t1, t2 = np.random.default_rng(seed).normal(size=(3, 3))
    R01, t01 = relative_pose(R0, t0, R1, t1)
    R12, t12 = relative_pose(R1, t1, R2, t2)
    R02, t02 = relative_pose(R0, t0, R2, t2)
    np.testing.assert_allclose(R12 @ R01, R02, atol=1e-12)
    np.testing.assert_allclose(R12 @ t01 + t12, t02, atol=1e-12)
    R10, t10 = relative_pose(R1, t1, R0, t0)
    np.testing.assert_allclose(R10, R01.T, atol=1e-12)
    np.testing.assert_allclose(R10 @ t01 + t10, 0, atol=1e-12)


@examples(100)
@given(rotations, seeds)
def test_pose_to_epipolar_geometry(R: Array, seed: int) -> None:
    rng = np.random.default_rng(seed)
    t = rng.normal(size=3)
    K1 = np.array([[1200.0, 3, 500], [0, 1100, 400], [0, 0, 1]])
    E, F = essential_from_pose(R, t), fundamental_from_pose(R, t, K, K1)
    np.testing.assert_allclose(E, np.cross(t, R.T).T, atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(F), 1)
    assert abs(np.linalg.det(F)) < 1e-12
    points = rng.uniform((-1, -1, 5), (1, 1, 7), (20, 3))
    moved = points @ R.T + t
    assert (sampson_distance(project(points), project(moved, K1), F)[moved[:, 2] > 0.5] < 1e-6).all()


@examples(100)
@given(rotations, rotations, st.floats(0, 180), seeds)
def test_angles(Ra: Array, Rb: Array, angle: float, seed: int) -> None:
    assert 0 <= rotation_error(Ra, Rb) <= 180
    assert rotation_error(Ra, Rb) == pytest.approx(rotation_error(Rb, Ra), abs=1e-9)
    assert rotation_error(Ra @ Rb, Ra) == pytest.approx(rotation_error(Rb, np.eye(3)), abs=1e-9)
    axis, t = np.random.default_rng(seed).normal(size=(2, 3))
    turned = Rotation.from_rotvec(np.radians(angle) * axis / np.linalg.norm(axis)).as_matrix() @ Ra
    assert rotation_error(Ra, turned) == pytest.approx(angle, abs=1e-6)
    other = np.cross(t, axis) * np.sin(np.radians(angle)) / np.linalg.norm(np.cross(t, axis)) + t * np.cos(
        np.radians(angle)
    ) / np.linalg.norm(t)
    assert translation_error(t, 5 * other, sign_matters=True) == pytest.approx(angle, abs=1e-6)
    assert translation_error(-t, other) == pytest.approx(min(angle, 180 - angle), abs=1e-6)


@examples(100)
@given(pixels, matrices, st.sampled_from([-3.0, 1e-5, 1e5]))
def test_homographies_know_no_scale(points: Array, H: Array, scale: float) -> None:
    H = H + 300 * np.eye(3)
    H[2] = [*(H[2, :2] * 1e-7), 1]
    there = project_homography(H, points)
    np.testing.assert_allclose(project_homography(scale * H, points), there, rtol=1e-9)
    np.testing.assert_allclose(project_homography(np.linalg.inv(H), there), points, rtol=1e-6, atol=1e-6)
    assert homography_corner_error(H, scale * H, 640, 480) < 1e-6


# ---- exact scenes


@pytest.mark.parametrize("backend", BACKENDS)
@examples(12)
@given(rotations, seeds, st.integers(40, 120), st.sampled_from([0.0, 0.25]))
def test_exact_poses_are_found(backend: Any, R: Array, seed: int, count: int, outliers: float) -> None:
    rng = np.random.default_rng(seed)
    first = rng.uniform((-3, -3, 6), (3, 3, 11), (count, 3))
    # The second camera looks at the middle of the points too, from somewhere else.
    direction = rng.normal(size=3)
    t = R @ [0, 0, -8] + [0, 0, 8] + 1.5 * direction / np.linalg.norm(direction)
    second = first @ R.T + t
    x0, x1 = project(first), project(second)
    wrong = np.arange(count) < outliers * count
    x1[wrong] = rng.uniform((0, 0), (640, 480), (int(wrong.sum()), 2))
    if np.linalg.norm(t) < 0.5 or not (second[:, 2] > 1).all():
        return
    pose = estimate_pose(x0, x1, K, K, backend=backend)
    assert pose is not None
    assert pose.inliers[~wrong].all()
    # Outliers that happen to lie near their lines have a say.
    assert rotation_error(pose.R, R) < (0.5 if outliers else 0.01)
    assert translation_error(pose.t, t, sign_matters=True) < (4 if outliers else 0.1)
    F = fundamental_from_pose(R, t, K, K)
    uncalibrated = estimate_fundamental(x0, x1, backend=backend)
    assert uncalibrated is not None
    assert np.median(sampson_distance(x0[~wrong], x1[~wrong], uncalibrated.F)) < 0.3
    assert (sampson_distance(x0[~wrong], x1[~wrong], F) < 1e-6).all()


@pytest.mark.parametrize("backend", BACKENDS)
@examples(15)
@given(matrices, seeds, st.integers(12, 80), st.sampled_from([0.0, 0.3]))
def test_exact_homographies_are_found(backend: Any, jitter: Array, seed: int, count: int, outliers: float) -> None:
    rng = np.random.default_rng(seed)
    H = np.eye(3) + jitter * [[3e-3, 3e-3, 1], [3e-3, 3e-3, 1], [2e-6, 2e-6, 0]]
    x0 = rng.uniform((0, 0), (639, 479), (count, 2))
    x1 = project_homography(H, x0)
    wrong = np.arange(count) < outliers * count
    x1[wrong] += rng.choice([-1, 1], (int(wrong.sum()), 2)) * rng.uniform(50, 300, (int(wrong.sum()), 2))
    found = estimate_homography(x0, x1, backend=backend)
    assert found is not None
    np.testing.assert_array_equal(found.inliers, ~wrong)
    assert homography_corner_error(found.H, H, 640, 480) < 0.1


# ---- nothing crashes


def assert_consistent(model: RelativePose | Homography | Fundamental | None, count: int) -> None:
    if model is None:
        return
    for name, value in vars(model).items():
        assert value.shape == {"inliers": (count,), "t": (3,)}.get(name, (3, 3))
        assert np.isfinite(value).all()
    assert model.inliers.dtype == np.bool_
    if isinstance(model, RelativePose):
        np.testing.assert_allclose(model.R @ model.R.T, np.eye(3), atol=1e-6)
        np.testing.assert_allclose(np.linalg.norm(model.t), 1)


# OpenCV fails an assertion in the search for a fundamental matrix of these.
COINCIDING = (
    np.array([[2.0, -1], [-1, -1], *[[0, 0]] * 5, [2, 0], [0, 0], [1, 0], [0, 0], [0, 0], [-1, -1]]),
    np.array([[2.0, 0], [0, 1], [0, 0], [1, 1], [0, 0], [0, -1], [0, 0], [1, 0], [0, -1], [0, 2], *[[0, 0]] * 3]),
)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ESTIMATORS)
@examples(25)
@example(COINCIDING, 1e-9)
@given(
    st.one_of(
        matched_pixels(st.integers(-2, 2).map(float)),
        matched_pixels(st.floats(-1e4, 1e4, width=32)),
        matched_pixels(st.floats(allow_nan=False, allow_infinity=False)),
        matched_pixels(st.sampled_from([0.0, 1e-300, 1e300, -1e160, 1.0])),
    ),
    st.sampled_from([1e-9, 1.0, 1e9]),
)
def test_any_finite_points_give_a_model_or_none(
    name: str, backend: str, points: tuple[Array, Array], threshold: float
) -> None:
    x0, x1 = points
    options = {"backend": backend, "threshold": threshold, "max_iterations": 100}
    if name == "pose" and threshold > K[0, 0]:
        with pytest.raises(ValueError, match="more than the focal length"):
            ESTIMATORS[name](x0, x1, **options)
        return
    assert_consistent(ESTIMATORS[name](x0, x1, **options), len(x0))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("backend", BACKENDS)
@examples(25)
@given(
    seeds,
    st.floats(1e-320, 1e308) | st.floats(1e-4, 1e9),
    st.floats(1e-320, 1e308) | st.floats(1e-2, 1e2),
    st.floats(-1e308, 1e308) | st.floats(-1e3, 1e3),
    st.floats(-1e308, 1e308) | st.floats(-1e2, 1e2),
    st.sampled_from([1e-6, 1e-3, 1.0]),
)
def test_any_camera_gives_a_pose_or_none(
    backend: Any, seed: int, f: float, aspect: float, offset: float, skew: float, threshold: float
) -> None:
    x0, x1 = np.random.default_rng(seed).uniform(0, 500, (2, 12, 2))
    with np.errstate(over="ignore"):
        fx, fy, s, cx = f * np.array([1, aspect, skew, offset])
    camera = np.array([[fx, s, cx], [0, fy, 0], [0, 0, 1]])
    for cameras in ((camera, K), (camera, camera)):
        pose = result_or_refusal(
            estimate_pose, x0, x1, *cameras, backend=backend, max_iterations=100, threshold=threshold
        )
        assert_consistent(pose, len(x0))


everything = st.one_of(
    anything,
    arrays.arrays(arrays.array_dtypes() | arrays.scalar_dtypes(), arrays.array_shapes(min_side=0, max_side=4)),
    st.just(torch.zeros(3, 2, dtype=torch.complex64)),
    st.just(torch.zeros(4, 2).to_sparse()),
)


@examples(200)
@given(everything, st.sampled_from([np.zeros((3, 2)), np.eye(3), np.zeros(3)]))
def test_whatever_is_no_geometry_is_refused(wrong: Any, right: Array) -> None:
    for name in ESTIMATORS:
        result_or_refusal(ESTIMATORS[name], wrong, right)
        result_or_refusal(ESTIMATORS[name], right, wrong)
    for distance in DISTANCES:
        result_or_refusal(distance, right, right, wrong)
    for function in (relative_pose, fundamental_from_pose):
        for place in range(4):
            result_or_refusal(function, *(wrong if place == k else right for k in range(4)))
    for error in (rotation_error, translation_error, essential_from_pose, project_homography):
        result_or_refusal(error, wrong, right)
        result_or_refusal(error, right, wrong)
    result_or_refusal(as_intrinsics, wrong)


@examples(80)
@given(st.sampled_from(["threshold", "confidence", "max_iterations", "backend", "seed"]), anything)
def test_whatever_is_no_option_is_refused(option: str, value: Any) -> None:
    points = np.random.default_rng(0).uniform(0, 400, (12, 2))
    if option == "max_iterations" and isinstance(value, int) and value > 1000:
        value = 2**40 + value
    for backend in BACKENDS:
        model = result_or_refusal(estimate_homography, points, points + 3, **{"backend": backend, option: value})
        assert_consistent(model, 12)
