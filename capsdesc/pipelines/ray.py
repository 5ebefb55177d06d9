"""Work that is shared out among the machines of a Ray cluster.

What workers make they write themselves, to storage that all machines see under the same paths. Through the process that
asked for the work goes only what became of it, so that this process does not bound how many workers are of use.
"""

from __future__ import annotations

import importlib
import pickle
import platform
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import torch

from capsdesc.pipelines.engine import MAX_THREADS

Engine = Literal["local", "ray"]
# Works on some items with so many threads, and says of each what became of it.
Work: TypeAlias = Callable[[Sequence[Any], int], Iterator[Any]]


# How often items are begun anew when their worker dies: they may be what it dies of.
_RETRIES = 3


class _Worker:
    """What an actor does with some items: results, the last of which may be the error that ended the work.

    What is sent is pickled here, since to Ray itself names must be UTF-8.
    """

    def __init__(self, threads: int, lock: Path) -> None:
        self.threads, self.lock = threads, lock
        self.work: Work | None = None

    def run(self, sent: Sequence[Any], items: bytes) -> bytes:
        # Not sent to the constructor, since Ray warns of actors that get large arguments and may be restarted.
        if self.work is None:
            (self.work,) = import_ray().get(sent)
        results: list[Any] = []
        try:
            # What is written to another disk would be lost with the machine, and never be seen.
            if not self.lock.exists():
                raise FileNotFoundError(
                    f"the worker on {platform.node()} does not see {self.lock}, which the driver wrote: with engine "
                    "'ray' the output must be on storage that all machines see under the same path"
                )
            results.extend(self.work(pickle.loads(items), self.threads))
        # Errors of input and of disks reach the user as without Ray; what else happens Ray reports, with the traceback.
        except (OSError, ValueError) as error:
            results.append(error)
        return pickle.dumps(results)


def import_ray() -> Any:
    """The ray module.

    Raises:
        ImportError: it is not installed; the message says how to install it.
    """
    try:
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
        workers: how many at most; ``None``: as many as the cluster has GPUs, or CPUs where ``device`` is the CPU.

    Raises:
        OSError, ValueError: a worker raised it.
        ValueError: the cluster has no such device.
    """
    ray = import_ray()
    batches = [items[start : start + per_task] for start in range(0, len(items), per_task)]
    if not batches:
        return
    started = not ray.is_initialized()
    if started:
        ray.init()
    actors = []
    try:
        resources = ray.cluster_resources()
        on_gpu = device.type != "cpu"
        workers = min(workers or int(resources.get("GPU" if on_gpu else "CPU", 0)), len(batches))
        if workers == 0:
            raise ValueError(f"the device is {device}, and the Ray cluster has no such device")
        threads = threads or min(max(1, int(resources.get("CPU", 1)) // workers), MAX_THREADS)
        options = {"num_cpus": 1, "num_gpus": int(on_gpu), "max_restarts": -1, "max_task_retries": _RETRIES}
        kind, sent = ray.remote(**options)(_Worker), [ray.put(work)]
        actors = [kind.remote(threads, lock) for _ in range(workers)]
        # First nothing: a worker for which there is no room yet, or ever, is to hold nothing back.
        at_work = {actor.run.remote(sent, pickle.dumps([])): (actor, 0) for actor in actors}
        left, waiting = len(batches), iter(batches)
        while left:
            (ready,), _ = ray.wait(list(at_work))
            actor, count = at_work.pop(ready)
            results = pickle.loads(ray.get(ready))
            left -= count
            if (batch := next(waiting, None)) is not None:
                at_work[actor.run.remote(sent, pickle.dumps(batch))] = (actor, 1)
            for result in results:
                if isinstance(result, Exception):
                    raise result
                yield result
    finally:
        if started:
            ray.shutdown()
        else:
            for actor in actors:
                ray.kill(actor)
