"""Photographs with known cameras for the other examples: the corner of a room papered with the example photographs.

Writes images/0.png, 1.png, ..., a further photograph query.png, and cameras.json, in the form of data/cameras.json.
With --walk it writes what a camera sees that walks by, in the form of the TUM RGB-D benchmark: rgb.txt, groundtruth.txt
and rgb/000000.png, ...

python examples/make_scene.py scene
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import cv2
import numpy as np
from scipy.spatial.transform import Rotation

from capsdesc.images import read_image
from capsdesc.types import Array

DATA = Path(__file__).parent / "data"
WIDTH, HEIGHT = 480, 360
K = np.array([[430.0, 0, (WIDTH - 1) / 2], [0, 430.0, (HEIGHT - 1) / 2], [0, 0, 1]])
# Rendered so many times larger and shrunk, so that nothing is aliased.
OVERSAMPLING = 2
# File and its part, turned by 180 degrees where it would show what another plane shows; then, in a world of x to the
# right and y down, the plane's top left corner, its upper edge and its left edge. The planes meet at the origin.
PLANES = (
    ("relief_1.jpg", np.s_[60:520], [-1.7, -1.6, -1.0], [1.7, 0, 1.0], [0, 1.9, 0]),
    ("tankard_0.jpg", np.s_[40:560, 20:], [0, -1.6, 0], [1.5, 0, -1.2], [0, 1.9, 0]),
    ("relief_0.jpg", np.s_[:190:-1, ::-1], [0, 0.3, 0], [1.5, 0, -1.2], [-1.7, 0, -1.0]),
)


def look_at_corner(azimuth: float, elevation: float, distance: float) -> tuple[Array, Array]:
    """World-to-camera R and t of a camera that looks at the room's corner; angles in degrees."""
    R = Rotation.from_euler("xy", [elevation, azimuth], degrees=True).as_matrix()
    return R, np.array([0, 0.2, distance])


def render(R: Array, t: Array) -> Array:
    """What the camera sees, (HEIGHT, WIDTH, 3) RGB."""
    size = (OVERSAMPLING * WIDTH, OVERSAMPLING * HEIGHT)
    # Pixel centres are at integers, so scaling an image by s takes x to s (x + 0.5) - 0.5.
    shift = (OVERSAMPLING - 1) / 2
    enlarge = np.array([[OVERSAMPLING, 0, shift], [0, OVERSAMPLING, shift], [0, 0, 1.0]])
    picture = np.full((size[1], size[0], 3), 60, dtype=np.uint8)
    for name, part, corner, right, down in PLANES:
        paper = np.ascontiguousarray(read_image(DATA / name)[part])
        height, width = paper.shape[:2]
        to_unit = np.array([[1 / width, 0, 0.5 / width], [0, 1 / height, 0.5 / height], [0, 0, 1]])
        H = enlarge @ K @ np.column_stack([R @ right, R @ down, R @ corner + t]) @ to_unit
        cv2.warpPerspective(paper, H, size, picture, cv2.INTER_LINEAR, cv2.BORDER_TRANSPARENT)
    return np.asarray(cv2.resize(picture, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA))


def make_scene(folder: Path, count: int = 8) -> None:
    """Write ``count`` photographs, the query and their cameras."""
    poses = {"query.png": look_at_corner(4, 27, 3.2)}
    for k, azimuth in enumerate(np.linspace(-24, 24, count)):
        poses[f"images/{k}.png"] = look_at_corner(azimuth, 22 + 9 * (k % 2), 3 + 0.3 * (k % 3))
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for name, (R, t) in poses.items():
        cv2.imwrite(str(folder / name), cv2.cvtColor(render(R, t), cv2.COLOR_RGB2BGR))
    cameras = {name: {"K": K.tolist(), "R": R.tolist(), "t": t.tolist()} for name, (R, t) in poses.items()}
    (folder / "cameras.json").write_text(json.dumps(cameras, indent=1) + "\n", encoding="utf-8")


def make_walk(folder: Path, count: int = 16) -> None:
    """Write ``count`` frames, ten a second, and their cameras."""
    (folder / "rgb").mkdir(parents=True, exist_ok=True)
    listed, poses = ["# timestamp filename"], ["# timestamp tx ty tz qx qy qz qw"]
    for k, way in enumerate(np.linspace(0, 1, count)):
        # Nearer and farther, up and down, so that steps are not of one length.
        R, t = look_at_corner(-25 + 50 * way**1.3, 24 + 5 * np.sin(5 * way), 3.4 - 0.8 * way)
        name = f"rgb/{k:06d}.png"
        cv2.imwrite(str(folder / name), cv2.cvtColor(render(R, t), cv2.COLOR_RGB2BGR))
        listed.append(f"{k / 10:.6f} {name}")
        pose = [*(-R.T @ t), *Rotation.from_matrix(R.T).as_quat()]
        poses.append(" ".join([f"{k / 10:.6f}", *(f"{value:.7f}" for value in pose)]))
    for file, lines in (("rgb.txt", listed), ("groundtruth.txt", poses)):
        (folder / file).write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="Render photographs with known cameras.")
    parser.add_argument("folder", nargs="?", type=Path, default=Path("scene"), help="(default: %(default)s)")
    parser.add_argument("--walk", action="store_true", help="frames of a camera that walks by")
    options = parser.parse_args()
    folder = options.folder
    (make_walk if options.walk else make_scene)(folder)
    print(f"wrote {folder}")


if __name__ == "__main__":
    main()
