"""Images and points in, descriptors out: every form, every size, every mistake, against numpy and OpenCV."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import numpy.typing as npt
import PIL.Image
import pytest
import torch
from torch import Tensor

import capsdesc
from capsdesc import CAPSExtractor, Keypoints, match
from capsdesc.devices import describing_dtype
from capsdesc.models import FeatureMap, ModelConfig, build_network
from capsdesc.weights import save_pretrained

Pixels = npt.NDArray[np.uint8]
Array = npt.NDArray[Any]
ShiftedPair = tuple[Pixels, Pixels, Array]

TINY = [(1, 1), (1, 40), (2, 3), (5, 7), (17, 33)]


@pytest.fixture(scope="module")
def extractors(model_folders: Mapping[str, Path]) -> Mapping[str, CAPSExtractor]:
    return {name: CAPSExtractor(folder, device="cpu") for name, folder in model_folders.items()}


@pytest.fixture(scope="module", params=["compact", "paper"])
def caps(extractors: Mapping[str, CAPSExtractor], request: pytest.FixtureRequest) -> CAPSExtractor:
    """Either network."""
    return extractors[request.param]


@pytest.fixture(scope="module")
def compact(extractors: Mapping[str, CAPSExtractor]) -> CAPSExtractor:
    return extractors["compact"]


@pytest.fixture(scope="module")
def photo(shifted_pair: ShiftedPair) -> Pixels:
    """(120, 150, 3) texture; neither edge is a multiple of 16."""
    return np.ascontiguousarray(shifted_pair[0][:120, :150])


@pytest.fixture(scope="module")
def points() -> npt.NDArray[np.float32]:
    """(60, 2) points anywhere in the photo, its outer edges included."""
    rng = np.random.default_rng(0)
    inside = rng.uniform((-0.5, -0.5), (149.5, 119.5), (56, 2))
    corners = [[-0.5, -0.5], [149.5, -0.5], [-0.5, 119.5], [149.5, 119.5]]
    return np.concatenate([inside, corners]).astype(np.float32)


def as_tensor(image: Pixels) -> Tensor:
    return torch.tensor(image).permute(2, 0, 1).float() / 255


def described(caps: CAPSExtractor, image: Any, keypoints: Any) -> npt.NDArray[np.float32]:
    return np.asarray(caps.describe(image, keypoints))


def bilinear(feature_map: FeatureMap, pixels: Array) -> npt.NDArray[np.float64]:
    """(N, C) samples of a map at (N, 2) pixels, from pixel = cell * scale + offset and the definition."""
    values = feature_map.values[0].numpy().astype(np.float64)
    height, width = values.shape[1:]
    x, y = ((pixels.astype(np.float64) - feature_map.offset) / feature_map.scale).T
    x, y = np.clip(x, 0, width - 1), np.clip(y, 0, height - 1)
    x0, y0 = np.floor(x).astype(int), np.floor(y).astype(int)
    x1, y1 = np.minimum(x0 + 1, width - 1), np.minimum(y0 + 1, height - 1)
    fx, fy = x - x0, y - y0
    upper = (1 - fx) * values[:, y0, x0] + fx * values[:, y0, x1]
    lower = (1 - fx) * values[:, y1, x0] + fx * values[:, y1, x1]
    return np.asarray(((1 - fy) * upper + fy * lower).T)


def unit(values: Array) -> Array:
    return np.asarray(values / np.linalg.norm(values, axis=-1, keepdims=True))


def expected_descriptors(caps: CAPSExtractor, image: Any, pixels: Array) -> Array:
    """The definition, in numpy: both maps sampled and concatenated; of unit length if the config says so."""
    dense = caps.dense(image)
    halves = [bilinear(dense.coarse, pixels), bilinear(dense.fine, pixels)]
    if caps.config.normalize:
        return unit(np.concatenate([unit(half) for half in halves], axis=1))
    return np.concatenate(halves, axis=1)


# Forms of images and of keypoints


def test_every_form_of_a_colour_image_gives_the_same(
    caps: CAPSExtractor, photo: Pixels, points: Array, tmp_path: Path
) -> None:
    path = tmp_path / "photo.png"
    PIL.Image.fromarray(photo).save(path)
    expected = described(caps, photo, points)
    assert expected.shape == (60, caps.descriptor_dim)
    assert expected.dtype == np.float32
    for image in (path, str(path), PIL.Image.open(path), PIL.Image.fromarray(photo)):
        np.testing.assert_array_equal(described(caps, image, points), expected)
    for flipped in (photo[::-1, ::-1], photo[..., ::-1]):  # views that are not contiguous
        np.testing.assert_array_equal(described(caps, flipped, points), described(caps, flipped.copy(), points))
    np.testing.assert_allclose(described(caps, as_tensor(photo), points), expected, atol=1e-5)


def test_every_form_of_a_grey_image_gives_the_same(
    caps: CAPSExtractor, photo: Pixels, points: Array, tmp_path: Path
) -> None:
    gray = np.ascontiguousarray(photo[..., 1])
    path = tmp_path / "gray.png"
    PIL.Image.fromarray(gray).save(path)
    expected = described(caps, np.repeat(gray[..., None], 3, axis=2), points)
    for image in (gray, path, PIL.Image.fromarray(gray)):
        np.testing.assert_array_equal(described(caps, image, points), expected)


def test_colours_are_rgb(caps: CAPSExtractor, photo: Pixels, points: Array, tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    cv2.imwrite(str(path), photo[..., ::-1])
    np.testing.assert_array_equal(described(caps, path, points), described(caps, photo, points))
    assert not np.allclose(described(caps, photo, points), described(caps, photo[..., ::-1], points), atol=1e-3)


def test_every_form_of_keypoints_gives_the_same(compact: CAPSExtractor, photo: Pixels, points: Array) -> None:
    expected = described(compact, photo, points)
    keypoints = Keypoints(points)
    for form in (points.astype(np.float64), keypoints, keypoints.to_cv2(), tuple(keypoints.to_cv2())):
        descriptors = compact.describe(photo, form)
        assert isinstance(descriptors, np.ndarray)
        assert descriptors.dtype == np.float32
        np.testing.assert_array_equal(descriptors, expected)
    tensor = torch.from_numpy(points)
    for in_torch in (tensor, tensor.double(), Keypoints(tensor)):
        descriptors = compact.describe(photo, in_torch)
        assert isinstance(descriptors, Tensor)
        assert descriptors.dtype == torch.float32
        assert descriptors.device == tensor.device
        np.testing.assert_array_equal(descriptors.numpy(), expected)
    rows_and_columns = np.ascontiguousarray(points[:, ::-1])
    for view in (rows_and_columns[:, ::-1], np.asfortranarray(points), np.repeat(points, 2, axis=0)[::2]):
        np.testing.assert_array_equal(described(compact, photo, view), expected)
    np.testing.assert_allclose(described(compact, photo, points[::-1]), expected[::-1], atol=1e-6)
    whole = np.array([[3, 4], [140, 100]])
    np.testing.assert_array_equal(described(compact, photo, whole), described(compact, photo, whole.astype(np.float32)))


def test_the_keypoints_decide_between_numpy_and_torch(compact: CAPSExtractor, photo: Pixels, points: Array) -> None:
    tensor_points = torch.from_numpy(points)
    assert isinstance(compact.describe(as_tensor(photo), points), np.ndarray)
    assert isinstance(compact.describe(photo, tensor_points), Tensor)
    assert isinstance(compact.describe(photo, tensor_points[:0]), Tensor)
    assert isinstance(compact.describe(as_tensor(photo), points[:0]), np.ndarray)


def test_nothing_of_the_user_is_changed(compact: CAPSExtractor, photo: Pixels, points: Array) -> None:
    image, tensor, keypoints = photo.copy(), as_tensor(photo), points.copy()
    random_state = torch.get_rng_state()
    compact.describe(image, keypoints)
    compact.describe(tensor, torch.from_numpy(keypoints))
    compact.locate(keypoints, image, tensor)
    compact.extract(image, 10)
    compact.extract(tensor, 10)
    np.testing.assert_array_equal(image, photo)
    np.testing.assert_array_equal(tensor.numpy(), as_tensor(photo).numpy())
    np.testing.assert_array_equal(keypoints, points)
    assert torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), random_state)


# Gradients of the user's own


def use_in_a_loss(values: Tensor) -> None:
    assert not values.requires_grad
    weight = torch.ones_like(values, requires_grad=True)
    (values * weight).sum().backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(weight.grad, values)
    values.add_(1).requires_grad_()


def test_results_take_part_in_the_users_gradients(compact: CAPSExtractor, photo: Pixels, points: Array) -> None:
    tensor_points, tensor = torch.from_numpy(points), as_tensor(photo)
    use_in_a_loss(cast(Tensor, compact.describe(photo, tensor_points)))
    located = compact.locate(tensor_points, photo, photo)
    use_in_a_loss(cast(Tensor, located.points))
    use_in_a_loss(cast(Tensor, located.std))
    features = compact.extract(tensor, 10)
    use_in_a_loss(cast(Tensor, features.descriptors))
    use_in_a_loss(cast(Tensor, features.keypoints))


def test_dense_maps_take_part_in_the_users_gradients(compact: CAPSExtractor, photo: Pixels, points: Array) -> None:
    dense = compact.dense(photo)
    movable = torch.tensor(points[None], requires_grad=True)
    dense.describe(movable).sum().backward()  # type: ignore[no-untyped-call]
    assert movable.grad is not None
    assert movable.grad.abs().max() > 0
    use_in_a_loss(dense.fine.values)


def test_images_and_keypoints_that_require_gradients(compact: CAPSExtractor, photo: Pixels, points: Array) -> None:
    expected = described(compact, photo, points)
    tensor_points = torch.tensor(points, requires_grad=True)
    descriptors = compact.describe(as_tensor(photo).requires_grad_(), tensor_points)
    assert isinstance(descriptors, Tensor)
    assert not descriptors.requires_grad
    np.testing.assert_allclose(descriptors.numpy(), expected, atol=1e-5)
    located = compact.locate(tensor_points, photo, photo)
    assert isinstance(located.points, Tensor)
    assert not located.points.requires_grad


# One and many


def test_lists_equal_single_calls(caps: CAPSExtractor, photo: Pixels, points: Array) -> None:
    images: list[Any] = [photo, photo[:50, :60], as_tensor(photo), photo[..., 0]]
    small = points[(points < 49).all(axis=1)]
    keypoints: list[Any] = [points, small, torch.from_numpy(points), points[:0]]
    for many in (caps.describe(images, keypoints), caps.describe(tuple(images), tuple(keypoints))):
        assert isinstance(many, list)
        assert len(many) == 4
        for descriptors, image, one in zip(many, images, keypoints, strict=True):
            alone = caps.describe(image, one)
            assert type(descriptors) is type(alone)
            np.testing.assert_array_equal(np.asarray(descriptors), np.asarray(alone))
    assert caps.describe([], []) == []


def test_a_point_is_described_whatever_the_others_are(caps: CAPSExtractor, photo: Pixels, points: Array) -> None:
    together = described(caps, photo, points)
    order = np.random.default_rng(1).permutation(len(points))
    np.testing.assert_allclose(described(caps, photo, points[order]), together[order], atol=1e-6)
    for index in (0, 17, 59):
        np.testing.assert_allclose(described(caps, photo, points[index : index + 1])[0], together[index], atol=1e-6)


def test_identical_points_have_identical_descriptors(caps: CAPSExtractor, photo: Pixels) -> None:
    descriptors = described(caps, photo, np.tile([[31.3, 55.7]], (9, 1)))
    np.testing.assert_allclose(descriptors, np.tile(descriptors[:1], (9, 1)), atol=1e-6)


# What a descriptor is


@pytest.mark.parametrize("max_size", [None, 100])
def test_descriptors_are_bilinear_samples_of_the_dense_maps(
    caps: CAPSExtractor, photo: Pixels, points: Array, max_size: int | None
) -> None:
    caps = CAPSExtractor(caps.source, device="cpu", max_size=max_size)
    expected = expected_descriptors(caps, photo, points)
    np.testing.assert_allclose(described(caps, photo, points), expected, atol=1e-5)
    dense = caps.dense(photo)
    assert dense.image_size == (150, 120)
    in_torch = dense.describe(torch.from_numpy(points)[None])[0]
    np.testing.assert_allclose(in_torch.numpy(), described(caps, photo, points), atol=1e-5)


@pytest.mark.parametrize("max_size", [None, 100])
def test_derivatives_are_differences_across_a_fine_cell(
    caps: CAPSExtractor, photo: Pixels, points: Array, max_size: int | None
) -> None:
    caps = CAPSExtractor(caps.source, device="cpu", max_size=max_size)
    inside = points[(points > 8).all(1) & (points < np.array([141, 111])).all(1)]
    features = caps.extract(photo, keypoints=inside, derivatives=True)
    np.testing.assert_allclose(features.descriptors, described(caps, photo, inside), atol=1e-5)
    cell = 4 * 150 / (max_size or 150)  # in pixels of the image as given
    for axis, step in enumerate(([cell, 0], [0, cell])):
        ahead, behind = (expected_descriptors(caps, photo, inside + np.multiply(sign, step)) for sign in (1, -1))
        np.testing.assert_allclose(np.asarray(features.derivatives)[:, axis], (ahead - behind) / (2 * cell), atol=1e-5)


def test_derivatives_at_the_border_and_in_any_orientation(compact: CAPSExtractor, photo: Pixels, points: Array) -> None:
    features = compact.extract(photo, keypoints=points, derivatives=True, orientation="any")
    upright = compact.extract(photo, keypoints=points, derivatives=True)
    assert np.asarray(features.derivatives).shape == (9, 3, len(points), 2, compact.descriptor_dim)
    assert np.isfinite(np.asarray(features.derivatives)).all()
    np.testing.assert_allclose(np.asarray(features.derivatives)[0, 0], np.asarray(upright.derivatives), atol=1e-5)
    corner = np.array([[-0.5, -0.5]], dtype=np.float32)
    inner, right, below = (
        expected_descriptors(compact, photo, np.array([place])) for place in ((0, 0), (3.5, 0), (0, 3.5))
    )
    on_corner = np.asarray(compact.extract(photo, keypoints=corner, derivatives=True).derivatives)[0]
    np.testing.assert_allclose(on_corner[0], (right - inner)[0] / 3.5, atol=1e-5)
    np.testing.assert_allclose(on_corner[1], (below - inner)[0] / 3.5, atol=1e-5)
    for shape in TINY:
        small = compact.extract(photo[: shape[0], : shape[1]], keypoints=np.zeros((1, 2)), derivatives=True)
        assert np.isfinite(np.asarray(small.derivatives)).all()
    nothing = compact.extract(photo, keypoints=points[:0], derivatives=True)
    assert np.asarray(nothing.derivatives).shape == (0, 2, 256)


def test_given_keypoints_are_described_with_all_they_know(compact: CAPSExtractor, photo: Pixels) -> None:
    detected = compact.extract(photo, 30)
    given = Keypoints(detected.keypoints, detected.scores, detected.scales, detected.angles)
    for keypoints in (given, given.to_cv2()):
        again = compact.extract(photo, keypoints=keypoints)
        for field in ("keypoints", "descriptors", "scores", "scales", "angles"):
            found, expected = getattr(again, field), getattr(detected, field)
            assert (found is None) == (expected is None)
            if found is not None:
                np.testing.assert_allclose(found, expected, atol=1e-6)
    bare = compact.extract(as_tensor(photo), keypoints=detected.keypoints)
    assert isinstance(bare.descriptors, Tensor)
    assert bare.scores is None
    with pytest.raises(ValueError, match="outside"):
        compact.extract(photo, keypoints=np.array([[500.0, 3.0]]))


def test_cells_lie_where_the_network_puts_them(caps: CAPSExtractor, photo: Pixels) -> None:
    dense = caps.dense(photo)
    for feature_map, stride, channels in (
        (dense.coarse, 16, caps.config.coarse_dim),
        (dense.fine, 4, caps.config.fine_dim),
    ):
        height, width = -(-120 // stride), -(-150 // stride)
        assert feature_map.values.shape == (1, channels, height, width)
        assert feature_map.values.dtype == torch.float32
        assert feature_map.offset == (0, 0)
        corners = (149 / (width - 1), 119 / (height - 1))
        np.testing.assert_allclose(
            feature_map.scale, corners if caps.config.sampling == "corners" else (stride, stride), rtol=1e-12
        )


def test_only_the_normalised_network_has_unit_length(
    extractors: Mapping[str, CAPSExtractor], photo: Pixels, points: Array
) -> None:
    compact, paper = (described(extractors[name], photo, points) for name in ("compact", "paper"))
    np.testing.assert_allclose(np.linalg.norm(compact, axis=1), 1, atol=1e-5)
    # Neither half outweighs the other.
    np.testing.assert_allclose(np.linalg.norm(compact[:, :128], axis=1), 0.5**0.5, atol=1e-5)
    assert np.ptp(np.linalg.norm(paper, axis=1)) > 0.1


def test_descriptors_follow_the_image_and_tell_points_apart(caps: CAPSExtractor, shifted_pair: ShiftedPair) -> None:
    image0, image1, shift = shifted_pair
    points0 = np.random.default_rng(2).uniform((60, 50), (290, 210), (200, 2))
    descriptors0, descriptors1 = described(caps, image0, points0), described(caps, image1, points0 + shift)
    indices = np.asarray(match(descriptors0, descriptors1).indices)
    assert (indices[:, 0] == indices[:, 1]).sum() >= 190


def test_bfloat16_and_float16_come_close(caps: CAPSExtractor, photo: Pixels, points: Array) -> None:
    photo = photo[:64, :64]
    points = points[(points < 63).all(axis=1)]
    expected = described(caps, photo, points)
    for dtype, similarity in ((torch.bfloat16, 0.999), (torch.float16, 0.99999)):
        half = CAPSExtractor(caps.source, device="cpu", dtype=dtype)
        assert half.dtype == dtype
        descriptors = described(half, photo, points)
        assert descriptors.dtype == np.float32
        assert not np.array_equal(descriptors, expected)
        assert (unit(descriptors) * unit(expected)).sum(axis=1).min() > similarity
        assert half.dense(photo).fine.values.dtype == torch.float32


# Parts of images


def whole_and_parts(caps: CAPSExtractor, image: Pixels, points: Array) -> tuple[Array, Array, list[torch.Size]]:
    """Descriptors from maps of the whole image and from its parts, and the shapes of these parts."""
    shapes: list[torch.Size] = []
    whole = caps.dense(image).describe(torch.from_numpy(points)[None])[0].numpy()
    first = next(layer for layer in caps._seeing.network.modules() if isinstance(layer, torch.nn.Conv2d))
    with first.register_forward_pre_hook(lambda _, inputs: shapes.append(inputs[0].shape[2:])):
        return whole, described(caps, image, points), shapes


@pytest.mark.parametrize("residue", range(16))
def test_parts_of_an_image_describe_points_like_the_whole(
    compact: CAPSExtractor, residue: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("capsdesc.models.tiling._TILE", 64)
    rng = np.random.default_rng(residue)
    width, height = 480 + residue, 24 + 5 * residue % 16
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    corners = [[-0.5, -0.5], [width - 0.5, -0.5], [-0.5, height - 0.5], [width - 0.5, height - 0.5]]
    points = np.concatenate([corners, rng.uniform(-0.5, (width - 0.5, height - 0.5), (60, 2))]).astype(np.float32)
    for turned, moved in ((image, points), (image.transpose(1, 0, 2), np.ascontiguousarray(points[:, ::-1]))):
        whole, parts, shapes = whole_and_parts(compact, turned, moved)
        np.testing.assert_allclose(parts, whole, atol=1e-5)
        assert len(shapes) == 8
        assert max(max(shape) for shape in shapes) < 400


def test_parts_of_a_shrunk_and_of_a_turned_image(
    compact: CAPSExtractor, shifted_pair: ShiftedPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    shrinking = CAPSExtractor(compact.source, device="cpu", max_size=200)
    image = shifted_pair[0][:40, :300]
    points = np.array([[3.0, 20.0], [150.3, 39.2], [290.0, 5.0]], dtype=np.float32)
    whole = np.asarray(shrinking.describe(image, points, orientation="any"))
    monkeypatch.setattr("capsdesc.models.tiling._TILE", 100)
    np.testing.assert_allclose(shrinking.describe(image, points, orientation="any"), whole, atol=1e-5)
    np.testing.assert_allclose(described(shrinking, image, points), whole[0, 0], atol=1e-5)


def test_only_what_points_depend_on_is_computed(compact: CAPSExtractor) -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 1000, 3), dtype=np.uint8)
    points = np.array([[700.0, 3.0], [701.0, 20.0], [702.5, 38.0]], dtype=np.float32)
    whole, parts, shapes = whole_and_parts(compact, image, points)
    np.testing.assert_allclose(parts, whole, atol=1e-5)
    assert len(shapes) == 1
    assert shapes[0][1] < 350


def test_the_papers_network_sees_the_whole_image(
    extractors: Mapping[str, CAPSExtractor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its upsampling and its cells depend on the image's size, so no part is like the whole."""
    monkeypatch.setattr("capsdesc.models.tiling._TILE", 64)
    image = np.random.default_rng(0).integers(0, 256, (33, 150, 3), dtype=np.uint8)
    points = np.array([[3.0, 3.0], [140.0, 30.0]], dtype=np.float32)
    whole, parts, shapes = whole_and_parts(extractors["paper"], image, points)
    np.testing.assert_allclose(parts, whole, atol=1e-4)
    assert shapes == [(33, 150)]


# max_size


def test_max_size_is_resizing_by_hand(caps: CAPSExtractor, photo: Pixels, points: Array) -> None:
    shrinking = CAPSExtractor(caps.source, device="cpu", max_size=100)
    # The longer edge, 150, becomes 100; pixel edges scale, and centres lie half a pixel inside.
    width, height = 100, 80
    smaller = cv2.resize(photo.astype(np.float32) / 255, (width, height), interpolation=cv2.INTER_AREA)
    tensor = torch.from_numpy(smaller).permute(2, 0, 1)
    smaller_points = (points.astype(np.float64) + 0.5) * (width / 150, height / 120) - 0.5
    np.testing.assert_allclose(described(shrinking, photo, points), described(caps, tensor, smaller_points), atol=1e-4)
    coarse, fine = shrinking.dense(photo).coarse.values, shrinking.dense(photo).fine.values
    assert coarse.shape[2:] == (5, 7)
    assert fine.shape[2:] == (20, 25)


def test_max_size_leaves_smaller_images_alone(caps: CAPSExtractor, photo: Pixels, points: Array) -> None:
    for max_size in (150, 1000):
        same = CAPSExtractor(caps.source, device="cpu", max_size=max_size)
        np.testing.assert_array_equal(described(same, photo, points), described(caps, photo, points))


def test_max_size_keeps_the_coordinates_of_the_image(compact: CAPSExtractor, shifted_pair: ShiftedPair) -> None:
    image0, image1, shift = shifted_pair
    halving = CAPSExtractor(compact.source, device="cpu", max_size=160)
    features = halving.extract(image0, 50)
    assert features.image_size == (320, 240)
    np.testing.assert_array_equal(features.keypoints, compact.extract(image0, 50).keypoints)
    # The centres of coarse cells, 16 i in the halved image, are at 32 i + 0.5 in the original.
    queries = (np.mgrid[4:8, 3:6].reshape(2, -1).T * 32 + 0.5).astype(np.float32)
    located = halving.locate(queries, image0, image1)
    assert np.median(np.linalg.norm(located.points - (queries + shift), axis=1)) < 0.5


@pytest.mark.parametrize("shape", [(3, 400), (400, 3)])
def test_max_size_of_an_extremely_long_image(compact: CAPSExtractor, shape: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    ends = np.array([[0, 0], [shape[1] - 1, shape[0] - 1]])
    descriptors = described(CAPSExtractor(compact.source, device="cpu", max_size=50), image, ends)
    assert np.isfinite(descriptors).all()
    assert not np.allclose(descriptors[0], descriptors[1], atol=1e-3)


# detect and extract


def test_detection_is_the_same_every_time_and_strongest_first(compact: CAPSExtractor, photo: Pixels) -> None:
    first, again = compact.detect(photo), compact.detect(photo.copy())
    assert len(first) > 100
    for name in ("points", "scores", "scales", "angles"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
    assert (np.diff(np.asarray(first.scores)) <= 0).all()


@pytest.mark.parametrize("count", [0, 1, 30])
def test_detection_keeps_the_strongest(compact: CAPSExtractor, photo: Pixels, count: int) -> None:
    some = compact.detect(photo, max_keypoints=count)
    assert len(some) == count
    np.testing.assert_array_equal(some.points, compact.detect(photo).points[:count])
    assert len(compact.extract(photo, max_keypoints=count)) == count


def test_mask_keeps_keypoints_out(compact: CAPSExtractor, photo: Pixels) -> None:
    mask = np.zeros((120, 150), dtype=bool)
    mask[:, :75] = True
    everywhere = np.asarray(compact.detect(photo).points)
    left = everywhere[np.rint(everywhere[:, 0]) < 75]
    assert 0 < len(left) < len(everywhere)
    forms: list[Any] = [mask, mask.astype(np.uint8) * 255, torch.from_numpy(mask)]
    for form in forms:
        np.testing.assert_array_equal(compact.detect(photo, mask=form).points, left)
        np.testing.assert_array_equal(compact.extract(photo, mask=form).keypoints, left)
    assert len(compact.extract(photo, mask=np.zeros_like(mask))) == 0


def test_features_of_an_image(caps: CAPSExtractor, photo: Pixels, tmp_path: Path) -> None:
    features = caps.extract(photo, max_keypoints=40)
    keypoints = caps.detect(photo, max_keypoints=40)
    assert len(features) == 40
    assert features.image_size == (150, 120)
    np.testing.assert_array_equal(features.descriptors, described(caps, photo, features.keypoints))
    for name, field in (("points", "keypoints"), ("scores", "scores"), ("scales", "scales"), ("angles", "angles")):
        values = getattr(features, field)
        assert isinstance(values, np.ndarray)
        assert values.dtype == np.float32
        np.testing.assert_array_equal(values, getattr(keypoints, name))
    with pytest.raises(dataclasses.FrozenInstanceError):
        features.scores = None  # type: ignore[misc]

    path = tmp_path / "photo.png"
    PIL.Image.fromarray(photo).save(path)
    for image in (path, str(path), PIL.Image.fromarray(photo), as_tensor(photo)):
        same = caps.extract(image, max_keypoints=40)
        assert same.image_size == (150, 120)
        for name in ("keypoints", "descriptors", "scores", "scales", "angles"):
            values = getattr(same, name)
            assert isinstance(values, Tensor if isinstance(image, Tensor) else np.ndarray)
            np.testing.assert_allclose(np.asarray(values), getattr(features, name), atol=1e-5)


def test_image_without_keypoints_has_empty_features(caps: CAPSExtractor) -> None:
    for image in (np.full((40, 50, 3), 90, dtype=np.uint8), np.full((40, 50), 90, dtype=np.uint8)):
        features = caps.extract(image)
        assert len(features) == 0
        assert features.keypoints.shape == (0, 2)
        assert features.descriptors.shape == (0, caps.descriptor_dim)
        assert features.descriptors.dtype == np.float32
        assert features.image_size == (50, 40)
        assert len(match(features, features)) == 0


class Grid:
    """A detector of the user's: points on a grid, without scores; it keeps what it was given."""

    def __init__(self, make: Callable[[Array], Any] = np.asarray) -> None:
        self.make = make

    def detect(self, image: Pixels, max_keypoints: int, mask: Array | None = None) -> Keypoints:
        self.given = (image, max_keypoints, mask)
        x, y = np.meshgrid(np.arange(8, image.shape[1], 16), np.arange(8, image.shape[0], 16))
        return Keypoints(self.make(np.stack([x, y], -1).reshape(-1, 2)[:max_keypoints].astype(np.float32)))


def test_own_detector(compact: CAPSExtractor, photo: Pixels) -> None:
    detector = Grid()
    own = CAPSExtractor(compact.source, device="cpu", detector=detector)
    mask = np.ones((120, 150), dtype=bool)
    features = own.extract(as_tensor(photo), 5, mask)
    image, max_keypoints, given_mask = detector.given
    np.testing.assert_array_equal(image, photo)
    assert max_keypoints == 5
    assert given_mask is mask
    assert features.keypoints.tolist() == [[8, 8], [24, 8], [40, 8], [56, 8], [72, 8]]
    assert isinstance(features.keypoints, Tensor)
    assert features.scores is None
    assert features.scales is None
    assert features.angles is None


@pytest.mark.parametrize("requires_grad", [False, True])
def test_own_detector_in_torch(compact: CAPSExtractor, photo: Pixels, requires_grad: bool) -> None:
    detector = Grid(lambda points: torch.tensor(points, requires_grad=requires_grad))
    features = CAPSExtractor(compact.source, device="cpu", detector=detector).extract(photo, 5)
    assert isinstance(features.keypoints, np.ndarray)
    assert isinstance(features.descriptors, np.ndarray)
    np.testing.assert_array_equal(features.descriptors, described(compact, photo, features.keypoints))


def test_own_detector_that_leaves_the_image(compact: CAPSExtractor, photo: Pixels) -> None:
    detector = Grid(lambda points: points + 1000)
    with pytest.raises(ValueError, match=r"keypoints: 5 of 5 lie outside the image of 150 x 120"):
        CAPSExtractor(compact.source, device="cpu", detector=detector).extract(photo, 5)


# locate


def cell_centres() -> npt.NDArray[np.float32]:
    """(35, 2) points of the first image, far enough from the borders that both images show their surroundings."""
    return np.mgrid[112:224:16, 96:176:16].reshape(2, -1).T.astype(np.float32)


def test_located_points_are_where_the_shift_takes_them(compact: CAPSExtractor, shifted_pair: ShiftedPair) -> None:
    image0, image1, shift = shifted_pair
    located = compact.locate(cell_centres(), image0, image1)
    assert isinstance(located.points, np.ndarray)
    assert located.points.dtype == located.std.dtype == np.float32
    assert located.points.shape == (35, 2)
    assert located.std.shape == (35,)
    assert len(located) == 35
    np.testing.assert_allclose(located.points, cell_centres() + shift, atol=0.2)
    assert np.asarray(located.std).max() < 1


def test_the_deviation_is_large_where_nothing_can_be_told(compact: CAPSExtractor, shifted_pair: ShiftedPair) -> None:
    flat = np.full((240, 320, 3), 120, dtype=np.uint8)
    located = compact.locate(cell_centres(), shifted_pair[0], flat)
    # A uniform distribution over the window of +-0.125 (20 and 15 px half edges) deviates by 10 px.
    assert np.median(np.asarray(located.std)) > 4


def test_locating_is_the_search_of_the_paper(
    extractors: Mapping[str, CAPSExtractor], shifted_pair: ShiftedPair
) -> None:
    """Coarse argmax over the whole image, then the moments of a softmax within a window of the fine map (numpy)."""
    caps = extractors["paper"]
    image0, image1 = shifted_pair[0][:160, :208], shifted_pair[1][:144, :240]
    queries = np.random.default_rng(3).uniform((0, 0), (207, 159), (40, 2)).astype(np.float32)
    dense0, dense1 = caps.dense(image0), caps.dense(image1)

    def positions(feature_map: FeatureMap) -> Array:
        rows, columns = np.indices(feature_map.values.shape[-2:])
        return np.stack([columns, rows], -1).reshape(-1, 2) * feature_map.scale + feature_map.offset

    def similarities(query: FeatureMap, target: FeatureMap) -> Array:
        values = target.values[0].numpy().astype(np.float64).reshape(target.values.shape[1], -1)
        return bilinear(query, queries) @ values

    best = similarities(dense0.coarse, dense1.coarse).argmax(axis=1)
    center = positions(dense1.coarse)[best]
    cells = positions(dense1.fine)
    radius = 0.125 * (np.array([240, 144]) - 1) / 2
    logits = similarities(dense0.fine, dense1.fine)
    logits[(np.abs(cells - center[:, None]) > radius).any(axis=2)] = -np.inf
    probability = np.exp(logits - logits.max(axis=1, keepdims=True))
    probability /= probability.sum(axis=1, keepdims=True)
    expected = probability @ cells
    variance = (probability[..., None] * (cells - expected[:, None]) ** 2).sum(axis=1)

    located = caps.locate(queries, image0, image1)
    np.testing.assert_allclose(located.points, expected, atol=0.02)
    np.testing.assert_allclose(located.std, np.sqrt(variance.mean(axis=1)), atol=0.02)
    assert np.ptp(np.asarray(located.std)) > 1


def test_locating_in_torch(compact: CAPSExtractor, shifted_pair: ShiftedPair) -> None:
    image0, image1, _ = shifted_pair
    expected = compact.locate(cell_centres(), image0, image1)
    located = compact.locate(torch.from_numpy(cell_centres()).double(), image0, image1)
    for values, same in ((located.points, expected.points), (located.std, expected.std)):
        assert isinstance(values, Tensor)
        assert values.dtype == torch.float32
        np.testing.assert_array_equal(values.numpy(), same)
    for form in (Keypoints(cell_centres()), Keypoints(cell_centres()).to_cv2()):
        np.testing.assert_array_equal(compact.locate(form, image0, image1).points, expected.points)


def test_locating_nothing(compact: CAPSExtractor, photo: Pixels) -> None:
    located = compact.locate(np.zeros((0, 2)), photo, photo)
    assert isinstance(located.points, np.ndarray)
    assert located.points.shape == (0, 2)
    assert located.std.shape == (0,)
    assert isinstance(compact.locate(torch.zeros(0, 2), photo, photo).points, Tensor)
    for images, name in (((photo[:0], photo), "image0"), ((photo, photo[:0]), "image1")):
        with pytest.raises(ValueError, match=f"{name} is empty"):
            compact.locate(np.zeros((0, 2)), *images)


def test_locating_in_parts_changes_nothing(
    compact: CAPSExtractor, shifted_pair: ShiftedPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    image0, image1, _ = shifted_pair
    whole = compact.locate(cell_centres(), image0, image1)
    for floats in (1, 4 * 80 * 60):
        monkeypatch.setattr("capsdesc.describe.extractor._LOCATE_FLOATS", floats)
        parts = compact.locate(cell_centres(), image0, image1)
        np.testing.assert_allclose(parts.points, whole.points, atol=1e-3)
        np.testing.assert_allclose(parts.std, whole.std, atol=1e-3)


def test_locating_points_outside_is_refused(compact: CAPSExtractor, photo: Pixels) -> None:
    # Inside image1 but not inside image0, where they are.
    larger = np.zeros((300, 300, 3), dtype=np.uint8)
    with pytest.raises(ValueError, match=r"points: 1 of 2 lie outside the image of 150 x 120 px"):
        compact.locate(np.array([[1.0, 1.0], [160.0, 10.0]]), photo, larger)


# Tiny images


@pytest.mark.parametrize("shape", TINY)
def test_tiny_images(caps: CAPSExtractor, photo: Pixels, shape: tuple[int, int]) -> None:
    height, width = shape
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    corners = np.array([[0, 0], [width - 1, height - 1], [-0.5, -0.5], [width - 0.5, height - 0.5]])
    descriptors = described(caps, image, corners)
    assert np.isfinite(descriptors).all()
    np.testing.assert_allclose(descriptors, expected_descriptors(caps, image, corners), atol=1e-5)
    assert caps.extract(image).image_size == (width, height)
    assert np.isfinite(caps.locate(corners, image, photo).points).all()
    in_tiny = np.asarray(caps.locate(np.array([[50.0, 50.0]]), photo, image).points)[0]
    # The last cell of stride 16 may lie beyond the last pixel, but by less than a cell.
    assert ((in_tiny >= -0.5) & (in_tiny < np.array([width, height]) + 16)).all()


# Zero points, one point


def test_no_keypoints_is_no_error(caps: CAPSExtractor, photo: Pixels) -> None:
    empties: list[Any] = [
        np.zeros((0, 2)),
        np.zeros(0),
        [],
        (),
        torch.zeros(0, 2),
        Keypoints(np.zeros((0, 2), np.float32)),
    ]
    for empty in empties:
        descriptors = caps.describe(photo, empty)
        assert descriptors.shape == (0, caps.descriptor_dim)
        assert np.asarray(descriptors).dtype == np.float32
    with pytest.raises(ValueError, match="image"):
        caps.describe(photo[:, :0], np.zeros((0, 2)))
    assert described(caps, photo, np.array([[3.0, 4.0]])).shape == (1, caps.descriptor_dim)


# What is refused

NAN_IMAGE = torch.full((3, 8, 8), float("nan"))
UINT8 = np.zeros((40, 50, 3), dtype=np.uint8)

BAD_IMAGES: dict[str, tuple[Any, type[Exception], str]] = {
    "one channel": (UINT8[..., :1], ValueError, r"shape \(40, 50, 1\)"),
    "two channels": (UINT8[..., :2], ValueError, r"shape \(40, 50, 2\)"),
    "four channels": (np.zeros((40, 50, 4), dtype=np.uint8), ValueError, r"shape \(40, 50, 4\)"),
    "channels first": (np.zeros((3, 40, 50), dtype=np.uint8), ValueError, r"shape \(3, 40, 50\)"),
    "a batch": (UINT8[None], ValueError, r"shape \(1, 40, 50, 3\)"),
    "one dimension": (UINT8[0, 0], ValueError, r"shape \(3,\)"),
    "no rows": (UINT8[:0], ValueError, "empty"),
    "no columns": (UINT8[:, :0], ValueError, "empty"),
    "16 bits": (UINT8.astype(np.uint16), TypeError, "uint16"),
    "floats": (UINT8.astype(np.float32), TypeError, "float32"),
    "booleans": (UINT8.astype(bool), TypeError, "bool"),
    "integer tensor": (torch.zeros(3, 40, 50, dtype=torch.uint8), TypeError, "uint8"),
    "channels last in torch": (torch.zeros(40, 50, 3), ValueError, r"shape \(40, 50, 3\)"),
    "grey tensor": (torch.zeros(1, 40, 50), ValueError, r"shape \(1, 40, 50\)"),
    "batch in torch": (torch.zeros(1, 3, 40, 50), ValueError, r"shape \(1, 3, 40, 50\)"),
    "empty tensor": (torch.zeros(3, 0, 50), ValueError, "empty"),
    "tensor in 0..255": (torch.full((3, 40, 50), 200.0), ValueError, "0..1"),
    "negative tensor": (torch.full((3, 40, 50), -1.0), ValueError, "0..1"),
    "NaN": (NAN_IMAGE, ValueError, "NaN"),
    "infinity": (torch.full((3, 40, 50), float("inf")), ValueError, "0..1"),
    "nothing": (None, TypeError, "NoneType"),
    "a number": (7, TypeError, "int"),
    "bytes": (b"image.png", TypeError, "bytes"),
}


@pytest.mark.parametrize("kind", BAD_IMAGES)
def test_wrong_images_are_refused_everywhere(compact: CAPSExtractor, kind: str) -> None:
    image, error, message = BAD_IMAGES[kind]
    point = np.array([[1.0, 1.0]])
    for call in (
        lambda: compact.describe(image, point),
        lambda: compact.detect(image),
        lambda: compact.extract(image),
        lambda: compact.dense(image),
    ):
        with pytest.raises(error, match=rf"(?s)\bimage\b.*{message}"):
            call()
    with pytest.raises(error, match=rf"(?s)image0.*{message}"):
        compact.locate(point, image, UINT8)
    with pytest.raises(error, match=rf"(?s)image1.*{message}"):
        compact.locate(point, UINT8, image)
    with pytest.raises(error, match=rf"(?s)image\[1\].*{message}"):
        compact.describe([UINT8, image], [point, point])


def test_files_that_are_no_image_are_named(compact: CAPSExtractor, photo: Pixels, tmp_path: Path) -> None:
    whole, truncated, text, missing = (tmp_path / name for name in ("a.png", "b.png", "c.png", "d.png"))
    PIL.Image.fromarray(photo).save(whole)
    truncated.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    text.write_text("no image")
    point = np.array([[1.0, 1.0]])
    for path in (truncated, text, tmp_path):
        with pytest.raises(ValueError, match=re.escape(path.name)):
            compact.describe(path, point)
        with pytest.raises(ValueError, match=re.escape(path.name)):
            compact.extract(path)
        with pytest.raises(ValueError, match=re.escape(path.name)):
            compact.describe(path, point[:0])
    for call in (
        lambda: compact.describe(missing, point),
        lambda: compact.describe(str(missing), point[:0]),
        lambda: compact.extract(missing),
        lambda: compact.locate(point, whole, missing),
    ):
        with pytest.raises(FileNotFoundError, match=r"d\.png"):
            call()


@pytest.mark.parametrize(
    ("keypoints", "error", "message"),
    [
        (np.zeros((4, 3)), ValueError, r"\(N, 2\).*\(4, 3\)"),
        (np.zeros((2, 4)), ValueError, r"\(2, 4\)"),
        (np.zeros((1, 4, 2)), ValueError, r"\(1, 4, 2\)"),
        (np.array([1.0, 2.0]), ValueError, r"\(2,\)"),
        (torch.zeros(4, 3), ValueError, r"\(4, 3\)"),
        (np.array([[1.0, np.nan]]), ValueError, "finite"),
        (np.array([[np.inf, 1.0]]), ValueError, "finite"),
        (torch.tensor([[1.0, float("nan")]]), ValueError, "finite"),
        (np.array([[1.0, 1.0], [50.0, 1.0]]), ValueError, r"1 of 2 lie outside.*index 1, \(50, 1\)"),
        (np.array([[1.0, 39.6]]), ValueError, "1 of 1 lie outside"),
        (torch.tensor([[-0.6, 1.0]]), ValueError, "1 of 1 lie outside"),
        (np.array([["a", "b"]]), TypeError, "numbers"),
        (np.ones((1, 2), dtype=bool), TypeError, "bool"),
        (np.ones((1, 2), dtype=complex), TypeError, "complex"),
        ([(1.0, 2.0)], TypeError, "list"),
        ("points", TypeError, "str"),
        (None, TypeError, "NoneType"),
        (3, TypeError, "int"),
    ],
)
def test_wrong_keypoints_are_refused(
    compact: CAPSExtractor, keypoints: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=rf"keypoints.*{message}"):
        compact.describe(UINT8, keypoints)
    with pytest.raises(error, match=rf"points.*{message}"):
        compact.locate(keypoints, UINT8, UINT8)
    with pytest.raises(error, match=rf"keypoints\[1\].*{message}"):
        compact.describe([UINT8, UINT8], [np.zeros((1, 2)), keypoints])


def test_lists_that_do_not_fit_are_refused(compact: CAPSExtractor) -> None:
    point = np.array([[1.0, 1.0]])
    wrong: list[Any] = [[point], [point] * 3, [], point, np.zeros((2, 1, 2)), None]
    for keypoints in wrong:
        with pytest.raises((ValueError, TypeError), match=r"2 images keypoints"):
            compact.describe([UINT8, UINT8], keypoints)
    with pytest.raises(TypeError, match="keypoints"):
        compact.describe(UINT8, [point])  # type: ignore[list-item]


@pytest.mark.parametrize("count", [-1, 1.5, "many", None, True])
def test_wrong_numbers_of_keypoints_are_refused(compact: CAPSExtractor, count: Any) -> None:
    for call in (compact.detect, compact.extract):
        with pytest.raises((ValueError, TypeError), match="max_keypoints"):
            call(UINT8, count)


@pytest.mark.parametrize(
    ("mask", "error"),
    [
        (np.ones((50, 40), dtype=bool), ValueError),
        (np.ones((40, 50, 1), dtype=bool), ValueError),
        (np.ones((40, 50)), TypeError),
        (torch.ones(40, 50), TypeError),
        ("left", TypeError),
    ],
)
def test_wrong_masks_are_refused(compact: CAPSExtractor, mask: Any, error: type[Exception]) -> None:
    for call in (compact.detect, compact.extract):
        with pytest.raises(error, match="mask"):
            call(UINT8, mask=mask)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_size", 0),
        ("max_size", -5),
        ("max_size", 640.0),
        ("max_size", "640"),
        ("max_size", True),
        ("dtype", torch.float64),
        ("dtype", torch.int8),
        ("dtype", np.float32),
        ("dtype", "bfloat16"),
        ("device", "gpu"),
        ("device", "cuda:99"),
        ("device", 3.5),
        ("detector", "nosuch"),
        ("detector", Grid),
    ],
)
def test_wrong_settings_are_refused(model_folders: Mapping[str, Path], name: str, value: Any) -> None:
    for make in (CAPSExtractor, CAPSExtractor.from_pretrained):
        with pytest.raises((ValueError, TypeError), match=name):
            make(model_folders["compact"], **{name: value})


def test_settings_are_by_keyword(model_folders: Mapping[str, Path]) -> None:
    with pytest.raises(TypeError, match="positional"):
        CAPSExtractor(model_folders["compact"], "sift")  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("weights", "error"),
    [
        ("nosuchmodel", ValueError),
        ("", ValueError),
        ("./nosuchfolder", FileNotFoundError),
        (Path("nosuch.safetensors"), FileNotFoundError),
        (7, TypeError),
    ],
)
def test_unknown_weights_are_refused(weights: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="weights"):
        CAPSExtractor(weights)


# Where the weights come from


def test_descriptors_without_reliability_tell_what_a_point_looks_like(photo: Pixels, tmp_path: Path) -> None:
    config = ModelConfig(fine_dim=15, reliability=True)
    save_pretrained(tmp_path, config, build_network(config).state_dict())
    some = np.array([[10.0, 20.0], [33.5, 41.0]])
    plain = CAPSExtractor(tmp_path, reliability=False)
    full = CAPSExtractor(tmp_path)
    assert (full.descriptor_dim, plain.descriptor_dim) == (128 + 15 + 1, 128 + 15)
    with_it, without = described(full, photo, some), described(plain, photo, some)
    np.testing.assert_allclose(np.linalg.norm(with_it, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(without, axis=1), 1, atol=1e-6)
    looks = with_it[:, :-1] / np.linalg.norm(with_it[:, :-1], axis=1, keepdims=True)
    np.testing.assert_allclose(looks, without, atol=1e-6)
    # A model that has none has none.
    bare = ModelConfig(fine_dim=15)
    save_pretrained(tmp_path / "bare", bare, build_network(bare).state_dict())
    assert not CAPSExtractor(tmp_path / "bare").reliability
    assert CAPSExtractor(tmp_path / "bare", reliability=False).descriptor_dim == 128 + 15


@pytest.mark.parametrize(("amx", "fastest"), [(True, torch.bfloat16), (False, torch.float32)])
def test_cpus_with_amx_compute_in_bfloat16(
    compact: CAPSExtractor,
    photo: Pixels,
    points: Array,
    amx: bool,
    fastest: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: amx)
    monkeypatch.setattr("capsdesc.describe.extractor.describing_dtype", describing_dtype)
    default = CAPSExtractor(compact.source, device="cpu")
    assert default.dtype == fastest
    expected = CAPSExtractor(compact.source, device="cpu", dtype=fastest)
    np.testing.assert_array_equal(described(default, photo, points), described(expected, photo, points))
    assert CAPSExtractor(compact.source, device="cpu", dtype=torch.float32).dtype == torch.float32
    assert describing_dtype(torch.device("cuda")) == torch.float32


def test_what_an_extractor_says_of_itself(model_folders: Mapping[str, Path]) -> None:
    folder = model_folders["paper"]
    caps = CAPSExtractor(folder, device="cpu", dtype=torch.bfloat16)
    assert caps.source == str(folder)
    assert caps.config == ModelConfig.paper("resnet18")
    assert caps.descriptor_dim == 256
    assert caps.device == torch.device("cpu")
    text = repr(caps)
    assert text.startswith("CAPSExtractor(")
    for part in (str(folder), "cpu", "bfloat16"):
        assert part in text
    default = CAPSExtractor(folder)
    assert default.dtype == torch.float32
    assert default.device.type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert default.max_size is None


def test_a_file_and_its_folder_are_the_same_model(
    model_folders: Mapping[str, Path], photo: Pixels, points: Array
) -> None:
    folder = model_folders["compact"]
    expected = described(CAPSExtractor(folder, device="cpu"), photo, points)
    for weights in (str(folder), folder / "model.safetensors"):
        for make in (CAPSExtractor, CAPSExtractor.from_pretrained):
            np.testing.assert_array_equal(described(make(weights, device="cpu"), photo, points), expected)


def test_from_pretrained_reads_the_cache_of_the_hub(
    model_folders: Mapping[str, Path], tmp_path: Path, photo: Pixels
) -> None:
    """The hub's own cache layout, made by hand: a snapshot for each commit, and what each branch points to."""
    repository = tmp_path / "models--org--name"
    commits = {"main": "0" * 39 + "1", "old": "0" * 39 + "2"}
    for (revision, commit), model in zip(commits.items(), ("compact", "paper"), strict=True):
        shutil.copytree(model_folders[model], repository / "snapshots" / commit)
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / revision).write_text(commit)
    detector = Grid()
    offline: dict[str, Any] = {"cache_dir": tmp_path, "local_files_only": True, "device": "cpu"}
    caps = CAPSExtractor.from_pretrained(
        "org/name", **offline, detector=detector, dtype=torch.bfloat16, max_size=64, token=False
    )
    assert type(caps) is CAPSExtractor
    assert caps.source == f"org/name@{commits['main']}"
    assert caps.config == ModelConfig()
    assert (caps.dtype, caps.max_size) == (torch.bfloat16, 64)
    assert caps.detector is detector
    assert len(caps.extract(photo, 3)) == 3
    for old in (
        CAPSExtractor.from_pretrained("org/name", revision="old", **offline),
        CAPSExtractor.from_pretrained("org/name@old", **offline),
        CAPSExtractor.from_pretrained("org/name", revision=commits["old"], **offline),
    ):
        assert old.source == f"org/name@{commits['old']}"
        assert old.config == ModelConfig.paper("resnet18")
    for missing in ("org/name@nosuch", "org/other"):
        with pytest.raises(FileNotFoundError, match="local_files_only"):
            CAPSExtractor.from_pretrained(missing, **offline)
    with pytest.raises(ValueError, match="revision"):
        CAPSExtractor.from_pretrained(model_folders["compact"], revision="main")


def test_a_subclass_comes_back_from_pretrained(model_folders: Mapping[str, Path]) -> None:
    class Mine(CAPSExtractor):
        pass

    assert type(Mine.from_pretrained(model_folders["compact"])) is Mine


# The bundled model


WITHOUT_NETWORK = """
import socket, sys

def refuse(*arguments, **settings):
    sys.exit("the network was touched")

socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = socket.create_connection = refuse

import numpy as np
from capsdesc import CAPSExtractor

caps = CAPSExtractor(device="cpu")
image = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
print(caps.source, caps.describe(image, np.array([[40.0, 30.0]])).shape, len(caps.extract(image, 5)))
"""


def test_the_default_never_touches_the_network(tmp_path: Path) -> None:
    package = Path(capsdesc.__file__).parents[1]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment |= {"PYTHONPATH": str(package), "HF_HOME": str(tmp_path / "empty")}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_NETWORK], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split(maxsplit=1)[0] == "bundled:compact"
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def default() -> CAPSExtractor:
    return CAPSExtractor(device="cpu")


def warp(image: Pixels) -> tuple[Pixels, Array]:
    """The image turned by 12 degrees, shrunk by a tenth and tilted a little, and the homography that does it."""
    turn = np.vstack([cv2.getRotationMatrix2D((160, 120), 12, 0.9), [0, 0, 1]])
    H = np.array([[1, 0, 0], [0, 1, 0], [2e-4, -1e-4, 1]]) @ turn
    return cv2.warpPerspective(image, H, (320, 240), flags=cv2.INTER_AREA).astype(np.uint8), H


def correct(matches: Any, features0: Any, features1: Any, H: Array) -> npt.NDArray[np.bool_]:
    """Which matches are right within 3 px."""
    indices = np.asarray(matches.indices)
    x, y = features0.keypoints[indices[:, 0]].T
    mapped = H @ np.stack([x, y, np.ones_like(x)])
    errors = np.linalg.norm((mapped[:2] / mapped[2]).T - features1.keypoints[indices[:, 1]], axis=1)
    return np.asarray(errors <= 3)


def test_the_default_matches_an_image_to_itself_moved(default: CAPSExtractor, shifted_pair: ShiftedPair) -> None:
    image0, image1, shift = shifted_pair
    translation = np.array([[1, 0, shift[0]], [0, 1, shift[1]], [0, 0, 1]])
    warped, H = warp(image0)
    features0 = default.extract(image0, 500)
    for image, motion, found in ((image1, translation, 250), (warped, H, 100)):
        features1 = default.extract(image, 500)
        matches = match(features0, features1)
        right = correct(matches, features0, features1, motion)
        assert right.sum() >= found
        assert right.mean() >= 0.9
        order = np.random.default_rng(0).permutation(len(features1))
        scrambled = dataclasses.replace(features1, descriptors=features1.descriptors[order])
        assert correct(match(features0, scrambled), features0, scrambled, motion).mean() < 0.1


def test_the_default_locates_points_between_the_pixels(default: CAPSExtractor, shifted_pair: ShiftedPair) -> None:
    image0, image1, shift = shifted_pair
    queries = np.random.default_rng(4).uniform((110, 90), (230, 180), (100, 2))
    located = default.locate(queries, image0, image1)
    errors = np.linalg.norm(located.points - (queries + shift), axis=1)
    assert np.median(errors) < 2
    assert np.mean(errors < 8) >= 0.9


def test_the_default_has_a_name(default: CAPSExtractor, photo: Pixels, points: Array) -> None:
    named = CAPSExtractor("compact", device="cpu")
    assert named.source == default.source == "bundled:compact"
    assert "bundled:compact" in repr(named)
    np.testing.assert_array_equal(described(named, photo, points), described(default, photo, points))
