"""The Image Matching Challenge (Jin et al., "Image Matching across Wide Baselines", IJCV 2021): scenes of tourists."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from capsdesc.checks import as_rotation, shown
from capsdesc.evaluation.datasets.files import folder_with, folders, image_file, numbers
from capsdesc.evaluation.datasets.pairs import BenchmarkImage, Camera, PosePair
from capsdesc.geometry import relative_pose
from capsdesc.io.hdf5 import import_h5py
from capsdesc.io.pickles import load_array
from capsdesc.io.text import below, finite_numbers, read_text
from capsdesc.types import Float64Array


@dataclasses.dataclass(frozen=True, eq=False)
class _Posed:
    """An image with its camera, world to camera."""

    view: BenchmarkImage
    camera: Camera
    R: Float64Array
    t: Float64Array


def read_imc2021(folder: Path, min_overlap: float = 0.1) -> list[PosePair]:
    """The validation scenes of 2020 and 2021 (github.com/ubc-vision/image-matching-benchmark), grouped by scene.

    A set has ``images/NAME.jpg``, ``calibration/calibration_NAME.h5`` with K, R and T, world to camera, and
    ``new-vis-pairs/keys-th-0.1.npy`` and its like, lists of the pairs ``NAME0-NAME1`` that see so much of the same.

    Args:
        folder: of scenes ``SCENE/set_100/``, or one such set.
        min_overlap: which list; the challenge has 0.1.

    Raises:
        ImportError: h5py is not installed.
    """
    listing = f"new-vis-pairs/keys-th-{min_overlap:.1f}.npy"
    if (folder / "new-vis-pairs").is_dir():
        sets = [(folder.resolve().name, folder)]
    else:
        inner = [(scene.name, folder_with(scene, "set_100")) for scene in folders(folder)]
        sets = [(name, path) for name, path in inner if (path / "new-vis-pairs").is_dir()]
    pairs = []
    for scene, path in sets:
        if not (path / listing).is_file():
            raise FileNotFoundError(f"{path / listing} does not exist; --min-overlap chooses among 0.0, 0.1, ... 0.9")
        keys = [str(key) for key in np.ravel(load_array(path / listing))]
        posed: dict[str, _Posed] = {}
        for first, second in _names(keys, str(path / listing)):
            for name in (first, second):
                if name not in posed:
                    posed[name] = _read_calibration(path, name, str(path / listing))
            pairs.append(_pair(scene, f"{first}-{second}", posed[first], posed[second]))
    return pairs


def read_imc2022(folder: Path, min_overlap: float = 0.1) -> list[PosePair]:
    """The training scenes of 2022, grouped by scene, with translations in metres.

    A scene has ``images/``, ``calibration.csv`` (image_id, camera_intrinsics, rotation_matrix, translation_vector;
    world to camera) and ``pair_covisibility.csv`` (pair, covisibility, fundamental_matrix). Beside the scenes
    ``scaling_factors.csv`` (scene, scaling_factor) has the metres of a unit.

    Args:
        folder: of scenes and ``scaling_factors.csv``.
        min_overlap: the least covisibility of a pair; the challenge recommends 0.1.
    """
    factors = {
        row["scene"]: float(_numbers(row, "scaling_factor", (), where)[()])
        for where, row in _rows(folder / "scaling_factors.csv", "scene", "scaling_factor")
    }
    pairs = []
    for scene, metres in factors.items():
        path = below(folder, scene, str(folder / "scaling_factors.csv"))
        if not path.is_dir():
            continue
        if metres <= 0:
            raise ValueError(f"{folder / 'scaling_factors.csv'}: the factor of {scene} is {metres}; expected above 0")
        columns = ("image_id", "camera_intrinsics", "rotation_matrix", "translation_vector")
        posed = {}
        for where, row in _rows(path / "calibration.csv", *columns):
            K, R = (_numbers(row, column, (3, 3), where) for column in columns[1:3])
            t = metres * _numbers(row, columns[3], (3,), where)
            posed[row["image_id"]] = _posed(path / "images", row["image_id"], K, R, t, where)
        for where, row in _rows(path / "pair_covisibility.csv", "pair", "covisibility"):
            if float(_numbers(row, "covisibility", (), where)[()]) < min_overlap:
                continue
            ((first, second),) = _names([row["pair"]], where)
            if unknown := [name for name in (first, second) if name not in posed]:
                raise ValueError(f"{where}: calibration.csv has no {unknown[0]}")
            pairs.append(_pair(scene, row["pair"], posed[first], posed[second], metric=True))
    return pairs


def _read_calibration(folder: Path, name: str, where: str) -> _Posed:
    path = below(folder / "calibration", f"calibration_{name}.h5", where)
    if not path.is_file():
        raise FileNotFoundError(f"{where}: there is no {path}")
    try:
        with import_h5py().File(path, "r") as file:
            K, R, t = (np.asarray(file[key][()]) for key in ("K", "R", "T"))
    except (OSError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no file of K, R and T: {error}") from error
    return _posed(folder / "images", name, K, R, t.reshape(-1), str(path))


def _posed(images: Path, name: str, K: Float64Array, R: Float64Array, t: Float64Array, where: str) -> _Posed:
    below(images, name, where)
    R = as_rotation(numbers(R, f"{where}: R", (3, 3)), f"{where}: R")
    return _Posed(
        BenchmarkImage(image_file(images, name)), Camera.from_colmap(K, where), R, numbers(t, f"{where}: T", (3,))
    )


def _pair(scene: str, name: str, first: _Posed, second: _Posed, *, metric: bool = False) -> PosePair:
    R, t = relative_pose(first.R, first.t, second.R, second.t)
    return PosePair(f"{scene}/{name}", scene, first.view, second.view, first.camera, second.camera, R, t, metric=metric)


def _names(keys: list[str], where: str) -> Iterator[tuple[str, str]]:
    """The two names in each key; a name has no dash."""
    for key in keys:
        first, dash, second = key.partition("-")
        if not (first and dash and second) or "-" in second:
            raise ValueError(f"{where}: {shown(key)} is no pair; expected NAME0-NAME1")
        yield first, second


def _rows(path: Path, *columns: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Where each row of a table stands, and its fields by the columns' names."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; it has the columns {', '.join(columns)}")
    try:
        reader = csv.DictReader(read_text(path).splitlines(), restval="")
        if missing := [column for column in columns if column not in (reader.fieldnames or ())]:
            raise ValueError(f"{path} has no column {missing[0]}; expected {', '.join(columns)}")
        yield from ((f"{path}, line {reader.line_num}", row) for row in reader)
    except csv.Error as error:
        raise ValueError(f"{path} is no table: {error}") from error


def _numbers(row: dict[str, str], column: str, shape: tuple[int, ...], where: str) -> Float64Array:
    values = finite_numbers(row[column].split(), f"{where}: {column}")
    if values.size != np.prod(shape, dtype=int):
        raise ValueError(f"{where}: {column} has {values.size} numbers; expected {np.prod(shape, dtype=int)}")
    return values.reshape(shape)
