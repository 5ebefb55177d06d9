"""What a detector is, and the ones that have a name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import cv2
import numpy as np
import numpy.typing as npt
import torch

from capsdesc.keypoints.sift import SIFTDetector
from capsdesc.keypoints.superpoint import SuperPointDetector
from capsdesc.types import Keypoints


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

DETECTORS = tuple(_DETECTORS)
"""Names of detectors that :func:`get_detector` knows."""


def get_detector(detector: str | Detector, device: torch.device | str | None = None) -> Detector:
    """A detector by name, or the user's own.

    Args:
        detector: ``"sift"``; ``"superpoint"``, with Magic Leap's weights from the Hugging Face hub, which are for
            non-commercial research only (see :class:`SuperPointDetector`); or any object with the ``detect`` method of
            :class:`Detector`.
        device: Where a named detector's network runs; ``None`` is a CUDA GPU if there is one, else the CPU.

    Raises:
        TypeError: ``detector`` is neither a name nor an object with a ``detect`` method.
        ValueError: No detector has this name.
        ImportError, OSError: ``"superpoint"`` needs a package or weights that are not there.
    """
    if isinstance(detector, str):
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
