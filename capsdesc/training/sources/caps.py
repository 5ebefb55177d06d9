"""MegaDepth as the authors of CAPS published it."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np

from capsdesc.checks import as_rotation
from capsdesc.io.colmap_cameras import follow_files
from capsdesc.io.text import finite_numbers, listed_image, read_lines
from capsdesc.training.dataset import DataConfig, Scene
from capsdesc.training.sources.base import PosesSource
from capsdesc.training.sources.cameras import LARGEST_EDGE, colmap_camera, posed_image
from capsdesc.training.sources.stand_ins import pose_scene
from capsdesc.types import Array, PosedImage

logger = logging.getLogger(__name__)


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


def _read_img_cam(folder: Path) -> dict[str, PosedImage]:
    photographs: dict[str, PosedImage] = {}
    for where, fields in read_lines(folder / "img_cam.txt", names_first=True):
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
        camera = colmap_camera("PINHOLE", (int(width), int(height)), numbers[2:6].tolist())
        R = as_rotation(numbers[6:15].reshape(3, 3), f"{where}: R")
        photographs[name] = posed_image(listed_image(folder / "images", name, where), camera, R, numbers[15:])
    followed = follow_files(list(photographs.values()), str(folder / "img_cam.txt"))
    return dict(zip(photographs, followed, strict=True))


def _read_pair_names(path: Path, photographs: Mapping[str, PosedImage]) -> Array:
    indices = {name: index for index, name in enumerate(photographs)}
    pairs = []
    for where, fields in read_lines(path, names_first=True):
        if len(fields) != 2:
            raise ValueError(f"{where}: {len(fields)} fields; expected 2, of 'name0 name1'")
        unknown = [name for name in fields if name not in indices]
        if unknown:
            raise ValueError(f"{where}: img_cam.txt has no {unknown[0]}")
        pairs.append([indices[name] for name in fields])
    return np.asarray(pairs, dtype=np.int64).reshape(-1, 2)
