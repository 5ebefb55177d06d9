"""Descriptors, detections and locations: what holds for every image and all points."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from conftest import texture
from fuzzing import anything, examples, result_or_refusal
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from capsdesc import CAPSExtractor, Keypoints, match

Array = npt.NDArray[Any]

TEXTURE = texture(80, 100, 5)
kinds = st.sampled_from(["compact", "paper"])
sizes = st.tuples(st.integers(1, 80), st.integers(1, 100))


@pytest.fixture(scope="module")
def extractors(model_folders: Mapping[str, Path]) -> dict[str, CAPSExtractor]:
    return {kind: CAPSExtractor(folder) for kind, folder in model_folders.items()}


def some_points(size: tuple[int, int], seed: int, count: int) -> Array:
    """Anywhere in an image of this height and width, its border half a pixel out included."""
    height, width = size
    corners = np.array([[-0.5, -0.5], [width - 0.5, height - 0.5], [width - 1, 0], [0, height - 1]])
    inside = np.random.default_rng(seed).uniform((-0.5, -0.5), (width - 0.5, height - 0.5), (count, 2))
    return np.concatenate([corners, inside])[:count].astype(np.float32)


@examples(12)
@given(kinds, sizes, st.integers(0, 2**32 - 1), st.integers(0, 20))
def test_descriptors_belong_to_their_points(
    extractors: dict[str, CAPSExtractor], kind: str, size: tuple[int, int], seed: int, count: int
) -> None:
    extractor = extractors[kind]
    image, points = TEXTURE[: size[0], : size[1]], some_points(size, seed, count)
    descriptors = np.asarray(extractor.describe(image, points))
    assert descriptors.shape == (count, extractor.descriptor_dim)
    assert descriptors.dtype == np.float32
    assert np.isfinite(descriptors).all()
    if kind == "compact":
        np.testing.assert_allclose(np.linalg.norm(descriptors, axis=1), 1, atol=1e-5)
    order = np.random.default_rng(seed).permutation(count)
    scale = 1e-5 * max(1.0, float(np.abs(descriptors).max(initial=0)))
    np.testing.assert_allclose(extractor.describe(image, points[order]), descriptors[order], atol=scale)
    in_torch = extractor.describe(image, torch.from_numpy(points))
    assert isinstance(in_torch, torch.Tensor)
    np.testing.assert_allclose(in_torch.numpy(), descriptors, atol=scale)
    ones, twos = extractor.describe([image, image], [points[:1], points])
    np.testing.assert_allclose(ones, descriptors[:1], atol=scale)
    np.testing.assert_allclose(twos, descriptors, atol=scale)
    if count > 4:
        assert len(match(descriptors, descriptors)) > 0


@examples(12)
@given(kinds, sizes, sizes, st.integers(0, 2**32 - 1), st.integers(0, 8))
def test_locations_are_in_the_other_image(
    extractors: dict[str, CAPSExtractor],
    kind: str,
    size0: tuple[int, int],
    size1: tuple[int, int],
    seed: int,
    count: int,
) -> None:
    image0, image1 = TEXTURE[: size0[0], : size0[1]], TEXTURE[: size1[0], : size1[1]]
    located = extractors[kind].locate(some_points(size0, seed, count), image0, image1)
    points, std = np.asarray(located.points), np.asarray(located.std)
    assert points.shape == (count, 2)
    assert std.shape == (count,)
    assert np.isfinite(points).all()
    assert (std >= 0).all()
    # The centres of the outermost cells of stride 4 or 16 may lie in the padding.
    assert (points >= -0.5).all()
    assert (points <= np.array(size1[::-1]) + 16).all()


@examples(15)
@given(sizes, st.integers(0, 60), st.booleans())
def test_detections_are_in_the_image(
    extractors: dict[str, CAPSExtractor], size: tuple[int, int], most: int, masked: bool
) -> None:
    image = TEXTURE[: size[0], : size[1]]
    mask = np.arange(size[1])[None] >= np.full((size[0], 1), size[1] // 2) if masked else None
    found = extractors["compact"].detect(image, most, mask)
    points, scores = np.asarray(found.points), np.asarray(found.scores)
    assert len(found) <= most
    assert (np.diff(scores) <= 0).all()
    assert ((points >= -0.5) & (points <= np.array(size[::-1]) - 0.5)).all()
    if masked:
        assert (np.rint(points[:, 0]) >= size[1] // 2).all()
    features = extractors["compact"].extract(image, most, mask)
    np.testing.assert_array_equal(features.keypoints, points)
    assert features.image_size == (size[1], size[0])


@examples(60)
@given(
    arrays.arrays(np.float32, st.tuples(st.integers(0, 6), st.just(2)), elements=st.floats(-1e6, 1e6, width=32)),
    st.integers(0, 2**32 - 1),
)
def test_keypoints_keep_what_they_are_given(points: Array, seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores, scales, angles = rng.uniform(0, 1, (3, len(points))).astype(np.float32)
    keypoints = Keypoints(points, scores, 1 + scales, 360 * angles)
    order = rng.permutation(len(points))
    np.testing.assert_array_equal(keypoints[order].points, points[order])
    back = Keypoints.from_cv2(keypoints.to_cv2())
    for name, value in vars(keypoints).items():
        if len(points):
            np.testing.assert_array_equal(getattr(back, name), value)


wrong_keypoints = st.one_of(
    anything,
    arrays.arrays(arrays.array_dtypes() | arrays.scalar_dtypes(), arrays.array_shapes(min_side=0, max_side=4)),
    arrays.arrays(np.float64, (2, 2)),
    st.just(torch.zeros(2, 2, dtype=torch.complex64)),
)


@pytest.mark.filterwarnings("ignore")
@examples(120)
@given(wrong_keypoints)
def test_whatever_is_no_keypoints_is_refused(extractors: dict[str, CAPSExtractor], wrong: Any) -> None:
    extractor, image = extractors["compact"], TEXTURE[:16, :16]
    result_or_refusal(Keypoints, wrong)
    result_or_refusal(Keypoints, np.zeros((2, 2)), wrong)
    # Nothing is said about what an empty list is.
    if not (isinstance(wrong, list) and not wrong):
        descriptors = result_or_refusal(extractor.describe, image, wrong)
        assert descriptors is None or np.asarray(descriptors).ndim == 2
    result_or_refusal(extractor.describe, wrong, np.zeros((1, 2)))
    result_or_refusal(extractor.describe, [image], wrong)
    result_or_refusal(extractor.describe, image, np.zeros((0, 2)), orientation=wrong)
    result_or_refusal(extractor.detect, image, wrong)
    result_or_refusal(extractor.detect, image, 5, wrong)
