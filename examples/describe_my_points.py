"""Descriptors at points of one's own: here the corners that OpenCV finds, matched and checked with a homography.

python examples/describe_my_points.py
"""

from pathlib import Path

import cv2
import numpy as np

from capsdesc import CAPSExtractor, estimate_homography, match
from capsdesc.io.images import read_image

DATA = Path(__file__).parent / "data"


def corners(image: np.ndarray) -> np.ndarray:
    """(N, 2) x, y of strong corners."""
    gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    found = cv2.goodFeaturesToTrack(gray, maxCorners=1000, qualityLevel=0.005, minDistance=5)
    return np.asarray(found).reshape(-1, 2)


def main() -> None:
    image0, image1 = read_image(DATA / "relief_0.jpg"), read_image(DATA / "relief_1.jpg")
    points0, points1 = corners(image0), corners(image1)

    caps = CAPSExtractor()
    descriptors0, descriptors1 = caps.describe([image0, image1], [points0, points1])
    matches = match(descriptors0, descriptors1)
    homography = estimate_homography(points0[matches.indices[:, 0]], points1[matches.indices[:, 1]])
    if homography is None:
        raise SystemExit("no homography found")
    print(f"{len(points0)} and {len(points1)} corners, {len(matches)} matches, {int(homography.inliers.sum())} inliers")


if __name__ == "__main__":
    main()
