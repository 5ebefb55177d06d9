"""``capsdesc-train prepare`` on photographs of a relief, rendered here from known cameras."""

from __future__ import annotations

import contextlib
import dataclasses
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pycolmap
import pytest
from relief import orbit, photograph, pixel_grid
from scipy.spatial.transform import Rotation

from capsdesc.commands.train import main
from capsdesc.images import read_image
from capsdesc.io.locks import LOCK_NAME
from capsdesc.pipelines import colmap
from capsdesc.pipelines.prepare import PrepareConfig, prepare
from capsdesc.training.dataset import DataConfig
from capsdesc.training.sources import ColmapSource

Array = npt.NDArray[Any]

WIDTH, HEIGHT, FOCAL = 240, 180, 250.0
COUNT = 8
POSES = orbit(COUNT)
COMMAND = """
import sys
from capsdesc.commands.train import main
sys.exit(main(["prepare", *sys.argv[1:]]))
"""


KILLED_COPY = """
import os, signal, sys
from capsdesc.io.files import atomic_path
with atomic_path(sys.argv[1]) as path:
    path.write_bytes(b"half a copy")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def write_photographs(folder: Path, which: Iterable[int]) -> None:
    """Photographs of the relief by a pinhole, by their numbers."""
    rays = (pixel_grid(WIDTH, HEIGHT) - ((WIDTH - 1) / 2, (HEIGHT - 1) / 2)) / FOCAL
    folder.mkdir(parents=True)
    for k in which:
        cv2.imwrite(str(folder / f"photo {k}.png"), photograph(*POSES[k], rays)[0])


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A run that was killed and then repeated."""

    photographs: Path
    out: Path
    features_when_killed: int
    finished_when_killed: bool
    printed: str
    warned: str


def keypoint_count(database: Path) -> int:
    """Photographs whose features are in the database, asked of it directly."""
    if not database.exists():
        return 0
    try:
        with sqlite3.connect(database) as opened:
            return int(opened.execute("SELECT COUNT(*) FROM descriptors").fetchone()[0])
    except sqlite3.OperationalError:  # not created yet
        return 0


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    folder = tmp_path_factory.mktemp("prepare")
    photographs = folder / "photographs"
    write_photographs(photographs / "a walk", range(COUNT))
    (photographs / "broken.jpg").write_bytes(b"\xff\xd8 no photograph")

    out = folder / "scene"
    arguments = [str(photographs), str(out), "--camera-model", "SIMPLE_PINHOLE", "--threads", "1"]
    command = [sys.executable, "-c", COMMAND, *arguments]
    killed = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while keypoint_count(out / "database.db") < 2 and killed.poll() is None:
        time.sleep(0.05)
    killed.kill()
    killed.wait()
    with contextlib.closing(sqlite3.connect(out / "database.db")) as opened, opened:
        # As if it was killed between a camera and its image.
        copied = "model, width, height, params, prior_focal_length FROM cameras LIMIT 1"
        opened.execute(f"INSERT INTO cameras SELECT 99, {copied}")
        opened.execute("INSERT INTO rigs VALUES (99, 99, 0)")
    # And while it wrote a copy, which is made where there are no links.
    copy = out / "images" / "a walk" / "photo 7.png"
    copy.unlink()
    subprocess.run([sys.executable, "-c", KILLED_COPY, str(copy)])
    assert len(list(copy.parent.glob(".*.png"))) == 1
    features, done = keypoint_count(out / "database.db"), (out / "sparse").exists()
    finished = subprocess.run(command, capture_output=True, text=True, check=True)
    return Prepared(photographs, out, features, done, finished.stdout, finished.stderr)


def test_registered_poses_are_the_true_ones_up_to_a_similarity(prepared: Prepared) -> None:
    assert prepared.features_when_killed >= 2
    assert not prepared.finished_when_killed
    model = pycolmap.Reconstruction(prepared.out / "sparse" / "0")
    images = sorted((model.image(image_id) for image_id in model.reg_image_ids()), key=lambda image: str(image.name))
    assert [image.name for image in images] == [f"a walk/photo {k}.png" for k in range(COUNT)]
    rotations = [np.asarray(image.cam_from_world().rotation.matrix()) for image in images]
    centers = np.array([image.projection_center() for image in images])
    true_centers = np.array([-R.T @ t for R, t in POSES])
    turn = Rotation.from_matrix(np.array([R.T @ found for (R, _), found in zip(POSES, rotations, strict=True)])).mean()
    for (R, _), found in zip(POSES, rotations, strict=True):
        assert np.degrees((Rotation.from_matrix(R.T @ found).inv() * turn).magnitude()) < 1
    moved = turn.apply(centers - centers.mean(0))
    offsets = true_centers - true_centers.mean(0)
    scale = (moved * offsets).sum() / (moved**2).sum()
    assert np.linalg.norm(scale * moved - offsets, axis=1).max() < 0.05 * np.linalg.norm(offsets, axis=1).max()


def test_what_the_killed_run_left_is_cleared_away(prepared: Prepared) -> None:
    with contextlib.closing(sqlite3.connect(prepared.out / "database.db")) as opened:
        cameras, rigs = (
            {value for (value,) in opened.execute(f"SELECT {column} FROM {table}")}
            for column, table in (("camera_id", "cameras"), ("ref_sensor_id", "rigs"))
        )
        used = {value for (value,) in opened.execute("SELECT camera_id FROM images")}
    assert cameras == rigs == used
    assert [path.name for path in prepared.out.rglob(".*")] == [LOCK_NAME]


def test_what_registered_is_told(prepared: Prepared) -> None:
    assert f"model 0: {COUNT} photographs" in prepared.printed
    assert "broken.jpg" in prepared.warned


def test_the_scene_can_be_trained_on(prepared: Prepared) -> None:
    (scene,) = ColmapSource(path=str(prepared.out)).scenes(DataConfig())
    assert len(scene.pairs) > COUNT


def test_a_finished_run_is_not_done_again(
    prepared: Prepared, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    written = (prepared.out / "sparse" / "0" / "images.bin").stat().st_mtime_ns
    arguments = [str(prepared.photographs), str(prepared.out), "--camera-model", "SIMPLE_PINHOLE"]
    assert main(["prepare", *arguments]) == 0
    assert capsys.readouterr().out == prepared.printed
    assert (prepared.out / "sparse" / "0" / "images.bin").stat().st_mtime_ns == written
    with pytest.raises(ValueError, match=r"differ in camera_model \(SIMPLE_PINHOLE, now OPENCV\)"):
        prepare(prepared.photographs, prepared.out, PrepareConfig(camera_model="OPENCV"))


def test_shrunken_copies_and_unrelated_photographs(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "photographs").mkdir()
    for name in ("a.jpg", "b.png"):
        cv2.imwrite(str(tmp_path / "photographs" / name), rng.integers(0, 255, (120, 200, 3), dtype=np.uint8))
    cv2.imwrite(str(tmp_path / "photographs" / "small.png"), np.zeros((30, 40, 3), np.uint8))
    with pytest.raises(RuntimeError, match="no two of the 3 photographs"):
        prepare(tmp_path / "photographs", tmp_path / "out", PrepareConfig(max_size=100), threads=1)
    images = tmp_path / "out" / "images"
    assert read_image(images / "a.jpg").shape == (60, 100, 3)
    assert read_image(images / "b.png").shape == (60, 100, 3)
    assert (images / "small.png").is_symlink()
    assert not (tmp_path / "out" / "sparse").exists()


def test_a_disk_that_is_nearly_full_is_told_before_colmap_ends_the_process(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(colmap, "_LEAST_FREE", 2**62)
    with pytest.raises(OSError, match=rf"MiB are free, and COLMAP needs \d+.*: '{tmp_path / 'out'}'"):
        prepare(prepared.photographs, tmp_path / "out", PrepareConfig(), threads=1)


def test_wrong_arguments_are_refused(tmp_path: Path) -> None:
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    cv2.imwrite(str(photographs / "only.png"), np.zeros((80, 80, 3), np.uint8))
    with pytest.raises(ValueError, match="camera_model is 'ROUND'"):
        PrepareConfig(camera_model="ROUND")
    with pytest.raises(ValueError, match="matcher is 'all'"):
        PrepareConfig(matcher="all")
    with pytest.raises(ValueError, match="max_size is 5"):
        PrepareConfig(max_size=5)
    with pytest.raises(ValueError, match="threads is 0"):
        prepare(photographs, tmp_path / "out", PrepareConfig(), threads=0)
    with pytest.raises(FileNotFoundError, match="no folder"):
        prepare(tmp_path / "nothing", tmp_path / "out", PrepareConfig())
    with pytest.raises(ValueError, match="lies in"):
        prepare(photographs, photographs / "out", PrepareConfig())
    with pytest.raises(ValueError, match="at least two"):
        prepare(photographs, tmp_path / "out", PrepareConfig())
