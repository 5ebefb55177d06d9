"""Find points of one photograph in another, without any keypoints there, and draw them with their uncertainty.

python examples/locate_points.py left.jpg right.jpg --points 150,455 270,375
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np

from capsdesc import CAPSExtractor
from capsdesc.visualization import draw_located

DATA = Path(__file__).parent / "data"
ON_THE_TANKARD = [[150, 455], [270, 375], [480, 85], [405, 230], [430, 330], [515, 130], [590, 200]]


def point(text: str) -> list[float]:
    x, y = text.split(",")
    return [float(x), float(y)]


def main() -> None:
    parser = argparse.ArgumentParser(description="Find points of one photograph in another.")
    parser.add_argument("photograph0", nargs="?", type=Path, default=DATA / "tankard_0.jpg")
    parser.add_argument("photograph1", nargs="?", type=Path, default=DATA / "tankard_1.jpg")
    parser.add_argument("--points", nargs="+", type=point, default=ON_THE_TANKARD, metavar="X,Y", help="pixels")
    parser.add_argument("-o", "--output", default="located.png", help="picture (default: %(default)s)")
    options = parser.parse_args()

    points = np.array(options.points)
    located = CAPSExtractor().locate(points, options.photograph0, options.photograph1)
    for (x0, y0), (x1, y1), std in zip(points, located.points, located.std, strict=True):
        print(f"({x0:5.1f}, {y0:5.1f}) -> ({x1:5.1f}, {y1:5.1f}) +- {std:.1f} px")

    picture = draw_located(options.photograph0, options.photograph1, points, located.points, np.asarray(located.std))
    cv2.imwrite(options.output, cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    print(f"wrote {options.output}")


if __name__ == "__main__":
    main()
