"""What the robust estimators have in common, whichever library searches."""

from __future__ import annotations

import numbers
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

from capsdesc.types import Float64Array

Backend: TypeAlias = Literal["opencv", "poselib"]


@dataclass(frozen=True)
class RansacOptions:
    """What the search of any back-end is told; see :func:`capsdesc.estimate_pose`."""

    threshold: float
    confidence: float
    max_iterations: int
    seed: int

    def __post_init__(self) -> None:
        kinds = {"threshold": numbers.Real, "confidence": numbers.Real, "max_iterations": int, "seed": int}
        for name, kind in kinds.items():
            value = getattr(self, name)
            if not isinstance(value, numbers.Integral if kind is int else kind):
                raise TypeError(f"{name} is {value!r}; expected {'an integer' if kind is int else 'a number'}")
        if not 0 < self.threshold <= sys.float_info.max:
            raise ValueError(f"threshold is {self.threshold}; expected a positive number of pixels")
        if not 0 < self.confidence < 1:
            raise ValueError(f"confidence is {self.confidence}; expected a probability between 0 and 1")
        if not 1 <= self.max_iterations < 2**31:
            raise ValueError(f"max_iterations is {self.max_iterations}; expected at least 1 and less than 2^31")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed is {self.seed}; expected at least 0 and less than 2^63")


def valid_models(models: Iterable[Any]) -> list[Float64Array]:
    """Those that were found: neither None nor zero nor broken."""
    return [np.asarray(model) for model in models if model is not None and np.isfinite(model).all() and np.any(model)]


def valid_poses(poses: Iterable[tuple[Any, Any]]) -> list[tuple[Float64Array, Float64Array]]:
    """Those with a rotation and with a direction to move in, which is scaled to unit length."""
    found = [(np.asarray(R), np.ravel(t), np.linalg.norm(t)) for R, t in poses]
    return [(R, t / norm) for R, t, norm in found if _is_rotation(R) and 1e-12 < norm < np.inf]


def _is_rotation(R: Float64Array) -> bool:
    # Written so that NaN fails too. What is near one, but no rotation, comes of coordinates too large for float64.
    return bool(np.abs(R @ R.T - np.eye(3)).max() < 1e-6 and np.linalg.det(R) > 0)
