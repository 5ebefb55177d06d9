"""Posed photographs from any source, as scenes to train on.

A scene needs photographs with cameras and poses, pairs that overlap, and an idea of how deep the scene is. A COLMAP
model says all of it; other sources know poses only. For those :func:`pose_scene` fills the frustum of every photograph,
between a near and a far depth, with random *stand-in points*, and each photograph sees those that project into it. They
serve as scene points: what two photographs share is how far their frustums overlap (walls between them are not known),
crops are aimed at points both see, and query points are tried at the depths they span.

The depths are given (``depth: [near, far]``, in the unit of the poses) or measured: SIFT matches of a few pairs that
agree with the poses are triangulated, see :func:`measure_depth`.
"""

from capsdesc.training.sources.base import PosesSource, Source
from capsdesc.training.sources.caps import CapsSource
from capsdesc.training.sources.colmap import ColmapSource
from capsdesc.training.sources.depth import measure_depth
from capsdesc.training.sources.listing import SOURCES, read_sources
from capsdesc.training.sources.nerf import NerfSource
from capsdesc.training.sources.pairs import PairsSource
from capsdesc.training.sources.stand_ins import add_stand_ins, pose_scene
from capsdesc.training.sources.tum import TumSource

__all__ = [
    "SOURCES",
    "CapsSource",
    "ColmapSource",
    "NerfSource",
    "PairsSource",
    "PosesSource",
    "Source",
    "TumSource",
    "add_stand_ins",
    "measure_depth",
    "pose_scene",
    "read_sources",
]
