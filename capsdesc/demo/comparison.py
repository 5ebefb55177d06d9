"""What two photographs have in common, with the pictures and the words to show it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import cv2
import numpy as np

from capsdesc.demo.photographs import Photograph
from capsdesc.describe.extractor import CAPSExtractor
from capsdesc.geometry import estimate_homography, estimate_pose, fundamental_from_pose
from capsdesc.matching import MAX_SHIFT, match
from capsdesc.types import Array, Homography, MatchMethod, RelativePose, UInt8Array
from capsdesc.visualization import draw_points, plot_descriptors, plot_epipolar_lines, plot_matches

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_KEYPOINTS = 2048
EPIPOLAR_LINES = 24
NAMES = "A", "B"
WORDS: dict[MatchMethod, str] = {
    "nearest": "mutual nearest neighbours",
    "context": "by a network that looks at what is around each keypoint, of those",
}
"""What matches are, by how they were found."""


@dataclasses.dataclass(frozen=True, eq=False)
class Look:
    """One look at the comparison: a picture, or None where there is nothing to show, and a sentence in Markdown."""

    figure: Figure | None
    text: str


@dataclasses.dataclass(frozen=True, eq=False)
class Comparison:
    """What two photographs have in common.

    Attributes:
        matches: all matches.
        pose: inliers of the relative pose.
        epipolar: epipolar lines of some of these.
        homography: inliers of a homography.
        descriptors: the descriptor maps in colours.
    """

    matches: Look
    pose: Look
    epipolar: Look
    homography: Look
    descriptors: Look


def find(
    caps: CAPSExtractor, photographs: tuple[Photograph, Photograph], source: int, point: Sequence[float]
) -> tuple[tuple[UInt8Array, UInt8Array], str]:
    """Where a point of one photograph is in the other.

    Args:
        caps: the extractor.
        photographs: A and B.
        source: 0 if the point lies in A, 1 if in B.
        point: x, y in pixels.

    Returns:
        Both photographs with the point marked, the answer with a circle of one deviation; and a sentence.

    Raises:
        ValueError: the point lies outside the photograph.
    """
    query = np.asarray([point], dtype=np.float32)
    here, there = photographs[source].pixels, photographs[1 - source].pixels
    located = caps.locate(query, here, there)
    found, std = np.asarray(located.points), np.asarray(located.std)
    marked = draw_points(here, query), draw_points(there, found, std)
    (x0, y0), (x1, y1) = query[0], found[0]
    text = (
        f"({x0:.0f}, {y0:.0f}) in {NAMES[source]} is at **({x1:.1f}, {y1:.1f})** in {NAMES[1 - source]}, with a "
        f"standard deviation of **{std[0]:.1f} px**: the larger, the less sure."
    )
    return (marked if source == 0 else marked[::-1]), text


def compare(
    caps: CAPSExtractor,
    photographs: tuple[Photograph, Photograph],
    focals: tuple[float | None, float | None] = (None, None),
    method: MatchMethod = "nearest",
) -> Comparison:
    """Match two photographs and estimate their geometry.

    Args:
        caps: the extractor.
        photographs: A and B.
        focals: focal lengths in pixels, None for the photographs' own.
        method: as for :func:`capsdesc.match`.

    Raises:
        ValueError: a focal length is not positive, or the method does not take these descriptors.
    """
    K0, K1 = (photograph.intrinsics(focal) for photograph, focal in zip(photographs, focals, strict=True))
    images = photographs[0].pixels, photographs[1].pixels
    features0, features1 = (caps.extract(image, MAX_KEYPOINTS, derivatives=True) for image in images)
    matches = match(features0, features1, max_shift=MAX_SHIFT, method=method)
    points0, points1 = map(np.asarray, matches.points(features0, features1))
    pose = estimate_pose(points0, points1, K0, K1)
    homography = estimate_homography(points0, points1)
    return Comparison(
        matches=Look(
            plot_matches(*images, points0, points1),
            f"**{len(matches)} matches** of {len(features0)} keypoints in A and {len(features1)} in B: {WORDS[method]} "
            "that lie where they look most alike. The colour is a point's place in A.",
        ),
        pose=_pose_view(images, points0, points1, pose),
        epipolar=_epipolar_view(images, points0, points1, pose, K0, K1),
        homography=_homography_view(images, points0, points1, homography),
        descriptors=Look(
            plot_descriptors(images, [caps.dense(image) for image in images]),
            "Similar descriptors have similar colours, in both photographs: three principal components of all of them.",
        ),
    )


def _pose_view(
    images: tuple[UInt8Array, UInt8Array], points0: Array, points1: Array, pose: RelativePose | None
) -> Look:
    if pose is None:
        return Look(None, "**No pose found**: too few matches agree on one.")
    angle = np.rad2deg(np.linalg.norm(cv2.Rodrigues(pose.R)[0]))
    x, y, z = -pose.R.T @ pose.t
    return Look(
        plot_matches(*images, points0, points1, pose.inliers),
        f"**{int(pose.inliers.sum())} of {len(points0)} matches** agree on a pose: the camera of B is turned by "
        f"**{angle:.1f} degrees** and stands in the direction ({x:.2f}, {y:.2f}, {z:.2f}) from that of A, in A's own "
        "coordinates: right, down, forward. The others are grey. The pose is as right as the focal lengths.",
    )


def _epipolar_view(
    images: tuple[UInt8Array, UInt8Array],
    points0: Array,
    points1: Array,
    pose: RelativePose | None,
    K0: Array,
    K1: Array,
) -> Look:
    if pose is None:
        return Look(None, "**No pose found**, so there are no epipolar lines.")
    inliers = np.flatnonzero(pose.inliers)
    some = np.random.default_rng(0).permutation(inliers)[:EPIPOLAR_LINES]
    F = fundamental_from_pose(pose.R, pose.t, K0, K1)
    return Look(
        plot_epipolar_lines(*images, points0[some], F, points1[some]),
        "By the pose, each point of A lies in B on the line of its colour. The dots are their matches, "
        f"{len(some)} of the inliers.",
    )


def _homography_view(
    images: tuple[UInt8Array, UInt8Array], points0: Array, points1: Array, homography: Homography | None
) -> Look:
    if homography is None:
        return Look(None, "**No homography found**: too few matches lie on one plane.")
    return Look(
        plot_matches(*images, points0, points1, homography.inliers),
        f"**{int(homography.inliers.sum())} of {len(points0)} matches** agree on a homography, as points of one plane "
        "do, or all points if the camera only turned. The others are grey.",
    )
