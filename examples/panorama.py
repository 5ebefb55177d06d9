"""Stitch overlapping photographs of a plane, or taken from one place, in the order in which they overlap.

python examples/panorama.py left.jpg middle.jpg right.jpg -o panorama.png
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from capsdesc import CAPSExtractor, estimate_homography, match
from capsdesc.geometry import project_homography
from capsdesc.images import read_image
from capsdesc.types import Array

DATA = Path(__file__).parent / "data"
MAX_PIXELS = 200_000_000


def chain(caps: CAPSExtractor, images: Sequence[Array], max_keypoints: int) -> list[Array]:
    """For each image the homography that takes its pixels to those of the middle one."""
    features = [caps.extract(image, max_keypoints) for image in images]
    to_first = [np.eye(3)]
    for k in range(1, len(images)):
        matches = match(features[k], features[k - 1])
        found = estimate_homography(*matches.points(features[k], features[k - 1]))
        if found is None:
            raise SystemExit(f"photographs {k - 1} and {k} cannot be related to each other")
        print(f"photographs {k - 1} and {k}: {len(matches)} matches, {found.inliers.sum()} inliers")
        to_first.append(to_first[-1] @ found.H)
    return [np.linalg.inv(to_first[len(images) // 2]) @ H for H in to_first]


def blend(images: Sequence[Array], homographies: Sequence[Array]) -> Array:
    """All images in one; where several overlap, each counts the more the farther its edge is."""
    corners = []
    for image, H in zip(images, homographies, strict=True):
        height, width = image.shape[:2]
        outline = np.array([[0, 0], [width, 0], [width, height], [0, height]]) - 0.5
        if (np.column_stack([outline, np.ones(4)]) @ H[2] <= 0).any():
            raise SystemExit("a photograph reaches beyond the horizon of the middle one")
        corners.append(project_homography(H, outline))
    left, top = np.floor(np.min(corners, axis=(0, 1)) + 0.5)
    right, bottom = np.ceil(np.max(corners, axis=(0, 1)) + 0.5)
    size = int(right - left), int(bottom - top)
    if size[0] * size[1] > MAX_PIXELS:
        raise SystemExit(f"the panorama would have {size[0]} x {size[1]} pixels; shrink the photographs")

    shift = np.array([[1, 0, -left], [0, 1, -top], [0, 0, 1]])
    total, weights = np.zeros((size[1], size[0], 3), np.float32), np.zeros((size[1], size[0], 1), np.float32)
    for image, H in zip(images, homographies, strict=True):
        inside = np.pad(np.ones(image.shape[:2], np.uint8), 1)
        to_edge = cv2.distanceTransform(inside, cv2.DIST_L2, 5)[1:-1, 1:-1]
        weight = cv2.warpPerspective(to_edge, shift @ H, size)[..., None]
        total += weight * cv2.warpPerspective(image, shift @ H, size, borderMode=cv2.BORDER_REPLICATE)
        weights += weight
    panorama: Array = np.rint(total / np.maximum(weights, 1e-6)).astype(np.uint8)
    return panorama


def main() -> None:
    defaults = [DATA / "relief_0.jpg", DATA / "relief_1.jpg"]
    parser = argparse.ArgumentParser(description="Stitch photographs.")
    parser.add_argument("photographs", nargs="*", type=Path, default=defaults, help="two or more")
    parser.add_argument("-o", "--output", default="panorama.png", help="(default: %(default)s)")
    parser.add_argument("--max-keypoints", type=int, default=2048, help="(default: %(default)s)")
    options = parser.parse_args()
    if len(options.photographs) < 2:
        parser.error("expected two or more photographs")

    images = [read_image(path) for path in options.photographs]
    homographies = chain(CAPSExtractor(), images, options.max_keypoints)
    panorama = blend(images, homographies)
    cv2.imwrite(options.output, cv2.cvtColor(panorama, cv2.COLOR_RGB2BGR))
    print(f"wrote {options.output}, {panorama.shape[1]} x {panorama.shape[0]} pixels")


if __name__ == "__main__":
    main()
