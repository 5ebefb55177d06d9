"""Benchmarks of relative poses: Strecha's scenes, lists of pairs, COLMAP models."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from capsdesc.checks import as_intrinsics, as_rotation, shown
from capsdesc.evaluation.datasets.pairs import BenchmarkImage, Camera, PosePair
from capsdesc.geometry import relative_pose, rotation_error
from capsdesc.io.colmap import find_model, overlap, read_model
from capsdesc.io.pairs import read_posed_pairs
from capsdesc.io.text import below, listed_image, parse_json, read_text
from capsdesc.types import Float64Array, PosedImage


def read_strecha(folder: Path) -> list[PosePair]:
    """Scenes with laser-scanned ground truth (Strecha et al., CVPR 2008): cameras.json, pairs.json, SCENE/IMAGE."""
    listed, cameras = _json_file(folder / "pairs.json", list), {}
    for scene, entries in _json_file(folder / "cameras.json", dict).items():
        for where, entry in _entries(entries, f"{folder / 'cameras.json'}, {scene}"):
            name = _entry(entry, "name", where)
            cameras[scene, name] = Camera(as_intrinsics(_matrix(entry, "K", (3, 3), where), f"{where}: K"))
    pairs = []
    for where, entry in _entries(listed, str(folder / "pairs.json")):
        scene, name0, name1 = (_entry(entry, key, where) for key in ("scene", "name1", "name2"))
        if unknown := [name for name in (name0, name1) if (scene, name) not in cameras]:
            raise ValueError(f"{where}: cameras.json has no {scene}/{unknown[0]}")
        R = as_rotation(_matrix(entry, "R", (3, 3), where), f"{where}: R")
        pairs.append(
            PosePair(
                f"{scene}/{name0}-{name1}",
                difficulty(R),
                BenchmarkImage(listed_image(below(folder, scene, where), name0, where)),
                BenchmarkImage(listed_image(below(folder, scene, where), name1, where)),
                cameras[scene, name0],
                cameras[scene, name1],
                R,
                _matrix(entry, "t", (3,), where),
            )
        )
    return pairs


def read_pairs_file(path: Path, images: Path | None = None) -> list[PosePair]:
    """A list of pairs with cameras and poses, see :func:`capsdesc.io.pairs.read_posed_pairs`, grouped by rotation."""
    return [
        PosePair(
            pair.name,
            difficulty(pair.R),
            BenchmarkImage(pair.paths[0], pair.turns[0]),
            BenchmarkImage(pair.paths[1], pair.turns[1]),
            Camera(pair.K0),
            Camera(pair.K1),
            pair.R,
            pair.t,
        )
        for pair in read_posed_pairs(path, images)
    ]


def read_colmap(folder: Path, images: Path | None = None, min_overlap: float = 0.1) -> list[PosePair]:
    """A COLMAP model taken as the truth: all pairs of registered images that share enough 3D points.

    Args:
        folder: the model's own folder, or one with ``sparse/`` or ``sparse/0/`` in it.
        images: the folder of the images; ``images/`` in ``folder`` unless given.
        min_overlap: the least number of shared 3D points, relative to the image that has fewer.
    """
    model = find_model(folder)
    photographs = read_model(model, images or folder / "images", strict=True)
    pairs = []
    for i, first in enumerate(photographs):
        for second in photographs[i + 1 :]:
            if overlap(first, second) < max(min_overlap, 1e-9):
                continue
            R, t = relative_pose(first.R, first.t, second.R, second.t)
            pairs.append(
                PosePair(
                    f"{first.path.name}-{second.path.name}",
                    difficulty(R),
                    BenchmarkImage(first.path),
                    BenchmarkImage(second.path),
                    _from_colmap(first),
                    _from_colmap(second),
                    R,
                    t,
                )
            )
    return pairs


def _json_file(path: Path, kind: type) -> Any:
    if not path.exists():
        raise FileNotFoundError(
            f"{path} does not exist; a strecha benchmark has cameras.json, pairs.json and SCENE/IMAGE"
        )
    content = parse_json(read_text(path), str(path))
    if not isinstance(content, kind):
        raise ValueError(f"{path} holds {shown(content)}; expected a JSON {'object' if kind is dict else 'array'}")
    return content


def _entries(entries: Any, where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f"{where} is {shown(entries)}; expected a list of objects")
    yield from ((f"{where}, entry {number}", entry) for number, entry in enumerate(entries))


def _entry(entry: dict[str, Any], key: str, where: str) -> str:
    if not isinstance(entry.get(key), str):
        raise ValueError(f"{where}: {key} is {shown(entry.get(key))}; expected a text")
    return str(entry[key])


def _matrix(entry: dict[str, Any], key: str, shape: tuple[int, ...], where: str) -> Float64Array:
    """The finite numbers of an entry, in this shape."""
    try:
        matrix = np.array(entry.get(key), dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        matrix = np.empty(0)
    if matrix.shape != shape or not np.isfinite(matrix).all():
        raise ValueError(f"{where}: {key} is {shown(entry.get(key))}; expected numbers of shape {shape}")
    return matrix


def difficulty(R: Float64Array) -> str:
    """The paper's difficulty of a pair, by its rotation (section 4.1 of CAPS)."""
    angle = rotation_error(R, np.eye(3))
    for bucket, limit in (("easy", 15), ("moderate", 30), ("hard", 60)):
        if angle < limit:
            return bucket
    return "beyond 60 deg"


def _from_colmap(posed: PosedImage) -> Camera:
    K = posed.K
    if posed.camera.model_name in ("PINHOLE", "SIMPLE_PINHOLE"):
        return Camera(K)

    def undistort(points: Float64Array) -> Float64Array:
        rays = posed.pixels_to_rays(points)
        return np.asarray(rays * [K[0, 0], K[1, 1]] + K[:2, 2], dtype=np.float64)

    return Camera(K, undistort)
