"""Local feature descriptors at your own points, learned from camera poses.

Wang et al., "Learning Feature Descriptors Using Camera Pose Supervision", ECCV 2020.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from capsdesc.describe.extractor import CAPSExtractor
    from capsdesc.geometry import estimate_fundamental, estimate_homography, estimate_pose
    from capsdesc.matching import match
    from capsdesc.matching.context import CAPSMatcher
    from capsdesc.types import Features, Fundamental, Homography, Keypoints, Located, Matches, RelativePose

    __version__: str

__all__ = [
    "CAPSExtractor",
    "CAPSMatcher",
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

# What is not in capsdesc.types. All is loaded when it is first asked for, so that whoever reads a file of features does
# not wait for networks.
_HOMES = {
    "CAPSExtractor": "capsdesc.describe.extractor",
    "CAPSMatcher": "capsdesc.matching.context",
    "estimate_fundamental": "capsdesc.geometry",
    "estimate_homography": "capsdesc.geometry",
    "estimate_pose": "capsdesc.geometry",
    "match": "capsdesc.matching",
}
_PACKAGES = ("describe", "geometry", "images", "io", "keypoints", "matching", "models", "types", "weights")


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value = importlib.import_module("importlib.metadata").version("capsdesc")
    elif name in __all__:
        value = getattr(importlib.import_module(_HOMES.get(name, "capsdesc.types")), name)
    elif name in _PACKAGES:
        value = importlib.import_module(f"capsdesc.{name}")
    else:
        raise AttributeError(f"module 'capsdesc' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), "__version__", *__all__, *_PACKAGES})
