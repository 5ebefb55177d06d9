"""Find points of one photograph in another, without any keypoints there, and draw them with their uncertainty.

python examples/locate_points.py located.png
"""

import sys
from pathlib import Path

import cv2
import numpy as np

from capsdesc import CAPSExtractor
from capsdesc.visualization import draw_located

DATA = Path(__file__).parent / "data"


def main(output: str = "located.png") -> None:
    image0, image1 = DATA / "tankard_0.jpg", DATA / "tankard_1.jpg"
    points = np.array([[150, 455], [270, 375], [480, 85], [405, 230], [430, 330], [515, 130], [590, 200]])

    located = CAPSExtractor().locate(points, image0, image1)
    for (x0, y0), (x1, y1), std in zip(points, located.points, located.std, strict=True):
        print(f"({x0:5.1f}, {y0:5.1f}) -> ({x1:5.1f}, {y1:5.1f}) +- {std:.1f} px")

    picture = draw_located(image0, image1, points, located.points, np.asarray(located.std))
    cv2.imwrite(output, cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    print(f"wrote {output}")


if __name__ == "__main__":
    main(*sys.argv[1:2])
