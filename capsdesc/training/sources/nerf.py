"""``transforms.json`` of NeRF, instant-ngp and nerfstudio."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from capsdesc.checks import as_rotation, shown
from capsdesc.images import image_size
from capsdesc.io.colmap_cameras import follow_files
from capsdesc.io.text import below, listed_image, parse_json, read_text
from capsdesc.training.dataset import DataConfig, Scene
from capsdesc.training.sources.base import PosesSource
from capsdesc.training.sources.cameras import LARGEST_EDGE, colmap_camera, opencv_camera, posed_image
from capsdesc.training.sources.stand_ins import pose_scene
from capsdesc.types import Array, PosedImage

# Lenses of transforms.json that k1, k2, p1, p2 and k3 describe.
NERF_PERSPECTIVE = ("OPENCV", "PINHOLE", "SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL")
NERF_FISHEYE = "OPENCV_FISHEYE"
NERF_IN_PIXELS = {"fl_x", "fl_y", "cx", "cy"}
NERF_SUFFIXES = ("", ".png", ".jpg")
OPENGL_TO_OPENCV = np.diag([1.0, -1.0, -1.0])


@dataclasses.dataclass(frozen=True, kw_only=True)
class NerfSource(PosesSource):
    """``transforms.json`` as instant-ngp, nerfstudio and the Blender scenes of NeRF have it.

    ``path`` is the file, or a folder with a ``transforms.json``. Poses are camera to world with OpenGL's axes (y up,
    looking along -z). Intrinsics are ``fl_x`` (or ``camera_angle_x`` in radians), ``fl_y``, ``cx``, ``cy``, ``w``,
    ``h``, ``k1``, ``k2``, ``k3``, ``p1``, ``p2``, or ``k1`` to ``k4`` of a fisheye; a frame's own come before the
    file's. Without ``w`` and ``h`` the intrinsics are those of the image's own size. The principal point follows
    COLMAP: the centre of the top-left pixel is (0.5, 0.5).
    """

    kind: ClassVar[str] = "nerf"

    def scenes(self, config: DataConfig) -> list[Scene]:
        """One scene."""
        path = Path(self.path)
        path = path / "transforms.json" if path.is_dir() else path
        return [pose_scene(path.resolve().parent.name, _read_transforms(path), config, self.depth)]


def _read_transforms(path: Path) -> list[PosedImage]:
    whole = parse_json(read_text(path), str(path))
    frames = whole.get("frames") if isinstance(whole, dict) else None
    if not isinstance(frames, list) or not frames or not all(isinstance(frame, dict) for frame in frames):
        raise ValueError(f"{path} has no list of frames; expected a transforms.json")
    common = {key: value for key, value in whole.items() if key != "frames"}
    photographs: list[PosedImage] = []
    first: tuple[Path, tuple[int, int]] | None = None
    for number, frame in enumerate(frames):
        where = f"{path}, frames[{number}]"
        if not isinstance(frame.get("file_path"), str):
            raise ValueError(f"{where}: file_path is {shown(frame.get('file_path'))}; expected the image's file")
        image = _nerf_image(path.parent, frame["file_path"], where)
        lens = {**common, **frame}
        if not {"w", "h"} <= lens.keys():
            size = image_size(image)
            first = first or (image, size)
            if size != first[1] and common.keys() & NERF_IN_PIXELS - frame.keys():
                raise ValueError(
                    f"{where}: {image} has {size[0]} x {size[1]} pixels and {first[0]} {first[1][0]} x {first[1][1]}, "
                    "but intrinsics in pixels are given once for all; expected w and h beside them, or intrinsics in "
                    "each frame"
                )
            lens["w"], lens["h"] = size
        pose = np.array(_matrix(frame.get("transform_matrix"), where))
        to_world = as_rotation(pose[:3, :3], f"{where}: R")
        R = OPENGL_TO_OPENCV @ to_world.T
        photographs.append(posed_image(image, _nerf_camera(lens, where), R, -R @ pose[:3, 3]))
    return follow_files(photographs, str(path))


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
        return colmap_camera("OPENCV_FISHEYE", size, [fx, fy, *center, k1, k2, k3, k4])
    if model not in NERF_PERSPECTIVE:
        raise ValueError(
            f"{where}: camera_model is {shown(model)}; expected one of {', '.join((*NERF_PERSPECTIVE, NERF_FISHEYE))}"
        )
    if k4:
        raise ValueError(f"{where}: k4 is {k4}; expected 0 for a lens that is no fisheye")
    return opencv_camera(size, [fx, fy, center[0] - 0.5, center[1] - 0.5], [k1, k2, p1, p2, k3])


def _focal_of_angle(extent: float, angle: float) -> float:
    """The focal length in pixels that shows ``angle`` radians over the extent; 0 where there is no angle."""
    return extent / 2 / np.tan(angle / 2) if 0 < angle < np.pi else 0.0
