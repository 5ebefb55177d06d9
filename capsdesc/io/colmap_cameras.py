"""Cameras in pycolmap's form: which of COLMAP's models serve, and whether they are of the size of their files."""

from __future__ import annotations

import copy
import dataclasses
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from capsdesc.images import image_size
from capsdesc.types import PosedImage

logger = logging.getLogger(__name__)

# Files are looked at side by side: what takes time is the disk, or decoding, during which Python goes on.
_READERS = 8


def check_perspective(camera: Any, where: str) -> None:
    """Refuse cameras that see all around: their pixels are no x/z, y/z, and pycolmap crashes over their focal length.

    Args:
        camera: a ``pycolmap.Camera``.
        where: which camera it is, for the message.

    Raises:
        ValueError: it is of such a model, as EQUIRECTANGULAR.
    """
    if not camera.is_perspective():
        raise ValueError(
            f"{where} is a panorama of COLMAP's model {camera.model_name}, which has no focal length; expected a "
            "perspective or fisheye camera: cut the panorama into perspective photographs before it is reconstructed"
        )


def follow_files(photographs: Sequence[PosedImage], where: str) -> list[PosedImage]:
    """Photographs whose cameras are of the size of their files, whatever size the cameras had.

    A file that was shrunk or enlarged as a whole, as ``images_2`` of a data set, shows the same: its camera is
    rescaled, and a warning says so once. A file that cannot be read is left as it is: who needs it says what is wrong.

    Args:
        photographs: the photographs.
        where: where their cameras were read, for messages.

    Raises:
        ValueError: a file was turned, cropped or stretched; it is named.
    """
    paths = list(dict.fromkeys(posed.path for posed in photographs))
    with ThreadPoolExecutor(_READERS) as readers:
        sizes = dict(zip(paths, readers.map(_size_of_file, paths), strict=True))
    rescaled: dict[tuple[int, tuple[int, int]], Any] = {}
    followed = []
    changed: list[str] = []
    for posed in photographs:
        stated, size = (posed.camera.width, posed.camera.height), sizes[posed.path]
        if size is None or size == stated:
            followed.append(posed)
            continue
        key = id(posed.camera), size
        if key not in rescaled:
            rescaled[key] = rescale_camera(posed.camera, size, posed.path, where)
        changed.append(f"{posed.path.name} has {size[0]} x {size[1]} pixels, its camera {stated[0]} x {stated[1]}")
        followed.append(dataclasses.replace(posed, camera=rescaled[key]))
    if changed:
        logger.warning(
            "%s: %d of %d files were resized since (%s); their cameras follow",
            where,
            len(changed),
            len(photographs),
            changed[0],
        )
    return followed


def rescale_camera(camera: Any, size: tuple[int, int], path: Path, where: str) -> Any:
    """The camera of a photograph that was resized as a whole.

    Args:
        camera: a ``pycolmap.Camera``.
        size: width and height of the file.
        path: the file, for messages.
        where: where the camera was read, likewise.

    Raises:
        ValueError: the file was turned, cropped or stretched.
    """
    stated = camera.width, camera.height
    if not _in_proportion(stated, size):
        raise ValueError(
            f"{path} has {size[0]} x {size[1]} pixels, but its camera in {where} is of {stated[0]} x "
            f"{stated[1]}; expected the file that the camera was estimated from, or one resized as a whole. Was it "
            "turned or cropped since?"
        )
    rescaled = copy.deepcopy(camera)
    rescaled.rescale(*size)
    return rescaled


def _size_of_file(path: Path) -> tuple[int, int] | None:
    try:
        return image_size(path)
    except (OSError, ValueError):
        return None


def _in_proportion(stated: tuple[int, int], size: tuple[int, int]) -> bool:
    """Whether both edges were multiplied by one number, each then rounded up or down to whole pixels."""
    (width, height), (new_width, new_height) = stated, size
    return abs(new_width * height - new_height * width) < width + height
