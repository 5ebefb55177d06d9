"""Images in any form, and image files that are not as they should be."""

from __future__ import annotations

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


def encoded(suffix: str) -> bytes:
    """A small picture with some structure, as a file of this kind."""
    rng = np.random.default_rng(0)
    pixels = cv2.GaussianBlur(rng.integers(0, 256, (24, 20, 3), dtype=np.uint8), (0, 0), 1.5)
    done, data = cv2.imencode(suffix, pixels)
    assert done
    return data.tobytes()


FILES = {suffix: encoded(suffix) for suffix in (".png", ".jpg", ".bmp", ".tif", ".ppm", ".webp")}


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
    assert find_images(path.parent) == sorted(path.parent.iterdir())


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
    for suffix, whole in FILES.items():
        assert read_image(put(tmp_path / f"image{suffix}", whole)).shape == (24, 20, 3)
