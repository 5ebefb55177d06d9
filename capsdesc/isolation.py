"""The caller's settings of torch and numpy end where this package begins: the same call has the same result anywhere.

What is public and computes stands under :func:`isolated`. That also tells a process in which torch would hang.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch

# Those that torch computes on under autocast.
_AUTOCAST_DEVICES = ("cpu", "cuda", "mps", "xpu")


class _OfTheProcess:
    """A setting that all threads share, put aside as long as any of them needs it as torch starts with it.

    Args:
        get: asks for it.
        put: sets it.
        fresh: what torch starts with.
    """

    def __init__(self, get: Callable[[], Any], put: Callable[[Any], None], fresh: Any) -> None:
        self._get, self._put, self._fresh = get, put, fresh
        self._lock = threading.Lock()
        self._inside = 0
        self._aside: list[Any] = []

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            if (callers := self._get()) != self._fresh:
                self._aside = [callers]
                self._put(self._fresh)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0 and self._aside:
                callers = self._aside.pop()
                # Unless somebody has set another meanwhile.
                if self._get() == self._fresh:
                    self._put(callers)


_DEFAULT_DTYPE = _OfTheProcess(torch.get_default_dtype, torch.set_default_dtype, torch.float32)
_MATMUL_PRECISION = _OfTheProcess(torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "highest")


class _Threads:
    """Whether this process was forked from one in which torch had computed in several threads.

    Only the thread that forks lives on in the new process. GCC's OpenMP, which comes with torch for Linux, does not
    know that, and waits for the others for ever.
    """

    def __init__(self) -> None:
        self._used = self._lost = False
        if sys.platform == "linux" and any((Path(torch.__file__).parent / "lib").glob("libgomp*")):
            os.register_at_fork(after_in_child=self._forked)

    def _forked(self) -> None:
        self._lost = self._lost or self._used

    def use(self) -> None:
        """Refuse to compute where that would never end; else it is remembered for processes that are forked later."""
        if torch.get_num_threads() == 1:
            return
        if self._lost:
            raise RuntimeError(
                "this process was forked from one in which torch had computed in several threads, and torch would wait "
                "for them for ever; start processes by 'spawn' or 'forkserver' (multiprocessing.get_context), use "
                "capsdesc only after the fork, or call torch.set_num_threads(1) in the new process"
            )
        self._used = True


_THREADS = _Threads()
_Function = TypeVar("_Function", bound=Callable[..., Any])


def isolated(gradients: bool | None = False, *, threads: bool = True) -> Callable[[_Function], _Function]:
    """A function that computes as if nobody had changed a setting, and leaves the caller's as they are.

    Put aside are autocast, inference mode, the default type and device of tensors, the precision of products of
    matrices and what numpy does about floating-point errors. Deterministic algorithms are not: they are as right, and
    whoever asks for them wants them everywhere. The default type and the precision of products belong to the process:
    other threads too see them put aside for as long as a call takes.

    Args:
        gradients: whether operations are recorded for gradients; None: as the caller has it.
        threads: whether torch has so much to compute that it takes several threads. Then the function raises a
            RuntimeError in a process that was forked after torch had used them.
    """

    def decorate(function: _Function) -> _Function:
        @functools.wraps(function)
        def alone(*arguments: Any, **options: Any) -> Any:
            # What torch compiles has the settings of the time of compiling in it.
            if torch.compiler.is_compiling():
                return function(*arguments, **options)
            if threads:
                _THREADS.use()
            with _settings_of_a_new_process(gradients):
                return function(*arguments, **options)

        return cast(_Function, alone)

    return decorate


@contextlib.contextmanager
def _settings_of_a_new_process(gradients: bool | None) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        recorded = torch.is_grad_enabled() if gradients is None else gradients
        # Tensors made in inference mode would be of no use to autograd ever after.
        stack.enter_context(torch.inference_mode(mode=False))
        stack.enter_context(torch.set_grad_enabled(recorded))
        for device in _AUTOCAST_DEVICES:
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        stack.enter_context(_DEFAULT_DTYPE)
        stack.enter_context(_MATMUL_PRECISION)
        stack.enter_context(np.errstate(divide="warn", over="warn", under="ignore", invalid="warn"))
        yield
