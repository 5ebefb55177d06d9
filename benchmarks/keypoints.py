"""A picture of the strongest keypoints of several methods on one photograph, beside each other."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from capsdesc.evaluation.methods import SHARED_DETECTORS, get_shared_detector
from capsdesc.images import read_image
from capsdesc.io.files import atomic_path
from capsdesc.types import Keypoints, UInt8Array

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PHOTOGRAPH = Path(__file__).parents[1] / "examples" / "data" / "tankard_0.jpg"
TITLES = {"sift": "SIFT", "caps": "capsdesc", "xfeat": "XFeat", "disk": "DISK", "aliked": "ALIKED"}
COLUMNS = 3
DOT = 2.0  # points


def main(arguments: Sequence[str] | None = None) -> int:
    """Find the keypoints and draw them; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photograph", nargs="?", type=Path, default=PHOTOGRAPH, help="(default: of the examples)")
    parser.add_argument("--methods", default=",".join(SHARED_DETECTORS), help="by commas (default: %(default)s)")
    parser.add_argument("--weights", help="bundled name, file, folder or hub name (default: the bundled weights)")
    parser.add_argument("--max-keypoints", type=int, default=500, metavar="N", help="(default: %(default)s)")
    parser.add_argument("--device", help="(default: a GPU if there is one)")
    parser.add_argument("-o", "--output", type=Path, default=Path("keypoints.jpg"), help="(default: %(default)s)")
    options = parser.parse_args(arguments)
    image = read_image(options.photograph)
    found = {}
    for name in options.methods.split(","):
        detector = get_shared_detector(name, weights=options.weights, device=options.device)
        found[TITLES[name]] = detector.detect(image, options.max_keypoints)
        print(f"{TITLES[name]}: {len(found[TITLES[name]])} keypoints")
    figure = plot_keypoints(image, found)
    with atomic_path(options.output) as temporary:
        figure.savefig(temporary, format=options.output.suffix.removeprefix("."), dpi=120)
    return 0


def plot_keypoints(image: UInt8Array, found: Mapping[str, Keypoints]) -> Figure:
    """The (H, W, 3) RGB image once for each method, a dot at each of its keypoints, in rows of three."""
    from matplotlib.figure import Figure

    columns = min(COLUMNS, len(found))
    rows = -(-len(found) // columns)
    height, width = image.shape[:2]
    figure = Figure(figsize=(10, 10 * (rows * height) / (columns * width) + 0.3 * rows), layout="compressed")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, (title, keypoints) in zip(grid.flat, found.items(), strict=False):
        axes.imshow(image)
        axes.set_autoscale_on(False)
        axes.set_title(title)
        x, y = np.asarray(keypoints.points).T
        # On a dark rim, so that they show on any background.
        axes.scatter(x, y, s=DOT**2, c="yellow", edgecolors="black", linewidths=0.3)
    return figure


if __name__ == "__main__":
    sys.exit(main())
