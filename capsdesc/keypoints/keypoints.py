"""Keypoints in any form. Pixel (0, 0) is the centre of the top-left pixel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Array: TypeAlias = npt.NDArray[np.float32] | Tensor
"""float32, in numpy or in torch."""

# What cv2.KeyPoint itself says where a keypoint has no orientation.
_NO_ANGLE = -1.0


@dataclass(frozen=True, eq=False)
class Keypoints:
    """Keypoints of one image, all fields in numpy or all in torch on one device; kept as float32.

    Attributes:
        points: (N, 2) x, y in pixels.
        scores: (N,) strength of the detection, higher is better, or ``None``.
        scales: (N,) diameter of the described patch in pixels, as ``cv2.KeyPoint.size``, or ``None``.
        angles: (N,) orientation in degrees, clockwise in the image, as ``cv2.KeyPoint.angle``, or ``None``.

    Raises:
        TypeError: A field is no numeric array, or fields mix numpy and torch.
        ValueError: A field has another shape or device than ``points`` asks for, or holds NaN or infinity.
    """

    points: Array
    scores: Array | None = None
    scales: Array | None = None
    angles: Array | None = None

    def __post_init__(self) -> None:
        points = as_points(self.points, "points")
        object.__setattr__(self, "points", points)
        for name in ("scores", "scales", "angles"):
            values = getattr(self, name)
            if values is None:
                continue
            values = _as_float32(values, name)
            if type(values) is not type(points):
                raise TypeError(
                    f"{name} must be a {type(points).__name__} as points are, got a {type(values).__name__}"
                )
            if values.shape != points.shape[:1]:
                raise ValueError(f"{name} must have shape ({len(points)},), got {tuple(values.shape)}")
            if isinstance(values, Tensor) and isinstance(points, Tensor) and values.device != points.device:
                raise ValueError(f"{name} must be on {points.device} as points are, got {values.device}")
            object.__setattr__(self, name, values)

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, index: int | slice | Sequence[int] | npt.NDArray[Any] | Tensor) -> Keypoints:
        """The keypoints that an integer, a slice, a mask or an array of indices selects, in every field."""
        selection: Any = [index] if isinstance(index, int | np.integer) else index
        return Keypoints(**{name: values[selection] for name, values in vars(self).items() if values is not None})

    def to_cv2(self) -> list[cv2.KeyPoint]:
        """As OpenCV's keypoints; without scores the response is 0, without scales the size 1, without angles -1."""
        size = len(self)
        columns = (
            _to_numpy(self.points),
            np.ones(size) if self.scales is None else _to_numpy(self.scales),
            np.full(size, _NO_ANGLE) if self.angles is None else _to_numpy(self.angles),
            np.zeros(size) if self.scores is None else _to_numpy(self.scores),
        )
        rows = np.column_stack(columns).tolist()
        return [cv2.KeyPoint(x, y, scale, angle, score) for x, y, scale, angle, score in rows]

    @classmethod
    def from_cv2(cls, keypoints: Sequence[cv2.KeyPoint]) -> Keypoints:
        """From OpenCV's keypoints: response, size and angle; octave and class are dropped.

        Angles are ``None`` where no keypoint has one, as those of corner detectors.
        """
        _check_cv2(keypoints, "keypoints")
        rows = np.array([(*k.pt, k.response, k.size, k.angle) for k in keypoints], np.float32).reshape(-1, 5)
        points, scores, scales, angles = rows[:, :2], rows[:, 2], rows[:, 3], rows[:, 4]
        oriented = len(rows) == 0 or bool((angles != _NO_ANGLE).any())
        return cls(points, scores, scales, angles if oriented else None)


KeypointsLike: TypeAlias = npt.NDArray[Any] | Tensor | Sequence[cv2.KeyPoint] | Keypoints
"""(N, 2) x, y in pixels in numpy or torch, a sequence of ``cv2.KeyPoint``, or :class:`Keypoints`."""


def as_keypoints(keypoints: KeypointsLike, name: str = "keypoints") -> Keypoints:
    """Any accepted form of keypoints with all that it says of them; see :func:`as_points`."""
    if isinstance(keypoints, Keypoints):
        return keypoints
    if isinstance(keypoints, np.ndarray | Tensor):
        return Keypoints(as_points(keypoints, name))
    _check_cv2(keypoints, name)
    return Keypoints.from_cv2(keypoints)


def as_points(keypoints: KeypointsLike, name: str = "keypoints") -> Array:
    """Any accepted form of keypoints as coordinates.

    Args:
        keypoints: (N, 2) x, y in pixels, integer or float, in numpy or torch; a sequence of ``cv2.KeyPoint``; or
            :class:`Keypoints`. Anything empty of shape (0,) or (0, 2) has no keypoints.
        name: What error messages call the keypoints.

    Returns:
        (N, 2) float32; torch, on the same device, where torch came in, and numpy otherwise.

    Raises:
        TypeError: ``keypoints`` is none of these forms or not numeric.
        ValueError: The shape is another, or a coordinate is NaN, infinite or too large for float32.
    """
    if isinstance(keypoints, Keypoints):
        return keypoints.points
    if isinstance(keypoints, np.ndarray | Tensor):
        points = _as_float32(keypoints, name)
        if points.shape == (0,):
            return points.reshape(0, 2)
        if points.ndim != 2 or points.shape[1] != 2:
            hint = "; transpose it" if points.ndim == 2 and points.shape[0] == 2 else ""
            raise ValueError(f"{name} must have shape (N, 2), x and y in pixels, got {tuple(points.shape)}{hint}")
        return points
    _check_cv2(keypoints, name)
    return _as_float32(np.array([keypoint.pt for keypoint in keypoints]).reshape(-1, 2), name)


def check_inside(points: Array, width: int, height: int, name: str = "keypoints") -> None:
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


def check_mask(mask: npt.NDArray[Any], shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """A mask of where keypoints may lie, refused unless it fits the image.

    Args:
        mask: (H, W) bool or uint8, non-zero where keypoints may lie.
        shape: Height and width of the image.

    Raises:
        TypeError: The mask is neither bool nor uint8.
        ValueError: The mask has another size than the image.
    """
    if not isinstance(mask, np.ndarray) or mask.dtype not in (np.bool_, np.uint8):
        got = mask.dtype if isinstance(mask, np.ndarray) else type(mask).__name__
        raise TypeError(f"mask must be a bool or a uint8 array, got {got}")
    if mask.shape != shape:
        raise ValueError(f"mask must have the image's shape {shape}, height and width, got {mask.shape}")
    return np.ascontiguousarray(mask, dtype=np.uint8)


def inside_mask(points: Array, mask: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """(N,) whether the pixel that each of (N, 2) points inside the image lies on is non-zero in the (H, W) mask."""
    column, row = np.rint(np.asarray(points)).astype(int).T
    inside: npt.NDArray[np.bool_] = mask[row, column] > 0
    return inside


def _as_float32(values: object, name: str) -> Array:
    """A numeric array in float32, refused where it is not finite."""
    result: Array
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


def _check_cv2(keypoints: object, name: str) -> None:
    if not isinstance(keypoints, Sequence) or not all(isinstance(k, cv2.KeyPoint) for k in keypoints):
        raise TypeError(
            f"{name} must be an (N, 2) numpy array or torch tensor, a sequence of cv2.KeyPoint, or Keypoints, got "
            f"{type(keypoints).__name__}; pass coordinates through np.asarray"
        )


def _to_numpy(values: Array) -> npt.NDArray[np.float32]:
    return cast("npt.NDArray[np.float32]", values.detach().cpu().numpy()) if isinstance(values, Tensor) else values
