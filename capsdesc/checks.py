"""Checks of arguments: what came, what was expected, what to do."""

from __future__ import annotations

import dataclasses
import math
import reprlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from capsdesc.types import ArrayOrTensor, Float64Array, Matrix

# How far a rotation read from a file may be off, by rounding.
ROTATION_TOLERANCE = 0.01
# From a lens of a tenth of a millimetre whose intrinsics are in metres to a telescope of ten metres on pixels of a
# hundredth of a micrometre.
_FOCAL_LENGTHS = (1e-4, 1e9)
# Pixels a hundred times as wide as high, rows that cross columns under half a degree, and an image that begins at
# 89.9 degrees from where the camera looks. Beyond them rays lose the digits that geometry is computed from.
_LARGEST_ASPECT = _LARGEST_SKEW = 100.0
_LARGEST_OFFSET = 1000.0


def as_rotation(R: Matrix, name: str = "R") -> Float64Array:
    """The rotation next to a matrix that was rounded when it was written.

    Args:
        R: (3, 3), off by less than `ROTATION_TOLERANCE` in every entry.
        name: what the error message calls it.

    Raises:
        ValueError: it is no (3, 3) matrix of finite numbers, or there is no rotation near it.
    """
    R = real_array(R, name, (3, 3))
    U, _, Vt = np.linalg.svd(R)
    nearest = np.asarray(U @ Vt)
    if np.abs(nearest - R).max() > ROTATION_TOLERANCE or np.linalg.det(nearest) < 0:
        raise ValueError(f"{name} is no rotation: {np.round(R, 4).tolist()}")
    return nearest


def as_intrinsics(K: Matrix, name: str = "K") -> Float64Array:
    """The intrinsics of a pinhole camera as float64 numpy.

    Args:
        K: (3, 3), upper triangular with positive focal lengths and K[2, 2] = 1. The limits are those that no camera
            passes, in whatever unit: focal lengths from 1e-4 to 1e9, the longer up to 100 times the shorter, a skew of
            up to 100 and a principal point of up to 1000 focal lengths.
        name: what the error message calls it.

    Raises:
        ValueError: it is not of this form or passes a limit; the message says which.
    """
    K = real_array(K, name, (3, 3))
    if np.tril(K, -1).any() or K[2, 2] != 1 or K[0, 0] <= 0 or K[1, 1] <= 0:
        raise ValueError(f"{name} is {K.tolist()}; expected [[fx, s, cx], [0, fy, cy], [0, 0, 1]] with fx, fy > 0")
    (fx, s, cx), (_, fy, cy) = K[:2].tolist()
    least, most = _FOCAL_LENGTHS
    wrong = None
    if not least <= min(fx, fy) <= max(fx, fy) <= most:
        wrong = f"focal lengths of {fx:g} and {fy:g}; expected {least:g} to {most:g}"
    elif max(fx, fy) > _LARGEST_ASPECT * min(fx, fy):
        wrong = f"focal lengths of {fx:g} and {fy:g}; expected the one at most {_LARGEST_ASPECT:g} times the other"
    elif abs(s) > _LARGEST_SKEW * fx:
        wrong = f"a skew of {s:g}; expected at most {_LARGEST_SKEW:g} times the focal length {fx:g}"
    elif max(abs(cx) / fx, abs(cy) / fy) > _LARGEST_OFFSET:
        wrong = (
            f"a principal point of ({cx:g}, {cy:g}); expected at most {_LARGEST_OFFSET:g} times the focal lengths "
            f"({fx:g}, {fy:g})"
        )
    if wrong:
        form = "[[fx, s, cx], [0, fy, cy], [0, 0, 1]]"
        raise ValueError(f"{name} is that of no camera, with {wrong}; give {form} in pixels")
    return K


def real_array(value: object, name: str, shape: tuple[int | None, ...]) -> Float64Array:
    """`value` as finite float64 numpy of this shape, None standing for any length."""
    if isinstance(value, torch.Tensor) and not value.is_complex():
        value = value.detach().cpu().to(torch.float64).numpy()
    try:
        # The cast would drop imaginary parts, and read dates and texts as numbers.
        if isinstance(value, torch.Tensor) or np.asarray(value).dtype.kind not in "biufO":
            raise TypeError("no real numbers")
        array = np.ascontiguousarray(value, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise TypeError(f"{name} is {type(value).__name__}; expected a real array or tensor") from error
    if array.ndim != len(shape) or any(want not in (None, have) for want, have in zip(shape, array.shape, strict=True)):
        expected = tuple("N" if length is None else length for length in shape)
        raise ValueError(f"{name} has shape {array.shape}; expected {expected}".replace("'", ""))
    if not np.isfinite(array).all():
        raise ValueError(f"{name} has NaN or infinite values; expected finite ones")
    return array


_SHORT = reprlib.Repr()
_SHORT.maxlevel = 3
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 80
_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxdict = 20


def shown(value: object) -> str:
    """A value as messages show it: its ``repr``, shortened, however large it is."""
    return _SHORT.repr(value)


def check_inside(points: ArrayOrTensor, width: int, height: int, name: str = "keypoints") -> None:
    """Refuse points outside an image, whose pixels reach from -0.5 to width - 0.5 and to height - 0.5.

    Args:
        points: (N, 2) x, y in pixels.
        width: Width of the image in pixels.
        height: Height of the image in pixels.
        name: What the error message calls the points.

    Raises:
        ValueError: A point lies outside. The message says how many do, and which is the first.
    """
    x, y = points[:, 0], points[:, 1]
    outside = (x < -0.5) | (x > width - 0.5) | (y < -0.5) | (y > height - 0.5)
    if outside.any():
        first = outside.tolist().index(True)
        raise ValueError(
            f"{name}: {int(outside.sum())} of {len(points)} lie outside the image of {width} x {height} px, the first "
            f"at index {first}, ({float(x[first]):g}, {float(y[first]):g}); x must be in -0.5..{width - 0.5} and y in "
            f"-0.5..{height - 0.5}"
        )


def as_float32(values: object, name: str) -> ArrayOrTensor:
    """A numeric array in float32, refused where it is not finite."""
    result: ArrayOrTensor
    if isinstance(values, Tensor):
        if values.dtype == torch.bool or values.is_complex():
            raise TypeError(f"{name} must be numbers, got a tensor of {values.dtype}")
        result = values.float()
        finite = bool(result.isfinite().all())
    elif isinstance(values, np.ndarray):
        if values.dtype.kind not in "iuf":
            raise TypeError(f"{name} must be numbers, got an array of {values.dtype}")
        with np.errstate(over="ignore"):
            result = values.astype(np.float32, order="C", copy=False)
        finite = bool(np.isfinite(result).all())
    else:
        raise TypeError(f"{name} must be a numpy array or a torch tensor, got {type(values).__name__}")
    if not finite:
        raise ValueError(f"{name} must be finite in float32, got NaN, infinity or a number too large")
    return result


def check_cv2(keypoints: object, name: str) -> None:
    """Refuse what is no sequence of ``cv2.KeyPoint``."""
    if not isinstance(keypoints, Sequence) or not all(isinstance(k, cv2.KeyPoint) for k in keypoints):
        raise TypeError(
            f"{name} must be an (N, 2) numpy array or torch tensor, a sequence of cv2.KeyPoint, or Keypoints, got "
            f"{type(keypoints).__name__}; pass coordinates through np.asarray"
        )


def check_numbers(config: Any, *names: str, least: float = -math.inf, most: float = math.inf) -> None:
    """Refuse settings that are not finite or out of range.

    Args:
        config: a config dataclass.
        names: which of its settings; without any, all whose default is a number.
        least: smallest value.
        most: largest value.

    Raises:
        TypeError: a setting is no number.
        ValueError: a setting is out of range; it is named.
    """
    for name in names or [field.name for field in dataclasses.fields(config) if type(field.default) in (int, float)]:
        value = getattr(config, name)
        if type(value) not in (int, float):
            raise TypeError(f"{name} is {shown(value)}; expected an int or a float")
        # An integer may be too large for math.isfinite.
        if not (-sys.float_info.max <= value <= sys.float_info.max and least <= value <= most):
            limits = f"at least {least:g}" if most == math.inf else f"{least:g} to {most:g}"
            raise ValueError(f"{name} is {value}; expected {limits}")


def check_range(name: str, limits: tuple[float, float], *, distinct: bool = False) -> None:
    """Refuse what are not two positive finite numbers, the smaller first.

    Args:
        name: of the setting.
        limits: its value.
        distinct: whether the two must not be the same.

    Raises:
        TypeError: they are no numbers, or not two.
        ValueError: they are out of order or out of range.
    """
    if not isinstance(limits, (tuple, list)) or len(limits) != 2 or not {*map(type, limits)} <= {int, float}:
        raise TypeError(f"{name} is {shown(limits)}; expected two numbers")
    if not 0 < limits[0] <= limits[1] <= sys.float_info.max or (distinct and limits[0] == limits[1]):
        raise ValueError(f"{name} is {shown(limits)}; expected the smaller of two positive numbers first")
