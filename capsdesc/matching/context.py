"""Matches by a learned matcher, which sees what is around each keypoint and what all of a pair agree on."""

from __future__ import annotations

import functools
import os
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from capsdesc.devices import describing_dtype, usable_device
from capsdesc.isolation import isolated
from capsdesc.matching.candidates import find_candidates
from capsdesc.matching.rows import as_torch, descriptor_rows, scale_of
from capsdesc.matching.shift import within_shift
from capsdesc.models.context import Candidates, ContextConfig
from capsdesc.models.maps import without_reliability
from capsdesc.types import Features, Matches, as_points
from capsdesc.weights.context import load_context

MIN_SCORE = 0.85
"""Candidates of at least this score match, unless another is asked for.

On held-out scenes the highest that leaves no fewer right matches than mutual nearest neighbours have.
"""

# What so many candidates see, and what is made of it, stays in a core's own cache.
_AT_ONCE = 1024


# Keypoints lie at most so many times as far from the middle of their image as its edges.
_FARTHEST = 1e6
# Descriptors that bear reliability have length 1, but for rounding to half precision.
_LONGEST = 1.01


class _Side(NamedTuple):
    """What is matched of an image with N keypoints.

    Attributes:
        descriptors: (N, D) of unit length, on the network's device as all but ``rows``.
        reliabilities: (N,).
        places: (N, 2).
        rows: the descriptors as given.
    """

    descriptors: Tensor
    reliabilities: Tensor
    places: Tensor
    rows: Tensor


class CAPSMatcher:
    """Matches features of two images by a small network that was learned from camera poses alone.

    Of each keypoint it looks at the few most similar ones in the other image, and judges these candidates together:
    those that agree with what is around them are right, however alike the parts of a facade are. A keypoint without a
    partner matches nothing.

    It takes features of the descriptor that it was trained on, of one orientation: for ``orientation="any"``,
    other descriptors and plain arrays there is :func:`capsdesc.match`.

    Args:
        weights: None for the bundled ones, which go with the bundled descriptor; else a folder that
            ``capsdesc-train matcher`` wrote.
        device: where the network runs; None chooses.
        dtype: what it computes in, ``torch.float32``, ``bfloat16`` or ``float16``; None is as for
            :class:`capsdesc.CAPSExtractor`.

    Raises:
        FileNotFoundError, ValueError: The weights cannot be read, or ``dtype`` is another.
    """

    @isolated()
    def __init__(
        self,
        weights: str | os.PathLike[str] | None = None,
        *,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if dtype not in (None, torch.float32, torch.bfloat16, torch.float16):
            raise ValueError(f"dtype is {dtype}; expected torch.float32, torch.bfloat16 or torch.float16")
        self.device = usable_device(device)
        self.dtype = dtype or describing_dtype(self.device)
        self._network = load_context(weights).to(self.device)
        self.source = "bundled" if weights is None else os.fspath(weights)

    @property
    def config(self) -> ContextConfig:
        """What the network is made of, and whose descriptors it takes."""
        return self._network.config

    def __repr__(self) -> str:
        return f"CAPSMatcher({self.source!r}, device={str(self.device)!r}, dtype={self.dtype})"

    @isolated()
    def match(
        self,
        features0: Features,
        features1: Features,
        *,
        min_score: float = MIN_SCORE,
        max_shift: float | None = None,
    ) -> Matches:
        """Match the keypoints of two images.

        Of (features1, features0) the matches are the same, the other way round. Memory grows with the number of
        keypoints, not with its square.

        Args:
            features0: of the first image, with any number of keypoints.
            features1: of the second, in the same kind of array.
            min_score: a match has at least this score, from 0 to 1. The higher, the fewer and the surer.
            max_shift: as for :func:`capsdesc.match`.

        Returns:
            The matches, ordered by their index in `features0`, with a score from 0 to 1 each; distances are of what
            keypoints look like, of unit length and without reliability. Numpy arrays for numpy input, tensors on its
            device for torch.

        Raises:
            TypeError: an argument is no :class:`capsdesc.Features`, or one is numpy and the other torch.
            ValueError: the features are of another descriptor, of several views, on two devices or far from their
                image, a value is not finite, `min_score` or `max_shift` is out of range, or there are no derivatives
                for `max_shift`.
        """
        if not 0 <= min_score <= 1:
            raise ValueError(f"min_score is {min_score}; expected a number from 0 to 1")
        if max_shift is not None and not max_shift > 0:
            raise ValueError(f"max_shift is {max_shift}; expected a positive number of pixels, or None for no check")
        sides = [self._side(features, f"features{k}") for k, features in enumerate((features0, features1))]
        kinds = [isinstance(features.descriptors, Tensor) for features in (features0, features1)]
        if kinds[0] != kinds[1]:
            raise TypeError("one of the features is numpy and the other torch; expected both of one kind")
        where, there = (side.rows.device for side in sides)
        if where != there:
            raise ValueError(f"features0 is on {where} and features1 on {there}; expected one device: move one of them")
        indices, distances, scores = (found.to(where) for found in self._match(sides[0], sides[1], min_score))
        if max_shift is not None:
            rows, names = (sides[0].rows, sides[1].rows), ("features0", "features1")
            stays = within_shift(max_shift, (features0, features1), rows, (..., ...), indices, names)
            indices, distances, scores = indices[stays], distances[stays], scores[stays]
        if kinds[0]:
            return Matches(indices, distances, scores)
        return Matches(indices.numpy(), distances.numpy(), scores.numpy())

    def _side(self, features: Features, name: str) -> _Side:
        """What is matched of an image."""
        if not isinstance(features, Features):
            raise TypeError(
                f"{name} is {type(features).__name__}; expected capsdesc.Features, as of CAPSExtractor.extract: "
                "context is where keypoints are, and descriptors alone do not say that"
            )
        rows, _ = descriptor_rows(features, name)
        if rows.ndim != 2:
            raise ValueError(
                f"{name} has descriptors of several views; expected one: extract without orientation='any'"
            )
        if features.model is not None and features.model != self.config.descriptor:
            raise ValueError(
                f"{name} was described by the weights {features.model}, and this matcher was trained on those of "
                f"{self.config.descriptor}: take capsdesc.match without it, or train one: capsdesc-train matcher"
            )
        expected = self.config.dimensions
        bare = expected - self.config.reliability
        if rows.shape[1] not in (expected, bare):
            raise ValueError(
                f"{name} has descriptors of {rows.shape[1]} dimensions; this matcher was trained on {expected}"
            )
        points = as_torch(as_points(features.keypoints, f"the keypoints of {name}"))
        if len(points) != len(rows):
            raise ValueError(
                f"{name} has {len(points)} keypoints and {len(rows)} descriptors; expected as many of both"
            )
        where = places(points, features.image_size)
        if not bool((where.abs() < _FARTHEST).all()):
            raise ValueError(
                f"{name} has keypoints at up to {float(points.abs().max()):g} px and the image_size "
                f"{features.image_size}; expected the width and the height of the image that they lie in"
            )
        told = rows.shape[1] > bare
        if told and float(longest := torch.linalg.vector_norm(rows, dim=1).amax() if len(rows) else 0.0) > _LONGEST:
            raise ValueError(
                f"{name} has descriptors of lengths up to {float(longest):g}; expected at most 1, as those of "
                "CAPSExtractor are"
            )
        scaled = rows if told else rows / scale_of(rows)
        descriptors, reliabilities = appearance(scaled.to(self.device, torch.float32), told)
        return _Side(descriptors, reliabilities, where.to(self.device), rows)

    def _match(self, first: _Side, second: _Side, min_score: float) -> tuple[Tensor, Tensor, Tensor]:
        """Indices, distances and scores."""
        # Sums of floats depend on their order: so that both directions are one, always the same of them is computed.
        if _comes_after(first, second):
            indices, distances, scores = self._match(second, first, min_score)
            order = indices[:, 1].argsort()
            return indices[order].flip(1), distances[order], scores[order]
        a, b = first.descriptors, second.descriptors
        with torch.no_grad():
            candidates = find_candidates(
                (a, b),
                (first.reliabilities, second.reliabilities),
                (first.places, second.places),
                self.config.candidates,
                self.config.neighbours,
            )
            with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
                logits = self._network(candidates, _AT_ONCE)[-1]
            scores = logits.float().sigmoid()
        kept = one_to_one(candidates, scores, len(a), len(b)) & (scores >= min_score)
        rows, columns = candidates.rows[kept], candidates.columns[kept]
        distances = torch.linalg.vector_norm(a[rows] - b[columns], dim=1)
        return torch.stack([rows, columns], dim=1), distances, scores[kept]


def appearance(rows: Tensor, reliability: bool) -> tuple[Tensor, Tensor]:
    """(N, C) what keypoints look like, of unit length, and (N,) how reliable that is, from 0 to 1.

    Args:
        rows: (N, D) descriptors.
        reliability: whether their last number speaks of it.
    """
    if reliability:
        return without_reliability(rows), (1 - rows[:, -1].square()).clamp(0, 1)
    return F.normalize(rows, dim=-1), rows.new_ones(len(rows))


def places(points: Tensor, image_size: tuple[int, int]) -> Tensor:
    """(N, 2) pixels as the network wants them: the image's longer edge from -1 to 1, its middle at 0."""
    width, height = image_size
    middle = points.new_tensor([width - 1, height - 1]) / 2
    return (points - middle) / (max(width, height) / 2)


def one_to_one(candidates: Candidates, scores: Tensor, count0: int, count1: int) -> Tensor:
    """(C,) which candidates have the best score of both of their keypoints; of equal ones the first."""
    best = []
    for own, count in ((candidates.rows, count0), (candidates.columns, count1)):
        largest = scores.new_full((count,), -torch.inf).scatter_reduce(0, own, scores, "amax")
        best.append(scores == largest[own])
    kept = best[0] & best[1]
    # Where scores are equal, more than one may be left of a keypoint.
    order = torch.arange(len(scores), device=scores.device)
    for own, count in ((candidates.rows, count0), (candidates.columns, count1)):
        first = order.new_full((count,), len(scores)).scatter_reduce(0, own[kept], order[kept], "amin")
        kept = kept & (first[own] == order)
    return kept


def _comes_after(one: _Side, other: _Side) -> bool:
    """Whether an image comes after another in some order of all images."""
    keys = [_summary(side) for side in (one, other)]
    if keys[0] != keys[1]:
        return keys[0] > keys[1]
    # By the first number that differs, as with a grid of points in two pictures of a camera that stands still.
    for x, y in zip(one[:3], other[:3], strict=True):
        differs = (x != y).flatten().nonzero()
        if len(differs):
            return bool(x.flatten()[differs[0, 0]] > y.flatten()[differs[0, 0]])
    return False


def _summary(side: _Side) -> tuple[float, ...]:
    """Numbers of an image that are seldom those of another."""
    sums = [side.places.double().sum(0), side.places.double().square().sum(0), side.descriptors[:1].double().sum(0)[:4]]
    return (len(side.places), float(side.reliabilities.double().sum()), *torch.cat(sums).tolist())


@functools.lru_cache(maxsize=2)
def bundled_matcher(device: str) -> CAPSMatcher:
    """The matcher that ``match(method="context")`` uses on a device."""
    return CAPSMatcher(device=device)
