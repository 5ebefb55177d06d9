"""Images in every accepted form, and files written whole or not at all."""

from __future__ import annotations

import io
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import PIL.Image
import pytest
import torch

from capsdesc.images import image_size, read_image, to_gray, to_rgb, to_tensor
from capsdesc.io.files import atomic_path

Pixels = npt.NDArray[np.uint8]

HEIGHT, WIDTH = 24, 37


def smooth_rgb(seed: int = 0) -> Pixels:
    """A smooth random picture, so that JPEG changes it little, with three different channels."""
    noise = np.random.default_rng(seed).uniform(0, 255, (HEIGHT, WIDTH, 3))
    blurred = np.asarray(cv2.GaussianBlur(noise, (0, 0), 4))
    low, high = blurred.min(axis=(0, 1)), blurred.max(axis=(0, 1))
    pixels: Pixels = np.rint((blurred - low) / (high - low) * np.array([255, 200, 150])).astype(np.uint8)
    return pixels


RGB = smooth_rgb()
GRAY = RGB[..., 0].copy()


def save(folder: Path, image: PIL.Image.Image, name: str, **options: Any) -> Path:
    path = folder / name
    image.save(path, **options)
    return path


def pil_of_mode(mode: str) -> PIL.Image.Image:
    return PIL.Image.fromarray(RGB).convert(mode)


def gray_16_bits() -> npt.NDArray[np.uint16]:
    values = np.random.default_rng(1).integers(0, 65536, (HEIGHT, WIDTH), dtype=np.uint16)
    # The ends, and both sides of a rounding step.
    values[0, :5] = 0, 128, 129, 65406, 65535
    return values


def scaled_to_8_bits(values: npt.NDArray[Any]) -> Pixels:
    return np.rint(values / 65535 * 255).astype(np.uint8)


def as_grey_rgb(gray: Pixels) -> Pixels:
    return np.stack([gray, gray, gray], axis=-1)


# --- files in


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tif", "a.ppm"])
def test_lossless_files_come_back_exactly(tmp_path: Path, name: str) -> None:
    image = read_image(save(tmp_path, PIL.Image.fromarray(RGB), name))
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, RGB)


def test_jpeg_agrees_with_pil(tmp_path: Path) -> None:
    path = save(tmp_path, PIL.Image.fromarray(RGB), "a.jpg", quality=95)
    difference = read_image(path).astype(int) - np.asarray(PIL.Image.open(path)).astype(int)
    assert np.abs(difference).max() <= 3


def test_path_is_a_string_or_a_path_and_need_not_be_ascii(tmp_path: Path) -> None:
    folder = tmp_path / "Übung 写真"
    folder.mkdir()
    path = save(folder, PIL.Image.fromarray(RGB), "naïve 図.png")
    np.testing.assert_array_equal(read_image(path), RGB)
    np.testing.assert_array_equal(read_image(str(path)), RGB)


def test_alpha_is_dropped_without_blending(tmp_path: Path) -> None:
    rgba = np.dstack([RGB, np.random.default_rng(2).integers(0, 256, RGB.shape[:2], dtype=np.uint8)])
    np.testing.assert_array_equal(read_image(save(tmp_path, PIL.Image.fromarray(rgba), "a.png")), RGB)


@pytest.mark.parametrize("mode", ["L", "LA", "1"])
def test_grey_files_are_repeated(tmp_path: Path, mode: str) -> None:
    expected = as_grey_rgb(np.asarray(pil_of_mode(mode).convert("L")))
    np.testing.assert_array_equal(read_image(save(tmp_path, pil_of_mode(mode), "a.png")), expected)


def test_palette_files_are_expanded(tmp_path: Path) -> None:
    palette = PIL.Image.fromarray(RGB).quantize(32)
    np.testing.assert_array_equal(read_image(save(tmp_path, palette, "a.png")), np.asarray(palette.convert("RGB")))


def test_16_bit_grey_file_is_scaled(tmp_path: Path) -> None:
    values = gray_16_bits()
    path = save(tmp_path, PIL.Image.fromarray(values), "a.png")
    np.testing.assert_array_equal(read_image(path), as_grey_rgb(scaled_to_8_bits(values)))


def test_16_bit_colour_file_is_scaled(tmp_path: Path) -> None:
    values = np.random.default_rng(3).integers(0, 65536, (HEIGHT, WIDTH, 3), dtype=np.uint16)
    path = tmp_path / "a.png"
    assert cv2.imwrite(str(path), values[..., ::-1])
    np.testing.assert_array_equal(read_image(path), scaled_to_8_bits(values))


@pytest.mark.parametrize("orientation", [2, 3, 6])
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp"])
def test_exif_orientation_is_ignored(tmp_path: Path, name: str, orientation: int) -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    options: dict[str, Any] = {} if name == "a.png" else {"quality": 95}
    plain = read_image(save(tmp_path, PIL.Image.fromarray(RGB), name, **options))
    path = save(tmp_path, PIL.Image.fromarray(RGB), name, exif=exif, **options)
    assert PIL.Image.open(path).getexif()[0x0112] == orientation
    np.testing.assert_array_equal(read_image(path), plain)
    assert image_size(path) == (WIDTH, HEIGHT)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.png"):
        read_image(tmp_path / "nowhere.png")


def test_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "holiday").mkdir()
    with pytest.raises(ValueError, match=r"holiday.*folder"):
        read_image(tmp_path / "holiday")


@pytest.mark.parametrize("content", [b"", b"# a text file\n" * 50, b"\xff\xd8", b"\xff\xd8\xff", b"\xff\xd8" * 40])
def test_foreign_file_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "notes.jpg"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"notes\.jpg"):
        read_image(path)


@pytest.mark.parametrize("options", [{"quality": 90}, {"quality": 90, "progressive": True}])
@pytest.mark.parametrize("part", [0.05, 0.3, 0.5, 0.8, 0.99])
def test_truncated_jpeg_is_refused(tmp_path: Path, part: float, options: dict[str, Any]) -> None:
    noise = np.random.default_rng(4).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = save(tmp_path, PIL.Image.fromarray(noise), "cut.jpg", **options)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])
    with pytest.raises(ValueError, match=r"cut\.jpg"):
        read_image(path)


def test_truncated_jpeg_with_a_whole_thumbnail_is_refused(tmp_path: Path) -> None:
    thumbnail = io.BytesIO()
    PIL.Image.fromarray(RGB).save(thumbnail, "JPEG")
    path = save(tmp_path, PIL.Image.fromarray(smooth_rgb(5)), "cut.jpg", exif=b"Exif\x00\x00" + thumbnail.getvalue())
    data = path.read_bytes()
    assert read_image(path).shape == RGB.shape
    path.write_bytes(data[:-20])
    with pytest.raises(ValueError, match=r"cut\.jpg.*the JPEG file is truncated"):
        read_image(path)


@pytest.mark.parametrize("tail", [bytes(64), b"\xff\xda" * 32, b"\xff\xd8\xff\xe1 a second picture, cut"])
def test_jpeg_with_something_behind_it_is_whole(tmp_path: Path, tail: bytes) -> None:
    path = save(tmp_path, PIL.Image.fromarray(RGB), "a.jpg")
    expected = read_image(path)
    path.write_bytes(path.read_bytes() + tail)
    np.testing.assert_array_equal(read_image(path), expected)


def test_jpeg_with_fill_bytes_before_a_marker_is_whole(tmp_path: Path) -> None:
    path = save(tmp_path, PIL.Image.fromarray(RGB), "a.jpg")
    expected = read_image(path)
    data = path.read_bytes()
    path.write_bytes(data[:2] + b"\xff\xff\xff" + data[2:])
    np.testing.assert_array_equal(read_image(path), expected)


@pytest.mark.parametrize("part", [0.1, 0.5, 0.9])
def test_truncated_png_is_refused(tmp_path: Path, part: float) -> None:
    path = save(tmp_path, PIL.Image.fromarray(RGB), "cut.png")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])
    with pytest.raises(ValueError, match=r"cut\.png"):
        read_image(path)


def test_float_file_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path, PIL.Image.fromarray(np.ones((4, 5), np.float32)), "depth.tif")
    with pytest.raises(ValueError, match=r"depth.tif.*float32"):
        read_image(path)


# --- the accepted forms


def test_all_forms_of_one_image_agree(tmp_path: Path) -> None:
    path = save(tmp_path, PIL.Image.fromarray(RGB), "a.png")
    unit = torch.from_numpy(RGB.transpose(2, 0, 1) / 255.0)
    expected = (RGB.transpose(2, 0, 1) / 255.0).astype(np.float32)
    for form in (path, str(path), RGB, RGB[:, ::-1][:, ::-1], PIL.Image.fromarray(RGB), unit, unit.float()):
        np.testing.assert_array_equal(to_rgb(form), RGB)
        tensor = to_tensor(form)
        assert tensor.dtype == torch.float32
        assert tensor.is_contiguous()
        np.testing.assert_allclose(tensor.numpy(), expected, atol=1e-7)
        np.testing.assert_array_equal(to_gray(form), cv2.cvtColor(RGB, cv2.COLOR_RGB2GRAY))
        assert image_size(form) == (WIDTH, HEIGHT)


def test_grey_array_is_repeated_and_stays_grey() -> None:
    np.testing.assert_array_equal(to_rgb(GRAY), as_grey_rgb(GRAY))
    np.testing.assert_array_equal(to_gray(GRAY), GRAY)
    assert to_tensor(GRAY).shape == (3, HEIGHT, WIDTH)
    assert image_size(GRAY) == (WIDTH, HEIGHT)


def test_grey_has_the_weights_of_rec_601() -> None:
    weighted = RGB @ np.array([0.299, 0.587, 0.114])
    assert np.abs(to_gray(RGB) - weighted).max() <= 0.51


def test_tensor_never_shares_memory_with_the_array() -> None:
    array = RGB.copy()
    array.flags.writeable = False
    tensor = to_tensor(array)
    tensor.zero_()
    np.testing.assert_array_equal(array, RGB)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV"])
def test_pil_modes(mode: str) -> None:
    image = pil_of_mode(mode)
    np.testing.assert_array_equal(to_rgb(image), np.asarray(image.convert("RGB")))
    assert image_size(image) == (WIDTH, HEIGHT)


def test_pil_16_bit_images_are_scaled() -> None:
    values = gray_16_bits()
    image = PIL.Image.fromarray(values)
    assert image.mode == "I;16"
    for form in (image, image.convert("I")):
        np.testing.assert_array_equal(to_rgb(form), as_grey_rgb(scaled_to_8_bits(values)))


@pytest.mark.parametrize("value", [-1, 65536])
def test_pil_integers_beyond_16_bits_are_refused(value: int) -> None:
    with pytest.raises(ValueError, match=f"{value}"):
        to_rgb(PIL.Image.new("I", (4, 3), value))


def test_pil_float_is_refused() -> None:
    with pytest.raises(ValueError, match="mode 'F'"):
        to_rgb(PIL.Image.new("F", (4, 3)))


def test_pil_image_of_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path, PIL.Image.fromarray(RGB), "cut.png")
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with PIL.Image.open(path) as image, pytest.raises(ValueError, match="photo"):
        to_rgb(image, name="photo")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_tensors_of_any_float_type(dtype: torch.dtype) -> None:
    unit = torch.rand(3, 5, 6, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert torch.equal(to_tensor(unit), unit.float())


def test_tensor_is_not_quantised_but_detached() -> None:
    unit = torch.full((3, 2, 2), 0.123456, requires_grad=True)
    tensor = to_tensor(unit)
    assert not tensor.requires_grad
    assert torch.equal(tensor, torch.full((3, 2, 2), 0.123456))
    assert (to_rgb(unit) == round(0.123456 * 255)).all()


def test_tensor_goes_to_the_device() -> None:
    assert to_tensor(torch.rand(3, 4, 5), "cpu").device.type == "cpu"
    assert to_tensor(RGB, torch.device("meta")).device.type == "meta"


def test_rounding_noise_around_the_unit_range_is_clamped() -> None:
    unit = torch.tensor([-5e-4, 0.5, 1 + 5e-4]).reshape(3, 1, 1)
    assert torch.equal(to_tensor(unit).flatten(), torch.tensor([0.0, 0.5, 1.0]))


# --- refused


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 5, 3), np.uint16), r"uint16.*257"),
        (np.zeros((4, 5, 3), np.float32), r"float32.*255"),
        (np.zeros((4, 5), np.bool_), r"bool.*255"),
        (np.zeros((4, 5), np.int64), "int64"),
        (torch.zeros(3, 4, 5, dtype=torch.uint8), r"uint8.*255"),
        (torch.zeros(3, 4, 5, dtype=torch.int64), "int64"),
        (None, "NoneType"),
        (RGB.tolist(), "list"),
        (b"photo.jpg", "bytes"),
        (PIL.Image, "module"),
    ],
)
def test_wrong_types_are_refused(image: Any, message: str) -> None:
    for function in (to_rgb, to_tensor, to_gray, image_size):
        with pytest.raises(TypeError, match=message):
            function(image)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 5, 1), np.uint8), r"\(4, 5, 1\).*\[\.\.\., 0\]"),
        (np.zeros((4, 5, 4), np.uint8), r"\(4, 5, 4\).*:3"),
        (np.zeros((3, 4, 5), np.uint8), r"\(3, 4, 5\).*transpose\(1, 2, 0\)"),
        (np.zeros((1, 4, 5, 3), np.uint8), r"image\[0\]"),
        (np.zeros((4,), np.uint8), r"\(4,\)"),
        (np.zeros((0, 5, 3), np.uint8), "empty"),
        (np.zeros((5, 0), np.uint8), "empty"),
        (PIL.Image.new("RGB", (0, 5)), "empty"),
        (torch.zeros(3, 0, 4), "empty"),
        (torch.zeros(1, 3, 4, 5), r"image\[0\]"),
        (torch.zeros(4, 5), "expand"),
        (torch.zeros(1, 4, 5), "expand"),
        (torch.zeros(4, 4, 5), ":3"),
        (torch.zeros(4, 5, 3), r"permute\(2, 0, 1\)"),
        (torch.zeros(5), r"\(5,\)"),
    ],
)
def test_wrong_shapes_are_refused(image: Any, message: str) -> None:
    for function in (to_rgb, to_tensor, to_gray, image_size):
        with pytest.raises(ValueError, match=message):
            function(image)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.01, 1.01, 255.0])
def test_tensor_values_outside_the_unit_range_are_refused(value: float) -> None:
    image = torch.full((3, 4, 5), 0.5)
    image[1, 2, 3] = value
    for function in (to_rgb, to_tensor, to_gray):
        with pytest.raises(ValueError, match=r"image1 must .* 0\.\.1"):
            function(image, name="image1")


def test_pil_is_not_imported() -> None:
    code = "import sys, capsdesc.images as i, numpy as n; i.to_rgb(n.zeros((2, 2), 'u1')); print('PIL' in sys.modules)"
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert finished.stdout.strip() == "False"


# --- files out


def test_file_is_written_whole(tmp_path: Path) -> None:
    target = tmp_path / "a.h5"
    target.write_text("old")
    with atomic_path(target) as temporary:
        assert not temporary.exists()
        assert (temporary.parent, temporary.suffix) == (tmp_path, ".h5")
        temporary.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    assert os.listdir(tmp_path) == ["a.h5"]


def test_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "a.h5"
    target.write_text("old")

    def interrupted() -> None:
        with atomic_path(str(target)) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.h5"]


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_permissions_follow_the_umask(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        with atomic_path(tmp_path / "a.bin") as temporary:
            temporary.write_bytes(b"x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.bin").stat().st_mode) == mode


@pytest.mark.skipif(os.name != "posix", reason="symbolic links need a privilege elsewhere")
def test_symbolic_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    link = tmp_path / "a.bin"
    link.symlink_to(tmp_path / "store" / "real.bin")
    with atomic_path(link) as temporary:
        temporary.write_bytes(b"x")
    assert link.is_symlink()
    assert (tmp_path / "store" / "real.bin").read_bytes() == b"x"


def test_unwritable_targets_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no_such_folder"), atomic_path(tmp_path / "no_such_folder" / "a"):
        pass
    with pytest.raises(IsADirectoryError, match="folder"), atomic_path(tmp_path):
        pass
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "never_written"):
        pass
    assert os.listdir(tmp_path) == []
