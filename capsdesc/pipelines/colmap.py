"""The way from photographs to models by COLMAP, whoever finds the features, each step beside a progress bar."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from tqdm import tqdm

from capsdesc.images import find_images
from capsdesc.io.colmap import check_model, import_pycolmap
from capsdesc.io.database import ColmapDatabase, remove_unused_cameras
from capsdesc.io.files import recover_folder, replace_folder
from capsdesc.io.locks import sole_use
from capsdesc.io.text import not_utf8, read_text

if TYPE_CHECKING:
    import pycolmap

logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_LOOKS = 0.5
# Bytes that COLMAP may write between two looks.
_LEAST_FREE = 64 * 2**20
# Lists the photographs the models were made from, beside them.
_MAPPED = "photographs.txt"


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
class Workspace:
    """A folder in which photographs are reconstructed.

    Attributes:
        folder: with ``database.db``, and the models in ``sparse/0``, ``1``, ...
        images: folder of the photographs.
        threads: number of threads, -1 for all cores.
    """

    folder: Path
    images: Path
    threads: int = -1

    @property
    def database(self) -> Path:
        """COLMAP's database."""
        return self.folder / "database.db"

    @property
    def models(self) -> Path:
        """Folder of the models."""
        return self.folder / "sparse"


@contextlib.contextmanager
def open_workspace(photographs: Path, out: Path, threads: int) -> Iterator[Workspace]:
    """A workspace for the photographs, once it is known that all can be written there, which no other run touches.

    COLMAP is told to say nothing but errors.

    Raises:
        ValueError: ``out`` is a part of the photographs, or ``threads`` is neither positive nor -1.
        FileExistsError: ``out/sparse`` holds models that come from elsewhere.
        BlockingIOError: another run is at work there.
    """
    if threads != -1 and threads < 1:
        raise ValueError(f"threads is {threads}; expected a positive number, or -1 for all cores")
    if out.resolve().is_relative_to(photographs.resolve()):
        raise ValueError(f"{out} lies in {photographs}; expected a folder outside that of the photographs")
    pycolmap = import_pycolmap()
    workspace = Workspace(out, photographs, threads)
    with sole_use(out, is_folder=True):
        recover_folder(workspace.models)
        if workspace.models.exists() and not (workspace.models / _MAPPED).is_file():
            raise FileExistsError(
                f"{workspace.models} holds models that come from elsewhere; choose another folder or move them"
            )
        pycolmap.logging.minloglevel = int(pycolmap.logging.ERROR)  # else it tells a line per photograph and pair
        yield workspace


def find_photographs(folder: Path) -> dict[str, Path]:
    """Photographs by their names below a folder; those that COLMAP cannot name are left out with a warning.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: there is no photograph in it.
    """
    photographs = {path.relative_to(folder).as_posix(): path for path in find_images(folder)}
    for name, what in not_utf8(photographs).items():
        logger.warning("left out %s: %s", name, what)
        del photographs[name]
    return photographs


def check_enough(names: Sequence[str], folder: Path) -> None:
    """Refuse to reconstruct fewer than two photographs."""
    if len(names) < 2:
        raise ValueError(f"{len(names)} photographs in {folder} can be read; expected at least two")


def reconstruct_models(
    workspace: Workspace,
    names: Sequence[str],
    *,
    find_features: Callable[[], None],
    match_features: Callable[[], None],
    stage: Callable[[str], AbstractContextManager[object]] = lambda _: contextlib.nullcontext(),
) -> list[ModelSummary]:
    """Photographs to models: features, matches, their verification, and the mapping.

    What an earlier run finished is not done again.

    Args:
        workspace: where.
        names: of the photographs, relative to their folder.
        find_features: puts the photographs and their features into the workspace's database, those that are missing.
        match_features: puts the matches into it, likewise.
        stage: entered with the name of each step for the time that it takes.

    Returns:
        The models, the one with most photographs first.
    """
    if not is_mapped(workspace.models, names):
        # A run that was killed between a camera and its image left the one without the other.
        if workspace.database.exists():
            remove_unused_cameras(workspace.database)
        with stage("features"):
            find_features()
        with stage("matches"):
            match_features()
        with stage("verification"):
            verify(workspace.database, workspace.threads)
        with stage("mapping"):
            map_photographs(workspace.database, workspace.images, workspace.models, names, workspace.threads)
    return read_models(workspace.models, names)


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


def generated_pairs(database: Path, names: Sequence[str], pairing: Any) -> list[tuple[str, str]]:
    """The pairs that COLMAP makes of the photographs."""
    pycolmap = import_pycolmap()
    with pycolmap.Database.open(database) as opened:
        by_id = {image.image_id: image.name for image in opened.read_all_images()}
        pairs = _pair_generator(pairing, opened).all_pairs()
    wanted = set(names)
    listed = ((by_id[first], by_id[second]) for first, second in pairs)
    return [pair for pair in listed if wanted.issuperset(pair)]


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
    _require_room(database.parent)
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
                _require_room(database.parent)
                is_done = bool(wait([running], timeout=_SECONDS_BETWEEN_LOOKS).done)
                bar.update(count(opened) - bar.n)
        except BaseException:
            token.cancel()
            raise
        running.result()


def _require_room(folder: Path) -> None:
    """Refuse to go on where COLMAP will soon find the disk full: its threads then end the process."""
    free = shutil.disk_usage(folder).free
    if free < _LEAST_FREE:
        raise OSError(
            errno.ENOSPC,
            f"{free / 2**20:.1f} MiB are free, and COLMAP needs {_LEAST_FREE / 2**20:.0f}: make room and run it again",
            str(folder),
        )


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
    if partial.exists():
        shutil.rmtree(partial)
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
        _refuse_half_written(folder)
        count += 1
    if count == 0:
        # Models of fewer photographs go as a whole: a part of them would not be known for ours.
        if models.exists():
            os.replace(models, partial / "old")
        shutil.rmtree(partial)
        return
    (partial / _MAPPED).write_text(_listed(names), encoding="utf-8")
    replace_folder(partial, models)


def _refuse_half_written(model: Path) -> None:
    """COLMAP does not tell when a disk is full."""
    try:
        check_model(model)
    except ValueError as error:
        raise OSError(f"cannot write {model}: {error}; is the disk full?") from error


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
