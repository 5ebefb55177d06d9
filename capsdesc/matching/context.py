"""Matches by a learned matcher, which sees what is around each keypoint and what all of a pair agree on."""

from __future__ import annotations

import functools
import os

import torch
import torch.nn.functional as F
from torch import Tensor

from capsdesc.devices import describing_dtype, usable_device
from capsdesc.isolation import isolated
from capsdesc.matching.candidates import find_candidates
from capsdesc.matching.rows import as_torch, descriptor_rows
from capsdesc.matching.shift import within_shift
from capsdesc.models.context import Candidates, ContextConfig
from capsdesc.models.maps import without_reliability
from capsdesc.types import Features, Matches
from capsdesc.weights.context import load_context

MIN_SCORE = 0.5
"""Candidates of at least this score match, unless another is asked for."""

# What so many candidates see, and what is made of it, stays in a core's own cache.
_AT_ONCE = 1024


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
            The matches, ordered by their index in `features0`, with a score from 0 to 1 each: numpy arrays for numpy
            input, tensors on its device for torch.

        Raises:
            TypeError: an argument is no :class:`capsdesc.Features`, or one is numpy and the other torch.
            ValueError: the features are of another descriptor or of several views, a value is not finite, `min_score`
                or `max_shift` is out of range, or there are no derivatives for `max_shift`.
        """
        if not 0 <= min_score <= 1:
            raise ValueError(f"min_score is {min_score}; expected a number from 0 to 1")
        if max_shift is not None and not max_shift > 0:
            raise ValueError(f"max_shift is {max_shift}; expected a positive number of pixels, or None for no check")
        sides = [self._side(features, f"features{k}") for k, features in enumerate((features0, features1))]
        kinds = [isinstance(features.descriptors, Tensor) for features in (features0, features1)]
        if kinds[0] != kinds[1]:
            raise TypeError("one of the features is numpy and the other torch; expected both of one kind")
        indices, distances, scores = self._match(sides[0], sides[1], min_score)
        where = sides[0][3]
        indices, distances, scores = indices.to(where), distances.to(where), scores.to(where)
        if max_shift is not None:
            rows = (descriptor_rows(features0, "features0")[0], descriptor_rows(features1, "features1")[0])
            stays = within_shift(max_shift, (features0, features1), rows, (..., ...), indices)
            indices, distances, scores = indices[stays], distances[stays], scores[stays]
        if kinds[0]:
            return Matches(indices, distances, scores)
        return Matches(indices.numpy(), distances.numpy(), scores.numpy())

    def _side(self, features: Features, name: str) -> tuple[Tensor, Tensor, Tensor, torch.device]:
        """Unit descriptors, reliabilities and places of an image's keypoints, on the network's device."""
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
        if rows.shape[1] not in (expected, expected - 1):
            raise ValueError(
                f"{name} has descriptors of {rows.shape[1]} dimensions; this matcher was trained on {expected}"
            )
        given = rows.device
        rows = rows.to(self.device, torch.float32)
        if rows.shape[1] == expected:
            reliabilities = (1 - rows[:, -1].square()).clamp(0, 1)
            rows = without_reliability(rows)
        else:
            reliabilities = rows.new_ones(len(rows))
        points = as_torch(features.keypoints).to(self.device, torch.float32)
        return F.normalize(rows, dim=-1), reliabilities, places(points, features.image_size), given

    def _match(
        self,
        first: tuple[Tensor, Tensor, Tensor, torch.device],
        second: tuple[Tensor, Tensor, Tensor, torch.device],
        min_score: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Indices, distances and scores."""
        # Sums of floats depend on their order: so that both directions are one, always the same of them is computed.
        if _signature(first) > _signature(second):
            indices, distances, scores = self._match(second, first, min_score)
            order = indices[:, 1].argsort()
            return indices[order].flip(1), distances[order], scores[order]
        (a, ra, pa, _), (b, rb, pb, _) = first, second
        if len(a) == 0 or len(b) == 0:
            nothing = a.new_empty(0)
            return torch.empty(0, 2, dtype=torch.int64, device=a.device), nothing, nothing
        with torch.no_grad():
            config = self.config
            candidates = find_candidates((a, b), (ra, rb), (pa, pb), config.candidates, config.neighbours)
            with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
                logits = self._network(candidates, _AT_ONCE)[-1]
            scores = logits.float().sigmoid()
        kept = one_to_one(candidates, scores, len(a), len(b)) & (scores >= min_score)
        rows, columns = candidates.rows[kept], candidates.columns[kept]
        distances = torch.linalg.vector_norm(a[rows] - b[columns], dim=1)
        return torch.stack([rows, columns], dim=1), distances, scores[kept]


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


def _signature(side: tuple[Tensor, Tensor, Tensor, torch.device]) -> tuple[float, ...]:
    """Something of an image's features by which two images can be put in an order."""
    descriptors, reliabilities, points, _ = side
    sums = (points.double().sum(0), points.double().square().sum(0), descriptors[:1].double().sum(0)[:4])
    return (len(descriptors), float(reliabilities.double().sum()), *(float(value) for part in sums for value in part))


@functools.lru_cache(maxsize=2)
def bundled_matcher(device: str) -> CAPSMatcher:
    """The matcher that ``match(method="context")`` uses on a device."""
    return CAPSMatcher(device=device)
