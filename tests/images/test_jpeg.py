"""JPEG files: whole ones are read however odd, truncated ones are refused wherever they end."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import PIL.Image
import pytest

from capsdesc.images import image_size, read_image

HEIGHT, WIDTH = 61, 90
RNG = np.random.default_rng(0)
RGB = cv2.GaussianBlur(RNG.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8), (0, 0), 2).astype(np.uint8)


def jpeg(mode: str = "RGB", pixels: npt.NDArray[np.uint8] = RGB, **options: Any) -> bytes:
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).convert(mode).save(file, "JPEG", quality=90, **options)
    return file.getvalue()


# A later restart interval or scan that is missing as a whole is the hardest to tell.
FLAT_BELOW = np.concatenate([RGB[:30], np.full((31, WIDTH, 3), (10, 200, 90), np.uint8)])
KINDS = {
    "baseline": jpeg(),
    "optimized": jpeg(optimize=True),
    "no subsampling": jpeg(subsampling=0),
    "grey": jpeg("L"),
    "cmyk": jpeg("CMYK"),
    "progressive": jpeg(progressive=True),
    "progressive grey": jpeg("L", progressive=True),
    "restart": jpeg(restart_marker_rows=1),
    "restart, flat below": jpeg(pixels=FLAT_BELOW, restart_marker_blocks=2),
    "progressive restart": jpeg(pixels=FLAT_BELOW, progressive=True, restart_marker_blocks=3),
    "thumbnail": jpeg(exif=b"Exif\0\0" + jpeg(pixels=RGB[::2, ::2])),
}


def put(folder: Path, data: bytes) -> Path:
    path = folder / "photo.jpg"
    path.write_bytes(data)
    return path


def pillow_reads(data: bytes) -> bool:
    """Whether Pillow, which by default refuses truncated files, takes a file for whole."""
    try:
        PIL.Image.open(io.BytesIO(data)).load()
    except OSError:
        return False
    return True


@pytest.mark.parametrize("kind", KINDS)
def test_without_its_end_marker_a_file_is_read_whole(tmp_path: Path, kind: str) -> None:
    expected = read_image(put(tmp_path, KINDS[kind]))
    for end in (b"", b"\xff", bytes(300), b"\xff" * 300):
        path = put(tmp_path, KINDS[kind][:-2] + end)
        np.testing.assert_array_equal(read_image(path), expected)
        assert image_size(path) == (WIDTH, HEIGHT)


@pytest.mark.parametrize("kind", KINDS)
def test_cut_anywhere_a_file_is_refused_or_still_whole(tmp_path: Path, kind: str) -> None:
    data = KINDS[kind]
    expected = read_image(put(tmp_path, data))
    refused = 0
    cuts = [*range(1, 24), *np.random.default_rng(1).integers(24, len(data), 60).tolist()]
    for cut in cuts:
        end = (b"", bytes(300), b"\xff" * 300)[cut % 3]
        assert not pillow_reads(data[:-cut]), "Pillow refuses whatever has no end marker, and is no judge of less"
        try:
            image = read_image(put(tmp_path, data[:-cut] + end))
        except ValueError:
            refused += 1
        else:
            # The last bits of a file may only fill it up.
            np.testing.assert_array_equal(image, expected)
            assert cut < 24
    assert refused > len(cuts) - 12


@pytest.mark.parametrize("kind", KINDS)
def test_stray_bytes_between_segments_are_passed_over(tmp_path: Path, kind: str) -> None:
    data = KINDS[kind]
    expected = read_image(put(tmp_path, data))
    behind_first = 4 + int.from_bytes(data[4:6], "big")
    for stray in (b"\0", b"\0\0\x12stray\0", b"\xff\0", b"\xff\xff", bytes(1000)):
        odd = data[:behind_first] + stray + data[behind_first:]
        assert pillow_reads(odd)
        path = put(tmp_path, odd)
        np.testing.assert_array_equal(read_image(path), expected)
        assert image_size(path) == (WIDTH, HEIGHT)
        with pytest.raises(ValueError, match="truncated"):
            read_image(put(tmp_path, odd[: len(odd) // 2]))


def test_the_size_is_found_behind_any_preview(tmp_path: Path) -> None:
    preview = b"\xff\xe5\xff\xff" + bytes(0xFFFD)
    data = KINDS["baseline"]
    path = put(tmp_path, data[:2] + 40 * preview + data[2:])
    assert image_size(path) == (WIDTH, HEIGHT)
    np.testing.assert_array_equal(read_image(path), read_image(put(tmp_path, data)))


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_flat_image_is_not_too_small_for_its_size(tmp_path: Path, mode: str, progressive: bool) -> None:
    """The least that JPEG needs: one colour, and Huffman codes made for it."""
    flat = np.full((1003, 2005, 3), 128, np.uint8)
    data = jpeg(mode, flat, optimize=True, progressive=progressive)
    assert np.ptp(read_image(put(tmp_path, data)).astype(int)) <= 1
