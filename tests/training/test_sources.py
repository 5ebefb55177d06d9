"""Sources: files written here from known cameras, read back; cv2 and plain numpy say where points must appear."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pycolmap
import pytest
import yaml
from relief import orbit, photograph, pixel_grid
from scipy.spatial.transform import Rotation

from capsdesc.geometry import sampson_distance
from capsdesc.io.colmap import overlap
from capsdesc.training.dataset import DataConfig, PairDataset, Scene
from capsdesc.training.sources import (
    CapsSource,
    ColmapSource,
    NerfSource,
    PairsSource,
    PosesSource,
    TumSource,
    add_stand_ins,
    measure_depth,
    pose_scene,
    read_sources,
)
from capsdesc.types import PosedImage

Array = npt.NDArray[Any]

WIDTH, HEIGHT = 280, 200
# For pixels whose centres are at integers.
K = np.array([[260.0, 0, 142.0], [0, 270.0, 97.0], [0, 0, 1]])
DISTORTION = (-0.12, 0.03, 0.002, -0.003, 0.01)  # OpenCV's k1, k2, p1, p2, k3
NO_DISTORTION = (0.0, 0.0, 0.0, 0.0, 0.0)
NAMES = [f"photo{k}.png" for k in range(6)]
DATA = DataConfig(width=96, height=64, queries=40, planar_share=0.0, min_covisibility=0.05, augmentation=None)


# ---------------------------------------------------------------------------------------------------------------------
# A relief and its photographs
# ---------------------------------------------------------------------------------------------------------------------


def project(rays: Array, distortion: tuple[float, ...]) -> Array:
    """(N, 2) x/z, y/z to pixels, by OpenCV."""
    points = np.c_[rays, np.ones(len(rays))]
    return np.asarray(cv2.projectPoints(points, np.zeros(3), np.zeros(3), K, np.array(distortion))[0][:, 0])


def pixel_rays(distortion: tuple[float, ...]) -> Array:
    """(h, w, 2) where each pixel looks, by fixed-point iteration."""
    pixels = pixel_grid(WIDTH, HEIGHT).reshape(-1, 2)
    rays = (pixels - K[:2, 2]) / (K[0, 0], K[1, 1])
    for _ in range(8):
        rays += (pixels - project(rays, distortion)) / (K[0, 0], K[1, 1])
    return np.asarray(rays.reshape(HEIGHT, WIDTH, 2))


def write_photographs(folder: Path, poses: list[tuple[Array, Array]], distortion: tuple[float, ...]) -> Array:
    """Write them by name; returns all depths."""
    folder.mkdir(parents=True)
    rays = pixel_rays(distortion)
    seen = [photograph(R, t, rays) for R, t in poses]
    for name, (picture, _) in zip(NAMES, seen, strict=True):
        cv2.imwrite(str(folder / name), picture[..., ::-1])
    return np.concatenate([depths.ravel() for _, depths in seen])


@dataclasses.dataclass(frozen=True, eq=False)
class Truth:
    """Poses and photographs, plain and through a lens."""

    plain: Path
    distorted: Path
    poses: list[tuple[Array, Array]]
    depths: Array


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> Truth:
    folder = tmp_path_factory.mktemp("relief")
    poses = orbit(len(NAMES), spread=24)
    depths = write_photographs(folder / "plain" / "images", poses, NO_DISTORTION)
    write_photographs(folder / "distorted" / "images", poses, DISTORTION)
    return Truth(folder / "plain", folder / "distorted", poses, depths)


# ---------------------------------------------------------------------------------------------------------------------
# The truth in each format
# ---------------------------------------------------------------------------------------------------------------------


def text(values: Array) -> str:
    return " ".join(f"{value:.12g}" for value in np.ravel(values))


def write_colmap(folder: Path, poses: list[tuple[Array, Array]]) -> None:
    """Without scene points; principal points are half a pixel up from ours."""
    folder.mkdir(parents=True)
    lens = text(np.array([K[0, 0], K[1, 1], K[0, 2] + 0.5, K[1, 2] + 0.5]))
    (folder / "cameras.txt").write_text(f"1 PINHOLE {WIDTH} {HEIGHT} {lens}\n")
    lines = []
    for k, (R, t) in enumerate(poses):
        x, y, z, w = Rotation.from_matrix(R).as_quat()
        lines.append(f"{k + 1} {text(np.array([w, x, y, z]))} {text(t)} 1 {NAMES[k]}\n\n")
    (folder / "images.txt").write_text("".join(lines))
    (folder / "points3D.txt").write_text("")


def write_caps(folder: Path, poses: list[tuple[Array, Array]]) -> None:
    lens = f"{K[0, 0]} {K[1, 1]} {K[0, 2] + 0.5} {K[1, 2] + 0.5}"
    lines = [f"{name} {WIDTH} {HEIGHT} {lens} {text(R)} {text(t)}\n" for name, (R, t) in zip(NAMES, poses, strict=True)]
    (folder / "img_cam.txt").write_text("# name w h fx fy cx cy R t\n" + "".join(lines))
    (folder / "pairs.txt").write_text(f"{NAMES[0]} {NAMES[1]}\n{NAMES[4]} {NAMES[2]}\n")


def write_pairs(path: Path, poses: list[tuple[Array, Array]]) -> None:
    lines = []
    for i, j, turns in ((0, 1, "0 0"), (2, 4, "0 0"), (2, 3, "0 1")):
        T0, T1 = (np.block([[R, t[:, None]], [np.zeros((1, 3)), np.ones((1, 1))]]) for R, t in (poses[i], poses[j]))
        lines.append(f"{NAMES[i]} {NAMES[j]} {turns} {text(K)} {text(K)} {text(T1 @ np.linalg.inv(T0))}\n")
    path.write_text("".join(lines))


def nerf_frames(poses: list[tuple[Array, Array]]) -> list[dict[str, Any]]:
    frames = []
    for name, (R, t) in zip(NAMES, poses, strict=True):
        pose = np.eye(4)
        pose[:3, :3], pose[:3, 3] = R.T, -R.T @ t
        pose[:, 1:3] *= -1
        frames.append({"file_path": f"images/{Path(name).stem}", "transform_matrix": pose.tolist()})
    return frames


def nerf_lens(distortion: tuple[float, ...]) -> dict[str, Any]:
    named = dict(zip(("k1", "k2", "p1", "p2", "k3"), distortion, strict=True))
    lens = {"fl_x": K[0, 0], "fl_y": K[1, 1], "cx": K[0, 2] + 0.5, "cy": K[1, 2] + 0.5}
    return {**lens, **named, "aabb_scale": 16}


def write_tum(folder: Path, poses: list[tuple[Array, Array]]) -> None:
    trajectory = ["# timestamp tx ty tz qx qy qz qw"]
    images = ["# timestamp file", f"1.0 images/{NAMES[0]}"]  # nobody knows where that one was
    for k, (R, t) in enumerate(poses):
        trajectory.append(f"{100 + k / 30:.4f} {text(-R.T @ t)} {text(Rotation.from_matrix(R.T).as_quat())}")
        images.append(f"{100 + k / 30 + 0.004:.4f} images/{NAMES[k]}")
    (folder / "groundtruth.txt").write_text("\n".join(trajectory))
    (folder / "rgb.txt").write_text("\n".join(images))


# ---------------------------------------------------------------------------------------------------------------------
# What was read
# ---------------------------------------------------------------------------------------------------------------------


def assert_camera(posed: PosedImage, distortion: tuple[float, ...]) -> None:
    rays = np.random.default_rng(0).uniform(-0.4, 0.4, (50, 2))
    np.testing.assert_allclose(posed.rays_to_pixels(rays), project(rays, distortion), atol=1e-6)
    assert (posed.camera.width, posed.camera.height) == (WIDTH, HEIGHT)


def assert_poses(photographs: list[PosedImage], poses: list[tuple[Array, Array]]) -> None:
    assert len(photographs) == len(poses)
    for posed, (R, t) in zip(photographs, poses, strict=True):
        np.testing.assert_allclose(posed.R, R, atol=1e-8)
        np.testing.assert_allclose(posed.t, t, atol=1e-8)


def assert_samples_are_epipolar(scene: Scene) -> None:
    """SIFT matches of the rendered views lie on the epipolar lines the sample says, whatever was read."""
    dataset = PairDataset([scene], [], dataclasses.replace(DATA, width=192, height=144), seed=0, length=4)
    distances = []
    for sample in (dataset[k] for k in range(len(dataset))):
        found = []
        for image in (sample.image0, sample.image1):
            gray = cv2.cvtColor(image.transpose(1, 2, 0), cv2.COLOR_RGB2GRAY)
            found.append(cv2.SIFT.create().detectAndCompute(gray, None))
        (keypoints0, descriptors0), (keypoints1, descriptors1) = found
        for best, second in cv2.BFMatcher().knnMatch(descriptors0, descriptors1, k=2):
            if best.distance < 0.7 * second.distance:
                points = np.array([keypoints0[best.queryIdx].pt, keypoints1[best.trainIdx].pt])
                distances.append(sampson_distance(points[:1], points[1:], sample.fundamental)[0])
    assert len(distances) > 50
    assert np.percentile(distances, 80) < 1


def test_colmap_models_without_points_are_scenes_of_poses(truth: Truth, tmp_path: Path) -> None:
    write_colmap(tmp_path / "sparse" / "0", truth.poses)
    write_colmap(tmp_path / "sparse" / "1", truth.poses[:3])
    scenes = ColmapSource(path=str(tmp_path), images=str(truth.plain / "images")).scenes(DATA)
    assert [scene.name for scene in scenes] == [f"{tmp_path.name}/0", f"{tmp_path.name}/1"]
    assert_poses(list(scenes[0].photographs), truth.poses)
    assert_poses(list(scenes[1].photographs), truth.poses[:3])
    assert_camera(scenes[0].photographs[0], NO_DISTORTION)
    assert_samples_are_epipolar(scenes[0])


def test_binary_colmap_models_with_points_keep_them(truth: Truth, tmp_path: Path) -> None:
    write_colmap(tmp_path / "text", truth.poses)
    model = pycolmap.Reconstruction(tmp_path / "text")
    rng = np.random.default_rng(0)
    for image in model.images.values():
        image.points2D = [pycolmap.Point2D(rng.uniform(0, 200, 2)) for _ in range(40)]
    for k in range(40):
        track = [pycolmap.TrackElement(image_id, k) for image_id in model.images]
        model.add_point3D(rng.uniform(-1, 1, 3), pycolmap.Track(track))
    (tmp_path / "scene" / "sparse").mkdir(parents=True)
    model.write_binary(tmp_path / "scene" / "sparse")
    (scene,) = ColmapSource(path=str(tmp_path / "scene"), images=str(truth.plain / "images")).scenes(DATA)
    assert [len(posed.points) for posed in scene.photographs] == [40] * len(NAMES)
    expected = np.array([model.points3D[k].xyz for k in sorted(model.points3D)])
    np.testing.assert_allclose(scene.photographs[0].points, expected)


def test_the_authors_megadepth(truth: Truth, tmp_path: Path) -> None:
    aligned = tmp_path / "0015" / "dense0" / "aligned"
    aligned.mkdir(parents=True)
    (aligned / "images").symlink_to(truth.plain / "images")
    write_caps(aligned, truth.poses)
    for path in (tmp_path, aligned):
        (scene,) = CapsSource(path=str(path), depth=(2.0, 8.0)).scenes(DATA)
        assert scene.name == "0015/dense0"
        assert scene.pairs.tolist() == [[0, 1], [4, 2]]
        assert_poses(list(scene.photographs), truth.poses)
        assert_camera(scene.photographs[3], NO_DISTORTION)
    assert_samples_are_epipolar(scene)
    assert CapsSource(path="x").depth == (4.0, 400.0)


def test_pairs_files(truth: Truth, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_pairs(tmp_path / "pairs.txt", truth.poses)
    (scene,) = PairsSource(path=str(tmp_path / "pairs.txt"), images=str(truth.plain / "images")).scenes(DATA)
    assert "1 pairs turned against each other left out" in caplog.text
    assert scene.pairs.tolist() == [[0, 1], [2, 3]]
    for (i, j), (first, second) in zip(((0, 1), (2, 4)), scene.pairs, strict=True):
        assert scene.photographs[first].path.name == NAMES[i]
        (R0, t0), (R1, t1) = truth.poses[i], truth.poses[j]
        np.testing.assert_allclose(scene.photographs[second].R, R1 @ R0.T, atol=1e-8)
        np.testing.assert_allclose(scene.photographs[second].t, t1 - R1 @ R0.T @ t0, atol=1e-8)
    assert_camera(scene.photographs[2], NO_DISTORTION)
    assert_samples_are_epipolar(scene)


def test_nerf_transforms(truth: Truth, tmp_path: Path) -> None:
    (tmp_path / "images").symlink_to(truth.distorted / "images")
    frames = nerf_frames(truth.poses)
    (tmp_path / "transforms.json").write_text(json.dumps({**nerf_lens(DISTORTION), "frames": frames}))
    (scene,) = NerfSource(path=str(tmp_path)).scenes(DATA)
    assert_poses(list(scene.photographs), truth.poses)
    assert_camera(scene.photographs[5], DISTORTION)
    assert [posed.path.name for posed in scene.photographs] == NAMES
    assert_samples_are_epipolar(scene)

    # Blender's files have only an angle; a frame's own intrinsics come first.
    angle = 2 * np.arctan(WIDTH / 2 / K[0, 0])
    frames[1] = {**frames[1], **nerf_lens(NO_DISTORTION)}
    (tmp_path / "blender.json").write_text(json.dumps({"camera_angle_x": angle, "frames": frames}))
    (scene,) = NerfSource(path=str(tmp_path / "blender.json"), depth=(2.0, 7.0)).scenes(DATA)
    expected = [[K[0, 0], 0, (WIDTH - 1) / 2], [0, K[0, 0], (HEIGHT - 1) / 2], [0, 0, 1]]
    np.testing.assert_allclose(scene.photographs[0].K, expected)
    np.testing.assert_allclose(scene.photographs[1].K, K)


def test_nerf_fisheye(truth: Truth, tmp_path: Path) -> None:
    (tmp_path / "images").symlink_to(truth.plain / "images")
    coefficients = {"k1": 0.05, "k2": -0.02, "k3": 0.01, "k4": -0.004}
    lens = {**nerf_lens(NO_DISTORTION), **coefficients, "camera_model": "OPENCV_FISHEYE"}
    (tmp_path / "transforms.json").write_text(json.dumps({**lens, "frames": nerf_frames(truth.poses)}))
    (scene,) = NerfSource(path=str(tmp_path), depth=(2.0, 7.0)).scenes(DATA)
    rays = np.random.default_rng(0).uniform(-0.8, 0.8, (50, 2))
    points = np.c_[rays, np.ones(50)][:, None]
    expected = cv2.fisheye.projectPoints(points, np.zeros(3), np.zeros(3), K, np.array(list(coefficients.values())))[0]
    np.testing.assert_allclose(scene.photographs[0].rays_to_pixels(rays), expected[:, 0], atol=1e-6)


def test_tum_trajectories(truth: Truth, tmp_path: Path) -> None:
    (tmp_path / "images").symlink_to(truth.distorted / "images")
    write_tum(tmp_path, truth.poses)
    source = TumSource(
        path=str(tmp_path), intrinsics=(K[0, 0], K[1, 1], K[0, 2], K[1, 2]), distortion=DISTORTION, depth=(2.5, 6.0)
    )
    (scene,) = source.scenes(DATA)
    assert_poses(list(scene.photographs), truth.poses)
    assert_camera(scene.photographs[0], DISTORTION)
    assert_samples_are_epipolar(scene)
    (thinned,) = dataclasses.replace(source, every=2).scenes(DATA)
    assert [posed.path.name for posed in thinned.photographs] == NAMES[1::2]
    with pytest.raises(ValueError, match="clock"):
        dataclasses.replace(source, max_difference=0.001).scenes(DATA)


# ---------------------------------------------------------------------------------------------------------------------
# Files of other sizes than their cameras
# ---------------------------------------------------------------------------------------------------------------------


def changed_photographs(source: Path, folder: Path, change: Callable[[Array], Array], skip: int = 0) -> None:
    folder.mkdir(parents=True)
    for number, path in enumerate(sorted(source.iterdir())):
        picture = np.asarray(cv2.imread(str(path)))
        cv2.imwrite(str(folder / path.name), picture if number < skip else change(picture))


def resized(factor: float) -> Callable[[Array], Array]:
    return lambda picture: np.asarray(cv2.resize(picture, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA))


def scene_of(kind: str, folder: Path, poses: list[tuple[Array, Array]]) -> list[Scene]:
    """A source of cameras of ``WIDTH`` x ``HEIGHT``, whose photographs are in ``images``."""
    if kind == "colmap":
        write_colmap(folder / "sparse" / "0", poses)
        return ColmapSource(path=str(folder)).scenes(DATA)
    if kind == "caps":
        write_caps(folder, poses)
        return CapsSource(path=str(folder), depth=(2.0, 8.0)).scenes(DATA)
    if kind == "nerf":
        content = {**nerf_lens(NO_DISTORTION), "w": WIDTH, "h": HEIGHT, "frames": nerf_frames(poses)}
        (folder / "transforms.json").write_text(json.dumps(content))
        return NerfSource(path=str(folder), depth=(2.0, 8.0)).scenes(DATA)
    write_tum(folder, poses)
    intrinsics = (K[0, 0], K[1, 1], K[0, 2], K[1, 2])
    return TumSource(path=str(folder), intrinsics=intrinsics, depth=(2.0, 8.0)).scenes(DATA)


@pytest.mark.parametrize("factor", [0.5, 2.0])
@pytest.mark.parametrize("kind", ["colmap", "caps", "nerf", "tum"])
def test_cameras_follow_files_that_were_resized(
    kind: str, factor: float, truth: Truth, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # The intrinsics of a TUM sequence are those of its first image.
    changed_photographs(truth.plain / "images", tmp_path / "images", resized(factor), skip=int(kind == "tum"))
    (scene,) = scene_of(kind, tmp_path, truth.poses)
    corner = np.array([[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]])  # from the centre of the top-left pixel to its corner
    expected = np.diag([factor, factor, 1]) @ (K + corner) - corner
    for posed in scene.photographs[1:]:
        np.testing.assert_allclose(posed.K, expected)
        assert (posed.camera.width, posed.camera.height) == (factor * WIDTH, factor * HEIGHT)
    assert caplog.text.count("files were resized since") == 1
    assert_samples_are_epipolar(scene)


@pytest.mark.parametrize("kind", ["colmap", "caps", "nerf", "tum"])
def test_files_turned_against_their_cameras_are_refused(kind: str, truth: Truth, tmp_path: Path) -> None:
    changed_photographs(truth.plain / "images", tmp_path / "images", lambda picture: np.rot90(picture).copy(), skip=1)
    message = f"{NAMES[1]} has {HEIGHT} x {WIDTH} pixels, but its camera in .* is of {WIDTH} x {HEIGHT}"
    with pytest.raises(ValueError, match=message):
        scene_of(kind, tmp_path, truth.poses)


def test_transforms_without_a_size_are_of_each_files_own(truth: Truth, tmp_path: Path) -> None:
    changed_photographs(truth.plain / "images", tmp_path / "images", resized(0.5), skip=3)
    frames = nerf_frames(truth.poses)
    angle = float(2 * np.arctan(WIDTH / 2 / 260))
    (tmp_path / "transforms.json").write_text(json.dumps({"camera_angle_x": angle, "frames": frames}))
    source = NerfSource(path=str(tmp_path), depth=(2.0, 8.0))
    (scene,) = source.scenes(DATA)
    sizes = [(posed.camera.width, posed.camera.height) for posed in scene.photographs]
    assert sizes == 3 * [(WIDTH, HEIGHT)] + 3 * [(WIDTH // 2, HEIGHT // 2)]
    np.testing.assert_allclose([posed.K[0, 0] for posed in scene.photographs], 3 * [260.0] + 3 * [130.0])
    # What is in pixels cannot be of both sizes.
    (tmp_path / "transforms.json").write_text(json.dumps({"fl_x": 260.0, "frames": frames}))
    with pytest.raises(
        ValueError, match=r"frames\[3\]: .*photo3.png has 140 x 100 .*photo0.png 280 x 200, .* once for all"
    ):
        source.scenes(DATA)
    own = [{**frame, "fl_x": 260.0 if k < 3 else 130.0} for k, frame in enumerate(frames)]
    (tmp_path / "transforms.json").write_text(json.dumps({"frames": own}))
    np.testing.assert_allclose(source.scenes(DATA)[0].photographs[5].K[0, 0], 130.0)


@pytest.mark.parametrize("factor", [0.5, 1.0, 2.0])
def test_intrinsics_that_look_like_those_of_other_files_are_warned_of(
    factor: float, truth: Truth, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    changed_photographs(truth.plain / "images", tmp_path / "images", resized(factor))
    write_pairs(tmp_path / "images" / "pairs.txt", truth.poses)
    PairsSource(path=str(tmp_path / "images" / "pairs.txt"), depth=(2.0, 8.0)).scenes(DATA)
    scene_of("tum", tmp_path, truth.poses)
    warnings = [record.getMessage() for record in caplog.records if "principal points" in record.getMessage()]
    assert len(warnings) == (0 if factor == 1 else 2)
    assert all(f"of {factor * WIDTH:.0f} x {factor * HEIGHT:.0f} pixels" in warning for warning in warnings)


# ---------------------------------------------------------------------------------------------------------------------
# Depth and stand-ins
# ---------------------------------------------------------------------------------------------------------------------


def pinholes(poses: list[tuple[Array, Array]], folder: Path) -> list[PosedImage]:
    lens = [K[0, 0], K[1, 1], K[0, 2] + 0.5, K[1, 2] + 0.5]
    camera = pycolmap.Camera(model="PINHOLE", width=WIDTH, height=HEIGHT, params=lens)
    return [
        PosedImage(folder / name, camera, R, t, np.empty((0, 3)), np.empty(0, dtype=np.int64))
        for name, (R, t) in zip(NAMES, poses, strict=False)
    ]


@pytest.mark.parametrize("pairs", [None, np.array([[0, 2], [3, 5]])])
def test_measured_depths_are_those_of_the_scene(truth: Truth, pairs: Array | None) -> None:
    near, far = measure_depth(pinholes(truth.poses, truth.plain / "images"), pairs)
    assert near == pytest.approx(np.percentile(truth.depths, 2), rel=0.1)
    assert far == pytest.approx(np.percentile(truth.depths, 98), rel=0.1)


def test_depths_that_contradict_the_poses_are_refused(truth: Truth) -> None:
    wrong = [(R, np.roll(t, 1) + k) for k, (R, t) in enumerate(truth.poses)]
    with pytest.raises(ValueError, match=r"depth: \[near, far\]"):
        measure_depth(pinholes(wrong, truth.plain / "images"))
    with pytest.raises(ValueError, match="cannot be measured"):
        measure_depth([])


def test_stand_ins_are_the_points_in_the_frustum(truth: Truth) -> None:
    photographs = add_stand_ins(pinholes(truth.poses, truth.plain), (2.0, 8.0))
    everywhere = {
        int(point_id): point
        for posed in photographs
        for point_id, point in zip(posed.point_ids, posed.points, strict=True)
    }
    ids = np.array(sorted(everywhere))
    points = np.array([everywhere[point_id] for point_id in ids.tolist()])
    for posed in photographs:
        camera = points @ posed.R.T + posed.t
        pixels = camera @ K.T
        pixels = pixels[:, :2] / pixels[:, 2:]
        inside = ((pixels >= 0) & (pixels <= (WIDTH - 1, HEIGHT - 1))).all(1)
        inside &= (camera[:, 2] >= 2) & (camera[:, 2] <= 8)
        np.testing.assert_array_equal(posed.point_ids, ids[inside])
        np.testing.assert_array_equal(posed.points, points[inside])
    assert overlap(photographs[0], photographs[1]) > overlap(photographs[0], photographs[5]) > 0


def test_cameras_back_to_back_are_no_pair(truth: Truth) -> None:
    R, t = truth.poses[0]
    poses = [(R, t), (np.diag([-1.0, 1, -1]) @ R, np.array([0.0, 0, -9])), truth.poses[2]]
    scene = pose_scene("", pinholes(poses, truth.plain), dataclasses.replace(DATA, max_rotation=180), (1.0, 4.0))
    assert scene.pairs.tolist() == [[0, 2]]
    listed = np.array([[0, 1], [0, 2]])
    scene = pose_scene("", pinholes(poses, truth.plain), DATA, (1.0, 4.0), listed)
    assert scene.pairs.tolist() == [[0, 2]]


def test_no_photographs_are_no_scene_and_no_error() -> None:
    scene = pose_scene("", [], DATA, (1.0, 4.0))
    assert len(scene.photographs) == 0
    assert scene.pairs.shape == (0, 2)


# ---------------------------------------------------------------------------------------------------------------------
# Lists of sources, and what is refused
# ---------------------------------------------------------------------------------------------------------------------


def test_sources_are_read_from_yaml(tmp_path: Path) -> None:
    listed = [
        {"kind": "colmap", "path": "a", "weight": 2},
        {"kind": "pairs", "path": "/b/pairs.txt", "images": "c", "depth": [0.5, 9]},
        {"kind": "tum", "path": "d", "intrinsics": [500, 500, 320, 240]},
        {"kind": "caps", "path": "e", "depth": None},
    ]
    (tmp_path / "sources.yaml").write_text(yaml.safe_dump(listed))
    colmap, pairs, tum, caps = read_sources(tmp_path / "sources.yaml")
    assert colmap == ColmapSource(path=str(tmp_path / "a"), weight=2.0)
    assert pairs == PairsSource(path="/b/pairs.txt", images=str(tmp_path / "c"), depth=(0.5, 9.0))
    assert isinstance(tum, TumSource)
    assert tum.intrinsics == (500.0, 500.0, 320.0, 240.0)
    assert isinstance(caps, PosesSource)
    assert caps.depth is None


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ("- kind: colmap\n  path: a\n  colour: 1", r"source 1 of 1: unknown setting colour"),
        ("- kind: colmap\n  path: a\n- kind: scannet\n  path: b", r"source 2 of 2: kind is 'scannet'; expected one of"),
        ("- kind: tum\n  path: a", "source 1 of 1: a tum source needs intrinsics"),
        ("- kind: nerf\n  path: a\n  depth: [4, 2]", "depth is .* expected the smaller"),
        ("- kind: nerf\n  path: a\n  weight: -1", "weight is -1"),
        ("- kind: nerf\n  path: 7", "path is 7; expected a text"),
        ("kind: nerf\npath: a", "expected a list of sources"),
        ("- [", "no valid YAML"),
    ],
)
def test_wrong_lists_are_refused(tmp_path: Path, entries: str, message: str) -> None:
    (tmp_path / "sources.yaml").write_text(entries)
    with pytest.raises(ValueError, match=message):
        read_sources(tmp_path / "sources.yaml")


def replace_text(name: str, old: str, new: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / name
        changed = path.read_text().replace(old, new, 1)
        assert changed != path.read_text()
        path.write_text(changed)

    return change


@pytest.mark.parametrize(
    ("kind", "change", "error", "message"),
    [
        ("caps", replace_text("img_cam.txt", f"{WIDTH} {HEIGHT} ", ""), ValueError, "img_cam.txt, line 2: 17 fields"),
        ("caps", replace_text("img_cam.txt", "260.0", "many"), ValueError, "img_cam.txt, line 2: .*expected numbers"),
        ("caps", replace_text("img_cam.txt", "260.0", "-300"), ValueError, "line 2: .*positive focal"),
        ("caps", replace_text("img_cam.txt", NAMES[1], NAMES[0]), ValueError, "line 3: photo0.png .* a second time"),
        ("caps", replace_text("img_cam.txt", NAMES[1], "gone.png"), FileNotFoundError, "line 3: .*gone.png"),
        ("caps", replace_text("pairs.txt", NAMES[4], "gone.png"), ValueError, "pairs.txt, line 2: .*gone.png"),
        ("nerf", replace_text("transforms.json", "[", "{"), ValueError, "no valid JSON"),
        ("nerf", replace_text("transforms.json", "frames", "views"), ValueError, "no list of frames"),
        ("nerf", replace_text("transforms.json", "photo2", "gone"), FileNotFoundError, r"frames\[2\]: .*gone"),
        ("nerf", replace_text("transforms.json", "[[", "[[0,0,0,0], ["), ValueError, r"frames\[0\]: transform_matrix"),
        ("nerf", replace_text("transforms.json", "[[", "[[1"), ValueError, r"frames\[0\]: .* is no rotation"),
        ("nerf", replace_text("transforms.json", '"fl_x"', '"fl"'), ValueError, "expected fl_x or camera_angle_x"),
        ("nerf", replace_text("transforms.json", '"k1"', '"k4": 0.1, "k1"'), ValueError, "k4 is 0.1"),
        ("tum", replace_text("groundtruth.txt", "100.0000", ""), ValueError, "groundtruth.txt, line 2: 7 fields"),
        ("tum", replace_text("groundtruth.txt", "100.0000", "nan"), ValueError, "line 2: .*not finite"),
        ("tum", replace_text("rgb.txt", NAMES[3], "gone.png"), FileNotFoundError, "rgb.txt, line 6: .*gone.png"),
    ],
)
def test_wrong_files_are_named_with_the_line(
    truth: Truth,
    tmp_path: Path,
    kind: str,
    change: Callable[[Path], None],
    error: type[Exception],
    message: str,
) -> None:
    (tmp_path / "images").symlink_to(truth.plain / "images")
    write_caps(tmp_path, truth.poses)
    write_tum(tmp_path, truth.poses)
    whole = {**nerf_lens(DISTORTION), "frames": nerf_frames(truth.poses)}
    (tmp_path / "transforms.json").write_text(json.dumps(whole))
    change(tmp_path)
    sources = {
        "caps": CapsSource(path=str(tmp_path)),
        "nerf": NerfSource(path=str(tmp_path)),
        "tum": TumSource(path=str(tmp_path), intrinsics=(300.0, 300.0, 160.0, 120.0)),
    }
    with pytest.raises(error, match=message):
        sources[kind].scenes(DATA)
