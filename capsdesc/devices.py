"""Which device computes, and in which floating-point type and memory layout it computes convolutions fastest."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import platform
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

# How many times as fast as float32 a convolution must be in bfloat16. What is not convolved gains less.
_WORTH_IT = 1.25


def usable_device(device: torch.device | str | None) -> torch.device:
    """The device, by default a CUDA GPU if there is one; refused unless a tensor can lie on it."""
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=device).device
    # Without CUDA torch fails an assertion.
    except (AssertionError, RuntimeError, TypeError) as error:
        raise ValueError(f"device is {device!r}, which torch cannot use here: {error}") from error


def fastest_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where it is faster (GPUs since Ampere, CPUs with AMX and some others), else float32."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    if device.type == "cpu":
        known = _known_of_cpu()
        return torch.bfloat16 if (_measured_of_cpu() if known is None else known) else torch.float32
    return torch.float32


def describing_dtype(device: torch.device) -> torch.dtype:
    """What images are described in unless the user says: the fastest on CPUs, where bfloat16 was seen to cost nothing.

    GPUs keep float32 until that is measured on one.
    """
    return fastest_dtype(device) if device.type == "cpu" else torch.float32


def training_format(device: torch.device, dtype: torch.dtype) -> torch.memory_format:
    """Which memory layout a device trains convolutions fastest in."""
    # With AVX2, a float32 training step takes a third longer in channels-last; inference does not. With AMX, a
    # bfloat16 one takes a quarter less.
    channels_last = device.type == "cuda" or dtype == torch.bfloat16
    return torch.channels_last if channels_last else torch.contiguous_format


def processor_name() -> str:
    """The processor's name; Python itself does not know it on Linux."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text(encoding="utf-8").splitlines() if information.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _known_of_cpu() -> bool | None:
    """Whether the CPU is faster in bfloat16, as far as its instructions tell.

    With AMX it is, many times. Without AVX512-BF16 either, an x86 emulates it, many times slower. AVX512-BF16 alone
    tells nothing: AMD's Zen 4 does twice as much in it as in float32, Intel's cores half as much.
    """
    has_amx, has_bf16 = (
        getattr(torch.cpu, name, None) for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    )
    # oneDNN may be told to leave instructions aside. Other processors than x86, and older torch, answer nothing.
    if "ONEDNN_MAX_CPU_ISA" in os.environ or platform.machine().lower() not in ("x86_64", "amd64") or has_amx is None:
        return None
    if has_amx():
        return True
    return None if has_bf16 is None or has_bf16() else False


@functools.cache
def _measured_of_cpu() -> bool:
    """Whether a convolution is faster in bfloat16: measured once a machine, so that each run computes in the same type.

    The answer is kept beside what torch itself downloads; where that cannot be written, each process measures.
    """
    path = Path(torch.hub.get_dir()).parent / "capsdesc" / "faster_in_bfloat16.json"
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "")
    machine = " / ".join((platform.node(), processor_name(), torch.__version__, limit))
    answers: dict[str, Any] = {}
    with contextlib.suppress(OSError, TypeError, ValueError):  # none yet, or none that can be read
        answers = dict(json.loads(path.read_text(encoding="utf-8")))
    if isinstance(answers.get(machine), bool):
        return bool(answers[machine])
    answers[machine] = _time_convolution(torch.bfloat16) * _WORTH_IT < _time_convolution(torch.float32)
    temporary = path.with_suffix(f".{os.getpid()}")
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(answers, indent=1), encoding="utf-8")
        temporary.replace(path)
    return bool(answers[machine])


def _time_convolution(dtype: torch.dtype, repeats: int = 5) -> float:
    """The least seconds of a 3x3 convolution of the network's kind: a few milliseconds where nothing is emulated."""
    with torch.inference_mode(), torch.autocast("cpu", enabled=False):
        cells, weight = (torch.ones(shape, device="cpu", dtype=dtype) for shape in ((1, 64, 60, 80), (64, 64, 3, 3)))
        cells, weight = (values.contiguous(memory_format=torch.channels_last) for values in (cells, weight))
        F.conv2d(cells, weight, padding=1)
        seconds = []
        for _ in range(repeats):
            start = time.perf_counter()
            F.conv2d(cells, weight, padding=1)
            seconds.append(time.perf_counter() - start)
    return min(seconds)
