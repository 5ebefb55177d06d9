"""Pictures of matches and of located points."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import torch

from capsdesc import Keypoints
from capsdesc.visualization import draw_located, draw_matches

Pixels = npt.NDArray[np.uint8]
GAP = 8
EMPTY = np.zeros((0, 2), dtype=np.float32)


def black(height: int, width: int) -> Pixels:
    return np.zeros((height, width, 3), dtype=np.uint8)


def coloured(picture: Pixels) -> npt.NDArray[np.bool_]:
    """Where a pixel is neither black, grey nor white."""
    return np.asarray(np.ptp(picture.astype(int), axis=2) > 0)


def grey(picture: Pixels) -> npt.NDArray[np.bool_]:
    # The faint rim of an antialiased colour is grey to the eye of this test; it is told from a line by its darkness.
    return ~coloured(picture) & (picture[..., 0] > 10) & (picture[..., 0] < 255)


def line_mask(shape: tuple[int, int], a: tuple[float, float], b: tuple[float, float], within: float) -> Any:
    """Pixels at most so far from the segment from a to b, by the distance formula."""
    y, x = np.mgrid[: shape[0], : shape[1]].astype(float)
    direction = np.subtract(b, a)
    along = np.clip(((x - a[0]) * direction[0] + (y - a[1]) * direction[1]) / (direction @ direction), 0, 1)
    return np.hypot(x - a[0] - along * direction[0], y - a[1] - along * direction[1]) <= within


@pytest.mark.parametrize(("height0", "height1"), [(40, 40), (40, 25), (25, 40)])
def test_images_lie_side_by_side_from_the_top(height0: int, height1: int) -> None:
    rng = np.random.default_rng(0)
    image0 = rng.integers(0, 256, (height0, 50, 3), dtype=np.uint8)
    image1 = rng.integers(0, 256, (height1, 30, 3), dtype=np.uint8)
    for picture in (
        draw_matches(image0, image1, EMPTY, EMPTY),
        draw_located(image0, image1, EMPTY, EMPTY, np.zeros(0)),
    ):
        assert picture.dtype == np.uint8
        assert picture.shape == (max(height0, height1), 50 + GAP + 30, 3)
        np.testing.assert_array_equal(picture[:height0, :50], image0)
        np.testing.assert_array_equal(picture[:height1, 50 + GAP :], image1)
        assert (picture[:, 50 : 50 + GAP] == 255).all()
        assert (picture[height0:, :50] == 255).all()
        assert (picture[height1:, 50 + GAP :] == 255).all()


def test_inlier_is_a_coloured_line_with_ends_and_outlier_a_grey_one() -> None:
    image0, image1 = black(60, 80), black(60, 80)
    points0, points1 = np.array([[10.0, 10.0], [10.0, 50.0]]), np.array([[60.0, 15.0], [60.0, 45.0]])
    picture = draw_matches(image0, image1, points0, points1, np.array([True, False]))
    # Lines cross the white gap too; there they are told apart less easily.
    on_black = np.ones(picture.shape[:2], dtype=bool)
    on_black[:, 80 : 80 + GAP] = False
    inlier = line_mask(picture.shape[:2], (10, 10), (60 + 80 + GAP, 15), within=4)
    outlier = line_mask(picture.shape[:2], (10, 50), (60 + 80 + GAP, 45), within=2)
    assert coloured(picture)[inlier & on_black].sum() >= 130
    assert grey(picture)[outlier & on_black].sum() >= 130
    assert not coloured(picture)[~inlier].any()
    assert not grey(picture)[~outlier & on_black].any()
    for x, y in ((10, 10), (60 + 80 + GAP, 15)):
        assert coloured(picture)[y - 2 : y + 3, x - 2 : x + 3].sum() >= 9
    assert grey(picture)[48:53, 8:13].sum() <= 9  # a line begins there, no disc


def test_without_flags_all_are_inliers() -> None:
    images = black(60, 80), black(60, 80)
    points0, points1 = np.array([[10.0, 10.0], [70.0, 50.0]]), np.array([[60.0, 15.0], [60.0, 45.0]])
    picture = draw_matches(*images, points0, points1)
    np.testing.assert_array_equal(picture, draw_matches(*images, points0, points1, np.ones(2, dtype=bool)))
    assert not np.array_equal(picture, draw_matches(*images, points0, points1, np.zeros(2, dtype=bool)))


def test_no_outlier_hides_an_inlier() -> None:
    images = black(60, 80), black(60, 80)
    points0, points1 = np.array([[10.0, 30.0], [10.0, 30.0]]), np.array([[60.0, 30.0], [60.0, 30.0]])
    for flags in ([True, False], [False, True]):
        picture = draw_matches(*images, points0, points1, np.array(flags))
        assert np.ptp(picture[30, 10:80].astype(int), axis=1).min() > 60  # a grey line on top would dull the colour


def test_matches_far_apart_differ_in_colour() -> None:
    points = np.array([[5.0, 5.0], [75.0, 55.0]])
    picture = draw_matches(black(60, 80), black(60, 80), points, points)
    assert not np.array_equal(picture[5, 5], picture[55, 75])
    for x, y in points.astype(int):  # one match has one colour
        np.testing.assert_array_equal(picture[y, x], picture[y, x + 80 + GAP])


def test_the_users_images_are_not_drawn_on() -> None:
    image0, image1 = black(30, 30), black(30, 30)
    points = np.array([[10.0, 10.0]])
    draw_matches(image0, image1, points, points)
    draw_located(image0, image1, points, points, np.ones(1))
    assert not image0.any()
    assert not image1.any()


def test_any_form_of_image_and_of_points() -> None:
    gray = np.random.default_rng(0).integers(0, 256, (30, 40), dtype=np.uint8)
    points = np.array([[10.0, 10.0], [20.0, 15.0]], dtype=np.float32)
    rgb = np.repeat(gray[..., None], 3, axis=2)
    tensor = torch.from_numpy(rgb).permute(2, 0, 1) / 255
    expected = draw_matches(rgb, rgb, points, points)
    for image in (gray, tensor):
        for form in (points.astype(int), torch.from_numpy(points), Keypoints(points), Keypoints(points).to_cv2()):
            np.testing.assert_array_equal(draw_matches(image, rgb, form, points), expected)


def test_points_at_and_beyond_the_border_are_no_error() -> None:
    points = np.array([[-0.5, -0.5], [39.5, 29.5], [-100.0, 1000.0]])
    assert draw_matches(black(30, 40), black(30, 40), points, points).shape == (30, 88, 3)
    assert draw_located(black(30, 40), black(30, 40), points, points, np.ones(3)).shape == (30, 88, 3)


@pytest.mark.parametrize("std", [12.0, 18.0])
def test_located_point_has_a_circle_of_one_deviation(std: float) -> None:
    picture = draw_located(
        black(60, 80), black(60, 80), np.array([[20.0, 30.0]]), np.array([[40.0, 30.0]]), np.array([std])
    )
    left, right = coloured(picture[:, :80]), coloured(picture[:, 80 + GAP :])
    y, x = np.mgrid[:60, :80]
    radius = np.hypot(x - 40, y - 30)
    ring, cross = np.abs(radius - std) <= 3.5, radius <= 8
    assert left[30, 17:24].all()  # the arms of the cross on the query
    assert left[27:34, 20].all()
    assert not left[np.hypot(x - 20, y - 30) > 8].any()
    assert right[30, 40]
    assert right[ring].sum() >= 2 * np.pi * std * 0.9
    assert not right[~ring & ~cross].any()
    weight = picture[:, 80 + GAP :].max(axis=2) * ring
    assert abs(np.average(radius, weights=weight) - std) < 0.3


def test_a_certain_location_still_shows() -> None:
    points = np.array([[20.0, 30.0]])
    picture = draw_located(black(60, 80), black(60, 80), points, points, np.zeros(1))
    assert coloured(picture[:, 80 + GAP :]).any()


def test_lengths_that_differ_are_refused() -> None:
    image = black(20, 20)
    two, three = np.zeros((2, 2)), np.zeros((3, 2))
    with pytest.raises(ValueError, match="2 points0, 3 points1"):
        draw_matches(image, image, two, three)
    with pytest.raises(ValueError, match="3 inliers"):
        draw_matches(image, image, two, two, np.ones(3, dtype=bool))
    with pytest.raises(ValueError, match="2 points0, 3 points1"):
        draw_located(image, image, two, three, np.ones(2))
    with pytest.raises(ValueError, match="1 std"):
        draw_located(image, image, two, two, np.ones(1))


def test_wrong_points_and_images_are_named() -> None:
    image = black(20, 20)
    with pytest.raises(ValueError, match="points1"):
        draw_matches(image, image, np.zeros((2, 2)), np.full((2, 2), np.nan))
    with pytest.raises(TypeError, match="image1"):
        draw_matches(image, image.astype(np.float32), np.zeros((2, 2)), np.zeros((2, 2)))
    with pytest.raises(ValueError, match="image0"):
        draw_located(image[:0], image, np.zeros((2, 2)), np.zeros((2, 2)), np.ones(2))


def test_picture_is_rgb(tmp_path: Any) -> None:
    red = black(10, 10)
    red[..., 0] = 255
    path = tmp_path / "red.png"
    cv2.imwrite(str(path), cv2.cvtColor(red, cv2.COLOR_RGB2BGR))
    np.testing.assert_array_equal(draw_matches(path, path, EMPTY, EMPTY)[:, :10], red)
