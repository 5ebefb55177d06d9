"""Photographs in, cameras and a sparse model out: structure from motion by COLMAP with descriptors of CAPS.

And the command ``capsdesc sfm``. Features are kept in files and matches in a database, so that a run that was stopped
goes on with the photograph or the pair it was at; only the mapping, the shortest part, starts anew. Models are renamed
into place when all are written.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import torch
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from capsdesc.extraction import (
    NpzFolder,
    add_network_options,
    add_orientation_option,
    extract_images,
    feature_settings,
    load_features,
)
from capsdesc.extractor import CAPSExtractor, Features
from capsdesc.io.colmap import import_pycolmap
from capsdesc.io.colmap_database import ColmapDatabase, check_camera_model
from capsdesc.io.files import atomic_path
from capsdesc.io.images import find_images
from capsdesc.io.text import parse_json, read_text
from capsdesc.keypoints import SIFTDetector
from capsdesc.matching import MAX_SHIFT, add_max_shift_option, match
from capsdesc.orientation import Orientation, check_orientation
from capsdesc.retrieval import describe_globally, nearest_pairs, visual_words

if TYPE_CHECKING:
    import pycolmap

logger = logging.getLogger(__name__)

PAIRINGS = ("exhaustive", "sequential", "retrieval")

_SECONDS_BETWEEN_LOOKS = 0.5
# A quarter of SIFT's own: small photographs have few strong keypoints, and points are made of many.
_CONTRAST_THRESHOLD = 0.01
# Lists the photographs the models were made from, beside them.
_MAPPED = "photographs.txt"
# Features of so many images are kept in memory while pairs are matched.
_CACHED_IMAGES = 8
# Local descriptors that visual words are made of.
_WORD_SAMPLES = 50_000


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


@dataclasses.dataclass(frozen=True)
class ModelSummary:
    """A model that came out.

    Attributes:
        folder: where it lies.
        names: names of its registered photographs.
        points: number of scene points.
        track_length: mean number of photographs that see a point.
        reprojection_error: mean distance of the points from where they were seen, in pixels.
    """

    folder: Path
    names: tuple[str, ...]
    points: int
    track_length: float
    reprojection_error: float


@dataclasses.dataclass(frozen=True)
class Reconstruction:
    """What became of photographs.

    Attributes:
        names: the photographs that could be read.
        models: the one with most photographs first; none if no two photographs could be related to each other.
        seconds: taken by each stage, over all runs in the folder but for those that were killed.
    """

    names: tuple[str, ...]
    models: tuple[ModelSummary, ...]
    seconds: Mapping[str, float]


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
    record = _Record(out, {**dataclasses.asdict(config), **features})
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
    record = _Record(out, dataclasses.asdict(config))
    folder = out / "sift"
    models = folder / "sparse"
    if config.pairs == "retrieval" and any(len(name.split()) > 1 for name in names):
        raise ValueError("COLMAP's SIFT cannot match listed pairs of photographs whose names have spaces; rename them")
    folder.mkdir(exist_ok=True)
    if not is_mapped(models, names):
        path = folder / "database.db"
        if config.pairs == "retrieval":
            pairs = _retrieved_pairs(names, NpzFolder(out / "features"), config.neighbours)
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


def make_out_folder(photographs: Path, out: Path, threads: int) -> None:
    """Make ``out``, once it is known that all can be written there; and have COLMAP tell nothing but errors.

    Raises:
        ValueError: it is a part of the photographs, or ``threads`` is neither positive nor -1.
        FileExistsError: ``out/sparse`` holds models that come from elsewhere.
    """
    if threads != -1 and threads < 1:
        raise ValueError(f"threads is {threads}; expected a positive number, or -1 for all cores")
    if out.resolve().is_relative_to(photographs.resolve()):
        raise ValueError(f"{out} lies in {photographs}; expected a folder outside that of the photographs")
    models = out / "sparse"
    if models.exists() and not (models / _MAPPED).is_file():
        raise FileExistsError(f"{models} holds models that come from elsewhere; choose another folder or move them")
    out.mkdir(parents=True, exist_ok=True)
    pycolmap = import_pycolmap()
    pycolmap.logging.minloglevel = int(pycolmap.logging.ERROR)  # else it tells a line per photograph and pair


# ---- Features and matches


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
        pairs = _retrieved_pairs(names, sink, config.neighbours)
    else:
        pairs = _generated_pairs(database.path, names, colmap_pairing(config.pairs, config.overlap))
    for first, second in tqdm(pairs, desc="matches", unit="pair", disable=None):
        if not database.has_matches(first, second):
            found = match(features(first), features(second), ratio=config.ratio, max_shift=config.max_shift)
            database.write_matches(first, second, found)


def _retrieved_pairs(names: Sequence[str], sink: NpzFolder, neighbours: int) -> list[tuple[str, str]]:
    def views(name: str) -> Any:
        """(V, N, D), the upright one first."""
        descriptors = np.asarray(load_features(sink.path(name)).descriptors)
        return descriptors.reshape(-1, *descriptors.shape[-2:])

    # Of each photograph as many descriptors, so that none decides alone.
    count = max(1, _WORD_SAMPLES // len(names))
    words = visual_words(np.concatenate([_sample(views(name), count) for name in names]))
    images = [
        np.array([describe_globally(view, words) for view in views(name)])
        for name in tqdm(names, desc="retrieval", unit="image", disable=None)
    ]
    return [(names[i], names[j]) for i, j in nearest_pairs(images, neighbours)]


def _sample(views: Any, count: int) -> Any:
    """Descriptors of the strongest keypoints, each from a view in turn."""
    rows = np.arange(min(count, views.shape[1]))
    return views[rows % len(views), rows]


def colmap_pairing(pairs: str, overlap: int | None = None) -> Any:
    """COLMAP's options for exhaustive or sequential pairs; without ``overlap`` its own number."""
    pycolmap = import_pycolmap()
    if pairs == "exhaustive":
        return pycolmap.ExhaustivePairingOptions()
    return pycolmap.SequentialPairingOptions(**({} if overlap is None else {"overlap": overlap}))


def _pair_generator(pairing: Any, opened: pycolmap.Database) -> Any:
    pycolmap = import_pycolmap()
    generators = {
        pycolmap.ExhaustivePairingOptions: pycolmap.ExhaustivePairGenerator,
        pycolmap.SequentialPairingOptions: pycolmap.SequentialPairGenerator,
        pycolmap.ImportedPairingOptions: pycolmap.ImportedPairGenerator,
    }
    return generators[type(pairing)](pairing, opened)


def _generated_pairs(database: Path, names: Sequence[str], pairing: Any) -> list[tuple[str, str]]:
    """The pairs that COLMAP makes of the photographs."""
    pycolmap = import_pycolmap()
    with pycolmap.Database.open(database) as opened:
        by_id = {image.image_id: image.name for image in opened.read_all_images()}
        pairs = _pair_generator(pairing, opened).all_pairs()
    wanted = set(names)
    listed = ((by_id[first], by_id[second]) for first, second in pairs)
    return [pair for pair in listed if wanted.issuperset(pair)]


# ---- Steps of COLMAP


def extract_sift(
    database: Path,
    images: Path,
    names: Sequence[str],
    *,
    camera_model: str,
    single_camera: bool = False,
    max_features: int | None = None,
    threads: int = -1,
) -> None:
    """COLMAP's SIFT features of the photographs that have none yet.

    Args:
        database: made if it does not exist.
        images: folder of the photographs.
        names: their names, relative to it.
        camera_model: COLMAP's name of the lens model.
        single_camera: whether all photographs share one camera.
        max_features: at most so many a photograph; ``None`` is COLMAP's own number.
        threads: number of threads, -1 for all cores.
    """
    pycolmap = import_pycolmap()
    options = pycolmap.FeatureExtractionOptions(num_threads=threads)
    if max_features is not None:
        options.sift.max_num_features = max_features

    def extract(token: Any) -> None:
        pycolmap.extract_features(
            database,
            images,
            list(names),
            camera_mode=pycolmap.CameraMode.SINGLE if single_camera else pycolmap.CameraMode.AUTO,
            reader_options=pycolmap.ImageReaderOptions(camera_model=camera_model),
            extraction_options=options,
            device=pycolmap.Device.cpu,
            cancellation_token=token,
        )

    _watch(extract, database, lambda opened: opened.num_images(), "features", len(names))


def match_sift(database: Path, pairing: Any, threads: int = -1) -> None:
    """Match COLMAP's SIFT features of the pairs that are not matched yet, without verification.

    Args:
        database: with the features.
        pairing: COLMAP's options for exhaustive, sequential or listed pairs.
        threads: number of threads, -1 for all cores.
    """
    pycolmap = import_pycolmap()
    matchers = {
        pycolmap.ExhaustivePairingOptions: pycolmap.match_exhaustive,
        pycolmap.SequentialPairingOptions: pycolmap.match_sequential,
        pycolmap.ImportedPairingOptions: pycolmap.match_image_pairs,
    }
    options = pycolmap.FeatureMatchingOptions(num_threads=threads, skip_geometric_verification=True)

    def match_all(token: Any) -> None:
        matchers[type(pairing)](database, options, pairing, device=pycolmap.Device.cpu, cancellation_token=token)

    with pycolmap.Database.open(database) as opened:
        total = len(_pair_generator(pairing, opened).all_pairs())
    _watch(match_all, database, lambda opened: opened.num_matched_image_pairs(), "matches", total)


def verify(database: Path, threads: int = -1) -> None:
    """Verify matched pairs geometrically, see :meth:`ColmapDatabase.verify`, beside a progress bar."""
    with ColmapDatabase(database) as opened, import_pycolmap().Database.open(database) as counted:
        _watch(
            lambda token: opened.verify(threads=threads, cancellation=token),
            database,
            lambda watched: watched.num_verified_image_pairs(),
            "verification",
            counted.num_matched_image_pairs(),
        )


def _watch(
    step: Callable[[pycolmap.CancellationToken], None],
    database: Path,
    count: Callable[[pycolmap.Database], int],
    label: str,
    total: int,
) -> None:
    """Run a step of COLMAP, which is silent, beside a progress bar of what it has put into the database.

    The step has a thread of its own, so that it can be interrupted and stops after the photograph or pair it is at.
    """
    pycolmap = import_pycolmap()
    token = pycolmap.CancellationToken()
    with (
        pycolmap.Database.open(database) as opened,
        ThreadPoolExecutor(1) as executor,
        tqdm(total=total, desc=label, disable=None) as bar,
    ):
        running = executor.submit(step, token)
        is_done = False
        try:
            while not is_done:
                is_done = bool(wait([running], timeout=_SECONDS_BETWEEN_LOOKS).done)
                bar.update(count(opened) - bar.n)
        except BaseException:
            token.cancel()
            raise
        running.result()


def is_mapped(models: Path, names: Sequence[str]) -> bool:
    """Whether the models in a folder were made from these photographs."""
    listed = models / _MAPPED
    return listed.is_file() and read_text(listed) == _listed(names)


def _listed(names: Sequence[str]) -> str:
    return "".join(f"{name}\n" for name in names)


def map_photographs(database: Path, images: Path, models: Path, names: Sequence[str], threads: int = -1) -> None:
    """Reconstruct, and write the models that have photographs of their own, largest first; nothing if there is none.

    Args:
        database: with verified matches.
        images: folder of the photographs, for the colours of points.
        models: folder for ``0``, ``1``, ...; replaced when all are written.
        names: photographs to register, in the order that :func:`is_mapped` is to be given them.
        threads: number of threads, -1 for all cores.
    """
    pycolmap = import_pycolmap()
    partial = models.with_name(f"{models.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "all").mkdir(parents=True)
    options = pycolmap.IncrementalPipelineOptions(num_threads=threads, random_seed=0, image_names=list(names))
    # It has been seen to take minutes for a photograph, and to fail in the end.
    options.structure_less_registration_fallback = False
    with tqdm(total=len(names), desc="mapping", disable=None) as bar:
        found = pycolmap.incremental_mapping(
            database,
            images,
            partial / "all",
            options,
            initial_image_pair_callback=lambda: _advance(bar, 2),
            next_image_callback=lambda: _advance(bar, 1),
        )
    shutil.rmtree(partial / "all")
    registered: set[str] = set()
    count = 0
    for model in sorted(found.values(), key=lambda model: model.num_reg_images(), reverse=True):
        own = {model.image(image_id).name for image_id in model.reg_image_ids()}
        if own <= registered:
            continue
        registered |= own
        folder = partial / str(count)
        folder.mkdir()
        model.write(folder)
        count += 1
    shutil.rmtree(models, ignore_errors=True)
    if count == 0:
        shutil.rmtree(partial)
        return
    (partial / _MAPPED).write_text(_listed(names), encoding="utf-8")
    os.replace(partial, models)


def _advance(bar: tqdm[NoReturn], count: int) -> None:
    """COLMAP takes no callback that returns anything."""
    bar.update(count)


def read_models(models: Path, names: Sequence[str]) -> list[ModelSummary]:
    """What :func:`map_photographs` wrote; photographs that are in no model are logged as a warning."""
    folders = sorted(models.glob("[0-9]*"), key=lambda folder: int(folder.name))
    summaries = [_summarize(folder) for folder in folders]
    registered = {name for summary in summaries for name in summary.names}
    lost = [name for name in names if name not in registered]
    if lost:
        examples = ", ".join(lost[:10]) + (", ..." if len(lost) > 10 else "")
        logger.warning("%d of %d photographs are in no model: %s", len(lost), len(names), examples)
    return summaries


def _summarize(folder: Path) -> ModelSummary:
    pycolmap = import_pycolmap()
    model = pycolmap.Reconstruction(folder)
    return ModelSummary(
        folder=folder,
        names=tuple(sorted(model.image(image_id).name for image_id in model.reg_image_ids())),
        points=model.num_points3D(),
        track_length=model.compute_mean_track_length(),
        reprojection_error=model.compute_mean_reprojection_error(),
    )


# ---- The summary


class _Record:
    """The file ``summary.json``; it holds the settings from the start, so that none are mixed in one folder."""

    def __init__(self, out: Path, settings: Mapping[str, Any]) -> None:
        self._path = out / "summary.json"
        self._content: dict[str, Any] = {"settings": dict(settings), "methods": {}}
        if self._path.exists():
            self._content = parse_json(read_text(self._path), str(self._path))
            self._refuse_other(settings)
        else:
            self._write()

    def _refuse_other(self, settings: Mapping[str, Any]) -> None:
        content = self._content if isinstance(self._content, dict) else {}
        if not all(isinstance(content.get(key), dict) for key in ("settings", "methods")):
            raise ValueError(f"{self._path} is no summary of this command; choose another folder")
        earlier = content["settings"]
        differences = [
            f"{key} {earlier.get(key)!r}, now {value!r}" for key, value in settings.items() if earlier.get(key) != value
        ]
        if differences:
            raise ValueError(
                f"{self._path.parent} has results of other settings ({'; '.join(differences)}); choose another folder"
            )

    def _method(self, name: str) -> dict[str, Any]:
        method: dict[str, Any] = self._content["methods"].setdefault(name, {"seconds": {}, "models": []})
        return method

    @contextmanager
    def stage(self, method: str, stage: str) -> Iterator[None]:
        """Add the time that the block takes, also where it is stopped."""
        start = time.perf_counter()
        try:
            yield
        finally:
            seconds = self._method(method)["seconds"]
            seconds[stage] = round(seconds.get(stage, 0) + time.perf_counter() - start, 2)
            self._write()

    def finish(self, method: str, names: Sequence[str], models: Sequence[ModelSummary]) -> Reconstruction:
        """Write what came out."""
        content = self._method(method)
        content["photographs"] = len(names)
        content["models"] = [
            {
                "folder": model.folder.relative_to(self._path.parent).as_posix(),
                "registered": len(model.names),
                "points": model.points,
                "track_length": model.track_length,
                "reprojection_error": model.reprojection_error,
            }
            for model in models
        ]
        registered = {name for model in models for name in model.names}
        content["unregistered"] = [name for name in names if name not in registered]
        self._write()
        return Reconstruction(tuple(names), tuple(models), dict(content["seconds"]))

    def _write(self) -> None:
        with atomic_path(self._path) as temporary:
            temporary.write_text(json.dumps(self._content, indent=1) + "\n", encoding="utf-8")


# ---- The command


def add_parser(commands: argparse._SubParsersAction[Any]) -> None:
    """Register ``sfm`` among the subcommands of ``capsdesc``; its ``run`` takes the parsed arguments."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "sfm",
        help="reconstruct cameras and a sparse model from photographs, with COLMAP",
        description="Reconstruct photographs by structure from motion: CAPS describes their keypoints, COLMAP verifies "
        "the matches and maps. Writes a COLMAP database and models. Run the same command again to resume.",
    )
    parser.add_argument("photographs", type=Path, help="folder of the photographs, subfolders included")
    parser.add_argument("out", type=Path, help="folder for features/, database.db, sparse/ and summary.json")
    parser.add_argument(
        "--max-keypoints", type=int, default=SfmConfig.max_keypoints, metavar="N", help="per photograph (%(default)s)"
    )
    add_orientation_option(parser)
    parser.add_argument(
        "--ratio", type=float, default=SfmConfig.ratio, help="of the ratio test on matches, up to 1 (%(default)s)"
    )
    add_max_shift_option(parser, SfmConfig.max_shift)
    parser.add_argument(
        "--pairs",
        choices=PAIRINGS,
        default=SfmConfig.pairs,
        help="which photographs are matched: each with each, with those after it by name, or with those that look most "
        "like it (%(default)s)",
    )
    parser.add_argument(
        "--overlap",
        type=int,
        default=SfmConfig.overlap,
        metavar="N",
        help="sequential: with the next N, and with N at distances 1, 2, 4, ... (%(default)s)",
    )
    parser.add_argument(
        "--neighbours",
        type=int,
        default=SfmConfig.neighbours,
        metavar="N",
        help="retrieval: with so many (%(default)s)",
    )
    parser.add_argument("--camera-model", default=SfmConfig.camera_model, help="COLMAP's lens model (%(default)s)")
    parser.add_argument("--single-camera", action="store_true", help="one camera took all photographs, without zooming")
    parser.add_argument(
        "--compare", choices=("sift",), help="do the same with COLMAP's own SIFT, in OUT/sift, and show both"
    )
    parser.add_argument("--threads", type=int, default=-1, metavar="N", help="(default: all cores)")
    add_network_options(parser)
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    config = SfmConfig(**{field.name: getattr(options, field.name) for field in dataclasses.fields(SfmConfig)})
    if options.threads > 0:
        torch.set_num_threads(options.threads)
    with logging_redirect_tqdm():
        extractor = sfm_extractor(options.weights, device=options.device, max_size=options.max_size)
        found = reconstruct(options.photographs, options.out, extractor, config, threads=options.threads)
        results = {"caps": found}
        if options.compare == "sift":
            results["sift"] = reconstruct_with_sift(
                options.photographs, options.out, found.names, config, threads=options.threads
            )
    print(_table(results))
    if not found.models:
        print(
            f"capsdesc: no two of the {len(found.names)} photographs could be related to each other: do they overlap, "
            "and is there enough of texture and enough of sideways motion between them?",
            file=sys.stderr,
        )
    registered = {name for model in found.models for name in model.names}
    if len(registered) < len(found.names) and config.orientation == "upright":
        print(
            "capsdesc: were some of the photographs taken with the camera turned? Then try --orientation any, in "
            "another folder.",
            file=sys.stderr,
        )
    return 0 if found.models else 1


def _table(results: Mapping[str, Reconstruction]) -> str:
    """A line for each model."""
    lines = [f"{'':14}{'registered':>14}{'points':>10}{'track length':>14}{'error (px)':>12}{'seconds':>10}"]
    for method, result in results.items():
        seconds = f"{sum(result.seconds.values()):10.1f}"
        total = len(result.names)
        if not result.models:
            lines.append(f"{method:14}{f'0 of {total}':>14}{'':36}{seconds}")
        for number, model in enumerate(result.models):
            title = method if number == 0 else f"{method}, model {number}"
            lines.append(
                f"{title:14}{f'{len(model.names)} of {total}':>14}{model.points:10}{model.track_length:14.2f}"
                f"{model.reprojection_error:12.2f}{seconds if number == 0 else ''}"
            )
    return "\n".join(lines)
