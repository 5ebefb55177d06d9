"""Photographs in, scenes to train on out, by COLMAP's structure from motion.

Features and matches are kept in a database, so that a run that was stopped goes on with the photograph or the pairs it
was at; only the mapping, the shortest part, starts anew. The models are renamed into place when all are written.
"""

from __future__ import annotations

import dataclasses
import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import yaml
from tqdm import tqdm

from capsdesc.images import read_image, shrink
from capsdesc.io.colmap import import_pycolmap
from capsdesc.io.database import check_camera_model
from capsdesc.io.files import atomic_path, sweep
from capsdesc.io.settings import build, refuse_other_settings
from capsdesc.io.text import parse_yaml, read_text
from capsdesc.pipelines.colmap import (
    ModelSummary,
    check_enough,
    colmap_pairing,
    extract_sift,
    find_photographs,
    match_sift,
    open_workspace,
    reconstruct_models,
)

logger = logging.getLogger(__name__)

MATCHERS = ("exhaustive", "sequential")

JPEG_QUALITY = 95


@dataclasses.dataclass(frozen=True)
class PrepareConfig:
    """How photographs are reconstructed.

    Attributes:
        camera_model: COLMAP's name of the lens model, the same for all photographs.
        matcher: ``"exhaustive"``: each photograph with each; ``"sequential"``: each with the next ones by name, for
            video.
        max_size: longer edge in pixels that photographs are shrunk to; None keeps them as they are.
    """

    camera_model: str = "SIMPLE_RADIAL"
    matcher: str = "exhaustive"
    max_size: int | None = None

    def __post_init__(self) -> None:
        check_camera_model(self.camera_model)
        if self.matcher not in MATCHERS:
            raise ValueError(f"matcher is {self.matcher!r}; expected one of {', '.join(MATCHERS)}")
        if self.max_size is not None and self.max_size < 64:
            raise ValueError(f"max_size is {self.max_size}; expected at least 64 pixels")


def prepare(photographs: Path, out: Path, config: PrepareConfig, *, threads: int = -1) -> list[ModelSummary]:
    """Reconstruct photographs.

    Writes ``out/images`` (links, or shrunken copies; ``photographs`` may already be this folder), ``out/database.db``
    and the models ``out/sparse/0``, ``1``, ..., the one with most photographs first. Photographs that cannot be read
    are left out with a warning. What an earlier run finished is not done again; photographs may have been added.

    Args:
        photographs: folder of the photographs, subfolders included.
        out: folder to write to.
        config: how.
        threads: number of threads, -1 for all cores.

    Raises:
        FileNotFoundError: there is no folder ``photographs``.
        ValueError: fewer than two photographs can be read, ``out`` lies in ``photographs`` or was prepared with other
            settings, or ``threads`` is neither positive nor -1.
        FileExistsError: ``out/sparse`` holds models that come from elsewhere.
        BlockingIOError: another run is at work in ``out``.
        RuntimeError: no two photographs could be related to each other.
    """
    files = find_photographs(photographs)
    with open_workspace(photographs, out, threads) as opened:
        workspace = dataclasses.replace(opened, images=out / "images")
        _pin_settings(out / "prepare.yaml", config)
        names = _gather(photographs, files, workspace.images, config.max_size)
        check_enough(names, photographs)

        def find_features() -> None:
            extract_sift(workspace.database, workspace.images, names, camera_model=config.camera_model, threads=threads)
            if config.max_size is not None:
                _restore_focal_lengths(workspace.database, photographs, names, config.camera_model)

        found = reconstruct_models(
            workspace,
            names,
            find_features=find_features,
            match_features=lambda: match_sift(workspace.database, colmap_pairing(config.matcher), threads),
        )
    if not found:
        raise RuntimeError(
            f"no two of the {len(names)} photographs could be related to each other: do they overlap, and is there "
            "enough of texture and enough of sideways motion between them?"
        )
    return found


def _pin_settings(path: Path, config: PrepareConfig) -> None:
    """Refuse to mix settings in one folder."""
    sweep(path)
    if path.exists():
        earlier = build(PrepareConfig, parse_yaml(read_text(path), str(path)), str(path))
        refuse_other_settings(f"{path.parent} holds a scene", dataclasses.asdict(earlier), dataclasses.asdict(config))
        return
    with atomic_path(path) as temporary:
        temporary.write_text(yaml.safe_dump(dataclasses.asdict(config), sort_keys=False), encoding="utf-8")


def _gather(photographs: Path, files: Mapping[str, Path], images: Path, max_size: int | None) -> list[str]:
    """Put the readable photographs into ``images``; returns their names, relative to it."""
    in_place = images.resolve() == photographs.resolve()
    if in_place and max_size is not None:
        raise ValueError(f"max_size is {max_size} but {photographs} is the folder to write to; name another folder")
    if not in_place:
        sweep(*(images / name for name in files if not (images / name).is_symlink()))
    names = []
    for name, file in tqdm(files.items(), desc="photographs", disable=None):
        target = images / name
        if in_place or not target.exists():
            try:
                picture = read_image(file)
            except (OSError, ValueError) as error:
                logger.warning("skipped: %s", error)
                continue
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            if max_size is not None and max(picture.shape[:2]) > max_size:
                _write_shrunken(picture, target, max_size)
            else:
                _link(file, target)
        names.append(name)
    return names


def _write_shrunken(picture: Any, target: Path, max_size: int) -> None:
    small = shrink(picture, max_size)
    # OpenCV does not tell when a disk is full.
    _, encoded = cv2.imencode(target.suffix, small[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    with atomic_path(target) as temporary:
        temporary.write_bytes(encoded.tobytes())


def _link(file: Path, target: Path) -> None:
    try:
        target.symlink_to(file.resolve())
    except OSError:  # the file system or the user's rights allow no links
        with atomic_path(target) as temporary:
            shutil.copyfile(file, temporary)


def _restore_focal_lengths(database: Path, photographs: Path, names: Sequence[str], camera_model: str) -> None:
    """Shrunken copies have lost the focal length that the original's EXIF data tell."""
    pycolmap = import_pycolmap()
    reader = pycolmap.ImageReaderOptions(camera_model=camera_model)
    with pycolmap.Database.open(database) as opened:
        for name in names:
            image = opened.read_image_with_name(name)
            if image is None:
                continue
            camera = opened.read_camera(image.camera_id)
            original = pycolmap.infer_camera_from_image(str(photographs / name), reader)
            if original.has_prior_focal_length and not camera.has_prior_focal_length:
                original.rescale(camera.width, camera.height)
                original.camera_id = camera.camera_id
                opened.update_camera(original)
