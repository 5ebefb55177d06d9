"""The methods of OpenCV that ours is compared with: RootSIFT and ORB, as others use them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import cv2
import numpy as np
import numpy.typing as npt

from capsdesc.images import to_gray
from capsdesc.keypoints import Keypoints
from capsdesc.keypoints.sift import UPSCALING_SHIFT
from capsdesc.types import Float32Array, UInt8Array


@dataclasses.dataclass(frozen=True)
class RootSIFT:
    """OpenCV's SIFT, L1-normalised, square roots taken (Arandjelovic and Zisserman, CVPR 2012).

    Its own keypoints are as OpenCV's defaults give them to everybody: a point counts once for each of its orientations,
    and lies a quarter pixel too far right and down, which :class:`capsdesc.keypoints.SIFTDetector` takes off. Given
    keypoints need a scale and an angle, and are described at the level of the pyramid where SIFT finds that scale.
    """

    name: str = "rootsift"
    needs_frames: ClassVar[bool] = True

    @property
    def settings(self) -> Mapping[str, Any]:
        """The version of OpenCV, whose defaults are used."""
        return {"opencv": cv2.__version__}

    def extract(self, image: UInt8Array, max_keypoints: int) -> tuple[Float32Array, Float32Array]:
        """The strongest keypoints and their descriptors, of 128 dimensions and unit Euclidean norm."""
        # Not SIFTDetector, nor sift_features: a peer is compared as others use it.
        found, descriptors = cv2.SIFT.create().detectAndCompute(to_gray(image), np.empty(0, dtype=np.uint8))
        strongest = np.argsort([-point.response for point in found], kind="stable")[:max_keypoints]
        points = np.array([point.pt for point in found], dtype=np.float32).reshape(-1, 2)
        return points[strongest], _root(descriptors)[strongest]

    def describe(self, image: UInt8Array, keypoints: Keypoints) -> Float32Array:
        """(N, 128) float32, of unit Euclidean norm.

        Raises:
            ValueError: the keypoints have no scales or no angles.
        """
        if keypoints.scales is None or keypoints.angles is None:
            raise ValueError("keypoints have no scales or no angles; RootSIFT describes those of SIFT or alike")
        points = keypoints.to_cv2()
        for point in points:
            point.octave = _sift_octave(point.size)
            # Where OpenCV's own detector would have put it.
            point.pt = (point.pt[0] + float(UPSCALING_SHIFT), point.pt[1] + float(UPSCALING_SHIFT))
        # OpenCV's descriptor alone; SIFTDetector is its detector.
        _, descriptors = cv2.SIFT.create().compute(to_gray(image), points)
        return _root(descriptors)


@dataclasses.dataclass(frozen=True)
class ORB:
    """OpenCV's ORB (Rublee et al., ICCV 2011), with its own keypoints.

    Its 256 bits are numbers here, 0 or 1/16, so that the square of a Euclidean distance is a share of differing bits:
    nearest neighbours are those of Hamming distances.
    """

    name: str = "orb"

    @property
    def settings(self) -> Mapping[str, Any]:
        """The version of OpenCV, whose defaults are used."""
        return {"opencv": cv2.__version__}

    def extract(self, image: UInt8Array, max_keypoints: int) -> tuple[Float32Array, Float32Array]:
        """(N, 2) keypoints in pixels and (N, 256) descriptors."""
        found, bits = cv2.ORB.create(nfeatures=max_keypoints).detectAndCompute(
            to_gray(image), np.empty(0, dtype=np.uint8)
        )
        # It may find a few more than it is asked for.
        points = np.array([point.pt for point in found], dtype=np.float32).reshape(-1, 2)[:max_keypoints]
        rows = np.zeros((0, 32), np.uint8) if bits is None else np.asarray(bits, np.uint8)[:max_keypoints]
        return points, np.unpackbits(rows, axis=1).astype(np.float32) / np.float32(16)


def _root(descriptors: npt.NDArray[Any] | None) -> Float32Array:
    """SIFT to RootSIFT. OpenCV gives None for no keypoints."""
    rows = np.zeros((0, 128), dtype=np.float32) if descriptors is None else np.asarray(descriptors, dtype=np.float32)
    return np.asarray(np.sqrt(rows / np.maximum(rows.sum(axis=1, keepdims=True), 1e-12)), dtype=np.float32)


def _sift_octave(size: float, layers: int = 3, sigma: float = 1.6) -> int:
    """The pyramid level of a keypoint, packed as OpenCV packs it: it cannot be had from a detector's points otherwise.

    SIFT's keypoint of octave o (-1 is the doubled image) and layer l has the diameter 2 sigma 2^(o + l / layers), l
    in 1..layers give or take half a layer.
    """
    level = round(layers * float(np.log2(size / (2 * sigma))))
    octave = (level - 1) // layers
    return (octave & 255) | ((level - octave * layers) << 8)
