"""Databases of COLMAP before rigs and frames, and such as a killed run leaves, are as good as new ones."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pycolmap
import pytest

from capsdesc.io.database import ColmapDatabase, remove_unused_cameras

Array = npt.NDArray[Any]

NAMES = ("a.png", "b.png", "c.png")
FOCAL, WIDTH, HEIGHT = 70.0, 80, 60
# The oldest have columns for prior poses of images, which later got a table of their own.
POSES = ", ".join(f"prior_{name} REAL" for name in ("qw", "qx", "qy", "qz", "tx", "ty", "tz"))
SCHEMA = """
CREATE TABLE cameras (camera_id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, model INTEGER NOT NULL,
  width INTEGER NOT NULL, height INTEGER NOT NULL, params BLOB, prior_focal_length INTEGER NOT NULL);
CREATE TABLE images (image_id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, name TEXT NOT NULL UNIQUE,
  camera_id INTEGER NOT NULL{poses});
CREATE TABLE keypoints (image_id INTEGER PRIMARY KEY NOT NULL, rows INTEGER NOT NULL, cols INTEGER NOT NULL, data BLOB);
CREATE TABLE descriptors (image_id INTEGER PRIMARY KEY NOT NULL, rows INTEGER NOT NULL, cols INTEGER NOT NULL,
  data BLOB);
CREATE TABLE matches (pair_id INTEGER PRIMARY KEY NOT NULL, rows INTEGER NOT NULL, cols INTEGER NOT NULL, data BLOB);
"""


def execute(path: Path, *statements: str) -> list[Any]:
    """The rows of the last statement."""
    with contextlib.closing(sqlite3.connect(path)) as opened, opened:
        for statement in statements:
            rows = opened.execute(statement).fetchall()
    return rows


@pytest.fixture(params=["prior poses", "no prior poses"])
def older(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A database with one camera that took a.png and b.png."""
    path = tmp_path / "older.db"
    with contextlib.closing(sqlite3.connect(path)) as opened, opened:
        opened.executescript(SCHEMA.format(poses=f", {POSES}" if request.param == "prior poses" else ""))
        parameters = np.array([FOCAL, FOCAL, WIDTH / 2, HEIGHT / 2]).tobytes()
        opened.execute("INSERT INTO cameras VALUES (1, 1, ?, ?, ?, 1)", (WIDTH, HEIGHT, parameters))
        rows = [(1, "a.png"), (2, "b.png")]
        opened.executemany("INSERT INTO images (image_id, name, camera_id) VALUES (?, ?, 1)", rows)
    return path


def assert_each_has_its_frame(path: Path) -> None:
    """Each camera is the reference of one rig, each image is in one frame, which is of its camera's rig."""
    cameras = execute(path, "SELECT camera_id FROM cameras ORDER BY 1")
    assert execute(path, "SELECT ref_sensor_id FROM rigs WHERE ref_sensor_type = 0 ORDER BY 1") == cameras
    images = execute(path, "SELECT image_id, camera_id FROM images ORDER BY 1")
    framed = (
        "SELECT data_id, ref_sensor_id FROM frame_data JOIN frames USING (frame_id) JOIN rigs USING (rig_id) "
        "WHERE sensor_id = ref_sensor_id ORDER BY 1"
    )
    assert execute(path, framed) == images
    assert execute(path, "SELECT COUNT(*) FROM frames") == [(len(images),)]


@pytest.mark.parametrize("how", ["add_image", "import_images"])
def test_an_older_database_can_be_gone_on_with(older: Path, how: str) -> None:
    folder = older.parent
    rng = np.random.default_rng(0)
    for name in NAMES:
        cv2.imwrite(str(folder / name), rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8))
    points = np.c_[rng.uniform(-2, 2, (200, 2)), rng.uniform(4, 8, 200)]

    def seen(k: int) -> Array:
        moved = points @ cv2.Rodrigues(np.array([0, 0.15 * k, 0]))[0].T + [-k, 0, 0.1 * k]
        return np.asarray(moved[:, :2] / moved[:, 2:] * FOCAL + [(WIDTH - 1) / 2, (HEIGHT - 1) / 2], np.float32)

    with ColmapDatabase(older) as database:
        if how == "add_image":
            database.add_image("c.png", 1)
        else:
            assert database.import_images(folder, ["c.png"], single_camera=True) == []
        for k, name in enumerate(NAMES):
            database.write_keypoints(name, seen(k))
        for first, second in ((0, 1), (1, 2), (0, 2)):
            database.write_matches(NAMES[first], NAMES[second], np.c_[np.arange(200), np.arange(200)])
        database.verify(threads=1)
    assert_each_has_its_frame(older)
    (folder / "models").mkdir()
    models = pycolmap.incremental_mapping(older, folder, folder / "models")
    assert [model.num_reg_images() for model in models.values()] == [3]


def test_opening_again_changes_nothing(older: Path) -> None:
    ColmapDatabase(older).close()
    assert_each_has_its_frame(older)
    tables = ("cameras", "rigs", "frames", "frame_data", "images")
    before = [execute(older, f"SELECT * FROM {table}") for table in tables]
    for _ in range(2):
        with ColmapDatabase(older) as database:
            assert database.names == ["a.png", "b.png"]
            with pytest.raises(ValueError, match=r"name is 'a\.png', an image that is in .* already"):
                database.add_image("a.png", 1)
    assert [execute(older, f"SELECT * FROM {table}") for table in tables] == before


def test_what_a_killed_run_left_of_cameras_goes(older: Path) -> None:
    ColmapDatabase(older).close()
    copy = "INSERT INTO cameras SELECT {}, model, width, height, params, prior_focal_length FROM cameras LIMIT 1"
    # Killed after the camera, after its rig, after the image, and after an empty frame.
    execute(
        older,
        copy.format(7),
        copy.format(8),
        "INSERT INTO rigs VALUES (8, 8, 0)",
        copy.format(9),
        "INSERT INTO rigs VALUES (9, 9, 0)",
        "INSERT INTO images (image_id, name, camera_id) VALUES (9, 'c.png', 9)",
        "INSERT INTO frames VALUES (9, 9)",
    )
    remove_unused_cameras(older)
    assert execute(older, "SELECT camera_id FROM cameras") == [(1,), (9,)]
    assert execute(older, "SELECT name FROM images") == [(name,) for name in NAMES]
    assert_each_has_its_frame(older)
