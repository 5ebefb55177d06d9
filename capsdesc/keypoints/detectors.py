"""What a detector is, the ones that have a name, and which of them is the default."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import cv2
import numpy as np
import numpy.typing as npt
import torch

from capsdesc.keypoints.sift import SIFTDetector
from capsdesc.keypoints.superpoint import SuperPointDetector
from capsdesc.types import Keypoints

logger = logging.getLogger(__name__)


class Detector(Protocol):
    """Anything that finds keypoints in an image."""

    def detect(
        self, image: npt.NDArray[np.uint8], max_keypoints: int, mask: npt.NDArray[Any] | None = None
    ) -> Keypoints:
        """Keypoints of an image, strongest first.

        Args:
            image: (H, W, 3) uint8 RGB.
            max_keypoints: At most so many come back.
            mask: (H, W) bool or uint8, non-zero where keypoints may lie; ``None`` is everywhere.
        """
        ...


_DETECTORS: Mapping[str, Callable[[torch.device | str | None], Detector]] = {
    "sift": lambda device: SIFTDetector(),
    "superpoint": lambda device: SuperPointDetector(device=device),
}

OWN = "caps"
"""The name of the keypoints that the network which describes finds itself."""

DETECTORS = (OWN, *_DETECTORS)
"""Names of detectors. All but the first are known to :func:`get_detector`; that one is part of an extractor."""

DEFAULT_DETECTOR: str = OWN
"""What finds keypoints where nobody has chosen; SIFT in the place of ``"caps"`` with weights that find none."""


def default_detector(finds_keypoints: bool, source: str) -> str:
    """The name of :data:`DEFAULT_DETECTOR`, or SIFT's, and a line that says so, where these weights do not have it.

    Args:
        finds_keypoints: whether the weights do.
        source: where they come from.
    """
    if DEFAULT_DETECTOR == OWN and not finds_keypoints:
        logger.info("the model %s finds no keypoints: they are SIFT's", source)
        return "sift"
    return DEFAULT_DETECTOR


def get_detector(detector: str | Detector, device: torch.device | str | None = None) -> Detector:
    """A detector by name, or the user's own.

    Args:
        detector: ``"sift"``; ``"superpoint"``, with Magic Leap's weights from the Hugging Face hub, which are for
            non-commercial research only (see :class:`SuperPointDetector`); or any object with the ``detect`` method of
            :class:`Detector`.
        device: Where a named detector's network runs; ``None`` is a CUDA GPU if there is one, else the CPU.

    Raises:
        TypeError: ``detector`` is neither a name nor an object with a ``detect`` method.
        ValueError: No detector has this name, or it is ``"caps"``, which is part of an extractor.
        ImportError, OSError: ``"superpoint"`` needs a package or weights that are not there.
    """
    if isinstance(detector, str):
        if detector == OWN:
            raise ValueError(f"detector {OWN!r} is part of an extractor: CAPSExtractor(detector={OWN!r}).detector")
        if detector not in _DETECTORS:
            known = ", ".join(repr(name) for name in DETECTORS)
            raise ValueError(f"detector {detector!r} is not known; known are {known}, or pass an object with detect()")
        return _DETECTORS[detector](device)
    if isinstance(detector, cv2.Feature2D):
        raise TypeError(
            "detector is one of OpenCV's; pass its keypoints to describe(), or wrap it in an object like "
            "capsdesc.keypoints.Detector"
        )
    if isinstance(detector, type) or not callable(getattr(detector, "detect", None)):
        got = f"the class {detector.__name__}" if isinstance(detector, type) else f"a {type(detector).__name__}"
        raise TypeError(f"detector must be a name or an object with a detect method, got {got}")
    return detector
