"""COLMAP reconstructions."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import ClassVar

from capsdesc.io.colmap import find_model, read_model
from capsdesc.training.dataset import DataConfig, Scene, covisible_pairs
from capsdesc.training.sources.base import Source
from capsdesc.training.sources.stand_ins import pose_scene


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


def _numbered(folder: Path) -> list[Path]:
    """Subfolders 0, 1, ... in their order."""
    if not folder.is_dir():
        return []
    return sorted((path for path in folder.iterdir() if path.name.isdecimal()), key=lambda path: int(path.name))
