"""Visual odometry: the way of one camera from the relative poses of its frames.

The folder is as those of the TUM RGB-D benchmark: rgb.txt and, for the errors, groundtruth.txt. One camera sees no
scale: lengths are carried from pair to pair by the points that both see, and the whole is laid on the ground truth by a
similarity before it is judged. Frames are taken as they are: undistort them first where the lens needs it. Without a
folder a sequence is rendered (make_scene.py).

python examples/visual_odometry.py rgbd_dataset_freiburg2_xyz --intrinsics 520.9 521.0 325.1 249.7 --every 10
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import make_scene
import numpy as np
from matplotlib.figure import Figure
from scipy.spatial.transform import Rotation

from capsdesc import CAPSExtractor, Features, estimate_pose, match
from capsdesc.geometry import rotation_error
from capsdesc.types import Array

# Poses within so many seconds of an image are its own.
MAX_DIFFERENCE = 0.02
MIN_SHARED = 10


def read_table(path: Path) -> list[list[str]]:
    """Fields of the lines that are no comments."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [line.split() for line in lines if line.strip() and not line.startswith("#")]


def odometry(caps: CAPSExtractor, paths: list[Path], K: Array, max_keypoints: int) -> list[tuple[Array, Array]]:
    """World-to-camera R and t of each frame; the world is the first camera, and the first step has length 1."""
    poses = [(np.eye(3), np.zeros(3))]
    before = caps.extract(paths[0], max_keypoints, derivatives=True)
    depths: dict[int, float] = {}  # of keypoints of the last frame, in the world's units
    length = 1.0
    for path in paths[1:]:
        features = caps.extract(path, max_keypoints, derivatives=True)
        step = two_frames(before, features, K)
        if step is None:
            raise SystemExit(f"{path} cannot be related to the frame before it; take more frames, or of more texture")
        R, t, depths0, depths1 = step
        ratios = [depths[i] / depth for i, depth in depths0.items() if i in depths]
        # Where too few points are shared, the camera is taken to be as fast as before.
        length = float(np.median(ratios)) if len(ratios) >= MIN_SHARED else length
        poses.append((R @ poses[-1][0], R @ poses[-1][1] + length * t))
        before, depths = features, {j: length * depth for j, depth in depths1.items()}
    return poses


def two_frames(
    features0: Features, features1: Features, K: Array
) -> tuple[Array, Array, dict[int, float], dict[int, float]] | None:
    """The relative pose, its t of length 1, and the depths of the keypoints of both frames that it gives."""
    matches = match(features0, features1, max_shift=3)
    points0, points1 = (np.asarray(points, np.float64) for points in matches.points(features0, features1))
    pose = estimate_pose(points0, points1, K, K)
    if pose is None:
        return None
    X = cv2.triangulatePoints(
        K @ np.eye(3, 4), K @ np.column_stack([pose.R, pose.t]), points0[pose.inliers].T, points1[pose.inliers].T
    )
    X = (X[:3] / X[3]).T
    indices = np.asarray(matches.indices)[pose.inliers]
    return (
        pose.R,
        pose.t,
        dict(zip(indices[:, 0].tolist(), X[:, 2].tolist(), strict=True)),
        dict(zip(indices[:, 1].tolist(), (X @ pose.R.T + pose.t)[:, 2].tolist(), strict=True)),
    )


def align(found: Array, true: Array) -> tuple[float, Array, Array]:
    """Scale, rotation and shift that lay points (N, 3) on others (Umeyama, PAMI 1991)."""
    a, b = found - found.mean(0), true - true.mean(0)
    U, S, Vt = np.linalg.svd(b.T @ a)
    sign = np.diag([1, 1, np.linalg.det(U @ Vt)])
    R = U @ sign @ Vt
    scale = float((S * np.diag(sign)).sum() / (a**2).sum())
    return scale, R, true.mean(0) - scale * R @ found.mean(0)


def judge(poses: list[tuple[Array, Array]], true: list[tuple[Array, Array]]) -> tuple[Array, Array]:
    """Print the errors; returns the centres of both, those that were found laid on the others."""
    centers, true_centers = (np.array([-R.T @ t for R, t in cameras]) for cameras in (poses, true))
    scale, rotation, shift = align(centers, true_centers)
    laid = scale * centers @ rotation.T + shift
    length = np.linalg.norm(np.diff(true_centers, axis=0), axis=1).sum()
    ate = np.sqrt(((laid - true_centers) ** 2).sum(axis=1).mean())
    turns, moves = [], []
    for k in range(1, len(poses)):
        (R0, t0), (R1, t1) = ((cameras[k][0] @ cameras[k - 1][0].T, cameras[k]) for cameras in (poses, true))
        found_move = scale * (t0[1] - R0 @ poses[k - 1][1])
        moves.append(np.linalg.norm(found_move - (t1[1] - R1 @ true[k - 1][1])))
        turns.append(rotation_error(R0, R1))
    move, turn = (np.sqrt(np.mean(np.square(errors))) for errors in (moves, turns))
    print(f"way           {length:.3f} m in {len(poses)} frames")
    print(f"ATE           {ate:.4f} m (RMSE, after a similarity)")
    print(f"RPE, a step   {move:.4f} m, {turn:.3f} degrees (RMSE)")
    return laid, true_centers


def ground_truth(path: Path, times: list[float]) -> list[tuple[Array, Array] | None]:
    """World-to-camera R and t of the pose nearest in time; None where there is none."""
    table = np.array(read_table(path), dtype=np.float64)
    poses: list[tuple[Array, Array] | None] = []
    for time in times:
        nearest = table[np.abs(table[:, 0] - time).argmin()]
        R = Rotation.from_quat(nearest[4:]).as_matrix().T
        poses.append((R, -R @ nearest[1:4]) if abs(nearest[0] - time) <= MAX_DIFFERENCE else None)
    return poses


def draw(centers: dict[str, Array], path: Path) -> None:
    """Ways from above and from the side, by their first two principal axes and by the first and third."""
    every = np.concatenate(list(centers.values()))
    axes = np.linalg.svd(every - every.mean(0), full_matrices=False)[2]
    figure = Figure(figsize=(10, 5), layout="constrained")
    for panel, which in zip(figure.subplots(1, 2), ([0, 1], [0, 2]), strict=True):
        for (name, way), style in zip(centers.items(), (".", "-"), strict=False):
            panel.plot(*((way - every.mean(0)) @ axes[which].T).T, style, label=name)
        panel.set_aspect("equal", adjustable="datalim")
        panel.legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description="The way of a camera from its frames.")
    parser.add_argument("folder", nargs="?", type=Path, help="with rgb.txt (default: walk, rendered)")
    parser.add_argument("--intrinsics", nargs=4, type=float, metavar=("FX", "FY", "CX", "CY"), help="in pixels")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="take each N-th frame (default: %(default)s)")
    parser.add_argument("--max-frames", type=int, metavar="N", help="stop after so many")
    parser.add_argument("--max-keypoints", type=int, default=2048, help="a frame (default: %(default)s)")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("trajectory.png"),
        help="picture; beside it .txt, as groundtruth.txt (default: %(default)s)",
    )
    options = parser.parse_args()
    if options.folder is None:
        options.folder = Path("walk")
        make_scene.make_walk(options.folder)
        K = make_scene.K
    elif options.intrinsics is None:
        parser.error("--intrinsics are needed for a folder of your own")
    if options.intrinsics is not None:
        fx, fy, cx, cy = options.intrinsics
        K = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])

    listed = read_table(options.folder / "rgb.txt")[:: options.every][: options.max_frames]
    times = [float(time) for time, _ in listed]
    poses = odometry(CAPSExtractor(), [options.folder / name for _, name in listed], K, options.max_keypoints)
    centers = {"found": np.array([-R.T @ t for R, t in poses])}
    if (options.folder / "groundtruth.txt").exists():
        true = ground_truth(options.folder / "groundtruth.txt", times)
        both = [(pose, other) for pose, other in zip(poses, true, strict=True) if other is not None]
        if len(both) >= 3:
            laid, true_centers = judge([pose for pose, _ in both], [other for _, other in both])
            centers = {"found": laid, "ground truth": true_centers}
    with options.output.with_suffix(".txt").open("w", encoding="utf-8") as file:
        for time, (R, t) in zip(times, poses, strict=True):
            values = [*(-R.T @ t), *Rotation.from_matrix(R.T).as_quat()]
            file.write(" ".join([f"{time:.6f}", *(f"{value:.7f}" for value in values)]) + "\n")
    draw(centers, options.output)
    print(f"wrote {options.output.with_suffix('.txt')} and {options.output}")


if __name__ == "__main__":
    main()
