"""``capsdesc-train prepare``: photographs in, scenes to train on out, by COLMAP's structure from motion.

Features and matches are kept in a database, so that a run that was stopped goes on with the photograph or the pairs it
was at; only the mapping, the shortest part, starts anew. The models are renamed into place when all are written.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import math
import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import cv2
import yaml
from tqdm import tqdm

from capsdesc.io.colmap import import_pycolmap
from capsdesc.io.files import atomic_path
from capsdesc.io.images import find_images, read_image
from capsdesc.training.config import build

if TYPE_CHECKING:
    import pycolmap

logger = logging.getLogger(__name__)

MATCHERS = ("exhaustive", "sequential")

SECONDS_BETWEEN_LOOKS = 0.5
JPEG_QUALITY = 95
# Lists the photographs the models were made from, beside them.
MAPPED = "photographs.txt"


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
        pycolmap = import_pycolmap()
        models = [name for name in pycolmap.CameraModelId.__members__ if name != "INVALID"]
        if self.camera_model not in models:
            raise ValueError(f"camera_model is {self.camera_model!r}; expected one of {', '.join(models)}")
        if self.matcher not in MATCHERS:
            raise ValueError(f"matcher is {self.matcher!r}; expected one of {', '.join(MATCHERS)}")
        if self.max_size is not None and self.max_size < 64:
            raise ValueError(f"max_size is {self.max_size}; expected at least 64 pixels")


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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    defaults = PrepareConfig()
    parser.description = (
        "Reconstruct cameras and poses from photographs by structure from motion, as scenes for capsdesc-train. "
        "Run the same command again to resume."
    )
    parser.add_argument("photographs", type=Path, help="folder of the photographs, subfolders included")
    parser.add_argument("out", type=Path, help="folder for images/, sparse/ and the database")
    parser.add_argument(
        "--camera-model", default=defaults.camera_model, help="COLMAP's lens model (default: %(default)s)"
    )
    parser.add_argument(
        "--matcher",
        choices=MATCHERS,
        default=defaults.matcher,
        help="which photographs are matched: each with each, or with the next by name (default: %(default)s)",
    )
    parser.add_argument(
        "--max-size",
        type=int,
        metavar="PIXELS",
        help="shrink to this longer edge (default: link the files as they are)",
    )
    parser.add_argument("--threads", type=int, default=-1, help="threads to use (default: all cores)")


def run(options: argparse.Namespace) -> int:
    """Reconstruct as the options say and print what came out; returns the exit code."""
    config = PrepareConfig(options.camera_model, options.matcher, options.max_size)
    for number, model in enumerate(prepare(options.photographs, options.out, config, threads=options.threads)):
        print(
            f"model {number}: {len(model.names)} photographs, {model.points} points, mean track length "
            f"{model.track_length:.2f}, mean reprojection error {model.reprojection_error:.2f} px, in {model.folder}"
        )
    return 0


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
        RuntimeError: no two photographs could be related to each other.
    """
    pycolmap = import_pycolmap()
    if threads != -1 and threads < 1:
        raise ValueError(f"threads is {threads}; expected a positive number, or -1 for all cores")
    files = find_images(photographs)
    if out.resolve().is_relative_to(photographs.resolve()):
        raise ValueError(f"{out} lies in {photographs}; expected a folder outside that of the photographs")
    out.mkdir(parents=True, exist_ok=True)
    _pin_settings(out / "prepare.yaml", config)
    names = _gather(photographs, files, out / "images", config.max_size)
    if len(names) < 2:
        raise ValueError(f"{len(names)} photographs in {photographs} can be read; expected at least two")
    models = out / "sparse"
    if models.exists() and not (models / MAPPED).is_file():
        raise FileExistsError(f"{models} holds models that come from elsewhere; choose another folder or move them")
    if not models.exists() or (models / MAPPED).read_text(encoding="utf-8").splitlines() != names:
        # COLMAP tells a line per photograph and pair; errors are still told.
        pycolmap.logging.minloglevel = int(pycolmap.logging.ERROR)
        database = out / "database.db"
        _extract(database, photographs, out / "images", names, config, threads)
        _match(database, config.matcher, threads)
        _map(database, out / "images", models, names, threads)
    summaries = [_summarize(folder) for folder in sorted(models.glob("[0-9]*"), key=lambda folder: int(folder.name))]
    registered = {name for summary in summaries for name in summary.names}
    lost = [name for name in names if name not in registered]
    if lost:
        examples = ", ".join(lost[:10]) + (", ..." if len(lost) > 10 else "")
        logger.warning("%d of %d photographs are in no model: %s", len(lost), len(names), examples)
    return summaries


def _pin_settings(path: Path, config: PrepareConfig) -> None:
    """Refuse to mix settings in one folder."""
    if path.exists():
        earlier = build(PrepareConfig, yaml.safe_load(path.read_text(encoding="utf-8")), str(path))
        if earlier != config:
            raise ValueError(f"{path.parent} was prepared with {earlier}, not {config}; choose another folder")
        return
    with atomic_path(path) as temporary:
        temporary.write_text(yaml.safe_dump(dataclasses.asdict(config), sort_keys=False), encoding="utf-8")


def _gather(photographs: Path, files: Sequence[Path], images: Path, max_size: int | None) -> list[str]:
    """Put the readable photographs into ``images``; returns their names, relative to it."""
    in_place = images.resolve() == photographs.resolve()
    if in_place and max_size is not None:
        raise ValueError(f"max_size is {max_size} but {photographs} is the folder to write to; name another folder")
    names = []
    for file in tqdm(files, desc="photographs", disable=None):
        name = file.relative_to(photographs)
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
        names.append(name.as_posix())
    return names


def _write_shrunken(picture: Any, target: Path, max_size: int) -> None:
    scale = max_size / max(picture.shape[:2])
    height, width = (max(1, round(edge * scale)) for edge in picture.shape[:2])
    small = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
    with atomic_path(target) as temporary:
        cv2.imwrite(str(temporary), small[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])


def _link(file: Path, target: Path) -> None:
    try:
        target.symlink_to(file.resolve())
    except OSError:  # the file system or the user's rights allow no links
        with atomic_path(target) as temporary:
            shutil.copyfile(file, temporary)


def _extract(
    database: Path, photographs: Path, images: Path, names: Sequence[str], config: PrepareConfig, threads: int
) -> None:
    """SIFT features of the photographs that have none yet."""
    pycolmap = import_pycolmap()
    reader = pycolmap.ImageReaderOptions(camera_model=config.camera_model)

    def extract(token: Any) -> None:
        pycolmap.extract_features(
            database,
            images,
            list(names),
            reader_options=reader,
            extraction_options=pycolmap.FeatureExtractionOptions(num_threads=threads),
            device=pycolmap.Device.cpu,
            cancellation_token=token,
        )

    _watch(extract, database, lambda opened: opened.num_images(), "features", len(names))
    if config.max_size is not None:
        _restore_focal_lengths(database, photographs, names, reader)


def _restore_focal_lengths(database: Path, photographs: Path, names: Sequence[str], reader: Any) -> None:
    """Shrunken copies have lost the focal length that the original's EXIF data tell."""
    pycolmap = import_pycolmap()
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


def _match(database: Path, matcher: str, threads: int) -> None:
    """Match the pairs that are not matched yet and verify them geometrically."""
    pycolmap = import_pycolmap()
    matching = pycolmap.FeatureMatchingOptions(num_threads=threads)
    sequential = pycolmap.SequentialPairingOptions(num_threads=threads)

    def match(token: Any) -> None:
        if matcher == "sequential":
            pycolmap.match_sequential(
                database, matching, sequential, device=pycolmap.Device.cpu, cancellation_token=token
            )
        else:
            pycolmap.match_exhaustive(database, matching, device=pycolmap.Device.cpu, cancellation_token=token)

    with pycolmap.Database.open(database) as opened:
        if matcher == "sequential":
            total = len(pycolmap.SequentialPairGenerator(sequential, opened).all_pairs())
        else:
            total = math.comb(opened.num_images(), 2)
    _watch(match, database, lambda opened: opened.num_matched_image_pairs(), "pairs", total)


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
        try:
            while not running.done():
                wait([running], timeout=SECONDS_BETWEEN_LOOKS)
                bar.update(count(opened) - bar.n)
        except BaseException:
            token.cancel()
            raise
        running.result()


def _map(database: Path, images: Path, models: Path, names: Sequence[str], threads: int) -> None:
    """Reconstruct, and write the models that have photographs of their own, largest first."""
    pycolmap = import_pycolmap()
    partial = models.with_name("sparse.partial")
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "all").mkdir(parents=True)
    options = pycolmap.IncrementalPipelineOptions(num_threads=threads, random_seed=0)
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
    if count == 0:
        shutil.rmtree(partial)
        raise RuntimeError(
            f"no two of the {len(names)} photographs could be related to each other: do they overlap, and is there "
            "enough of texture and enough of sideways motion between them?"
        )
    (partial / MAPPED).write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    shutil.rmtree(models, ignore_errors=True)
    os.replace(partial, models)


def _advance(bar: tqdm[NoReturn], count: int) -> None:
    """COLMAP takes no callback that returns anything."""
    bar.update(count)


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
