"""Photographs in, cameras and a sparse model out: structure from motion by COLMAP with descriptors of CAPS.

Features are kept in files and matches in a database, so that a run that was stopped goes on with the photograph or the
pair it was at; only the mapping, the shortest part, starts anew. Models are renamed into place when all are written.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from capsdesc.describe.extractor import CAPSExtractor
from capsdesc.describe.orientation import Orientation, check_orientation
from capsdesc.images import find_images
from capsdesc.io.colmap import import_pycolmap
from capsdesc.io.database import ColmapDatabase, check_camera_model
from capsdesc.io.npz import load_features
from capsdesc.keypoints import SIFTDetector
from capsdesc.matching import MAX_SHIFT, match
from capsdesc.pipelines.colmap import (
    colmap_pairing,
    extract_sift,
    generated_pairs,
    is_mapped,
    make_out_folder,
    map_photographs,
    match_sift,
    read_models,
    verify,
)
from capsdesc.pipelines.extract import extract_images, feature_settings
from capsdesc.pipelines.retrieval import retrieved_pairs
from capsdesc.pipelines.stores import NpzFolder
from capsdesc.pipelines.summary import Reconstruction, Record
from capsdesc.types import Features

logger = logging.getLogger(__name__)

PAIRINGS = ("exhaustive", "sequential", "retrieval")
# A quarter of SIFT's own: small photographs have few strong keypoints, and points are made of many.
_CONTRAST_THRESHOLD = 0.01
# Features of so many images are kept in memory while pairs are matched.
_CACHED_IMAGES = 8


@dataclasses.dataclass(frozen=True)
class SfmConfig:
    """How photographs are reconstructed.

    Attributes:
        max_keypoints: at most so many a photograph.
        orientation: ``"any"`` for photographs that may be turned or zoomed at will; takes longer.
        ratio: of the ratio test on matches, above 0; 1 keeps nearly all. The higher it is, the more photographs of
            repeated things, such as windows, are registered in wrong places; the lower, the fewer at all.
        max_shift: as for :func:`capsdesc.match`; None for no check, which makes smaller files of features.
        pairs: which photographs are matched. ``"exhaustive"``: each with each; ``"sequential"``: each with those after
            it by name, for video; ``"retrieval"``: each with those that look most like it as a whole.
        overlap: of sequential pairs: with how many that follow at once, and with how many at distances 1, 2, 4, 8, ...
        neighbours: of retrieval: with how many.
        camera_model: COLMAP's name of the lens model.
        single_camera: whether all photographs share one camera, whatever their EXIF data say.

    Raises:
        ValueError: an attribute is out of range.
        ImportError: pycolmap is not installed.
    """

    max_keypoints: int = 4096
    orientation: Orientation = "upright"
    ratio: float = 0.8
    max_shift: float | None = MAX_SHIFT
    pairs: str = "exhaustive"
    overlap: int = 10
    neighbours: int = 20
    camera_model: str = "SIMPLE_RADIAL"
    single_camera: bool = False

    def __post_init__(self) -> None:
        check_camera_model(self.camera_model)
        if self.pairs not in PAIRINGS:
            raise ValueError(f"pairs is {self.pairs!r}; expected one of {', '.join(PAIRINGS)}")
        check_orientation(self.orientation)
        if not 0 < self.ratio <= 1:
            raise ValueError(f"ratio is {self.ratio}; expected a number above 0 and at most 1")
        if self.max_shift is not None and not self.max_shift > 0:
            raise ValueError(f"max_shift is {self.max_shift}; expected a positive number of pixels, or None")
        for name in ("max_keypoints", "overlap", "neighbours"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a number, at least 1")


def sfm_extractor(
    weights: str | os.PathLike[str] | None = None,
    *,
    device: torch.device | str | None = None,
    max_size: int | None = None,
) -> CAPSExtractor:
    """An extractor as suits structure from motion: it detects weaker keypoints too, and describes no reliability.

    Both make for more matches and for more wrong ones, which geometric verification finds out.

    Args:
        weights: as for :class:`capsdesc.CAPSExtractor`, likewise the following.
        device: where the network runs.
        max_size: longest edge the network sees.
    """
    detector = SIFTDetector(contrast_threshold=_CONTRAST_THRESHOLD)
    return CAPSExtractor(weights, detector=detector, device=device, max_size=max_size, reliability=False)


def reconstruct(
    photographs: Path, out: Path, extractor: CAPSExtractor, config: SfmConfig | None = None, *, threads: int = -1
) -> Reconstruction:
    """Reconstruct photographs from keypoints that CAPS describes.

    Writes ``out/features``, ``out/database.db``, the models ``out/sparse/0``, ``1``, ..., the one with most photographs
    first, and ``out/summary.json``. Photographs that cannot be read are left out with a warning. What an earlier run
    finished is not done again; photographs may have been added.

    Args:
        photographs: folder of the photographs, subfolders included.
        out: folder to write to.
        extractor: what detects and describes keypoints, such as :func:`sfm_extractor` makes.
        config: how; ``None`` is the default.
        threads: number of threads of all but the network, -1 for all cores.

    Raises:
        ImportError: pycolmap is not installed.
        FileNotFoundError: there is no folder ``photographs``.
        FileExistsError: ``out/sparse`` holds models that come from elsewhere.
        ValueError: fewer than two photographs can be read, ``out`` lies in ``photographs`` or has results of other
            settings or weights, or ``threads`` is neither positive nor -1.
    """
    config = config or SfmConfig()
    images = {path.relative_to(photographs).as_posix(): path for path in find_images(photographs)}
    make_out_folder(photographs, out, threads)
    features = feature_settings(extractor, config.max_keypoints, config.orientation, config.max_shift is not None)
    record = Record(out, {**dataclasses.asdict(config), **features})
    sink = NpzFolder(out / "features")
    with record.stage("caps", "features"):
        extraction = extract_images(
            extractor,
            images,
            sink,
            max_keypoints=config.max_keypoints,
            orientation=config.orientation,
            derivatives=config.max_shift is not None,
            threads=None if threads == -1 else threads,
            progress=True,
        )
    path = out / "database.db"
    with ColmapDatabase(path) as database:
        refused = database.import_images(
            photographs,
            (name for name in images if name not in extraction.broken),
            camera_model=config.camera_model,
            single_camera=config.single_camera,
        )
    size = ", or it has another size than the first" if config.single_camera else ""
    for name in refused:
        logger.warning("left out %s: COLMAP cannot read it%s", name, size)
    names = [name for name in images if name not in extraction.broken and name not in refused]
    if len(names) < 2:
        raise ValueError(f"{len(names)} photographs in {photographs} can be read; expected at least two")
    models = out / "sparse"
    if not is_mapped(models, names):
        with ColmapDatabase(path) as database:
            for name in names:
                if not database.has_keypoints(name):
                    database.write_keypoints(name, load_features(sink.path(name)).keypoints)
            with record.stage("caps", "matches"):
                _match(database, names, sink, config, extractor.device)
        with record.stage("caps", "verification"):
            verify(path, threads)
        with record.stage("caps", "mapping"):
            map_photographs(path, photographs, models, names, threads)
    return record.finish("caps", names, read_models(models, names))


def reconstruct_with_sift(
    photographs: Path, out: Path, names: Sequence[str], config: SfmConfig, *, threads: int = -1
) -> Reconstruction:
    """Reconstruct the same photographs by COLMAP's own SIFT, from the same pairs, after :func:`reconstruct`.

    Writes ``out/sift/database.db`` and ``out/sift/sparse``, and adds to ``out/summary.json``.

    Args:
        photographs: as for :func:`reconstruct`.
        out: likewise.
        names: the photographs that could be read.
        config: as for :func:`reconstruct`; ``orientation`` and ``ratio`` are those of CAPS, and COLMAP has its own.
        threads: number of threads, -1 for all cores.

    Raises:
        ValueError: pairs come from retrieval and names have spaces, which COLMAP's lists of pairs do not allow.
    """
    record = Record(out, dataclasses.asdict(config))
    folder = out / "sift"
    models = folder / "sparse"
    if config.pairs == "retrieval" and any(len(name.split()) > 1 for name in names):
        raise ValueError("COLMAP's SIFT cannot match listed pairs of photographs whose names have spaces; rename them")
    folder.mkdir(exist_ok=True)
    if not is_mapped(models, names):
        path = folder / "database.db"
        if config.pairs == "retrieval":
            pairs = retrieved_pairs(names, NpzFolder(out / "features"), config.neighbours)
            listed = folder / "pairs.txt"
            listed.write_text("".join(f"{first} {second}\n" for first, second in pairs), encoding="utf-8")
            pairing = import_pycolmap().ImportedPairingOptions(match_list_path=listed)
        else:
            pairing = colmap_pairing(config.pairs, config.overlap)
        with record.stage("sift", "features"):
            extract_sift(
                path,
                photographs,
                names,
                camera_model=config.camera_model,
                single_camera=config.single_camera,
                max_features=config.max_keypoints,
                threads=threads,
            )
        with record.stage("sift", "matches"):
            match_sift(path, pairing, threads)
        with record.stage("sift", "verification"):
            verify(path, threads)
        with record.stage("sift", "mapping"):
            map_photographs(path, photographs, models, names, threads)
    return record.finish("sift", names, read_models(models, names))


def _match(
    database: ColmapDatabase, names: Sequence[str], sink: NpzFolder, config: SfmConfig, device: torch.device
) -> None:
    """Match the pairs that are not matched yet."""

    @functools.lru_cache(maxsize=_CACHED_IMAGES)
    def features(name: str) -> Features:
        stored = load_features(sink.path(name))
        return dataclasses.replace(
            stored,
            descriptors=torch.as_tensor(stored.descriptors, device=device),
            derivatives=None if stored.derivatives is None else torch.as_tensor(stored.derivatives, device=device),
        )

    if config.pairs == "retrieval":
        pairs = retrieved_pairs(names, sink, config.neighbours)
    else:
        pairs = generated_pairs(database.path, names, colmap_pairing(config.pairs, config.overlap))
    for first, second in tqdm(pairs, desc="matches", unit="pair", disable=None):
        if not database.has_matches(first, second):
            found = match(features(first), features(second), ratio=config.ratio, max_shift=config.max_shift)
            database.write_matches(first, second, found)
