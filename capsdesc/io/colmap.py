"""COLMAP models: posed photographs in, through pycolmap.

COLMAP puts the centre of the top-left pixel at (0.5, 0.5); here it is (0, 0). The half pixel is taken off
on reading.
"""

from __future__ import annotations

import copy
import logging
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from capsdesc.checks import as_rotation
from capsdesc.io.colmap_binary import check_whole
from capsdesc.io.colmap_cameras import check_perspective, follow_files
from capsdesc.io.text import below, read_text
from capsdesc.types import PosedImage

logger = logging.getLogger(__name__)


def import_pycolmap() -> Any:
    """The pycolmap module.

    Raises:
        ImportError: it is not installed; the message says how to install it.
    """
    try:
        import pycolmap
    except ImportError as error:
        raise ImportError('COLMAP\'s files need pycolmap: pip install "capsdesc[colmap]"') from error
    return pycolmap


def find_model(folder: str | os.PathLike[str]) -> Path:
    """The folder of the COLMAP model that is in ``folder``, ``folder/sparse`` or ``folder/sparse/0``.

    Raises:
        FileNotFoundError: there is none.
    """
    for candidate in (Path(folder), Path(folder) / "sparse", Path(folder) / "sparse" / "0"):
        if _file_of(candidate, "images") is not None:
            return candidate
    raise FileNotFoundError(
        f"no COLMAP model in {folder}: expected cameras, images and points3D as .bin or .txt, "
        "there or in sparse/ or sparse/0/"
    )


def overlap(first: PosedImage, second: PosedImage) -> float:
    """How many scene points both images see, as a share of those of the image that sees fewer."""
    shared = len(np.intersect1d(first.point_ids, second.point_ids, assume_unique=True))
    return shared / max(1, min(len(first.point_ids), len(second.point_ids)))


def read_model(
    model: str | os.PathLike[str], images: str | os.PathLike[str], *, strict: bool = False
) -> list[PosedImage]:
    """The registered photographs of a COLMAP model, by name, with cameras of the size of their files.

    Args:
        model: folder with ``cameras``, ``images`` and ``points3D``, as ``.bin`` or ``.txt``. Without ``points3D`` the
            photographs come without scene points, with a warning.
        images: folder that the model's image names are relative to.
        strict: whether a missing image file is an error; otherwise it is left out with a warning.

    Returns:
        The photographs whose file exists.

    Raises:
        FileNotFoundError: there is no model or no image folder, or an image is missing and ``strict`` is set.
        ValueError: the model cannot be read or is broken, an image's name leads out of the folder, none of its
            photographs is there, a camera is a panorama's, or a file was turned, cropped or stretched since.
    """
    pycolmap = import_pycolmap()
    model, images = Path(model), Path(images)
    if _file_of(model, "cameras") is None:
        raise FileNotFoundError(f"no COLMAP model in {model}: expected cameras, images and points3D as .bin or .txt")
    if not images.is_dir():
        raise FileNotFoundError(f"no image folder {images}")
    try:
        check_model(model)
        reconstruction = _read(pycolmap, model)
        names = _names_in_text(model)
        registered = {
            names.get(key, image.name): image for key, image in reconstruction.images.items() if image.has_pose
        }
    except Exception as error:  # pycolmap raises whatever its C++ readers throw
        raise ValueError(f"the COLMAP model in {model} cannot be read: {error}") from error

    has_points = _file_of(model, "points3D") is not None
    if not has_points:
        logger.warning("the COLMAP model in %s has no points3D file: its poses are read, without scene points", model)
    posed = []
    missing = []
    for name, image in sorted(registered.items()):
        path = below(images, name, f"the COLMAP model in {model}")
        if not path.is_file():
            missing.append(name)
            continue
        where = f"the COLMAP model in {model} is broken: {name}"
        check_perspective(image.camera, f"the camera of {name} in {model}")
        pose = image.cam_from_world() if callable(image.cam_from_world) else image.cam_from_world
        ids = sorted({point.point3D_id for point in image.points2D if point.has_point3D()}) if has_points else []
        lost = [point_id for point_id in ids if point_id not in reconstruction.points3D]
        if lost:
            raise ValueError(f"{where} sees point {lost[0]}, not in points3D")
        R, t = as_rotation(pose.rotation.matrix(), f"{where}: its R"), np.asarray(pose.translation)
        points = np.array([reconstruction.points3D[point_id].xyz for point_id in ids], dtype=np.float64).reshape(-1, 3)
        if not all(np.isfinite(values).all() for values in (t, points, image.camera.params)):
            raise ValueError(f"{where}: its position, its camera or a point that it sees is not finite")
        posed.append(
            PosedImage(
                path=path,
                # A copy: the original lives in the reconstruction, which is about to be freed.
                camera=copy.deepcopy(image.camera),
                R=R,
                t=t,
                points=points,
                point_ids=np.asarray(ids, dtype=np.int64),
            )
        )
    if missing and strict:
        raise FileNotFoundError(f"{images / missing[0]} does not exist; it is an image of the model in {model}")
    if missing:
        logger.warning("%d of the model's images are not in %s, the first is %s", len(missing), images, missing[0])
    if not posed:
        raise ValueError(f"none of the images of the COLMAP model in {model} is in {images}")
    return follow_files(posed, f"the COLMAP model in {model}")


def check_model(model: Path) -> None:
    """Refuse a model of which a binary file is cut short, or longer than it says.

    Raises:
        ImportError: pycolmap is not installed.
        OSError: a file cannot be opened.
        ValueError: a file is not whole; it is named.
    """
    pycolmap = import_pycolmap()
    check_whole(model, lambda model_id: _count_parameters(pycolmap, model_id))


def _file_of(model: Path, part: str) -> Path | None:
    """The file of a model that holds its ``cameras``, ``images`` or ``points3D``; COLMAP prefers the binary one."""
    files = (model / f"{part}.{ending}" for ending in ("bin", "txt"))
    return next((file for file in files if file.is_file()), None)


def _read(pycolmap: Any, model: Path) -> Any:
    """The reconstruction in a folder; it may lack ``points3D``, which COLMAP does not allow."""
    if _file_of(model, "points3D") is not None:
        return pycolmap.Reconstruction(str(model))
    with tempfile.TemporaryDirectory() as completed:
        for file in model.iterdir():
            if file.suffix in (".bin", ".txt") and file.is_file():
                shutil.copy(file, completed)
        if _file_of(model, "images") == model / "images.bin":
            (Path(completed) / "points3D.bin").write_bytes(bytes(8))
        else:
            (Path(completed) / "points3D.txt").touch()
        return pycolmap.Reconstruction(completed)


def _names_in_text(model: Path) -> dict[int, str]:
    """Names of the images of a model in text, by their ids: COLMAP's own reader ends a name at its first space."""
    file = _file_of(model, "images")
    if file is None or file.suffix != ".txt":
        return {}
    names = {}
    lines = iter(read_text(file).split("\n"))
    for line in lines:
        fields = line.split(maxsplit=9)
        if fields and not fields[0].startswith("#"):
            if len(fields) == 10:
                names[int(fields[0])] = fields[9].strip()
            next(lines, None)  # the keypoints, of which there may be none
    return names


def _count_parameters(pycolmap: Any, model_id: int) -> int:
    known = {int(value) for name, value in pycolmap.CameraModelId.__members__.items() if name != "INVALID"}
    if model_id not in known:
        raise ValueError(f"there is no camera model {model_id}")
    return len(pycolmap.Camera.create_from_model_id(0, pycolmap.CameraModelId(model_id), 1.0, 1, 1).params)
