"""Training: views, pairs, settings, and whole runs of the command on a small synthetic reconstruction."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pycolmap
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from scipy.spatial.transform import Rotation
from torch.utils.data import DataLoader

import capsdesc
from capsdesc.commands.train import main
from capsdesc.devices import fastest_dtype
from capsdesc.geometry import epipolar_distance, fundamental_from_pose, relative_pose
from capsdesc.io.colmap import read_model
from capsdesc.io.locks import sole_use
from capsdesc.isolation import isolated
from capsdesc.models import ModelConfig, build_network
from capsdesc.training.augmentation import AugmentationConfig, augment
from capsdesc.training.checkpoint import BEST, CHECKPOINT, CONFIG, LOG
from capsdesc.training.config import OptimizerConfig, TrainingConfig
from capsdesc.training.dataset import DataConfig, PairDataset, Scene, TrainingPair, collate, covisible_pairs, seen_in
from capsdesc.training.loop import Outcome, learning_rate_factor, make_optimizer, train
from capsdesc.training.losses import LossConfig
from capsdesc.training.start import read_scenes
from capsdesc.training.validation import validate
from capsdesc.training.views import VirtualCamera, aim, random_homography, render_camera, render_homography
from capsdesc.types import PosedImage
from capsdesc.weights import resolve

Array = npt.NDArray[Any]

WIDTH, HEIGHT = 200, 160
# SIMPLE_RADIAL as COLMAP writes it: focal length, principal point (half a pixel up from ours), radial distortion.
LENS = (220.0, 100.0, 80.0, -0.08)
# Each camera model's parameters for photographs of 400 x 300.
LENSES = {
    "SIMPLE_RADIAL": [360.0, 204.0, 147.0, -0.12],
    "OPENCV": [350.0, 365.0, 196.0, 155.0, -0.15, 0.04, 2e-3, -3e-3],
}
DATA = DataConfig(width=96, height=64, queries=40, augmentation=None)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    # Bits depend on how sums are shared out among threads.
    torch.set_num_threads(1)


# ---------------------------------------------------------------------------------------------------------------------
# Cameras, a scene and its photographs, in plain numpy
# ---------------------------------------------------------------------------------------------------------------------


def project_rays(model: str, params: list[float], rays: Array) -> Array:
    """(N, 2) x/z, y/z through a lens to pixels, (0, 0) the centre of the top-left one."""
    x, y = rays.T
    r2 = x**2 + y**2
    if model == "SIMPLE_RADIAL":
        f, cx, cy, k = params
        return np.stack([f * x * (1 + k * r2) + cx, f * y * (1 + k * r2) + cy], axis=1) - 0.5
    fx, fy, cx, cy, k1, k2, p1, p2 = params
    radial = 1 + k1 * r2 + k2 * r2**2
    u = x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x**2)
    v = y * radial + 2 * p2 * x * y + p1 * (r2 + 2 * y**2)
    return np.stack([fx * u + cx, fy * v + cy], axis=1) - 0.5


def pixels_to_rays(pixels: Array) -> Array:
    """The inverse for the scene's lens, by fixed-point iteration."""
    f, cx, cy, k = LENS
    distorted = (pixels + 0.5 - (cx, cy)) / f
    rays = distorted
    for _ in range(50):
        rays = distorted / (1 + k * (rays**2).sum(1, keepdims=True))
    return np.asarray(rays)


def noise_texture(rng: np.random.Generator, size: int = 700) -> Array:
    """Coloured blobs of all sizes."""
    texture = np.zeros((size, size, 3))
    for cells in (8, 24, 70, 200):
        grid = rng.normal(size=(cells, cells, 3)).astype(np.float32)
        texture += cv2.resize(grid, (size, size), interpolation=cv2.INTER_CUBIC)
    return np.clip(128 + 45 * texture, 0, 255).astype(np.uint8)


def look_at_origin(azimuth: float, elevation: float, distance: float, roll: float) -> tuple[Array, Array]:
    """World-to-camera pose of a camera that looks at the origin; angles in degrees."""
    R = Rotation.from_euler("zxy", [roll, elevation, azimuth], degrees=True).as_matrix()
    return R, np.array([0, 0, distance])


def hit(R: Array, t: Array, rays: Array) -> tuple[Array, Array]:
    """World points that rays meet first, and which: the wall z = 0, or the board that stands before it."""
    center, directions = -R.T @ t, np.c_[rays, np.ones(len(rays))] @ R
    wall = center + directions * (-center[2] / directions[:, 2])[:, None]
    board = center + directions * ((-0.7 - center[2]) / directions[:, 2])[:, None]
    on_board = (np.abs(board[:, :2]) < (0.7, 0.5)).all(1)
    return np.where(on_board[:, None], board, wall), on_board


@dataclasses.dataclass(frozen=True, eq=False)
class Truth:
    """What the synthetic reconstruction was made from."""

    folder: Path
    poses: list[tuple[Array, Array]]
    points: Array
    names: list[str]


def make_scene(folder: Path) -> Truth:
    """Eight photographs of a wall with a board before it, and their COLMAP model as text."""
    rng = np.random.default_rng(0)
    textures = [noise_texture(rng) for _ in range(2)]
    poses = [
        look_at_origin(azimuth, rng.uniform(-8, 8), rng.uniform(3.6, 4.4), rng.uniform(-5, 5))
        for azimuth in np.linspace(-28, 28, 8)
    ]
    names = [f"{'left' if k < 4 else 'right'}/{k}.png" for k in range(len(poses))]
    x, y = np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT))
    grid = pixels_to_rays(np.stack([x.ravel(), y.ravel()], axis=1).astype(float))
    for name, (R, t) in zip(names, poses, strict=True):
        world, on_board = hit(R, t, grid)
        places = ((world[:, :2] + 5) * 70).astype(np.float32).reshape(HEIGHT, WIDTH, 2)
        shown = [
            cv2.remap(texture, places[..., 0], places[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
            for texture in textures
        ]
        picture = np.where(on_board.reshape(HEIGHT, WIDTH, 1), shown[1], shown[0])
        path = folder / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), picture[..., ::-1])

    points = np.concatenate([hit(R, t, grid[rng.integers(len(grid), size=60)])[0] for R, t in poses])
    write_model(folder / "sparse" / "0", poses, points, names)
    return Truth(folder, poses, points, names)


def write_model(folder: Path, poses: list[tuple[Array, Array]], points: Array, names: list[str]) -> None:
    """COLMAP's text format, from its documentation; its pixels begin at the corner of the top-left one."""
    folder.mkdir(parents=True)
    pixels, visible = [], []
    for R, t in poses:
        camera = points @ R.T + t
        rays = camera[:, :2] / camera[:, 2:]
        pixels.append(project_rays("SIMPLE_RADIAL", list(LENS), rays))
        inside = ((pixels[-1] > 0) & (pixels[-1] < (WIDTH - 1, HEIGHT - 1))).all(1)
        visible.append(inside & (np.abs(hit(R, t, rays)[0] - points).max(1) < 1e-6))
    tracked = np.sum(visible, axis=0) >= 2
    tracks: list[list[str]] = [[] for _ in points]
    images = []
    for k, (R, t) in enumerate(poses):
        observations = []
        for index, point in enumerate(np.flatnonzero(visible[k] & tracked)):
            u, v = pixels[k][point] + 0.5
            observations.append(f"{u} {v} {point + 1}")
            tracks[point].append(f"{k + 1} {index}")
        x, y, z, w = Rotation.from_matrix(R).as_quat()
        images.append(f"{k + 1} {w} {x} {y} {z} {t[0]} {t[1]} {t[2]} 1 {names[k]}\n{' '.join(observations)}\n")
    lens = " ".join(map(str, LENS))
    (folder / "cameras.txt").write_text(f"1 SIMPLE_RADIAL {WIDTH} {HEIGHT} {lens}\n")
    (folder / "images.txt").write_text("".join(images))
    lines = [
        f"{index} {x} {y} {z} 128 128 128 0.5 {' '.join(track)}\n"
        for index, ((x, y, z), track) in enumerate(zip(points, tracks, strict=True), start=1)
        if track
    ]
    (folder / "points3D.txt").write_text("".join(lines))


@pytest.fixture(scope="session")
def truth(tmp_path_factory: pytest.TempPathFactory) -> Truth:
    return make_scene(tmp_path_factory.mktemp("scene") / "wall")


@pytest.fixture(scope="session")
def scene(truth: Truth) -> Scene:
    return read_scenes(truth.folder, DATA)[0]


# ---------------------------------------------------------------------------------------------------------------------
# COLMAP models
# ---------------------------------------------------------------------------------------------------------------------


def assert_is_truth(photographs: list[PosedImage], truth: Truth) -> None:
    assert [photo.path for photo in photographs] == [truth.folder / "images" / name for name in truth.names]
    for photo, (R, t) in zip(photographs, truth.poses, strict=True):
        np.testing.assert_allclose(photo.R, R, atol=1e-9)
        np.testing.assert_allclose(photo.t, t, atol=1e-9)
        assert len(photo.point_ids) > 100
        assert (np.diff(photo.point_ids) > 0).all()
        np.testing.assert_allclose(photo.points, truth.points[photo.point_ids - 1], atol=1e-9)
        rays = (photo.points @ R.T + t)[:, :2] / (photo.points @ R.T + t)[:, 2:]
        pixels = project_rays("SIMPLE_RADIAL", list(LENS), rays)
        np.testing.assert_allclose(photo.rays_to_pixels(rays), pixels, atol=1e-9)
        np.testing.assert_allclose(photo.pixels_to_rays(pixels), rays, atol=1e-6)


def test_text_and_binary_models_are_read_as_they_are(truth: Truth, tmp_path: Path) -> None:
    text = truth.folder / "sparse" / "0"
    assert_is_truth(read_model(text, truth.folder / "images"), truth)
    pycolmap.Reconstruction(str(text)).write_binary(str(tmp_path))
    assert_is_truth(read_model(str(tmp_path), str(truth.folder / "images")), truth)


def test_missing_photographs_are_named_and_left_out(
    truth: Truth, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(truth.folder / "images", tmp_path / "images")
    (tmp_path / "images" / truth.names[2]).unlink()
    photographs = read_model(truth.folder / "sparse" / "0", tmp_path / "images")
    assert len(photographs) == len(truth.names) - 1
    assert truth.names[2] in caplog.text
    (tmp_path / "nothing").mkdir()
    with pytest.raises(ValueError, match="none of the images"):
        read_model(truth.folder / "sparse" / "0", tmp_path / "nothing")


def test_no_model_or_a_broken_one_is_refused(truth: Truth, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no COLMAP model"):
        read_model(tmp_path, truth.folder / "images")
    with pytest.raises(FileNotFoundError, match="no image folder"):
        read_model(truth.folder / "sparse" / "0", tmp_path / "nowhere")
    for name in ("cameras", "images", "points3D"):
        (tmp_path / f"{name}.bin").write_bytes(b"\xff" * 37)
    with pytest.raises(ValueError, match="cannot be read"):
        read_model(tmp_path, truth.folder / "images")


# ---------------------------------------------------------------------------------------------------------------------
# Views
# ---------------------------------------------------------------------------------------------------------------------


def draw_dots(size: tuple[int, int], places: Array) -> Array:
    """Blobs of light whose centroids are these pixels exactly."""
    x, y = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    light = np.zeros((size[1], size[0]))
    for u, v in places:
        light += 240 * np.exp(-((x - u) ** 2 + (y - v) ** 2) / (2 * 1.8**2))
    return np.repeat(np.clip(np.rint(light), 0, 255).astype(np.uint8)[..., None], 3, axis=2)


def assert_dots_at(image: Array, places: Array, tolerance: float, least: int) -> None:
    """Centroids of the light around those places that lie well inside."""
    height, width = image.shape[:2]
    margin = 7
    judged = 0
    for u, v in places[((places > margin + 2) & (places < (width - margin - 3, height - margin - 3))).all(1)]:
        column, row = round(u), round(v)
        patch = image[row - margin : row + margin + 1, column - margin : column + margin + 1, 0].astype(float)
        dy, dx = np.mgrid[-margin : margin + 1, -margin : margin + 1]
        assert patch.max() > 60
        found = np.array([column + (patch * dx).sum() / patch.sum(), row + (patch * dy).sum() / patch.sum()])
        assert np.linalg.norm(found - (u, v)) < tolerance
        judged += 1
    assert judged >= least


def dotted_photograph(model: str) -> tuple[PosedImage, Array, Array]:
    """A photograph of dots at known world points, through a real lens."""
    rng = np.random.default_rng(1)
    R, t = Rotation.from_euler("xyz", [20, -35, 50], degrees=True).as_matrix(), np.array([0.3, -0.5, 1.2])
    x, y = np.meshgrid(np.linspace(-0.5, 0.5, 13), np.linspace(-0.36, 0.36, 10))
    rays = np.stack([x.ravel(), y.ravel()], axis=1) + rng.uniform(-0.004, 0.004, (x.size, 2))
    world = (np.c_[rays, np.ones(len(rays))] * rng.uniform(2, 9, (len(rays), 1)) - t) @ R
    params = LENSES[model]
    posed = PosedImage(
        path=Path("unused"),
        camera=pycolmap.Camera(model=model, width=400, height=300, params=params),
        R=R,
        t=t,
        points=world,
        point_ids=np.arange(len(world)),
    )
    return posed, world, draw_dots((400, 300), project_rays(model, params, rays))


@pytest.mark.parametrize("model", LENSES)
@pytest.mark.parametrize(("zoom", "degrees"), [(1.0, 0.0), (0.75, 14.0), (1.3, -25.0)])
def test_virtual_camera_shows_points_where_it_projects_them(model: str, zoom: float, degrees: float) -> None:
    posed, world, photograph = dotted_photograph(model)
    size = (300, 220)
    camera = aim(posed, world[68], size, zoom, degrees)
    places, depths = camera.project(world)
    np.testing.assert_allclose(depths, (world @ posed.R.T + posed.t)[:, 2], rtol=1e-9)
    view = render_camera(posed, photograph, camera, size)
    assert view.image.shape == (220, 300, 3)
    assert_dots_at(view.image, places, tolerance=0.3, least=25)


@pytest.mark.parametrize("model", LENSES)
def test_virtual_camera_stands_where_the_photograph_was_taken(model: str) -> None:
    posed, world, photograph = dotted_photograph(model)
    size = (240, 180)
    camera = aim(posed, world[30], size, 0.4, 30.0)
    np.testing.assert_allclose(-camera.R.T @ camera.t, -posed.R.T @ posed.t, atol=1e-12)
    np.testing.assert_allclose(camera.R, camera.turn @ posed.R, atol=1e-12)
    ray = (posed.R @ world[30] + posed.t)[None]
    shown = project_rays(model, LENSES[model], ray[:, :2] / ray[:, 2:])[0]
    np.testing.assert_allclose(camera.project(world[30:31])[0][0], shown / (400, 300) * size, atol=1e-6)

    # Where the view reaches beyond the photograph, it says so.
    x, y = np.meshgrid(np.arange(240), np.arange(180))
    directions = np.stack([x.ravel(), y.ravel(), np.ones(x.size)], axis=1) @ np.linalg.inv(camera.K).T @ camera.turn
    source = project_rays(model, LENSES[model], directions[:, :2] / directions[:, 2:])
    beyond = np.maximum(-source, source - (399, 299)).max(1).reshape(180, 240)
    view = render_camera(posed, photograph, camera, size)
    assert 0.1 < view.valid.mean() < 0.9
    np.testing.assert_array_equal(view.valid[np.abs(beyond) > 0.01], (beyond < 0)[np.abs(beyond) > 0.01])
    assert not view.image[beyond > 1].any()


def test_views_of_two_virtual_cameras_obey_their_fundamental_matrix(scene: Scene) -> None:
    rng = np.random.default_rng(0)
    for i, j in scene.pairs[::5]:
        first, second = scene.photographs[i], scene.photographs[j]
        camera0 = aim(first, first.points[0], (96, 64), 0.6, 17.0)
        camera1 = aim(second, first.points[0], (96, 64), 0.9, -12.0)
        R, t = relative_pose(camera0.R, camera0.t, camera1.R, camera1.t)
        F = fundamental_from_pose(R, t, camera0.K, camera1.K)
        world = rng.uniform(-1, 1, (30, 3))
        points0, points1 = camera0.project(world)[0], camera1.project(world)[0]
        assert epipolar_distance(points0, points1, F).max() < 1e-6


@pytest.mark.parametrize("seed", range(4))
def test_homography_views_show_points_where_the_homography_moves_them(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, y = np.meshgrid(np.arange(15, 390, 28.3), np.arange(15, 290, 28.7))
    dots = np.stack([x.ravel(), y.ravel()], axis=1)
    photograph = draw_dots((400, 300), dots)
    size = (320, 240)
    homographies = random_homography(rng, (400, 300), size, 0.85, 15.0, 0.05, (0.8, 1.3))
    for H in homographies:
        view = render_homography(photograph, H, size)
        places = cv2.perspectiveTransform(dots[None], H)[0]
        assert_dots_at(view.image, places, tolerance=0.4, least=15)
    corners = np.array([[[0, 0], [319, 0], [319, 239], [0, 239.0]]])
    seen = cv2.perspectiveTransform(corners, np.linalg.inv(homographies[0]))[0]
    assert (seen >= -1e-9).all()
    assert (seen <= (399, 299)).all()
    assert render_homography(photograph, homographies[0], size).valid.all()


def test_a_homography_that_is_asked_to_change_nothing_changes_nothing() -> None:
    plain, moved = random_homography(np.random.default_rng(0), (400, 300), (320, 240), 0.9, 0.0, 0.0, (1.0, 1.0))
    np.testing.assert_allclose(moved / moved[2, 2], plain, atol=1e-4)


# ---------------------------------------------------------------------------------------------------------------------
# Pairs
# ---------------------------------------------------------------------------------------------------------------------


def test_only_points_that_can_be_seen_in_the_other_view_are_asked() -> None:
    K = np.array([[100, 0, 50], [0, 100, 40], [0, 0, 1.0]])
    # Wherever the world's origin is, only the motion between the cameras counts.
    world, origin = Rotation.from_euler("xyz", [30, -70, 110], degrees=True).as_matrix(), np.array([2.0, -7, 3])

    def camera(R: Array, t: list[float]) -> VirtualCamera:
        return VirtualCamera(K=K, R=R @ world, t=R @ world @ origin + t, turn=np.eye(3))

    here, beside = camera(np.eye(3), [0.0, 0, 0]), camera(np.eye(3), [-1.0, 0, 0])
    depths = np.array([2.0, 3.0, 4.0])
    points = np.array([[90.0, 40], [70.0, 5.0], [16.0, 40], [18.0, 40], [0.0, 79.0]])
    # One to the right moves points left by 100 / depth: with depths of 2..4, half as much again either way, 16.7..75.
    assert seen_in(points, here, beside, depths, (100, 80)).tolist() == [True, True, False, True, False]
    # Of a smaller view, only what moves into its 50 x 30 pixels counts.
    assert seen_in(points, here, beside, depths, (50, 30)).tolist() == [False, True, False, False, False]
    behind = camera(np.diag([-1.0, 1, -1]), [0.0, 0, 0])
    assert not seen_in(points, here, behind, depths, (100, 80)).any()
    assert not seen_in(points, here, here, np.zeros(0), (100, 80)).any()


def test_no_points_are_none_that_can_be_seen() -> None:
    camera = VirtualCamera(K=np.diag([100.0, 100, 1]), R=np.eye(3), t=np.zeros(3), turn=np.eye(3))
    assert seen_in(np.zeros((0, 2)), camera, camera, np.ones(3), (100, 80)).shape == (0,)


def test_pairs_overlap_and_differ_as_asked() -> None:
    def photograph(degrees: float, ids: range) -> PosedImage:
        R = Rotation.from_euler("y", degrees, degrees=True).as_matrix()
        return PosedImage(Path("unused"), None, R, np.zeros(3), np.zeros((len(ids), 3)), np.array(ids, dtype=np.int64))

    photographs = [
        photograph(0, range(100)),
        photograph(2, range(100)),
        photograph(40, range(85, 185)),  # 15 % of the first
        photograph(81, range(100)),
        photograph(3.5, range(86, 186)),  # 14 % of the first
        photograph(20, range(10)),
        photograph(30, range(0)),
    ]
    pairs = covisible_pairs(photographs, DataConfig(min_covisibility=0.15, min_rotation=3, max_rotation=80))
    assert pairs.tolist() == [[0, 2], [0, 5], [1, 2], [1, 3], [1, 5], [2, 3], [2, 4], [3, 5]]
    assert covisible_pairs([], DataConfig()).shape == (0, 2)


def assert_same_pair(a: TrainingPair, b: TrainingPair) -> None:
    for field in dataclasses.fields(TrainingPair):
        np.testing.assert_array_equal(getattr(a, field.name), getattr(b, field.name))


def test_a_sample_is_a_function_of_seed_and_index(scene: Scene) -> None:
    data = dataclasses.replace(DATA, augmentation=AugmentationConfig())
    pairs = PairDataset([scene], [], data, seed=3, length=8)
    samples = [pairs[index] for index in range(8)]
    again = PairDataset([scene], [], data, seed=3, length=100)
    for index in (5, 0, 5):
        assert_same_pair(again[index], samples[index])
    loader = DataLoader(pairs, batch_size=4, num_workers=2, collate_fn=collate)
    for batch, expected in zip(loader, (collate(samples[:4]), collate(samples[4:])), strict=True):
        assert torch.equal(batch.images0, expected.images0)
        assert torch.equal(batch.images1, expected.images1)
        for field in dataclasses.fields(expected.supervision):
            assert torch.equal(getattr(batch.supervision, field.name), getattr(expected.supervision, field.name))
    other = PairDataset([scene], [], data, seed=4, length=8)
    assert not np.array_equal(other[0].image0, samples[0].image0)
    assert not np.array_equal(samples[1].image0, samples[0].image0)
    with pytest.raises(IndexError):
        pairs[8]


def sift(image: Array) -> tuple[Array, Array]:
    """Places and descriptors of a (3, h, w) image's keypoints, by OpenCV."""
    grey = cv2.cvtColor(np.ascontiguousarray(image.transpose(1, 2, 0)), cv2.COLOR_RGB2GRAY)
    keypoints, descriptors = cv2.SIFT.create(contrastThreshold=0.01).detectAndCompute(grey, None)
    return np.array([keypoint.pt for keypoint in keypoints]), np.asarray(descriptors)


def test_what_posed_pairs_show_obeys_their_supervision(scene: Scene) -> None:
    data = dataclasses.replace(DATA, width=192, height=144, planar_share=0.0)
    pairs = PairDataset([scene], [], data, seed=0, length=8)
    distances, transposed = [], []
    for index in range(8):
        pair = pairs[index]
        assert not pair.planar
        assert np.linalg.norm(pair.fundamental) == pytest.approx(1)
        (places0, descriptors0), (places1, descriptors1) = sift(pair.image0), sift(pair.image1)
        matched = [
            (places0[best.queryIdx], places1[best.trainIdx])
            for best, second in cv2.BFMatcher().knnMatch(descriptors0, descriptors1, k=2)
            if best.distance < 0.7 * second.distance
        ]
        points0, points1 = np.array(matched).transpose(1, 0, 2)
        distances.append(epipolar_distance(points0, points1, pair.fundamental))
        transposed.append(epipolar_distance(points0, points1, pair.fundamental.T))
    everything = np.concatenate(distances)
    assert len(everything) > 150
    assert np.median(everything) < 0.5
    assert (everything < 1.5).mean() > 0.8
    assert np.median(np.concatenate(transposed)) > 3


def test_what_planar_pairs_show_obeys_their_supervision(scene: Scene) -> None:
    data = dataclasses.replace(DATA, width=192, height=144, planar_share=1.0)
    pairs = PairDataset([scene], [], data, seed=0, length=8)
    size = (192, 144)
    for index in range(8):
        pair = pairs[index]
        assert pair.planar
        image0, image1 = (image.transpose(1, 2, 0).astype(np.float32) for image in (pair.image0, pair.image1))
        warped = cv2.warpPerspective(np.ascontiguousarray(image0), pair.homography, size)
        seen = cv2.warpPerspective(
            cv2.erode((image0.max(2) > 0).astype(np.float32), np.ones((5, 5))), pair.homography, size
        )
        seen = seen * cv2.erode((image1.max(2) > 0).astype(np.float32), np.ones((5, 5)))
        inside = seen > 0.999
        assert inside.mean() > 0.1
        similar = np.corrcoef(warped[inside].ravel(), image1[inside].ravel())[0, 1]
        unmoved = np.corrcoef(image0[inside].ravel(), image1[inside].ravel())[0, 1]
        assert similar > 0.85
        assert similar > unmoved + 0.2
        partners = cv2.perspectiveTransform(pair.points[pair.valid][None], pair.homography)[0]
        assert (partners >= 0).all()
        assert (partners <= (191, 143)).all()


def test_queries_are_sift_keypoints_and_uniform_points_as_asked(scene: Scene) -> None:
    data = dataclasses.replace(DATA, width=192, height=144, queries=20, sift_share=0.5, planar_share=0.0)
    pairs = PairDataset([scene], [], data, seed=0, length=4)
    for index in range(4):
        pair = pairs[index]
        assert pair.points.shape == (20, 2)
        assert pair.valid.all()
        assert (pair.points >= 0).all()
        assert (pair.points <= (191, 143)).all()
        keypoints, _ = sift(pair.image0)
        # OpenCV's own positions are a quarter of a pixel too far right and down.
        distance = np.linalg.norm(pair.points[:, None] - (keypoints - 0.25)[None], axis=2).min(1)
        assert (distance < 1e-3).sum() == 10


def test_an_image_that_cannot_be_read_is_reported_and_left_out(
    truth: Truth, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "wall"
    shutil.copytree(truth.folder, folder)
    (folder / "images" / truth.names[3]).write_bytes(b"no image")
    pairs = PairDataset([read_scenes(folder, DATA)[0]], [], DATA, seed=0, length=12)
    samples = [pairs[index] for index in range(12)]
    assert "3.png" in caplog.text
    assert all(sample.valid.sum() >= DATA.queries / 4 for sample in samples)
    for name in truth.names:
        (folder / "images" / name).write_bytes(b"no image")
    with pytest.raises(RuntimeError, match="in a row"):
        pairs[0]


def test_pairs_need_something_to_draw_from(scene: Scene) -> None:
    lonely = dataclasses.replace(scene, pairs=np.zeros((0, 2), dtype=np.int64))
    with pytest.raises(ValueError, match="no scene has a pair"):
        PairDataset([lonely], [], DATA, seed=0, length=1)
    with pytest.raises(ValueError, match="no photograph"):
        PairDataset([], [], dataclasses.replace(DATA, planar_share=1.0), seed=0, length=1)
    planar = dataclasses.replace(DATA, planar_share=1.0)
    photographs = [image.path for image in scene.photographs]
    assert PairDataset([], photographs, planar, seed=0, length=1)[0].planar


def test_augmentation_changes_only_what_it_is_asked_to() -> None:
    image = noise_texture(np.random.default_rng(0), 64)
    still = AugmentationConfig.jitter(max_noise_sigma=1)
    np.testing.assert_array_equal(augment(np.random.default_rng(0), image, still), image)
    dark = augment(np.random.default_rng(0), image, dataclasses.replace(still, brightness=0.5)).astype(float)
    unclipped = (dark > 0) & (dark < 255) & (image > 20)
    factors = (dark / np.maximum(image, 1))[unclipped]
    assert 0.5 <= np.median(factors) <= 1.5
    assert factors.std() < 0.02
    grey = augment(np.random.default_rng(0), image, dataclasses.replace(still, grey=1.0))
    np.testing.assert_array_equal(grey[..., 0], grey[..., 1])
    np.testing.assert_allclose(grey[..., 2], cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), atol=1)
    for config in (
        dataclasses.replace(still, contrast=0.5),
        dataclasses.replace(still, saturation=0.9),
        dataclasses.replace(still, hue=0.4),
        dataclasses.replace(still, blur=1.0),
        dataclasses.replace(still, jpeg=1.0),
        dataclasses.replace(still, noise=1.0),
    ):
        changed = augment(np.random.default_rng(1), image, config)
        assert changed.shape == image.shape
        assert changed.dtype == np.uint8
        assert not np.array_equal(changed, image)
        np.testing.assert_array_equal(augment(np.random.default_rng(1), image, config), changed)


# ---------------------------------------------------------------------------------------------------------------------
# Settings
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [
        TrainingConfig(),
        TrainingConfig.paper(),
        TrainingConfig.compact(),
        TrainingConfig(data=DataConfig(augmentation=None, planar_zoom=(0.5, 2.0)), steps=7),
    ],
)
def test_settings_survive_yaml(config: TrainingConfig) -> None:
    assert TrainingConfig.from_yaml(config.to_yaml()) == config


def test_settings_that_are_not_named_keep_their_defaults() -> None:
    config = TrainingConfig.from_yaml("data: {width: 128, planar_zoom: [1, 2]}\nloss: {contrastive: 1}\n")
    assert config.data == dataclasses.replace(DataConfig(), width=128, planar_zoom=(1.0, 2.0))
    assert type(config.loss.contrastive) is float
    assert TrainingConfig.from_yaml("") == TrainingConfig()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data: {widht: 3}", r"data\.widht"),
        ("data: {augmentation: {hu: 0.1}}", r"data\.augmentation\.hu"),
        ("stepz: 3", "stepz"),
        ("model: {depth: 3}", r"model\.depth"),
        ("steps: many", "steps is 'many'"),
        ("steps: 1.5", "steps is 1.5"),
        ("steps: true", "steps is True"),
        ("steps: 0", "steps is 0"),
        ("data: {width: wide}", r"data\.width is 'wide'"),
        ("data: {planar_zoom: 1.0}", r"data\.planar_zoom"),
        ("data: {planar_zoom: [1.0, a]}", r"data\.planar_zoom is 'a'"),
        ("model: {normalize: 1}", r"model\.normalize"),
        ("loss: {cycle_fine: [1]}", r"loss\.cycle_fine"),
        ("loss: 3", "loss is 3"),
        ("optimizer: {schedule: cosine}", "cosine.*one_cycle"),
        ("precision: float16", "float16.*bfloat16"),
        ("- 1", "expected a mapping"),
        ("a: [", "no valid YAML"),
    ],
)
def test_wrong_settings_are_refused_by_their_full_name(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainingConfig.from_yaml(text)


def test_numbers_may_be_written_as_1e_3() -> None:
    assert TrainingConfig.from_yaml("optimizer: {learning_rate: 1e-3}").optimizer.learning_rate == 1e-3


def test_the_papers_recipe() -> None:
    config = TrainingConfig.paper()
    assert config.ema == 0
    assert config.model == ModelConfig(
        architecture="caps", encoder="resnet50", fine_dim=128, normalize=False, reliability=False, sampling="corners"
    )
    assert (config.batch_size, config.steps) == (6, 200_000)
    assert (config.data.size, config.data.queries, config.data.sift_share) == ((640, 480), 500, 0.9)
    assert (config.data.max_rotation, config.data.planar_share) == (80, 0)
    assert (config.data.zoom_sigma, config.data.turn_sigma) == (0, 0)
    jitter = config.data.augmentation
    assert jitter is not None
    assert (jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue) == (1, 1, 1, 0.4)
    assert jitter.grey == jitter.blur == jitter.jpeg == jitter.noise == 0
    loss = config.loss
    assert (loss.epipolar_coarse, loss.epipolar_fine, loss.cycle_coarse, loss.cycle_fine) == (1, 1, 0.1, 0.1)
    assert loss.contrastive == 0
    assert (loss.max_epipolar_coarse, loss.max_epipolar_fine, loss.max_coarse_for_fine) == (0.5, 0.5, 0.125)
    assert (loss.max_cycle, loss.max_cycle_px) == (0.025, 40)
    rate = config.optimizer
    assert (rate.learning_rate, rate.encoder_factor, rate.weight_decay) == (1e-4, 1, 0)
    steps = [0, 79_999, 80_000, 160_000, 199_999]
    assert [learning_rate_factor(step, config.steps, rate) for step in steps] == [1, 1, 0.5, 0.25, 0.25]


def test_one_cycle_rises_to_the_peak_and_falls_to_nearly_nothing() -> None:
    factors = np.array([learning_rate_factor(step, 1000, OptimizerConfig(warmup=0.1)) for step in range(1000)])
    assert np.argmax(factors) == pytest.approx(100, abs=1)
    assert factors.max() == pytest.approx(1, abs=0.01)
    assert (np.diff(factors[:100]) > 0).all()
    assert (np.diff(factors[101:]) < 0).all()
    assert 0 < factors[0] < 0.02
    assert 0 < factors[-1] < 1e-4


@pytest.mark.parametrize("architecture", ["compact", "caps"])
def test_every_parameter_moves_at_the_rate_of_its_group(architecture: str) -> None:
    network = build_network(
        ModelConfig(architecture=architecture, encoder="resnet18", reliability=architecture == "compact")
    )
    config = OptimizerConfig(learning_rate=1.0, encoder_factor=0.25, temperature_factor=4.0)
    groups = make_optimizer(network, config).param_groups
    rates = {id(parameter): group["peak"] for group in groups for parameter in group["params"]}
    assert len(rates) == sum(len(group["params"]) for group in groups) == len(list(network.parameters()))
    named = {name: rates[id(parameter)] for name, parameter in network.named_parameters()}
    prefix = "encoder." if architecture == "compact" else ""
    assert named[f"{prefix}firstconv.weight"] == named[f"{prefix}layer3.1.conv2.weight"] == 0.25
    assert named["log_inverse_temperature"] == 4
    assert {rate for name, rate in named.items() if name.startswith(("coarse_head", "conv_coarse"))} == {1}


# ---------------------------------------------------------------------------------------------------------------------
# Whole runs
# ---------------------------------------------------------------------------------------------------------------------

STEPS = 8
MODEL = ["model.encoder=efficientnet_lite0", "model.decoder_dim=16", "model.coarse_dim=16", "model.fine_dim=16"]
SMALL = ["data.width=96", "data.height=64", "data.queries=40", "validation_pairs=2"]
OFTEN = ["validate_every=4", "checkpoint_every=2"]


def arguments(folder: Path, out: Path, *options: str, steps: int = STEPS) -> list[str]:
    """A run of a few small steps from scratch."""
    run = [str(folder), "-o", str(out), "--steps", str(steps), "--batch-size", "2", "--workers", "0", "--device", "cpu"]
    return [*run, "--from-scratch", "--set", *MODEL, *SMALL, *OFTEN, *options]


def log_rows(out: Path) -> list[dict[str, Any]]:
    """The log without the times, which differ."""
    rows = [json.loads(line) for line in (out / LOG).read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def assert_same_tensors(state: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    assert state.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(state[name], value), name


def assert_same_run(out: Path, other: Path) -> None:
    """To the bit."""
    assert log_rows(out) == log_rows(other)
    assert_same_tensors(resolve(str(out)).state_dict, resolve(str(other)).state_dict)
    assert_same_tensors(load_file(out / BEST), load_file(other / BEST))
    state, expected = (torch.load(folder / CHECKPOINT, weights_only=True) for folder in (out, other))
    for part in ("network", "average"):
        assert_same_tensors(state[part], expected[part])


@pytest.fixture(scope="session")
def finished_run(truth: Truth, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupted."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("finished")
    assert main(arguments(truth.folder, out)) == 0
    return out


def test_a_run_leaves_a_model_a_log_and_its_settings(finished_run: Path) -> None:
    weights = resolve(str(finished_run))
    assert weights.config == ModelConfig(
        encoder="efficientnet_lite0",
        decoder_dim=16,
        coarse_dim=16,
        fine_dim=16,
        normalize=True,
        reliability=True,
        sampling="stride",
    )
    config = TrainingConfig.from_yaml((finished_run / CONFIG).read_text())
    assert (config.steps, config.batch_size, config.data.size) == (STEPS, 2, (96, 64))
    rows = log_rows(finished_run)
    # What "auto" is here.
    computed_in = str(fastest_dtype(torch.device("cpu"))).removeprefix("torch.")
    assert {row["precision"] for row in rows if row["step"]} == {computed_in}
    assert [row["step"] for row in rows] == list(range(STEPS + 1))
    assert [row["step"] for row in rows if "validation" in row] == [0, 4, 8]
    for row in rows[1:]:
        weighted = {"epipolar_coarse": 1, "epipolar_fine": 1, "cycle_coarse": 0.1, "cycle_fine": 0.1}
        weighted |= {"contrastive": 0.3, "matching": 0.3, "reliability": 0.3}
        assert row["loss"] == pytest.approx(sum(weight * row[name] for name, weight in weighted.items()), abs=2e-4)
    checkpoint = torch.load(finished_run / CHECKPOINT, weights_only=True)
    assert checkpoint["step"] == STEPS
    best = load_file(finished_run / BEST)
    for name, value in weights.state_dict.items():
        assert torch.equal(best[name], value), name
    # The parameters went somewhere from where the seed put them.
    torch.manual_seed(config.seed)
    start = build_network(config.model).state_dict()
    assert not torch.equal(start["fine_head.weight"], checkpoint["network"]["fine_head.weight"])


def test_a_killed_run_resumes_to_the_same_bits(truth: Truth, finished_run: Path, tmp_path: Path) -> None:
    command = arguments(truth.folder, tmp_path)
    command[command.index("--workers") + 1] = "1"
    code = "import sys; from capsdesc.commands.train import main; sys.exit(main(sys.argv[1:]))"
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(Path(capsdesc.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]),
    }
    process = subprocess.Popen([sys.executable, "-c", code, *command], env=environment)
    deadline = time.monotonic() + 120
    # The best so far is younger than the checkpoint then.
    while not (tmp_path / BEST).exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.kill()
    assert process.wait() != 0
    assert 0 < torch.load(tmp_path / CHECKPOINT, weights_only=True)["step"] < STEPS
    assert not (tmp_path / "model.safetensors").exists()
    assert main(command) == 0
    assert_same_run(tmp_path, finished_run)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", "half", {"step": 3}])
def test_a_damaged_checkpoint_is_named(
    truth: Truth, finished_run: Path, tmp_path: Path, content: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = (finished_run / CHECKPOINT).read_bytes()
    if isinstance(content, dict):
        torch.save(content, tmp_path / CHECKPOINT)
    else:
        (tmp_path / CHECKPOINT).write_bytes(whole[: len(whole) // 2] if content == "half" else content)
    before = (tmp_path / CHECKPOINT).read_bytes()
    assert main(arguments(truth.folder, tmp_path)) == 1
    assert str(tmp_path / CHECKPOINT) in capsys.readouterr().err
    assert (tmp_path / CHECKPOINT).read_bytes() == before


@pytest.mark.parametrize("change", ["steps=[", "steps=!!python/object:os.system {}", "steps=" + "[" * 3000])
def test_changes_that_are_no_yaml_are_named(
    truth: Truth, tmp_path: Path, change: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(truth.folder), "-o", str(tmp_path), "--set", change]) == 1
    assert "--set steps is no valid YAML" in capsys.readouterr().err


def test_a_run_out_of_time_leaves_its_model_and_goes_on(truth: Truth, finished_run: Path, tmp_path: Path) -> None:
    command = arguments(truth.folder, tmp_path)
    assert main([*command, "--max-minutes", "0"]) == 0
    assert [row["step"] for row in log_rows(tmp_path)] == [0, 1]
    assert resolve(str(tmp_path)).config == resolve(str(finished_run)).config
    # As a run leaves it that is killed while it writes a row.
    with open(tmp_path / LOG, "a", encoding="utf-8") as log:
        log.write('{"step": 2, "loss": 0.1}\n{"step": 3, "lo')
    assert main(command) == 0
    assert_same_run(tmp_path, finished_run)


@pytest.mark.parametrize(
    "cut",
    [
        '{"step": 2, "loss": 0.1}',
        '{"step": 2, "validation": {"median_px": 1.0}',
    ],
)
def test_a_row_cut_anywhere_is_no_obstacle(truth: Truth, tmp_path: Path, cut: str) -> None:
    command = arguments(truth.folder, tmp_path, steps=2)
    assert main([*command, "--max-minutes", "0"]) == 0
    with open(tmp_path / LOG, "a", encoding="utf-8") as log:
        log.write(cut)
    assert main(command) == 0
    assert [row["step"] for row in log_rows(tmp_path)] == [0, 1, 2]


def test_a_finished_run_has_nothing_to_go_on_with(truth: Truth, finished_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "copy"
    shutil.copytree(finished_run, out)
    assert main(arguments(truth.folder, out)) == 0
    assert_same_run(out, finished_run)


def test_other_settings_in_the_same_folder_are_refused(
    truth: Truth, finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "copy"
    shutil.copytree(finished_run, out)
    assert main(arguments(truth.folder, out, "data.queries=41")) == 1
    assert re.search(r"settings that differ in data\.queries \(\d+, now 41\)", capsys.readouterr().err)
    assert_same_run(out, finished_run)


def test_a_run_of_before_there_was_a_setting_goes_on(truth: Truth, finished_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "copy"
    shutil.copytree(finished_run, out)
    state = torch.load(out / CHECKPOINT, weights_only=True)
    settings = yaml.safe_load(state["config"])
    assert settings["loss"].pop("distillation") == 0
    torch.save({**state, "config": yaml.safe_dump(settings)}, out / CHECKPOINT)
    assert main(arguments(truth.folder, out)) == 0
    assert (out / LOG).read_bytes() == (finished_run / LOG).read_bytes()


@pytest.mark.parametrize(("setting", "value"), [("distillation", 0.5), ("gone", 0.0)])
def test_a_run_with_a_setting_of_another_version_is_refused(
    truth: Truth, finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], setting: str, value: float
) -> None:
    out = tmp_path / "copy"
    shutil.copytree(finished_run, out)
    state = torch.load(out / CHECKPOINT, weights_only=True)
    settings = yaml.safe_load(state["config"])
    settings["loss"][setting] = value
    torch.save({**state, "config": yaml.safe_dump(settings)}, out / CHECKPOINT)
    assert main(arguments(truth.folder, out)) == 1
    assert f"settings that differ in loss.{setting} ({value}, now" in capsys.readouterr().err


def test_fine_tuning_starts_from_the_weights(
    truth: Truth, finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = arguments(truth.folder, tmp_path / "tuned", "optimizer.learning_rate=0.0", steps=1)
    command[command.index("--from-scratch")] = f"--weights={finished_run}"
    assert main(command) == 0
    tuned, start = resolve(str(tmp_path / "tuned")).build(), resolve(str(finished_run)).build()
    for (name, parameter), expected in zip(tuned.named_parameters(), start.parameters(), strict=True):
        assert torch.equal(parameter, expected), name
    command[command.index("model.decoder_dim=16")] = "model.decoder_dim=24"
    command[command.index("-o") + 1] = str(tmp_path / "other")
    assert main(command) == 1
    assert "another network" in capsys.readouterr().err


def test_weights_bring_their_network_along(truth: Truth, finished_run: Path, tmp_path: Path) -> None:
    settings = tmp_path / "settings.yaml"
    settings.write_text("data: {width: 96, height: 64, queries: 40}\nvalidation_pairs: 2\n")
    small = ["--steps", "1", "--batch-size", "2", "--workers", "0", "--device", "cpu", "--config", str(settings)]
    for weights in (None, "small", str(finished_run)):
        out = tmp_path / f"on-from-{'bundled' if weights is None else Path(weights).name}"
        given = [] if weights is None else ["--weights", weights]
        assert main([str(truth.folder), "-o", str(out), *small, *given]) == 0
        before, after = resolve(weights), resolve(str(out))
        assert after.config == before.config
        moved = {
            name.split(".")[0]
            for name in before.state_dict
            if not torch.equal(before.state_dict[name], after.state_dict[name])
        }
        # Keypoints are learned further too, where there are any.
        assert ("keypoint_head" in moved) == before.config.keypoints == (weights != str(finished_run))
        assert {"encoder", "conv_coarse"} & moved


def test_one_part_alone_is_trained_and_all_else_stays(
    truth: Truth, finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    command = arguments(truth.folder, out, "optimizer.only=reliability_head", "data.planar_share=1")
    command.remove("--from-scratch")
    assert main([*command, "--weights", str(finished_run)]) == 0
    before, after = (load_file(folder / "model.safetensors") for folder in (finished_run, out))
    assert {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])} == {"reliability_head"}

    # A head that the weights do not have begins at random.
    paper = [f"loss.{name}=0" for name in ("epipolar_coarse", "epipolar_fine", "cycle_coarse", "cycle_fine")]
    paper += [f"loss.{name}=0" for name in ("contrastive", "matching", "reliability")]
    command = arguments(
        truth.folder,
        tmp_path / "head",
        "optimizer.only=keypoint_head",
        "model.keypoints=true",
        "loss.keypoints=1",
        *paper,
    )
    command.remove("--from-scratch")
    assert main([*command, "--weights", str(finished_run)]) == 0
    after = load_file(tmp_path / "head" / "model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert {name.split(".")[0] for name in after if name not in before} == {"keypoint_head"}
    assert set(log_rows(tmp_path / "head")[1]) - {"validation"} == {"step", "precision", "loss", "keypoints"}
    command[command.index("-o") + 1] = str(tmp_path / "stopped")
    for limit in (["--max-minutes", "0"], []):
        assert main([*command, "--weights", str(finished_run), *limit]) == 0
    assert_same_run(tmp_path / "stopped", tmp_path / "head")

    command = arguments(truth.folder, tmp_path / "other", "loss.keypoints=1")
    assert "model.keypoints is false" in fails(command, capsys)
    command = arguments(truth.folder, tmp_path / "other", "optimizer.only=tail")
    assert "optimizer.only is 'tail'; expected a part of the network: encoder" in fails(command, capsys)


def test_scenes_to_judge_on_and_more_photographs(truth: Truth, tmp_path: Path) -> None:
    command = arguments(truth.folder, tmp_path / "run", steps=1)
    command += ["--validation", str(truth.folder), "--photographs", str(truth.folder / "images" / "left")]
    assert main(command) == 0
    assert [row["validation"]["pairs"] for row in log_rows(tmp_path / "run")] == [2, 2]


def fails(command: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What a command that ends with 1 says."""
    assert main(command) == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("capsdesc-train: ")
    return said


def test_what_cannot_be_trained_on_is_named(truth: Truth, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert "nowhere" in fails(arguments(tmp_path / "nowhere", out), capsys)

    broken = tmp_path / "broken"
    shutil.copytree(truth.folder, broken)
    for name in ("cameras", "images", "points3D"):
        (broken / "sparse" / "0" / f"{name}.txt").unlink()
        (broken / "sparse" / "0" / f"{name}.bin").write_bytes(b"\xff" * 37)
    assert "cannot be read" in fails(arguments(broken, out), capsys)

    shutil.rmtree(broken / "images")
    assert "no image folder" in fails(arguments(broken, out), capsys)

    assert "expected KEY=VALUE" in fails(arguments(truth.folder, out, "data.widht=3"), capsys)
    assert "data.width" in fails(arguments(truth.folder, out, "data.width=wide"), capsys)
    assert "--config" in fails([*arguments(truth.folder, out), "--config", "nothing.yaml"], capsys)
    empty = tmp_path / "empty"
    empty.mkdir()
    assert str(empty) in fails([*arguments(truth.folder, out), "--photographs", str(empty)], capsys)
    assert not out.exists()


def test_settings_come_from_a_file_and_are_changed_by_options(truth: Truth, tmp_path: Path) -> None:
    settings = {
        "model": dict(
            yaml.safe_load(f"{{{', '.join(change.partition('.')[2].replace('=', ': ') for change in MODEL)}}}")
        ),
        "data": {"width": 96, "height": 64, "queries": 40},
        "validation_pairs": 2,
        "steps": 50,
    }
    path = tmp_path / "settings.yaml"
    path.write_text(yaml.safe_dump(settings))
    command = [
        str(truth.folder),
        "-o",
        str(tmp_path / "run"),
        "--config",
        str(path),
        "--from-scratch",
        "--workers",
        "0",
    ]
    command += ["--steps", "1", "--batch-size", "1", "--seed", "5", "--set", "data.queries=30", "loss.contrastive=0.5"]
    assert main(command) == 0
    config = TrainingConfig.from_yaml((tmp_path / "run" / CONFIG).read_text())
    assert (config.steps, config.batch_size, config.seed) == (1, 1, 5)
    assert (config.data.width, config.data.queries, config.loss.contrastive) == (96, 30, 0.5)
    assert config.model.encoder == "efficientnet_lite0"


def test_the_weights_that_match_best_come_out(scene: Scene, tmp_path: Path) -> None:
    # The learning rate rises until it destroys what was there.
    config = TrainingConfig(
        model=ModelConfig(encoder="resnet18", decoder_dim=16, coarse_dim=16, fine_dim=15),
        data=DATA,
        optimizer=OptimizerConfig(learning_rate=0.3, warmup=1.0, temperature_factor=0.0),
        steps=6,
        batch_size=2,
        ema=0.0,
        validate_every=1,
        precision="float32",
    )
    pairs = PairDataset([scene], [], config.data, seed=0, length=config.steps * config.batch_size)
    judged = PairDataset([scene], [], dataclasses.replace(config.data, planar_share=0.0), seed=1, length=4)
    torch.manual_seed(0)
    network = build_network(config.model)
    device = torch.device("cpu")
    with sole_use(tmp_path, is_folder=True), pytest.raises(BlockingIOError, match=r"another run .* is at work on"):
        train(config, network, pairs, judged, tmp_path, device=device, workers=0)
    assert not (tmp_path / CONFIG).exists()
    outcome = train(config, network, pairs, judged, tmp_path, device=device, workers=0)
    validations = [row["validation"] for row in log_rows(tmp_path)][1:]
    net = [(2 * figures["match_precision"] - 1) * figures["matches"] for figures in validations]
    assert outcome == Outcome(finished=True, step=1 + int(np.argmax(net)))
    assert outcome.step < config.steps
    assert dataclasses.asdict(validate(network, config, judged, device)) == validations[outcome.step - 1]
    assert not network.training
    last = torch.load(tmp_path / CHECKPOINT, weights_only=True)["network"]
    assert not torch.equal(last["fine_head.weight"], network.state_dict()["fine_head.weight"])


def test_training_knows_no_settings_of_its_caller(scene: Scene, tmp_path: Path) -> None:
    config = TrainingConfig(
        model=ModelConfig(encoder="resnet18", decoder_dim=16, coarse_dim=16, fine_dim=15),
        data=DATA,
        steps=2,
        batch_size=2,
        precision="float32",
    )
    pairs = PairDataset([scene], [], config.data, seed=0, length=config.steps * config.batch_size)

    def trained(folder: str) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        network = isolated()(build_network)(config.model)
        outcome = train(config, network, pairs, None, tmp_path / folder, device=torch.device("cpu"), workers=0)
        assert outcome.finished
        return network.state_dict()

    expected = trained("fresh")
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.inference_mode(), torch.autocast("cpu"), np.errstate(all="raise"):
            found = trained("elsewhere")
    finally:
        torch.set_default_dtype(default)
    for name, values in expected.items():
        assert values.dtype == found[name].dtype
        assert torch.equal(values, found[name])


def test_an_encoder_needs_photographs_only_where_its_normalization_was_folded(
    truth: Truth, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    def folder(*broken: str) -> Path:
        """The scene with photographs that nobody can read."""
        copy = tmp_path / f"scene{len(broken)}"
        shutil.copytree(truth.folder, copy)
        for name in broken:
            (copy / "images" / name).write_bytes(b"no image")
        return copy

    torch.manual_seed(0)
    encoder = build_network(ModelConfig(encoder="resnet18")).get_submodule("encoder")
    state = {re.sub("^first(conv|bn)", r"\g<1>1", name): value for name, value in encoder.state_dict().items()}
    save_file(state, tmp_path / "whole.safetensors")
    folded = {name: value for name, value in state.items() if name.endswith("weight") and value.ndim == 4}
    folded |= {name.replace("weight", "bias"): torch.zeros(len(value)) for name, value in folded.items()}
    save_file(folded, tmp_path / "folded.safetensors")

    def run(name: str, scene: Path) -> int:
        command = arguments(scene, tmp_path / f"{name} {scene.name}", "model.encoder=resnet18", steps=1)
        command[command.index("--from-scratch")] = f"--encoder={tmp_path / name}.safetensors"
        command.remove("model.encoder=efficientnet_lite0")
        return main([*command, "--no-tensorboard"])

    def warned() -> list[str]:
        return [record.message for record in caplog.records if record.name == "capsdesc.training.start"]

    some_broken, all_broken = folder(truth.names[0]), folder(*truth.names)
    with caplog.at_level("WARNING", logger="capsdesc.training.start"):
        assert run("whole", some_broken) == 0
        assert warned() == []
        assert run("folded", some_broken) == 0
        assert [truth.names[0] in message for message in warned()] == [True]
    assert run("folded", all_broken) == 1
    assert "none of 24 photographs can be read" in capsys.readouterr().err


def test_training_lowers_the_held_out_error(scene: Scene, tmp_path: Path) -> None:
    held_out = np.arange(len(scene.pairs)) % 4 == 0
    to_train, to_judge = (dataclasses.replace(scene, pairs=scene.pairs[chosen]) for chosen in (~held_out, held_out))
    config = TrainingConfig(
        model=ModelConfig(encoder="resnet18", decoder_dim=32, coarse_dim=32, fine_dim=32),
        data=dataclasses.replace(DATA, queries=100),
        loss=LossConfig(contrastive=0.15),
        optimizer=OptimizerConfig(learning_rate=2e-3, encoder_factor=1.0),
        steps=70,
        batch_size=4,
        validate_every=70,
        checkpoint_every=70,
        precision="float32",
    )
    pairs = PairDataset([to_train], [], config.data, seed=0, length=config.steps * config.batch_size)
    judged = PairDataset([to_judge], [], dataclasses.replace(config.data, planar_share=0.0), seed=1, length=16)
    torch.manual_seed(0)
    network = build_network(config.model)
    device = torch.device("cpu")
    before = validate(network, config, judged, device)
    assert train(config, network, pairs, judged, tmp_path, device=device, workers=0) == Outcome(finished=True, step=70)
    after = validate(network, config, judged, device)
    assert log_rows(tmp_path)[0] == {"step": 0, "validation": dataclasses.asdict(before)}
    assert log_rows(tmp_path)[-1]["validation"] == dataclasses.asdict(after)
    assert after.median_px < 0.6 * before.median_px
    assert after.within_3px > before.within_3px + 0.15
    assert after.surer_median_px < after.median_px
    assert after.right_matches > 1.2 * before.right_matches
