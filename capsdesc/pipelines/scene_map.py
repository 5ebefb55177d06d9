"""What photographs are localised in: a COLMAP model whose photographs have features, and these features scene points.

The model's poses are taken as they are. Its points serve where they are of these very features, as those of ``capsdesc
sfm`` with the same settings; else the features are matched and triangulated. It is made once and kept.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from capsdesc.describe.extractor import CAPSExtractor
from capsdesc.io.colmap import find_model, import_pycolmap, read_model
from capsdesc.io.files import atomic_path, sweep
from capsdesc.io.locks import sole_use
from capsdesc.io.npz import load_features
from capsdesc.io.settings import refuse_other_settings
from capsdesc.io.text import parse_json, read_text
from capsdesc.pipelines.extract import extract_images, feature_settings
from capsdesc.pipelines.match import MatchingConfig
from capsdesc.pipelines.retrieval import RetrievalIndex
from capsdesc.pipelines.stores import NpzFolder
from capsdesc.pipelines.triangulation import triangulate
from capsdesc.types import Features, Float64Array, PosedImage

# Features of so many photographs are kept in memory.
_CACHED_IMAGES = 32
# Pixels by which keypoints in a COLMAP model, which are double precision, may differ from ours.
_SAME_PLACE = 1e-3


@dataclasses.dataclass(frozen=True, eq=False)
class SceneMap:
    """Posed photographs with features, and the scene points that some of their keypoints show.

    Attributes:
        photographs: by their names.
        point_ids: for each of them (N,) the row of ``points`` that each keypoint shows, or -1.
        points: (P, 3) scene points.
        index: finds the photographs that look like another one.
        load: the features of a photograph by its name, in numpy.
    """

    photographs: Mapping[str, PosedImage]
    point_ids: Mapping[str, npt.NDArray[np.int64]]
    points: Float64Array
    index: RetrievalIndex
    load: Callable[[str], Features]


def find_photographs_of(model: Path) -> Path:
    """The folder of a model's photographs: ``images`` in the folder of the model, or beside its ``sparse``.

    Raises:
        FileNotFoundError: there is no model, or no such folder.
    """
    found = find_model(model)
    for folder in (model, found, *found.resolve().parents[:2]):
        if (folder / "images").is_dir():
            return folder / "images"
    raise FileNotFoundError(f"no folder images of photographs beside the COLMAP model in {model}; name it (--images)")


def open_map(
    extractor: CAPSExtractor,
    model: Path,
    folder: Path,
    config: MatchingConfig,
    *,
    images: Path | None = None,
    threads: int | None = None,
    progress: bool = False,
) -> SceneMap:
    """The map of a COLMAP model, made where it is not there yet.

    Writes ``folder/features``, ``folder/sparse``, a COLMAP model with the points that were triangulated, and
    ``folder/map.json``. What an earlier call finished is not done again: features stay, and points while the poses and
    the settings of matching are the same. A model of ``capsdesc sfm`` with the same settings has both already.

    Args:
        extractor: what detects and describes keypoints, such as :func:`capsdesc.pipelines.sfm.sfm_extractor` makes.
        model: folder of a COLMAP model, or one with ``sparse``.
        folder: where the map is kept.
        config: how photographs are described and matched.
        images: folder of the photographs; ``None``: ``images`` in the folder of the model, or beside its ``sparse``.
        threads: as for :func:`capsdesc.pipelines.extract.extract_images`.
        progress: whether to show progress on standard error, where that is a terminal.

    Raises:
        ImportError: pycolmap is not installed.
        FileNotFoundError: there is no model, or none of its photographs.
        BlockingIOError: another run is making this map.
        ValueError: the model cannot be read, fewer than two photographs can, no points come out, or the map in
            ``folder`` has features of other settings or weights.
    """
    own = find_model(model)
    images = find_photographs_of(model) if images is None else images
    photographs = {posed.path.relative_to(images).as_posix(): posed for posed in read_model(own, images)}
    settings = feature_settings(extractor, config.max_keypoints, config.orientation, config.max_shift is not None)
    _refuse_other_features(folder, settings)
    sinks = [NpzFolder(images.parent / "features"), NpzFolder(folder / "features")]
    complete = [sink for sink in sinks if _holds(sink, photographs, settings)]
    sink = (complete or sinks[-1:])[0]
    if not complete:
        extraction = extract_images(
            extractor,
            {name: posed.path for name, posed in photographs.items()},
            sink,
            max_keypoints=config.max_keypoints,
            orientation=config.orientation,
            derivatives=config.max_shift is not None,
            threads=threads,
            progress=progress,
        )
        photographs = {name: posed for name, posed in photographs.items() if name not in extraction.broken}
    return make_map(
        photographs,
        lambda name: load_features(sink.path(name)),
        folder,
        config,
        settings=settings,
        own=own,
        device=extractor.device,
        progress=progress,
    )


def make_map(
    photographs: Mapping[str, PosedImage],
    load: Callable[[str], Features],
    folder: Path,
    config: MatchingConfig,
    *,
    settings: Mapping[str, Any],
    own: Path | None = None,
    device: torch.device | str | None = None,
    progress: bool = False,
) -> SceneMap:
    """The map of posed photographs that have features, whoever made them; see :func:`open_map`.

    Args:
        photographs: by their names.
        load: the features of each, in numpy, by its name.
        folder: where the map is kept.
        config: how they are matched.
        settings: all that the features depend on beside their photographs, for JSON.
        own: a COLMAP model whose points serve if they are of these features.
        device: where to match; ``None``: in numpy.
        progress: whether to show progress on standard error, where that is a terminal.

    Raises:
        ImportError, BlockingIOError, ValueError: see :func:`open_map`.
    """
    if len(photographs) < 2:
        raise ValueError(f"{len(photographs)} photographs of the map can be read; expected at least two")
    load = functools.lru_cache(maxsize=_CACHED_IMAGES)(load)
    recipe = {
        "settings": dict(settings),
        "matching": {name: getattr(config, name) for name in ("ratio", "matcher", "max_shift")},
        "poses": _fingerprint(photographs),
    }
    if not _is_finished(folder, recipe):
        with sole_use(folder, is_folder=True):
            _refuse_other_features(folder, settings)
            _begin(folder, recipe)
            serves = own is not None and _is_of(own, photographs, load)
            if not serves:
                triangulate(photographs, load, folder, config, device=device, progress=progress)
            _write_record(folder, {**recipe, "triangulated": not serves})
    with_points = folder / "sparse" if own is None or _read_record(folder)["triangulated"] else own
    point_ids, points = _points_of_keypoints(with_points, photographs)
    index = _kept_index(folder / "retrieval.npz", list(photographs), load, progress)
    return SceneMap(photographs, point_ids, points, index, load)


def _holds(sink: NpzFolder, names: Mapping[str, object], settings: Mapping[str, Any]) -> bool:
    """Whether features of all photographs are there, made with these settings."""
    stored = sink.stored(names)
    expected = json.dumps(settings, sort_keys=True)
    return all(stored.get(name) == expected for name in names)


# The record, map.json: what the map is made of, and whether its points were triangulated; null before they are there.


def _read_record(folder: Path) -> dict[str, Any]:
    path = folder / "map.json"
    if not path.exists():
        return {}
    content = parse_json(read_text(path), str(path))
    if not isinstance(content, dict) or "triangulated" not in content or not isinstance(content.get("settings"), dict):
        raise ValueError(f"{path} is no record of this command; choose another folder with --map")
    return content


def _write_record(folder: Path, content: Mapping[str, Any]) -> None:
    with atomic_path(folder / "map.json") as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _refuse_other_features(folder: Path, settings: Mapping[str, Any]) -> None:
    record = _read_record(folder)
    if record:
        what = f"the map in {folder} has features"
        refuse_other_settings(what, record["settings"], settings, "choose another folder with --map")


def _is_finished(folder: Path, recipe: Mapping[str, Any]) -> bool:
    record = _read_record(folder)
    if record != {**recipe, "triangulated": record.get("triangulated")}:
        return False
    return record["triangulated"] is False or (record["triangulated"] is True and (folder / "sparse").is_dir())


def _begin(folder: Path, recipe: Mapping[str, Any]) -> None:
    """What was made by another recipe goes, but for the features."""
    sweep(folder / "map.json", folder / "retrieval.npz")
    unfinished = {**recipe, "triangulated": None}
    if _read_record(folder) != unfinished:
        for name in ("database.db", "retrieval.npz"):
            (folder / name).unlink(missing_ok=True)
        _write_record(folder, unfinished)


def _fingerprint(photographs: Mapping[str, PosedImage]) -> str:
    """A SHA-256 of names, poses and cameras."""
    digest = hashlib.sha256()
    for name, posed in sorted(photographs.items()):
        camera = posed.camera
        digest.update(f"{name}\n{camera.model_name} {camera.width} {camera.height}\n".encode())
        for values in (camera.params, posed.R, posed.t):
            digest.update(np.asarray(values, dtype="<f8").tobytes())
    return digest.hexdigest()


def _is_of(model: Path, names: Mapping[str, object], load: Callable[[str], Features]) -> bool:
    """Whether a model's keypoints are those of the features, and some show scene points."""
    images = {image.name: image for image in import_pycolmap().Reconstruction(model).images.values()}
    if not all(name in images and any(point.has_point3D() for point in images[name].points2D) for name in names):
        return False
    for name in names:
        keypoints = np.asarray(load(name).keypoints)
        places = np.array([point.xy for point in images[name].points2D]).reshape(-1, 2) - 0.5
        if places.shape != keypoints.shape or np.abs(places - keypoints).max() > _SAME_PLACE:
            return False
    return True


def _points_of_keypoints(
    model: Path, names: Mapping[str, object]
) -> tuple[dict[str, npt.NDArray[np.int64]], Float64Array]:
    """For each photograph the rows of the scene points that its keypoints show, or -1; and the (P, 3) points."""
    reconstruction = import_pycolmap().Reconstruction(model)
    rows = {point_id: row for row, point_id in enumerate(reconstruction.points3D)}
    shown = {
        image.name: np.array([rows.get(point.point3D_id, -1) for point in image.points2D], dtype=np.int64)
        for image in reconstruction.images.values()
        if image.name in names
    }
    points = np.array([point.xyz for point in reconstruction.points3D.values()], dtype=np.float64)
    return shown, points.reshape(-1, 3)


def _kept_index(path: Path, names: Sequence[str], load: Callable[[str], Features], progress: bool) -> RetrievalIndex:
    """The index for retrieval, from its file if that is of these photographs."""
    if path.exists():
        with np.load(path) as stored:
            if stored["names"].tolist() == list(names):
                return RetrievalIndex(tuple(names), stored["words"], stored["images"])
    index = RetrievalIndex.build(names, load, progress=progress)
    with atomic_path(path) as temporary:
        np.savez(temporary, names=np.array(names), words=index.words, images=index.images)
    return index
