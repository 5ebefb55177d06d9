"""Descriptors at points of one's own: here the corners that OpenCV finds, matched and checked with a homography.

python examples/describe_my_points.py left.jpg right.jpg
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np

from capsdesc import CAPSExtractor, estimate_homography, match
from capsdesc.images import read_image
from capsdesc.visualization import draw_matches

DATA = Path(__file__).parent / "data"


def corners(image: np.ndarray) -> np.ndarray:
    """(N, 2) x, y of strong corners."""
    gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    found = cv2.goodFeaturesToTrack(gray, maxCorners=1000, qualityLevel=0.005, minDistance=5)
    return np.empty((0, 2), np.float32) if found is None else np.asarray(found).reshape(-1, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description="Match corners of two photographs of something flat.")
    parser.add_argument("photograph0", nargs="?", type=Path, default=DATA / "relief_0.jpg")
    parser.add_argument("photograph1", nargs="?", type=Path, default=DATA / "relief_1.jpg")
    parser.add_argument("-o", "--output", default="described.png", help="picture (default: %(default)s)")
    options = parser.parse_args()
    image0, image1 = read_image(options.photograph0), read_image(options.photograph1)
    points0, points1 = corners(image0), corners(image1)

    caps = CAPSExtractor()
    descriptors0, descriptors1 = caps.describe([image0, image1], [points0, points1])
    matches = match(descriptors0, descriptors1)
    matched0, matched1 = matches.points(points0, points1)
    homography = estimate_homography(matched0, matched1)
    if homography is None:
        raise SystemExit("no homography found")
    print(f"{len(points0)} and {len(points1)} corners, {len(matches)} matches, {homography.inliers.sum()} inliers")

    picture = draw_matches(image0, image1, matched0, matched1, homography.inliers)
    cv2.imwrite(options.output, cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    print(f"wrote {options.output}")


if __name__ == "__main__":
    main()
