"""COLMAP models whose files are not as COLMAP's own programs write them, but right all the same."""

from __future__ import annotations

import logging
from pathlib import Path

import cv2
import numpy as np
import pycolmap
import pytest

from capsdesc.io.colmap import find_model, read_model

NAMES = ("a walk/photo  1.png", "# b.png")
CAMERAS = "1 PINHOLE 64 48 60 60 32 24\n"
# The second image has no keypoints.
IMAGES = (
    "# Image list with two lines of data per image\n"
    f"1 1 0 0 0 0 0 0 1 {NAMES[0]}\n9 9 1 30 4 -1 5 5 2\n"
    f"2 1 0 0 0 0.3 0 0 1 {NAMES[1]} \r\n\n"
)
POINTS = "1 0 0 4 255 0 0 0.5 1 0\n2 1 0 5 255 0 0 0.5 1 2\n"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A scene with a model in text."""
    for name in NAMES:
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.zeros((48, 64, 3), np.uint8))
    folder = tmp_path / "sparse"
    folder.mkdir()
    for name, text in (("cameras", CAMERAS), ("images", IMAGES), ("points3D", POINTS)):
        (folder / f"{name}.txt").write_bytes(text.encode())
    return folder


def test_names_in_text_have_spaces(model: Path) -> None:
    second, first = read_model(model, model.parent / "images", strict=True)
    assert [first.path, second.path] == [model.parent / "images" / name for name in NAMES]
    np.testing.assert_array_equal(first.points, [[0, 0, 4], [1, 0, 5]])
    np.testing.assert_array_equal(first.t, [0, 0, 0])
    np.testing.assert_array_equal(second.t, [0.3, 0, 0])
    assert len(second.points) == 0


@pytest.mark.parametrize("binary", [False, True])
def test_a_model_without_points_is_one_of_poses(model: Path, caplog: pytest.LogCaptureFixture, binary: bool) -> None:
    # COLMAP's reader ends names at a space, which binary files then lack.
    (model / "images.txt").write_text(IMAGES.replace(NAMES[0], "a.png").replace(NAMES[1], "b.png"))
    for name in ("a.png", "b.png"):
        cv2.imwrite(str(model.parent / "images" / name), np.zeros((48, 64, 3), np.uint8))
    if binary:
        written = pycolmap.Reconstruction(model)
        for path in model.iterdir():
            path.unlink()
        written.write_binary(model)
        (model / "points3D.bin").unlink()
    else:
        (model / "points3D.txt").unlink()
    before = sorted(model.iterdir())
    with caplog.at_level(logging.WARNING):
        found = read_model(find_model(model.parent), model.parent / "images", strict=True)
    assert [photograph.path.name for photograph in found] == ["a.png", "b.png"]
    np.testing.assert_array_equal(found[1].t, [0.3, 0, 0])
    assert all(len(photograph.points) == 0 for photograph in found)
    assert "has no points3D file: its poses are read, without scene points" in caplog.text
    assert sorted(model.iterdir()) == before
