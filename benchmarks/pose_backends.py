"""Pose back-ends on the same matches of exact synthetic scenes: how well and how fast each finds the pose.

Points in a box before two cameras, 768 x 512 px; Gaussian noise on both points of a match, or noise with Student's t
of two degrees of freedom, whose tails are as heavy as those of real keypoints; outliers anywhere. Back-ends take turns.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np
from scipy.spatial.transform import Rotation
from tqdm import tqdm

from capsdesc import estimate_pose
from capsdesc.evaluation.metrics import error_auc
from capsdesc.geometry import rotation_error, translation_error
from capsdesc.types import Float64Array

Pose = tuple[Float64Array, Float64Array]

WIDTH, HEIGHT = 768, 512
K = np.array([[700, 0, 383.5], [0, 700, 255.5], [0, 0, 1]])


@dataclasses.dataclass(frozen=True)
class Setting:
    """How matches are made.

    Attributes:
        matches: number of them.
        outliers: share of them that are anywhere.
        noise: of each coordinate, in pixels: deviation, or scale of Student's t.
        heavy: whether the noise is Student's t.
    """

    matches: int
    outliers: float
    noise: float
    heavy: bool = False

    def __str__(self) -> str:
        kind = "heavy-tailed" if self.heavy else "Gaussian"
        return f"{self.matches} matches, {self.outliers:.0%} outliers, {self.noise:g} px {kind}"


SETTINGS = (
    Setting(500, 0.3, 0.3),
    Setting(500, 0.3, 1.0),
    Setting(60, 0.3, 0.3),
    Setting(500, 0.6, 0.3, heavy=True),
    Setting(2000, 0.6, 0.3, heavy=True),
)


def make_scene(setting: Setting, rng: np.random.Generator) -> tuple[Float64Array, Float64Array, Pose]:
    """(N, 2) matched points in both images and the true pose."""
    X = rng.uniform((-2, -1.5, 4), (2, 1.5, 8), (setting.matches, 3))
    R, t = Rotation.from_rotvec(rng.normal(0, 0.12, 3)).as_matrix(), rng.normal(0, 0.4, 3)
    shape = (2, setting.matches, 2)
    noise = setting.noise * (rng.standard_t(2, shape) if setting.heavy else rng.standard_normal(shape))
    points0, points1 = (_project(points) + shift for points, shift in zip((X, X @ R.T + t), noise, strict=True))
    wrong = rng.random(setting.matches) < setting.outliers
    points1[wrong] = rng.uniform((0, 0), (WIDTH, HEIGHT), (int(wrong.sum()), 2))
    return points0, points1, (R, t / np.linalg.norm(t))


def _project(X: Float64Array) -> Float64Array:
    projected = X @ K.T
    return np.asarray(projected[:, :2] / projected[:, 2:])


def _ours(backend: Any) -> Callable[[Float64Array, Float64Array], Pose | None]:
    def estimate(points0: Float64Array, points1: Float64Array) -> Pose | None:
        pose = estimate_pose(points0, points1, K, K, backend=backend)
        return None if pose is None else (pose.R, pose.t)

    return estimate


def _bare_opencv(points0: Float64Array, points1: Float64Array) -> Pose | None:
    E, mask = cv2.findEssentialMat(points0, points1, K, cv2.USAC_MAGSAC, 0.99999, 1.0)
    if E is None or E.shape != (3, 3):
        return None
    _, R, t, _ = cv2.recoverPose(E, points0, points1, K, mask=mask)
    return np.asarray(R, dtype=np.float64), np.asarray(t[:, 0], dtype=np.float64)


BACKENDS: dict[str, Callable[[Float64Array, Float64Array], Pose | None]] = {
    'estimate_pose(backend="opencv")': _ours("opencv"),
    'estimate_pose(backend="poselib")': _ours("poselib"),
    "cv2.findEssentialMat, USAC_MAGSAC, and recoverPose": _bare_opencv,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=100, help="for each setting (default: %(default)s)")
    options = parser.parse_args(arguments)
    cv2.setNumThreads(1)
    print("| matches | | median error, degrees | AUC at 5 degrees | ms |\n|---|---|---|---|---|")
    for setting in SETTINGS:
        rng = np.random.default_rng(0)
        errors: dict[str, list[float]] = {name: [] for name in BACKENDS}
        seconds: dict[str, list[float]] = {name: [] for name in BACKENDS}
        for _ in tqdm(range(options.scenes), desc=str(setting), disable=None):
            points0, points1, (R, t) = make_scene(setting, rng)
            for name, estimate in BACKENDS.items():
                start = time.process_time()
                pose = estimate(points0, points1)
                seconds[name].append(time.process_time() - start)
                errors[name].append(
                    np.inf if pose is None else max(rotation_error(pose[0], R), translation_error(pose[1], t))
                )
        for name in BACKENDS:
            auc = error_auc(errors[name], (5,))[0]
            cells = (str(setting), name, f"{np.median(errors[name]):.2f}", f"{auc:.3f}")
            print(f"| {' | '.join(cells)} | {1e3 * np.median(seconds[name]):.0f} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
