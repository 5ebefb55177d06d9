"""Features of many images, computed once and kept in files; and the command ``capsdesc extract``.

Threads decode images, find keypoints and, on the CPU, describe them, several images side by side. A run that was
stopped goes on where it was when it is started again.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import hashlib
import importlib
import io
import itertools
import json
import logging
import os
import re
import shutil
import zipfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple, Protocol, TypeAlias, get_args

import cv2
import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from capsdesc.extractor import CAPSExtractor, Features
from capsdesc.io.files import atomic_path
from capsdesc.io.hloc import DERIVATIVES_DTYPE, import_h5py, read_features, read_names, read_settings, write_features
from capsdesc.io.images import UInt8Array, find_images, read_image
from capsdesc.io.text import below
from capsdesc.keypoints import DETECTORS, Keypoints
from capsdesc.orientation import ORIENTATIONS, Orientation, check_orientation

logger = logging.getLogger(__name__)

Engine = Literal["local", "ray"]

# The features of an image, or what is wrong with it.
_Outcome: TypeAlias = "Features | str"

_HLOC_SUFFIXES = (".h5", ".hdf5")
# What atomic_path leaves where the process was killed.
_TEMPORARY = re.compile(r"\.[0-9a-f]{32}\.npz")
# What one broken image may raise: files that cannot be read, shapes that OpenCV refuses, more memory than a GPU has.
_IMAGE_ERRORS = (OSError, ValueError, RuntimeError, MemoryError, cv2.error)
_MAX_THREADS = 8
# How many images a worker of a cluster is handed at once: what is lost with the worker.
_IMAGES_PER_TASK = 16


class FeatureSink(Protocol):
    """Where features are kept by the names of their images."""

    def stored(self, names: Iterable[str]) -> Mapping[str, str | None]:
        """What is kept already and must agree with features of these images: for each image the settings it was made
        with, ``None`` where they are not known.
        """
        ...

    def write(self, name: str, features: Features, settings: str) -> None:
        """Keep the features of an image, whole or not at all, in the place of earlier ones."""
        ...

    def finish(self) -> None:
        """All images are done."""
        ...


class NpzFolder:
    """A folder with a file ``NAME.npz`` for each image, see :func:`save_features`.

    Args:
        folder: made when the first features are written.

    Raises:
        NotADirectoryError: ``folder`` is a file.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        if self.folder.exists() and not self.folder.is_dir():
            raise NotADirectoryError(f"cannot write features to {folder}: it is a file, and a folder is expected")

    def path(self, name: str) -> Path:
        """The file of an image."""
        return self.folder / f"{name}.npz"

    def stored(self, names: Iterable[str]) -> dict[str, str | None]:
        """The settings of those images that have a file."""
        return {name: _settings_in(self.path(name)) for name in names if self.path(name).exists()}

    def write(self, name: str, features: Features, settings: str) -> None:
        """Write the file of an image, whole or not at all."""
        path = self.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            save_features(file, features, settings=settings)

    def finish(self) -> None:
        """Nothing is left to do: each file was whole when it was written."""


class HlocFile:
    """A features file of hloc, see :mod:`capsdesc.io.hloc`.

    An HDF5 file that is being written when the process is killed is lost. So features are kept in a folder beside it,
    ``NAME.h5.parts``, until all images are done.

    Args:
        path: the file; images it holds already stay in it.

    Raises:
        ImportError: h5py is not installed.
        IsADirectoryError: ``path`` is a folder.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        import_h5py()
        self.path = Path(path)
        if self.path.is_dir():
            raise IsADirectoryError(f"cannot write features to {path}: it is a folder, and a file is expected")
        self._parts = NpzFolder(self.path.with_name(f"{self.path.name}.parts"))
        self._settings: str | None = None

    def stored(self, names: Iterable[str]) -> dict[str, str | None]:
        """The settings of every image in the file or in the folder beside it: they would all be in one file."""
        return {**dict.fromkeys(self._written(), self._written_settings()), **self._parts.stored(self._spooled())}

    def write(self, name: str, features: Features, settings: str) -> None:
        """Keep the features of an image in the folder.

        Raises:
            ValueError: they are described under several views, which hloc's format does not hold.
        """
        if features.descriptors.ndim != 2:
            raise ValueError(
                f"descriptors of {name} have shape {tuple(features.descriptors.shape)}; hloc's files hold (N, D): "
                "use orientation 'upright', or a folder for the output"
            )
        self._settings = settings
        self._parts.write(name, features, settings)

    def finish(self) -> None:
        """Write the file, whole or not at all, and remove the folder."""
        spooled = self._spooled()
        if not spooled:
            return
        settings = self._settings or _settings_in(self._parts.path(spooled[0]))
        kept = sorted(set(self._written()) - set(spooled))
        features = itertools.chain(
            ((name, read_features(self.path, name)) for name in kept),
            ((name, load_features(self._parts.path(name))) for name in spooled),
        )
        write_features(self.path, features, settings=settings)
        shutil.rmtree(self._parts.folder)

    def _spooled(self) -> list[str]:
        folder = self._parts.folder
        return sorted(
            path.relative_to(folder).as_posix().removesuffix(".npz")
            for path in folder.rglob("*.npz")
            if not _TEMPORARY.fullmatch(path.name)
        )

    def _written(self) -> list[str]:
        return read_names(self.path) if self.path.exists() else []

    def _written_settings(self) -> str | None:
        return read_settings(self.path) if self.path.exists() else None


@dataclasses.dataclass(frozen=True)
class Extraction:
    """What became of the images, by name.

    Attributes:
        described: images whose features were written.
        kept: images whose features were there already.
        broken: images that were left out, with what is wrong with them.
    """

    described: tuple[str, ...]
    kept: tuple[str, ...]
    broken: Mapping[str, str]


def extract_images(
    extractor: CAPSExtractor,
    images: Mapping[str, str | os.PathLike[str]],
    sink: FeatureSink,
    *,
    max_keypoints: int = 2048,
    orientation: Orientation = "upright",
    derivatives: bool = False,
    overwrite: bool = False,
    threads: int | None = None,
    engine: Engine = "local",
    workers: int | None = None,
    progress: bool = False,
) -> Extraction:
    """Detect and describe keypoints of many images, as :meth:`CAPSExtractor.extract` does for one.

    Images whose features are in the sink are passed over. An image that cannot be read is logged as a warning and left
    out; there is no end to the work before all images are through, but for errors in writing.

    With ``engine="ray"`` the images are described by actors on a Ray cluster: the one that the environment variable
    ``RAY_ADDRESS`` names, or that runs on this machine, or one that is started here for the time. Its machines need
    capsdesc and see the images under the same paths; the extractor, weights included, is sent to them, and the features
    are sent back and written here. An actor takes one CPU, and one GPU if the extractor's device is one.

    Args:
        extractor: what describes them. Its detector is called from ``threads`` threads at a time.
        images: the file of each image by its name, a relative path with slashes; :func:`name_images` makes them.
        sink: where features are kept, :class:`NpzFolder` or :class:`HlocFile`.
        max_keypoints: at most so many an image.
        orientation: as for :meth:`CAPSExtractor.describe`.
        derivatives: as for :meth:`CAPSExtractor.extract`.
        overwrite: whether to describe images that are in the sink again.
        threads: that decode, detect and, on the CPU, describe, each with up to two images in memory and its share of
            torch's threads; for Ray, so many in each actor. ``None``: as many as there are CPUs for them, at most 8.
        engine: ``"local"``, in this process, or ``"ray"``.
        workers: how many actors. ``None``: as many as the cluster has GPUs, or CPUs for an extractor on the CPU.
        progress: whether to show progress on standard error, where that is a terminal.

    Returns:
        What became of the images.

    Raises:
        ImportError: Ray is asked for and not installed.
        ValueError: an argument is out of range, or the sink holds features that were made with other settings or
            weights, and ``overwrite`` is not set or would leave some of them beside the new ones.
        OSError: features cannot be written.
    """
    _check(images, max_keypoints, orientation, threads, engine, workers)
    how = _How(max_keypoints, orientation, derivatives)
    settings = json.dumps(feature_settings(extractor, max_keypoints, orientation, derivatives), sort_keys=True)
    stored = sink.stored(images)
    _refuse_other_settings(stored, settings, set(images) if overwrite else set())
    kept = () if overwrite else tuple(name for name in images if name in stored)
    left = {name: Path(path) for name, path in images.items() if overwrite or name not in stored}

    outcomes = (
        _describe_images(extractor, left, how, threads or min(os.cpu_count() or 1, _MAX_THREADS))
        if engine == "local"
        else _describe_with_ray(extractor, left, how, threads, workers)
    )
    described, broken = [], {}
    with tqdm(
        total=len(images), initial=len(kept), desc="extract", unit="image", disable=None if progress else True
    ) as bar:
        for name, outcome in outcomes:
            if isinstance(outcome, str):
                broken[name] = outcome
                logger.warning("left out %s: %s", name, outcome)
            else:
                sink.write(name, outcome, settings)
                described.append(name)
            bar.update()
    sink.finish()
    return Extraction(tuple(described), kept, broken)


def name_images(paths: Iterable[str | os.PathLike[str]]) -> dict[str, Path]:
    """Images by name: those in a folder by their path below it, with slashes, others by the name of the file.

    Args:
        paths: image files, which need not exist, and folders that are searched for images.

    Raises:
        ValueError: two images have the same name, or there is no image in a folder.
    """
    images: dict[str, Path] = {}
    for given in map(Path, paths):
        for path in find_images(given) if given.is_dir() else [given]:
            name = path.relative_to(given).as_posix() if given.is_dir() else path.name
            if name in images:
                raise ValueError(f"{images[name]} and {path} would both be written as {name}; extract them apart")
            images[name] = path
    return images


def save_features(file: str | os.PathLike[str] | IO[bytes], features: Features, *, settings: str) -> None:
    """Write features as an ``.npz`` archive with an array for each field of :class:`Features` that is not ``None``.

    Derivatives are kept in half precision.

    Args:
        file: path that ends in ``.npz``, or a file open for writing.
        features: in numpy.
        settings: text that is kept beside them as ``settings``: what they were made with.
    """
    fields = {name: np.asarray(value) for name, value in vars(features).items() if value is not None}
    if features.derivatives is not None:
        fields["derivatives"] = fields["derivatives"].astype(DERIVATIVES_DTYPE)
    np.savez(file, settings=np.asarray(settings), **fields)  # type: ignore[arg-type]


def load_features(file: str | os.PathLike[str] | IO[bytes]) -> Features:
    """Read features that :func:`save_features` wrote.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no such archive.
    """
    try:
        with np.load(file) as stored:
            fields = {field.name: stored.get(field.name) for field in dataclasses.fields(Features)}
    # Not an archive of arrays but one array has no context.
    except (zipfile.BadZipFile, EOFError, AttributeError, TypeError) as error:
        raise ValueError(f"{file} holds no features: {error}") from error
    missing = [name for name in ("keypoints", "descriptors", "image_size") if fields[name] is None]
    if missing:
        raise ValueError(f"{file} holds no features: it has no {' and no '.join(missing)}")
    width, height = fields["image_size"].tolist()
    if fields["derivatives"] is not None:
        fields["derivatives"] = fields["derivatives"].astype(np.float32)
    return Features(**{**fields, "image_size": (width, height)})


# ---- What the features depend on


def feature_settings(
    extractor: CAPSExtractor, max_keypoints: int, orientation: Orientation, derivatives: bool = False
) -> dict[str, Any]:
    """All that features depend on beside their image, for JSON."""
    detector = type(extractor.detector)
    return {
        "weights": _fingerprint(extractor),
        # The text of an object that does not make its own holds its address, which no other run has.
        "detector": detector.__qualname__ if detector.__repr__ is object.__repr__ else repr(extractor.detector),
        "max_keypoints": int(max_keypoints),
        "orientation": orientation,
        "derivatives": derivatives,
        "max_size": extractor.max_size,
        "dtype": str(extractor.dtype),
        "reliability": extractor.reliability,
    }


def _fingerprint(extractor: CAPSExtractor) -> str:
    """A hash of the network that is loaded, not of the file it came from, which training may have replaced since."""
    digest = hashlib.sha256(extractor.config.to_json().encode())
    for name, tensor in extractor._network.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _refuse_other_settings(stored: Mapping[str, str | None], settings: str, replaced: set[str]) -> None:
    for name, made_with in stored.items():
        if made_with == settings or name in replaced:
            continue
        what = (
            f"settings that differ in {_difference(made_with, settings)}"
            if made_with is not None
            else "settings that are not known"
        )
        hint = "" if replaced else ", or replace them with --overwrite (overwrite=True)"
        raise ValueError(f"the output holds features of {name} made with {what}; choose another output{hint}")


def _difference(before: str, now: str) -> str:
    try:
        old, new = json.loads(before), json.loads(now)
        return ", ".join(f"{key} ({old.get(key)}, now {value})" for key, value in new.items() if old.get(key) != value)
    except (ValueError, AttributeError):
        return "form"


def _settings_in(path: Path) -> str | None:
    try:
        with np.load(path) as stored:
            return str(stored["settings"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _check(
    images: Mapping[str, object],
    max_keypoints: int,
    orientation: str,
    threads: int | None,
    engine: str,
    workers: int | None,
) -> None:
    if max_keypoints < 0:
        raise ValueError(f"max_keypoints is {max_keypoints}; expected a number, at least 0")
    for name, value in (("threads", threads), ("workers", workers)):
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value}; expected a number, at least 1")
    check_orientation(orientation)
    if engine not in get_args(Engine):
        raise ValueError(f"engine is {engine!r}; expected one of {', '.join(map(repr, get_args(Engine)))}")
    if engine == "local" and workers is not None:
        raise ValueError(f"workers is {workers}, but engine is 'local', which has none; use engine 'ray', or threads")
    for name in images:
        below(Path("the output"), name, "images")


# ---- Engines


class _How(NamedTuple):
    """How each image is described, as for :meth:`CAPSExtractor.extract`."""

    max_keypoints: int
    orientation: Orientation
    derivatives: bool


def _describe_images(
    extractor: CAPSExtractor, images: Mapping[str, Path], how: _How, threads: int
) -> Iterator[tuple[str, _Outcome]]:
    """The features of each image in turn, or what is wrong with it.

    On the CPU each thread describes images of its own, with its share of torch's threads: several images side by side
    keep the cores busier than one image on all of them. A GPU is left to this thread, and the others decode and detect.
    """
    on_cpu = extractor.device.type == "cpu"

    def describe(image: UInt8Array, keypoints: Keypoints) -> Features:
        return extractor.extract(image, orientation=how.orientation, derivatives=how.derivatives, keypoints=keypoints)

    def prepare(path: Path) -> Callable[[], Features]:
        image = read_image(path)
        keypoints = extractor.detect(image, how.max_keypoints)
        if on_cpu:
            features = describe(image, keypoints)
            return lambda: features
        return lambda: describe(image, keypoints)

    ahead: deque[tuple[str, Future[Callable[[], Features]]]] = deque()
    left = iter(images.items())
    with _share_torch_threads(threads) if on_cpu else ThreadPoolExecutor(threads) as pool:
        while True:
            for name, path in itertools.islice(left, 2 * threads - len(ahead)):
                ahead.append((name, pool.submit(prepare, path)))
            if not ahead:
                return
            name, prepared = ahead.popleft()
            outcome: _Outcome
            try:
                outcome = prepared.result()()
            except _IMAGE_ERRORS as error:
                # Messages that OpenCV or torch had a part in have several lines.
                outcome = " ".join(str(error).split()) or type(error).__name__
            yield name, outcome


@contextlib.contextmanager
def _share_torch_threads(threads: int) -> Iterator[ThreadPoolExecutor]:
    """A pool of so many threads, among which those that torch may use are shared out."""
    number = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(
            threads, initializer=torch.set_num_threads, initargs=(max(1, number // threads),)
        ) as pool:
            yield pool
    finally:
        # Each thread has a number of its own, but threads to come begin with what was set last.
        torch.set_num_threads(number)


class _RayWorker:
    """What an actor does: the images of a batch to archives of features, or errors."""

    def __init__(self, extractor: CAPSExtractor, how: _How, threads: int) -> None:
        self.arguments = (how, threads)
        self.extractor = extractor

    def __call__(self, batch: Mapping[str, npt.NDArray[Any]]) -> Iterator[dict[str, npt.NDArray[Any]]]:
        images = {name: Path(path) for name, path in zip(batch["name"].tolist(), batch["path"].tolist(), strict=True)}
        for name, outcome in _describe_images(self.extractor, images, *self.arguments):
            archive = io.BytesIO()
            if not isinstance(outcome, str):
                save_features(archive, outcome, settings="")
            row = {"name": name, "error": outcome if isinstance(outcome, str) else "", "features": archive.getvalue()}
            yield {key: np.array([value], dtype=object) for key, value in row.items()}


def _describe_with_ray(
    extractor: CAPSExtractor,
    images: Mapping[str, Path],
    how: _How,
    threads: int | None,
    workers: int | None,
) -> Iterator[tuple[str, _Outcome]]:
    """As :func:`_describe_images`, on a Ray cluster, in whatever order the images are done."""
    try:
        ray = importlib.import_module("ray")
        importlib.import_module("ray.data")
    except ImportError as error:
        raise ImportError("engine is 'ray', which needs Ray: pip install \"capsdesc[ray]\"") from error
    if not images:
        return
    started = not ray.is_initialized()
    if started:
        ray.init()
    try:
        resources = ray.cluster_resources()
        on_gpu = extractor.device.type != "cpu"
        workers = workers or min(int(resources.get("GPU" if on_gpu else "CPU", 0)), len(images))
        if workers == 0:
            raise ValueError(f"the extractor is on {extractor.device}, and the Ray cluster has no such device")
        threads = threads or min(max(1, int(resources.get("CPU", 1)) // workers), _MAX_THREADS)
        tasks = max(-(-len(images) // _IMAGES_PER_TASK), min(workers, len(images)))
        # Its bars would be drawn over the one of this run.
        ray.data.DataContext.get_current().enable_progress_bars = False
        rows = [{"name": name, "path": str(path.absolute())} for name, path in images.items()]
        described = ray.data.from_items(rows, override_num_blocks=tasks).map_batches(
            _RayWorker,
            fn_constructor_args=(extractor, how, threads),
            compute=ray.data.ActorPoolStrategy(size=workers),
            batch_size=None,
            num_cpus=1,
            num_gpus=1 if on_gpu else 0,
        )
        for row in described.iter_rows():
            yield row["name"], row["error"] or load_features(io.BytesIO(row["features"]))
    finally:
        if started:
            ray.shutdown()


# ---- The command


def add_network_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose the network; :func:`extractor_of` reads them."""
    parser.add_argument("--weights", help="bundled name, file, folder or hub name (default: the bundled weights)")
    parser.add_argument("--device", help="cpu, cuda, ... (default: cuda if there is one)")
    parser.add_argument("--max-size", type=int, metavar="PX", help="shrink images whose longer edge is longer")


def add_detector_option(parser: argparse.ArgumentParser) -> None:
    """Add the option that chooses the detector, for :func:`extractor_of`."""
    parser.add_argument(
        "--detector",
        choices=DETECTORS,
        default="sift",
        help="of keypoints (%(default)s); superpoint gets Magic Leap's weights, for non-commercial research only",
    )


def add_orientation_option(parser: argparse.ArgumentParser) -> None:
    """Add the option that chooses between upright descriptors and those of any orientation."""
    parser.add_argument(
        "--orientation",
        choices=ORIENTATIONS,
        default="upright",
        help="any: the images may be turned or zoomed at will; takes some 15 times as long (%(default)s)",
    )


def extractor_of(options: argparse.Namespace, detector: str = "sift") -> CAPSExtractor:
    """The extractor that the options of :func:`add_network_options` choose, with this detector."""
    return CAPSExtractor(options.weights, detector=detector, device=options.device, max_size=options.max_size)


def add_parser(commands: argparse._SubParsersAction[Any]) -> None:
    """Register ``extract`` among the subcommands of ``capsdesc``; its ``run`` takes the parsed arguments."""
    parser = commands.add_parser(
        "extract",
        help="keypoints and descriptors of images, for numpy or for hloc",
        description="Detect and describe keypoints. Images whose features are in the output are passed over, so a run "
        "that was stopped is continued by the same command. An image that cannot be read is reported and left out; "
        "the others are described, and the exit code is 1.",
    )
    parser.add_argument("images", nargs="+", type=Path, help="image files, or folders that are searched for them")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        help="folder for a .npz file an image; or, if it ends in .h5, a features file of hloc",
    )
    parser.add_argument("--max-keypoints", type=int, default=2048, metavar="N", help="per image (%(default)s)")
    add_detector_option(parser)
    add_orientation_option(parser)
    parser.add_argument(
        "--derivatives", action="store_true", help="keep the descriptors' derivatives, for max_shift in matching"
    )
    parser.add_argument("--overwrite", action="store_true", help="describe images again that are in the output")
    parser.add_argument(
        "--threads", type=int, metavar="N", help="images at work at a time (default: one a CPU, up to 8)"
    )
    parser.add_argument(
        "--engine",
        choices=get_args(Engine),
        default="local",
        help="ray: on the Ray cluster of RAY_ADDRESS, or one started here (%(default)s)",
    )
    parser.add_argument("--workers", type=int, metavar="N", help="of Ray (default: one a GPU or, without, a CPU)")
    add_network_options(parser)
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    images = name_images(options.images)
    sink: FeatureSink
    sink = HlocFile(options.output) if options.output.suffix in _HLOC_SUFFIXES else NpzFolder(options.output)
    with logging_redirect_tqdm():
        done = extract_images(
            extractor_of(options, options.detector),
            images,
            sink,
            max_keypoints=options.max_keypoints,
            orientation=options.orientation,
            derivatives=options.derivatives,
            overwrite=options.overwrite,
            threads=options.threads,
            engine=options.engine,
            workers=options.workers,
            progress=True,
        )
    there = f", {len(done.kept)} were there already" if done.kept else ""
    broken = f", {len(done.broken)} left out" if done.broken else ""
    print(f"described {len(done.described)} of {len(images)} images in {options.output}{there}{broken}")
    return 1 if done.broken else 0
