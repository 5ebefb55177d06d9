"""Posed photographs from any source, as scenes to train on.

A scene needs photographs with cameras and poses, pairs that overlap, and an idea of how deep the scene is. A COLMAP
model says all of it; other sources know poses only. For those :func:`pose_scene` fills the frustum of every photograph,
between a near and a far depth, with random *stand-in points*, and each photograph sees those that project into it. They
serve as scene points: what two photographs share is how far their frustums overlap (walls between them are not known),
crops are aimed at points both see, and query points are tried at the depths they span.

The depths are given (``depth: [near, far]``, in the unit of the poses) or measured: SIFT matches of a few pairs that
agree with the poses are triangulated, see :func:`measure_depth`.
"""

from __future__ import annotations

import abc
import dataclasses
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np
import numpy.typing as npt
from scipy.spatial.transform import Rotation

from capsdesc.evaluation.datasets import read_pairs_file
from capsdesc.geometry import (
    ROTATION_TOLERANCE,
    as_rotation,
    essential_from_pose,
    relative_pose,
    rotation_error,
    sampson_distance,
)
from capsdesc.io.colmap import PosedImage, find_model, import_pycolmap, read_model
from capsdesc.io.images import image_size, listed_image, read_image, to_gray
from capsdesc.io.text import below, finite_numbers, parse_json, parse_yaml, read_lines, read_text, shown
from capsdesc.matching import match
from capsdesc.training.checks import check_numbers, check_range
from capsdesc.training.config import build
from capsdesc.training.dataset import DataConfig, Scene, covisible_pairs

logger = logging.getLogger(__name__)

Array = npt.NDArray[Any]
DepthRange = tuple[float, float]
Features = tuple[Array, Array, float]

# Stand-in points per photograph; fewer where so many photographs would bring more than the total.
STAND_INS = 64
STAND_INS_IN_TOTAL = 8192
FEWEST_STAND_INS = 8

# Depth is measured on so many listed pairs, or around so many photographs with their neighbours of these ranks by
# distance: frames of a video are far too close to their next ones.
MEASURED_PAIRS = 32
MEASURED_PHOTOGRAPHS = 8
NEIGHBOUR_RANKS = (1, 2, 4, 8, 16)
# SIFT hardly matches beyond this rotation in degrees.
LARGEST_MEASURED_ROTATION = 40.0
MEASURED_SIZE = 800
# A match counts within this many pixels of the reduced photograph, and at this angle between its rays in degrees.
EPIPOLAR_TOLERANCE = 1.5
SMALLEST_ANGLE = 2.0
FEWEST_MEASURED = 50
# The share of measured depths left out at either end.
OUTLYING_PERCENT = 2.0

# In pixels; what is larger is no image's.
LARGEST_EDGE = 2**20

# Lenses of transforms.json that k1, k2, p1, p2 and k3 describe.
NERF_PERSPECTIVE = ("OPENCV", "PINHOLE", "SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL")
NERF_FISHEYE = "OPENCV_FISHEYE"
NERF_SUFFIXES = ("", ".png", ".jpg")
OPENGL_TO_OPENCV = np.diag([1.0, -1.0, -1.0])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source(abc.ABC):
    """Where posed photographs come from.

    Attributes:
        path: file or folder.
        weight: factor on how often each of its scenes is drawn.
    """

    kind: ClassVar[str]

    path: str
    weight: float = 1.0

    def __post_init__(self) -> None:
        check_numbers(self, "weight", least=0)

    @abc.abstractmethod
    def scenes(self, config: DataConfig) -> list[Scene]:
        """Read the scenes.

        Args:
            config: which pairs may be drawn.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: a file does not hold what it should; the message names it, and the line where there is one.
        """


@dataclasses.dataclass(frozen=True, kw_only=True)
class PosesSource(Source):
    """A source that knows no scene points.

    Attributes:
        depth: nearest and farthest depth of the scene in the unit of the poses; None measures it.
    """

    depth: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.depth is not None:
            check_range("depth", self.depth, distinct=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ColmapSource(Source):
    """A COLMAP reconstruction, text or binary, of any of its camera models.

    ``path`` is a folder with ``images/`` and ``sparse/``; every model ``sparse/0/``, ``sparse/1/``, ... is a scene of
    its own. A model without scene points is one of poses only.

    Attributes:
        images: folder of the images where it is not ``path/images``.
    """

    kind: ClassVar[str] = "colmap"

    images: str | None = None

    def scenes(self, config: DataConfig) -> list[Scene]:
        """One scene per model."""
        folder = Path(self.path)
        images = Path(self.images) if self.images is not None else folder / "images"
        models = [model for model in _numbered(folder / "sparse") if any(model.glob("images.*"))]
        scenes = []
        for model in models or [find_model(folder)]:
            name = folder.name if len(models) < 2 else f"{folder.name}/{model.name}"
            photographs = read_model(model, images)
            if any(len(photograph.points) for photograph in photographs):
                scenes.append(Scene(name, photographs, covisible_pairs(photographs, config)))
            else:
                scenes.append(pose_scene(name, photographs, config))
        return scenes


@dataclasses.dataclass(frozen=True, kw_only=True)
class CapsSource(PosesSource):
    """MegaDepth as the authors of CAPS published it (github.com/qianqianwang68/caps).

    ``path`` is a folder of scenes, ``SCENE/dense*/aligned/``, or one such ``aligned`` folder. In it ``img_cam.txt`` has
    lines ``name w h fx fy cx cy R(9) t(3)``, world to camera, ``pairs.txt`` lines ``name0 name1``, ``images/`` the
    photographs. Principal points are taken for COLMAP's, where the files come from. The default depth is the authors'.
    """

    kind: ClassVar[str] = "caps"

    depth: tuple[float, float] | None = (4.0, 400.0)

    def scenes(self, config: DataConfig) -> list[Scene]:
        """One scene per ``img_cam.txt`` that has a ``pairs.txt``."""
        root = Path(self.path)
        folders = [root] if (root / "img_cam.txt").is_file() else sorted(root.glob("*/dense*/aligned"))
        if not folders:
            raise FileNotFoundError(f"no img_cam.txt in {root} and no {root}/SCENE/dense*/aligned/")
        scenes = []
        for folder in folders:
            if not (folder / "pairs.txt").is_file():
                logger.warning("%s has no pairs.txt: left out", folder)
                continue
            photographs = _read_img_cam(folder)
            pairs = _read_pair_names(folder / "pairs.txt", photographs)
            name = "/".join(folder.resolve().parts[-3:-1])
            scenes.append(pose_scene(name, list(photographs.values()), config, self.depth, pairs))
        return scenes


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairsSource(PosesSource):
    """A text file of pairs, ``name0 name1 rot0 rot1 K0(9) K1(9) T_0to1(16)``, as of ScanNet and MegaDepth.

    Every pair is a world of its own. Pairs of which one photograph lies on its side and the other does not are left
    out: the descriptors are of upright images.

    Attributes:
        images: folder the names are relative to, where it is not that of the file.
    """

    kind: ClassVar[str] = "pairs"

    images: str | None = None

    def scenes(self, config: DataConfig) -> list[Scene]:
        """One scene of all the pairs."""
        path = Path(self.path)
        listed = read_pairs_file(path, Path(self.images) if self.images is not None else None)
        upright = [pair for pair in listed if pair.view0.turns == pair.view1.turns]
        if len(upright) < len(listed):
            logger.warning("%s: %d pairs turned against each other left out", path, len(listed) - len(upright))
        sizes: dict[Path, tuple[int, int]] = {}
        photographs = []
        for pair in upright:
            where = f"{path}, pair {pair.name}"
            poses = ((np.eye(3), np.zeros(3)), (pair.R, pair.t))
            views = ((pair.view0, pair.camera0), (pair.view1, pair.camera1))
            for (view, lens), (R, t) in zip(views, poses, strict=True):
                if view.path not in sizes:
                    sizes[view.path] = image_size(view.path)
                camera = _pinhole(sizes[view.path], lens.K, where)
                photographs.append(_posed(view.path, camera, R, t))
        pairs = np.arange(len(photographs)).reshape(-1, 2)
        return [pose_scene(path.stem, photographs, config, self.depth, pairs)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class NerfSource(PosesSource):
    """``transforms.json`` as instant-ngp, nerfstudio and the Blender scenes of NeRF have it.

    ``path`` is the file, or a folder with a ``transforms.json``. Poses are camera to world with OpenGL's axes (y up,
    looking along -z). Intrinsics are ``fl_x`` (or ``camera_angle_x`` in radians), ``fl_y``, ``cx``, ``cy``, ``w``,
    ``h``, ``k1``, ``k2``, ``k3``, ``p1``, ``p2``, or ``k1`` to ``k4`` of a fisheye; a frame's own come before the
    file's. The principal point follows COLMAP: the centre of the top-left pixel is (0.5, 0.5).
    """

    kind: ClassVar[str] = "nerf"

    def scenes(self, config: DataConfig) -> list[Scene]:
        """One scene."""
        path = Path(self.path)
        path = path / "transforms.json" if path.is_dir() else path
        return [pose_scene(path.resolve().parent.name, _read_transforms(path), config, self.depth)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TumSource(PosesSource):
    """A trajectory as the TUM RGB-D benchmark has it (Sturm et al., IROS 2012).

    ``path`` is a folder. Lines of the trajectory are ``timestamp tx ty tz qx qy qz qw``, camera to world, those of the
    image list ``timestamp file``; an image gets the pose nearest in time.

    Attributes:
        intrinsics: fx, fy, cx, cy in pixels, the centre of the top-left one being (0, 0).
        distortion: k1, k2, p1, p2, k3 as OpenCV has them.
        trajectory: file of the poses, relative to ``path``.
        image_list: file of the images' names, which are relative to it; itself relative to ``path``.
        max_difference: images without a pose within so many seconds are left out.
        every: take every n-th image.
    """

    kind: ClassVar[str] = "tum"

    intrinsics: tuple[float, float, float, float]
    distortion: tuple[float, float, float, float, float] = (0.0, 0.0, 0.0, 0.0, 0.0)
    trajectory: str = "groundtruth.txt"
    image_list: str = "rgb.txt"
    max_difference: float = 0.02
    every: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, "max_difference", least=0)
        check_numbers(self, "every", least=1)
        if not (min(self.intrinsics[:2]) > 0 and np.isfinite([*self.intrinsics, *self.distortion]).all()):
            raise ValueError(
                f"intrinsics is {list(self.intrinsics)} and distortion is {list(self.distortion)}; expected fx, fy, "
                "cx, cy and k1, k2, p1, p2, k3, all finite and the first two positive"
            )

    def scenes(self, config: DataConfig) -> list[Scene]:
        """One scene."""
        folder = Path(self.path)
        poses = sorted(_read_trajectory(folder / self.trajectory), key=lambda pose: pose[0])
        times = np.array([time for time, _, _ in poses])
        listed = _read_image_list(folder / self.image_list)[:: self.every]
        camera, photographs = None, []
        for time, path in listed:
            nearest = int(np.abs(times - time).argmin())
            if abs(times[nearest] - time) > self.max_difference:
                continue
            if camera is None:
                camera = _opencv_camera(image_size(path), self.intrinsics, self.distortion)
            _, R, t = poses[nearest]
            photographs.append(_posed(path, camera, R, t))
        if len(photographs) < 2:
            raise ValueError(
                f"{folder}: {len(photographs)} of {len(listed)} images have a pose within {self.max_difference} s; "
                "do the timestamps of both files run on one clock?"
            )
        return [pose_scene(folder.resolve().name, photographs, config, self.depth)]


SOURCES: Mapping[str, type[Source]] = {
    source.kind: source for source in (ColmapSource, CapsSource, PairsSource, NerfSource, TumSource)
}


def read_sources(path: str | os.PathLike[str]) -> list[Source]:
    """The sources that a YAML file lists, each a mapping of ``kind``, ``path``, ``weight`` and the kind's own settings.

    Paths are relative to the file's folder. Nothing but the list is read; :meth:`Source.scenes` reads the scenes.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no YAML list of mappings, or a setting is unknown, missing or refused; it is named.
    """
    path = Path(path)
    entries = parse_yaml(read_text(path), str(path))
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(
            f"{path} holds {shown(entries)}; expected a list of sources, each '- kind: ...' and 'path: ...'"
        )
    return [
        _source(entry, path.parent, f"{path}, source {number} of {len(entries)}")
        for number, entry in enumerate(entries, start=1)
    ]


def _source(entry: dict[str, Any], folder: Path, where: str) -> Source:
    named = entry.get("kind")
    if not isinstance(named, str) or named not in SOURCES:
        raise ValueError(f"{where}: kind is {shown(named)}; expected one of {', '.join(SOURCES)}")
    kind = SOURCES[named]
    values = {key: value for key, value in entry.items() if key != "kind"}
    required = [field.name for field in dataclasses.fields(kind) if field.default is dataclasses.MISSING]
    missing = [name for name in required if name not in values]
    if missing:
        raise ValueError(f"{where}: a {kind.kind} source needs {', '.join(missing)}")
    for name in ("path", "images"):
        if isinstance(values.get(name), str):
            values[name] = str(folder / values[name])
    try:
        return build(kind, values)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


# ---------------------------------------------------------------------------------------------------------------------
# Scenes of poses only
# ---------------------------------------------------------------------------------------------------------------------


def pose_scene(
    name: str,
    photographs: Sequence[PosedImage],
    config: DataConfig,
    depth: DepthRange | None = None,
    pairs: Array | None = None,
) -> Scene:
    """A scene of photographs of which only cameras and poses are known.

    Args:
        name: what it is called in messages.
        photographs: the photographs; their points are replaced by stand-ins.
        config: which pairs may be drawn.
        depth: nearest and farthest depth of the scene, in the unit of the poses; None measures it.
        pairs: (P, 2) indices of photographs that are known to overlap. Of these only such with too large a rotation or
            frustums that do not meet are left out. Without any, all pairs are tried as those of a reconstruction are.

    Raises:
        ValueError: the depth cannot be measured.
    """
    if depth is None:
        depth = measure_depth(photographs, pairs)
        logger.info("%s: measured depths of %.3g to %.3g", name, *depth)
    photographs = add_stand_ins(photographs, depth, pairs)
    if pairs is None:
        return Scene(name, photographs, covisible_pairs(photographs, config))
    kept = [
        (i, j)
        for i, j in pairs
        if rotation_error(photographs[i].R, photographs[j].R) <= config.max_rotation
        and np.isin(photographs[i].point_ids, photographs[j].point_ids).any()
    ]
    return Scene(name, photographs, np.asarray(kept, dtype=np.int64).reshape(-1, 2))


def add_stand_ins(
    photographs: Sequence[PosedImage], depth: DepthRange, pairs: Array | None = None, seed: int = 0
) -> list[PosedImage]:
    """Photographs with stand-ins as their scene points.

    Args:
        photographs: the photographs.
        depth: nearest and farthest depth of the points from the camera they were drawn for; they are uniform in pixels
            and in log depth.
        pairs: (P, 2) indices; a photograph then sees points of its own and of its partners only.
        seed: of the points.
    """
    near, far = depth
    count = len(photographs)
    each = (
        STAND_INS
        if pairs is not None
        else int(np.clip(STAND_INS_IN_TOTAL / max(1, count), FEWEST_STAND_INS, STAND_INS))
    )
    rng = np.random.default_rng(seed)
    points = np.empty((count, each, 3))
    for own, posed in zip(points, photographs, strict=True):
        rays = posed.pixels_to_rays(rng.uniform((0, 0), _last_pixel(posed), (each, 2)))
        camera = np.c_[rays, np.ones(each)] * np.exp(rng.uniform(np.log(near), np.log(far), (each, 1)))
        own[:] = (camera - posed.t) @ posed.R
    partners: list[Array] = [np.arange(count)] * count
    if pairs is not None:
        known = [{k} for k in range(count)]
        for i, j in pairs.tolist():
            known[i].add(j)
            known[j].add(i)
        partners = [np.array(sorted(indices)) for indices in known]
    completed = []
    for posed, indices in zip(photographs, partners, strict=True):
        candidates = points[indices].reshape(-1, 3)
        ids = (indices[:, None] * each + np.arange(each)).ravel()
        seen = _in_frustum(posed, candidates, depth)
        completed.append(dataclasses.replace(posed, points=candidates[seen], point_ids=ids[seen]))
    return completed


def measure_depth(photographs: Sequence[PosedImage], pairs: Array | None = None) -> DepthRange:
    """The depths of a scene, from SIFT matches of a few pairs, triangulated with the known poses.

    Args:
        photographs: the photographs.
        pairs: (P, 2) indices of photographs that overlap; without any, neighbours are tried.

    Returns:
        Nearest and farthest depth in the unit of the poses, without the outermost 2 % at either end.

    Raises:
        ValueError: too few matches agree with the poses.
    """
    tried = _neighbours(photographs) if pairs is None else pairs
    tried = [(i, j) for i, j in tried if rotation_error(photographs[i].R, photographs[j].R) < LARGEST_MEASURED_ROTATION]
    if pairs is not None and len(tried) > MEASURED_PAIRS:
        tried = [tried[k] for k in np.linspace(0, len(tried) - 1, MEASURED_PAIRS).astype(int)]
    features = {k: _sift(photographs[k].path) for k in {int(k) for pair in tried for k in pair}}
    depths = np.concatenate(
        [np.empty(0)]
        + [_triangulated_depths(photographs[i], photographs[j], features[i], features[j]) for i, j in tried]
    )
    if len(depths) < FEWEST_MEASURED:
        raise ValueError(
            f"the scene's depth cannot be measured: {len(depths) // 2} SIFT matches of {len(tried)} pairs agree with "
            "the poses; check poses and intrinsics, or say 'depth: [near, far]' in the unit of the poses"
        )
    near, far = np.percentile(depths, [OUTLYING_PERCENT, 100 - OUTLYING_PERCENT])
    return float(near), float(far)


def _neighbours(photographs: Sequence[PosedImage]) -> list[tuple[int, int]]:
    centers = np.array([-posed.R.T @ posed.t for posed in photographs]).reshape(-1, 3)
    around = np.unique(np.linspace(0, max(0, len(centers) - 1), MEASURED_PHOTOGRAPHS).astype(int))
    pairs = set()
    for i in around[: len(centers)].tolist():
        order = np.argsort(np.linalg.norm(centers - centers[i], axis=1), kind="stable")
        others = order[order != i]
        pairs |= {(i, int(others[rank - 1])) for rank in NEIGHBOUR_RANKS if rank <= len(others)}
    return sorted(pairs)


def _triangulated_depths(first: PosedImage, second: PosedImage, features0: Features, features1: Features) -> Array:
    """Depths, in both cameras, of matches that agree with the poses."""
    R, t = relative_pose(first.R, first.t, second.R, second.t)
    (points0, descriptors0, scale), (points1, descriptors1, _) = features0, features1
    if not t.any() or min(len(points0), len(points1)) < 2:
        return np.empty(0)
    matches = match(descriptors0, descriptors1, ratio=0.8).indices
    rays0, rays1 = first.pixels_to_rays(points0[matches[:, 0]]), second.pixels_to_rays(points1[matches[:, 1]])
    known = np.isfinite(np.c_[rays0, rays1]).all(1)
    rays0, rays1 = rays0[known], rays1[known]
    if len(rays0) == 0:
        return np.empty(0)
    focal = first.camera.mean_focal_length() * scale
    homogeneous = cv2.triangulatePoints(np.eye(3, 4), np.c_[R, t], rays0.T, rays1.T)
    points = (homogeneous[:3] / np.where(homogeneous[3] == 0, 1e-12, homogeneous[3])).T
    depths = np.stack([points[:, 2], (points @ R.T + t)[:, 2]], axis=1)
    directions0, directions1 = (np.c_[rays, np.ones(len(rays))] for rays in (rays0, rays1))
    cosines = ((directions0 @ R.T) * directions1).sum(1) / (
        np.linalg.norm(directions0, axis=1) * np.linalg.norm(directions1, axis=1)
    )
    agree = sampson_distance(rays0, rays1, essential_from_pose(R, t)) * focal < EPIPOLAR_TOLERANCE
    return np.asarray(depths[agree & (depths > 0).all(1) & (cosines < np.cos(np.radians(SMALLEST_ANGLE)))].ravel())


def _sift(path: Path) -> Features:
    """(N, 2) pixels of the photograph, (N, 128) descriptors, and by how much it was reduced."""
    gray: Array = to_gray(read_image(path))
    scale = min(1.0, MEASURED_SIZE / max(gray.shape))
    if scale < 1:
        gray = cv2.resize(gray, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    keypoints, descriptors = cv2.SIFT.create(nfeatures=2000).detectAndCompute(gray, None)
    if descriptors is None:
        return np.empty((0, 2)), np.empty((0, 128), dtype=np.float32), scale
    points = np.array([keypoint.pt for keypoint in keypoints], dtype=np.float64)
    return (points + 0.5) / scale - 0.5, descriptors, scale


def _in_frustum(posed: PosedImage, points: Array, depth: DepthRange) -> Array:
    """Indices of the world points that lie in the photograph's view between the two depths."""
    camera = points @ posed.R.T + posed.t
    seen = np.flatnonzero((camera[:, 2] >= depth[0]) & (camera[:, 2] <= depth[1]))
    rays = camera[seen, :2] / camera[seen, 2:]
    pixels = posed.rays_to_pixels(rays)
    shown = ((pixels >= 0) & (pixels <= _last_pixel(posed))).all(1)
    seen, rays, pixels = seen[shown], rays[shown], pixels[shown]
    # Far outside the view a distortion polynomial folds back into it; such rays do not survive the way back.
    back = posed.pixels_to_rays(pixels)
    return np.asarray(seen[(np.abs(back - rays) < 1e-3).all(1)])


def _last_pixel(posed: PosedImage) -> tuple[int, int]:
    return posed.camera.width - 1, posed.camera.height - 1


# ---------------------------------------------------------------------------------------------------------------------
# Cameras and poses
# ---------------------------------------------------------------------------------------------------------------------


def _posed(path: Path, camera: Any, R: Array, t: Array) -> PosedImage:
    return PosedImage(path, camera, R, t, np.empty((0, 3)), np.empty(0, dtype=np.int64))


def _camera(model: str, size: tuple[int, int], params: Sequence[float]) -> Any:
    """A ``pycolmap.Camera``; its principal point is COLMAP's, half a pixel up from ours."""
    return import_pycolmap().Camera(model=model, width=size[0], height=size[1], params=list(params))


def _pinhole(size: tuple[int, int], K: Array, where: str) -> Any:
    fx, fy, cx, cy = K[0, 0], K[1, 1], K[0, 2], K[1, 2]
    if not (np.allclose(K, [[fx, 0, cx], [0, fy, cy], [0, 0, 1]]) and fx > 0 and fy > 0):
        raise ValueError(f"{where}: K is {K.tolist()}; expected [fx 0 cx; 0 fy cy; 0 0 1] with positive focal lengths")
    return _opencv_camera(size, [fx, fy, cx, cy], [])


def _opencv_camera(size: tuple[int, int], intrinsics: Sequence[float], distortion: Sequence[float]) -> Any:
    fx, fy, cx, cy = intrinsics
    pinhole = [fx, fy, cx + 0.5, cy + 0.5]
    if not any(distortion):
        return _camera("PINHOLE", size, pinhole)
    k1, k2, p1, p2, k3 = distortion
    return _camera("FULL_OPENCV", size, [*pinhole, k1, k2, p1, p2, k3, 0, 0, 0])


# ---------------------------------------------------------------------------------------------------------------------
# Files
# ---------------------------------------------------------------------------------------------------------------------


def _numbered(folder: Path) -> list[Path]:
    """Subfolders 0, 1, ... in their order."""
    if not folder.is_dir():
        return []
    return sorted((path for path in folder.iterdir() if path.name.isdecimal()), key=lambda path: int(path.name))


def _read_img_cam(folder: Path) -> dict[str, PosedImage]:
    photographs: dict[str, PosedImage] = {}
    for where, fields in read_lines(folder / "img_cam.txt"):
        if len(fields) != 19:
            raise ValueError(f"{where}: {len(fields)} fields; expected 19, of 'name w h fx fy cx cy R(9) t(3)'")
        name, numbers = fields[0], finite_numbers(fields[1:], where)
        width, height = numbers[:2]
        if not (0 < min(width, height) <= max(width, height) <= LARGEST_EDGE and (numbers[2:4] > 0).all()) or (
            width % 1 or height % 1
        ):
            raise ValueError(f"{where}: expected a size in whole pixels and positive focal lengths")
        if name in photographs:
            raise ValueError(f"{where}: {name} stands there a second time")
        camera = _camera("PINHOLE", (int(width), int(height)), numbers[2:6].tolist())
        R = as_rotation(numbers[6:15].reshape(3, 3), f"{where}: R")
        photographs[name] = _posed(listed_image(folder / "images", name, where), camera, R, numbers[15:])
    return photographs


def _read_pair_names(path: Path, photographs: Mapping[str, PosedImage]) -> Array:
    indices = {name: index for index, name in enumerate(photographs)}
    pairs = []
    for where, fields in read_lines(path):
        if len(fields) != 2:
            raise ValueError(f"{where}: {len(fields)} fields; expected 2, of 'name0 name1'")
        unknown = [name for name in fields if name not in indices]
        if unknown:
            raise ValueError(f"{where}: img_cam.txt has no {unknown[0]}")
        pairs.append([indices[name] for name in fields])
    return np.asarray(pairs, dtype=np.int64).reshape(-1, 2)


def _read_trajectory(path: Path) -> list[tuple[float, Array, Array]]:
    """Times in seconds with rotations and translations from world to camera."""
    poses = []
    for where, fields in read_lines(path):
        if len(fields) != 8:
            raise ValueError(f"{where}: {len(fields)} fields; expected 8, of 'timestamp tx ty tz qx qy qz qw'")
        numbers = finite_numbers(fields, where)
        if abs(np.linalg.norm(numbers[4:]) - 1) > ROTATION_TOLERANCE:
            raise ValueError(f"{where}: the quaternion {' '.join(fields[4:])} is not of unit length")
        R = Rotation.from_quat(numbers[4:]).as_matrix().T
        poses.append((float(numbers[0]), R, -R @ numbers[1:4]))
    if not poses:
        raise ValueError(f"{path} holds no pose; expected lines 'timestamp tx ty tz qx qy qz qw'")
    return poses


def _read_image_list(path: Path) -> list[tuple[float, Path]]:
    images = []
    for where, fields in read_lines(path):
        if len(fields) != 2:
            raise ValueError(f"{where}: {len(fields)} fields; expected 2, of 'timestamp file'")
        images.append((float(finite_numbers(fields[:1], where)[0]), listed_image(path.parent, fields[1], where)))
    return images


def _read_transforms(path: Path) -> list[PosedImage]:
    whole = parse_json(read_text(path), str(path))
    frames = whole.get("frames") if isinstance(whole, dict) else None
    if not isinstance(frames, list) or not frames or not all(isinstance(frame, dict) for frame in frames):
        raise ValueError(f"{path} has no list of frames; expected a transforms.json")
    common = {key: value for key, value in whole.items() if key != "frames"}
    photographs: list[PosedImage] = []
    for number, frame in enumerate(frames):
        where = f"{path}, frames[{number}]"
        if not isinstance(frame.get("file_path"), str):
            raise ValueError(f"{where}: file_path is {shown(frame.get('file_path'))}; expected the image's file")
        image = _nerf_image(path.parent, frame["file_path"], where)
        lens = {**common, **frame}
        if not {"w", "h"} <= lens.keys():
            # The frames of one file share their size where it does not say otherwise.
            common["w"], common["h"] = lens["w"], lens["h"] = image_size(image)
        pose = np.array(_matrix(frame.get("transform_matrix"), where))
        to_world = as_rotation(pose[:3, :3], f"{where}: R")
        R = OPENGL_TO_OPENCV @ to_world.T
        photographs.append(_posed(image, _nerf_camera(lens, where), R, -R @ pose[:3, 3]))
    return photographs


def _nerf_image(folder: Path, name: str, where: str) -> Path:
    for suffix in NERF_SUFFIXES:
        if (candidate := below(folder, name + suffix, where)).is_file():
            return candidate
    return listed_image(folder, name, where)


def _matrix(values: Any, where: str) -> Array:
    try:
        matrix = np.array(values, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        matrix = np.empty(0)
    if matrix.shape not in ((4, 4), (3, 4)) or not np.isfinite(matrix).all():
        raise ValueError(f"{where}: transform_matrix is {shown(values)}; expected 4 x 4 numbers")
    return matrix


def _nerf_camera(lens: Mapping[str, Any], where: str) -> Any:
    def number(key: str, default: float) -> float:
        value = lens.get(key, default)
        # An integer may be too large for a float.
        if (
            isinstance(value, bool)
            or not isinstance(value, (int, float))
            or not -sys.float_info.max <= value <= sys.float_info.max
        ):
            raise ValueError(f"{where}: {key} is {shown(value)}; expected a number")
        return float(value)

    width, height = number("w", 0), number("h", 0)
    focal_x = _focal_of_angle(width, number("camera_angle_x", 0))
    fx = number("fl_x", focal_x)
    fy = number("fl_y", _focal_of_angle(height, number("camera_angle_y", 0)) or fx)
    if not (1 <= min(width, height) <= max(width, height) <= LARGEST_EDGE and fx > 0 and fy > 0):
        raise ValueError(
            f"{where}: size {width:g} x {height:g} and focal lengths {fx:g} and {fy:g}; "
            "expected fl_x or camera_angle_x, and all of them positive"
        )
    size = int(width), int(height)
    center = number("cx", width / 2), number("cy", height / 2)
    k1, k2, k3, k4, p1, p2 = (number(key, 0) for key in ("k1", "k2", "k3", "k4", "p1", "p2"))
    model = lens.get("camera_model", NERF_FISHEYE if lens.get("is_fisheye") else "OPENCV")
    if model == NERF_FISHEYE:
        return _camera("OPENCV_FISHEYE", size, [fx, fy, *center, k1, k2, k3, k4])
    if model not in NERF_PERSPECTIVE:
        raise ValueError(
            f"{where}: camera_model is {shown(model)}; expected one of {', '.join((*NERF_PERSPECTIVE, NERF_FISHEYE))}"
        )
    if k4:
        raise ValueError(f"{where}: k4 is {k4}; expected 0 for a lens that is no fisheye")
    return _opencv_camera(size, [fx, fy, center[0] - 0.5, center[1] - 0.5], [k1, k2, p1, p2, k3])


def _focal_of_angle(extent: float, angle: float) -> float:
    """The focal length in pixels that shows ``angle`` radians over the extent; 0 where there is no angle."""
    return extent / 2 / np.tan(angle / 2) if 0 < angle < np.pi else 0.0
