"""Registration: an image moved onto the grid of pixels of another one that shows the same."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from capsdesc.describe.extractor import CAPSExtractor
from capsdesc.describe.orientation import Orientation
from capsdesc.geometry import Backend, estimate_affine, estimate_homography, project_homography
from capsdesc.images.stretch import as_seen
from capsdesc.images.warp import outline
from capsdesc.io.rasters import Raster, read_raster
from capsdesc.matching import MAX_SHIFT, match
from capsdesc.types import Float64Array, Homography, MatchMethod

Transform: TypeAlias = Literal["homography", "affine", "similarity"]
TRANSFORMS: tuple[Transform, ...] = get_args(Transform)
MIN_INLIERS: Mapping[MatchMethod, int] = {"nearest": 12, "context": 25}
"""Fewer inliers are no transform. Of the matches of photographs of different things, 135 pairs, at most 8 agreed on a
transform, and 21 of those of the network that looks at the context, which finds what is alike in two streets."""

Source: TypeAlias = "str | os.PathLike[str] | npt.NDArray[Any] | Raster"
"""A path, an (H, W) or (H, W, C) array of any real type with RGB first, or a :class:`capsdesc.io.rasters.Raster`."""


@dataclasses.dataclass(frozen=True, eq=False)
class Registration:
    """How one image lies on another.

    Pixel (0, 0) is the centre of the top-left pixel, in both images and at their full resolution.

    Attributes:
        transform: what `H` is: ``"homography"``, ``"affine"`` or ``"similarity"``.
        H: (3, 3), takes pixels of the moving image to those of the fixed one, x_fixed ~ H x_moving.
        moving_points: (M, 2) matched points of the moving image.
        fixed_points: (M, 2) those of the fixed image.
        inliers: (M,) bool, which matches agree with `H`.
        moving_size: width and height of the moving image.
        fixed_size: width and height of the fixed image.
    """

    transform: Transform
    H: Float64Array
    moving_points: Float64Array
    fixed_points: Float64Array
    inliers: npt.NDArray[np.bool_]
    moving_size: tuple[int, int]
    fixed_size: tuple[int, int]

    @property
    def residual(self) -> float:
        """Root of the mean squared distance of the inliers from where they should be, in pixels of the fixed image."""
        mapped = project_homography(self.H, self.moving_points[self.inliers])
        return float(np.sqrt(((mapped - self.fixed_points[self.inliers]) ** 2).sum(axis=1).mean()))

    def summary(self) -> dict[str, Any]:
        """All but the points in plain values, for JSON."""
        return {
            "transform": self.transform,
            "direction": "moving to fixed: (x_fixed, y_fixed, 1) ~ matrix (x_moving, y_moving, 1)",
            "coordinates": "pixels, (0, 0) is the centre of the top-left pixel",
            "matrix": self.H.tolist(),
            "fixed_size": list(self.fixed_size),
            "moving_size": list(self.moving_size),
            "matches": len(self.inliers),
            "inliers": int(self.inliers.sum()),
            "rms_residual": self.residual,
        }


def register(
    fixed: Source,
    moving: Source,
    extractor: CAPSExtractor | None = None,
    *,
    transform: Transform = "homography",
    max_keypoints: int = 2048,
    orientation: Orientation = "upright",
    ratio: float | None = None,
    max_shift: float | None = MAX_SHIFT,
    method: MatchMethod = "nearest",
    threshold: float = 3.0,
    min_inliers: int | None = None,
    backend: Backend = "opencv",
    seed: int = 0,
) -> Registration:
    """Find the transform that lays one image on another; :func:`capsdesc.images.warp.warp` then moves it.

    Images are described as :func:`capsdesc.images.stretch.as_seen` shows them, shrunk to the extractor's ``max_size``.
    The transform is that of the full resolution all the same: matched points are taken there before it is estimated.

    Args:
        fixed: the image whose grid of pixels stays.
        moving: the image that is moved onto it.
        extractor: describes both; None: the default one.
        transform: ``"homography"`` for something flat, or all that is seen from one place; ``"affine"`` without
            perspective; ``"similarity"`` only turns, scales and shifts.
        max_keypoints: at most so many an image.
        orientation: as for :meth:`CAPSExtractor.describe`.
        ratio: as for :func:`capsdesc.match`.
        max_shift: likewise.
        method: likewise.
        threshold: of inliers, in pixels of the fixed image as it was described.
        min_inliers: with fewer there is no transform; None: those of :data:`MIN_INLIERS`.
        backend: of homographies, as for :func:`capsdesc.estimate_homography`.
        seed: of the robust estimation.

    Raises:
        FileNotFoundError: a path with nothing at it.
        ImportError: a file or the backend needs a package that is not installed.
        ValueError: no transform is found, an image cannot be read, or an argument is out of range.
    """
    if method not in MIN_INLIERS:
        raise ValueError(f"method is {method!r}; expected one of {', '.join(MIN_INLIERS)}")
    if transform not in TRANSFORMS:
        raise ValueError(f"transform is {transform!r}; expected one of {', '.join(TRANSFORMS)}")
    min_inliers = MIN_INLIERS[method] if min_inliers is None else min_inliers
    if min_inliers < 4:
        raise ValueError(f"min_inliers is {min_inliers}; expected at least 4")
    extractor = extractor or CAPSExtractor()
    sizes, factors, features = [], [], []
    for image in (moving, fixed):
        raster = as_raster(image)
        height, width = raster.pixels.shape[:2]
        pixels = as_seen(raster.pixels, extractor.max_size, raster.nodata)
        sizes.append((width, height))
        factors.append(np.array([width / pixels.shape[1], height / pixels.shape[0]]))
        features.append(
            extractor.extract(pixels, max_keypoints, orientation=orientation, derivatives=max_shift is not None)
        )
    matches = match(*features, ratio=ratio, max_shift=max_shift, method=method)
    # A pixel p of a shrunk image is at (p + 0.5) r - 0.5 in the large one.
    moving_points, fixed_points = (
        (np.asarray(points, dtype=np.float64) + 0.5) * factor - 0.5
        for points, factor in zip(matches.points(*features), factors, strict=True)
    )
    threshold *= float(factors[1].max())
    found: Homography | None
    if transform == "homography":
        found = estimate_homography(moving_points, fixed_points, threshold=threshold, backend=backend, seed=seed)
    else:
        found = estimate_affine(
            moving_points, fixed_points, similarity=transform == "similarity", threshold=threshold, seed=seed
        )
    called = "affine transform" if transform == "affine" else transform
    count = 0 if found is None else int(found.inliers.sum())
    if found is None or count < min_inliers:
        raise ValueError(
            f"no {called} found: of {len(matches)} matches {count} agree on one, and at least {min_inliers} are "
            "expected; do both images show the same? If they are turned or of other scales, orientation 'any' "
            "(--orientation any) helps, or more keypoints (--max-keypoints)"
        )
    depth = np.column_stack([outline(*sizes[0]), np.ones(4)]) @ found.H[2]
    if depth.min() * depth.max() <= 0:
        raise ValueError(
            f"no {called} found: the one that {count} of {len(matches)} matches agree on takes a part of the moving "
            "image beyond the horizon; an affine transform or a similarity has none"
        )
    return Registration(transform, found.H, moving_points, fixed_points, found.inliers, sizes[0], sizes[1])


def as_raster(image: Source) -> Raster:
    """Any form of an image as it is stored.

    Raises:
        TypeError: it is none of these forms.
        ValueError: it is empty, or of another shape.
    """
    if isinstance(image, str | os.PathLike):
        return read_raster(image)
    raster = image if isinstance(image, Raster) else Raster(image)
    if not isinstance(raster.pixels, np.ndarray) or raster.pixels.dtype.kind not in "iuf":
        raise TypeError(f"the image is {type(raster.pixels).__name__}; expected a path, or a numpy array of numbers")
    if raster.pixels.ndim not in (2, 3) or 0 in raster.pixels.shape:
        raise ValueError(f"the image has shape {raster.pixels.shape}; expected (H, W) or (H, W, C), not empty")
    return raster
