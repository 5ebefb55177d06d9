"""The network's own keypoints in every command and file: one pass an image, and no scale or angle to trip over."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
import numpy.typing as npt
import pytest
import torch
from test_prepare import write_photographs

from capsdesc import CAPSExtractor
from capsdesc.commands.main import main
from capsdesc.io.database import ColmapDatabase
from capsdesc.io.npz import load_features
from capsdesc.pipelines.extract import extract_images, name_images
from capsdesc.pipelines.sfm import sfm_extractor
from capsdesc.pipelines.stores import NpzFolder
from capsdesc.types import KeypointsLike

Array = npt.NDArray[Any]
Pixels = npt.NDArray[np.uint8]
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def caps(keypoint_model: Path) -> CAPSExtractor:
    return CAPSExtractor(keypoint_model, detector="caps", device="cpu")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory, shifted_pair: tuple[Pixels, Pixels, Array]) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for name, image in zip(("a.png", "b.png"), shifted_pair[:2], strict=True):
        assert cv2.imwrite(str(folder / name), image[:150, :203, ::-1])
    return folder


@pytest.fixture
def chosen(keypoint_model: Path) -> list[str]:
    return ["--weights", str(keypoint_model), "--device", "cpu", "--detector", "caps"]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Sums in one order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_the_network_sees_an_image_once(caps: CAPSExtractor, photos: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, ...]] = []
    encoder = caps._seeing.network.get_submodule("encoder")
    hook = encoder.register_forward_hook(lambda module, inputs, output: seen.append(tuple(inputs[0].shape)))
    sink = NpzFolder(tmp_path / "features")
    try:
        done = extract_images(caps, name_images([photos]), sink, max_keypoints=100, derivatives=True)
    finally:
        hook.remove()
    assert done.described == ("a.png", "b.png")
    assert seen == [(1, 3, 150, 203)] * 2
    for name in done.described:
        kept, expected = load_features(sink.path(name)), caps.extract(photos / name, 100, derivatives=True)
        np.testing.assert_array_equal(kept.keypoints, expected.keypoints)
        np.testing.assert_array_equal(kept.scores, np.asarray(expected.scores))
        np.testing.assert_allclose(kept.descriptors, expected.descriptors, atol=1e-5)
        assert kept.scales is None
        assert kept.angles is None


def test_folders_hold_them_and_no_others_beside(
    caps: CAPSExtractor, photos: Path, chosen: list[str], tmp_path: Path, capsys: Capture
) -> None:
    command = ["extract", str(photos), "-o", str(tmp_path / "out"), "--max-keypoints", "80", *chosen]
    assert main(command) == 0
    with np.load(tmp_path / "out" / "a.png.npz") as stored:
        assert {"scales", "angles"}.isdisjoint(stored)
        assert json.loads(str(stored["settings"]))["detector"] == "CAPSDetector()"
        np.testing.assert_array_equal(stored["keypoints"], caps.detect(photos / "a.png", 80).points)
    capsys.readouterr()
    assert main([*command[:-1], "sift"]) == 1
    error = capsys.readouterr().err
    assert "CAPSDetector()" in error
    assert "choose another output" in error


def test_hloc_s_file_holds_them(caps: CAPSExtractor, photos: Path, chosen: list[str], tmp_path: Path) -> None:
    path = tmp_path / "features.h5"
    assert main(["extract", str(photos), "-o", str(path), "--max-keypoints", "80", *chosen]) == 0
    with h5py.File(path) as file:
        expected = caps.extract(photos / "b.png", 80)
        np.testing.assert_array_equal(file["b.png"]["keypoints"], expected.keypoints)
        np.testing.assert_array_equal(file["b.png"]["scores"], np.asarray(expected.scores))
    pairs = tmp_path / "pairs.txt"
    pairs.write_text("a.png b.png\n")
    matches = tmp_path / "matches.h5"
    assert main(["match-features", str(path), str(pairs), "-o", str(matches)]) == 0
    with h5py.File(matches) as file:
        assert (file["a.png"]["b.png"]["matches0"][:] >= 0).sum() > 5


def test_colmap_s_database_holds_them(caps: CAPSExtractor, photos: Path, tmp_path: Path) -> None:
    keypoints = caps.detect(photos / "a.png", 80)
    forms: list[KeypointsLike] = [np.asarray(keypoints.points), keypoints]
    for number, given in enumerate(forms):
        path = tmp_path / f"{number}.db"
        with ColmapDatabase(path) as database:
            assert database.import_images(photos, ["a.png"]) == []
            database.write_keypoints("a.png", given)
        connection = sqlite3.connect(path)
        ((rows, columns, data),) = connection.execute("SELECT rows, cols, data FROM keypoints").fetchall()
        connection.close()
        stored = np.frombuffer(data, dtype=np.float32).reshape(rows, columns)
        assert rows == 80
        # COLMAP's corner pixel has its centre at a half.
        np.testing.assert_allclose(stored[:, :2], np.asarray(keypoints.points) + 0.5, atol=1e-5)


def test_any_orientation_in_the_commands(caps: CAPSExtractor, photos: Path, chosen: list[str], tmp_path: Path) -> None:
    options = ["--max-keypoints", "20", "--orientation", "any", "--no-derivatives", *chosen]
    assert main(["extract", str(photos / "a.png"), "-o", str(tmp_path), *options]) == 0
    kept = load_features(tmp_path / "a.png.npz")
    np.testing.assert_array_equal(kept.keypoints, caps.detect(photos / "a.png", 20).points)
    assert kept.descriptors.shape == (9, 3, 20, 256)


def test_match_takes_them(caps: CAPSExtractor, photos: Path, chosen: list[str], capsys: Capture) -> None:
    pair = [str(photos / "a.png"), str(photos / "b.png")]
    assert main(["match", *pair, "--json", "--max-keypoints", "200", *chosen]) == 0
    assert json.loads(capsys.readouterr().out)["keypoints"] == [len(caps.detect(path, 200)) for path in pair]


def test_weights_without_them_say_what_to_do(
    model_folders: dict[str, Path], photos: Path, tmp_path: Path, capsys: Capture
) -> None:
    options = ["--detector", "caps", "--weights", str(model_folders["compact"]), "--device", "cpu"]
    for command in (
        ["extract", str(photos), "-o", str(tmp_path / "out")],
        ["match", str(photos / "a.png"), str(photos / "b.png")],
        ["sfm", str(photos), str(tmp_path / "sfm")],
        ["demo"],
    ):
        assert main([*command, *options]) == 1
        error = capsys.readouterr().err
        assert "give detector='sift', or weights whose config has keypoints" in error
        assert error.count("\n") == 1


def test_sfm_takes_them(keypoint_model: Path, tmp_path: Path, chosen: list[str]) -> None:
    write_photographs(tmp_path / "photographs", range(1, 4))
    out = tmp_path / "out"
    options = ["--camera-model", "SIMPLE_PINHOLE", "--threads", "1", "--max-keypoints", "300", *chosen]
    # Whether random weights make for a model is not what this is about.
    assert main(["sfm", str(tmp_path / "photographs"), str(out), *options]) in (0, 1)
    caps = sfm_extractor(keypoint_model, detector="caps", device="cpu")
    assert not caps.reliability
    connection = sqlite3.connect(out / "database.db")
    stored = dict(connection.execute("SELECT name, rows FROM keypoints JOIN images USING (image_id)"))
    (matched,) = connection.execute("SELECT SUM(rows) FROM matches").fetchone()
    connection.close()
    names = [f"photo {k}.png" for k in range(1, 4)]
    assert stored == {name: len(caps.detect(tmp_path / "photographs" / name, 300)) for name in names}
    assert matched > 20
    assert json.loads((out / "summary.json").read_text())["settings"]["detector"] == "CAPSDetector()"


def test_sfm_finds_weaker_points_by_sift_alone(keypoint_model: Path) -> None:
    assert "contrast_threshold=0.01" in repr(sfm_extractor(keypoint_model, detector="sift", device="cpu").detector)
