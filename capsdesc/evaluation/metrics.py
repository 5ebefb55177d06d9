"""Figures of merit of lists of errors. A pair for which nothing was found has the error infinity, or NaN."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.integrate import trapezoid
from scipy.spatial import KDTree

from capsdesc.geometry import epipolar_distance, project_homography
from capsdesc.types import Float64Array


def accuracy(errors: npt.ArrayLike, thresholds: Sequence[float]) -> Float64Array:
    """The share of errors that are at most each threshold.

    Of one pair's reprojection errors this is its matching accuracy: averaged over pairs it is the MMA (Dusmanu et
    al., D2-Net, CVPR 2019, section 5.1), where a pair without matches counts as 0, as it does here.

    Args:
        errors: (N,) errors, not negative, in any unit; NaN and infinity are failures.
        thresholds: T thresholds in the errors' unit.

    Returns:
        (T,) shares in 0..1; zeros when there are no errors.

    Raises:
        ValueError: ``errors`` is not one-dimensional or holds a negative value, or a threshold is not positive.
    """
    values = _checked_errors(errors)
    limits = _checked_thresholds(thresholds)
    if len(values) == 0:
        return np.zeros(len(limits))
    return np.asarray((values[:, None] <= limits).mean(axis=0), dtype=np.float64)


def error_auc(errors: npt.ArrayLike, thresholds: Sequence[float]) -> Float64Array:
    """The area under the cumulative error curve up to each threshold, divided by the threshold.

    The curve goes through (0, 0) and (k-th smallest error, k / N), straight between, level from the last error
    below the threshold to the threshold (Sarlin et al., SuperGlue, CVPR 2020, section 5.2).

    Args:
        errors: (N,) errors, not negative; NaN and infinity are failures.
        thresholds: T thresholds in the errors' unit.

    Returns:
        (T,) areas in 0..1; zeros when there are no errors.

    Raises:
        ValueError: as :func:`accuracy`.
    """
    values = np.sort(_checked_errors(errors))
    limits = _checked_thresholds(thresholds)
    x = np.concatenate([[0.0], values])
    recall = np.arange(len(x)) / max(len(values), 1)
    areas = np.empty(len(limits))
    for i, limit in enumerate(limits):
        below = int(np.searchsorted(x, limit))
        areas[i] = trapezoid(np.append(recall[:below], recall[below - 1]), np.append(x[:below], limit)) / limit
    return areas


def mean_average_accuracy(*limited: tuple[npt.ArrayLike, Sequence[float]]) -> float:
    """The share of pairs whose errors are all within their limits, averaged over the limits: the mAA.

    Of rotation and translation in degrees, both within 1, 2, .. 10, it is the mAA(10 degrees) of the Image Matching
    Challenge (Jin et al., IJCV 2021, section 3.2).

    Args:
        limited: (N,) errors of one kind, NaN and infinity being failures, with T limits; the first limits of all kinds
            go together, then the second ones.

    Returns:
        0..1; 0 when there are no errors.

    Raises:
        ValueError: as :func:`accuracy`, or N or T are not the same of all kinds.
    """
    kinds = [(_checked_errors(errors), _checked_thresholds(limits)) for errors, limits in limited]
    if len({errors.shape for errors, _ in kinds}) != 1 or len({limits.shape for _, limits in kinds}) != 1:
        shapes = [(errors.shape, limits.shape) for errors, limits in kinds]
        raise ValueError(f"errors and limits have shapes {shapes}; expected as many of every kind")
    within = np.logical_and.reduce([errors[:, None] <= limits for errors, limits in kinds])
    return float(within.mean()) if within.size else 0.0


def symmetric_epipolar_distance(points0: npt.ArrayLike, points1: npt.ArrayLike, F: npt.ArrayLike) -> Float64Array:
    """The root of the sum of both squared distances from the epipolar lines (Hartley & Zisserman, eq. 11.10).

    Args:
        points0: (N, 2) pixels of image 0.
        points1: (N, 2) pixels of image 1.
        F: (3, 3), x1^T F x0 = 0.

    Returns:
        (N,) pixels.
    """
    first, second, F = (np.asarray(values, dtype=np.float64) for values in (points0, points1, F))
    distances = np.hypot(epipolar_distance(first, second, F), epipolar_distance(second, first, F.T))
    return np.asarray(distances, dtype=np.float64)


def repeatability(
    points0: npt.ArrayLike,
    points1: npt.ArrayLike,
    H: npt.ArrayLike,
    size0: tuple[int, int],
    size1: tuple[int, int],
    thresholds: Sequence[float],
) -> Float64Array:
    """How many keypoints of an image are found again in another: the share of those whose place lies in it.

    Both directions are averaged, each measured in the pixels of the image that is looked in; nothing to be found again
    counts as 0.

    Args:
        points0: (N, 2) keypoints of image 0 in pixels.
        points1: (M, 2) keypoints of image 1.
        H: (3, 3), x1 ~ H x0.
        size0: width and height of image 0.
        size1: width and height of image 1.
        thresholds: T distances in pixels within which a keypoint is the same.

    Returns:
        (T,) shares in 0..1.

    Raises:
        ValueError: a threshold is not positive.
    """
    limits = _checked_thresholds(thresholds)
    H = np.asarray(H, dtype=np.float64)
    found0, found1 = (np.asarray(points, dtype=np.float64).reshape(-1, 2) for points in (points0, points1))
    shares = []
    for own, other, to_other, size in ((found0, found1, H, size1), (found1, found0, np.linalg.inv(H), size0)):
        places = project_homography(to_other, own) if len(own) else own
        visible = ((places >= -0.5) & (places <= np.array(size) - 0.5)).all(axis=1)
        if not visible.any() or len(other) == 0:
            shares.append(np.zeros(len(limits)))
        else:
            distances, _ = KDTree(other).query(places[visible])
            shares.append(accuracy(distances, thresholds))
    return np.asarray(np.mean(shares, axis=0), dtype=np.float64)


def pose_error(rotation: float, translation: float) -> float:
    """The error of a relative pose, in degrees: the larger of the angles of its rotation and its translation.

    Args:
        rotation: rotation error in degrees; NaN or infinity where no pose was found.
        translation: angle between the translations in degrees.

    Returns:
        The larger of the two; infinity when either is not finite.
    """
    return float(max(rotation, translation)) if np.isfinite([rotation, translation]).all() else float("inf")


def _checked_errors(errors: npt.ArrayLike) -> Float64Array:
    values = np.asarray(errors, dtype=np.float64)
    if values.ndim != 1:
        raise ValueError(f"errors has shape {values.shape}; expected (N,)")
    values = np.where(np.isnan(values), np.inf, values)
    if (values < 0).any():
        raise ValueError(f"errors holds a negative value, {values.min()}; an error is a distance or an unsigned angle")
    return values


def _checked_thresholds(thresholds: Sequence[float]) -> Float64Array:
    limits = np.asarray(thresholds, dtype=np.float64)
    if limits.ndim != 1 or not (np.isfinite(limits) & (limits > 0)).all():
        raise ValueError(f"thresholds is {thresholds!r}; expected a sequence of positive, finite numbers")
    return limits
