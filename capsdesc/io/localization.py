"""The files of visual localisation benchmarks: lists of queries with their cameras in, poses out.

Cameras are COLMAP's throughout: principal points count from the corner of the top-left pixel.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from capsdesc.io.colmap import import_pycolmap
from capsdesc.io.colmap_cameras import check_perspective
from capsdesc.io.files import atomic_path
from capsdesc.io.text import finite_numbers, read_lines
from capsdesc.types import Float64Array

QUERY_LINE = "'name MODEL width height params...'"


def read_query_cameras(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The cameras of a list of queries, as visual localisation benchmarks give them.

    Args:
        path: a text file with a line for each query: its name, the name of one of COLMAP's lens models, width and
            height in pixels, and the model's parameters. Comments are lines whose first word is #.

    Returns:
        A ``pycolmap.Camera`` for each name.

    Raises:
        ImportError: pycolmap is not installed.
        OSError: the file cannot be opened.
        ValueError: a line is not of this form, or a name is listed twice; it is named.
    """
    pycolmap = import_pycolmap()
    cameras: dict[str, Any] = {}
    for where, fields in read_lines(path, names_first=True):
        if len(fields) < 5:
            raise ValueError(f"{where}: {len(fields)} fields; expected {QUERY_LINE}")
        name, model, *numbers = fields
        if model == "INVALID" or model not in pycolmap.CameraModelId.__members__:
            raise ValueError(f"{where}: {model!r} is none of COLMAP's lens models; expected {QUERY_LINE}")
        if name in cameras:
            raise ValueError(f"{where}: {name} is listed before; expected each query once")
        width, height, *parameters = finite_numbers(numbers, where).tolist()
        if not (width >= 1 and height >= 1 and width % 1 == 0 and height % 1 == 0):
            raise ValueError(f"{where}: {numbers[0]} x {numbers[1]} is no size in pixels")
        camera = pycolmap.Camera.create_from_model_name(0, model, 1.0, int(width), int(height))
        if len(parameters) != len(camera.params):
            raise ValueError(
                f"{where}: {len(parameters)} parameters; {model} has {len(camera.params)}: {camera.params_info}"
            )
        camera.params = parameters
        check_perspective(camera, f"{where}: the camera of {name}")
        if not camera.mean_focal_length() > 0:
            raise ValueError(f"{where}: the focal length is {camera.mean_focal_length():g}; expected it above 0")
        cameras[name] = camera
    return cameras


def write_poses(path: str | os.PathLike[str], poses: Mapping[str, tuple[Float64Array, Float64Array]]) -> None:
    """Write poses as visual localisation benchmarks take them, a line ``name qw qx qy qz tx ty tz`` for each query.

    Args:
        path: the file, written whole or not at all.
        poses: R (3, 3) and t (3,) from world to camera by the names of queries.

    Raises:
        OSError: it cannot be written.
    """
    lines = []
    for name, (R, t) in poses.items():
        x, y, z, w = Rotation.from_matrix(R).as_quat()
        lines.append(" ".join([name, *(f"{value:.12g}" for value in np.array([w, x, y, z, *t]))]) + "\n")
    with atomic_path(path) as temporary:
        temporary.write_text("".join(lines), encoding="utf-8")
