"""What headers say of a file's size, and what is refused because of it before any memory is taken."""

from __future__ import annotations

import contextlib
import io
import resource
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import PIL.features
import PIL.Image
import pytest

import capsdesc.images.files
from capsdesc.images import MAX_PIXELS, image_size, read_image, to_rgb

HEIGHT, WIDTH = 29, 43
RGB = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def by_opencv(suffix: str, pixels: npt.NDArray[Any] = RGB, *options: int) -> bytes:
    return cv2.imencode(suffix, pixels, options)[1].tobytes()


def by_pillow(form: str, mode: str = "RGB", **options: Any) -> bytes:
    file = io.BytesIO()
    PIL.Image.fromarray(RGB).convert(mode).save(file, form, **options)
    return file.getvalue()


def upside_down(bmp: bytes) -> bytes:
    return bmp[:22] + struct.pack("<i", -HEIGHT) + bmp[26:]


def os2_bmp() -> bytes:
    rows = b"".join(row.tobytes().ljust(-(-3 * WIDTH // 4) * 4, b"\0") for row in RGB)
    return b"BM" + struct.pack("<IIIIHHHH", 26 + len(rows), 0, 26, 12, WIDTH, HEIGHT, 1, 24) + rows


FILES: dict[str, Callable[[], bytes]] = {
    "jpeg": lambda: by_pillow("JPEG"),
    "jpeg, progressive": lambda: by_pillow("JPEG", progressive=True),
    "jpeg, cmyk": lambda: by_pillow("JPEG", "CMYK"),
    "png": lambda: by_pillow("PNG"),
    "png, one bit": lambda: by_pillow("PNG", "1"),
    "png, palette": lambda: by_pillow("PNG", "P"),
    "png, 16 bits": lambda: by_opencv(".png", RGB.astype(np.uint16) * 257),
    "webp, lossy": lambda: by_pillow("WEBP"),
    "webp, lossless": lambda: by_pillow("WEBP", lossless=True),
    "webp, alpha": lambda: by_pillow("WEBP", "RGBA", exif=b"Exif\0\0"),
    "gif": lambda: by_pillow("GIF"),
    "bmp": lambda: by_opencv(".bmp"),
    "bmp, top down": lambda: upside_down(by_opencv(".bmp")),
    "bmp, palette": lambda: by_pillow("BMP", "P"),
    "bmp, os/2": os2_bmp,
    "pbm": lambda: by_pillow("PPM", "1"),
    "pgm": lambda: by_pillow("PPM", "L"),
    "ppm": lambda: by_pillow("PPM"),
    "ppm, comments": lambda: b"P6 # width\n# 7 and height\n%d #\n %d\n255\n" % (WIDTH, HEIGHT) + RGB.tobytes(),
    "ppm, text": lambda: by_opencv(".ppm", RGB, cv2.IMWRITE_PXM_BINARY, 0),
    "pam": lambda: by_opencv(".pam"),
    "sun raster": lambda: by_opencv(".ras"),
    "tiff": lambda: by_opencv(".tif"),
    "tiff, lzw": lambda: by_pillow("TIFF", compression="tiff_lzw"),
    "jpeg 2000": lambda: by_pillow("JPEG2000"),
    "jpeg 2000, codestream": lambda: by_pillow("JPEG2000", no_jp2=True),
    "avif": lambda: by_pillow("AVIF"),
    "avif, alpha": lambda: by_pillow("AVIF", "RGBA"),
}


def put(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def file_of(kind: str) -> bytes:
    if kind.startswith("avif") and not PIL.features.check("avif"):
        pytest.skip("this Pillow writes no AVIF")
    return FILES[kind]()


def decoded(data: bytes) -> npt.NDArray[Any]:
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        pytest.skip("this OpenCV does not read the format")
    return np.asarray(pixels)


@pytest.mark.parametrize("kind", FILES)
def test_the_header_says_what_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    data = file_of(kind)
    assert decoded(data).shape[:2] == (HEIGHT, WIDTH)
    path = put(tmp_path, "image", data)
    assert read_image(path).shape == (HEIGHT, WIDTH, 3)

    def decode(*_: Any) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(capsdesc.images.files, "_decode", decode)
    assert image_size(path) == (WIDTH, HEIGHT)


@pytest.mark.parametrize("kind", FILES)
def test_more_pixels_than_the_user_allows_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    path = put(tmp_path, "image", file_of(kind))
    decoded(path.read_bytes())
    for read in (read_image, image_size):
        monkeypatch.setenv("CAPSDESC_MAX_PIXELS", str(HEIGHT * WIDTH - 1))
        with pytest.raises(ValueError, match=r"image' as an image: it has 43 x 29 pixels.*1,246.*CAPSDESC_MAX_PIXELS"):
            read(path)
        monkeypatch.setenv("CAPSDESC_MAX_PIXELS", str(HEIGHT * WIDTH))
        read(path)


def test_jpeg_2000_need_not_begin_at_the_origin(tmp_path: Path) -> None:
    data = by_pillow("JPEG2000", offset=(8, 4), tile_offset=(0, 0), tile_size=(64, 64))
    assert PIL.Image.open(io.BytesIO(data)).size == (WIDTH, HEIGHT)
    assert image_size(put(tmp_path, "a.jp2", data)) == (WIDTH, HEIGHT)


@pytest.mark.parametrize("value", ["many", "-1", "1e9", "2.5"])
def test_a_limit_that_is_no_number_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    path = put(tmp_path, "a.bmp", FILES["bmp"]())
    monkeypatch.setenv("CAPSDESC_MAX_PIXELS", value)
    with pytest.raises(ValueError, match=f"CAPSDESC_MAX_PIXELS is '{value}'.*a whole number"):
        read_image(path)
    monkeypatch.setenv("CAPSDESC_MAX_PIXELS", "")
    read_image(path)


def test_pil_images_are_refused_before_they_are_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(tmp_path, "a.png", FILES["png"]())
    monkeypatch.setenv("CAPSDESC_MAX_PIXELS", "1000")
    with PIL.Image.open(path) as image:
        data = path.read_bytes()
        path.write_bytes(data[:100])  # what decodes it says that it is truncated
        with pytest.raises(ValueError, match=r"photo.*43 x 29 pixels.*CAPSDESC_MAX_PIXELS"):
            to_rgb(image, name="photo")


# --- small files that unpack to large ones


def jpeg_of(edge: int, mode: str, **options: Any) -> bytes:
    file = io.BytesIO()
    PIL.Image.new(mode, (16, 16)).save(file, "JPEG", **options)
    data = file.getvalue()
    frame = max(data.find(b"\xff\xc0\0"), data.find(b"\xff\xc2\0"))
    return data[: frame + 5] + struct.pack(">HH", edge, edge) + data[frame + 9 :]


def png_of(edge: int) -> bytes:
    """One-bit black, as small as it goes."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(1 + edge // 8)) for _ in range(edge)) + packer.flush()
    header = struct.pack(">IIBBBBB", edge, edge, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def with_edges(kind: str, form: str, place: int, edge: int) -> bytes:
    data = FILES[kind]()
    size = struct.pack(form, edge, edge)
    return data[:place] + size + data[place + len(size) :]


def tiff_of(edge: int, compression: str) -> bytes:
    """A few pixels that are said to be the only strip of a large image."""
    file = io.BytesIO()
    PIL.Image.new("RGB", (16, 16)).save(file, "TIFF", compression=compression)
    data = bytearray(file.getvalue())
    start = struct.unpack_from("<I", data, 4)[0]
    for entry in range(start + 2, start + 2 + 12 * struct.unpack_from("<H", data, start)[0], 12):
        if struct.unpack_from("<H", data, entry)[0] in (256, 257, 278):
            struct.pack_into("<HII", data, entry + 2, 4, 1, edge)
    return bytes(data)


BOMBS: dict[str, Callable[[int], bytes]] = {
    "progressive.jpg": lambda edge: jpeg_of(edge, "L", progressive=True),
    "baseline.jpg": lambda edge: jpeg_of(edge, "RGB"),
    "onebit.png": png_of,
    "colour.png": lambda edge: with_edges("png", ">II", 16, edge),
    "plain.bmp": lambda edge: with_edges("bmp", "<ii", 18, edge),
    "plain.ppm": lambda edge: b"P6 %d %d 255\n" % (edge, edge) + bytes(99),
    "plain.pbm": lambda edge: b"P4 %d %d\n" % (edge, edge) + bytes(99),
    "plain.pam": lambda edge: FILES["pam"]().replace(b" 43", b" %d" % edge).replace(b" 29", b" %d" % edge),
    "plain.tif": lambda edge: tiff_of(edge, "raw"),
    "lzw.tif": lambda edge: tiff_of(edge, "tiff_lzw"),
    "deflate.tif": lambda edge: tiff_of(edge, "tiff_adobe_deflate"),
    "packbits.tif": lambda edge: tiff_of(edge, "packbits"),
}
READ_ALL = """
import resource, sys
from capsdesc.images import read_image
read_image(sys.argv[1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sys.argv[2:]:
    try:
        read_image(path)
    except ValueError as error:
        print(str(error).replace("\\n", " "))
    else:
        print("read", path)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.parametrize("edge", [12_000, 32_000])
def test_bombs_take_no_memory(tmp_path: Path, edge: int) -> None:
    """Small files of 12000 x 12000 pixels, which are allowed, lack data; 32000 x 32000 are not allowed."""
    allowed = edge**2 <= MAX_PIXELS
    names = [name for name in BOMBS if not (allowed and name == "onebit.png")]  # which is whole
    paths = [put(tmp_path, name, BOMBS[name](edge)) for name in names]
    assert all(path.stat().st_size < 200_000 for path in paths)
    small = put(tmp_path, "small.png", FILES["png"]())
    process = subprocess.run(
        [sys.executable, "-c", READ_ALL, small, *paths], capture_output=True, text=True, check=True, timeout=100
    )
    *messages, megabytes = process.stdout.splitlines()
    for name, message in zip(names, messages, strict=True):
        assert name in message
        assert ("truncated" if allowed else "CAPSDESC_MAX_PIXELS") in message
    assert int(megabytes) < 50


def test_what_is_behind_the_bombs_opencv_would_decode(tmp_path: Path) -> None:
    """The files above are duds unless OpenCV makes large images of some."""
    grown = decoded(jpeg_of(2000, "RGB"))
    assert grown.shape == (2000, 2000, 3)
    assert decoded(png_of(2000)).shape == (2000, 2000)
    assert read_image(put(tmp_path, "a.png", png_of(2000))).shape == (2000, 2000, 3)


@pytest.mark.parametrize("signature", [b"#?RADIANCE\n-Y 99999 +X 99999\n", b"PF\n7 5\n-1\n", b"\x76\x2f\x31\x01"])
def test_floating_point_formats_are_refused_at_once(tmp_path: Path, signature: bytes) -> None:
    path = put(tmp_path, "a.hdr", signature + bytes(50))
    for read in (read_image, image_size):
        with pytest.raises(ValueError, match=r"floating-point.*8-bit or a 16-bit"):
            read(path)


@pytest.mark.parametrize("kind", FILES)
def test_headers_that_are_cut_off_are_refused(tmp_path: Path, kind: str) -> None:
    data = file_of(kind)
    for end in range(1, 60):
        path = put(tmp_path, "image", data[:end])
        with pytest.raises(ValueError, match=r"cannot read .*image' as an image: "):
            read_image(path)
        with contextlib.suppress(ValueError):  # the size may be there already
            assert image_size(path) == (WIDTH, HEIGHT)


def test_no_header_keeps_anyone_busy(tmp_path: Path) -> None:
    """Megabytes of nothing where the size should stand."""
    starts = {
        "jpeg": b"\xff\xd8\xff\xe0\0\x04ab" + bytes(4 * 2**20),
        "jpeg of scans": b"\xff\xd8\xff\xe0\0\x02" + b"\xff\xda\0\x02" * 2**18,
        "jpeg of ends": b"\xff\xd8\xff\xe0\0\x02" + b"\xff\xd8" * 2**19,
        "ppm": b"P6 " + b"# \n" * 2**20,
        "boxes": b"\0\0\0\x08ftyp" + b"\0\0\0\x08free" * 2**17,
        "jpeg 2000": b"\0\0\0\x0cjP  \r\n\x87\n" + b"\0\0\0\x08free" * 2**17,
        "tiff": b"II*\0\x08\0\0\0\xff\xff" + bytes(2**20),
        "big tiff": b"II+\0\x08\0\0\0\x10" + bytes(7) + b"\xff" * 8 + bytes(2**21),
    }
    start = time.process_time()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name, data in starts.items():
        path = put(tmp_path, name, data)
        for read in (read_image, image_size):
            with pytest.raises(ValueError, match=name):
                read(path)
    assert time.process_time() - start < 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 2**18
