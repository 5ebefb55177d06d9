"""MegaDepth-1500 and ScanNet-1500 as LoFTR's authors keep them (Sun et al., CVPR 2021; github.com/zju3dv/LoFTR)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from capsdesc.checks import as_intrinsics, as_rotation, shown
from capsdesc.evaluation.datasets.files import folder_with, numbers
from capsdesc.evaluation.datasets.pairs import BenchmarkImage, Camera, PosePair
from capsdesc.evaluation.datasets.poses import difficulty
from capsdesc.geometry import relative_pose
from capsdesc.images import image_size
from capsdesc.io.pickles import load_arrays
from capsdesc.io.text import listed_image
from capsdesc.types import Float64Array

# The size of the images that the intrinsics of ScanNet-1500 belong to.
SCANNET_SIZE = (640, 480)


def read_megadepth(folder: Path, images: Path | None = None) -> list[PosePair]:
    """Pairs of MegaDepth scenes, grouped by the file that lists them.

    A file has ``image_paths``, ``intrinsics`` (3, 3) and ``poses`` (4, 4), world to camera, with ``None`` for images
    that were left out, and ``pair_infos``: ``((i, j), overlap, ...)``. Principal points are COLMAP's, where the files
    come from. All pairs are taken, as LoFTR takes them.

    Args:
        folder: with ``scene_info/*.npz``, or with the ``.npz`` files themselves.
        images: what ``image_paths`` are relative to; ``folder`` unless given.
    """
    pairs = []
    for path in sorted(folder_with(folder, "scene_info").glob("*.npz")):
        scene = load_arrays(path)
        lists = [_list(scene, key, path) for key in ("image_paths", "intrinsics", "poses", "pair_infos")]
        names, intrinsics, poses, listed = lists
        if not len(names) == len(intrinsics) == len(poses):
            raise ValueError(f"{path} has {len(names)} images, {len(intrinsics)} intrinsics and {len(poses)} poses")
        for number, info in enumerate(listed):
            where = f"{path}, pair {number}"
            views, cameras, motions = [], [], []
            for i in _pair_of(info, len(names), where):
                if names[i] is None:
                    raise ValueError(f"{where}: image {i} was left out of the scene")
                views.append(BenchmarkImage(listed_image(images or folder, str(names[i]), where)))
                cameras.append(Camera.from_colmap(intrinsics[i], f"{where}, image {i}"))
                T = numbers(poses[i], f"{where}: pose of image {i}", (4, 4))
                motions.append((as_rotation(T[:3, :3], f"{where}: R of image {i}"), T[:3, 3]))
            R, t = relative_pose(*motions[0], *motions[1])
            name = "-".join(view.path.name for view in views)
            pairs.append(PosePair(f"{path.stem}/{name}", path.stem, views[0], views[1], cameras[0], cameras[1], R, t))
    return pairs


def read_scannet(folder: Path, images: Path | None = None) -> list[PosePair]:
    """ScanNet-1500 (Sarlin et al., SuperGlue, CVPR 2020), grouped by rotation.

    ``test.npz`` has ``name`` (N, 4), numbers of the scene, its scan and the two frames, and ``rel_pose`` (N, 12), the
    rows of [R t]; ``intrinsics.npz`` a (3, 3) K for each scene, of images of 640 x 480 pixels, which follows files of
    other sizes.

    Args:
        folder: with the two files.
        images: with ``sceneXXXX_XX/color/FRAME.jpg``; that in ``folder`` which is called ``scannet_test_1500`` or
            ``scans_test``, or ``folder``, unless given.
    """
    listed, intrinsics = load_arrays(folder / "test.npz"), load_arrays(folder / "intrinsics.npz")
    root = images or folder_with(folder, "scannet_test_1500", "scans_test")
    if missing := [key for key in ("name", "rel_pose") if key not in listed]:
        raise ValueError(f"{folder / 'test.npz'} has no {missing[0]}; expected name and rel_pose")
    names = numbers(listed["name"], f"{folder / 'test.npz'}: name", (None, 4)).astype(np.int64)
    motions = numbers(listed["rel_pose"], f"{folder / 'test.npz'}: rel_pose", (len(names), 12)).reshape(-1, 3, 4)
    pairs = []
    for number, ((scene, scan, *frames), motion) in enumerate(zip(names.tolist(), motions, strict=True)):
        where, name = f"{folder / 'test.npz'}, pair {number}", f"scene{scene:04d}_{scan:02d}"
        if name not in intrinsics:
            raise ValueError(f"{where}: {folder / 'intrinsics.npz'} has no {name}")
        K = numbers(intrinsics[name], f"{where}: K", (3, 3))
        paths = [listed_image(root, f"{name}/color/{frame}.jpg", where) for frame in frames]
        cameras = [Camera(as_intrinsics(_resized(K, image_size(path)), f"{where}: K")) for path in paths]
        R = as_rotation(motion[:, :3], f"{where}: R")
        views = [BenchmarkImage(path) for path in paths]
        title = f"{name}/{frames[0]}-{frames[1]}"
        pairs.append(PosePair(title, difficulty(R), views[0], views[1], cameras[0], cameras[1], R, motion[:, 3]))
    return pairs


def _list(scene: dict[str, Any], key: str, path: Path) -> list[Any]:
    values = scene.get(key)
    if not isinstance(values, list) and not (isinstance(values, np.ndarray) and values.ndim):
        raise ValueError(f"{path}: {key} is {shown(values)}; expected a list")
    return list(values)


def _pair_of(info: Any, count: int, where: str) -> list[int]:
    """The two images of a pair's entry."""
    try:
        indices = [int(index) for index in info[0]]
    except (TypeError, ValueError, IndexError, KeyError, OverflowError) as error:
        raise ValueError(f"{where} is {shown(info)}; expected ((i, j), overlap, ...)") from error
    if len(indices) != 2 or not all(0 <= index < count for index in indices):
        raise ValueError(f"{where} is of images {shown(indices)}; expected two of {count}")
    return indices


def _resized(K: Float64Array, size: tuple[int, int]) -> Float64Array:
    """The intrinsics of ScanNet's images when they have this width and height."""
    sx, sy = np.divide(size, SCANNET_SIZE)
    return np.array([[sx, 0, (sx - 1) / 2], [0, sy, (sy - 1) / 2], [0, 0, 1]]) @ K
