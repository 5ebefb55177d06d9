"""Features of many images, computed once and kept in files.

Threads decode images, find keypoints and, on the CPU, describe them, several images side by side. A run that was
stopped goes on where it was when it is started again.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from capsdesc.describe.extractor import CAPSExtractor
from capsdesc.describe.orientation import Orientation, check_orientation
from capsdesc.images import find_images
from capsdesc.images.video import Frame, Sampling, find_frames, is_video
from capsdesc.io.settings import refuse_other_settings
from capsdesc.io.storage import STORES
from capsdesc.io.text import below, parse_json
from capsdesc.pipelines.engine import MAX_THREADS, How, describe_images
from capsdesc.pipelines.ray import Engine, check_engine, share_out
from capsdesc.pipelines.stores import FeatureSink, HlocFile, NpzFolder

logger = logging.getLogger(__name__)

# How many images a worker of a cluster is handed at once: what is begun anew when it dies.
_IMAGES_PER_TASK = 16
_Image = TypeVar("_Image", bound="Path | Frame")


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
    images: Mapping[str, str | os.PathLike[str] | Frame],
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

    Images whose features are in the sink are passed over. An image that cannot be read, or whose name the sink cannot
    keep, is logged as a warning and left out; there is no end to the work before all images are through, but for errors
    in writing.

    With ``engine="ray"`` the images are described by workers on a Ray cluster: the one that the environment variable
    ``RAY_ADDRESS`` names, or that runs on this machine, or one that is started here for the time. Its machines need
    capsdesc, and see the images and the sink's folder under the same paths; the extractor, weights included, is sent to
    them, and they write the features themselves. A worker takes one CPU, and one GPU if the extractor's device is one.

    Args:
        extractor: what describes them. Its detector is called from ``threads`` threads at a time.
        images: the file of each image, or the frame of a video, by its name, a relative path with slashes;
            :func:`name_images` and :func:`name_sources` make them.
        sink: where features are kept, :class:`NpzFolder` or :class:`HlocFile`; for Ray, one of these two.
        max_keypoints: at most so many an image.
        orientation: as for :meth:`CAPSExtractor.describe`.
        derivatives: as for :meth:`CAPSExtractor.extract`.
        overwrite: whether to describe images that are in the sink again.
        threads: that decode, detect and, on the CPU, describe, each with up to two images in memory and its share of
            torch's threads; for Ray, so many in each worker. ``None``: as many as there are CPUs for them, at most 8.
        engine: ``"local"``, in this process, or ``"ray"``.
        workers: of Ray. ``None``: as many as the cluster has GPUs, or CPUs for an extractor on the CPU.
        progress: whether to show progress on standard error, where that is a terminal.

    Returns:
        What became of the images.

    Raises:
        ImportError: Ray is asked for and not installed.
        ValueError: an argument is out of range, or the sink holds features that were made with other settings or
            weights, and ``overwrite`` is not set or would leave some of them beside the new ones.
        OSError: features cannot be written, or another run is at work on the sink.
    """
    _check(images, sink, max_keypoints, orientation, threads, engine, workers)
    how = How(max_keypoints, orientation, derivatives)
    settings = feature_settings(extractor, max_keypoints, orientation, derivatives)
    if (store := getattr(sink, "store", STORES[0])) != STORES[0]:
        settings["store"] = store
    with sink.sole_use():
        # Whatever cannot be kept is known before any work.
        broken = dict(sink.unfit(images))
        for name, what in broken.items():
            logger.warning("left out %s: %s", name, what)
        fit = [name for name in images if name not in broken]
        stored = sink.stored(fit)
        _refuse_other_settings(stored, settings, set(fit) if overwrite else set())
        kept = () if overwrite else tuple(name for name in fit if name in stored)
        left = {name: images[name] for name in fit if overwrite or name not in stored}
        files = {name: Path(image) for name, image in left.items() if not isinstance(image, Frame)}
        frames = {name: image for name, image in left.items() if isinstance(image, Frame)}

        keep = functools.partial(
            _describe_and_keep, extractor=extractor, how=how, settings=json.dumps(settings, sort_keys=True)
        )
        if engine == "ray" and isinstance(sink, NpzFolder | HlocFile):
            shared = sink.absolute()
            outcomes = share_out(
                [(name, path.absolute()) for name, path in files.items()],
                functools.partial(keep, sink=shared),
                lock=shared.lock,
                device=extractor.device,
                per_task=_IMAGES_PER_TASK,
                threads=threads,
                workers=workers,
            )
        else:
            local_threads = threads or min(os.cpu_count() or 1, MAX_THREADS)
            outcomes = keep([*files.items(), *frames.items()], local_threads, sink=sink)
        described = []
        with tqdm(
            total=len(images),
            initial=len(images) - len(left),
            desc="extract",
            unit="image",
            disable=None if progress else True,
        ) as bar:
            for name, wrong in outcomes:
                if wrong is None:
                    described.append(name)
                else:
                    broken[name] = wrong
                    logger.warning("left out %s: %s", name, wrong)
                bar.update()
        if isinstance(sink, HlocFile):
            sink.require(described)
        sink.finish()
    return Extraction(tuple(described), kept, broken)


def _describe_and_keep(
    images: Sequence[tuple[str, Path | Frame]],
    threads: int,
    *,
    extractor: CAPSExtractor,
    how: How,
    sink: FeatureSink,
    settings: str,
) -> Iterator[tuple[str, str | None]]:
    """What is wrong with each image, or None where its features are in the sink."""
    for name, outcome in describe_images(extractor, dict(images), how, threads):
        if isinstance(outcome, str):
            yield name, outcome
        else:
            sink.write(name, outcome, settings)
            yield name, None


def _refuse_other_settings(stored: Mapping[str, str | None], settings: Mapping[str, Any], replaced: set[str]) -> None:
    """Refuse to keep features beside such as were made with other settings, but for those that are replaced."""
    hint = "" if replaced else ", or replace them with --overwrite (overwrite=True)"
    for name, text in stored.items():
        if name not in replaced:
            what = f"the output holds features of {name}"
            refuse_other_settings(what, _parsed(text), settings, f"choose another output{hint}")


def _parsed(text: str | None) -> dict[str, Any] | None:
    """Settings as they are kept; None where they are not known."""
    try:
        settings = parse_json(text or "", "settings")
    except ValueError:
        return None
    return settings if isinstance(settings, dict) else None


def name_images(paths: Iterable[str | os.PathLike[str]]) -> dict[str, Path]:
    """Images by name: those in a folder by their path below it, with slashes, others by the name of the file.

    Args:
        paths: image files, which need not exist, and folders that are searched for images.

    Raises:
        ValueError: two images have the same name, or there is no image in a folder.
    """
    return _joined(_in_folder(path) if path.is_dir() else {path.name: path} for path in map(Path, paths))


def name_sources(
    paths: Iterable[str | os.PathLike[str]], sampling: Sampling | None = None, *, progress: bool = False
) -> dict[str, Path | Frame]:
    """As :func:`name_images`, and frames of videos as ``frame_000123``, by their number in the video.

    Args:
        paths: image files, folders and videos.
        sampling: which frames of each video, and which images of each folder, by name; None: all.
        progress: whether to show progress on standard error, where that is a terminal, while videos are looked through.

    Raises:
        FileNotFoundError: a video is not there.
        ValueError: two images have the same name, there is no image in a folder, or a video cannot be read.
    """
    chosen = sampling or Sampling()

    def named(path: Path) -> Mapping[str, Path | Frame]:
        if path.is_dir():
            return dict(chosen.of(list(_in_folder(path).items()), path))
        if is_video(path):
            return {frame.name: frame for frame in find_frames(path, chosen, progress=progress)}
        return {path.name: path}

    return _joined(map(named, map(Path, paths)))


def _in_folder(folder: Path) -> dict[str, Path]:
    return {path.relative_to(folder).as_posix(): path for path in find_images(folder)}


def _joined(parts: Iterable[Mapping[str, _Image]]) -> dict[str, _Image]:
    """All of them, whose names must differ."""
    images: dict[str, _Image] = {}
    for part in parts:
        for name in sorted(images.keys() & part.keys()):
            first, second = (image.video if isinstance(image, Frame) else image for image in (images[name], part[name]))
            raise ValueError(f"{first} and {second} would both be called {name}; give them apart")
        images.update(part)
    return images


def feature_settings(
    extractor: CAPSExtractor, max_keypoints: int, orientation: Orientation, derivatives: bool = False
) -> dict[str, Any]:
    """All that features depend on beside their image, for JSON."""
    detector = type(extractor.detector)
    return {
        "weights": extractor.weights.fingerprint,
        # The text of an object that does not make its own holds its address, which no other run has.
        "detector": detector.__qualname__ if detector.__repr__ is object.__repr__ else repr(extractor.detector),
        "max_keypoints": int(max_keypoints),
        "orientation": orientation,
        "derivatives": derivatives,
        "max_size": extractor.max_size,
        "dtype": str(extractor.dtype),
        "reliability": extractor.reliability,
    }


def _check(
    images: Mapping[str, object],
    sink: FeatureSink,
    max_keypoints: int,
    orientation: str,
    threads: int | None,
    engine: str,
    workers: int | None,
) -> None:
    if max_keypoints < 0:
        raise ValueError(f"max_keypoints is {max_keypoints}; expected a number, at least 0")
    if threads is not None and threads < 1:
        raise ValueError(f"threads is {threads}; expected a number, at least 1")
    check_orientation(orientation)
    check_engine(engine, workers)
    if engine == "ray":
        if any(isinstance(image, Frame) for image in images.values()):
            raise ValueError("engine is 'ray', which reads image files alone; videos need engine 'local'")
        if not isinstance(sink, NpzFolder | HlocFile):
            raise ValueError(
                f"engine is 'ray', whose workers write to a folder that they share, and the sink is a "
                f"{type(sink).__name__}; expected an NpzFolder or HlocFile"
            )
    for name in images:
        below(Path("the output"), name, "images")
