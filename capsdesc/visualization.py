"""Pictures of matches, of located points, of epipolar lines and of what the network computes.

The functions ``draw_...`` return (H, W, 3) uint8 RGB arrays. The functions ``plot_...`` return a
``matplotlib.figure.Figure`` (extra ``viz``) and leave pyplot alone; save it with ``figure.savefig(path)``. Points
in its axes have the images' pixel coordinates, (0, 0) being the centre of the top-left pixel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import numpy.typing as npt
import torch

from capsdesc.images import ImageLike, to_rgb
from capsdesc.isolation import isolated
from capsdesc.models import DenseFeatures, FeatureMap
from capsdesc.types import Array, KeypointsLike, Matrix, UInt8Array, as_points

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Color = tuple[int, int, int]

GAP = 8
FIGURE_WIDTH = 10.0  # inches
OUTLIER: Color = (150, 150, 150)
RIM: Color = (20, 20, 20)
BACKGROUND = 255


def draw_matches(
    image0: ImageLike,
    image1: ImageLike,
    points0: KeypointsLike,
    points1: KeypointsLike,
    inliers: npt.NDArray[np.bool_] | None = None,
) -> UInt8Array:
    """Two images side by side with lines between matched points.

    Args:
        image0: any form of image that :meth:`capsdesc.CAPSExtractor.describe` takes.
        image1: likewise.
        points0: (M, 2) matched points in ``image0``, pixels.
        points1: (M, 2) their partners in ``image1``.
        inliers: (M,) bool. Inliers are coloured by their place in ``image0``, the others are grey lines. None: all
            are inliers.

    Returns:
        (max(H0, H1), W0 + 8 + W1, 3) uint8 RGB.

    Raises:
        ValueError: the numbers of points or flags differ.
    """
    left, right, keep = _matched(points0, points1, inliers)
    canvas, shift = _side_by_side(to_rgb(image0, name="image0"), to_rgb(image1, name="image1"))
    colors = _colors(left)
    # Outliers first, so that nothing hides an inlier.
    for k in np.argsort(keep, kind="stable"):
        color = colors[k] if keep[k] else OUTLIER
        a, b = _fixed(left[k]), _fixed(right[k] + shift)
        cv2.line(canvas, a, b, color, 1, cv2.LINE_AA, _SHIFT)
        if keep[k]:
            for center in (a, b):
                cv2.circle(canvas, center, 2 << _SHIFT, color, -1, cv2.LINE_AA, _SHIFT)
    return canvas


def draw_located(
    image0: ImageLike, image1: ImageLike, points0: KeypointsLike, points1: KeypointsLike, std: Array
) -> UInt8Array:
    """Query points in one image and, in the same colours, where they are in the other, with circles of one deviation.

    Args:
        image0: any form of image that :meth:`capsdesc.CAPSExtractor.describe` takes.
        image1: likewise.
        points0: (N, 2) query points in ``image0``, pixels.
        points1: (N, 2) their locations in ``image1``.
        std: (N,) standard deviations in pixels.

    Returns:
        (max(H0, H1), W0 + 8 + W1, 3) uint8 RGB.

    Raises:
        ValueError: the numbers of points or deviations differ.
    """
    left, right, radii = _located(points0, points1, std)
    colors = _colors(left)
    canvas, _ = _side_by_side(
        _draw_points(to_rgb(image0, name="image0"), left, colors),
        _draw_points(to_rgb(image1, name="image1"), right, colors, radii),
    )
    return canvas


def draw_points(image: ImageLike, points: KeypointsLike, std: Array | None = None) -> UInt8Array:
    """An image with crosses at points, and circles of one deviation around them.

    Args:
        image: any form of image that :meth:`capsdesc.CAPSExtractor.describe` takes.
        points: (N, 2) pixels.
        std: (N,) standard deviations in pixels, or None for crosses only.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        ValueError: the numbers of points and deviations differ.
    """
    coordinates = _coordinates(points, "points")
    radii = None if std is None else np.asarray(std)
    if radii is not None and len(radii) != len(coordinates):
        raise ValueError(f"{len(coordinates)} points and {len(radii)} std; expected as many of each")
    return _draw_points(to_rgb(image), coordinates, _colors(coordinates), radii)


def draw_checkerboard(image0: ImageLike, image1: ImageLike, squares: int = 8) -> UInt8Array:
    """Two images of one size in the squares of a checkerboard: where they fit, lines go on from square to square.

    Args:
        image0: any form of image that :meth:`capsdesc.CAPSExtractor.describe` takes; in the top-left square.
        image1: likewise.
        squares: along the longer edge.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        ValueError: the images have different sizes, or there is no square.
    """
    rgb0, rgb1 = to_rgb(image0, name="image0"), to_rgb(image1, name="image1")
    if rgb0.shape != rgb1.shape:
        raise ValueError(f"image0 has shape {rgb0.shape} and image1 {rgb1.shape}; expected the same")
    if squares < 1:
        raise ValueError(f"squares is {squares}; expected at least 1")
    edge = max(rgb0.shape) / squares
    rows, columns = ((np.arange(length) // edge).astype(int) for length in rgb0.shape[:2])
    odd = (rows[:, None] + columns) % 2 == 1
    return np.where(odd[..., None], rgb1, rgb0)


def plot_matches(
    image0: ImageLike,
    image1: ImageLike,
    points0: KeypointsLike,
    points1: KeypointsLike,
    inliers: npt.NDArray[np.bool_] | None = None,
) -> Figure:
    """Two images side by side with lines between matched points, as :func:`draw_matches`, in lines of any sharpness.

    Args:
        image0: any form of image that :meth:`capsdesc.CAPSExtractor.describe` takes.
        image1: likewise.
        points0: (M, 2) matched points in ``image0``, pixels.
        points1: (M, 2) their partners in ``image1``.
        inliers: (M,) bool. Inliers are coloured by their place in ``image0``, the others are grey. None: all are
            inliers.

    Returns:
        A figure of one axes, in which ``image1`` begins W0 + 8 pixels to the right of ``image0``.

    Raises:
        ValueError: the numbers of points or flags differ.
        ImportError: matplotlib is not installed.
    """
    left, right, keep = _matched(points0, points1, inliers)
    canvas, shift = _side_by_side(to_rgb(image0, name="image0"), to_rgb(image1, name="image1"))
    figure, ((axes,),) = _panels([[canvas]])
    from matplotlib.collections import LineCollection

    segments = np.stack([left, right + shift], axis=1)
    colors = _unit_colors(left)
    axes.add_collection(LineCollection(list(segments[~keep]), colors=_unit([OUTLIER]), linewidths=0.5), autolim=False)
    axes.add_collection(LineCollection(list(segments[keep]), colors=colors[keep], linewidths=0.7), autolim=False)
    ends = segments[keep].reshape(-1, 2)
    axes.scatter(ends[:, 0], ends[:, 1], s=4, c=np.repeat(colors[keep], 2, axis=0), linewidths=0, zorder=3)
    return figure


def plot_located(
    image0: ImageLike, image1: ImageLike, points0: KeypointsLike, points1: KeypointsLike, std: Array
) -> Figure:
    """Query points in one image and, in the same colours, where they are in the other, with circles of one deviation.

    Args:
        image0: any form of image that :meth:`capsdesc.CAPSExtractor.describe` takes.
        image1: likewise.
        points0: (N, 2) query points in ``image0``, pixels.
        points1: (N, 2) their locations in ``image1``.
        std: (N,) standard deviations in pixels: the circles' radii.

    Returns:
        A figure of two axes, one for each image.

    Raises:
        ValueError: the numbers of points or deviations differ.
        ImportError: matplotlib is not installed.
    """
    left, right, radii = _located(points0, points1, std)
    figure, ((axes0, axes1),) = _panels([[to_rgb(image0, name="image0"), to_rgb(image1, name="image1")]])
    from matplotlib.patches import Circle

    colors = _unit_colors(left)
    _plot_crosses(axes0, left, colors)
    _plot_crosses(axes1, right, colors)
    for (x, y), radius, color in zip(right, radii, colors, strict=True):
        for stroke, width in ((_unit([RIM])[0], 3.0), (color, 1.5)):
            axes1.add_patch(Circle((x, y), float(radius), fill=False, edgecolor=stroke, linewidth=width))
    return figure


def plot_epipolar_lines(
    image0: ImageLike,
    image1: ImageLike,
    points0: KeypointsLike,
    F: Matrix,
    points1: KeypointsLike | None = None,
) -> Figure:
    """Points in one image and, in the same colours, their epipolar lines in the other.

    Args:
        image0: any form of image that :meth:`capsdesc.CAPSExtractor.describe` takes.
        image1: likewise.
        points0: (N, 2) points in ``image0``, pixels.
        F: (3, 3) fundamental matrix, x1^T F x0 = 0 in pixels.
        points1: (N, 2) their partners in ``image1``, to be seen beside the lines, or None.

    Returns:
        A figure of two axes, one for each image. Lines end at the image's edge; one that misses the image is not drawn.

    Raises:
        ValueError: the numbers of points differ, or F is no finite (3, 3) matrix.
        ImportError: matplotlib is not installed.
    """
    left = _coordinates(points0, "points0")
    right = None if points1 is None else _coordinates(points1, "points1")
    if right is not None and len(left) != len(right):
        raise ValueError(f"{len(left)} points0 and {len(right)} points1; expected as many of each, or no points1")
    matrix = np.asarray(F.detach().cpu() if isinstance(F, torch.Tensor) else F, dtype=np.float64)
    if matrix.shape != (3, 3) or not np.isfinite(matrix).all():
        raise ValueError(f"F is {matrix.tolist()}; expected a finite (3, 3) matrix")
    rgb0, rgb1 = to_rgb(image0, name="image0"), to_rgb(image1, name="image1")
    figure, ((axes0, axes1),) = _panels([[rgb0, rgb1]])
    from matplotlib.collections import LineCollection

    colors = _unit_colors(left)
    segments, meets = _clip_lines(np.column_stack([left, np.ones(len(left))]) @ matrix.T, rgb1.shape[1], rgb1.shape[0])
    axes1.add_collection(LineCollection(list(segments[meets]), colors=colors[meets], linewidths=1), autolim=False)
    for axes, points in ((axes0, left), (axes1, right)):
        if points is not None:
            axes.scatter(
                points[:, 0], points[:, 1], s=16, c=colors, edgecolors=_unit([RIM]).tolist(), linewidths=0.7, zorder=3
            )
    return figure


@isolated(threads=False)
def plot_descriptors(images: Sequence[ImageLike], dense: Sequence[DenseFeatures]) -> Figure:
    """Images beside their coarse and fine descriptor maps, similar descriptors in similar colours.

    Colours are the three principal components of a level's descriptors over all images together, so one colour means
    the same in each.

    Args:
        images: any forms of image that :meth:`capsdesc.CAPSExtractor.describe` takes.
        dense: what :meth:`capsdesc.CAPSExtractor.dense` gives for each of them.

    Returns:
        A figure with a row for each image: the image, its coarse map, its fine map.

    Raises:
        ValueError: there is no image, or the numbers of images and maps differ.
        ImportError: matplotlib is not installed.
    """
    if not len(images) == len(dense) > 0:
        raise ValueError(f"{len(images)} images and {len(dense)} dense; expected as many of each, and at least one")
    pixels = [to_rgb(image, name=f"images[{k}]") for k, image in enumerate(images)]
    figure, axes = _panels([[rgb] * 3 for rgb in pixels])
    for column, level in enumerate(("coarse", "fine"), start=1):
        maps: list[FeatureMap] = [getattr(maps, level) for maps in dense]
        for row, (feature_map, colors) in enumerate(zip(maps, _principal_colors(maps), strict=True)):
            _show_map(axes[row][column], feature_map, colors)
            if row == 0:
                axes[row][column].set_title(level)
    return figure


@isolated(threads=False)
def plot_reliability(image: ImageLike, dense: DenseFeatures) -> Figure:
    """An image beside the reliability of its points: how likely each is to be found again, between 0 and 1.

    Args:
        image: any form of image that :meth:`capsdesc.CAPSExtractor.describe` takes.
        dense: what :meth:`capsdesc.CAPSExtractor.dense` gives for it.

    Returns:
        A figure of the image, its reliability, and a scale.

    Raises:
        ValueError: ``dense`` has no reliability.
        ImportError: matplotlib is not installed.
    """
    if dense.reliability is None:
        raise ValueError("dense has no reliability; expected maps of a model that has, and reliability=True")
    rgb = to_rgb(image)
    figure, ((_, axes),) = _panels([[rgb, rgb]])
    shown = _show_map(axes, dense.reliability, dense.reliability.values[0, 0].sigmoid().cpu().numpy())
    figure.colorbar(shown, ax=axes, fraction=0.05)
    return figure


def _panels(rows: Sequence[Sequence[UInt8Array]]) -> tuple[Figure, list[list[Axes]]]:
    """A figure with these images in rows and columns, each in axes of its own."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("figures are drawn with matplotlib: pip install 'capsdesc[viz]'") from error
    widths = [max(image.shape[1] for image in column) for column in zip(*rows, strict=True)]
    heights = [max(image.shape[0] for image in row) for row in rows]
    size = FIGURE_WIDTH, FIGURE_WIDTH * sum(heights) / sum(widths)
    figure = Figure(figsize=size, layout="compressed")
    grid = figure.subplots(len(heights), len(widths), squeeze=False, width_ratios=widths, height_ratios=heights)
    for axes, image in zip(grid.flat, (image for row in rows for image in row), strict=True):
        axes.imshow(image)
        axes.set_axis_off()
        axes.set_autoscale_on(False)
    return figure, grid.tolist()


def _show_map(axes: Axes, feature_map: FeatureMap, values: Array) -> Any:
    """Show (h, w) numbers in 0..1 or (h, w, 3) colours of a map's cells in place of the image, each where it lies."""
    (sx, sy), (ox, oy) = feature_map.scale, feature_map.offset
    left, top = ox - sx / 2, oy - sy / 2
    extent = (left, left + values.shape[1] * sx, top + values.shape[0] * sy, top)
    (image,) = axes.images
    limits = axes.get_xlim(), axes.get_ylim()
    image.remove()
    shown = axes.imshow(values, extent=extent, vmin=0, vmax=1)
    axes.set(xlim=limits[0], ylim=limits[1])
    return shown


def _principal_colors(maps: Sequence[FeatureMap]) -> list[Array]:
    """(h, w, 3) in 0..1 for each map: the three principal components of the features of all, the middle 98 % of each
    spread over the range.
    """
    features = [feature_map.values[0].flatten(1).T.double().cpu().numpy() for feature_map in maps]
    together = np.concatenate(features)
    mean = together.mean(axis=0)
    # eigh sorts ascending.
    axes = np.linalg.eigh(np.cov(together - mean, rowvar=False))[1][:, :-4:-1]
    low, high = np.percentile((together - mean) @ axes, (1, 99), axis=0)
    colors = (np.clip(((cells - mean) @ axes - low) / np.maximum(high - low, 1e-12), 0, 1) for cells in features)
    return [each.reshape(*maps[k].values.shape[-2:], 3) for k, each in enumerate(colors)]


def _clip_lines(lines: Array, width: int, height: int) -> tuple[Array, npt.NDArray[np.bool_]]:
    """The parts of lines (N, 3), a x + b y + c = 0, within an image: (N, 2, 2) end points, and which lines meet it."""
    low, high = np.full(2, -0.5), np.array([width, height]) - 0.5
    center = (low + high) / 2
    normals = lines[:, :2]
    with np.errstate(divide="ignore", invalid="ignore"):
        lengths = np.linalg.norm(normals, axis=1, keepdims=True)
        feet = center - normals * (normals @ center + lines[:, 2])[:, None] / lengths**2
        directions = normals[:, ::-1] * (-1, 1) / lengths
        # A line runs within the image where it is both between its left and right and between its top and bottom edge.
        crossings = np.stack([(low - feet) / directions, (high - feet) / directions])
        enter, leave = crossings.min(axis=0).max(axis=1), crossings.max(axis=0).min(axis=1)
        segments = feet[:, None] + np.stack([enter, leave], axis=1)[..., None] * directions[:, None]
    return segments, enter < leave


def _plot_crosses(axes: Axes, points: Array, colors: Array) -> None:
    # On a dark rim, so that it shows on any background.
    for stroke, width in ((_unit([RIM]), 3.5), (colors, 1.5)):
        axes.scatter(points[:, 0], points[:, 1], s=60, marker="+", c=stroke, linewidths=width, zorder=3)


def _unit(colors: Sequence[Color]) -> Array:
    return np.asarray(colors, dtype=np.float64).reshape(-1, 3) / 255


def _unit_colors(points: Array) -> Array:
    return _unit(_colors(points))


def _matched(
    points0: KeypointsLike, points1: KeypointsLike, inliers: npt.NDArray[np.bool_] | None
) -> tuple[Array, Array, npt.NDArray[np.bool_]]:
    left, right = _coordinates(points0, "points0"), _coordinates(points1, "points1")
    keep = np.ones(len(left), dtype=bool) if inliers is None else np.asarray(inliers, dtype=bool)
    if not len(left) == len(right) == len(keep):
        raise ValueError(f"{len(left)} points0, {len(right)} points1 and {len(keep)} inliers; expected as many of each")
    return left, right, keep


def _located(points0: KeypointsLike, points1: KeypointsLike, std: Array) -> tuple[Array, Array, Array]:
    left, right, radii = _coordinates(points0, "points0"), _coordinates(points1, "points1"), np.asarray(std)
    if not len(left) == len(right) == len(radii):
        raise ValueError(f"{len(left)} points0, {len(right)} points1 and {len(radii)} std; expected as many of each")
    return left, right, radii


# OpenCV draws at sub-pixel places given as integers with this many fractional bits.
_SHIFT = 4


def _fixed(point: Array) -> tuple[int, int]:
    x, y = np.rint(np.asarray(point, dtype=np.float64) * (1 << _SHIFT)).astype(int)
    return int(x), int(y)


def _coordinates(points: KeypointsLike, name: str) -> Array:
    coordinates = as_points(points, name)
    return coordinates if isinstance(coordinates, np.ndarray) else coordinates.detach().cpu().numpy()


def _side_by_side(image0: UInt8Array, image1: UInt8Array) -> tuple[UInt8Array, Array]:
    """Both images on one canvas, and what to add to points of the second."""
    (height0, width0), (height1, width1) = image0.shape[:2], image1.shape[:2]
    canvas = np.full((max(height0, height1), width0 + GAP + width1, 3), BACKGROUND, dtype=np.uint8)
    canvas[:height0, :width0] = image0
    canvas[:height1, width0 + GAP :] = image1
    return canvas, np.array([width0 + GAP, 0.0])


def _colors(points: Array) -> list[Color]:
    """A bright colour for each point: the hue follows its place from the top left to the bottom right."""
    if len(points) == 0:
        return []
    place = points.sum(axis=1)
    middle, span = (place.min() + place.max()) / 2, max(float(np.ptp(place)), 1.0)
    levels = np.rint(127.5 + 215 * (place - middle) / span).astype(np.uint8)
    palette = cv2.applyColorMap(levels[:, None], cv2.COLORMAP_TURBO)[:, 0, ::-1]
    return [(int(r), int(g), int(b)) for r, g, b in palette]


def _draw_points(image: UInt8Array, points: Array, colors: Sequence[Color], radii: Array | None = None) -> UInt8Array:
    canvas = image.copy()
    for k, (point, color) in enumerate(zip(points, colors, strict=True)):
        _cross(canvas, point, color)
        if radii is not None:
            size = round(max(float(radii[k]), 1.0) * (1 << _SHIFT))
            for stroke, thickness in ((RIM, 4), (color, 2)):
                cv2.circle(canvas, _fixed(point), size, stroke, thickness, cv2.LINE_AA, _SHIFT)
    return canvas


def _cross(canvas: UInt8Array, at: Array, color: Color) -> None:
    # On a dark rim, so that it shows on any background.
    for stroke, thickness in ((RIM, 4), (color, 2)):
        for arm in ((5.0, 0.0), (0.0, 5.0)):
            cv2.line(canvas, _fixed(at - arm), _fixed(at + arm), stroke, thickness, cv2.LINE_AA, _SHIFT)
