"""TIFF files: pixels as they are stored, and nothing from damaged ones."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import PIL.Image
import pytest

from capsdesc.images import image_size, read_image
from capsdesc.images.lzw import unpacked_size
from capsdesc.images.tiff import read_layout

Pixels = npt.NDArray[np.uint8]

RNG = np.random.default_rng(0)
NOISE: Pixels = RNG.integers(0, 256, (24, 37, 3), dtype=np.uint8)
SMOOTH: Pixels = cv2.GaussianBlur(RNG.integers(0, 256, (64, 80, 3), dtype=np.uint8), (0, 0), 3).astype(np.uint8)
ORIENTATION, EXTRA_SAMPLES = 274, 338


def tiff(pixels: Pixels, photometric: int, extra: dict[int, list[int]], order: str = "<", big: bool = False) -> bytes:
    """An (H, W, C) image as an uncompressed TIFF, or BigTIFF, written here."""
    height, width, bands = pixels.shape
    word = "Q" if big else "I"
    start = 16 if big else 8
    fields = {
        **{256: [width], 257: [height], 258: [8] * bands, 259: [1], 262: [photometric], 273: [start]},
        **{277: [bands], 278: [height], 279: [pixels.size], **extra},
    }
    fields = {tag: values for tag, values in fields.items() if values}
    data = pixels.tobytes() + bytes(pixels.size % 2)
    head = struct.pack(order + ("HHHQ" if big else "HI"), *((43, 8, 0) if big else (42,)), start + len(data))
    entries, values = b"", b""
    behind = start + len(data) + (8 if big else 2) + len(fields) * (20 if big else 12) + struct.calcsize(word)
    for tag in sorted(fields):
        form = "I" if tag in (256, 257, 273, 278, 279, 324, 325) else "H"
        value = struct.pack(f"{order}{len(fields[tag])}{form}", *fields[tag])
        if len(value) > struct.calcsize(word):
            value, values = struct.pack(order + word, behind + len(values)), values + value
        kind = 4 if form == "I" else 3
        entries += struct.pack(order + "HH" + word, tag, kind, len(fields[tag]))
        entries += value.ljust(struct.calcsize(word), b"\0")
    count = struct.pack(order + ("Q" if big else "H"), len(fields))
    return (b"II" if order == "<" else b"MM") + head + data + count + entries + struct.pack(order + word, 0) + values


def tiled(pixels: Pixels, edge: int = 32) -> bytes:
    """An (H, W, C) image in square tiles, the last ones filled up."""
    height, width, bands = pixels.shape
    down, across = -(-height // edge), -(-width // edge)
    filled = np.zeros((down * edge, across * edge, bands), np.uint8)
    filled[:height, :width] = pixels
    tiles = filled.reshape(down, edge, across, edge, bands).swapaxes(1, 2).reshape(-1, edge, bands)
    size, count = edge * edge * bands, down * across
    places = [8 + k * size for k in range(count)]
    strips: dict[int, list[int]] = {273: [], 278: [], 279: []}
    sizes = {256: [width], 257: [height]}
    return tiff(tiles, 2, {**sizes, **strips, 322: [edge], 323: [edge], 324: places, 325: [size] * count})


def put(folder: Path, data: bytes) -> Path:
    path = folder / "scan.tif"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("big", [False, True])
def test_orientation_is_ignored(tmp_path: Path, orientation: int, order: str, big: bool) -> None:
    path = put(tmp_path, tiff(NOISE, 2, {ORIENTATION: [orientation]}, order, big))
    np.testing.assert_array_equal(read_image(path), NOISE)
    assert image_size(path) == (37, 24)


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"])
def test_pixels_are_those_that_colmap_has(tmp_path: Path, compression: str | None) -> None:
    pycolmap = pytest.importorskip("pycolmap")
    path = tmp_path / "scan.tif"
    PIL.Image.fromarray(SMOOTH).save(path, compression=compression, tiffinfo={ORIENTATION: 6})
    image = read_image(path)
    difference = image.astype(int) - pycolmap.Bitmap.read(path, True).to_array()
    assert np.abs(difference).max() <= (3 if compression == "jpeg" else 0)
    assert image_size(path) == (80, 64)
    camera = pycolmap.infer_camera_from_image(str(path))
    assert (camera.width, camera.height) == (80, 64)


def test_tiles_and_planes_are_read(tmp_path: Path) -> None:
    path = put(tmp_path, tiled(NOISE))
    np.testing.assert_array_equal(read_image(path), NOISE)
    assert image_size(path) == (37, 24)
    planes = np.ascontiguousarray(NOISE.transpose(2, 0, 1)).reshape(24, 37, 3)
    size = 24 * 37
    places = {284: [2], 273: [8 + k * size for k in range(3)], 279: [size] * 3}
    np.testing.assert_array_equal(read_image(put(tmp_path, tiff(planes, 2, places))), NOISE)
    for lacking in ({273: [8, 8 + size], 279: [size] * 2}, {273: [8, 8 + size, 10**6]}):
        with pytest.raises(ValueError, match="TIFF file"):
            read_image(put(tmp_path, tiff(planes, 2, {**places, **lacking})))


@pytest.mark.parametrize("meaning", [0, 1, 2])
def test_alpha_is_dropped_without_blending(tmp_path: Path, meaning: int) -> None:
    rgba = np.dstack([NOISE, RNG.integers(0, 256, NOISE.shape[:2], dtype=np.uint8)])
    np.testing.assert_array_equal(read_image(put(tmp_path, tiff(rgba, 2, {EXTRA_SAMPLES: [meaning]}))), NOISE)


@pytest.mark.parametrize(("bands", "photometric"), [(5, 1), (5, 2), (6, 5), (12, 1)])
def test_more_bands_than_an_image_has_are_counted(tmp_path: Path, bands: int, photometric: int) -> None:
    extra = {EXTRA_SAMPLES: [0] * (bands - {1: 1, 2: 3, 5: 4}[photometric])}
    path = put(tmp_path, tiff(np.zeros((4, 6, bands), np.uint8), photometric, extra))
    with pytest.raises(ValueError, match=rf"scan\.tif.*has {bands} bands; 1 \(grey\), 3 \(RGB\)") as error:
        read_image(path)
    assert "truncated" not in str(error.value)


def subsampled(compression: int) -> bytes:
    """A flat YCbCr image of 5 x 3 pixels, a colour for each block of 2 x 2, written here."""
    blocks = np.tile(np.array([128] * 4 + [90, 200], np.uint8), 3 * 2).tobytes()
    packed = zlib.compress(blocks) if compression == 8 else blocks
    data = bytearray(tiff(np.zeros((3, 5, 3), np.uint8), 6, {530: [2, 2]}))
    for tag, value in ((259, compression), (273, len(data)), (279, len(packed))):
        field = read_layout(io.BytesIO(data)).fields[tag]
        struct.pack_into("<" + field.form, data, field.position, value)
    return bytes(data) + packed


@pytest.mark.parametrize("compression", [1, 8])
def test_colours_may_have_fewer_samples(tmp_path: Path, compression: int) -> None:
    data = subsampled(compression)
    image = read_image(put(tmp_path, data))
    # ITU-R BT.601, of Y = 128, Cb = 90 and Cr = 200.
    expected = np.array([128 + 1.402 * 72, 128 + 0.344136 * 38 - 0.714136 * 72, 128 - 1.772 * 38])
    assert np.abs(image - expected).max() < 2
    with pytest.raises(ValueError, match="damaged or truncated"):
        read_image(put(tmp_path, data[:-7]))


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits", "raw"])
def test_colours_of_other_kinds_are_read(tmp_path: Path, compression: str) -> None:
    path = tmp_path / "scan.tif"
    PIL.Image.fromarray(SMOOTH).convert("YCbCr").save(path, compression=compression, tiffinfo={530: (1, 1)})
    assert np.abs(read_image(path).astype(int) - SMOOTH).max() < 5
    PIL.Image.fromarray(SMOOTH).convert("CMYK").save(path, compression=compression)
    assert np.abs(read_image(path).astype(int) - SMOOTH).max() < 5
    PIL.Image.fromarray(SMOOTH).convert("1").save(path, compression=compression)
    assert set(np.unique(read_image(path)).tolist()) == {0, 255}


def lzw(pixels: Pixels, writer: str, **options: Any) -> bytes:
    if writer == "opencv":
        return cv2.imencode(".tif", pixels[..., ::-1], [cv2.IMWRITE_TIFF_COMPRESSION, 5])[1].tobytes()
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, "TIFF", compression="tiff_lzw", **options)
    return file.getvalue()


@pytest.mark.parametrize("writer", ["opencv", "pillow", "pillow, predictor", "pillow, one strip"])
@pytest.mark.parametrize("size", [(1, 1), (3, 5), (100, 170), (17, 2000)])
@pytest.mark.parametrize("content", ["noise", "flat", "smooth", "black and white"])
def test_lzw_files_are_read(tmp_path: Path, writer: str, size: tuple[int, int], content: str) -> None:
    noise = RNG.integers(0, 256, (*size, 3), dtype=np.uint8)
    pixels = {
        "noise": noise,
        "flat": np.full_like(noise, 7),
        "smooth": cv2.GaussianBlur(noise, (0, 0), 3).astype(np.uint8),
        "black and white": noise // 128 * 255,
    }[content]
    tags = {"pillow, predictor": {317: 2}, "pillow, one strip": {278: size[0]}}.get(writer, {})
    path = put(tmp_path, lzw(pixels, writer) if writer == "opencv" else lzw(pixels, writer, tiffinfo=tags))
    np.testing.assert_array_equal(read_image(path), pixels)


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_damage_that_libtiff_sees_is_refused(tmp_path: Path, compression: str, mode: str) -> None:
    """Pillow heeds what libtiff says, OpenCV does not. Of a bit turned over in a plain value nobody can know."""
    file = io.BytesIO()
    PIL.Image.fromarray(SMOOTH).convert(mode).save(file, "TIFF", compression=compression)
    whole = file.getvalue()
    seen = 0
    rng = np.random.default_rng(2)
    for _ in range(80):
        damaged = bytearray(whole)
        damaged[rng.integers(200, len(whole) - 200)] ^= 1 << rng.integers(8)
        try:
            PIL.Image.open(io.BytesIO(damaged)).load()
        except (OSError, SyntaxError):
            seen += 1
            with pytest.raises(ValueError, match=r"scan\.tif"):
                read_image(put(tmp_path, bytes(damaged)))
    assert seen > 0 or compression == "packbits"


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"])
def test_strips_that_are_cut_off_or_blank_are_refused(tmp_path: Path, compression: str | None) -> None:
    file = io.BytesIO()
    PIL.Image.fromarray(SMOOTH).save(file, "TIFF", compression=compression)
    data = file.getvalue()
    # The last strip is put behind all else, so that nothing but pixels is cut off.
    offsets, counts = (read_layout(io.BytesIO(data)).fields[tag] for tag in (273, 279))
    assert (offsets.form, counts.form) in (("I", "I"), ("I", "H"))
    strip = data[offsets.values[-1] :][: counts.values[-1]]
    place = offsets.position + 4 * (len(offsets.values) - 1)
    moved = data[:place] + struct.pack("<I", len(data)) + data[place + 4 :] + strip
    np.testing.assert_array_equal(read_image(put(tmp_path, moved)), read_image(put(tmp_path, data)))
    for missing in (1, 20, len(strip) // 2, len(strip)):
        # The last byte of LZW holds the end, that of deflate the check sum.
        if missing == 1 and compression in ("tiff_lzw", "tiff_adobe_deflate"):
            continue
        with pytest.raises(ValueError, match="damaged or truncated"):
            read_image(put(tmp_path, moved[:-missing]))
        if compression in ("tiff_lzw", "tiff_adobe_deflate"):
            with pytest.raises(ValueError, match="damaged or truncated"):
                read_image(put(tmp_path, moved[:-missing] + bytes(missing)))


def lzw_codes(codes: list[int], widths: list[int]) -> bytes:
    bits = "".join(f"{code:0{width}b}" for code, width in zip(codes, widths, strict=True))
    return int(bits.ljust(-(-len(bits) // 8) * 8, "0"), 2).to_bytes(-(-len(bits) // 8), "big")


def test_lzw_lengths() -> None:
    # Clear, a, aa (which it makes itself), aaa, aa, End: 1 + 2 + 3 + 2 bytes.
    assert unpacked_size(lzw_codes([256, 97, 258, 259, 258, 257], [9] * 6), 100) == 8
    assert unpacked_size(lzw_codes([256, 97, 256, 98, 257], [9] * 5), 100) == 2
    assert unpacked_size(lzw_codes([256, 257], [9] * 2), 100) == 0
    # A code that is not in the table yet, and one that stands first.
    assert unpacked_size(lzw_codes([256, 97, 259, 257], [9] * 4), 100) == -1
    assert unpacked_size(lzw_codes([256, 258, 257], [9] * 3), 100) == -1
    # Nothing but Clear.
    assert unpacked_size(lzw_codes([256] * 10_000, [9] * 10_000), 10**9) == -1
    assert unpacked_size(b"", 100) == 0


def test_the_colours_of_16_bit_files_are_whole(tmp_path: Path) -> None:
    values = RNG.integers(0, 65536, (50, 60, 3), dtype=np.uint16)
    path = tmp_path / "scan.tif"
    assert cv2.imwrite(str(path), values[..., ::-1])
    np.testing.assert_array_equal(read_image(path), np.rint(values / 257).astype(np.uint8))
