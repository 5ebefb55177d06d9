"""Descriptors in any form as rows of a tensor."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from capsdesc.types import Descriptors

# Powers of two that the type holds, and whose inverses it holds.
_LARGEST_EXPONENT = {torch.float32: 125, torch.float64: 1020}


def descriptor_rows(descriptors: Descriptors, name: str) -> tuple[Tensor, bool]:
    """(..., N, D) finite float32 or float64 rows, and whether they came as numpy."""
    rows = descriptors if isinstance(descriptors, np.ndarray | Tensor) else getattr(descriptors, "descriptors", None)
    if not isinstance(rows, np.ndarray | Tensor):
        raise TypeError(
            f"{name} is {type(descriptors).__name__}; expected an (N, D) numpy array or torch tensor, "
            "or an object with such descriptors"
        )
    floating = rows.is_floating_point() if isinstance(rows, Tensor) else np.issubdtype(rows.dtype, np.floating)
    if not floating:
        raise TypeError(f"{name} has dtype {rows.dtype}; expected floating point: convert it first")
    if rows.ndim not in (2, 4):
        raise ValueError(
            f"{name} has shape {tuple(rows.shape)}; expected (N, D), one descriptor a row, or (turns, zooms, N, D)"
        )
    tensor = as_torch(rows)
    # A sum is finite only if all of them are; each is looked at only if it is not.
    if not tensor.sum().isfinite() and not tensor.isfinite().all():
        finite = tensor.isfinite().all(dim=-1)
        bad = int((~finite).sum())
        raise ValueError(
            f"{name} has NaN or infinite values in {bad} of {finite.numel()} rows; expected finite descriptors"
        )
    return tensor, isinstance(rows, np.ndarray)


def scale_of(*tensors: Tensor) -> float:
    """A power of two as large as the largest number in any of the tensors, so that division by it loses no digit.

    Squares of what is divided by it neither overflow nor vanish.
    """
    largest = max((float(tensor.abs().amax()) for tensor in tensors if tensor.numel()), default=1.0)
    # Nor may the scale itself, or one over it.
    limit = min(_LARGEST_EXPONENT[tensor.dtype] for tensor in tensors)
    return math.ldexp(1.0, max(-limit, min(limit, math.frexp(largest)[1])))


def as_torch(values: npt.NDArray[Any] | Tensor) -> Tensor:
    """The same in torch, in single precision or double."""
    if isinstance(values, Tensor):
        return values.detach().to(torch.promote_types(values.dtype, torch.float32))
    # torch shares memory only with native-endian, writeable arrays of non-negative strides
    dtype = np.float64 if values.dtype.itemsize >= 8 else np.float32
    return torch.from_numpy(np.require(values, dtype, ["C_CONTIGUOUS", "WRITEABLE"]))
