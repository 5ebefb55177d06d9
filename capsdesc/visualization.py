"""Pictures of matches and of located points, as (H, W, 3) uint8 RGB arrays."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from capsdesc.io.images import ImageLike, UInt8Array, to_rgb
from capsdesc.keypoints import KeypointsLike, as_points

Array = npt.NDArray[Any]
Color = tuple[int, int, int]

GAP = 8
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
    left, right = _coordinates(points0, "points0"), _coordinates(points1, "points1")
    keep = np.ones(len(left), dtype=bool) if inliers is None else np.asarray(inliers, dtype=bool)
    if not len(left) == len(right) == len(keep):
        raise ValueError(f"{len(left)} points0, {len(right)} points1 and {len(keep)} inliers; expected as many of each")
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
    left, right = _coordinates(points0, "points0"), _coordinates(points1, "points1")
    if not len(left) == len(right) == len(std):
        raise ValueError(f"{len(left)} points0, {len(right)} points1 and {len(std)} std; expected as many of each")
    canvas, shift = _side_by_side(to_rgb(image0, name="image0"), to_rgb(image1, name="image1"))
    for query, found, radius, color in zip(left, right, std, _colors(left), strict=True):
        _cross(canvas, query, color)
        _cross(canvas, found + shift, color)
        size = round(max(float(radius), 1.0) * (1 << _SHIFT))
        cv2.circle(canvas, _fixed(found + shift), size, color, 2, cv2.LINE_AA, _SHIFT)
    return canvas


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
    span = max(float(np.ptp(place)), 1.0)
    levels = np.rint(20 + 215 * (place - place.min()) / span).astype(np.uint8)
    palette = cv2.applyColorMap(levels[:, None], cv2.COLORMAP_TURBO)[:, 0, ::-1]
    return [(int(r), int(g), int(b)) for r, g, b in palette]


def _cross(canvas: UInt8Array, at: Array, color: Color) -> None:
    # On a dark rim, so that it shows on any background.
    for stroke, thickness in ((RIM, 4), (color, 2)):
        for arm in ((5.0, 0.0), (0.0, 5.0)):
            cv2.line(canvas, _fixed(at - arm), _fixed(at + arm), stroke, thickness, cv2.LINE_AA, _SHIFT)
