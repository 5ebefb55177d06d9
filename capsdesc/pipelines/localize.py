"""Visual localisation: the poses of photographs in a map, by matches with those of the map that look like them."""

from __future__ import annotations

import copy
import dataclasses
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from capsdesc.describe.extractor import CAPSExtractor
from capsdesc.images import image_size
from capsdesc.io.colmap import import_pycolmap
from capsdesc.io.colmap_cameras import rescale_camera
from capsdesc.pipelines.engine import MAX_THREADS, How, describe_images
from capsdesc.pipelines.match import MatchingConfig, match_listed
from capsdesc.pipelines.scene_map import SceneMap
from capsdesc.types import Array, Features, Float64Array

CameraOrigin = Literal["given", "exif", "unknown"]
# COLMAP's guess where nothing is known of a camera: the focal length in units of the longer edge.
_FOCAL_PRIOR = 1.2
# RANSAC does not give up before it would have found so few inliers.
_MIN_INLIER_RATIO = 0.01
# What COLMAP's mapper takes for a camera: focal lengths in units of the longer edge, and distortion.
_FOCAL_RATIOS = (0.1, 10.0)
_MAX_DISTORTION = 1.0


@dataclasses.dataclass(frozen=True)
class LocalizeConfig(MatchingConfig):
    """How photographs are localised.

    Attributes:
        max_keypoints: as for :class:`capsdesc.pipelines.sfm.SfmConfig`, likewise the following; the map has the same.
        orientation: likewise.
        ratio: likewise. It is higher than there: with poses that are known, wrong matches are found out more surely.
        matcher: likewise.
        max_shift: likewise.
        neighbours: with how many photographs of the map a query is matched, those that look most like it as a whole.
        threshold: largest reprojection error of an inlier, in pixels.
        min_inliers: a pose has at least so many, or counts as not found.

    Raises:
        ValueError: an attribute is out of range.
    """

    ratio: float = 0.9
    neighbours: int = 10
    threshold: float = 8.0
    min_inliers: int = 15

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.neighbours < 1:
            raise ValueError(f"neighbours is {self.neighbours}; expected a number, at least 1")
        if not 0 < self.threshold < np.inf:
            raise ValueError(f"threshold is {self.threshold}; expected a positive number of pixels")
        # Three points have a pose whatever they are, and four one with a focal length.
        if self.min_inliers < 5:
            raise ValueError(f"min_inliers is {self.min_inliers}; expected a number, at least 5")


@dataclasses.dataclass(frozen=True, eq=False)
class Correspondences:
    """Keypoints of a query and the scene points that they match, by way of photographs of the map.

    Attributes:
        names: the V photographs that the query was matched with, those that look most like it first.
        views: (M,) which of them each match is with.
        pixels: (M, 2) of the query.
        map_pixels: (M, 2) of that photograph.
        point_ids: (M,) rows of the map's points.
    """

    names: tuple[str, ...]
    views: npt.NDArray[np.int64]
    pixels: Float64Array
    map_pixels: Float64Array
    point_ids: npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True, eq=False)
class Localization:
    """What became of a query.

    Attributes:
        R: (3, 3) rotation from world to camera, or None where no pose was found.
        t: (3,) translation from world to camera, in units of the map, or None.
        camera: a ``pycolmap.Camera``; its focal length is refined unless it was given.
        origin: where the camera comes from: ``"given"``, ``"exif"``, or ``"unknown"``.
        found: the matches with scene points.
        inliers: (M,) bool, which of them agree with the pose.
    """

    R: Float64Array | None
    t: Float64Array | None
    camera: Any
    origin: CameraOrigin
    found: Correspondences
    inliers: npt.NDArray[np.bool_]

    @property
    def inlier_count(self) -> int:
        """Number of keypoints with a scene point that agrees."""
        return len(np.unique(self.found.pixels[self.inliers], axis=0))

    @property
    def keypoint_count(self) -> int:
        """Number of keypoints that match a scene point."""
        return len(np.unique(self.found.pixels, axis=0))

    @property
    def best_view(self) -> int | None:
        """The photograph of the map that has most inliers; None where there is none."""
        counts = np.bincount(self.found.views[self.inliers], minlength=1)
        return int(counts.argmax()) if counts.any() else None


def guess_camera(path: str | os.PathLike[str]) -> tuple[Any, CameraOrigin]:
    """A camera for a photograph by the focal length of its EXIF data, or else of 1.2 times its longer edge.

    Returns:
        A ``pycolmap.Camera`` and ``"exif"`` or ``"unknown"``.

    Raises:
        ImportError: pycolmap is not installed.
        OSError, ValueError: the photograph cannot be read.
    """
    pycolmap = import_pycolmap()
    width, height = image_size(path)
    try:
        camera = pycolmap.infer_camera_from_image(os.fspath(path))
    except Exception:  # whatever its reader throws, as at WebP
        camera = None
    if camera is not None and camera.has_prior_focal_length and (camera.width, camera.height) == (width, height):
        return camera, "exif"
    focal = _FOCAL_PRIOR * max(width, height)
    return pycolmap.Camera.create_from_model_name(0, "SIMPLE_RADIAL", focal, width, height), "unknown"


def find_correspondences(
    features: Features, scene: SceneMap, config: LocalizeConfig, device: torch.device | str | None = None
) -> Correspondences:
    """Match a query with the photographs of a map that look most like it, and take the scene points that these show.

    Args:
        features: of the query, in numpy, made as those of the map.
        scene: the map.
        config: how to match.
        device: where to match; ``None``: in numpy.
    """
    names = scene.index.nearest(features.descriptors, config.neighbours) if len(features) else []
    # No photograph is called by an empty name.
    matched = match_listed(
        [("", name) for name in names],
        lambda name: features if name == "" else scene.load(name),
        ratio=config.ratio,
        max_shift=config.max_shift,
        method=config.matcher,
        device=device,
        progress=False,
    )
    rows: list[tuple[Array, ...]] = [(np.empty(0, np.int64), np.empty((0, 2)), np.empty((0, 2)), np.empty(0, np.int64))]
    for view, pair in enumerate(matched):
        indices = np.asarray(torch.as_tensor(pair.matches.indices).cpu())
        point_ids = scene.point_ids[names[view]][indices[:, 1]]
        indices, point_ids = indices[point_ids >= 0], point_ids[point_ids >= 0]
        pixels = (np.asarray(side.keypoints, np.float64)[indices[:, k]] for k, side in enumerate(pair.features))
        rows.append((np.full(len(indices), view, np.int64), *pixels, point_ids))
    return Correspondences(tuple(names), *(np.concatenate(column) for column in zip(*rows, strict=True)))


def localize(
    found: Correspondences, scene: SceneMap, camera: Any, origin: CameraOrigin, config: LocalizeConfig
) -> Localization:
    """The pose that most correspondences agree with, by COLMAP's LO-RANSAC and refinement.

    A focal length of EXIF data is refined with the pose, and one that is not known is estimated with it.

    Args:
        found: keypoints and scene points.
        scene: the map.
        camera: the query's ``pycolmap.Camera``; it stays as it is.
        origin: where it comes from.
        config: the threshold and the least number of inliers.
    """
    # A keypoint has the same scene point by way of several photographs.
    unique, inverse = np.unique(np.column_stack([found.pixels, found.point_ids]), axis=0, return_inverse=True)
    pixels, points = unique[:, :2], scene.points[unique[:, 2].astype(np.int64)]
    # Points of a plane have no focal length to be estimated: the guess may be better.
    searches = [True, False] if origin == "unknown" else [False]
    estimates = [_estimate(pixels, points, camera, origin, search, config.threshold) for search in searches]
    inliers, pose, refined = max(estimates, key=lambda estimate: int(estimate[0].sum()))
    result = Localization(None, None, refined, origin, found, inliers[inverse.ravel()])
    if pose is None or result.inlier_count < config.min_inliers:
        return result
    return dataclasses.replace(result, R=np.asarray(pose.rotation.matrix()), t=np.asarray(pose.translation))


def _estimate(
    pixels: Array, points: Array, camera: Any, origin: CameraOrigin, search_focal: bool, threshold: float
) -> tuple[npt.NDArray[np.bool_], Any, Any]:
    """Inliers, the pose and the camera with its focal length; no inlier and None where there is no pose."""
    pycolmap = import_pycolmap()
    refined = copy.deepcopy(camera)
    ransac = pycolmap.RANSACOptions(max_error=threshold, min_inlier_ratio=_MIN_INLIER_RATIO, random_seed=0)
    found = pycolmap.estimate_and_refine_absolute_pose(
        pixels + 0.5,
        points,
        refined,
        pycolmap.AbsolutePoseEstimationOptions(estimate_focal_length=search_focal, ransac=ransac),
        pycolmap.AbsolutePoseRefinementOptions(refine_focal_length=origin != "given"),
    )
    # Few wrong matches agree best through a lens that no camera has.
    if found is None or (origin != "given" and refined.has_bogus_params(*_FOCAL_RATIOS, _MAX_DISTORTION)):
        return np.zeros(len(pixels), dtype=bool), None, copy.deepcopy(camera)
    return np.asarray(found["inlier_mask"], dtype=bool), found["cam_from_world"], refined


@dataclasses.dataclass(frozen=True, eq=False)
class LocalizedQuery:
    """A query, and what became of it.

    Attributes:
        name: of the query.
        path: its file.
        result: its pose and matches, or what is wrong with it.
        seconds: from the query before to this one.
    """

    name: str
    path: Path
    result: Localization | str
    seconds: float

    @property
    def pose(self) -> tuple[Float64Array, Float64Array] | None:
        """R (3, 3) and t (3,) from world to camera; None where no pose was found."""
        if isinstance(self.result, str) or self.result.R is None or self.result.t is None:
            return None
        return self.result.R, self.result.t

    def summary(self) -> dict[str, Any]:
        """All of it in plain values, for JSON."""
        about: dict[str, Any] = {"name": self.name, "localized": self.pose is not None, "seconds": self.seconds}
        if isinstance(self.result, str):
            return about | {"error": self.result}
        if self.pose is not None:
            about |= {"R": self.pose[0].tolist(), "t": self.pose[1].tolist()}
        found, inliers, camera = self.result.found, self.result.inliers, self.result.camera
        return about | {
            "keypoints_with_points": self.result.keypoint_count,
            "inliers": self.result.inlier_count,
            "camera": {
                "origin": self.result.origin,
                "model": camera.model_name,
                "width": camera.width,
                "height": camera.height,
                "params": np.asarray(camera.params).tolist(),
            },
            "retrieved": [
                {
                    "name": name,
                    "matches": int((found.views == view).sum()),
                    "inliers": int(inliers[found.views == view].sum()),
                }
                for view, name in enumerate(found.names)
            ],
        }


def localize_images(
    extractor: CAPSExtractor,
    scene: SceneMap,
    queries: Mapping[str, Path],
    config: LocalizeConfig,
    *,
    cameras: Mapping[str, Any] | None = None,
    threads: int | None = None,
    progress: bool = False,
) -> Iterator[LocalizedQuery]:
    """Localise photographs one after the other; one that cannot be read does not stop the others.

    Args:
        extractor: the one that the map was made by.
        scene: the map.
        queries: the file of each query by its name.
        config: how; the settings of features as the map has them.
        cameras: a ``pycolmap.Camera`` for each query whose camera is known; for others see :func:`guess_camera`.
        threads: as for :func:`capsdesc.pipelines.extract.extract_images`.
        progress: whether to show progress on standard error, where that is a terminal.
    """
    how = How(config.max_keypoints, config.orientation, config.max_shift is not None)
    described = describe_images(extractor, queries, how, threads or min(os.cpu_count() or 1, MAX_THREADS))
    start = time.perf_counter()
    bar = tqdm(described, total=len(queries), desc="localize", unit="image", disable=None if progress else True)
    for name, outcome in bar:
        camera = _camera(name, queries[name], cameras or {})
        result: Localization | str
        if isinstance(outcome, str):
            result = outcome
        elif isinstance(camera, str):
            result = camera
        else:
            found = find_correspondences(outcome, scene, config, extractor.device)
            result = localize(found, scene, *camera, config)
        end = time.perf_counter()
        yield LocalizedQuery(name, queries[name], result, round(end - start, 3))
        start = end


def _camera(name: str, path: Path, cameras: Mapping[str, Any]) -> tuple[Any, CameraOrigin] | str:
    """The camera of a query, of the size of its file, or what is wrong with it."""
    try:
        if name not in cameras:
            return guess_camera(path)
        camera, size = cameras[name], image_size(path)
        same = (camera.width, camera.height) == size
        return camera if same else rescale_camera(camera, size, path, "the list of queries"), "given"
    except (OSError, ValueError) as error:
        return " ".join(str(error).split())
