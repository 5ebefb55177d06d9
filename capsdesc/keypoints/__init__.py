"""Where to describe: keypoints in any form, and the detectors that find them."""

from capsdesc.checks import check_inside
from capsdesc.keypoints.detectors import DEFAULT_DETECTOR, DETECTORS, OWN, Detector, default_detector, get_detector
from capsdesc.keypoints.sift import SIFTDetector
from capsdesc.keypoints.superpoint import SuperPointDetector
from capsdesc.types import Keypoints, KeypointsLike, as_keypoints, as_points

__all__ = [
    "DEFAULT_DETECTOR",
    "DETECTORS",
    "OWN",
    "Detector",
    "Keypoints",
    "KeypointsLike",
    "SIFTDetector",
    "SuperPointDetector",
    "as_keypoints",
    "as_points",
    "check_inside",
    "default_detector",
    "get_detector",
]
