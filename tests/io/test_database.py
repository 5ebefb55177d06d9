"""COLMAP databases, read back by sqlite3 and decoded here as COLMAP documents its tables."""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pycolmap
import pytest
import torch
from PIL import Image
from scipy.spatial.transform import Rotation

from capsdesc import Keypoints, Matches
from capsdesc.images import read_image
from capsdesc.io.database import ColmapDatabase, pinhole_camera

Array = npt.NDArray[Any]

WIDTH, HEIGHT = 640, 480
K = np.array([[500.0, 0, 319.5], [0, 510.0, 239.5], [0, 0, 1]])
# COLMAP's number of images at most; the id of a pair is made with it.
MAX_IMAGES = 2**31 - 1


def rows(database: Path, query: str) -> list[Any]:
    with sqlite3.connect(database) as opened:
        return opened.execute(query).fetchall()


def blob(database: Path, table: str, key: str, value: int, dtype: type) -> Array:
    """The matrix that a row of a table holds."""
    ((height, width, data),) = rows(database, f"SELECT rows, cols, data FROM {table} WHERE {key} = {value}")
    return np.frombuffer(data or b"", dtype=dtype).reshape(height, width)


def image_ids(database: Path) -> dict[str, int]:
    return dict(rows(database, "SELECT name, image_id FROM images"))


def with_images(path: Path, names: list[str]) -> ColmapDatabase:
    database = ColmapDatabase(path)
    camera = database.add_camera(pinhole_camera(K, WIDTH, HEIGHT))
    for name in names:
        database.add_image(name, camera)
    return database


def test_camera_images_and_keypoints_are_what_colmap_expects(tmp_path: Path) -> None:
    path = tmp_path / "database.db"
    points = np.array([[0, 0], [12.25, 100.5], [639, 479]], dtype=np.float32)
    with with_images(path, ["b/2.jpg", "a 1.jpg"]) as database:
        database.write_keypoints("b/2.jpg", points)
        database.write_keypoints("a 1.jpg", [cv2.KeyPoint(3, 4, 1)])
        assert database.names == ["a 1.jpg", "b/2.jpg"]
    ((model, width, height, params, prior),) = rows(
        path, "SELECT model, width, height, params, prior_focal_length FROM cameras"
    )
    assert (model, width, height, prior) == (1, WIDTH, HEIGHT, 1)  # 1 is PINHOLE
    assert np.frombuffer(params, dtype=np.float64).tolist() == [500, 510, 320, 240]
    ids = image_ids(path)
    np.testing.assert_array_equal(blob(path, "keypoints", "image_id", ids["b/2.jpg"], np.float32), points + 0.5)
    np.testing.assert_array_equal(blob(path, "keypoints", "image_id", ids["a 1.jpg"], np.float32), [[3.5, 4.5]])
    # One camera is one rig of one sensor, and each image a frame of it.
    assert rows(path, "SELECT COUNT(*) FROM rigs") == [(1,)]
    assert sorted(rows(path, "SELECT data_id FROM frame_data")) == sorted((i,) for i in ids.values())


def test_matches_are_kept_in_the_order_of_ids(tmp_path: Path) -> None:
    path = tmp_path / "database.db"
    indices = np.array([[0, 2], [1, 1], [3, 0]])
    with with_images(path, ["a", "b", "c"]) as database:
        for name, count in (("a", 3), ("b", 4), ("c", 0)):
            database.write_keypoints(name, np.zeros((count, 2)))
        assert not database.has_matches("a", "b")
        database.write_matches("b", "a", Matches(torch.from_numpy(indices), torch.zeros(3)))
        database.write_matches("b", "c", np.empty((0, 2), dtype=np.int64))
        assert database.has_matches("a", "b")
        assert database.has_matches("c", "b")
        assert not database.has_matches("a", "c")
    ids = image_ids(path)
    first, second = sorted((ids["a"], ids["b"]))
    stored = blob(path, "matches", "pair_id", MAX_IMAGES * first + second, np.uint32)
    np.testing.assert_array_equal(stored, indices[:, ::-1] if first == ids["a"] else indices)


def test_verified_matches_are_inliers_as_they_are(tmp_path: Path) -> None:
    """As after a run that was killed between the two tables, too."""
    path = tmp_path / "database.db"
    indices = np.array([[0, 2], [1, 1], [2, 0]])
    with with_images(path, ["a", "b"]) as database:
        for name in ("a", "b"):
            database.write_keypoints(name, np.zeros((3, 2)))
        database.write_verified("b", "a", indices)
        with pytest.raises(ValueError, match="have matches"):
            database.write_verified("a", "b", indices)
    with sqlite3.connect(path) as opened:
        opened.execute("DELETE FROM matches")
    with ColmapDatabase(path) as database:
        assert not database.has_matches("a", "b")
        database.write_verified("b", "a", indices[:2])
    ids = image_ids(path)
    first, second = sorted((ids["a"], ids["b"]))
    expected = indices[:2, ::-1] if first == ids["a"] else indices[:2]
    for table in ("matches", "two_view_geometries"):
        np.testing.assert_array_equal(
            blob(path, table, "pair_id", MAX_IMAGES * first + second, np.uint32), expected, err_msg=table
        )
    assert rows(path, "SELECT config FROM two_view_geometries") == [(2,)]  # calibrated


def test_verification_finds_the_epipolar_geometry(tmp_path: Path) -> None:
    path = tmp_path / "database.db"
    rng = np.random.default_rng(3)
    R, t = Rotation.from_euler("y", 8, degrees=True).as_matrix(), np.array([-1.0, 0.1, 0.2])
    scene = rng.uniform([-3, -2, 6], [3, 2, 12], (200, 3))
    projected = [scene @ K.T, (scene @ R.T + t) @ K.T]
    points = [p[:, :2] / p[:, 2:] + rng.normal(scale=0.3, size=(200, 2)) for p in projected]
    indices = np.stack([np.arange(200), np.arange(200)], axis=1)
    wrong = np.arange(0, 200, 5)
    indices[wrong, 1] = np.roll(wrong, 7)
    with with_images(path, ["0.jpg", "1.jpg", "2.jpg"]) as database:
        for name, p in zip(("0.jpg", "1.jpg", "2.jpg"), [*points, points[0]], strict=True):
            database.write_keypoints(name, Keypoints(points=p.astype(np.float32)))
        database.write_matches("0.jpg", "1.jpg", indices)
        database.write_matches("0.jpg", "2.jpg", np.empty((0, 2), dtype=np.int64))
        database.verify(threads=1)
    ids = image_ids(path)
    pair = MAX_IMAGES * ids["0.jpg"] + ids["1.jpg"]
    inliers = blob(path, "two_view_geometries", "pair_id", pair, np.uint32)
    right = np.setdiff1d(np.arange(200), wrong)
    found = inliers[inliers[:, 0] == inliers[:, 1], 0]
    assert len(np.intersect1d(found, right)) >= 0.95 * len(right)
    assert len(inliers) - len(found) <= 0.2 * len(wrong)
    ((config, essential),) = rows(path, f"SELECT config, E FROM two_view_geometries WHERE pair_id = {pair}")
    assert config == 2  # calibrated
    E = np.frombuffer(essential, dtype=np.float64).reshape(3, 3)
    true = np.array([[0, -t[2], t[1]], [t[2], 0, -t[0]], [-t[1], t[0], 0]]) @ R
    cosine = abs((E * true).sum()) / np.linalg.norm(E) / np.linalg.norm(true)
    # Half a pixel to either side, added once too often or too rarely, would not show here, but a transposed E would.
    assert cosine > 0.999


def photograph(
    path: Path, *, camera: str | None = None, focal_length: int = 0, size: tuple[int, int] = (200, 120)
) -> None:
    image = Image.fromarray(np.zeros((size[1], size[0], 3), np.uint8))
    exif = image.getexif()
    if camera is not None:
        exif[0x010F], exif[0x0110] = "Maker", camera
        exif.get_ifd(0x8769)[0xA405] = focal_length
    image.save(path, exif=exif)


def focal_lengths(path: Path) -> dict[str, tuple[int, float, int]]:
    """Camera, focal length and whether it is known, by name."""
    query = "SELECT name, cameras.camera_id, params, prior_focal_length FROM images JOIN cameras USING (camera_id)"
    return {name: (camera, float(np.frombuffer(params)[0]), prior) for name, camera, params, prior in rows(path, query)}


def test_cameras_come_from_exif_data(tmp_path: Path) -> None:
    photograph(tmp_path / "wide.jpg", camera="A", focal_length=24)
    photograph(tmp_path / "wide too.jpg", camera="A", focal_length=24)
    photograph(tmp_path / "tele.jpg", camera="A", focal_length=50)
    photograph(tmp_path / "unknown.jpg")
    names = ["wide.jpg", "wide too.jpg", "tele.jpg", "unknown.jpg"]
    with ColmapDatabase(tmp_path / "exif.db") as database:
        database.import_images(tmp_path, names[:2])
        database.import_images(tmp_path, names)
        database.import_images(tmp_path, names)
    found = focal_lengths(tmp_path / "exif.db")
    assert sorted(found) == sorted(names)
    film, diagonal = np.hypot(36, 24), np.hypot(200, 120)
    assert found["wide.jpg"][1:] == pytest.approx((24 / film * diagonal, 1), rel=1e-3)
    assert found["tele.jpg"][1:] == pytest.approx((50 / film * diagonal, 1), rel=1e-3)
    assert found["unknown.jpg"][1:] == (1.2 * 200, 0)
    assert found["wide.jpg"][0] == found["wide too.jpg"][0]
    assert len({camera for camera, _, _ in found.values()}) == 3


def test_all_images_may_share_a_camera(tmp_path: Path) -> None:
    for k in range(3):
        photograph(tmp_path / f"{k}.jpg")
    photograph(tmp_path / "upright.jpg", size=(120, 200))
    with ColmapDatabase(tmp_path / "single.db") as database:
        database.import_images(tmp_path, ["0.jpg", "1.jpg"], single_camera=True, camera_model="OPENCV")
        database.import_images(tmp_path, ["2.jpg"], single_camera=True, camera_model="OPENCV")
        assert database.import_images(tmp_path, ["0.jpg", "upright.jpg"], single_camera=True) == ["upright.jpg"]
        assert "upright.jpg" not in database.names
    assert len({camera for camera, _, _ in focal_lengths(tmp_path / "single.db").values()}) == 1


def test_images_that_colmap_cannot_read_are_left_out(tmp_path: Path) -> None:
    photograph(tmp_path / "a.jpg")
    photograph(tmp_path / "A.JPG", size=(100, 80))
    photograph(tmp_path / "b.webp")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    with ColmapDatabase(tmp_path / "database.db") as database:
        names = ["a.jpg", "b.webp", "broken.png", "none.jpg", "A.JPG"]
        assert database.import_images(tmp_path, iter(names)) == ["b.webp", "broken.png", "none.jpg"]
        assert database.names == ["A.JPG", "a.jpg"]


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_cameras_and_pixels_are_of_one_orientation(tmp_path: Path, orientation: int) -> None:
    """Where EXIF data say that the camera was turned, COLMAP and the reader of images ignore it alike."""
    path = tmp_path / "turned.jpg"
    image = Image.fromarray(np.tile(np.linspace(0, 255, 200).astype(np.uint8), (120, 1)))
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(path, exif=exif)
    with ColmapDatabase(tmp_path / "database.db") as database:
        database.import_images(tmp_path, ["turned.jpg"])
    pixels = read_image(path)
    assert rows(tmp_path / "database.db", "SELECT width, height FROM cameras") == [pixels.shape[1::-1]]
    assert pixels[:, :20].mean() < 50 < 200 < pixels[:, -20:].mean()
    of_colmap = pycolmap.Bitmap.read(path, False)
    assert of_colmap is not None
    np.testing.assert_allclose(of_colmap.to_array().squeeze(), pixels[..., 0], atol=3)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda d: d.write_keypoints("none", np.zeros((1, 2))), ValueError, "'none' is no image"),
        (lambda d: d.write_keypoints("a", np.zeros((1, 2))), ValueError, "has keypoints"),
        (lambda d: d.write_keypoints("c", np.zeros((1, 3))), ValueError, r"shape \(N, 2\)"),
        (lambda d: d.write_matches("a", "a", np.zeros((1, 2), int)), ValueError, "both 'a'"),
        (lambda d: d.write_matches("a", "b", np.zeros((1, 2), int)), ValueError, "have matches"),
        (lambda d: d.write_matches("a", "c", np.zeros((2, 3), int)), ValueError, r"\(2, 3\); expected \(M, 2\)"),
        (lambda d: d.write_matches("a", "c", np.zeros((2, 2))), TypeError, "float64; expected integers"),
        (lambda d: d.write_matches("a", "c", np.array([[0, 0]])), ValueError, "0 to 0 in 'c', of 0 keypoints"),
        (lambda d: d.write_matches("a", "c", np.array([[-1, 0]])), ValueError, "-1 to -1 in 'a', of 2 keypoints"),
        (lambda d: d.add_image("a", 1), ValueError, "already"),
        (lambda d: d.add_image("d", 9), ValueError, "camera_id is 9"),
        (lambda d: d.verify(max_error=0), ValueError, "max_error is 0"),
        (lambda d: d.import_images("nowhere", ["x.jpg"], camera_model="ROUND"), ValueError, "camera_model is 'ROUND'"),
        (lambda d: d.import_images("nowhere", ["x.jpg"]), FileNotFoundError, "no folder nowhere"),
    ],
)
def test_wrong_arguments_are_refused(
    tmp_path: Path, call: Callable[[ColmapDatabase], None], error: type[Exception], message: str
) -> None:
    with with_images(tmp_path / "database.db", ["a", "b", "c"]) as database:
        for name in "ab":
            database.write_keypoints(name, np.zeros((2, 2)))
        database.write_matches("a", "b", np.array([[0, 1]]))
        with pytest.raises(error, match=message):
            call(database)


def test_what_is_no_database_or_no_camera_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("no database at all, but quite some text " * 100)
    with pytest.raises(ValueError, match=r"text\.db cannot be opened"):
        ColmapDatabase(tmp_path / "text.db")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        ColmapDatabase(tmp_path / "none" / "database.db")
    with pytest.raises(ValueError, match="K is"):
        pinhole_camera(K + np.array([[0, 1, 0], [0, 0, 0], [0, 0, 0]]), WIDTH, HEIGHT)


def test_without_pycolmap_the_message_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycolmap", None)
    with pytest.raises(ImportError, match=r'pip install "capsdesc\[colmap\]"'):
        ColmapDatabase(tmp_path / "database.db")
