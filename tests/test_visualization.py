"""Pictures of matches, of located points, of epipolar lines and of descriptor maps."""

from __future__ import annotations

import sys
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import torch
from matplotlib import pyplot
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.patches import Circle

from capsdesc import Keypoints
from capsdesc.images import read_image
from capsdesc.models import DenseFeatures, FeatureMap
from capsdesc.visualization import (
    draw_located,
    draw_matches,
    draw_points,
    plot_descriptors,
    plot_epipolar_lines,
    plot_located,
    plot_matches,
    plot_reliability,
)

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


# Figures


RNG = np.random.default_rng(0)
PHOTOGRAPHS: tuple[Pixels, Pixels] = (
    RNG.integers(0, 256, (60, 80, 3), dtype=np.uint8),
    RNG.integers(0, 256, (50, 100, 3), dtype=np.uint8),
)


def shown(axes: Any) -> npt.NDArray[Any]:
    """What the only image of some axes holds."""
    (image,) = axes.images
    return np.asarray(image.get_array())


def collections(axes: Any, kind: type[Any]) -> list[Any]:
    return [artist for artist in axes.collections if type(artist) is kind]


def dense(coarse: Any, fine: Any, size: tuple[int, int], reliability: Any = None) -> DenseFeatures:
    """Maps of (C, h, w) features with cells at strides 16 and 4, shifted by (1.5, -0.5) pixels."""
    maps = [
        None if values is None else FeatureMap(torch.as_tensor(values)[None].float(), (stride, stride), (1.5, -0.5))
        for values, stride in ((coarse, 16.0), (fine, 4.0), (reliability, 4.0))
    ]
    assert maps[0] is not None
    assert maps[1] is not None
    return DenseFeatures(maps[0], maps[1], size, normalized=False, reliability=maps[2])


def test_plotted_matches_end_at_their_points() -> None:
    points0, points1 = RNG.uniform(0, 50, (2, 9, 2))
    inliers = np.arange(9) % 3 > 0
    figure = plot_matches(*PHOTOGRAPHS, points0, points1, inliers)
    (axes,) = figure.axes
    np.testing.assert_array_equal(shown(axes), draw_matches(*PHOTOGRAPHS, EMPTY, EMPTY))
    outlying, inlying = collections(axes, LineCollection)
    segments = np.stack([points0, points1 + np.array([80 + GAP, 0])], axis=1)
    np.testing.assert_allclose(outlying.get_segments(), segments[~inliers], rtol=1e-6)
    np.testing.assert_allclose(inlying.get_segments(), segments[inliers], rtol=1e-6)
    assert np.ptp(outlying.get_colors()[:, :3], axis=1).max() == 0
    assert (np.ptp(inlying.get_colors()[:, :3], axis=1) > 0.2).all()
    (ends,) = collections(axes, PathCollection)
    np.testing.assert_allclose(ends.get_offsets(), segments[inliers].reshape(-1, 2), rtol=1e-6)


def test_plotted_circles_have_a_radius_of_one_deviation_in_pixels() -> None:
    points0, points1, std = RNG.uniform(10, 40, (5, 2)), RNG.uniform(10, 40, (5, 2)), np.array([0, 0.5, 3, 7, 20])
    figure = plot_located(*PHOTOGRAPHS, points0, points1, std)
    axes0, axes1 = figure.axes
    for axes, image, points in ((axes0, PHOTOGRAPHS[0], points0), (axes1, PHOTOGRAPHS[1], points1)):
        np.testing.assert_array_equal(shown(axes), image)
        for crosses in collections(axes, PathCollection):
            np.testing.assert_allclose(crosses.get_offsets(), points, rtol=1e-6)
    assert len(axes0.patches) == 0
    circles = [patch for patch in axes1.patches if isinstance(patch, Circle)]
    np.testing.assert_allclose([circle.center for circle in circles[::2]], points1, rtol=1e-6)
    np.testing.assert_array_equal([circle.radius for circle in circles[1::2]], std)
    # The axes show a pixel of the image as a square, so that a circle is one.
    figure.draw_without_rendering()
    origin, right, down = axes1.transData.transform([(0, 0), (1, 0), (0, 1)])
    np.testing.assert_allclose(
        [*(right - origin), *(down - origin)], [right[0] - origin[0], 0, 0, origin[0] - right[0]]
    )


@pytest.mark.parametrize(("epipole", "some_miss"), [((-40, 20), True), ((120, 90), True), ((50, 25), False)])
def test_epipolar_lines_are_clipped_to_the_image(epipole: tuple[float, float], some_miss: bool) -> None:
    rng = np.random.default_rng(0)
    height, width = PHOTOGRAPHS[1].shape[:2]
    # Each line joins the epipole and an affine image of the point, which may lie well outside.
    F = np.cross([*epipole, 1], np.array([[4.0, 0.5, -80], [-0.5, 4, -80], [0, 0, 1]]), axisb=0, axisc=0)
    points0 = rng.uniform(0, 60, (200, 2))
    lines = np.column_stack([points0, np.ones(200)]) @ F.T
    corners = np.array([[x, y, 1] for x in (-0.5, width - 0.5) for y in (-0.5, height - 0.5)])
    meets = np.ptp(np.sign(lines @ corners.T), axis=1) > 0
    assert meets.sum() > 50
    assert meets.all() != some_miss
    (drawn,) = collections(plot_epipolar_lines(*PHOTOGRAPHS, points0, F).axes[1], LineCollection)
    segments = np.array(drawn.get_segments())
    assert len(segments) == meets.sum()
    ends = np.concatenate([segments, np.ones((len(segments), 2, 1))], axis=2)
    normals = np.linalg.norm(lines[meets, :2], axis=1)
    np.testing.assert_allclose(np.einsum("nki,ni->nk", ends, lines[meets]) / normals[:, None], 0, atol=1e-4)
    to_edges = np.abs(segments - [[-0.5, -0.5]]), np.abs(segments - [[width - 0.5, height - 0.5]])
    np.testing.assert_allclose(np.minimum(*to_edges).min(axis=2), 0, atol=1e-4)
    assert ((segments > -0.501) & (segments < np.array([width, height]) - 0.499)).all()


def test_rectified_epipolar_lines_run_from_edge_to_edge() -> None:
    # Of cameras side by side: y stays. The third line lies below the second image.
    F = np.array([[0.0, 0, 0], [0, 0, -1], [0, 1, 0]])
    points0 = np.array([[5.0, 7.25], [70.0, 48.0], [20.0, 55.0]])
    axes0, axes1 = plot_epipolar_lines(*PHOTOGRAPHS, points0, torch.from_numpy(F), points0[:, ::-1]).axes
    (drawn,) = collections(axes1, LineCollection)
    for segment, y in zip(drawn.get_segments(), (7.25, 48), strict=True):
        np.testing.assert_allclose(sorted(segment.tolist()), [[-0.5, y], [99.5, y]], atol=1e-6)
    for axes, points in ((axes0, points0), (axes1, points0[:, ::-1])):
        (dots,) = collections(axes, PathCollection)
        np.testing.assert_allclose(dots.get_offsets(), points, rtol=1e-6)
    np.testing.assert_allclose(drawn.get_colors(), dots.get_facecolors()[:2])


def test_one_colour_means_one_descriptor_in_all_images() -> None:
    words = RNG.normal(size=(6, 16))
    written = [RNG.integers(0, 6, (2, 4, 6)), RNG.integers(0, 6, (2, 3, 7))]
    spelled_out = [words[levels].transpose(0, 3, 1, 2) for levels in written]
    maps = [dense(coarse, fine, (96, 64)) for coarse, fine in spelled_out]
    figure = plot_descriptors(PHOTOGRAPHS, maps)
    panels = np.array(figure.axes).reshape(2, 3)
    for level in range(2):
        colors = np.concatenate([shown(panels[row, 1 + level]).reshape(-1, 3) for row in range(2)])
        spelled = np.concatenate([each[level].ravel() for each in written])
        for word in range(6):
            assert np.ptp(colors[spelled == word], axis=0).max() < 1e-6
        assert len(np.unique(colors.round(6), axis=0)) == 6
        assert colors.min() == 0
        assert colors.max() == 1


def test_colours_are_the_principal_components() -> None:
    # Along the first axis features vary most, then along the third, then along the second.
    values = RNG.normal(size=(5, 200)) * np.array([9, 2, 5, 0.01, 0.01])[:, None]
    features = dense(values.reshape(5, 10, 20), values.reshape(5, 10, 20), (320, 160))
    colors = shown(plot_descriptors(PHOTOGRAPHS[:1], [features]).axes[1]).reshape(-1, 3)
    inner = ((colors > 0) & (colors < 1)).all(axis=1)
    for component, axis in enumerate((0, 2, 1)):
        correlation = np.corrcoef(colors[inner, component], values[axis, inner])[0, 1]
        assert abs(correlation) > 0.99


def test_maps_lie_where_their_cells_are() -> None:
    features = dense(RNG.normal(size=(8, 4, 6)), RNG.normal(size=(8, 16, 24)), (96, 64), RNG.normal(size=(1, 16, 24)))
    axes = [
        *plot_descriptors(PHOTOGRAPHS[:1], [features]).axes[1:3],
        plot_reliability(PHOTOGRAPHS[0], features).axes[1],
    ]
    assert features.reliability is not None
    for panel, feature_map in zip(axes, (features.coarse, features.fine, features.reliability), strict=True):
        left, right, bottom, top = panel.images[0].get_extent()
        rows, columns = shown(panel).shape[:2]
        np.testing.assert_allclose(left + (np.arange(columns) + 0.5) * (right - left) / columns, feature_map.columns)
        np.testing.assert_allclose(top + (np.arange(rows) + 0.5) * (bottom - top) / rows, feature_map.rows)
        assert panel.get_xlim() == (-0.5, 79.5)
        assert panel.get_ylim() == (59.5, -0.5)


def test_reliability_is_a_probability() -> None:
    logits = RNG.normal(size=(1, 16, 24)) * 3
    maps = RNG.normal(size=(8, 4, 6)), RNG.normal(size=(8, 16, 24))
    axes = plot_reliability(PHOTOGRAPHS[0], dense(*maps, (96, 64), logits)).axes[1]
    np.testing.assert_allclose(shown(axes), 1 / (1 + np.exp(-logits[0])), rtol=1e-5)
    assert axes.images[0].get_clim() == (0, 1)
    with pytest.raises(ValueError, match="has no reliability"):
        plot_reliability(PHOTOGRAPHS[0], dense(*maps, (96, 64)))


def test_uniform_descriptors_have_one_colour() -> None:
    flat = dense(np.ones((8, 4, 6)), np.ones((8, 16, 24)), (96, 64))
    colors = shown(plot_descriptors(PHOTOGRAPHS[:1], [flat]).axes[1])
    assert np.ptp(colors.reshape(-1, 3), axis=0).max() == 0


def test_figures_of_nothing_are_saved_and_leave_pyplot_alone(tmp_path: Any) -> None:
    settings = dict(pyplot.rcParams)
    figures = (
        plot_matches(*PHOTOGRAPHS, EMPTY, EMPTY),
        plot_located(*PHOTOGRAPHS, EMPTY, EMPTY, np.zeros(0)),
        plot_epipolar_lines(*PHOTOGRAPHS, EMPTY, np.eye(3)),
    )
    for k, figure in enumerate(figures):
        figure.savefig(tmp_path / f"{k}.png", dpi=40)
        assert np.std(read_image(tmp_path / f"{k}.png")) > 20
    assert pyplot.get_fignums() == []
    assert dict(pyplot.rcParams) == settings


def test_wrong_input_of_figures_is_named() -> None:
    two, three = np.zeros((2, 2)), np.zeros((3, 2))
    with pytest.raises(ValueError, match="2 points0, 3 points1"):
        plot_matches(*PHOTOGRAPHS, two, three)
    with pytest.raises(ValueError, match="1 std"):
        plot_located(*PHOTOGRAPHS, two, two, np.ones(1))
    with pytest.raises(ValueError, match="2 points0 and 3 points1"):
        plot_epipolar_lines(*PHOTOGRAPHS, two, np.eye(3), three)
    with pytest.raises(ValueError, match="F is"):
        plot_epipolar_lines(*PHOTOGRAPHS, two, np.full((3, 3), np.nan))
    with pytest.raises(ValueError, match="2 images and 0 dense"):
        plot_descriptors(PHOTOGRAPHS, [])
    with pytest.raises(ValueError, match="3 points and 1 std"):
        draw_points(PHOTOGRAPHS[0], three, np.ones(1))


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install 'capsdesc\[viz\]'"):
        plot_matches(*PHOTOGRAPHS, EMPTY, EMPTY)


def test_drawn_points_are_those_of_the_pair() -> None:
    points, std = np.array([[20.0, 30.0], [60.0, 20.0]]), np.array([5.0, 9.0])
    picture = draw_located(*PHOTOGRAPHS, points, points, std)
    np.testing.assert_array_equal(picture[:60, :80], draw_points(PHOTOGRAPHS[0], points))
    np.testing.assert_array_equal(picture[:50, 80 + GAP :], draw_points(PHOTOGRAPHS[1], points, std))
