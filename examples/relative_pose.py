"""Match two photographs, estimate the relative pose, and draw the epipolar lines of some matches.

Without photographs of one's own, the pose is also compared with what structure from motion found for the example's.

python examples/relative_pose.py left.jpg right.jpg --focal 1200
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from capsdesc import CAPSExtractor, estimate_pose, match
from capsdesc.geometry import fundamental_from_pose, relative_pose, rotation_error, translation_error
from capsdesc.images import read_image
from capsdesc.visualization import plot_epipolar_lines

DATA = Path(__file__).parent / "data"
DRAWN = 40


def main() -> None:
    parser = argparse.ArgumentParser(description="Estimate the relative pose of two photographs of one camera.")
    parser.add_argument("photographs", nargs="*", type=Path, help="two (default: those of the tankard)")
    parser.add_argument("--focal", type=float, help="focal length in pixels (default: 1.2 times the longer edge)")
    parser.add_argument("-o", "--output", default="relative_pose.png", help="(default: %(default)s)")
    options = parser.parse_args()
    if len(options.photographs) not in (0, 2):
        parser.error(f"{len(options.photographs)} photographs; expected two, or none for the example's")

    paths = options.photographs or [DATA / "tankard_0.jpg", DATA / "tankard_1.jpg"]
    image0, image1 = (read_image(path) for path in paths)
    if options.photographs:
        K0, K1 = (guess_intrinsics(image.shape[1], image.shape[0], options.focal) for image in (image0, image1))
    else:
        stored = json.loads((DATA / "cameras.json").read_text(encoding="utf-8"))
        camera0, camera1 = ({name: np.array(value) for name, value in stored[path.name].items()} for path in paths)
        K0, K1 = camera0["K"], camera1["K"]

    caps = CAPSExtractor()
    features0, features1 = caps.extract(image0), caps.extract(image1)
    matches = match(features0, features1)
    points0, points1 = matches.points(features0, features1)
    pose = estimate_pose(points0, points1, K0, K1)
    if pose is None:
        raise SystemExit("no pose found")
    print(f"{len(matches)} matches, {pose.inliers.sum()} inliers")
    print("R", pose.R, "t", pose.t, sep="\n")
    if not options.photographs:
        R, t = relative_pose(camera0["R"], camera0["t"], camera1["R"], camera1["t"])
        print(f"rotation error    {rotation_error(pose.R, R):.2f} degrees")
        print(f"translation error {translation_error(pose.t, t):.2f} degrees")

    inliers = np.flatnonzero(pose.inliers)
    drawn = np.random.default_rng(0).choice(inliers, min(DRAWN, len(inliers)), replace=False)
    F = fundamental_from_pose(pose.R, pose.t, K0, K1)
    plot_epipolar_lines(image0, image1, points0[drawn], F, points1[drawn]).savefig(options.output, dpi=150)
    print(f"wrote {options.output}")


def guess_intrinsics(width: int, height: int, focal: float | None) -> np.ndarray:
    """(3, 3) K with the principal point in the middle."""
    focal = focal or 1.2 * max(width, height)
    return np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1]])


if __name__ == "__main__":
    main()
