"""``capsdesc localize`` on photographs of a relief, rendered from known cameras."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import PIL.Image
import pycolmap
import pytest
from relief import orbit, photograph, pixel_grid
from scipy.spatial.transform import Rotation
from test_sfm import Stopping

from capsdesc.commands.main import main
from capsdesc.images import read_image
from capsdesc.io.localization import read_query_cameras, write_poses
from capsdesc.pipelines.localize import LocalizeConfig, guess_camera
from capsdesc.pipelines.scene_map import open_map
from capsdesc.pipelines.sfm import SfmConfig, reconstruct, sfm_extractor
from capsdesc.pipelines.triangulation import agree_with_poses
from capsdesc.types import PosedImage

Array = npt.NDArray[Any]

WIDTH, HEIGHT, FOCAL = 320, 240, 330.0
POSES = orbit(8, spread=16)
# Its neighbours by the arc are in the map.
QUERY = 3
MAPPED = [k for k in range(len(POSES)) if k != QUERY]
OPTIONS = ["--max-keypoints", "600", "--device", "cpu", "--threads", "1"]
CONFIG = LocalizeConfig(max_keypoints=600)
LINE = f"PINHOLE {WIDTH} {HEIGHT} {FOCAL} {FOCAL} {WIDTH / 2} {HEIGHT / 2}"


def render(path: Path, k: int) -> None:
    """A photograph of the relief by a pinhole."""
    rays = (pixel_grid(WIDTH, HEIGHT) - ((WIDTH - 1) / 2, (HEIGHT - 1) / 2)) / FOCAL
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), photograph(*POSES[k], rays)[0])


def write_model(folder: Path, shift: float = 0, mapped: Sequence[int] = MAPPED) -> None:
    """The cameras of the map as COLMAP writes them, without scene points; shifted as a whole along x."""
    model = pycolmap.Reconstruction()
    parameters = [FOCAL, FOCAL, WIDTH / 2, HEIGHT / 2]
    model.add_camera_with_trivial_rig(
        pycolmap.Camera(camera_id=1, model="PINHOLE", width=WIDTH, height=HEIGHT, params=parameters)
    )
    for k in mapped:
        R, t = POSES[k]
        pose = pycolmap.Rigid3d(np.column_stack([R, t - R @ [shift, 0, 0]]))
        model.add_image_with_trivial_frame(pycolmap.Image(name=f"a walk/{k}.png", camera_id=1, image_id=k + 1), pose)
    folder.mkdir(parents=True, exist_ok=True)
    model.write(folder)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``images``, a model, and ``queries``: one photograph, the same at half its size, and what fails."""
    folder = tmp_path_factory.mktemp("localize") / "scene"
    for k in MAPPED:
        render(folder / "images" / "a walk" / f"{k}.png", k)
    write_model(folder / "sparse" / "0")
    queries = folder / "queries"
    render(queries / "day" / "query.png", QUERY)
    picture = read_image(queries / "day" / "query.png")[..., ::-1]
    cv2.imwrite(str(queries / "half.png"), cv2.resize(picture, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA))
    cv2.imwrite(str(queries / "of something else.png"), np.random.default_rng(0).integers(0, 256, (240, 320), np.uint8))
    cv2.imwrite(str(queries / "cropped.png"), picture[:100])
    (queries / "broken.png").write_bytes(b"no photograph")
    return folder


@pytest.fixture(scope="module")
def localized(scene: Path) -> Path:
    """What the command writes of the query, whose camera is known."""
    (scene / "list.txt").write_text(f"# cameras\nday/query.png {LINE}\nhalf.png {LINE}\ncropped.png {LINE}\n")
    out = scene / "out"
    arguments = [str(scene), str(scene / "queries"), "-o", str(out), "--intrinsics", str(scene / "list.txt")]
    assert main(["localize", *arguments, *OPTIONS]) == 1
    return out


def queries_of(out: Path) -> dict[str, Any]:
    content = json.loads((out / "summary.json").read_text())
    return {query["name"]: query for query in content["queries"]}


def errors(R: Array, t: Array, true: tuple[Array, Array] = POSES[QUERY]) -> tuple[float, float]:
    """Degrees, and the distance between the cameras' centres."""
    return (
        float(np.degrees(Rotation.from_matrix(R @ true[0].T).magnitude())),
        float(np.linalg.norm(R.T @ t - true[0].T @ true[1])),
    )


def read_poses(path: Path) -> dict[str, tuple[Array, Array]]:
    """As the benchmark reads them: the scalar comes first."""
    poses = {}
    for line in path.read_text().splitlines():
        name, *numbers = line.split(" ")
        w, x, y, z, *t = (float(number) for number in numbers)
        poses[name] = (Rotation.from_quat([x, y, z, w]).as_matrix(), np.array(t))
    return poses


def test_poses_are_the_true_ones(localized: Path) -> None:
    """The camera stands 4 units from the relief."""
    poses = read_poses(localized / "poses.txt")
    assert set(poses) == {"day/query.png", "half.png"}
    angle, distance = errors(*poses["day/query.png"])
    assert angle < 0.1
    assert distance < 0.01
    # Its camera was given in the size of the whole.
    angle, distance = errors(*poses["half.png"])
    assert angle < 0.4
    assert distance < 0.04


def test_the_summary_tells_what_became_of_each(localized: Path) -> None:
    found = queries_of(localized)
    query = found["day/query.png"]
    assert query["localized"]
    assert query["camera"] == {
        "origin": "given",
        "model": "PINHOLE",
        "width": WIDTH,
        "height": HEIGHT,
        "params": [FOCAL, FOCAL, WIDTH / 2, HEIGHT / 2],
    }
    assert 100 < query["inliers"] <= query["keypoints_with_points"] <= 600
    assert {each["name"] for each in query["retrieved"]} == {f"a walk/{k}.png" for k in MAPPED}
    for name, values in zip(("R", "t"), read_poses(localized / "poses.txt")["day/query.png"], strict=True):
        np.testing.assert_allclose(query[name], values, atol=1e-9)
    assert "100 pixels" in found["cropped.png"]["error"]
    assert "broken.png" in found["broken.png"]["error"]
    assert not found["of something else.png"]["localized"]
    assert found["of something else.png"]["inliers"] < CONFIG.min_inliers


def test_the_picture_shows_inliers_on_both_photographs(localized: Path, scene: Path) -> None:
    assert sorted(path.name for path in (localized / "matches").rglob("*.jpg")) == ["half.png.jpg", "query.png.jpg"]
    picture = read_image(localized / "matches" / "day" / "query.png.jpg")
    assert picture.shape == (HEIGHT, 2 * WIDTH + 8, 3)
    query = read_image(scene / "queries" / "day" / "query.png")
    drawn = np.abs(picture[:, :WIDTH].astype(int) - query).max(axis=2) > 60
    assert 0.02 < drawn.mean() < 0.7


def test_failures_are_named_and_the_map_is_kept(
    localized: Path, scene: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """Again, without cameras: what is not known is estimated."""
    kept = {path: path.stat().st_mtime_ns for path in (scene / "map").rglob("*") if path.is_file()}
    assert {path.name for path in kept} >= {"map.json", "database.db", "points3D.bin", f"{MAPPED[0]}.png.npz"}
    out = scene / "without cameras"
    assert main(["localize", str(scene), str(scene / "queries"), "-o", str(out), *OPTIONS, "--no-pictures"]) == 1
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert "left out broken.png" in caplog.text
    assert "no pose of of something else.png" in caplog.text
    assert "day/query.png" not in caplog.text
    printed = capsys.readouterr().out.splitlines()
    (line,) = (line.split("\t") for line in printed if line.startswith("day/query.png"))
    query = queries_of(out)["day/query.png"]
    assert line[1:3] == [str(query["inliers"]), str(query["keypoints_with_points"])]
    assert printed[-1].startswith("localized ")
    assert not (out / "matches").exists()
    assert query["camera"]["origin"] == "unknown"
    assert query["camera"]["params"][0] == pytest.approx(FOCAL, rel=0.03)
    angle, distance = errors(np.array(query["R"]), np.array(query["t"]))
    assert angle < 0.4
    assert distance < 0.1


def test_the_map_follows_the_model_and_keeps_its_features(localized: Path, scene: Path, tmp_path: Path) -> None:
    """Shifted cameras make shifted points; features are not described again, nor by other settings."""
    model = tmp_path / "scene"
    shutil.copytree(scene, model)
    features = {path: path.stat().st_mtime_ns for path in (model / "map" / "features").rglob("*.npz")}
    assert len(features) == len(MAPPED)
    write_model(model / "sparse" / "0", shift=5)
    query = ["--intrinsics", str(scene / "list.txt"), str(model / "queries" / "half.png"), "-o", str(tmp_path / "out")]
    assert main(["localize", str(model), *query, *OPTIONS]) == 0
    assert {path: path.stat().st_mtime_ns for path in features} == features
    R, t = POSES[QUERY]
    angle, distance = errors(*read_poses(tmp_path / "out" / "poses.txt")["half.png"], (R, t - R @ [5, 0, 0]))
    assert angle < 0.4
    assert distance < 0.04


def test_two_photographs_make_a_map(localized: Path, scene: Path, tmp_path: Path) -> None:
    write_model(tmp_path / "model", mapped=(QUERY - 2, QUERY + 2))
    (tmp_path / "list.txt").write_text(f"query.png {LINE}\n")
    folders = [
        "--images",
        str(scene / "images"),
        "--intrinsics",
        str(tmp_path / "list.txt"),
        "-o",
        str(tmp_path / "out"),
    ]
    assert main(["localize", str(tmp_path / "model"), str(scene / "queries" / "day"), *folders, *OPTIONS]) == 0
    angle, distance = errors(*read_poses(tmp_path / "out" / "poses.txt")["query.png"])
    assert angle < 0.2
    assert distance < 0.02


def test_other_features_are_refused(
    localized: Path, scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (scene / "map" / "map.json").read_bytes()
    arguments = ["localize", str(scene), str(scene / "queries" / "half.png"), "-o", str(tmp_path / "out"), *OPTIONS]
    assert main([*arguments, "--detector", "sift"]) == 1
    error = capsys.readouterr().err
    assert "detector" in error
    assert "--map" in error
    assert error.count("\n") == 1
    assert (scene / "map" / "map.json").read_bytes() == before


def test_a_map_that_was_interrupted_goes_on(scene: Path, tmp_path: Path) -> None:
    extractor = sfm_extractor(device="cpu")
    extractor.detector = Stopping(extractor, 3)
    with pytest.raises(KeyboardInterrupt):
        open_map(extractor, scene, tmp_path / "map", CONFIG, threads=1)
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "map").rglob("*.npz")}
    assert 1 <= len(kept) <= 3
    made = open_map(sfm_extractor(device="cpu"), scene, tmp_path / "map", CONFIG, threads=1)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    # Points lie on the relief, and where keypoints see them.
    assert len(made.points) > 300
    x, y, z = made.points.T
    assert np.median(np.abs(z - 0.4 * np.sin(2 * x) * np.cos(1.7 * y))) < 0.02
    for name, posed in made.photographs.items():
        rows = made.point_ids[name]
        seen = made.points[rows[rows >= 0]] @ posed.R.T + posed.t
        pixels = FOCAL * seen[:, :2] / seen[:, 2:] + ((WIDTH - 1) / 2, (HEIGHT - 1) / 2)
        distances = np.linalg.norm(pixels - np.asarray(made.load(name).keypoints)[rows >= 0], axis=1)
        assert len(distances) > 100
        assert np.median(distances) < 1
        # Nothing looks more like a photograph than itself.
        assert made.index.nearest(made.load(name).descriptors, 2)[0] == name


def test_points_of_capsdesc_sfm_serve(scene: Path, tmp_path: Path) -> None:
    """A photograph of the model is found where the model has it."""
    out = tmp_path / "out"
    config = SfmConfig(max_keypoints=600, camera_model="SIMPLE_PINHOLE", single_camera=True)
    assert reconstruct(scene / "images", out, sfm_extractor(device="cpu"), config, threads=1).models
    copied = shutil.copy(scene / "images" / "a walk" / "4.png", tmp_path / "query.png")
    assert main(["localize", str(out / "sparse" / "0"), str(copied), "-o", str(tmp_path / "poses"), *OPTIONS]) == 0
    written = out / "sparse" / "0" / "map"
    assert {path.name for path in written.iterdir()} == {"map.json", "retrieval.npz", ".capsdesc.lock"}
    model = pycolmap.Reconstruction(out / "sparse" / "0")
    (true,) = (image.cam_from_world() for image in model.images.values() if image.name == "a walk/4.png")
    pose = read_poses(tmp_path / "poses" / "poses.txt")["query.png"]
    angle, distance = errors(*pose, (true.rotation.matrix(), true.translation))
    scale = np.linalg.norm(np.ptp([image.projection_center() for image in model.images.values()], axis=0))
    assert angle < 0.1
    assert distance < 0.01 * scale


# Files


def test_poses_are_written_as_benchmarks_read_them(tmp_path: Path) -> None:
    turned = Rotation.from_euler("zyx", [100, 20, -30], degrees=True).as_matrix()
    write_poses(tmp_path / "poses.txt", {"a/b.jpg": (turned, np.array([1.0, -2, 1e-9]))})
    (line,) = (tmp_path / "poses.txt").read_text().splitlines()
    name, *numbers = line.split(" ")
    assert name == "a/b.jpg"
    w, x, y, z = (float(number) for number in numbers[:4])
    R = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    np.testing.assert_allclose(R, turned, atol=1e-9)
    assert [float(number) for number in numbers[4:]] == [1, -2, 1e-9]


def test_query_cameras_are_read(tmp_path: Path) -> None:
    listed = tmp_path / "list.txt"
    listed.write_text(
        "# a comment\n#1.jpg SIMPLE_RADIAL 1600 1200 1469.2 800 600 -0.02\n\nb.jpg PINHOLE 8 6 5 5.5 4 3\n"
    )
    cameras = read_query_cameras(listed)
    assert list(cameras) == ["#1.jpg", "b.jpg"]
    assert cameras["#1.jpg"].model_name == "SIMPLE_RADIAL"
    assert (cameras["#1.jpg"].width, cameras["#1.jpg"].height) == (1600, 1200)
    assert cameras["#1.jpg"].params.tolist() == [1469.2, 800, 600, -0.02]
    np.testing.assert_array_equal(cameras["b.jpg"].calibration_matrix(), [[5, 0, 4], [0, 5.5, 3], [0, 0, 1]])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a.jpg PINHOLE 8", r"line 2: 3 fields; expected 'name MODEL"),
        ("a.jpg FISHY 8 6 5 4 3", "'FISHY' is none of COLMAP's lens models"),
        ("a.jpg PINHOLE 8 6 5 4 3", "3 parameters; PINHOLE has 4: fx, fy, cx, cy"),
        ("a.jpg SIMPLE_PINHOLE 8 6.5 5 4 3", r"8 x 6.5 is no size"),
        ("a.jpg SIMPLE_PINHOLE 8 6 nan 4 3", "not finite"),
        ("a.jpg SIMPLE_PINHOLE 8 6 -5 4 3", "focal length is -5"),
        ("first.jpg SIMPLE_PINHOLE 8 6 5 4 3", "first.jpg is listed before"),
    ],
)
def test_bad_lists_are_refused(tmp_path: Path, line: str, message: str) -> None:
    listed = tmp_path / "list.txt"
    listed.write_text(f"first.jpg SIMPLE_PINHOLE 8 6 5 4 3\n{line}\n")
    with pytest.raises(ValueError, match=message):
        read_query_cameras(listed)


def test_the_focal_length_is_that_of_exif_data(tmp_path: Path) -> None:
    photo = PIL.Image.new("RGB", (640, 480))
    exif = PIL.Image.Exif()
    exif.get_ifd(0x8769)[0xA405] = 50  # as on film of 36 mm
    photo.save(tmp_path / "known.jpg", exif=exif)
    photo.save(tmp_path / "unknown.jpg")
    photo.save(tmp_path / "unknown.webp")
    camera, origin = guess_camera(tmp_path / "known.jpg")
    assert origin == "exif"
    assert camera.mean_focal_length() == pytest.approx(640 * 50 / 36, rel=0.04)
    for name in ("unknown.jpg", "unknown.webp"):
        camera, origin = guess_camera(tmp_path / name)
        assert origin == "unknown"
        assert camera.mean_focal_length() == pytest.approx(1.2 * 640)
        assert (camera.width, camera.height) == (640, 480)


# What is refused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nosuch", "half.png"], "no COLMAP model in .*nosuch"),
        (["scene", "half.png", "--images", "nosuch"], "no image folder"),
        (["scene", "half.png", "--intrinsics", "other.txt"], "lists none of the queries.*half.png, but other.png"),
        (["scene", "half.png", "--neighbours", "0"], "neighbours is 0"),
        (["scene", "half.png", "--threshold", "-1"], "threshold is -1"),
        (["scene", "half.png", "--min-inliers", "3"], "min_inliers is 3"),
        (["scene/images", "half.png"], "no COLMAP model in"),
    ],
)
def test_bad_input_is_one_line(
    scene: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scene").symlink_to(scene)
    (tmp_path / "other.txt").write_text(f"other.png {LINE}\n")
    shutil.copy(scene / "queries" / "half.png", tmp_path)
    assert main(["localize", *arguments, "-o", "out", *OPTIONS]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    assert re.search(message, error), error
    assert not (tmp_path / "out" / "poses.txt").exists()


def test_matches_agree_with_poses_through_lenses() -> None:
    """Projected by OpenCV, which has the same distortion, and moved across epipolar lines."""
    rng = np.random.default_rng(0)
    lens = [-0.2, 0.05, 0.003, -0.002]
    camera = pycolmap.Camera(model="OPENCV", width=640, height=480, params=[500, 510, 320.5, 240.5, *lens])
    K = np.array([[500.0, 0, 320], [0, 510, 240], [0, 0, 1]])
    points = rng.uniform([-1.5, -1, 4], [1.5, 1, 7], (200, 3))
    views = []
    for turn, t in (((0.0, 0, 0), (0.0, 0, 0)), ((0.05, -0.1, 0.02), (-0.8, 0.1, 0.1))):
        pixels = cv2.projectPoints(points, np.array(turn), np.array(t), K, np.array(lens))[0].reshape(-1, 2)
        R = Rotation.from_rotvec(turn).as_matrix()
        nothing = np.empty((0, 3)), np.empty(0, np.int64)
        views.append((PosedImage(Path("none"), camera, R, np.array(t), *nothing), pixels))
    (first, pixels0), (second, pixels1) = views
    assert agree_with_poses(first, second, pixels0, pixels1, max_error=0.01).all()
    # Epipolar lines run nearly along x here. The first-order distance shares the move between both images.
    assert agree_with_poses(first, second, pixels0, pixels1 + np.array([0, 5])).all()
    assert not agree_with_poses(first, second, pixels0, pixels1 + np.array([0, 7])).any()
