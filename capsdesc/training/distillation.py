"""Learning from a teacher: a network's maps agree with those of a larger one, at every cell of any photograph.

Hinton et al., "Distilling the Knowledge in a Neural Network", 2015. Where the student has fewer channels, the teacher's
features are projected onto their principal directions, which keeps the products between them as far as can be.
"""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from capsdesc.models.config import ModelConfig
from capsdesc.models.maps import DenseFeatures, FeatureMap, dense_features
from capsdesc.training.batches import pair_features
from capsdesc.training.dataset import Batch
from capsdesc.training.keypoint_losses import CELL, in_cells
from capsdesc.training.supervision import Supervision
from capsdesc.weights import Weights

# Weights of the parts beside the descriptors' agreement, which is 0 at best and 2 with features that have nothing to do
# with the teacher's.
RELIABILITY, KEYPOINTS, SHIFTS = 0.1, 0.2, 1.0


class Teacher:
    """A trained network whose maps another learns to agree with.

    Args:
        weights: the teacher's.
        student: config of the network that learns; of its maps those are taught that the teacher has too.
        images: (B, 3, H, W) RGB in 0..1, whose features decide on the principal directions.

    Attributes:
        fingerprint: of the weights.

    Raises:
        ValueError: the student has more channels than the teacher, keypoints or a reliability that it lacks, other
            cells, or raw features.
    """

    def __init__(self, weights: Weights, student: ModelConfig, images: Tensor) -> None:
        config = weights.config
        for name in ("coarse_dim", "fine_dim", "reliability", "keypoints"):
            asked, known = getattr(student, name), getattr(config, name)
            if asked > known:
                raise ValueError(f"the teacher {weights.source} cannot teach {name}={asked}: its own is {known}")
        for name in ("sampling", "normalize"):
            asked, known = getattr(student, name), getattr(config, name)
            if asked != known:
                raise ValueError(f"{name} is {asked!r} and the teacher's, {weights.source}, is {known!r}; expected one")
        if not config.normalize:
            raise ValueError(f"the teacher {weights.source} has raw features; expected normalized ones")
        self.fingerprint = weights.fingerprint
        self._config = config
        self._network: nn.Module = weights.build().requires_grad_(False)
        with torch.no_grad():
            dense = dense_features(self._network, config, images)
        self._to_coarse = principal_directions(dense.coarse.values, student.coarse_dim)
        self._to_fine = principal_directions(dense.fine.values, student.fine_dim)

    @torch.no_grad()
    def maps(self, batch: Batch, device: torch.device, dtype: torch.dtype) -> tuple[DenseFeatures, DenseFeatures]:
        """What the student should see in the first and in the second images."""
        self._network.to(device)
        first, second = pair_features(self._network, self._config, batch, device, dtype)
        return self._projected(first), self._projected(second)

    def _projected(self, dense: DenseFeatures) -> DenseFeatures:
        return dataclasses.replace(
            dense, coarse=_projected(dense.coarse, self._to_coarse), fine=_projected(dense.fine, self._to_fine)
        )


def principal_directions(values: Tensor, count: int) -> Tensor:
    """(count, C) orthonormal directions along which (B, C, h, w) features are largest.

    They are not centred first: what is to be kept are products of features, not of their differences.
    """
    cells = values.transpose(0, 1).flatten(1).double()
    _, directions = torch.linalg.eigh(cells @ cells.T)
    largest: Tensor = directions.T.flip(0)[:count].float()
    return largest


def _projected(features: FeatureMap, directions: Tensor) -> FeatureMap:
    values = torch.einsum("dc,bchw->bdhw", directions.to(features.values.device), features.values)
    return dataclasses.replace(features, values=F.normalize(values, dim=1))


def distillation_loss(
    features: tuple[DenseFeatures, DenseFeatures], taught: tuple[DenseFeatures, DenseFeatures], supervision: Supervision
) -> Tensor:
    """How far a student's maps of the first and the second images are from what it is taught.

    Descriptors by their cosine, the reliability by cross entropy. Of keypoints, which pixel of a cell is drawn (see
    :mod:`capsdesc.training.keypoint_losses`) and how likely each is found again, and the shifts where that is likely.

    Args:
        features: the student's maps.
        taught: from :meth:`Teacher.maps`.
        supervision: whose grids of cells are used.

    Returns:
        A scalar.
    """
    return torch.stack(
        [_one_side(*maps, supervision.grids[:, side]) for side, maps in enumerate(zip(features, taught, strict=True))]
    ).mean()


def _one_side(student: DenseFeatures, teacher: DenseFeatures, grid: Tensor) -> Tensor:
    loss = 2 - sum(
        (mine.values * theirs.values).sum(1).mean()
        for mine, theirs in ((student.coarse, teacher.coarse), (student.fine, teacher.fine))
    )
    if student.reliability is not None and teacher.reliability is not None:
        loss = loss + RELIABILITY * F.binary_cross_entropy_with_logits(
            student.reliability.values, teacher.reliability.values.sigmoid()
        )
    if student.scores is None or teacher.scores is None:
        return torch.as_tensor(loss)
    logits, wanted = student.scores.values[:, :1], teacher.scores.values[:, :1]
    chances = in_cells(wanted, grid, outside=-1e4).softmax(1)
    drawn = -(chances * in_cells(logits, grid, outside=-1e4).log_softmax(1)).sum(1).mean()
    likely = wanted.sigmoid()
    found = CELL**2 * F.binary_cross_entropy_with_logits(logits, likely)  # as of a cell, like the first
    off = (student.scores.values[:, 1:] - teacher.scores.values[:, 1:]).abs().sum(1, keepdim=True)
    shifts = (off * likely).sum() / likely.sum().clamp_min(1e-6)
    return torch.as_tensor(loss + KEYPOINTS * (drawn + found + SHIFTS * shifts))
