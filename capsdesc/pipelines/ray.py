"""Features of many images on a Ray cluster."""

from __future__ import annotations

import importlib
import io
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from capsdesc.describe.extractor import CAPSExtractor
from capsdesc.io.npz import load_features, save_features
from capsdesc.pipelines.engine import MAX_THREADS, How, Outcome, describe_images

# How many images a worker of a cluster is handed at once: what is lost with the worker.
_IMAGES_PER_TASK = 16


class _RayWorker:
    """What an actor does: the images of a batch to archives of features, or errors."""

    def __init__(self, extractor: CAPSExtractor, how: How, threads: int) -> None:
        self.arguments = (how, threads)
        self.extractor = extractor

    def __call__(self, batch: Mapping[str, npt.NDArray[Any]]) -> Iterator[dict[str, npt.NDArray[Any]]]:
        names, paths = ([os.fsdecode(value) for value in batch[key].tolist()] for key in ("name", "path"))
        images = {name: Path(path) for name, path in zip(names, paths, strict=True)}
        for name, outcome in describe_images(self.extractor, images, *self.arguments):
            archive = io.BytesIO()
            if not isinstance(outcome, str):
                save_features(archive, outcome, settings="")
            error = outcome if isinstance(outcome, str) else ""
            row = {"name": os.fsencode(name), "error": os.fsencode(error), "features": archive.getvalue()}
            yield {key: np.array([value], dtype=object) for key, value in row.items()}


def import_ray() -> Any:
    """The ray module, with ray.data.

    Raises:
        ImportError: it is not installed; the message says how to install it.
    """
    try:
        importlib.import_module("ray.data")
        return importlib.import_module("ray")
    except ImportError as error:
        raise ImportError("engine is 'ray', which needs Ray: pip install \"capsdesc[ray]\"") from error


def describe_with_ray(
    extractor: CAPSExtractor,
    images: Mapping[str, Path],
    how: How,
    threads: int | None,
    workers: int | None,
) -> Iterator[tuple[str, Outcome]]:
    """As :func:`describe_images`, on a Ray cluster, in whatever order the images are done."""
    ray = import_ray()
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
        threads = threads or min(max(1, int(resources.get("CPU", 1)) // workers), MAX_THREADS)
        tasks = max(-(-len(images) // _IMAGES_PER_TASK), min(workers, len(images)))
        # Its bars would be drawn over the one of this run.
        ray.data.DataContext.get_current().enable_progress_bars = False
        # As bytes, since names need be no UTF-8.
        rows = [{"name": os.fsencode(name), "path": os.fsencode(path.absolute())} for name, path in images.items()]
        described = ray.data.from_items(rows, override_num_blocks=tasks).map_batches(
            _RayWorker,
            fn_constructor_args=(extractor, how, threads),
            compute=ray.data.ActorPoolStrategy(size=workers),
            batch_size=None,
            num_cpus=1,
            num_gpus=1 if on_gpu else 0,
        )
        for row in described.iter_rows():
            yield os.fsdecode(row["name"]), os.fsdecode(row["error"]) or load_features(io.BytesIO(row["features"]))
    finally:
        if started:
            ray.shutdown()
