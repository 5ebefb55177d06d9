"""What flows between modules: images, keypoints, features, matches, poses. Nothing is computed here.

Pixel (0, 0) is the centre of the top-left pixel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias, cast

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from capsdesc.checks import as_float32, check_cv2
from capsdesc.isolation import isolated

Array: TypeAlias = npt.NDArray[Any]
"""numpy, of any type of numbers."""

Float64Array: TypeAlias = npt.NDArray[np.float64]
Float32Array: TypeAlias = npt.NDArray[np.float32]

UInt8Array: TypeAlias = npt.NDArray[np.uint8]
"""Most often the (H, W, 3) pixels of an RGB image."""

ArrayOrTensor: TypeAlias = Float32Array | Tensor
"""float32, in numpy or in torch."""

Matrix: TypeAlias = npt.NDArray[Any] | Tensor
"""A small matrix or vector of real numbers, in numpy or in torch."""


@dataclass(frozen=True, eq=False)
class Features:
    """Keypoints of an image and their descriptors; numpy arrays, or torch tensors on one device.

    Attributes:
        keypoints: (N, 2) x, y in pixels, (0, 0) the centre of the top-left one.
        descriptors: (N, D) float32; (turns, zooms, N, D) with ``orientation="any"``.
        scores: (N,) the detector's response, or None if it has none.
        scales: (N,) diameter of the detected region in pixels, or None.
        angles: (N,) orientation in degrees, clockwise, or None.
        image_size: width and height in pixels.
        derivatives: (N, 2, C) float32, how the descriptors change from pixel to pixel along x and y, C being D without
            reliability; (turns, zooms, N, 2, C) with ``orientation="any"``; or None. ``max_shift`` of
            :func:`capsdesc.match` needs them.
        model: fingerprint of the weights that described them, or None where that is not known.
    """

    keypoints: ArrayOrTensor
    descriptors: ArrayOrTensor
    scores: ArrayOrTensor | None
    scales: ArrayOrTensor | None
    angles: ArrayOrTensor | None
    image_size: tuple[int, int]
    derivatives: ArrayOrTensor | None = None
    model: str | None = None

    def __len__(self) -> int:
        return len(self.keypoints)


@dataclass(frozen=True, eq=False)
class Located:
    """Where points of one image are in another.

    Attributes:
        points: (N, 2) expected x, y in pixels of the second image.
        std: (N,) standard deviation of the fine search in pixels, the root mean square over x and y. It ranks answers:
            the larger, the less sure. It is no bound on the error, as it knows nothing beyond the window around the
            coarse answer.
    """

    points: ArrayOrTensor
    std: ArrayOrTensor

    def __len__(self) -> int:
        return len(self.points)


class HasPoints(Protocol):
    """Anything that carries (N, 2) points, such as the keypoints of an image."""

    @property
    def points(self) -> npt.NDArray[Any] | Tensor:
        """(N, 2) x, y in pixels."""


Points: TypeAlias = npt.NDArray[Any] | Tensor | Sequence[cv2.KeyPoint] | HasPoints


@dataclass(frozen=True, eq=False)
class RelativePose:
    """The pose of camera 1 relative to camera 0: x0 ~ K0 X and x1 ~ K1 (R X + t).

    Attributes:
        R: (3, 3) rotation.
        t: (3,) translation of unit length; its scale cannot be known from two views.
        inliers: (M,) bool, the matches that agree with the pose and lie in front of both cameras.
        E: (3, 3) essential matrix [t]x R.
    """

    R: Float64Array
    t: Float64Array
    inliers: npt.NDArray[np.bool_]
    E: Float64Array


@dataclass(frozen=True, eq=False)
class Homography:
    """A plane-to-plane map, x1 ~ H x0.

    Attributes:
        H: (3, 3) with H[2, 2] = 1, or of unit norm where H[2, 2] vanishes.
        inliers: (M,) bool.
    """

    H: Float64Array
    inliers: npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Fundamental:
    """The epipolar geometry of two uncalibrated views, x1^T F x0 = 0.

    Attributes:
        F: (3, 3) of rank 2 and unit norm.
        inliers: (M,) bool.
    """

    F: Float64Array
    inliers: npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class PosedImage:
    """A photograph with its camera, its pose and the scene points seen in it.

    Attributes:
        path: the image file.
        camera: a ``pycolmap.Camera`` of any of COLMAP's models.
        R: (3, 3) rotation from world to camera.
        t: (3,) translation from world to camera, x_camera = R x_world + t.
        points: (P, 3) world coordinates of the scene points seen.
        point_ids: (P,) their ids, ascending, unique.
    """

    path: Path
    camera: Any
    R: Array
    t: Array
    points: Array
    point_ids: Array

    @property
    def K(self) -> Array:
        """(3, 3) intrinsics of the camera without its distortion, in pixels."""
        K = np.array(self.camera.calibration_matrix(), dtype=np.float64)
        K[:2, 2] -= 0.5
        return K

    def pixels_to_rays(self, pixels: Array) -> Array:
        """(N, 2) pixels, (0, 0) the centre of the top-left one, to (N, 2) undistorted x/z, y/z in the camera."""
        return np.asarray(self.camera.cam_from_img(np.asarray(pixels, dtype=np.float64) + 0.5))

    def rays_to_pixels(self, rays: Array) -> Array:
        """(N, 2) x/z, y/z in the camera to (N, 2) pixels, lens distortion included."""
        homogeneous = np.concatenate([rays, np.ones((len(rays), 1))], axis=1)
        return np.asarray(self.camera.img_from_cam(homogeneous)) - 0.5


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

    points: ArrayOrTensor
    scores: ArrayOrTensor | None = None
    scales: ArrayOrTensor | None = None
    angles: ArrayOrTensor | None = None

    @isolated(gradients=None, threads=False)
    def __post_init__(self) -> None:
        points = as_points(self.points, "points")
        object.__setattr__(self, "points", points)
        for name in ("scores", "scales", "angles"):
            values = getattr(self, name)
            if values is None:
                continue
            values = as_float32(values, name)
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

    @isolated(gradients=None, threads=False)
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
        check_cv2(keypoints, "keypoints")
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
    check_cv2(keypoints, name)
    return Keypoints.from_cv2(keypoints)


def as_points(keypoints: KeypointsLike, name: str = "keypoints") -> ArrayOrTensor:
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
        points = as_float32(keypoints, name)
        if points.shape == (0,):
            return points.reshape(0, 2)
        if points.ndim != 2 or points.shape[1] != 2:
            hint = "; transpose it" if points.ndim == 2 and points.shape[0] == 2 else ""
            raise ValueError(f"{name} must have shape (N, 2), x and y in pixels, got {tuple(points.shape)}{hint}")
        return points
    check_cv2(keypoints, name)
    return as_float32(np.array([keypoint.pt for keypoint in keypoints]).reshape(-1, 2), name)


def _to_numpy(values: ArrayOrTensor) -> npt.NDArray[np.float32]:
    return cast("npt.NDArray[np.float32]", values.detach().cpu().numpy()) if isinstance(values, Tensor) else values


class HasDescriptors(Protocol):
    """Anything that carries (N, D) descriptors, such as the features of an image."""

    @property
    def descriptors(self) -> npt.NDArray[Any] | Tensor:
        """(N, D) descriptors."""


Descriptors: TypeAlias = npt.NDArray[Any] | Tensor | HasDescriptors


MatchMethod: TypeAlias = Literal["nearest", "context"]
"""How :func:`capsdesc.match` matches."""


@dataclass(frozen=True, eq=False)
class Matches:
    """Pairs of descriptors, in the order of the first set.

    Attributes:
        indices: (M, 2) int64, row i of the first set and row j of the second.
        distances: (M,) float32, their Euclidean distances.
        scores: (M,) float32 from 0 to 1, how sure a learned matcher is of each; None of nearest neighbours.
    """

    indices: npt.NDArray[np.int64] | Tensor
    distances: npt.NDArray[np.float32] | Tensor
    scores: npt.NDArray[np.float32] | Tensor | None = None

    def __len__(self) -> int:
        return len(self.indices)

    @isolated(gradients=None, threads=False)
    def points(
        self, features0: Features | KeypointsLike, features1: Features | KeypointsLike
    ) -> tuple[ArrayOrTensor, ArrayOrTensor]:
        """Where the matched points are, row by row.

        Args:
            features0: features or keypoints whose descriptors were the first set.
            features1: those of the second.

        Returns:
            Two arrays (M, 2) float32, x and y in pixels; each in numpy, or in torch where its keypoints are.

        Raises:
            ValueError: there are fewer keypoints than the matches speak of.
        """
        return (
            _selected(features0, self.indices[:, 0], "features0"),
            _selected(features1, self.indices[:, 1], "features1"),
        )

    def to_cv2(self) -> list[cv2.DMatch]:
        """As OpenCV's matches: the first set is the query, the second the training set."""
        indices, distances = self.indices.tolist(), self.distances.tolist()
        return [cv2.DMatch(i, j, distance) for (i, j), distance in zip(indices, distances, strict=True)]

    @classmethod
    def from_cv2(cls, matches: Sequence[cv2.DMatch]) -> Matches:
        """From OpenCV's matches, in numpy and in the order given; image indices are dropped.

        Raises:
            TypeError: `matches` is no sequence of `cv2.DMatch`, as the pairs of `knnMatch` are none.
        """
        if not isinstance(matches, Sequence) or not all(isinstance(pair, cv2.DMatch) for pair in matches):
            raise TypeError(f"matches is {type(matches).__name__}; expected a sequence of cv2.DMatch, not of sequences")
        indices = np.array([(pair.queryIdx, pair.trainIdx) for pair in matches], np.int64).reshape(-1, 2)
        return cls(indices, np.array([pair.distance for pair in matches], np.float32))


def _selected(features: Features | KeypointsLike, indices: npt.NDArray[np.int64] | Tensor, name: str) -> ArrayOrTensor:
    points = as_points(features.keypoints if isinstance(features, Features) else features, name)
    if len(indices) and not 0 <= int(indices.min()) <= int(indices.max()) < len(points):
        raise ValueError(
            f"{name} has {len(points)} keypoints, but the matches speak of number {int(indices.max())}, counted from "
            "0; expected what was matched, in the same order"
        )
    if isinstance(points, Tensor):
        # Of numpy's a copy: torch warns of arrays that are read-only.
        chosen = indices if isinstance(indices, Tensor) else torch.tensor(indices)
        return points[chosen.to(points.device)]
    return points[indices.cpu().numpy() if isinstance(indices, Tensor) else indices]
