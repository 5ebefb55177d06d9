"""Matches to geometry: relative pose, homography, fundamental matrix, and the distances and errors that judge them.

Points are (N, 2) x, y in pixels, pixel (0, 0) being the centre of the top-left pixel. They may be numpy arrays, torch
tensors on any device, lists of `cv2.KeyPoint`, or objects with such `points`; results are numpy arrays in
float64. Image 0 comes first throughout: a pose takes camera 0 to camera 1, x1 ~ K1 (R X + t) for x0 ~ K0 X, a
homography is x1 ~ H x0, and x1^T F x0 = 0.

The robust estimators share one meaning of `threshold`: how many pixels a match may be off and still be an inlier. For
epipolar geometry that is the Sampson distance, measured in each camera's own pixels, so that cameras of different focal
lengths are weighted as they should be; for a homography it is the transfer error in image 1.
"""

from capsdesc.checks import as_intrinsics, as_rotation
from capsdesc.geometry.epipolar import (
    epipolar_distance,
    essential_from_pose,
    fundamental_from_pose,
    relative_pose,
    sampson_distance,
)
from capsdesc.geometry.errors import homography_corner_error, rotation_error, translation_error
from capsdesc.geometry.estimate import estimate_affine, estimate_fundamental, estimate_homography, estimate_pose
from capsdesc.geometry.points import project_homography
from capsdesc.geometry.ransac import Backend
from capsdesc.types import Fundamental, HasPoints, Homography, Matrix, Points, RelativePose

__all__ = [
    "Backend",
    "Fundamental",
    "HasPoints",
    "Homography",
    "Matrix",
    "Points",
    "RelativePose",
    "as_intrinsics",
    "as_rotation",
    "epipolar_distance",
    "essential_from_pose",
    "estimate_affine",
    "estimate_fundamental",
    "estimate_homography",
    "estimate_pose",
    "fundamental_from_pose",
    "homography_corner_error",
    "project_homography",
    "relative_pose",
    "rotation_error",
    "sampson_distance",
    "translation_error",
]
