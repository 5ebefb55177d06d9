"""Whether matched points would look more alike with one of them moved."""

from __future__ import annotations

import torch
from torch import Tensor

from capsdesc.matching.rows import as_torch
from capsdesc.models.maps import without_reliability

MAX_SHIFT = 3.0
"""In pixels, what suits most images as `max_shift` of `match`."""


def derivatives_of(features: object, name: str, rows: Tensor) -> Tensor:
    """(..., N, 2, C) derivatives of descriptors, in their precision."""
    values = getattr(features, "derivatives", None)
    if values is None:
        raise ValueError(
            f"{name} has no derivatives; max_shift needs features that have: CAPSExtractor.extract(derivatives=True)"
        )
    derivatives = as_torch(values)
    *points, dimensions = rows.shape
    lengths = (dimensions, dimensions - 1)
    if (
        derivatives.ndim != rows.ndim + 1
        or list(derivatives.shape[:-2]) != points
        or derivatives.shape[-1] not in lengths
    ):
        raise ValueError(
            f"{name} has derivatives of shape {tuple(derivatives.shape)} and descriptors of {tuple(rows.shape)}; "
            f"expected ({', '.join(map(str, points))}, 2, C)"
        )
    return derivatives.to(rows)


def relative_shifts(a: Tensor, b: Tensor, derivatives_a: Tensor, derivatives_b: Tensor) -> Tensor:
    """(M, 2) how far, by their derivatives, matched points should move against each other to look alike.

    The least-squares solution o of b + J o = a with the mean J of the derivatives on both sides, which makes the step
    exact to the second order (Malis, ICRA 2004).
    """
    if derivatives_a.shape[-1] < a.shape[-1]:
        a, b = without_reliability(a), without_reliability(b)
    jacobian = (derivatives_a + derivatives_b) / 2
    normal, right = jacobian @ jacobian.mT, jacobian @ (a - b)[..., None]
    shifts: Tensor = torch.linalg.solve_ex(normal, right).result[..., 0]
    return shifts
