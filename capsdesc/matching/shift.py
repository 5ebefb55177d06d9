"""Whether matched points would look more alike with one of them moved."""

from __future__ import annotations

from types import EllipsisType

import torch
from torch import Tensor

from capsdesc.matching.rows import as_torch, scale_of
from capsdesc.models.maps import without_reliability

MAX_SHIFT = 3.0
"""In pixels, what suits most images as `max_shift` of `match`."""


def within_shift(
    max_shift: float,
    features: tuple[object, object],
    rows: tuple[Tensor, Tensor],
    views: tuple[tuple[int, int] | EllipsisType, tuple[int, int] | EllipsisType],
    indices: Tensor,
    names: tuple[str, str] = ("a", "b"),
) -> Tensor:
    """(M,) which matches would look most alike where they are, or moved by at most so many pixels.

    Args:
        max_shift: in pixels.
        features: those matched, with ``derivatives``.
        rows: their descriptors, (..., N, D).
        views: which of their views go together.
        indices: (M, 2) of the matches.
        names: what error messages call the features.

    Raises:
        ValueError: there are no derivatives, or their shapes do not fit.
    """
    a, b = (_derivatives_of(one, name, own) for one, name, own in zip(features, names, rows, strict=True))
    if a.shape[-1] != b.shape[-1]:
        raise ValueError(
            f"{names[0]} has derivatives of {a.shape[-1]} dimensions and {names[1]} of {b.shape[-1]}; expected "
            "features of one model"
        )
    (view_a, view_b), (in_a, in_b) = views, indices.unbind(1)
    moves = _relative_shifts(rows[0][view_a][in_a], rows[1][view_b][in_b], a[view_a][in_a], b[view_b][in_b])
    # Where descriptors do not change from place to place the shift is no number: nothing can be said for the pair.
    stays: Tensor = torch.linalg.vector_norm(moves, dim=1) <= max_shift
    return stays


def _derivatives_of(features: object, name: str, rows: Tensor) -> Tensor:
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


def _relative_shifts(a: Tensor, b: Tensor, derivatives_a: Tensor, derivatives_b: Tensor) -> Tensor:
    """(M, 2) how far, by their derivatives, matched points should move against each other to look alike.

    The least-squares solution o of b + J o = a with the mean J of the derivatives on both sides, which makes the step
    exact to the second order (Malis, ICRA 2004).
    """
    if derivatives_a.shape[-1] < a.shape[-1]:
        a, b = without_reliability(a), without_reliability(b)
    difference, jacobian = a - b, (derivatives_a + derivatives_b) / 2
    size, slope = scale_of(difference), scale_of(jacobian)
    difference, jacobian = difference / size, jacobian / slope
    normal, right = jacobian @ jacobian.mT, jacobian @ difference[..., None]
    shifts: Tensor = torch.linalg.solve_ex(normal, right).result[..., 0]
    return shifts * (size / slope)
