"""Descriptors to matches."""

from __future__ import annotations

import torch
from torch import Tensor

from capsdesc.isolation import isolated
from capsdesc.matching.nearest import match_rows
from capsdesc.matching.rows import descriptor_rows, scale_of
from capsdesc.matching.shift import within_shift
from capsdesc.matching.views import agreeing_views
from capsdesc.types import Descriptors, Matches, MatchMethod


@isolated()
def match(
    a: Descriptors,
    b: Descriptors,
    *,
    mutual: bool = True,
    ratio: float | None = None,
    max_distance: float | None = None,
    max_shift: float | None = None,
    method: MatchMethod = "nearest",
) -> Matches:
    """Match each descriptor of `a` to its nearest neighbour in `b`, or by a learned matcher.

    The distance is Euclidean on the descriptors as given, which is what the raw descriptors of CAPS need (Wang et al.,
    ECCV 2020) and ranks L2-normalised ones as their dot product does. The search is exact and never holds
    the whole N x M distance matrix: its memory grows with N + M. Of neighbours at equal distance any may be taken.

    Args:
        a: (N, D) float descriptors, numpy or torch, or an object with such `descriptors`. Or (turns, zooms, N, D), the
            same points described under several views, as `CAPSExtractor.describe` gives them for any orientation:
            then those of the one pair of views are matched in which the descriptors are most distinctive.
        b: (M, D) float descriptors of the same kind, on the same device, likewise.
        mutual: keep a pair only if each is the nearest neighbour of the other.
        ratio: keep a pair only if its distance is below `ratio` times the distance to the second nearest neighbour
            in `b` (Lowe, IJCV 2004, section 7.1), 0 < ratio <= 1. A single candidate passes.
        max_distance: keep a pair only if its distance is at most this.
        max_shift: drop the pairs that would look more alike with one of both keypoints moved by more than so many
            pixels, as where the right keypoint was not detected and its neighbour took its place. `MAX_SHIFT` drops
            most of these, and few right ones. Needs features with `derivatives`, as `CAPSExtractor.extract` gives them.
            Pixels are those of the views that go together.
        method: `"nearest"`, or `"context"`: by the bundled :class:`capsdesc.CAPSMatcher`, which looks at what is around
            each keypoint too. It takes :class:`capsdesc.Features` of the bundled descriptor, and of the other arguments
            only `max_shift`.

    Returns:
        The matches, ordered by their index in `a`: numpy arrays for numpy input, tensors on its device for torch.

    Raises:
        TypeError: `a` or `b` is no floating-point array or tensor, or one is numpy and the other torch.
        ValueError: shapes or devices do not fit, a value is not finite, `ratio`, `max_distance` or `max_shift` is out
            of range, or there are no derivatives for `max_shift`.
    """
    if ratio is not None and not 0 < ratio <= 1:
        raise ValueError(f"ratio is {ratio}; expected a number in (0, 1], or None for no ratio test")
    if max_distance is not None and not max_distance >= 0:
        raise ValueError(f"max_distance is {max_distance}; expected a number of at least 0, or None for no limit")
    if max_shift is not None and not max_shift > 0:
        raise ValueError(f"max_shift is {max_shift}; expected a positive number of pixels, or None for no check")
    if method not in ("nearest", "context"):
        raise ValueError(f"method is {method!r}; expected 'nearest' or 'context'")
    if method == "context":
        if not mutual or ratio is not None or max_distance is not None:
            raise ValueError("mutual, ratio and max_distance are for nearest neighbours; leave them out with 'context'")
        return _match_in_context(a, b, max_shift)
    rows_a, a_is_numpy = descriptor_rows(a, "a")
    rows_b, b_is_numpy = descriptor_rows(b, "b")
    if a_is_numpy != b_is_numpy:
        kinds = ("numpy", "torch") if a_is_numpy else ("torch", "numpy")
        raise TypeError(f"a is {kinds[0]} and b is {kinds[1]}; expected both of one kind: convert one of them")
    if rows_a.shape[-1] != rows_b.shape[-1]:
        raise ValueError(
            f"a has {rows_a.shape[-1]} dimensions and b has {rows_b.shape[-1]}; expected descriptors of one model"
        )
    if rows_a.device != rows_b.device:
        raise ValueError(f"a is on {rows_a.device} and b is on {rows_b.device}; expected one device: move one of them")
    dtype = torch.promote_types(rows_a.dtype, rows_b.dtype)
    rows_a, rows_b = rows_a.to(dtype), rows_b.to(dtype)
    scale = scale_of(rows_a, rows_b)
    scaled_a, scaled_b = rows_a / scale, rows_b / scale
    view_a, view_b = agreeing_views(scaled_a, scaled_b)
    limit = None if max_distance is None else max_distance / scale
    indices, distances = match_rows(scaled_a[view_a], scaled_b[view_b], mutual, ratio, limit)
    distances = _unscaled(distances, scale)
    if max_shift is not None:
        stays = within_shift(max_shift, (a, b), (rows_a, rows_b), (view_a, view_b), indices)
        indices, distances = indices[stays], distances[stays]
    if a_is_numpy:
        return Matches(indices.numpy(), distances.numpy())
    return Matches(indices, distances)


def _match_in_context(a: Descriptors, b: Descriptors, max_shift: float | None) -> Matches:
    from capsdesc.matching.context import bundled_matcher  # loads a network

    descriptors = getattr(a, "descriptors", None)
    matcher = bundled_matcher(str(descriptors.device) if isinstance(descriptors, Tensor) else "cpu")
    return matcher.match(a, b, max_shift=max_shift)  # type: ignore[arg-type]


def _unscaled(distances: Tensor, scale: float) -> Tensor:
    """Distances of descriptors that were divided by a scale, refused where float32 cannot hold them."""
    found = distances * scale
    lost = ~found.isfinite() | ((found == 0) & (distances > 0))
    if lost.any():
        raise ValueError(
            f"a and b have numbers up to {scale:g}, and float32 cannot hold the distances of {int(lost.sum())} of "
            f"{len(lost)} matches; multiply both by one number that brings them near 1"
        )
    return found
