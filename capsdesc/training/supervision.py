"""What is known of training pairs, and how far answers are from it."""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclasses.dataclass(frozen=True, eq=False)
class Supervision:
    """What is known about where query points of image 0 lie in image 1.

    Attributes:
        points: (B, N, 2) query points in image 0, pixels.
        valid: (B, N) bool; padding and points that cannot be seen in image 1 are False.
        fundamental: (B, 3, 3) of unit norm, x1^T F x0 = 0; read where ``planar`` is False.
        homography: (B, 3, 3), x1 ~ H x0; read where ``planar`` is True.
        planar: (B,) bool; whether the pair is related by a homography and the exact place is known.
        keypoints0: (B, K, 2) keypoints that a detector finds in image 0, pixels; K may be 0.
        keypoints1: (B, K, 2) likewise in image 1.
        detected0: (B, K) bool; False is padding.
        detected1: (B, K) likewise of image 1.
        grids: (B, 2, 2) int64, x and y of where the grids begin in whose cells keypoints of image 0 and of image 1 are
            drawn, 0 to CELL - 1; see :mod:`capsdesc.training.keypoint_losses`.
    """

    points: Tensor
    valid: Tensor
    fundamental: Tensor
    homography: Tensor
    planar: Tensor
    keypoints0: Tensor
    keypoints1: Tensor
    detected0: Tensor
    detected1: Tensor
    grids: Tensor

    def to(self, device: torch.device | str) -> Supervision:
        """The same on a device."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return Supervision(**{name: value.to(device, non_blocking=True) for name, value in fields.items()})


def homogeneous(points: Tensor) -> Tensor:
    """(..., 2) to (..., 3) with a last coordinate of one."""
    return F.pad(points, (0, 1), value=1.0)


def epipolar_distance(points0: Tensor, points1: Tensor, fundamental: Tensor) -> Tensor:
    """Distance of points in image 1 to the epipolar lines of points in image 0 (equation 1).

    Args:
        points0: (B, N, 2) pixels.
        points1: (B, N, 2) pixels.
        fundamental: (B, 3, 3), x1^T F x0 = 0.

    Returns:
        (B, N) distances in pixels.
    """
    lines = homogeneous(points0) @ fundamental.transpose(1, 2)
    normals = lines[..., :2].norm(dim=-1).clamp_min(1e-12)
    distances: Tensor = (homogeneous(points1) * lines).sum(-1).abs() / normals
    return distances


def transfer(points: Tensor, homography: Tensor) -> Tensor:
    """(B, N, 2) points moved by (B, 3, 3) homographies; a point at infinity stays finite but far away."""
    moved = homogeneous(points) @ homography.transpose(1, 2)
    depth = moved[..., 2:]
    return moved[..., :2] / torch.where(depth.abs() < 1e-8, torch.full_like(depth, 1e-8), depth)


def match_error(points1: Tensor, supervision: Supervision) -> Tensor:
    """(B, N) error of the answers (B, N, 2) in pixels: distance to the epipolar line, or to the known place."""
    line = epipolar_distance(supervision.points, points1, supervision.fundamental)
    if not bool(supervision.planar.any()):
        return line
    place = (points1 - transfer(supervision.points, supervision.homography)).norm(dim=-1)
    return torch.where(supervision.planar[:, None], place, line)
