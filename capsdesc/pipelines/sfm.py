"""Photographs in, cameras and a sparse model out: structure from motion by COLMAP with descriptors of CAPS.

Features are kept in files and matches in a database, so that a run that was stopped goes on with the photograph or the
pair it was at; only the mapping, the shortest part, starts anew. Models are renamed into place when all are written.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from capsdesc.describe.extractor import CAPSExtractor
from capsdesc.io.colmap import import_pycolmap
from capsdesc.io.database import ColmapDatabase, check_camera_model
from capsdesc.io.locks import lock_path, sole_use
from capsdesc.io.npz import load_features
from capsdesc.keypoints import Detector, SIFTDetector, default_detector
from capsdesc.pipelines.colmap import (
    Workspace,
    check_enough,
    colmap_pairing,
    extract_sift,
    find_photographs,
    generated_pairs,
    match_sift,
    open_workspace,
    reconstruct_models,
)
from capsdesc.pipelines.extract import extract_images, feature_settings
from capsdesc.pipelines.match import MatchingConfig, match_listed, match_on_cluster
from capsdesc.pipelines.ray import Engine, check_engine
from capsdesc.pipelines.retrieval import NEIGHBOURS, retrieved_pairs
from capsdesc.pipelines.stores import NpzFolder
from capsdesc.pipelines.summary import Reconstruction, Record
from capsdesc.weights import Weights, resolve

logger = logging.getLogger(__name__)

PAIRINGS = ("exhaustive", "sequential", "retrieval")
# A quarter of SIFT's own: small photographs have few strong keypoints, and points are made of many.
_CONTRAST_THRESHOLD = 0.01
# Features of so many images are kept in memory while pairs are matched.
_CACHED_IMAGES = 8


@dataclasses.dataclass(frozen=True)
class SfmConfig(MatchingConfig):
    """How photographs are reconstructed.

    Attributes:
        max_keypoints: at most so many a photograph.
        orientation: ``"any"`` for photographs that may be turned or zoomed at will; takes longer.
        ratio: of the ratio test on matches, above 0; 1 keeps nearly all. The higher it is, the more photographs of
            repeated things, such as windows, are registered in wrong places; the lower, the fewer at all.
        matcher: ``"nearest"`` or ``"context"``, as ``method`` of :func:`capsdesc.match`; the second has no ratio test.
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

    pairs: str = "exhaustive"
    overlap: int = 10
    neighbours: int = NEIGHBOURS
    camera_model: str = "SIMPLE_RADIAL"
    single_camera: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_camera_model(self.camera_model)
        if self.pairs not in PAIRINGS:
            raise ValueError(f"pairs is {self.pairs!r}; expected one of {', '.join(PAIRINGS)}")
        for name in ("overlap", "neighbours"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a number, at least 1")


def sfm_extractor(
    weights: Weights | str | os.PathLike[str] | None = None,
    *,
    detector: str | Detector | None = None,
    device: torch.device | str | None = None,
    max_size: int | None = None,
) -> CAPSExtractor:
    """An extractor as suits structure from motion: SIFT detects weaker keypoints too, and no reliability is described.

    Both make for more matches and for more wrong ones, which geometric verification finds out.

    Args:
        weights: as for :class:`capsdesc.CAPSExtractor`, likewise the following.
        detector: finds keypoints.
        device: where the network runs.
        max_size: longest edge the network sees.
    """
    read = weights if isinstance(weights, Weights) else resolve(weights)
    detector = detector or default_detector(read.config.keypoints, read.source)
    if detector == "sift":
        detector = SIFTDetector(contrast_threshold=_CONTRAST_THRESHOLD)
    return CAPSExtractor(read, detector=detector, device=device, max_size=max_size, reliability=False)


def reconstruct(
    photographs: Path,
    out: Path,
    extractor: CAPSExtractor,
    config: SfmConfig | None = None,
    *,
    chosen: Collection[str] | None = None,
    threads: int = -1,
    engine: Engine = "local",
    workers: int | None = None,
) -> Reconstruction:
    """Reconstruct photographs from keypoints that CAPS describes.

    Writes ``out/features``, ``out/database.db``, the models ``out/sparse/0``, ``1``, ..., the one with most photographs
    first, and ``out/summary.json``. ``out/images`` becomes a link to the photographs: ``out`` is a scene to train on.
    Photographs that cannot be read are left out with a warning. What an earlier run finished is not done again;
    photographs may have been added.

    Args:
        photographs: folder of the photographs, subfolders included.
        out: folder to write to.
        extractor: what detects and describes keypoints, such as :func:`sfm_extractor` makes.
        config: how; ``None`` is the default.
        chosen: names of the photographs that take part, their paths below the folder; ``None`` for all.
        threads: number of threads of all but the network, -1 for all cores.
        engine: ``"local"``, in this process, or ``"ray"``: photographs are described and matched by workers of a Ray
            cluster, as :func:`extract_images` and :func:`match_on_cluster` do, while COLMAP verifies and maps here.
            ``out`` and ``photographs`` are on storage that all machines see.
        workers: of Ray, as for :func:`extract_images`.

    Raises:
        ImportError: pycolmap is not installed, or Ray is asked for and not installed.
        FileNotFoundError: there is no folder ``photographs``.
        FileExistsError: ``out/sparse`` holds models that come from elsewhere.
        BlockingIOError: another run is at work in ``out``.
        ValueError: fewer than two photographs can be read, ``out`` lies in ``photographs`` or has results of other
            settings or weights, or ``threads``, ``engine`` or ``workers`` is out of range.
    """
    config = config or SfmConfig()
    check_engine(engine, workers)
    images = find_photographs(photographs)
    if chosen is not None:
        images = {name: images[name] for name in images if name in chosen}
    with open_workspace(photographs, out, threads) as workspace:
        features = feature_settings(extractor, config.max_keypoints, config.orientation, config.max_shift is not None)
        record = Record(out, {**dataclasses.asdict(config), **features})
        link_photographs(photographs, out / "images")
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
                engine=engine,
                workers=workers,
                progress=True,
            )
        names = [name for name in images if name not in extraction.broken]
        refused = _import_images(workspace, names, config)
        names = [name for name in names if name not in refused]
        check_enough(names, photographs)

        def match_features() -> None:
            left = _pairs_left(workspace.database, names, sink, config)
            if engine == "ray":
                _match_on_cluster(workspace.database, left, sink, config, features, extractor.device, workers)
            else:
                _match(workspace.database, left, sink, config, extractor.device)

        def write_keypoints() -> None:
            with ColmapDatabase(workspace.database) as database:
                for name in names:
                    if not database.has_keypoints(name):
                        database.write_keypoints(name, load_features(sink.path(name)).keypoints)

        models = reconstruct_models(
            workspace,
            names,
            find_features=write_keypoints,
            match_features=match_features,
            stage=lambda stage: record.stage("caps", stage),
        )
        return record.finish("caps", names, models)


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
    if config.pairs == "retrieval" and any(len(name.split()) > 1 for name in names):
        raise ValueError("COLMAP's SIFT cannot match listed pairs of photographs whose names have spaces; rename them")
    with sole_use(out, is_folder=True), open_workspace(photographs, out / "sift", threads) as workspace:
        record = Record(out, dataclasses.asdict(config))

        def match_features() -> None:
            if config.pairs == "retrieval":
                pairs = retrieved_pairs(names, NpzFolder(out / "features"), config.neighbours)
                listed = workspace.folder / "pairs.txt"
                listed.write_text("".join(f"{first} {second}\n" for first, second in pairs), encoding="utf-8")
                pairing = import_pycolmap().ImportedPairingOptions(match_list_path=listed)
            else:
                pairing = colmap_pairing(config.pairs, config.overlap)
            match_sift(workspace.database, pairing, threads)

        models = reconstruct_models(
            workspace,
            names,
            find_features=lambda: extract_sift(
                workspace.database,
                photographs,
                names,
                camera_model=config.camera_model,
                single_camera=config.single_camera,
                max_features=config.max_keypoints,
                threads=threads,
            ),
            match_features=match_features,
            stage=lambda stage: record.stage("sift", stage),
        )
        return record.finish("sift", names, models)


def link_photographs(photographs: Path, link: Path) -> None:
    """Have the photographs beside the models, where whoever reads COLMAP's models looks for them."""
    if link.exists() and link.samefile(photographs):
        return
    if link.is_symlink():
        link.unlink()
    elif link.exists():
        logger.warning("%s is not %s, whose photographs are reconstructed", link, photographs)
        return
    try:
        link.symlink_to(photographs.resolve(), target_is_directory=True)
    except OSError as error:  # the file system or the user's rights allow no links
        logger.warning("%s is no link to the photographs: %s", link, error)


def _import_images(workspace: Workspace, names: Sequence[str], config: SfmConfig) -> list[str]:
    """Put photographs that have features into the database; returns those that COLMAP refuses."""
    with ColmapDatabase(workspace.database) as database:
        refused = database.import_images(
            workspace.images, names, camera_model=config.camera_model, single_camera=config.single_camera
        )
    size = ", or it has another size than the first" if config.single_camera else ""
    for name in refused:
        logger.warning("left out %s: COLMAP cannot read it%s", name, size)
    return refused


def _pairs_left(path: Path, names: Sequence[str], sink: NpzFolder, config: SfmConfig) -> list[tuple[str, str]]:
    """The pairs that are not matched yet."""
    if config.pairs == "retrieval":
        pairs = retrieved_pairs(names, sink, config.neighbours)
    else:
        pairs = generated_pairs(path, names, colmap_pairing(config.pairs, config.overlap))
    with ColmapDatabase(path) as database:
        return [pair for pair in pairs if not database.has_matches(*pair)]


def _match(
    path: Path, pairs: Sequence[tuple[str, str]], sink: NpzFolder, config: SfmConfig, device: torch.device
) -> None:
    """Match pairs in this process."""
    with ColmapDatabase(path) as database:
        found = match_listed(
            pairs,
            sink.read,
            ratio=config.ratio,
            max_shift=config.max_shift,
            method=config.matcher,
            device=device,
            cached=_CACHED_IMAGES,
        )
        for pair in found:
            database.write_matches(*pair.names, pair.matches)


def _match_on_cluster(
    path: Path,
    pairs: Sequence[tuple[str, str]],
    sink: NpzFolder,
    config: SfmConfig,
    origin: Mapping[str, Any],
    device: torch.device,
    workers: int | None,
) -> None:
    """Match pairs on a Ray cluster, and put the matches into the database when all of them are there.

    So a run that was stopped while it matched cuts the same pairs into the same blocks.
    """
    folder = path.with_name("matches.parts")
    blocks = match_on_cluster(
        pairs,
        sink.absolute().read,
        folder,
        lock=lock_path(path.parent, is_folder=True),
        origin=origin,
        ratio=config.ratio,
        max_shift=config.max_shift,
        method=config.matcher,
        device=device,
        workers=workers,
    )
    matched = sorted(blocks, key=lambda block: block.pairs)
    with ColmapDatabase(path) as database:
        for block in matched:
            for names, _, found in block.read():
                database.write_matches(*names, found.indices)
    shutil.rmtree(folder)
