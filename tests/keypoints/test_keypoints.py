"""Keypoints in every accepted form, and SIFT."""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import torch

from capsdesc.keypoints import Detector, Keypoints, SIFTDetector, as_points, check_inside, get_detector
from capsdesc.keypoints.sift import sift_features
from capsdesc.types import ArrayOrTensor

FloatArray = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.uint8]

POINTS = np.array([[1.5, 2.0], [3.25, -0.5], [0.0, 7.0]], np.float32)


def numpy_of(values: ArrayOrTensor | None) -> FloatArray:
    return cast(FloatArray, np.asarray(values))


def cv2_keypoints(points: npt.NDArray[Any] = POINTS) -> list[cv2.KeyPoint]:
    return [cv2.KeyPoint(float(x), float(y), 10.0 + i, 20.0 * i, 0.5 / (i + 1)) for i, (x, y) in enumerate(points)]


def full_keypoints() -> Keypoints:
    column = np.arange(3, dtype=np.float32)
    return Keypoints(POINTS, column + 1, column + 10, column * 90)


# --- as_points


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, np.int32, np.int64, np.uint8])
def test_numpy_points_of_any_number_type(dtype: Any) -> None:
    points = as_points(np.array([[1, 2], [3, 4]], dtype))
    assert isinstance(points, np.ndarray)
    assert points.dtype == np.float32
    np.testing.assert_array_equal(points, [[1, 2], [3, 4]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.int64])
def test_torch_points_stay_in_torch(dtype: torch.dtype) -> None:
    points = as_points(torch.tensor([[1, 2], [3, 4]], dtype=dtype))
    assert isinstance(points, torch.Tensor)
    assert points.dtype == torch.float32
    assert points.tolist() == [[1, 2], [3, 4]]


def test_opencv_points_as_list_and_as_tuple() -> None:
    np.testing.assert_array_equal(as_points(cv2_keypoints()), POINTS)
    np.testing.assert_array_equal(as_points(tuple(cv2_keypoints())), POINTS)


def test_keypoints_give_their_points() -> None:
    np.testing.assert_array_equal(as_points(Keypoints(POINTS)), POINTS)


@pytest.mark.parametrize("empty", [[], (), np.zeros((0, 2)), np.array([]), np.zeros((0, 2), int)])
def test_empty_numpy_forms(empty: Any) -> None:
    points = as_points(empty)
    assert isinstance(points, np.ndarray)
    assert points.shape == (0, 2)
    assert points.dtype == np.float32


def test_empty_torch_form() -> None:
    for empty in (torch.zeros(0, 2), torch.tensor([])):
        points = as_points(empty)
        assert isinstance(points, torch.Tensor)
        assert points.shape == (0, 2)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e39])
def test_points_that_are_not_finite_are_refused(bad: float) -> None:
    for points in (np.array([[1.0, bad]]), torch.tensor([[1.0, bad]], dtype=torch.float64)):
        with pytest.raises(ValueError, match=r"points0.*finite"):
            as_points(points, "points0")
    with pytest.raises(ValueError, match="finite"):
        as_points([cv2.KeyPoint(bad, 1.0, 1.0)])


@pytest.mark.parametrize("shape", [(4, 3), (2,), (1, 4, 2), (0, 3), ()])
def test_points_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    for points in (np.zeros(shape), torch.zeros(shape)):
        with pytest.raises(ValueError, match=r"keypoints must have shape \(N, 2\)"):
            as_points(points)


def test_transposed_points_get_a_hint() -> None:
    with pytest.raises(ValueError, match="transpose"):
        as_points(np.zeros((2, 5)))


@pytest.mark.parametrize(
    "points",
    [
        [(1.0, 2.0)],
        [[1, 2], [3, 4]],
        None,
        "sift",
        {"x": 1},
        np.zeros((2, 2), bool),
        np.zeros((2, 2), complex),
        np.array([["a", "b"]]),
        torch.zeros(2, 2, dtype=torch.bool),
        torch.zeros(2, 2, dtype=torch.complex64),
    ],
)
def test_points_of_another_kind_are_refused(points: Any) -> None:
    with pytest.raises(TypeError, match="keypoints must be"):
        as_points(points)


# --- check_inside


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_inside_reaches_to_the_outer_edges_of_the_pixels(library: str) -> None:
    corners = np.array([[-0.5, -0.5], [639.5, 479.5], [-0.5, 479.5], [639.5, -0.5]], np.float32)
    outside = np.array([[-0.51, 5], [639.51, 5], [5, -0.51], [5, 479.51]], np.float32)
    convert = torch.from_numpy if library == "torch" else np.asarray
    check_inside(convert(corners), 640, 480)
    check_inside(convert(corners[:0]), 640, 480)
    for point in outside:
        with pytest.raises(ValueError, match=r"points1: 1 of 5 lie outside .* 640 x 480 .* index 4"):
            check_inside(convert(np.vstack([corners, point])), 640, 480, "points1")


def test_outside_points_are_counted() -> None:
    with pytest.raises(ValueError, match=r"2 of 4 .* index 1, \(700, 5\)"):
        check_inside(np.array([[0, 0], [700, 5], [0, 1], [5, -9]], np.float32), 640, 480)


# --- Keypoints


def test_fields_become_float32() -> None:
    keypoints = Keypoints(cast(Any, POINTS.astype(float)), scores=cast(Any, np.arange(3)))
    assert numpy_of(keypoints.points).dtype == np.float32
    assert numpy_of(keypoints.scores).dtype == np.float32
    assert len(keypoints) == 3


def test_keypoints_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        cast(Any, full_keypoints()).points = POINTS


@pytest.mark.parametrize("field", ["scores", "scales", "angles"])
@pytest.mark.parametrize(
    ("values", "error"),
    [
        (np.zeros(2), ValueError),
        (np.zeros((3, 1)), ValueError),
        (np.array([0, 1, np.nan]), ValueError),
        (torch.zeros(3), TypeError),
        ([1, 2, 3], TypeError),
        (np.array(["a", "b", "c"]), TypeError),
    ],
)
def test_wrong_fields_are_refused(field: str, values: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=field):
        Keypoints(POINTS, **{field: values})


def test_wrong_points_are_refused() -> None:
    with pytest.raises(ValueError, match=r"points.*\(3, 3\)"):
        Keypoints(np.zeros((3, 3), np.float32))


@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize(
    ("index", "rows"),
    [
        (slice(1, None), [1, 2]),
        (np.array([True, False, True]), [0, 2]),
        (torch.tensor([True, False, True]), [0, 2]),
        (np.array([2, 0, 0]), [2, 0, 0]),
        ([2, 1], [2, 1]),
        ([], []),
        (1, [1]),
        (-1, [2]),
    ],
)
def test_selection_takes_every_field(library: str, index: Any, rows: list[int]) -> None:
    full = full_keypoints()
    if library == "torch":
        full = Keypoints(*(torch.from_numpy(numpy_of(values)) for values in vars(full).values()))
    selected = full[index]
    assert type(selected.points) is type(full.points)
    np.testing.assert_array_equal(numpy_of(selected.points), POINTS[rows].reshape(-1, 2))
    for name in ("scores", "scales", "angles"):
        np.testing.assert_array_equal(numpy_of(getattr(selected, name)), numpy_of(getattr(full, name))[rows])
    assert Keypoints(POINTS)[rows].scores is None


def test_iteration_ends() -> None:
    assert [keypoint.points.tolist() for keypoint in cast(Any, full_keypoints())] == [[p] for p in POINTS.tolist()]
    with pytest.raises(IndexError):
        full_keypoints()[3]


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_there_and_back_through_opencv(library: str) -> None:
    full = full_keypoints()
    if library == "torch":
        full = Keypoints(*(torch.from_numpy(numpy_of(values)) for values in vars(full).values()))
    listed = full.to_cv2()
    assert [k.pt for k in listed] == [tuple(p) for p in POINTS.tolist()]
    assert [(k.response, k.size, k.angle) for k in listed] == [(1, 10, 0), (2, 11, 90), (3, 12, 180)]
    back = Keypoints.from_cv2(listed)
    for name in ("points", "scores", "scales", "angles"):
        np.testing.assert_array_equal(numpy_of(getattr(back, name)), numpy_of(getattr(full, name)))


def test_opencv_without_orientation() -> None:
    listed = Keypoints(POINTS).to_cv2()
    assert [(k.response, k.size, k.angle) for k in listed] == [(0, 1, -1)] * 3
    assert Keypoints.from_cv2(listed).angles is None
    assert Keypoints(POINTS[:0]).to_cv2() == []


def test_opencv_empty_and_wrong() -> None:
    empty = Keypoints.from_cv2([])
    assert empty.points.shape == (0, 2)
    assert numpy_of(empty.angles).shape == (0,)
    with pytest.raises(TypeError, match=r"cv2\.KeyPoint"):
        Keypoints.from_cv2(cast(Any, [(1, 2)]))


# --- SIFT


def texture(height: int = 120, width: int = 160, seed: int = 0) -> Pixels:
    """Random colour texture with structure at several scales."""
    rng = np.random.default_rng(seed)
    image = sum(
        np.asarray(cv2.GaussianBlur(rng.normal(size=(height, width, 3)), (0, 0), sigma)) * sigma for sigma in (1, 2, 4)
    )
    pixels: Pixels = np.clip(128 + 120 * np.asarray(image), 0, 255).astype(np.uint8)
    return pixels


def blobs(sigma: float, size: int = 400) -> tuple[Pixels, npt.NDArray[np.float64]]:
    """Gaussian blobs at known places between the pixels, and these places."""
    grid = np.arange(40, size - 30, 50)
    centres = np.stack(np.meshgrid(grid, grid), -1).reshape(-1, 2) + np.random.default_rng(7).uniform(
        -0.5, 0.5, (len(grid) ** 2, 2)
    )
    y, x = np.mgrid[:size, :size]
    image = sum(np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (2 * sigma**2)) for cx, cy in centres)
    gray = np.rint(30 + 180 * np.asarray(image)).astype(np.uint8)
    return np.repeat(gray[..., None], 3, axis=2), centres


def expected_by_brute_force(image: Pixels, mask: Pixels | None = None) -> list[tuple[float, ...]]:
    """OpenCV's keypoints, one per location: (x, y, response, size, angle), strongest first."""
    sift = cv2.SIFT.create()
    best: dict[tuple[float, ...], tuple[float, ...]] = {}
    for k in sift.detect(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), None):
        # OpenCV's own positions are a quarter of a pixel too far right and down.
        x, y = (float(np.float32(value) - np.float32(0.25)) for value in k.pt)
        if mask is not None and mask[int(y + 0.5), int(x + 0.5)] == 0:
            continue
        row = (x, y, k.response, k.size, k.angle)
        known = best.get((x, y))
        if known is None or (-row[2], row[4]) < (-known[2], known[4]):
            best[x, y] = row
    return sorted(best.values(), key=lambda row: (-row[2], row[0], row[1]))


def rows_of(keypoints: Keypoints) -> list[tuple[float, ...]]:
    columns = (keypoints.points, keypoints.scores, keypoints.scales, keypoints.angles)
    return [tuple(row) for row in np.column_stack([numpy_of(values) for values in columns]).tolist()]


# Blobs of these widths are found in the doubled image, at its full and at its half size.
@pytest.mark.parametrize("sigma", [1.5, 3.0, 6.0])
def test_pixel_zero_is_the_centre_of_the_top_left_pixel(sigma: float) -> None:
    image, centres = blobs(sigma)
    points = numpy_of(SIFTDetector().detect(image, 10_000).points)
    nearest = np.argmin(np.linalg.norm(centres[:, None] - points[None], axis=2), axis=1)
    offsets = points[nearest] - centres
    assert np.abs(offsets).max() < 0.15
    assert np.abs(offsets.mean(axis=0)).max() < 0.02


@pytest.mark.parametrize("sigma", [1.5, 3.0])
def test_sift_with_its_own_descriptors_lies_there_too(sigma: float) -> None:
    image, centres = blobs(sigma)
    gray = np.ascontiguousarray(image[..., 0])
    points, descriptors = sift_features(gray, 10_000)
    nearest = np.argmin(np.linalg.norm(centres[:, None] - points[None], axis=2), axis=1)
    assert np.abs((points[nearest] - centres).mean(axis=0)).max() < 0.02
    raw, expected = cv2.SIFT.create().detectAndCompute(gray, np.empty(0, np.uint8))
    assert len({k.pt for k in raw}) < len(raw) == len(points)
    np.testing.assert_array_equal(descriptors, expected)
    strongest, _ = sift_features(gray, 5)
    assert len(strongest) == 5
    empty = sift_features(np.zeros((40, 50), np.uint8), 10)
    assert [array.shape for array in empty] == [(0, 2), (0, 128)]


def test_scale_is_the_diameter_of_the_blob() -> None:
    image, centres = blobs(3.0)
    found = SIFTDetector().detect(image, len(centres))
    # An extremum of the differences of Gaussians lies near the blob's own sigma; OpenCV's size is twice that.
    assert np.abs(np.median(numpy_of(found.scales)) / (2 * 3.0) - 1) < 0.25


@pytest.mark.parametrize("seed", [0, 1])
def test_one_keypoint_per_location_strongest_first(seed: int) -> None:
    image = texture(seed=seed)
    expected = expected_by_brute_force(image)
    found = SIFTDetector().detect(image, 10_000)
    assert len(expected) > 100
    assert rows_of(found) == expected
    raw = cv2.SIFT.create().detect(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), None)
    assert len(raw) > len(found)
    check_inside(found.points, image.shape[1], image.shape[0])


@pytest.mark.parametrize("count", [0, 1, 50])
def test_at_most_max_keypoints(count: int) -> None:
    image = texture()
    found = SIFTDetector().detect(image, count)
    assert rows_of(found) == expected_by_brute_force(image)[:count]
    assert found.points.shape == (count, 2)


def test_equally_strong_keypoints_are_cut_in_a_fixed_order() -> None:
    tile = texture(64, 64, seed=3)
    image = np.tile(tile, (3, 3, 1))
    everything = rows_of(SIFTDetector().detect(image, 100_000))
    scores = [row[2] for row in everything]
    assert len(set(scores)) < len(scores)
    assert everything == expected_by_brute_force(image)
    for count in (1, 7, 40):
        assert rows_of(SIFTDetector().detect(image, count)) == everything[:count]


@pytest.mark.parametrize("dtype", [np.bool_, np.uint8])
def test_mask_is_applied_before_the_cut(dtype: Any) -> None:
    image = texture()
    mask = np.zeros(image.shape[:2], np.uint8)
    mask[:, 100:] = 1
    expected = expected_by_brute_force(image, mask)
    assert len(expected) > 20
    assert rows_of(SIFTDetector().detect(image, 20, mask.astype(dtype))) == expected[:20]
    assert rows_of(SIFTDetector().detect(image, 10_000, np.asfortranarray(mask.astype(dtype)))) == expected
    assert len(SIFTDetector().detect(image, 20, np.zeros_like(mask))) == 0


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        (np.ones((160, 120), bool), ValueError, r"\(120, 160\)"),
        (np.ones((120, 160, 1), np.uint8), ValueError, r"\(120, 160, 1\)"),
        (np.ones((120, 160), np.float32), TypeError, "float32"),
        ([[True]], TypeError, "list"),
    ],
)
def test_wrong_masks_are_refused(mask: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=rf"mask.*{message}"):
        SIFTDetector().detect(texture(), 10, mask)


@pytest.mark.parametrize("shape", [(1, 1), (3, 2), (2, 3), (1, 50), (8, 8)])
def test_tiny_images_have_no_keypoints(shape: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    found = SIFTDetector().detect(image, 100)
    assert rows_of(found) == []
    assert found.points.shape == (0, 2)
    assert numpy_of(found.angles).shape == (0,)


def test_flat_image_has_no_keypoints() -> None:
    assert len(SIFTDetector().detect(np.full((90, 90, 3), 77, np.uint8), 100)) == 0


def test_thresholds_reach_opencv() -> None:
    image = texture()
    usual = len(SIFTDetector().detect(image, 10_000))
    assert len(SIFTDetector(contrast_threshold=0.12).detect(image, 10_000)) < usual
    assert len(SIFTDetector(edge_threshold=3).detect(image, 10_000)) < usual
    assert len(SIFTDetector(num_octave_layers=5).detect(image, 10_000)) != usual
    assert len(SIFTDetector(sigma=2.5).detect(image, 10_000)) < usual


@pytest.mark.parametrize(
    ("field", "value"),
    [("contrast_threshold", -0.1), ("edge_threshold", 0), ("num_octave_layers", 0), ("sigma", float("nan"))],
)
def test_wrong_settings_are_refused(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=field):
        SIFTDetector(**{field: value})


def test_negative_count_is_refused() -> None:
    with pytest.raises(ValueError, match=r"max_keypoints.*-1"):
        SIFTDetector().detect(texture(), -1)


# --- get_detector


class CornerDetector:
    """A user's own detector."""

    def detect(self, image: Pixels, max_keypoints: int, mask: npt.NDArray[Any] | None = None) -> Keypoints:
        return Keypoints(np.zeros((max_keypoints, 2), np.float32))


def test_detector_by_name_and_by_object() -> None:
    assert get_detector("sift") == SIFTDetector()
    own: Detector = CornerDetector()
    assert get_detector(own) is own


def test_unknown_detectors_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'orb'.*'sift'"):
        get_detector("orb")
    for wrong in (None, 3, CornerDetector):
        with pytest.raises(TypeError, match="detector"):
            get_detector(cast(Any, wrong))


def test_a_detector_of_opencv_is_refused_at_once() -> None:
    with pytest.raises(TypeError, match="OpenCV"):
        get_detector(cv2.ORB.create())  # type: ignore[arg-type]
