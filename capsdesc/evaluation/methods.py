"""The methods that are compared: what describes given points, and what finds its own."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch

from capsdesc.describe.extractor import CAPSExtractor
from capsdesc.describe.orientation import Orientation
from capsdesc.evaluation import peers
from capsdesc.evaluation.classical import ORB, RootSIFT
from capsdesc.keypoints import Detector, SIFTDetector
from capsdesc.matching import MAX_SHIFT
from capsdesc.matching.context import MIN_SCORE, CAPSMatcher
from capsdesc.types import Features, Float32Array, Keypoints, Matches, UInt8Array
from capsdesc.weights import resolve


class Use(NamedTuple):
    """How our extractor is used.

    Attributes:
        orientation: as for :meth:`capsdesc.CAPSExtractor.describe`.
        reliability: whether descriptors bear it.
        checked: whether matches are checked by the descriptors' derivatives.
        keypoints: whether the network finds the keypoints too.
        context: whether matches are :class:`capsdesc.CAPSMatcher`'s instead of mutual nearest neighbours.
    """

    orientation: Orientation = "upright"
    reliability: bool = True
    checked: bool = False
    keypoints: bool = False
    context: bool = False


_AT_GIVEN_POINTS: dict[str, Use] = {
    "caps": Use(),
    "caps-any": Use(orientation="any"),
    "caps-plain": Use(reliability=False),
    "caps-checked": Use(checked=True),
    "caps-any-checked": Use(orientation="any", checked=True),
    "caps-plain-checked": Use(reliability=False, checked=True),
    "caps-context": Use(context=True),
    "caps-context-checked": Use(checked=True, context=True),
}
CAPS_USES: Mapping[str, Use] = _AT_GIVEN_POINTS | {
    name.replace("caps", "caps-keypoints"): use._replace(keypoints=True) for name, use in _AT_GIVEN_POINTS.items()
}
METHODS = ("rootsift", "orb", *CAPS_USES, *peers.PEERS)
OWN_KEYPOINTS_ONLY = frozenset({"orb", *(name for name, use in CAPS_USES.items() if use.keypoints), *peers.MATCHERS})
"""Methods that describe no given points."""
SHARED_DETECTORS = ("sift", "caps", "xfeat", "disk", "aliked")
"""Whose keypoints all methods may share."""


@runtime_checkable
class Method(Protocol):
    """What every method has: a name for the reports, and all settings its result depends on, ready for JSON.

    Of a learned method the settings hold a hash of its weights, so that no result of other ones passes for its own.
    """

    @property
    def name(self) -> str:
        """How reports call it."""
        ...

    @property
    def settings(self) -> Mapping[str, Any]:
        """All its settings."""
        ...


@runtime_checkable
class Describer(Method, Protocol):
    """A method that describes given points, and so can be compared with others at the same ones."""

    def describe(self, image: UInt8Array, keypoints: Keypoints) -> Float32Array:
        """(N, D) descriptors of (H, W, 3) RGB at N keypoints, for Euclidean distances."""
        ...


@runtime_checkable
class Differentiator(Describer, Protocol):
    """A describer whose matches are checked by derivatives."""

    def describe_with_derivatives(self, image: UInt8Array, keypoints: Keypoints) -> tuple[Float32Array, Float32Array]:
        """The (N, D) descriptors and their (N, 2, C) derivatives, see :class:`capsdesc.Features`."""
        ...


@runtime_checkable
class Pipeline(Method, Protocol):
    """A method with keypoints of its own."""

    def extract(self, image: UInt8Array, max_keypoints: int) -> tuple[Float32Array, Float32Array]:
        """(N, 2) points in pixels and (N, D) descriptors of (H, W, 3) RGB, N at most ``max_keypoints``."""
        ...


@runtime_checkable
class DifferentiatingPipeline(Pipeline, Protocol):
    """A pipeline whose matches are checked by derivatives."""

    def extract_with_derivatives(
        self, image: UInt8Array, max_keypoints: int
    ) -> tuple[Float32Array, Float32Array, Float32Array]:
        """As :meth:`Pipeline.extract`, and the descriptors' (N, 2, C) derivatives."""
        ...


@runtime_checkable
class PairMatcher(Method, Protocol):
    """A method that matches features otherwise than by nearest neighbours."""

    @property
    def features(self) -> Method:
        """Whose features it matches; they are computed once for all that do."""
        ...

    def match(self, features0: peers.MatchedFeatures, features1: peers.MatchedFeatures) -> Matches:
        """Which keypoints of two images belong together."""
        ...


class _Ours:
    """What all uses of our extractor have in common.

    Args:
        weights: as :class:`capsdesc.CAPSExtractor` takes them; None is the bundled default.
        device: where the network runs; None chooses.
        use: a key of :data:`CAPS_USES`.
    """

    def __init__(self, weights: str | None = None, device: str | None = None, use: str = "caps") -> None:
        self.name = use if weights is None else f"{use}:{weights}"
        self._orientation = CAPS_USES[use].orientation
        # The same on every machine.
        resolved = resolve(weights)
        self._extractor = CAPSExtractor(
            resolved,
            detector="caps" if CAPS_USES[use].keypoints else "sift",
            device=device,
            dtype=torch.float32,
            reliability=CAPS_USES[use].reliability,
        )
        self.settings: Mapping[str, Any] = {
            "source": resolved.source,
            "config": resolved.config.to_dict(),
            "weights": weights_hash(resolved.state_dict),
            "device": self._extractor.device.type,
            "orientation": self._orientation,
            "reliability": self._extractor.reliability,
            "torch": torch.__version__,
        }

    @property
    def fingerprint(self) -> str | None:
        """Of the weights, as in :class:`capsdesc.Features`."""
        return self._extractor.weights.fingerprint


class CAPS(_Ours):
    """This package's descriptor at given points."""

    def describe(self, image: UInt8Array, keypoints: Keypoints) -> Float32Array:
        """(N, D) float32; (turns, zooms, N, D) for any orientation."""
        descriptors = self._extractor.describe(image, keypoints, orientation=self._orientation)
        return np.asarray(descriptors, dtype=np.float32)


class CheckedCAPS(CAPS):
    """The same, with derivatives."""

    def describe_with_derivatives(self, image: UInt8Array, keypoints: Keypoints) -> tuple[Float32Array, Float32Array]:
        """(N, D) and (N, 2, C) float32; for any orientation with turns and zooms before."""
        features = self._extractor.extract(image, keypoints=keypoints, orientation=self._orientation, derivatives=True)
        return np.asarray(features.descriptors), np.asarray(features.derivatives)


class CAPSKeypoints(_Ours):
    """This package's keypoints and descriptors, from one pass of the network; as a detector it has its keypoints."""

    def __init__(self, weights: str | None = None, device: str | None = None, use: str = "caps-keypoints") -> None:
        super().__init__(weights, device, use)

    def extract(self, image: UInt8Array, max_keypoints: int) -> tuple[Float32Array, Float32Array]:
        """(N, 2) points and (N, D) descriptors; for any orientation (turns, zooms, N, D)."""
        features = self._extractor.extract(image, max_keypoints, orientation=self._orientation)
        return np.asarray(features.keypoints), np.asarray(features.descriptors)

    def detect(self, image: UInt8Array, max_keypoints: int, mask: npt.NDArray[Any] | None = None) -> Keypoints:
        """See :class:`capsdesc.keypoints.Detector`."""
        return self._extractor.detect(image, max_keypoints, mask)


class CheckedCAPSKeypoints(CAPSKeypoints):
    """The same, with derivatives."""

    def extract_with_derivatives(
        self, image: UInt8Array, max_keypoints: int
    ) -> tuple[Float32Array, Float32Array, Float32Array]:
        """As :meth:`extract`, and (N, 2, C) derivatives; for any orientation with turns and zooms before."""
        features = self._extractor.extract(image, max_keypoints, orientation=self._orientation, derivatives=True)
        return np.asarray(features.keypoints), np.asarray(features.descriptors), np.asarray(features.derivatives)


class InContext:
    """Features of ours, matched by a :class:`capsdesc.CAPSMatcher`; where they have derivatives, checked by these.

    Args:
        features: finds or describes them.
        matcher: matches them.
        min_score: as for :meth:`capsdesc.CAPSMatcher.match`.
        max_shift: likewise.
    """

    def __init__(
        self, features: CAPS | CAPSKeypoints, matcher: CAPSMatcher, min_score: float, max_shift: float | None
    ) -> None:
        self.features = features
        self.name = features.name
        self.settings: Mapping[str, Any] = {
            **features.settings,
            "matcher": f"CAPSMatcher ({matcher.source})",
            "min_score": min_score,
            "max_shift": max_shift,
        }
        self._matcher = matcher
        self._min_score = min_score
        self._max_shift = max_shift

    def match(self, features0: peers.MatchedFeatures, features1: peers.MatchedFeatures) -> Matches:
        """The matcher's matches."""
        sides = [
            Features(
                side.keypoints,
                side.descriptors,
                None,
                None,
                None,
                side.image_size,
                getattr(side, "derivatives", None),
                self.features.fingerprint,
            )
            for side in (features0, features1)
        ]
        max_shift = None if sides[0].derivatives is None else self._max_shift
        return self._matcher.match(sides[0], sides[1], min_score=self._min_score, max_shift=max_shift)


# Whether the keypoints are the network's own, and whether matches are checked.
_KINDS: Mapping[tuple[bool, bool], type[CAPS] | type[CAPSKeypoints]] = {
    (False, False): CAPS,
    (False, True): CheckedCAPS,
    (True, False): CAPSKeypoints,
    (True, True): CheckedCAPSKeypoints,
}


def get_shared_detector(name: str, *, weights: str | None = None, device: str | None = None) -> Detector:
    """What finds the keypoints that all methods share.

    Args:
        name: of :data:`SHARED_DETECTORS`.
        weights: of ``"caps"``; None is the bundled default.
        device: where networks run; None chooses.

    Raises:
        ValueError: the name is unknown, or these weights find no keypoints.
        ImportError: the detector's package is not installed.
    """
    if name not in SHARED_DETECTORS:
        raise ValueError(f"detector is {name!r}; expected one of {', '.join(SHARED_DETECTORS)}")
    if name == "sift":
        return SIFTDetector()
    detector: Detector = CAPSKeypoints(weights, device) if name == "caps" else peers.PEERS[name](device)
    return detector


def get_methods(
    names: Sequence[str],
    *,
    weights: Sequence[str] | None = None,
    device: str | None = None,
    matcher: str | None = None,
    min_score: float = MIN_SCORE,
    max_shift: float | None = MAX_SHIFT,
) -> list[Method]:
    """Methods by their names.

    Args:
        names: of :data:`METHODS`.
        weights: for ours: one method for each; None is the bundled default.
        device: where networks run; None chooses.
        matcher: weights of the one that sees context; None is the bundled one.
        min_score: of its matches, as for :meth:`capsdesc.CAPSMatcher.match`.
        max_shift: of its matches, where they are checked.

    Raises:
        ValueError: a name is unknown.
        ImportError: a method's package is not installed.
    """
    methods: list[Method] = []
    for name in names:
        if name not in METHODS:
            raise ValueError(f"no method is called {name!r}; there are {', '.join(METHODS)}")
        if name == "rootsift":
            methods.append(RootSIFT())
        elif name == "orb":
            methods.append(ORB())
        elif name in CAPS_USES:
            use = CAPS_USES[name]
            ours = [_KINDS[use.keypoints, use.checked](each, device, name) for each in weights or (None,)]
            if use.context:
                in_context = CAPSMatcher(matcher, device=device, dtype=torch.float32)
                methods += [InContext(features, in_context, min_score, max_shift) for features in ours]
            else:
                methods += ours
        else:
            methods.append(peers.PEERS[name](device))
    return methods


def features_of(method: Method) -> Method:
    """The method that a method has its features from: itself, or the one whose features it matches."""
    return method.features if isinstance(method, PairMatcher) else method


def installed_version(package: str) -> str | None:
    """The version of an installed package, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def weights_hash(state_dict: Mapping[str, torch.Tensor]) -> str:
    """A SHA-256 of all tensors, by their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state_dict.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
