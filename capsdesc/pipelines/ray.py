"""Work that is shared out among the machines of a Ray cluster.

What workers make they write themselves, to storage that all machines see under the same paths. Through the process that
asked for the work goes only what became of it, so that this process does not bound how many workers are of use.
"""

from __future__ import annotations

import importlib
import pickle
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt
import torch

from capsdesc.pipelines.engine import MAX_THREADS

Engine = Literal["local", "ray"]
# Works on some items with so many threads, and says of each what became of it.
Work: TypeAlias = Callable[[Sequence[Any], int], Iterator[Any]]


class _Worker:
    """What an actor does with a batch of items: results, or the error that ended the work."""

    def __init__(self, work: Work, threads: int, lock: Path) -> None:
        self.work, self.threads, self.lock = work, threads, lock

    def __call__(self, batch: Mapping[str, npt.NDArray[Any]]) -> Iterator[dict[str, npt.NDArray[Any]]]:
        items = [pickle.loads(item) for item in batch["item"].tolist()]
        try:
            # What is written to another disk would be lost with the machine, and never be seen.
            if not self.lock.exists():
                raise FileNotFoundError(
                    f"the worker on {platform.node()} does not see {self.lock}, which the driver wrote: with engine "
                    "'ray' the output must be on storage that all machines see under the same path"
                )
            for result in self.work(items, self.threads):
                yield _row(result)
        # Errors of input and of disks reach the user as without Ray; what else happens Ray reports, with the traceback.
        except (OSError, ValueError) as error:
            yield _row(error)


def _row(result: object) -> dict[str, npt.NDArray[Any]]:
    # As bytes, since names need be no UTF-8.
    return {"result": np.array([pickle.dumps(result)], dtype=object)}


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


def check_engine(engine: str, workers: int | None) -> None:
    """Refuse what names no engine, or a number of workers that it cannot have.

    Raises:
        ImportError: Ray is asked for and not installed.
        ValueError: an argument is out of range.
    """
    if workers is not None and workers < 1:
        raise ValueError(f"workers is {workers}; expected a number, at least 1")
    if engine not in get_args(Engine):
        raise ValueError(f"engine is {engine!r}; expected one of {', '.join(map(repr, get_args(Engine)))}")
    if engine == "local" and workers is not None:
        raise ValueError(f"workers is {workers}, but engine is 'local', which has none; use engine 'ray'")
    if engine == "ray":
        import_ray()


def share_out(
    items: Sequence[Any],
    work: Work,
    *,
    lock: Path,
    device: torch.device,
    per_task: int,
    threads: int | None = None,
    workers: int | None = None,
) -> Iterator[Any]:
    """Have workers of a Ray cluster do some work, and give the results in whatever order they come.

    The cluster is the one that the environment variable ``RAY_ADDRESS`` names, or that runs on this machine, or one
    that is started here for the time.

    Args:
        items: what to work on, sent to the workers; with ``work`` and what comes back it must be fit to be pickled.
        work: likewise. What it writes must be whole or not at all: when a worker dies, another one begins its task
            anew.
        lock: absolute path of a file on the storage that is written to; a worker that does not see it refuses to work.
        device: where the work is done. A worker takes one CPU, and one GPU if this is one.
        per_task: how many items a worker is handed at once.
        threads: of each worker; ``None``: its share of the cluster's CPUs, at most 8.
        workers: how many; ``None``: as many as the cluster has GPUs, or CPUs where ``device`` is the CPU.

    Raises:
        OSError, ValueError: a worker raised it.
        ValueError: the cluster has no such device.
    """
    ray = import_ray()
    if not items:
        return
    started = not ray.is_initialized()
    if started:
        ray.init()
    try:
        resources = ray.cluster_resources()
        on_gpu = device.type != "cpu"
        tasks = -(-len(items) // per_task)
        workers = workers or min(int(resources.get("GPU" if on_gpu else "CPU", 0)), len(items))
        if workers == 0:
            raise ValueError(f"the device is {device}, and the Ray cluster has no such device")
        threads = threads or min(max(1, int(resources.get("CPU", 1)) // workers), MAX_THREADS)
        # Its bars would be drawn over the one of this run.
        ray.data.DataContext.get_current().enable_progress_bars = False
        rows = [{"item": pickle.dumps(item)} for item in items]
        done = ray.data.from_items(rows, override_num_blocks=max(tasks, min(workers, len(items)))).map_batches(
            _Worker,
            fn_constructor_args=(work, threads, lock),
            compute=ray.data.ActorPoolStrategy(size=workers),
            batch_size=None,
            num_cpus=1,
            num_gpus=1 if on_gpu else 0,
        )
        for row in done.iter_rows():
            result = pickle.loads(row["result"])
            if isinstance(result, Exception):
                raise result
            yield result
    finally:
        if started:
            ray.shutdown()
