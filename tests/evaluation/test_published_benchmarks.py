"""Benchmarks in the layouts of their authors, written from exact photographs of a relief."""

from __future__ import annotations

import dataclasses
import itertools
import json
import pickle
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from relief import Array, orbit, photograph, pixel_grid

from capsdesc.commands.main import main
from capsdesc.evaluation import report
from capsdesc.evaluation.classical import RootSIFT
from capsdesc.evaluation.datasets import Benchmark, CorrespondencePair, PosePair, read_benchmark
from capsdesc.evaluation.features import FeatureStore
from capsdesc.evaluation.protocols import Result, Settings, evaluate
from capsdesc.evaluation.rows import EpipolarRow, PoseRow

SIZE = (320, 240)
K = np.array([[400.0, 0, 155], [0, 410, 122], [0, 0, 1]])
# As COLMAP has it: the centre of the first pixel is at (0.5, 0.5).
K_COLMAP = K + np.array([[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]])
POSES = orbit(4, spread=15)
NAMES = ["a", "b", "c", "d"]


@pytest.fixture(scope="module")
def views() -> list[tuple[Array, Array]]:
    """What each camera sees, in OpenCV's order of channels, and how deep."""
    rays = (pixel_grid(*SIZE) - K[:2, 2]) / [K[0, 0], K[1, 1]]
    return [photograph(R, t, rays) for R, t in POSES]


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache: the photographs are the same in all layouts."""
    return tmp_path_factory.mktemp("features")


def write_images(folder: Path, views: list[tuple[Array, Array]], names: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, (image, _) in zip(names, views, strict=True):
        cv2.imwrite(str(folder / name), image)


def measure(benchmark: Benchmark, features: Path, **settings: Any) -> Result:
    store = FeatureStore(features, max_keypoints=800, max_edge=1024)
    return evaluate(benchmark, RootSIFT(), "shared", store, Settings(**settings))


def relative(i: int, j: int) -> tuple[Array, Array]:
    T = [np.vstack([np.column_stack([R, t]), [0, 0, 0, 1]]) for R, t in (POSES[i], POSES[j])]
    motion = T[1] @ np.linalg.inv(T[0])
    return motion[:3, :3], motion[:3, 3]


def assert_is(pair: Any, i: int, j: int, scale: float = 1.0) -> None:
    assert isinstance(pair, PosePair)
    R, t = relative(i, j)
    np.testing.assert_allclose(pair.R, R, atol=1e-6)
    np.testing.assert_allclose(pair.t, scale * t, atol=1e-6)
    for camera in (pair.camera0, pair.camera1):
        np.testing.assert_allclose(camera.K, K, atol=1e-6)
        assert camera.undistort is None


def assert_found(result: Result) -> None:
    rows = [row for row in result.rows if isinstance(row, PoseRow)]
    assert rows
    assert max(row.rotation_error for row in rows) < 1
    assert max(row.translation_error for row in rows) < 5


# ---- MegaDepth-1500


def scene_info(folder: str) -> dict[str, Any]:
    """Images 1 and 4 of five were left out of the scene."""
    info: dict[str, Any] = {name: np.full(6, None, dtype=object) for name in ("image_paths", "intrinsics", "poses")}
    for place, name, (R, t) in zip((0, 2, 3, 5), NAMES, POSES, strict=True):
        info["image_paths"][place] = f"{folder}/{name}.jpg.png"
        info["intrinsics"][place] = K_COLMAP
        info["poses"][place] = np.vstack([np.column_stack([R, t]), [0, 0, 0, 1]])
    info["pair_infos"] = [(np.array([0, 2]), 0.4, np.zeros(4)), (np.array([5, 3]), 0.2, np.zeros(4))]
    return info


@pytest.mark.parametrize("form", ["pickle", "archive"])
def test_megadepth(form: str, views: list[tuple[Array, Array]], features: Path, tmp_path: Path) -> None:
    write_images(tmp_path / "Undistorted_SfM" / "0015" / "images", views, [f"{name}.jpg.png" for name in NAMES])
    info = scene_info("Undistorted_SfM/0015/images")
    (tmp_path / "scene_info").mkdir()
    path = tmp_path / "scene_info" / "0015_0.1_0.3.npz"
    if form == "pickle":
        path.write_bytes(pickle.dumps(info))
    else:
        listed = np.empty((2, 3), dtype=object)
        listed[:] = info["pair_infos"]
        np.savez(path, **{**info, "pair_infos": listed})
    benchmark = read_benchmark("megadepth", tmp_path)
    first, second = benchmark.pairs
    assert_is(first, 0, 1)
    assert_is(second, 3, 2)
    assert (first.name, first.group) == ("0015_0.1_0.3/a.jpg.png-b.jpg.png", "0015_0.1_0.3")
    if form == "pickle":
        assert_found(measure(benchmark, features))
    # The lists by themselves, with the images elsewhere.
    again = read_benchmark("megadepth", tmp_path / "scene_info", images=tmp_path)
    assert [pair.view0 for pair in again.pairs] == [pair.view0 for pair in benchmark.pairs]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pair_infos": [([0, 1], 0.4)]}, "pair 0: image 1 was left out of the scene"),
        ({"pair_infos": [([0, 6], 0.4)]}, r"pair 0 is of images \[0, 6\]; expected two of 6"),
        ({"pair_infos": [3]}, r"pair 0 is 3; expected \(\(i, j\), overlap"),
        ({"poses": [None] * 6}, r"pose of image 0 has shape \(1,\); expected \(4, 4\)"),
        ({"poses": []}, "has 6 images, 6 intrinsics and 0 poses"),
        ({"intrinsics": 7}, "intrinsics is 7; expected a list"),
        ({"image_paths": ["../a.png"] * 6}, "is refused; expected the name of a file below"),
    ],
)
def test_damaged_scenes_of_megadepth(
    change: dict[str, Any], message: str, views: list[tuple[Array, Array]], tmp_path: Path
) -> None:
    write_images(tmp_path, views, [f"{name}.jpg.png" for name in NAMES])
    (tmp_path / "s.npz").write_bytes(pickle.dumps({**scene_info("."), **change}))
    with pytest.raises(ValueError, match=message):
        read_benchmark("megadepth", tmp_path)


# ---- ScanNet-1500


def test_scannet(views: list[tuple[Array, Array]], features: Path, tmp_path: Path) -> None:
    color = tmp_path / "scannet_test_1500" / "scene0707_01" / "color"
    write_images(color, views, [f"{frame}.jpg.png" for frame in (15, 30, 45, 60)])
    for path in color.iterdir():
        path.rename(path.with_suffix(""))
    motions = [np.column_stack(relative(i, j)).ravel() for i, j in ((0, 1), (2, 1))]
    listed = np.array([[707, 1, 15, 30], [707, 1, 45, 30]], dtype=np.uint16)
    np.savez(tmp_path / "test.npz", name=listed, rel_pose=np.array(motions, dtype=np.float32))
    # Of 640 x 480 pixels, twice as many as the files have: corners stay corners.
    doubled = np.array([[2, 0, 0.5], [0, 2, 0.5], [0, 0, 1]]) @ K
    np.savez(tmp_path / "intrinsics.npz", scene0707_01=doubled)
    benchmark = read_benchmark("scannet", tmp_path)
    first, second = benchmark.pairs
    assert_is(first, 0, 1)
    assert_is(second, 2, 1)
    assert (first.name, first.group) == ("scene0707_01/15-30", "moderate")
    assert_found(measure(benchmark, features))
    np.savez(tmp_path / "intrinsics.npz", scene0708_00=doubled)
    with pytest.raises(ValueError, match=r"intrinsics\.npz has no scene0707_01"):
        read_benchmark("scannet", tmp_path)


# ---- Glue Factory's lists


@pytest.mark.parametrize("fields", [36, 32])
def test_lists_without_turns(fields: int, views: list[tuple[Array, Array]], tmp_path: Path) -> None:
    write_images(tmp_path / "images", views, [f"{name}.png" for name in NAMES])
    R, t = relative(0, 1)
    motion = np.vstack([np.column_stack([R, t]), [0, 0, 0, 1]]) if fields == 36 else np.concatenate([R.ravel(), t])
    values = " ".join(map(repr, np.concatenate([K.ravel(), K.ravel(), motion.ravel()]).tolist()))
    (tmp_path / "pairs_calibrated.txt").write_text(f"a.png b.png {values}\n")
    (pair,) = read_benchmark("pairs", tmp_path / "pairs_calibrated.txt", images=tmp_path / "images").pairs
    assert_is(pair, 0, 1)
    assert (pair.view0.turns, pair.view1.turns) == (0, 0)


# ---- the Image Matching Challenge


def write_imc2021(folder: Path, views: list[tuple[Array, Array]], suffix: str) -> None:
    h5py = pytest.importorskip("h5py")
    write_images(folder / "images", views, [f"{name}{suffix}" for name in NAMES])
    (folder / "calibration").mkdir()
    (folder / "new-vis-pairs").mkdir()
    for name, (R, t) in zip(NAMES, POSES, strict=True):
        with h5py.File(folder / "calibration" / f"calibration_{name}.h5", "w") as file:
            for key, value in (("K", K_COLMAP), ("R", R), ("T", t[:, None])):
                file[key] = value
    keys = [f"{second}-{first}" for first, second in itertools.combinations(NAMES, 2)]
    np.save(folder / "new-vis-pairs" / "keys-th-0.1.npy", np.array(keys))
    np.save(folder / "new-vis-pairs" / "keys-th-0.5.npy", np.array(keys[:1]))


def test_imc2021(views: list[tuple[Array, Array]], features: Path, tmp_path: Path) -> None:
    write_imc2021(tmp_path / "sacre_coeur" / "set_100", views, ".png")
    write_imc2021(tmp_path / "reichstag" / "set_100", views[::-1], ".png")  # every image with another's camera
    benchmark = read_benchmark("imc2021", tmp_path)
    assert [pair.group for pair in benchmark.pairs] == ["reichstag"] * 6 + ["sacre_coeur"] * 6
    assert benchmark.pairs[6].name == "sacre_coeur/b-a"
    assert_is(benchmark.pairs[6], 1, 0)
    assert len(read_benchmark("imc2021", tmp_path, min_overlap=0.5).pairs) == 2
    (pair,) = read_benchmark("imc2021", tmp_path / "sacre_coeur" / "set_100", min_overlap=0.5).pairs
    assert_is(pair, 1, 0)
    with pytest.raises(FileNotFoundError, match=r"keys-th-0\.3\.npy does not exist"):
        read_benchmark("imc2021", tmp_path, min_overlap=0.3)

    result = measure(benchmark, features)
    assert_found(dataclasses.replace(result, rows=result.rows[6:]))
    expected = {}
    for scene in ("sacre_coeur", "reichstag"):
        rows = [row for row in result.rows if isinstance(row, PoseRow) and row.group == scene]
        larger = [min(1e6, max(row.rotation_error, row.translation_error)) for row in rows]
        expected[scene] = np.cumsum(np.histogram(larger, np.arange(11))[0] / len(rows)).mean()
        assert result.summary[scene]["maa@10"] == pytest.approx(expected[scene])
    assert expected["sacre_coeur"] > 0.7 > 0.3 > expected["reichstag"]
    # One pair of the one and six of the other scene: scenes count alike.
    uneven = measure(dataclasses.replace(benchmark, pairs=benchmark.pairs[5:]), features)
    last = uneven.summary["reichstag"]["maa@10"]
    assert uneven.summary["all"]["maa@10"] == pytest.approx((last + expected["sacre_coeur"]) / 2)
    assert "maa" not in result.summary["all"]
    assert "mAA 5/10°" in report.markdown([result])
    assert "5 m" not in report.markdown([result])


def text(values: Array) -> str:
    return " ".join(map(repr, values.ravel().tolist()))


def write_imc2022(folder: Path, views: list[tuple[Array, Array]]) -> None:
    write_images(folder / "wall" / "images", views, [f"{name}.png" for name in NAMES])
    rows = [",".join([name, text(K_COLMAP), text(R), text(t)]) for name, (R, t) in zip(NAMES, POSES, strict=True)]
    header = "image_id,camera_intrinsics,rotation_matrix,translation_vector"
    (folder / "wall" / "calibration.csv").write_text("\n".join([header, *rows, ""]))
    pairs = [("b-a", 0.8), ("c-b", 0.1), ("d-a", 0.09)]
    lines = [f"{pair},{overlap},{text(np.eye(3))}" for pair, overlap in pairs]
    (folder / "wall" / "pair_covisibility.csv").write_text("\n".join(["pair,covisibility,fundamental_matrix", *lines]))
    # The scene that is not there was not unpacked.
    (folder / "scaling_factors.csv").write_text("scene,scaling_factor\nwall,0.25\nelsewhere,3\n")


def test_imc2022(views: list[tuple[Array, Array]], features: Path, tmp_path: Path) -> None:
    write_imc2022(tmp_path, views)
    benchmark = read_benchmark("imc2022", tmp_path)
    assert [pair.name for pair in benchmark.pairs] == ["wall/b-a", "wall/c-b"]
    assert_is(benchmark.pairs[0], 1, 0, scale=0.25)
    assert_is(benchmark.pairs[1], 2, 1, scale=0.25)
    assert len(read_benchmark("imc2022", tmp_path, min_overlap=0.05).pairs) == 3
    calibrated, uncalibrated = (measure(benchmark, features, estimator=name) for name in ("opencv", "fundamental"))
    assert_found(calibrated)
    row = calibrated.rows[0]
    assert isinstance(row, PoseRow)
    assert row.baseline == pytest.approx(0.25 * np.linalg.norm(relative(1, 0)[1]))
    assert calibrated.summary["all"]["maa"] > 0.8
    assert 0 < uncalibrated.summary["all"]["maa"] <= 1
    assert max(row.rotation_error for row in uncalibrated.rows if isinstance(row, PoseRow)) < 5
    assert "| mAA 10°, 5 m |" in report.markdown([calibrated])
    assert "fundamental matrix by opencv, 1 px" in report.markdown([uncalibrated])


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("scaling_factors.csv", "0.25", "-1", "the factor of wall is -1.0; expected above 0"),
        ("scaling_factors.csv", "scaling_factor", "factor", "has no column scaling_factor"),
        ("wall/pair_covisibility.csv", "c-b", "c-e", "line 3: calibration.csv has no e"),
        ("wall/pair_covisibility.csv", "c-b", "cb", "'cb' is no pair; expected NAME0-NAME1"),
        ("wall/pair_covisibility.csv", ",0.1,", ",much,", "line 3: covisibility: could not convert"),
        ("wall/calibration.csv", text(K_COLMAP), "1 2 3", "camera_intrinsics has 3 numbers; expected 9"),
        ("wall/calibration.csv", "\nb,", "\n../b,", "is refused; expected the name of a file below"),
    ],
)
def test_damaged_tables_of_imc2022(
    file: str, old: str, new: str, message: str, views: list[tuple[Array, Array]], tmp_path: Path
) -> None:
    write_imc2022(tmp_path, views)
    (tmp_path / file).write_text((tmp_path / file).read_text().replace(old, new))
    with pytest.raises(ValueError, match=message):
        read_benchmark("imc2022", tmp_path)


# ---- WxBS


def marked_points(views: list[tuple[Array, Array]], i: int, j: int) -> Array:
    """The same points of the relief in two photographs, (N, 4)."""
    at = np.random.default_rng(0).integers((20, 20), (SIZE[0] - 20, SIZE[1] - 20), size=(25, 2))
    depths = views[i][1][at[:, 1], at[:, 0]]
    R, t = relative(i, j)
    seen = (depths[:, None] * (np.column_stack([at, np.ones(25)]) @ np.linalg.inv(K).T)) @ R.T + t
    projected = seen @ K.T
    return np.column_stack([at, projected[:, :2] / projected[:, 2:]])


def write_wxbs(folder: Path, views: list[tuple[Array, Array]]) -> None:
    for path, suffix, i, j in (
        ("WGBS/wall", ".png", 0, 1),
        ("WLABS/petrzin", ".png", 1, 2),
        ("WGABS/yard", ".jpg", 2, 3),
    ):
        write_images(folder / path, [views[i], views[j]], [f"01{suffix}", f"02{suffix}"])
        np.savetxt(folder / path / "corrs.txt", marked_points(views, i, j))
        np.savetxt(folder / path / "crossval_errors.txt", np.zeros(25))
    (folder / "README.txt").write_text("WxBS\n")


def test_wxbs(views: list[tuple[Array, Array]], features: Path, tmp_path: Path) -> None:
    write_wxbs(tmp_path / "v1.1", views)
    benchmark = read_benchmark("wxbs", tmp_path)
    # petrzin is of the validation pairs.
    assert [(pair.name, pair.group) for pair in benchmark.pairs] == [("WGABS/yard", "WGABS"), ("WGBS/wall", "WGBS")]
    pair = benchmark.pairs[1]
    assert isinstance(pair, CorrespondencePair)
    np.testing.assert_allclose(np.column_stack([pair.points0, pair.points1]), marked_points(views, 0, 1))
    result = measure(benchmark, features)
    recalls = [row.recall for row in result.rows if isinstance(row, EpipolarRow)]
    assert np.shape(recalls) == (2, 20)
    assert result.summary["all"]["recall@5"] == pytest.approx(np.mean([recall[4] for recall in recalls]))
    assert result.summary["all"]["recall@5"] > 0.9
    assert result.summary["all"]["maa@10"] == pytest.approx(np.mean([np.sum(recall[:10]) / 11 for recall in recalls]))
    # Pixels are those of the files, however small the images were made.
    store = FeatureStore(features, max_keypoints=800, max_edge=200)
    small = evaluate(benchmark, RootSIFT(), "shared", store, Settings())
    assert small.summary["all"]["recall@5"] > 0.8
    # Of points that are marked elsewhere few agree.
    wrong = dataclasses.replace(pair, points1=pair.points1[::-1])
    worse = measure(dataclasses.replace(benchmark, pairs=(wrong,)), features)
    assert worse.summary["all"]["recall@3"] < 0.5


def test_wxbs_on_the_command_line(views: list[tuple[Array, Array]], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    write_wxbs(tmp_path / "WxBS", views)
    out = tmp_path / "out"
    arguments = ["wxbs", str(tmp_path / "WxBS"), "--methods", "rootsift", "--max-edge", "120", "--edge", "shorter"]
    assert main(["eval", *arguments, "--plot", "-o", str(out)]) == 0
    (result,) = json.loads((out / "results.json").read_text())["results"]
    assert len(result["rows"]) == 2
    assert (out / "wxbs-WxBS-shared.png").is_file()
    table = (out / "results.md").read_text()
    assert "shorter edge at most 120 px" in table
    figures = result["summary"]["all"]
    recall = " / ".join(f"{100 * figures[f'recall@{t}']:.1f}" for t in (1, 3, 5, 10, 20))
    assert f"| {recall} | {100 * figures['maa@10']:.1f} |" in table
    for path in out.rglob("*.npz"):
        assert np.load(path)["image_size"].tolist() == [160, 120]


def test_points_that_are_none_are_refused(views: list[tuple[Array, Array]], tmp_path: Path) -> None:
    write_wxbs(tmp_path, views)
    for content in ("", "1 2 3\n", "1 2 3 x\n"):
        (tmp_path / "WGBS" / "wall" / "corrs.txt").write_text(content)
        with pytest.raises(ValueError, match=r"corrs\.txt"):
            read_benchmark("wxbs", tmp_path)


# ---- resizing


def test_the_shorter_edge_is_what_it_is_asked_to_be(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="edge is 'wide'; expected one of longer, shorter"):
        Settings(edge="wide")
    (tmp_path / "set" / "ant").mkdir(parents=True)
    for k, (width, height) in enumerate([(125, 50), (50, 125), (30, 38)], start=1):
        cv2.imwrite(str(tmp_path / "set" / "ant" / f"img{k}.png"), np.zeros((height, width, 3), np.uint8))
        np.savetxt(tmp_path / "set" / "ant" / f"H1to{k}p", np.eye(3))
    views = read_benchmark("oxford", tmp_path / "set").views()
    store = FeatureStore(tmp_path / "features", max_keypoints=9, max_edge=40, edge="shorter")
    store.export(views, RootSIFT(), "shared")
    sizes = [store.load(view, RootSIFT(), "shared").image_size for view in views]
    assert sizes == [(100, 40), (40, 100), (30, 38)]
    # Neither takes the other's features.
    other = FeatureStore(tmp_path / "features", max_keypoints=9, max_edge=40)
    with pytest.raises(FileNotFoundError):
        other.load(views[0], RootSIFT(), "shared")
