"""Robust estimation by PoseLib: LO-RANSAC with its own refinement."""

from __future__ import annotations

from typing import Any

import numpy as np

from capsdesc.geometry.ransac import RansacOptions, valid_models, valid_poses
from capsdesc.types import Float64Array


def import_poselib() -> Any:
    """The poselib module.

    Raises:
        ImportError: it is not installed; the message says how to install it.
    """
    try:
        import poselib
    except ImportError as error:
        raise ImportError("backend='poselib' needs PoseLib: pip install 'capsdesc[poselib]'") from error
    return poselib


def find_poses(
    rays0: Float64Array, rays1: Float64Array, angle: float, options: RansacOptions
) -> list[tuple[Float64Array, Float64Array]]:
    """The rotation and translation that fit best, if there are any.

    Args:
        rays0: (M, 3) homogeneous x/z, y/z in camera 0.
        rays1: (M, 3) likewise in camera 1.
        angle: between rays that are off by the threshold in both images, to first order, in radians.
        options: of the search.
    """
    # The Sampson distance in units of the focal length: the two views share the angle.
    normalized = angle / np.sqrt(2)
    camera = {"model": "SIMPLE_PINHOLE", "width": 1, "height": 1, "params": [1.0, 0.0, 0.0]}
    pose, _ = import_poselib().estimate_relative_pose(
        rays0[:, :2],
        rays1[:, :2],
        camera,
        camera,
        {**_search(options), "max_epipolar_error": normalized},
        {"loss_scale": normalized / 2},
    )
    return valid_poses([(pose.R, pose.t)])


def find_homographies(points0: Float64Array, points1: Float64Array, options: RansacOptions) -> list[Float64Array]:
    """The (3, 3) homography that fits best, if there is one."""
    model, _ = import_poselib().estimate_homography(
        points0,
        points1,
        {**_search(options), "max_reproj_error": options.threshold},
        {"loss_scale": options.threshold / 2},
    )
    return valid_models([model])


def find_fundamentals(points0: Float64Array, points1: Float64Array, options: RansacOptions) -> list[Float64Array]:
    """The (3, 3) fundamental matrix that fits best, if there is one."""
    model, _ = import_poselib().estimate_fundamental(
        points0,
        points1,
        {**_search(options), "max_epipolar_error": options.threshold},
        {"loss_scale": options.threshold / 2},
    )
    return valid_models([model])


def _search(options: RansacOptions) -> dict[str, float | int]:
    return {
        "max_iterations": options.max_iterations,
        "min_iterations": min(1000, options.max_iterations),
        "success_prob": options.confidence,
        "seed": options.seed,
    }
