"""``capsdesc register`` on photographs that OpenCV moved by known transforms."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import PIL.Image
import pytest
import rasterio

from capsdesc import CAPSExtractor
from capsdesc.commands.main import main
from capsdesc.images import read_image, read_stored
from capsdesc.images.stretch import as_seen
from capsdesc.images.warp import warp
from capsdesc.io.rasters import Raster, read_raster, write_raster
from capsdesc.pipelines.register import register
from capsdesc.visualization import draw_checkerboard

Array = npt.NDArray[Any]
Capture = pytest.CaptureFixture[str]
DATA = Path(__file__).parents[2] / "examples" / "data"
# From the moving image to the fixed one.
TRANSFORMS = {
    "homography": np.array([[0.95, -0.08, 30.0], [0.1, 1.04, -25.0], [1e-4, -6e-5, 1]]),
    "affine": np.array([[0.9, -0.12, 40.0], [0.05, 1.1, -20.0], [0, 0, 1]]),
    "similarity": np.array(
        [[1.1 * np.cos(0.2), -1.1 * np.sin(0.2), 60.0], [1.1 * np.sin(0.2), 1.1 * np.cos(0.2), -70.0], [0, 0, 1]]
    ),
}


@pytest.fixture(scope="module")
def photograph() -> Array:
    return read_image(DATA / "relief_0.jpg")


@pytest.fixture(scope="module")
def caps() -> CAPSExtractor:
    return CAPSExtractor(device="cpu")


def moved(pixels: Array, H: Array, size: tuple[int, int] = (600, 470)) -> Array:
    """The moving image, of another size than the fixed one: OpenCV takes its pixels from where H says they are."""
    return np.asarray(cv2.warpPerspective(pixels, H, size, flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP))


def corner_error(found: Array, true: Array, size: tuple[int, int]) -> float:
    """Largest distance of an image's corners under two transforms."""
    width, height = size
    corners = np.array([[0, 0, 1], [width - 1, 0, 1], [0, height - 1, 1], [width - 1, height - 1, 1.0]])
    there = [corners @ H.T for H in (found, true)]
    places = [points[:, :2] / points[:, 2:] for points in there]
    return float(np.linalg.norm(places[0] - places[1], axis=1).max())


def write(path: Path, rgb: Array) -> Path:
    order = [2, 1, 0, 3][: rgb.shape[2]] if rgb.ndim == 3 else None
    assert cv2.imwrite(str(path), rgb if order is None else np.ascontiguousarray(rgb[..., order]))
    return path


def command(*arguments: object) -> list[str]:
    return ["register", *map(str, arguments), "--device", "cpu", "--max-keypoints", "1000"]


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_known_transforms_are_found(photograph: Array, tmp_path: Path, capsys: Capture, transform: str) -> None:
    H = TRANSFORMS[transform]
    fixed, moving = write(tmp_path / "fixed.png", photograph), write(tmp_path / "moving.png", moved(photograph, H))
    out, told = tmp_path / "out.png", tmp_path / "transform.json"
    arguments = command(fixed, moving, "-o", out, "--transform", transform, "--transform-json", told)
    assert main(arguments) == 0
    output = capsys.readouterr()
    assert output.err == f"wrote {out}\nwrote {told}\n"
    content = json.loads(told.read_text())
    found = np.array(content["matrix"])
    assert corner_error(found, H, (600, 470)) < 0.5
    if transform != "homography":
        np.testing.assert_array_equal(found[2], [0, 0, 1])
    if transform == "similarity":
        assert found[0, 0] == pytest.approx(found[1, 1], abs=1e-12)
        assert found[0, 1] == pytest.approx(-found[1, 0], abs=1e-12)
    # The moved image lies on the fixed one where both show something.
    result = read_image(out)
    assert result.shape == photograph.shape
    there = cv2.warpPerspective(np.ones((470, 600), np.uint8), found, photograph.shape[1::-1]) == 1
    there = cv2.erode(there.astype(np.uint8), np.ones((9, 9), np.uint8)) == 1
    assert there.mean() > 0.4
    assert np.abs(result[there].astype(float) - photograph[there]).mean() < 4

    assert content["transform"] == transform
    assert content["direction"].startswith("moving to fixed")
    assert (content["fixed"], content["moving"]) == (str(fixed), str(moving))
    assert content["fixed_size"] == list(photograph.shape[1::-1])
    assert content["moving_size"] == [600, 470]
    assert 0.5 * content["matches"] < content["inliers"] <= content["matches"]
    assert 0 < content["rms_residual"] < 1
    matrix = [[float(value) for value in line.split()] for line in output.out.splitlines()[-3:]]
    np.testing.assert_allclose(matrix, found, atol=1e-6)

    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == content


def test_the_summary_is_that_of_the_points(photograph: Array, caps: CAPSExtractor) -> None:
    H = TRANSFORMS["affine"]
    found = register(photograph, moved(photograph, H), caps, transform="affine", max_keypoints=500)
    points = np.column_stack([found.moving_points, np.ones(len(found.moving_points))]) @ found.H.T
    distances = np.linalg.norm(points[:, :2] - found.fixed_points, axis=1)
    np.testing.assert_array_equal(found.inliers, distances <= 3)
    summary = found.summary()
    assert summary["inliers"] == (distances <= 3).sum()
    assert summary["rms_residual"] == pytest.approx(np.sqrt((distances[distances <= 3] ** 2).mean()))


def test_shrunk_images_give_the_transform_of_the_full_ones(photograph: Array, tmp_path: Path, capsys: Capture) -> None:
    """Both are enlarged by OpenCV, by other factors, which moves pixel centres too."""
    H = TRANSFORMS["homography"]
    large, other = cv2.resize(photograph, None, fx=3, fy=3), cv2.resize(moved(photograph, H), None, fx=4, fy=4)
    fixed, moving = write(tmp_path / "fixed.jpg", large), write(tmp_path / "moving.jpg", other)
    assert main(command(fixed, moving, "--max-size", 640, "--json")) == 0
    content = json.loads(capsys.readouterr().out)
    to_large, to_other = (np.array([[s, 0, (s - 1) / 2], [0, s, (s - 1) / 2], [0, 0, 1]]) for s in (3, 4))
    true = to_large @ H @ np.linalg.inv(to_other)
    assert content["fixed_size"] == list(large.shape[1::-1])
    assert corner_error(np.array(content["matrix"]), true, other.shape[1::-1]) < 3 * 0.5
    assert 0 < content["rms_residual"] < 3


# Depth and channels


def pictures(photograph: Array) -> dict[str, Array]:
    """The photograph in many depths; of each its channels in its file."""
    alpha = np.dstack([photograph, np.full(photograph.shape[:2], 200, np.uint8)])
    return {
        "grey.png": photograph[..., 1],
        "alpha.png": alpha,
        "deep.png": photograph.astype(np.uint16) * 13 + 700,
        "deep alpha.tif": alpha.astype(np.uint16) * 200,
        "signed.tif": photograph[..., 0].astype(np.int16) - 128,
        "single.tif": photograph.astype(np.float32) / 255 - 0.3,
        "double.tif": photograph[..., 2].astype(np.float64) * 1e-5,
        "integers.tif": photograph[..., 1].astype(np.int32) * 100_000,
    }


@pytest.mark.parametrize("name", pictures(np.zeros((1, 1, 3), np.uint8)))
def test_depth_and_channels_are_kept(photograph: Array, tmp_path: Path, capsys: Capture, name: str) -> None:
    H = TRANSFORMS["affine"]
    pixels = pictures(photograph)[name]
    is_integer = pixels.dtype == np.int32  # which OpenCV does not move
    stored = moved(pixels.astype(np.float64), H).astype(np.int32) if is_integer else moved(pixels, H)
    moving = write(tmp_path / name, stored)
    fixed = write(tmp_path / "fixed.png", photograph)
    out = tmp_path / f"out{moving.suffix}"
    assert main(command(fixed, moving, "-o", out, "--transform", "affine", "--json")) == 0
    found = np.array(json.loads(capsys.readouterr().out)["matrix"])
    assert corner_error(found, H, (600, 470)) < 0.5
    result = np.asarray(cv2.imread(str(out), cv2.IMREAD_UNCHANGED))
    again = np.asarray(cv2.imread(str(moving), cv2.IMREAD_UNCHANGED))
    expected = cv2.warpPerspective(again.astype(np.float64), found, photograph.shape[1::-1])
    assert result.dtype == pixels.dtype
    assert result.shape == expected.shape
    # OpenCV rounds where pixels are taken from to 1/32 in some versions.
    spread = float(expected.max() - expected.min())
    assert np.abs(result - expected).mean() < 2e-3 * spread
    assert np.abs(result - expected).max() < 0.06 * spread


def test_files_that_do_not_hold_the_pixels_are_refused_before_the_work(
    photograph: Array, tmp_path: Path, capsys: Capture
) -> None:
    fixed = write(tmp_path / "fixed.png", photograph)
    deep = write(tmp_path / "deep.png", photograph.astype(np.uint16))
    for name, message in (
        ("out.jpg", r"3 channels of uint16.*expected \.tif"),
        ("out", "ending"),
        ("out.txt", "ending"),
    ):
        assert main(command(fixed, deep, "-o", tmp_path / name)) == 1
        assert re.search(message, capsys.readouterr().err)
    assert main(command(fixed, fixed, "--picture", tmp_path / "picture.txt")) == 1
    assert "cannot write a picture" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep.png", "fixed.png"]


def test_images_that_do_not_show_the_same_write_nothing(tmp_path: Path, capsys: Capture) -> None:
    outputs = ["-o", tmp_path / "out.png", "--picture", tmp_path / "a.png", "--transform-json", tmp_path / "a.json"]
    assert main(command(DATA / "relief_0.jpg", DATA / "tankard_0.jpg", *outputs)) == 1
    output = capsys.readouterr()
    assert output.out == ""
    said = r"capsdesc: no homography found: of \d+ matches \d+ agree on one, and at least 12 .*\n"
    assert re.fullmatch(said, output.err)
    black = write(tmp_path / "black.png", np.zeros((90, 120), np.uint8))
    assert main(command(DATA / "relief_0.jpg", black, *outputs, "--transform", "affine")) == 1
    assert "no affine transform found" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [black]


def test_arguments_are_checked(photograph: Array, caps: CAPSExtractor) -> None:
    with pytest.raises(ValueError, match="transform is 'rigid'"):
        register(photograph, photograph, caps, transform="rigid")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="min_inliers is 3"):
        register(photograph, photograph, caps, min_inliers=3)
    with pytest.raises(ValueError, match=r"shape \(0, 3\)"):
        register(photograph, np.zeros((0, 3), np.uint8), caps)
    with pytest.raises(TypeError, match="the image is list"):
        register([photograph], photograph, caps)  # type: ignore[arg-type]


# Pictures


def test_pictures_show_both(photograph: Array, tmp_path: Path, capsys: Capture) -> None:
    """The moving one is grey, so that it is told from the fixed one; where it shows nothing, that is seen alone."""
    H = TRANSFORMS["similarity"]
    fixed = write(tmp_path / "fixed.png", photograph)
    moving = write(tmp_path / "moving.png", moved(photograph, H)[..., 1])
    checker, blink = tmp_path / "checker.png", tmp_path / "blink.gif"
    for picture in (checker, blink):
        assert main(command(fixed, moving, "--transform", "similarity", "--picture", picture)) == 0
        assert capsys.readouterr().err == f"wrote {picture}\n"
    height, width = photograph.shape[:2]
    there = cv2.warpPerspective(np.ones((470, 600), np.uint8), H, (width, height))
    inside = cv2.erode(there, np.ones((9, 9), np.uint8), borderValue=0) == 1
    outside = cv2.dilate(there, np.ones((9, 9), np.uint8)) == 0
    assert min(inside.mean(), outside.mean()) > 0.1
    edge = max(width, height) / 8
    odd = (np.arange(height)[:, None] // edge + np.arange(width) // edge) % 2 == 1
    shown = read_image(checker)
    np.testing.assert_array_equal(shown[~odd | outside], photograph[~odd | outside])
    assert (np.ptp(shown[odd & inside], axis=1) == 0).all()
    assert np.abs(shown[odd & inside][:, 1].astype(float) - photograph[odd & inside][:, 1]).mean() < 5

    with PIL.Image.open(blink) as file:
        assert getattr(file, "n_frames", 1) == 2
        assert file.info["loop"] == 0
        frames = []
        for k in range(2):
            file.seek(k)
            frames.append(np.asarray(file.convert("RGB")).astype(float))
    # Palettes have 256 colours, which are mixed.
    true, first, second = (cv2.GaussianBlur(image.astype(float), (0, 0), 3) for image in (photograph, *frames))
    assert np.abs(first - true).mean() < 6
    assert np.abs(second - true)[outside].mean() < 6
    assert np.abs(second - true[..., 1:2])[inside].mean() < 6


def test_a_checkerboard_is_of_two_images_of_one_size() -> None:
    black, white = np.zeros((30, 40, 3), np.uint8), np.full((30, 40, 3), 255, np.uint8)
    board = draw_checkerboard(black, white, 4)
    assert board[::10, ::10, 0].tolist() == [[0, 255, 0, 255], [255, 0, 255, 0], [0, 255, 0, 255]]
    with pytest.raises(ValueError, match="expected the same"):
        draw_checkerboard(black, white[1:])
    with pytest.raises(ValueError, match="squares is 0"):
        draw_checkerboard(black, white, 0)


def test_large_images_are_shown_at_a_size_to_look_at(photograph: Array, tmp_path: Path) -> None:
    large = cv2.resize(photograph, None, fx=4, fy=4)
    fixed, picture = write(tmp_path / "fixed.jpg", large), tmp_path / "picture.jpg"
    assert main(command(fixed, DATA / "relief_0.jpg", "--max-size", 640, "--picture", picture)) == 0
    shown = read_image(picture)
    assert max(shown.shape) == 2048
    expected = cv2.resize(photograph, shown.shape[1::-1])
    assert np.abs(shown.astype(float) - expected).mean() < 6


# Moving pixels


def noise(dtype: str, channels: int) -> Array:
    pixels = np.random.default_rng(0).uniform(0, 200, (170, 230, channels))
    smooth = np.dstack([cv2.GaussianBlur(pixels[..., k], (0, 0), 2) for k in range(channels)])
    return np.asarray(smooth.astype(dtype))


@pytest.mark.parametrize("interpolation", ["nearest", "linear", "cubic", "lanczos"])
@pytest.mark.parametrize(("dtype", "channels"), [("uint8", 3), ("uint16", 1), ("float32", 4), ("float64", 7)])
def test_tiles_are_the_whole(monkeypatch: pytest.MonkeyPatch, interpolation: str, dtype: str, channels: int) -> None:
    pixels = noise(dtype, channels)
    H = np.array([[1.2, 0.3, -20.0], [-0.2, 0.9, 35.0], [4e-4, -2e-4, 1]])
    flag = {"nearest": 0, "linear": 1, "cubic": 2, "lanczos": 4}[interpolation]
    whole = np.dstack(
        [cv2.warpPerspective(pixels[..., k], H, (260, 240), flags=flag, borderValue=7.0) for k in range(channels)]
    )
    monkeypatch.setattr("capsdesc.images.warp._TILE", 50)
    tiles = warp(pixels, H, (260, 240), interpolation=interpolation, fill=7)
    assert tiles.dtype == pixels.dtype
    assert (whole == 7).all(axis=2).mean() > 0.1
    difference = np.abs(tiles.astype(float) - whole)
    # Rounding takes a pixel of a tile from another side of a step than one of the whole.
    assert (difference > 1).mean() < 0.003
    assert difference.mean() < 0.02
    if channels == 1:
        np.testing.assert_array_equal(
            warp(pixels[..., 0], H, (260, 240), interpolation=interpolation, fill=7), tiles[..., 0]
        )


def test_tiles_are_the_whole_at_the_horizon(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is infinitely far runs through the middle of the result."""
    pixels = noise("float32", 1)[..., 0]
    backwards = np.array([[1, 0.1, -30.0], [0, 1, 5.0], [-0.008, 0, 1]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    whole = cv2.warpPerspective(pixels, backwards, (260, 150), flags=flags, borderValue=(7.0,))
    monkeypatch.setattr("capsdesc.images.warp._TILE", 50)
    tiles = warp(pixels, np.linalg.inv(backwards), (260, 150), fill=7)
    assert 0.1 < (whole == 7).mean() < 0.9
    assert (np.abs(tiles - whole) > 1).mean() < 0.003


def test_images_wider_than_opencv_warps_are_moved() -> None:
    pixels = np.tile(np.arange(40_000, dtype=np.uint16), (3, 1))
    shift = np.array([[1, 0, -10.0], [0, 1, 0], [0, 0, 1]])
    result = warp(pixels, shift, (40_000, 3))
    np.testing.assert_array_equal(result[:, :-10], pixels[:, 10:])
    assert (result[:, -10:] == 0).all()
    # Turned, so that one row shows all of them.
    turn = np.array([[0, 1, 0], [1, 0, 0], [0, 0, 1.0]])
    np.testing.assert_array_equal(warp(pixels, turn, (3, 40_000)), pixels.T)
    # Shrunk along x alone: a tile shows more than OpenCV takes.
    flat = np.array([[1 / 25, 0, 0], [0, 1.0, 0], [0, 0, 1]])
    np.testing.assert_allclose(warp(pixels, flat, (1600, 3), interpolation="nearest")[0], np.arange(1600) * 25, atol=1)


def test_what_becomes_much_smaller_is_averaged() -> None:
    """Stripes of single pixels are grey from afar, at whatever phase."""
    pixels = np.zeros((400, 400, 5), np.uint8)
    pixels[:, ::2] = 200
    for scale in (3.0, 4.3, 10.0):
        H = np.diag([1 / scale, 1 / scale, 1])
        size = int(400 / scale)
        result = warp(pixels, H, (size, size))
        assert result.shape == (size, size, 5)
        assert np.abs(result[2:-2, 2:-2].astype(float) - 100).max() < 40
        assert set(np.unique(warp(pixels, H, (size, size), interpolation="nearest"))) <= {0, 200}
    # Places stay: a ramp is the same ramp.
    ramp = np.tile(np.arange(400, dtype=np.float32), (400, 1))
    shrunk = warp(ramp, np.diag([0.25, 0.25, 1]), (100, 100))
    np.testing.assert_allclose(shrunk[2:-2, 2:-2], np.tile(np.arange(2, 98) * 4.0, (96, 1)), atol=1e-3)


def test_warp_refuses_what_it_cannot_do() -> None:
    with pytest.raises(ValueError, match="interpolation is 'area'"):
        warp(noise("uint8", 1), np.eye(3), (4, 4), interpolation="area")
    with pytest.raises(ValueError, match="invertible"):
        warp(noise("uint8", 1), np.diag([1.0, 0, 1]), (4, 4))
    for fill in (np.nan, -1, 256, 0.5):
        with pytest.raises(ValueError, match="which no uint8 is"):
            warp(noise("uint8", 1), np.eye(3), (4, 4), fill=fill)
    away = np.array([[1, 0, 1e6], [0, 1, 0], [0, 0, 1]])
    assert np.isnan(warp(noise("float32", 1), away, (4, 4), fill=np.nan)).all()


# What the network sees


def test_deep_images_are_stretched() -> None:
    rng = np.random.default_rng(1)
    pixels = rng.normal(3000, 100, (50, 80, 6))
    low, high = np.percentile(pixels[..., :3].astype(np.uint16), (0.5, 99.5))
    seen = as_seen(pixels.astype(np.uint16))
    assert seen.shape == (50, 80, 3)
    expected = np.clip((pixels[..., :3].astype(np.uint16) - low) / (high - low), 0, 1) * 255
    np.testing.assert_allclose(seen, expected, atol=0.51)
    grey = pixels[..., :2].copy()
    grey[:10] = np.nan
    grey[10:20] = -9999
    seen = as_seen(grey, nodata=-9999)
    assert (seen[:20] == 0).all()
    assert (seen[..., 0] == seen[..., 2]).all()
    low, high = np.percentile(grey[20:, :, 0], (0.5, 99.5))
    np.testing.assert_allclose(seen[20:, :, 0], np.clip((grey[20:, :, 0] - low) / (high - low), 0, 1) * 255, atol=0.51)
    bytes_ = rng.integers(100, 120, (5, 6, 3), dtype=np.uint8)
    np.testing.assert_array_equal(as_seen(bytes_), bytes_)
    assert (as_seen(np.full((4, 4), np.nan)) == 0).all()
    assert (as_seen(np.full((4, 4), 9, np.uint16)) == 0).all()
    assert as_seen(np.zeros((40, 80), np.int32), 20).shape == (10, 20, 3)


# GeoTIFF

UTM = rasterio.crs.CRS.from_epsg(32633)
PLACE = rasterio.transform.Affine(0.5, 0, 500_000, 0, -0.5, 5_200_000)


def write_geotiff(path: Path, pixels: Array, **more: Any) -> Path:
    """By rasterio, bands first, as remote sensing has them."""
    bands = pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, -1, 0)
    profile = {"crs": UTM, "transform": PLACE, "tiled": True, "blockxsize": 128, "blockysize": 128} | more
    height, width = bands.shape[1:]
    with rasterio.open(path, "w", "GTiff", width, height, len(bands), dtype=bands.dtype, **profile) as file:
        file.write(bands)
    return path


@pytest.mark.parametrize("bands", [1, 3, 6])
def test_a_geotiff_gets_the_georeference_of_the_fixed_image(
    photograph: Array, tmp_path: Path, capsys: Capture, bands: int
) -> None:
    H = TRANSFORMS["affine"]
    deep = np.dstack([photograph, 255 - photograph])[..., :bands].astype(np.uint16) * 11 + 300
    deep = deep[..., 0] if bands == 1 else deep
    fixed = write_geotiff(tmp_path / "fixed.tif", deep)
    elsewhere = PLACE @ rasterio.transform.Affine.translation(1000, 70)
    stored = np.dstack([moved(deep[..., k : k + 1] if bands > 1 else deep, H) for k in range(bands)])
    moving = write_geotiff(tmp_path / "moving.tif", stored, transform=elsewhere, nodata=9)
    out = tmp_path / "out.tif"
    assert main(command(fixed, moving, "-o", out, "--transform", "affine", "--json")) == 0
    output = capsys.readouterr()
    assert output.err == f"wrote {out}\n"
    found = np.array(json.loads(output.out)["matrix"])
    assert corner_error(found, H, (600, 470)) < 0.5
    with rasterio.open(out) as file:
        assert (file.crs, file.transform) == (UTM, PLACE)
        assert (file.width, file.height, file.count) == (*photograph.shape[1::-1], bands)
        assert file.dtypes[0] == "uint16"
        assert file.nodata == 9
        result = np.moveaxis(file.read(), 0, -1)
    for k in range(bands):
        expected = cv2.warpPerspective(stored[..., k], found, photograph.shape[1::-1], borderValue=9)
        assert np.abs(result[..., k].astype(float) - expected).mean() < 5
        assert (result[..., k] == 9).mean() > 0.1


def test_without_rasterio_it_is_said_what_to_install(
    photograph: Array,
    tmp_path: Path,
    capsys: Capture,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fixed = write_geotiff(tmp_path / "fixed.tif", photograph, photometric="RGB")
    many = write_geotiff(tmp_path / "many.tif", np.dstack([photograph, photograph]))
    monkeypatch.setitem(sys.modules, "rasterio", None)
    assert main(command(fixed, DATA / "relief_0.jpg", "-o", tmp_path / "out.tif")) == 0
    assert "georeference, which is not passed on" in caplog.text
    assert "pip install 'capsdesc[geo]'" in caplog.text
    np.testing.assert_array_equal(read_image(tmp_path / "out.tif").shape, photograph.shape)
    capsys.readouterr()
    assert main(command(fixed, many, "-o", tmp_path / "other.tif")) == 1
    assert "pip install 'capsdesc[geo]'" in capsys.readouterr().err
    assert not (tmp_path / "other.tif").exists()


def test_other_files_than_tiff_hold_no_georeference(
    photograph: Array, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fixed = write_geotiff(tmp_path / "fixed.tif", photograph, photometric="RGB")
    assert main(command(fixed, DATA / "relief_0.jpg", "-o", tmp_path / "out.png")) == 0
    assert re.search(r"fixed\.tif has a georeference, which .*out\.png cannot hold", caplog.text)


@pytest.mark.parametrize(
    ("bands", "dtype"), [(1, "float32"), (2, "int16"), (3, "uint16"), (4, "uint8"), (9, "float64")]
)
@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_rasters_come_back_as_they_were(tmp_path: Path, bands: int, dtype: str) -> None:
    pixels = np.random.default_rng(2).uniform(0, 200, (1100, 70, bands)).astype(dtype)
    pixels = pixels[..., 0] if bands == 1 else pixels
    before = pixels.copy()
    write_raster(tmp_path / "a.tif", Raster(pixels))
    np.testing.assert_array_equal(pixels, before)
    for path in (tmp_path / "a.tif", write_geotiff(tmp_path / "b.tif", pixels)):
        np.testing.assert_array_equal(read_raster(path).pixels, pixels)
    with rasterio.open(tmp_path / "a.tif") as file:
        stored = np.moveaxis(file.read(), 0, -1)
    np.testing.assert_array_equal(stored.reshape(pixels.shape), pixels)


def test_read_stored_keeps_what_read_image_drops(photograph: Array, tmp_path: Path) -> None:
    np.testing.assert_array_equal(read_stored(DATA / "relief_0.jpg"), photograph)
    for name, pixels in pictures(photograph).items():
        stored = read_stored(write(tmp_path / name, pixels))
        assert stored.dtype == pixels.dtype
        np.testing.assert_array_equal(stored, pixels)
