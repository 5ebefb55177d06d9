"""Where to describe: keypoints in any form, and the detectors that find them."""

from capsdesc.keypoints.keypoints import Array, Keypoints, KeypointsLike, as_points, check_inside
from capsdesc.keypoints.sift import Detector, SIFTDetector, get_detector

__all__ = [
    "Array",
    "Detector",
    "Keypoints",
    "KeypointsLike",
    "SIFTDetector",
    "as_points",
    "check_inside",
    "get_detector",
]
