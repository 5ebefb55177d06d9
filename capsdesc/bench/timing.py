"""Contestants timed side by side, the memory each needs, and tables of both."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import multiprocessing
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from capsdesc.evaluation.peers import import_peer

logger = logging.getLogger(__name__)

Call = Callable[[], object]


@dataclasses.dataclass(frozen=True)
class Contestant:
    """One way of doing what a contest is about.

    Attributes:
        name: how tables call it.
        prepare: loads what is needed and returns the call to be timed. It is sent to another process, so it is a
            function of a module or a ``functools.partial`` of one. Raises ImportError where a package is missing.
    """

    name: str
    prepare: Callable[[], Call]


@dataclasses.dataclass(frozen=True)
class Contest:
    """Contestants that do the same thing.

    Attributes:
        section: which part of the benchmark it belongs to.
        title: what all of them do.
        contestants: the others are compared with the first.
        notes: what a reader of the figures must know, such as who was left out and why.
        count: how many of its unit a call handles, or None where only times are told.
        unit: what a call handles.
    """

    section: str
    title: str
    contestants: tuple[Contestant, ...]
    notes: tuple[str, ...] = ()
    count: int | None = None
    unit: str = "pairs"


@dataclasses.dataclass(frozen=True)
class Settings:
    """How contests are held.

    Attributes:
        device: of the contestants' networks; it is waited for.
        threads: of torch and OpenCV.
        repeats: timed calls of each contestant.
        warmup: calls before that, which are not counted.
        max_seconds: a contestant that has taken this long in a contest is called no more, once it has been timed.
        memory: whether peak memory is measured, by one more call in a process of its own.
        preload: optional modules that are imported before memory is counted.
    """

    device: str
    threads: int
    repeats: int = 10
    warmup: int = 2
    max_seconds: float = 60.0
    memory: bool = True
    preload: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Memory:
    """Peak memory in bytes of one call and of what it loads, None where it cannot be known.

    Attributes:
        host: growth of the process's resident set.
        gpu: allocated by torch on the GPU.
    """

    host: int | None = None
    gpu: int | None = None


@dataclasses.dataclass(frozen=True)
class Row:
    """A contestant's result.

    Attributes:
        name: the contestant's.
        seconds: of each timed call, in order.
        memory: peak memory.
    """

    name: str
    seconds: tuple[float, ...]
    memory: Memory = Memory()

    @property
    def median(self) -> float:
        """Seconds."""
        return float(np.median(self.seconds))

    @property
    def quartiles(self) -> tuple[float, float]:
        """The first and the third, in seconds."""
        first, third = np.quantile(self.seconds, (0.25, 0.75))
        return float(first), float(third)


@dataclasses.dataclass(frozen=True)
class Table:
    """A contest's results.

    Attributes:
        section: as of the contest, likewise the title, the count and its unit.
        title: what was done.
        rows: one for each contestant that could take part.
        notes: those of the contest, and who could not take part and why.
        count: how many of its unit a call handles, or None.
        unit: what a call handles.
    """

    section: str
    title: str
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    count: int | None = None
    unit: str = "pairs"

    def ratio(self, row: Row) -> float:
        """How many times as long a row takes as the first row: above 1 it is slower."""
        return row.median / self.rows[0].median

    def markdown(self) -> str:
        """A heading, the table and the notes."""
        lines = [f"## {self.title}", ""]
        if self.rows:
            first = self.rows[0].name
            header = ["", "median ms", "quartiles ms", "calls", f"time / {first}", "memory MiB", "GPU MiB"]
            if self.count is not None:
                header.append(f"{self.unit}/s")
            lines += [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
        for row in self.rows:
            cells = [
                row.name,
                _milliseconds(row.median),
                " to ".join(_milliseconds(quartile) for quartile in row.quartiles),
                str(len(row.seconds)),
                f"{self.ratio(row):.2f}",
                _mebibytes(row.memory.host),
                _mebibytes(row.memory.gpu),
            ]
            if self.count is not None:
                cells.append(f"{self.count / row.median:.3g}")
            lines.append(f"| {' | '.join(cells)} |")
        if self.rows:
            lines.append("")
        lines += [f"- {note}" for note in self.notes]
        return "\n".join(lines).rstrip() + "\n"

    def to_dict(self) -> dict[str, Any]:
        """All of it in plain values, with medians and ratios."""
        plain = dataclasses.asdict(self)
        for values, row in zip(plain["rows"], self.rows, strict=True):
            values |= {"median": row.median, "ratio": self.ratio(row)}
        return plain


def hold(contest: Contest, settings: Settings) -> Table:
    """Time a contest's contestants and measure their memory; who lacks a package is left out with a note.

    Args:
        contest: who does what.
        settings: how.
    """
    notes = list(contest.notes)
    ready: dict[Contestant, Call] = {}
    with thread_count(settings.threads):
        for contestant in contest.contestants:
            try:
                ready[contestant] = contestant.prepare()
            except ImportError as error:
                notes.append(f"{contestant.name} is left out: {error}")
        samples = measure(
            {contestant.name: call for contestant, call in ready.items()},
            repeats=settings.repeats,
            warmup=settings.warmup,
            max_seconds=settings.max_seconds,
            device=settings.device,
        )
    present = list(ready)
    # The other process is to have the memory.
    ready.clear()
    rows = [
        Row(
            contestant.name,
            tuple(samples[contestant.name]),
            peak_memory(contestant, settings) if settings.memory else Memory(),
        )
        for contestant in present
    ]
    return Table(contest.section, contest.title, tuple(rows), tuple(notes), contest.count, contest.unit)


def measure(
    calls: Mapping[str, Call], *, repeats: int, warmup: int = 0, max_seconds: float = 60.0, device: str = "cpu"
) -> dict[str, list[float]]:
    """Time calls in turn, in rounds that go there and back, so that a drifting machine favours none.

    Args:
        calls: what to time, by name.
        repeats: rounds that count.
        warmup: rounds before them that do not.
        max_seconds: a call that has taken this long is dropped from further rounds, once it has been timed.
        device: it is waited for before a clock is read.

    Returns:
        The seconds of each call, in order.
    """
    samples: dict[str, list[float]] = {name: [] for name in calls}
    spent = dict.fromkeys(calls, 0.0)
    for number in range(-warmup, repeats):
        for name in list(calls)[:: 1 if number % 2 == 0 else -1]:
            if spent[name] >= max_seconds and (number < 0 or samples[name]):
                continue
            synchronize(device)
            start = time.perf_counter()
            calls[name]()
            synchronize(device)
            seconds = time.perf_counter() - start
            spent[name] += seconds
            if number >= 0:
                samples[name].append(seconds)
    return samples


def peak_memory(contestant: Contestant, settings: Settings) -> Memory:
    """Peak memory of preparing and of one call, in a fresh process, beyond what imports and inputs take.

    Args:
        contestant: what to run.
        settings: device, threads and imports.

    Returns:
        Bytes. The host's are known on Linux only, the GPU's where the device is one. Nothing is known where the
        process was killed, as it is by a system that runs out of memory.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(_measure_memory, contestant, settings).result()
        except BrokenProcessPool:
            logger.warning("%s was killed while its memory was measured", contestant.name)
            return Memory()


def synchronize(device: str) -> None:
    """Wait until a device has done what it was told."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


@contextlib.contextmanager
def thread_count(number: int) -> Iterator[None]:
    """So many threads for torch and for OpenCV."""
    before = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(number)
    cv2.setNumThreads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        cv2.setNumThreads(before[1])


def _measure_memory(contestant: Contestant, settings: Settings) -> Memory:
    _import_all(settings.preload)
    on_gpu = torch.device(settings.device).type == "cuda"
    if on_gpu:
        torch.zeros(1, device=settings.device)  # the context of CUDA is nobody's
        torch.cuda.reset_peak_memory_stats(settings.device)
    with thread_count(settings.threads):
        before = _reset_resident_peak()
        contestant.prepare()()
        synchronize(settings.device)
    return Memory(
        host=None if before is None else _resident("VmHWM") - before,
        gpu=torch.cuda.max_memory_allocated(settings.device) if on_gpu else None,
    )


def _import_all(modules: Sequence[str]) -> None:
    for module in modules:
        with contextlib.suppress(ImportError):
            import_peer(module)


def _reset_resident_peak() -> int | None:
    """Let the resident set's peak begin anew; the bytes resident now, or None where that cannot be done.

    ``getrusage`` would not do: its peak starts at that of the process this one was started from.
    """
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return _resident("VmRSS")
    except OSError:
        return None


def _resident(field: str) -> int:
    """A field of the process's status on Linux, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (kilobytes,) = [line.split()[1] for line in lines if line.startswith(f"{field}:")]
    return 1024 * int(kilobytes)


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.0f}" if seconds >= 0.1 else f"{1e3 * seconds:.3g}"


def _mebibytes(number: int | None) -> str:
    return "-" if number is None else f"{number / 2**20:.0f}"
