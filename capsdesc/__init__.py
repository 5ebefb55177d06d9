"""Local feature descriptors at your own points, learned from camera poses.

Wang et al., "Learning Feature Descriptors Using Camera Pose Supervision", ECCV 2020.
"""

from capsdesc.extractor import CAPSExtractor, Features, Located
from capsdesc.geometry import (
    Fundamental,
    Homography,
    RelativePose,
    estimate_fundamental,
    estimate_homography,
    estimate_pose,
)
from capsdesc.keypoints import Keypoints
from capsdesc.matching import Matches, match

__all__ = [
    "CAPSExtractor",
    "Features",
    "Fundamental",
    "Homography",
    "Keypoints",
    "Located",
    "Matches",
    "RelativePose",
    "estimate_fundamental",
    "estimate_homography",
    "estimate_pose",
    "match",
]
