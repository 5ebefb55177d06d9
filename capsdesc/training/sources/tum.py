"""Trajectories as the TUM RGB-D benchmark has them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import ClassVar

import numpy as np
from scipy.spatial.transform import Rotation

from capsdesc.checks import ROTATION_TOLERANCE, check_numbers
from capsdesc.images import image_size
from capsdesc.io.colmap_cameras import follow_files
from capsdesc.io.text import finite_numbers, listed_image, read_lines
from capsdesc.training.dataset import DataConfig, Scene
from capsdesc.training.sources.base import PosesSource
from capsdesc.training.sources.cameras import opencv_camera, posed_image, warn_if_off_centre
from capsdesc.training.sources.stand_ins import pose_scene
from capsdesc.types import Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class TumSource(PosesSource):
    """A trajectory as the TUM RGB-D benchmark has it (Sturm et al., IROS 2012).

    ``path`` is a folder. Lines of the trajectory are ``timestamp tx ty tz qx qy qz qw``, camera to world, those of the
    image list ``timestamp file``; an image gets the pose nearest in time.

    Attributes:
        intrinsics: fx, fy, cx, cy in pixels of the first image, the centre of the top-left one being (0, 0).
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
                camera = opencv_camera(image_size(path), self.intrinsics, self.distortion)
            _, R, t = poses[nearest]
            photographs.append(posed_image(path, camera, R, t))
        if len(photographs) < 2:
            raise ValueError(
                f"{folder}: {len(photographs)} of {len(listed)} images have a pose within {self.max_difference} s; "
                "do the timestamps of both files run on one clock?"
            )
        photographs = follow_files(photographs, f"the settings for {folder}")
        warn_if_off_centre(photographs, f"the settings for {folder}")
        return [pose_scene(folder.resolve().name, photographs, config, self.depth)]


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
