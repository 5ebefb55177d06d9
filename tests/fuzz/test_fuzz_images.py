"""Images in any form, and image files that are not as they should be."""

from __future__ import annotations

import resource
import struct
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import torch
from fuzzing import anything, damaged, examples, put, result_or_refusal
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from capsdesc.images import find_images, image_size, read_image, to_gray, to_rgb, to_tensor

Pixels = npt.NDArray[np.uint8]

colours = arrays.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(3)))


def encoded(suffix: str, *options: int) -> bytes:
    """A small picture with some structure, as a file of this kind."""
    rng = np.random.default_rng(0)
    pixels = cv2.GaussianBlur(rng.integers(0, 256, (24, 20, 3), dtype=np.uint8), (0, 0), 1.5)
    done, data = cv2.imencode(suffix, pixels, options)
    assert done
    return data.tobytes()


FILES = {suffix: encoded(suffix) for suffix in (".png", ".jpg", ".bmp", ".tif", ".ppm", ".ras", ".webp")}


@examples(60)
@given(colours)
def test_every_form_of_an_image_is_the_same_image(image: Pixels) -> None:
    height, width = image.shape[:2]
    tensor = to_tensor(image)
    assert tensor.shape == (3, height, width)
    assert image_size(image) == image_size(tensor) == (width, height)
    np.testing.assert_array_equal(to_rgb(tensor), image)
    np.testing.assert_array_equal(to_rgb(image), image)
    np.testing.assert_array_equal(to_gray(image), cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))
    np.testing.assert_array_equal(to_rgb(image[..., 0]), np.repeat(image[..., :1], 3, axis=2))


@examples(40)
@given(colours, st.sampled_from([".png", ".bmp", ".tif", ".ppm"]))
def test_lossless_files_come_back(tmp_path_factory: pytest.TempPathFactory, image: Pixels, suffix: str) -> None:
    data = cv2.imencode(suffix, image[..., ::-1])[1]
    path = put(tmp_path_factory.getbasetemp() / "lossless" / f"image{suffix}", data.tobytes())
    np.testing.assert_array_equal(read_image(path), image)
    assert image_size(path) == (image.shape[1], image.shape[0])


@pytest.mark.parametrize("suffix", FILES)
@examples(60)
@given(data=st.data())
def test_damaged_files_are_images_or_refused(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, data: st.DataObject
) -> None:
    path = put(tmp_path_factory.getbasetemp() / "damaged" / f"image{suffix}", data.draw(damaged(FILES[suffix])))
    image = result_or_refusal(read_image, path)
    if image is not None:
        assert image.dtype == np.uint8
        assert image.ndim == 3
        assert image.shape[2] == 3
        assert image.size > 0
        assert image_size(path) == (image.shape[1], image.shape[0])
    assert find_images(path.parent) == sorted(path.parent.iterdir())


def jpeg_segments(data: bytes) -> list[bytes]:
    """A JPEG file, one piece a segment of its header; the last one is all the rest."""
    pieces, position = [data[:2]], 2
    while data[position + 1] != 0xDA:
        end = position + 2 + int.from_bytes(data[position + 2 : position + 4], "big")
        pieces.append(data[position:end])
        position = end
    return [*pieces, data[position:]]


stray = st.one_of(
    st.binary(max_size=6),
    st.sampled_from([b"\xff", b"\xff\0", b"\xff\xd9", b"\xff\xd8", b"\xff\xd0", bytes(40)]),
    # A segment of any kind that says any length.
    st.tuples(st.integers(0xC0, 0xFE), st.integers(0, 65535), st.binary(max_size=20)).map(
        lambda parts: struct.pack(">BBH", 0xFF, *parts[:2]) + parts[2]
    ),
)
JPEGS = [
    encoded(".jpg"),
    encoded(".jpg", cv2.IMWRITE_JPEG_PROGRESSIVE, 1),
    encoded(".jpg", cv2.IMWRITE_JPEG_RST_INTERVAL, 1),
]


@examples(150)
@given(st.data())
def test_jpeg_headers_of_any_make(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Segments put in, left out, doubled, changed in their order, and sizes of any number."""
    segments = jpeg_segments(data.draw(st.sampled_from(JPEGS)))
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(1, len(segments) - 1))
        change = data.draw(st.sampled_from(["put in", "leave out", "double", "swap", "damage", "end"]))
        if change == "put in":
            segments.insert(place, data.draw(stray))
        elif change == "leave out" and len(segments) > 2:
            del segments[place]
        elif change == "double":
            segments.insert(place, segments[place])
        elif change == "swap":
            segments[place], segments[-1] = segments[-1], segments[place]
        elif change == "damage":
            segments[place] = data.draw(damaged(segments[place]))
        else:
            segments[-1] = segments[-1][: -data.draw(st.integers(1, 30))]
    check_file(put(tmp_path_factory.getbasetemp() / "headers" / "image.jpg", b"".join(segments)))


TIFFS = [encoded(".tif", cv2.IMWRITE_TIFF_COMPRESSION, scheme) for scheme in (1, 5, 8, 32773)]
numbers = st.one_of(st.integers(0, 40), st.sampled_from([255, 256, 65535, 2**16, 2**31, 2**32 - 1]))


@examples(200)
@given(st.data())
def test_tiff_tags_of_any_value(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Tags, types, counts and values that no writer would choose, or not together."""
    content = bytearray(data.draw(st.sampled_from(TIFFS)))
    (start,) = struct.unpack_from("<I", content, 4)
    (count,) = struct.unpack_from("<H", content, start)
    for _ in range(data.draw(st.integers(1, 4))):
        entry = start + 2 + 12 * data.draw(st.integers(0, count - 1))
        what = data.draw(st.sampled_from(["tag", "type", "count", "value", "number of tags", "start"]))
        if what == "tag":
            # Orientation, planes, predictor, tiles, alpha, and the others.
            tags = st.sampled_from(
                [256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 284, 317, 322, 323, 324, 338]
            )
            struct.pack_into("<H", content, entry, data.draw(tags))
        elif what == "type":
            struct.pack_into("<H", content, entry + 2, data.draw(st.integers(0, 18)))
        elif what == "count":
            struct.pack_into("<I", content, entry + 4, data.draw(numbers))
        elif what == "value":
            struct.pack_into("<I", content, entry + 8, data.draw(numbers))
        elif what == "number of tags":
            struct.pack_into("<H", content, start, data.draw(numbers) & 0xFFFF)
        else:
            struct.pack_into("<I", content, 4, data.draw(numbers))
    check_file(put(tmp_path_factory.getbasetemp() / "tags" / "image.tif", bytes(content)))


def check_file(path: Path) -> None:
    """An image of the size that its header says, or refused, and without much memory."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    size = result_or_refusal(image_size, path)
    image = result_or_refusal(read_image, path)
    if image is not None:
        assert size is not None
        assert image.shape == (size[1], size[0], 3)
        assert image.dtype == np.uint8
    # A small file may well be a larger image, of up to the limit that is set here.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**17


@pytest.fixture(autouse=True)
def few_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAPSDESC_MAX_PIXELS", "1000000")


@pytest.mark.filterwarnings("ignore")
@examples(200)
@given(
    st.one_of(
        anything,
        arrays.arrays(arrays.array_dtypes() | arrays.scalar_dtypes(), arrays.array_shapes(min_side=0, max_side=4)),
        st.sampled_from([torch.zeros(3, 2, 2, dtype=dtype) for dtype in (torch.complex64, torch.int8, torch.bool)]),
        arrays.arrays(np.float32, (3, 2, 3)).map(torch.from_numpy),
    )
)
def test_whatever_is_no_image_is_refused(wrong: Any) -> None:
    for function in (to_rgb, to_tensor, to_gray, image_size):
        result_or_refusal(function, wrong)


def test_damage_is_done(tmp_path: Path) -> None:
    """The files are whole before they are damaged."""
    for suffix, whole in [*FILES.items(), *((".jpg", jpeg) for jpeg in JPEGS), *((".tif", tiff) for tiff in TIFFS)]:
        assert read_image(put(tmp_path / f"image{suffix}", whole)).shape == (24, 20, 3)
