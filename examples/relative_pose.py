"""Match two photographs, estimate the relative pose, and compare it with structure from motion.

python examples/relative_pose.py
"""

import json
from pathlib import Path

import numpy as np

from capsdesc import CAPSExtractor, estimate_pose, match
from capsdesc.geometry import relative_pose, rotation_error, translation_error

DATA = Path(__file__).parent / "data"


def main() -> None:
    cameras = json.loads((DATA / "cameras.json").read_text())
    camera0, camera1 = (
        {name: np.array(value) for name, value in cameras[file].items()} for file in ("tankard_0.jpg", "tankard_1.jpg")
    )

    caps = CAPSExtractor()
    features0 = caps.extract(DATA / "tankard_0.jpg")
    features1 = caps.extract(DATA / "tankard_1.jpg")
    matches = match(features0, features1)
    points0 = features0.keypoints[matches.indices[:, 0]]
    points1 = features1.keypoints[matches.indices[:, 1]]
    pose = estimate_pose(points0, points1, camera0["K"], camera1["K"])
    if pose is None:
        raise SystemExit("no pose found")

    R, t = relative_pose(camera0["R"], camera0["t"], camera1["R"], camera1["t"])
    print(f"{len(matches)} matches, {int(pose.inliers.sum())} inliers")
    print(f"rotation error    {rotation_error(pose.R, R):.2f} degrees")
    print(f"translation error {translation_error(pose.t, t):.2f} degrees")


if __name__ == "__main__":
    main()
