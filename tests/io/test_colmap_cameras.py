"""Cameras of COLMAP's models, each beside pycolmap's own projection, and beside files of other sizes."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pycolmap
import pytest

from capsdesc.io.colmap import read_model
from capsdesc.io.colmap_cameras import follow_files
from capsdesc.types import PosedImage

Array = npt.NDArray[np.float64]

SIZE = (320, 240)
MODELS = sorted(set(pycolmap.CameraModelId.__members__) - {"INVALID"})
# Of what a model has beside focal lengths and principal point; what is not here is 0.01.
LENS = {"k": 0.05, "k1": 0.05, "k2": -0.02, "omega": 0.6, "alpha": 0.6, "beta": 1.1}


def camera_of(model: str) -> Any:
    """A camera with a lens that differs in each of its numbers from a plain one."""
    camera = pycolmap.Camera.create_from_model_name(1, model, 250.0, *SIZE)
    names = [name.strip() for name in camera.params_info.split(",")]
    plain = {"f": 250.0, "fx": 245.0, "fy": 255.0, "cx": 163.0, "cy": 117.0, "w": SIZE[0], "h": SIZE[1]}
    camera.params = [plain.get(name, LENS.get(name, 0.01)) for name in names]
    return camera


def write_model(folder: Path, model: str) -> tuple[Array, Array]:
    """A model of one photograph; returns points in front of it and their pixels, each asked of pycolmap alone."""
    camera = camera_of(model)
    rng = np.random.default_rng(0)
    points = np.c_[rng.uniform(-0.4, 0.4, (50, 2)), np.ones(50)] * rng.uniform(2, 9, (50, 1))
    pixels = np.array([camera.img_from_cam(point) for point in points])
    reconstruction = pycolmap.Reconstruction()
    reconstruction.add_camera_with_trivial_rig(camera)
    image = pycolmap.Image(name="a.png", camera_id=1, image_id=1)
    image.points2D = pycolmap.Point2DList([pycolmap.Point2D(pixel) for pixel in pixels])
    reconstruction.add_image_with_trivial_frame(image, pycolmap.Rigid3d())
    for index, point in enumerate(points):
        track = pycolmap.Track()
        track.add_element(1, index)
        reconstruction.add_point3D(point, track, np.zeros(3, np.uint8))
    (folder / "images").mkdir(parents=True)
    (folder / "sparse").mkdir()
    reconstruction.write_binary(str(folder / "sparse"))
    write_image(folder / "images" / "a.png", SIZE)
    return points, pixels


def write_image(path: Path, size: tuple[int, int]) -> None:
    cv2.imwrite(str(path), np.zeros((size[1], size[0], 3), np.uint8))


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("scale", [1, 2])
def test_every_camera_model_is_right_or_refused(model: str, scale: int, tmp_path: Path) -> None:
    points, pixels = write_model(tmp_path, model)
    write_image(tmp_path / "images" / "a.png", (scale * SIZE[0], scale * SIZE[1]))
    if model == "EQUIRECTANGULAR":
        with pytest.raises(
            ValueError, match=r"the camera of a.png in .* is a panorama of COLMAP's model EQUIRECTANGULAR"
        ):
            read_model(tmp_path / "sparse", tmp_path / "images")
        return
    (posed,) = read_model(tmp_path / "sparse", tmp_path / "images")
    rays = points[:, :2] / points[:, 2:]
    # COLMAP's (0, 0) is a corner, ours the centre of the pixel there.
    seen = scale * pixels - 0.5
    np.testing.assert_allclose(posed.rays_to_pixels(rays), seen, atol=1e-6)
    np.testing.assert_allclose(posed.pixels_to_rays(seen), rays, atol=1e-5)
    fx, fy = (250.0, 250.0) if "fx" not in posed.camera.params_info else (245.0, 255.0)
    K = np.array([[scale * fx, 0, scale * 163 - 0.5], [0, scale * fy, scale * 117 - 0.5], [0, 0, 1]])
    np.testing.assert_allclose(posed.K, K)


def posed_as(path: Path, size: tuple[int, int]) -> PosedImage:
    camera = pycolmap.Camera(model="PINHOLE", width=size[0], height=size[1], params=[300, 310, 150, 100])
    return PosedImage(path, camera, np.eye(3), np.zeros(3), np.empty((0, 3)), np.empty(0, dtype=np.int64))


@pytest.mark.parametrize(
    ("stated", "size", "fits"),
    [
        ((1067, 801), (533, 400), True),  # rounded down, as by half
        ((1067, 801), (534, 401), True),  # rounded up
        ((1067, 801), (640, 480), True),
        ((4000, 3000), (4000, 3000), True),
        ((800, 600), (600, 800), False),  # turned
        ((801, 800), (800, 801), False),
        ((800, 600), (800, 597), False),  # cropped
        ((800, 600), (640, 512), False),  # stretched
    ],
)
def test_files_in_proportion_are_followed(
    stated: tuple[int, int], size: tuple[int, int], fits: bool, tmp_path: Path
) -> None:
    path = tmp_path / "a.png"
    write_image(path, size)
    if not fits:
        message = rf"a.png has {size[0]} x {size[1]} pixels, but its camera in here is of {stated[0]} x {stated[1]}"
        with pytest.raises(ValueError, match=message):
            follow_files([posed_as(path, stated)], "here")
        return
    (posed,) = follow_files([posed_as(path, stated)], "here")
    assert (posed.camera.width, posed.camera.height) == size
    sx, sy = np.divide(size, stated)
    np.testing.assert_allclose(posed.camera.params, [300 * sx, 310 * sy, 150 * sx, 100 * sy])


def test_one_line_tells_of_all_that_follow(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    photographs = [posed_as(tmp_path / f"{k}.png", (640, 480)) for k in range(3)]
    write_image(photographs[0].path, (640, 480))
    write_image(photographs[1].path, (320, 240))
    photographs[2].path.write_bytes(b"no image")
    with caplog.at_level(logging.WARNING):
        followed = follow_files(photographs, "here")
    assert [record.getMessage() for record in caplog.records] == [
        "here: 1 of 3 files were resized since (1.png has 320 x 240 pixels, its camera 640 x 480); their cameras follow"
    ]
    assert followed[0] is photographs[0]
    assert followed[2] is photographs[2]
    # The caller's camera is not touched.
    assert photographs[1].camera.width == 640
    assert follow_files([], "here") == []
