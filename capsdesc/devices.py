"""Which device computes, and in which floating-point type and memory layout it computes convolutions fastest."""

from __future__ import annotations

import torch


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
    """bfloat16 where the hardware multiplies matrices in it (GPUs since Ampere, CPUs with AMX), else float32."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    if device.type == "cpu":
        # Without AMX, bfloat16 is emulated and several times slower than float32. Not every build can tell.
        has_amx = getattr(torch.cpu, "_is_amx_tile_supported", None)
        return torch.bfloat16 if has_amx is not None and has_amx() else torch.float32
    return torch.float32


def describing_dtype(device: torch.device) -> torch.dtype:
    """What images are described in unless the user says: the fastest on CPUs, where bfloat16 was seen to cost nothing.

    GPUs keep float32 until that is measured on one.
    """
    return fastest_dtype(device) if device.type == "cpu" else torch.float32


def training_format(device: torch.device) -> torch.memory_format:
    """Which memory layout a device trains convolutions fastest in."""
    # With AVX2, a float32 training step takes a third longer in channels-last; inference does not.
    return torch.channels_last if device.type == "cuda" else torch.contiguous_format
