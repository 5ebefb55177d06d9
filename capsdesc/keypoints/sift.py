"""SIFT's keypoints (Lowe, IJCV 2004), the default."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from capsdesc.images import to_gray
from capsdesc.isolation import isolated
from capsdesc.keypoints.mask import check_mask, inside_mask
from capsdesc.types import Float32Array, Keypoints, UInt8Array

# OpenCV enlarges the image twofold before it detects, which moves every keypoint this far right and down. Its option
# enable_precise_upscale does not, but enlarges unevenly: the same points are found again less often (by a hundredth of
# matching accuracy at 3 px on the Oxford sequences).
UPSCALING_SHIFT = np.float32(0.25)


def sift_features(gray: UInt8Array, max_keypoints: int) -> tuple[Float32Array, Float32Array]:
    """OpenCV's SIFT with its own descriptors; a point counts once for each of its orientations.

    Args:
        gray: (H, W).
        max_keypoints: at most so many, the strongest.

    Returns:
        (N, 2) x, y in pixels, and (N, 128) descriptors.
    """
    found, descriptors = cv2.SIFT.create(nfeatures=max_keypoints).detectAndCompute(gray, np.empty(0, np.uint8))
    points = np.array([keypoint.pt for keypoint in found], np.float32).reshape(-1, 2) - UPSCALING_SHIFT
    # OpenCV has none where it finds nothing.
    return points, np.asarray(descriptors, np.float32) if found else np.empty((0, 128), np.float32)


@dataclass(frozen=True)
class SIFTDetector:
    """SIFT's difference-of-Gaussians extrema, by OpenCV.

    CAPS describes points, so a point that SIFT gives several orientations is one keypoint here: the strongest, and of
    equally strong ones the one with the smallest angle. The same image gives the same keypoints in the same order.

    Attributes:
        contrast_threshold: Extrema weaker than this over ``num_octave_layers``, of a grey range of 1, are dropped.
        edge_threshold: Largest ratio of the principal curvatures; larger keeps more points on edges.
        num_octave_layers: Scales per octave.
        sigma: Gaussian blur of the first octave, in pixels.

    Raises:
        ValueError: An attribute is out of range.
    """

    contrast_threshold: float = 0.04
    edge_threshold: float = 10.0
    num_octave_layers: int = 3
    sigma: float = 1.6

    def __post_init__(self) -> None:
        if not self.contrast_threshold >= 0:
            raise ValueError(f"contrast_threshold must not be negative, got {self.contrast_threshold}")
        for name in ("edge_threshold", "num_octave_layers", "sigma"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")

    @isolated(threads=False)
    def detect(
        self, image: npt.NDArray[np.uint8], max_keypoints: int, mask: npt.NDArray[Any] | None = None
    ) -> Keypoints:
        """Keypoints of an image, strongest first.

        Args:
            image: (H, W, 3) uint8 RGB.
            max_keypoints: At most so many come back, the strongest; of equally strong ones those further left, then
                further up.
            mask: (H, W) bool or uint8, non-zero where keypoints may lie; ``None`` is everywhere.

        Returns:
            Keypoints with scores (OpenCV's response), scales and angles; none where the image has no extrema.

        Raises:
            TypeError: The mask is neither bool nor uint8.
            ValueError: ``max_keypoints`` is negative, or the mask has another size than the image.
        """
        if max_keypoints < 0:
            raise ValueError(f"max_keypoints must not be negative, got {max_keypoints}")
        gray = to_gray(image)
        if mask is not None:
            mask = check_mask(mask, gray.shape)
        sift = cv2.SIFT.create(
            nOctaveLayers=self.num_octave_layers,
            contrastThreshold=self.contrast_threshold,
            edgeThreshold=self.edge_threshold,
            sigma=self.sigma,
        )
        # OpenCV would apply nfeatures before the mask and count every orientation, so the cut is made here. It sorts
        # by x, y and angle, which makes stable sorting enough to break ties.
        found = Keypoints.from_cv2(sift.detect(gray, None))
        found = replace(found, points=np.asarray(found.points) - UPSCALING_SHIFT)
        if mask is not None:
            found = found[inside_mask(found.points, mask)]
        by_strength = found[np.argsort(-np.asarray(found.scores), kind="stable")]
        _, strongest_at_point = np.unique(np.asarray(by_strength.points), axis=0, return_index=True)
        return by_strength[np.sort(strongest_at_point)[:max_keypoints]]
