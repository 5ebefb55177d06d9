"""The example scripts, run as their users run them; their figures against the cameras that their scene has."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pycolmap
import pytest
from scipy.spatial.transform import Rotation

from capsdesc import CAPSExtractor, match
from capsdesc.geometry import epipolar_distance, fundamental_from_pose, relative_pose, rotation_error, translation_error
from capsdesc.images import read_image
from capsdesc.images.video import Sampling
from capsdesc.types import Array
from capsdesc.weights import resolve

Cameras = dict[str, dict[str, Array]]

EXAMPLES = Path(__file__).parents[1] / "examples"
PHOTOGRAPHS = 8


def run(folder: Path, script: str, *arguments: object) -> str:
    """What a script prints, run in a folder."""
    command = [sys.executable, str(EXAMPLES / script), *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def picture(path: Path) -> Array:
    """A picture that shows something."""
    pixels = np.asarray(cv2.imread(str(path)))
    assert pixels.ndim == 3
    assert pixels.std() > 10
    return pixels


def numbers(pattern: str, printed: str) -> list[float]:
    """The numbers that a pattern's group holds."""
    found = re.search(pattern, printed, re.DOTALL)
    assert found is not None, printed
    return [float(number) for number in re.findall(r"-?\d+\.?\d*(?:e-?\d+)?", found.group(1))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the scripts run; ``scene`` in it is what the reconstruction's makes."""
    return tmp_path_factory.mktemp("examples")


@pytest.fixture(scope="module")
def reconstructed(folder: Path) -> str:
    return run(folder, "reconstruct.py", "--max-keypoints", 1500)


@pytest.fixture(scope="module")
def cameras(folder: Path, reconstructed: str) -> Cameras:
    stored = json.loads((folder / "scene" / "cameras.json").read_text())
    return {name: {key: np.array(value) for key, value in camera.items()} for name, camera in stored.items()}


def center(camera: dict[str, Array]) -> Array:
    return np.asarray(-camera["R"].T @ camera["t"])


def similarity(folder: Path, cameras: Cameras) -> tuple[float, Array, Array]:
    """Scale, rotation and shift that take the model's world to the true one."""
    model = pycolmap.Reconstruction(folder / "scene" / "sparse" / "0")
    images = [model.image(image_id) for image_id in model.reg_image_ids()]
    found = np.array([image.projection_center() for image in images])
    true = np.array([center(cameras[f"images/{image.name}"]) for image in images])
    rotation, _ = Rotation.align_vectors(true - true.mean(0), found - found.mean(0))
    turned = rotation.apply(found - found.mean(0))
    scale = float(((true - true.mean(0)) * turned).sum() / (turned**2).sum())
    return scale, rotation.as_matrix(), true.mean(0) - scale * rotation.apply(found.mean(0))


def test_reconstruction_finds_the_cameras(folder: Path, reconstructed: str, cameras: Cameras) -> None:
    assert f"{PHOTOGRAPHS} of {PHOTOGRAPHS} photographs" in reconstructed
    scale, rotation, shift = similarity(folder, cameras)
    model = pycolmap.Reconstruction(folder / "scene" / "sparse" / "0")
    assert len(model.reg_image_ids()) == PHOTOGRAPHS
    for image in (model.image(image_id) for image_id in model.reg_image_ids()):
        camera = cameras[f"images/{image.name}"]
        assert rotation_error(image.cam_from_world().rotation.matrix() @ rotation.T, camera["R"]) < 0.5
        assert np.linalg.norm(scale * rotation @ image.projection_center() + shift - center(camera)) < 0.03
        assert model.cameras[image.camera_id].focal_length == pytest.approx(camera["K"][0, 0], rel=0.02)
    picture(folder / "scene" / "reconstruction.png")


def test_localisation_finds_the_query(folder: Path, cameras: Cameras) -> None:
    printed = run(folder, "localize.py", "--max-keypoints", 1000)
    R = np.array(numbers(r"R\n(.*)\nt\n", printed)).reshape(3, 3)
    t = np.array(numbers(r"\nt\n(.*)\nwrote", printed))
    scale, rotation, shift = similarity(folder, cameras)
    true = cameras["query.png"]
    assert rotation_error(R @ rotation.T, true["R"]) < 0.5
    assert np.linalg.norm(scale * rotation @ (-R.T @ t) + shift - center(true)) < 0.03

    matches, inliers, error = numbers(r"(\d+ matches, \d+ inliers, .*) px", printed)
    assert inliers > 0.7 * matches > 100
    assert error < 1
    # Crosses over the query, and not over all of it.
    changed = picture(folder / "localized.png") != picture(folder / "scene" / "query.png")
    assert 0.05 < changed.any(axis=2).mean() < 0.6


def test_training_on_a_scene(folder: Path, cameras: Cameras) -> None:
    printed = run(folder, "train_on_my_scene.py", "--steps", 2, "--batch-size", 2)
    names = re.findall(r"(\d\.png)", printed.splitlines()[0])
    right, of, percent = numbers(r"before: (.*?)%", printed)
    expected = right_matches(CAPSExtractor(), folder, cameras, names)
    assert (right, of) == pytest.approx(expected, abs=0.02 * of)
    assert percent == pytest.approx(100 * right / of, abs=0.06)
    # The model that is written is the one that is judged, and it has learned something.
    model = folder / "my_model"
    expected = right_matches(CAPSExtractor(model), folder, cameras, names)
    assert numbers(r"after: (.*?)%", printed)[:2] == pytest.approx(expected, abs=0.02 * of)
    start, end = resolve(None).build().state_dict(), resolve(model).build().state_dict()
    assert any((start[name] != end[name]).any() for name in start)
    assert picture(model / "matches.png").shape == (2 * 360, 2 * 480 + 8, 3)


def right_matches(caps: CAPSExtractor, folder: Path, cameras: Cameras, names: list[str]) -> tuple[int, int]:
    """How many matches lie within 3 pixels of their true epipolar lines, and how many there are."""
    features0, features1 = (caps.extract(folder / "scene" / "images" / name) for name in names)
    indices = match(features0, features1).indices
    first, second = (cameras[f"images/{name}"] for name in names)
    R, t = relative_pose(first["R"], first["t"], second["R"], second["t"])
    F = fundamental_from_pose(R, t, first["K"], second["K"])
    points0, points1 = features0.keypoints[indices[:, 0]], features1.keypoints[indices[:, 1]]
    return int((epipolar_distance(points0, points1, F) < 3).sum()), len(indices)


def test_panorama_is_the_photograph_that_the_views_are_of(tmp_path: Path) -> None:
    """Three views, taken with homographies from one photograph; the panorama is in the pixels of the second."""
    whole = read_image(EXAMPLES / "data" / "relief_1.jpg")[..., ::-1]
    size = (260, 320)
    corners = np.array([[0, 0], [259, 0], [259, 319], [0, 319]], np.float32)
    quads = [
        [[20, 110], [255, 130], [275, 420], [5, 400]],
        [[110, 120], [370, 105], [365, 430], [120, 415]],
        [[215, 130], [470, 110], [455, 425], [205, 440]],
    ]
    # From each view to the whole photograph.
    homographies = [cv2.getPerspectiveTransform(corners, np.array(quad, np.float32)) for quad in quads]
    for k, H in enumerate(homographies):
        cv2.imwrite(str(tmp_path / f"{k}.png"), cv2.warpPerspective(whole, np.linalg.inv(H), size))

    printed = run(tmp_path, "panorama.py", "0.png", "1.png", "2.png")
    panorama = picture(tmp_path / "panorama.png").astype(float)
    outlines = np.array([[[-0.5, -0.5], [259.5, -0.5], [259.5, 319.5], [-0.5, 319.5]]])
    to_middle = [np.linalg.inv(homographies[1]) @ H for H in homographies]
    reached = np.concatenate([cv2.perspectiveTransform(outlines, H)[0] for H in to_middle])
    left, top = np.floor(reached.min(0) + 0.5)
    right, bottom = np.ceil(reached.max(0) + 0.5)
    height, width = panorama.shape[:2]
    assert abs(width - (right - left)) <= 3
    assert abs(height - (bottom - top)) <= 3
    assert f"{width} x {height} pixels" in printed

    # Its upper left corner may be off by a pixel or two, so that the shift is the best of a few.
    def difference(dx: int, dy: int) -> float:
        place = homographies[1] @ np.array([[1, 0, left + dx], [0, 1, top + dy], [0, 0, 1]])
        expected = cv2.warpPerspective(whole, place, (width, height), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
        shown = panorama.any(axis=2)
        return float(np.abs(panorama - expected)[shown].mean())

    differences = {(dx, dy): difference(dx, dy) for dx in range(-2, 3) for dy in range(-2, 3)}
    assert min(differences.values()) < 5
    # A panorama elsewhere would not be that like it.
    assert difference(12, 7) > 2 * min(differences.values())


def test_photographs_of_different_things_make_no_panorama(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "plain.png"), np.full((200, 200, 3), 128, np.uint8))
    script, other = EXAMPLES / "panorama.py", EXAMPLES / "data" / "relief_1.jpg"
    command = [sys.executable, str(script), str(other), "plain.png"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 1
    assert done.stderr.strip() == "photographs 0 and 1 cannot be related to each other"


def test_relative_pose_of_the_example(tmp_path: Path) -> None:
    printed = run(tmp_path, "relative_pose.py")
    assert numbers(r"rotation error +([\d.]+)", printed)[0] < 3
    assert numbers(r"translation error +([\d.]+)", printed)[0] < 5
    assert picture(tmp_path / "relative_pose.png").shape[1] == 1500


def test_relative_pose_of_own_photographs(folder: Path, cameras: Cameras) -> None:
    first, second = (cameras[f"images/{k}.png"] for k in (2, 5))
    printed = run(folder, "relative_pose.py", "scene/images/2.png", "scene/images/5.png", "--focal", 430)
    R, t = relative_pose(first["R"], first["t"], second["R"], second["t"])
    assert rotation_error(np.array(numbers(r"R\n(.*)\nt\n", printed)).reshape(3, 3), R) < 1
    found = np.array(numbers(r"\nt\n(.*)\nwrote", printed))
    assert translation_error(found, t, sign_matters=True) < 3


def test_described_corners_agree_with_a_homography(tmp_path: Path) -> None:
    printed = run(tmp_path, "describe_my_points.py")
    matches, inliers = numbers(r"(\d+ matches, \d+ inliers)", printed)
    assert inliers > 0.5 * matches > 50
    assert picture(tmp_path / "described.png").shape == (640, 480 + 8 + 480, 3)


def test_points_are_located(folder: Path, cameras: Cameras) -> None:
    """The room's corner and a point of each wall."""
    first, second = (cameras[f"images/{k}.png"] for k in (2, 4))
    world = np.array([[0, 0.3, 0], [-0.6, -0.3, -0.6 / 1.7], [0.4, 0, -0.32]])
    pixels = [project(camera, world) for camera in (first, second)]
    listed = [f"{x},{y}" for x, y in pixels[0]]
    printed = run(folder, "locate_points.py", "scene/images/2.png", "scene/images/4.png", "--points", *listed)
    found = np.array([numbers(r"-> \((.*)\)", line) for line in printed.splitlines()[:3]])
    assert np.linalg.norm(found - pixels[1], axis=1).max() < 3
    assert picture(folder / "located.png").shape == (360, 2 * 480 + 8, 3)


def project(camera: dict[str, Array], world: Array) -> Array:
    rotation, _ = cv2.Rodrigues(camera["R"])
    return np.asarray(cv2.projectPoints(world, rotation, camera["t"], camera["K"], None)[0][:, 0])


def trajectory(path: Path) -> tuple[Array, Array, Array]:
    """Times, centres and camera-to-world rotations of a file of the TUM RGB-D benchmark."""
    table = np.loadtxt(path)
    return table[:, 0], table[:, 1:4], Rotation.from_quat(table[:, 4:]).as_matrix()


def test_the_way_of_a_camera_is_found(tmp_path: Path) -> None:
    """The errors that are printed, again from the files, with the similarity of the camera positions by scipy."""
    printed = run(tmp_path, "visual_odometry.py", "--max-keypoints", 1000)
    picture(tmp_path / "trajectory.png")
    times, found, rotations = trajectory(tmp_path / "trajectory.txt")
    true_times, true, true_rotations = trajectory(tmp_path / "walk" / "groundtruth.txt")
    np.testing.assert_array_equal(times, true_times)
    a, b = found - found.mean(0), true - true.mean(0)
    turn, _ = Rotation.align_vectors(b, a)
    scale = (turn.apply(a) * b).sum() / (a**2).sum()
    ate = np.sqrt(((scale * turn.apply(a) - b) ** 2).sum(1).mean())
    assert numbers(r"ATE +([\d.]+) m", printed)[0] == pytest.approx(ate, abs=1e-4)
    assert ate < 0.01
    steps = [R[:-1].transpose(0, 2, 1) @ R[1:] for R in (rotations, true_rotations)]
    errors = Rotation.from_matrix(steps[0].transpose(0, 2, 1) @ steps[1]).magnitude()
    assert numbers(r"RPE, a step +[\d.]+ m, ([\d.]+) degrees", printed)[0] == pytest.approx(
        np.degrees(np.sqrt((errors**2).mean())), abs=1e-3
    )
    assert np.degrees(errors).max() < 0.3
    # The steps are of many lengths, which no camera knows but by the points that pairs of frames share.
    moves = [np.linalg.norm(np.diff(way, axis=0), axis=1) for way in (found, true)]
    assert moves[1].max() > 1.5 * moves[1].min()
    np.testing.assert_allclose(scale * moves[0], moves[1], rtol=0.1)
    assert "way" in printed
    assert numbers(r"way +([\d.]+) m", printed)[0] == pytest.approx(moves[1].sum(), abs=1e-3)


def test_points_are_followed_through_a_video(tmp_path: Path) -> None:
    """The camera moves along a photograph: tracks are straight, and as long as it went."""
    whole = read_image(EXAMPLES / "data" / "relief_1.jpg")
    writer = cv2.VideoWriter(str(tmp_path / "pan.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 10, (320, 240))
    for k in range(9):
        writer.write(np.ascontiguousarray(whole[100 + 3 * k : 340 + 3 * k, 12 * k : 320 + 12 * k, ::-1]))
    writer.release()
    sys.path.insert(0, str(EXAMPLES))
    try:
        from track import follow, read_frames
    finally:
        sys.path.remove(str(EXAMPLES))
    frames = list(read_frames(tmp_path / "pan.avi", Sampling(every=2)))
    assert len(frames) == 5
    *_, (_, tracks) = follow(CAPSExtractor(), frames, 400, 0.1)
    lengths = np.array([len(track) for track in tracks])
    assert (lengths > 1).mean() > 0.6
    assert (lengths == 5).sum() > 60
    steps = np.concatenate([np.diff(np.array(track), axis=0) for track in tracks if len(track) > 1])
    assert (np.linalg.norm(steps - (-24, -6), axis=1) < 1).mean() > 0.95

    printed = run(tmp_path, "track.py", "pan.avi", "--every", 2, "--max-keypoints", 400, "-o", "tracks.avi")
    assert "5 frames; the longest track goes through 5" in printed
    assert numbers(r"last one, (\d+ of \d+)", printed) == pytest.approx([(lengths > 1).sum(), len(tracks)], abs=10)
    shown = list(read_frames(tmp_path / "tracks.avi", Sampling()))
    assert len(shown) == 5
    assert np.abs(shown[0].astype(float) - frames[0]).mean() < 4  # nothing to draw yet
    assert np.abs(shown[4].astype(float) - frames[4]).mean() > 8


def test_every_script_is_in_the_table() -> None:
    listed = re.findall(r"^\| `(\w+\.py)`", (EXAMPLES / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(listed) == sorted(path.name for path in EXAMPLES.glob("*.py"))
