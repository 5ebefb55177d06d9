"""How well photographs match that were turned by any angle, beside the same photographs as they are.

The second image of each pair is turned on a canvas that holds it whole, before keypoints are found in it.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from capsdesc import CAPSExtractor, Features, match
from capsdesc.images import read_image
from capsdesc.types import Array

UPRIGHT = ("bikes", "graf", "leuven", "trees", "ubc", "wall")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print the table; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("oxford", type=Path, help="the sequences of Oxford affine")
    parser.add_argument("--other", type=int, default=3, help="number of the image that is matched with the first (3)")
    parser.add_argument("--angles", type=float, nargs="+", default=[0, 10, 22.5, 34, 45, 90, 155, 180, 247, 270])
    parser.add_argument("--weights", help="bundled name, file, folder or hub name (default: the bundled weights)")
    parser.add_argument("--detector", help="caps or sift (default: as of CAPSExtractor)")
    options = parser.parse_args(arguments)
    caps = CAPSExtractor(options.weights, detector=options.detector)
    rows: dict[str, list[float]] = {"upright, not turned": []}
    for name in tqdm(UPRIGHT, unit="pair"):
        image0, image1 = (read_image(options.oxford / name / f"img{k}.png") for k in (1, options.other))
        homography = np.loadtxt(options.oxford / name / f"H1to{options.other}p")
        upright = [caps.extract(image) for image in (image0, image1)]
        rows["upright, not turned"].append(_accuracy(upright[0], upright[1], homography))
        features0 = caps.extract(image0, orientation="any")
        for angle in options.angles:
            turned, matrix = _turn(image1, angle)
            features1 = caps.extract(turned, orientation="any")
            accuracy = _accuracy(features0, features1, matrix @ homography)
            rows.setdefault(f"any orientation, turned by {angle:g} degrees", []).append(accuracy)
    print(f"| MMA at 3 px, image 1 with image {options.other} | {' | '.join(UPRIGHT)} | mean |")
    print("|---" * (len(UPRIGHT) + 2) + "|")
    for title, values in rows.items():
        print(f"| {title} | {' | '.join(f'{value:.3f}' for value in [*values, float(np.mean(values))])} |")
    return 0


def _turn(image: Array, degrees: float) -> tuple[npt.NDArray[np.uint8], Array]:
    """The image turned clockwise about its centre, and the (3, 3) map of its pixels."""
    height, width = image.shape[:2]
    edge = math.ceil(math.hypot(height, width)) + 1
    matrix = np.eye(3)
    matrix[:2] = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), -degrees, 1.0)
    matrix[:2, 2] += (edge - 1) / 2 - np.array([(width - 1) / 2, (height - 1) / 2])
    turned = cv2.warpAffine(image, matrix[:2], (edge, edge), flags=cv2.INTER_CUBIC)
    return np.asarray(turned, dtype=np.uint8), matrix


def _accuracy(features0: Features, features1: Features, homography: Array) -> float:
    """Share of the mutual nearest neighbours within 3 px of the right place."""
    found = match(features0, features1).points(features0, features1)
    points0, points1 = (np.asarray(points, dtype=np.float64) for points in found)
    x, y, w = homography @ np.c_[points0, np.ones(len(points0))].T
    distances = np.linalg.norm(np.c_[x / w, y / w] - points1, axis=1)
    return float((distances <= 3).mean()) if len(distances) else 0.0


if __name__ == "__main__":
    sys.exit(main())
