"""Judging a network on held-out pairs, in figures."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from capsdesc.describe.search import coarse_to_fine
from capsdesc.keypoints import SIFTDetector
from capsdesc.keypoints.learned import peaks, refine, strongest
from capsdesc.matching import match
from capsdesc.models import DenseFeatures, inverse_temperatures
from capsdesc.training import distributed
from capsdesc.training.batches import load_batches, network_dtype, pair_features
from capsdesc.training.config import TrainingConfig
from capsdesc.training.dataset import PairDataset
from capsdesc.training.supervision import Supervision, match_error

# What counts as right, in pixels from the epipolar line.
RIGHT_WITHIN = 3.0
# Keypoints that are matched per view at most.
KEYPOINTS = 1024


@dataclasses.dataclass(frozen=True)
class Validation:
    """How well held-out pairs are matched: query points by the coarse-to-fine search, keypoints by descriptors.

    Attributes:
        median_px: median distance of the found places to their epipolar lines in pixels.
        surer_median_px: the same over the half of the query points with the smallest standard deviations.
        within_3px: share of query points found within 3 px of their line.
        match_precision: share of the mutual nearest neighbours among keypoints that lie within 3 px of their line.
            Keypoints are the network's own where it learns them, else SIFT's.
        matches: mutual nearest neighbours per pair.
        pairs: how many pairs were judged.
    """

    median_px: float
    surer_median_px: float
    within_3px: float
    match_precision: float
    matches: float
    pairs: int

    @property
    def right_matches(self) -> float:
        """Matches per pair that obey the epipolar geometry: precision times number."""
        return self.match_precision * self.matches

    @property
    def net_matches(self) -> float:
        """Right matches less wrong ones, per pair. Higher is better.

        This selects the best weights. It judges what descriptors are for, and neither few sure matches nor many wrong
        ones raise it, as they would the precision or the number of right ones alone.
        """
        return 2 * self.right_matches - self.matches


@torch.no_grad()
def validate(
    network: nn.Module, config: TrainingConfig, pairs: PairDataset, device: torch.device, workers: int = 0
) -> Validation:
    """Judge a network on held-out pairs; it is left in the mode it was in.

    Where several processes train together all of them must call this: each judges its share of the pairs.
    """
    was_training = network.training
    network.eval()
    dtype = network_dtype(config.precision, device)
    batches = math.ceil(len(pairs) / config.batch_size)
    # Empty tensors in front, since a process's share of the batches may be none.
    errors, stds, match_errors = ([torch.empty(0)] for _ in range(3))
    own = range(batches)[distributed.rank() :: distributed.world_size()]
    for batch in load_batches(pairs, config.batch_size, own, workers, device):
        features0, features1 = pair_features(network, config.model, batch, device, dtype)
        supervision = batch.supervision.to(device)
        _, fine = coarse_to_fine(supervision.points, features0, features1, inverse_temperatures(network))
        errors.append(match_error(fine.expected, supervision)[supervision.valid].cpu())
        stds.append(fine.std.square().mean(-1).sqrt()[supervision.valid].cpu())
        keypoints = [
            [points.to(device) for points in _keypoints(images, features, own=config.loss.keypoints > 0)]
            for images, features in ((batch.images0, features0), (batch.images1, features1))
        ]
        match_errors.append(_match_errors(keypoints, features0, features1, supervision).cpu())
    network.train(was_training)
    shares = distributed.from_all((torch.cat(errors), torch.cat(stds), torch.cat(match_errors)))
    error, std, match_errors_of_all = (torch.cat(parts) for parts in zip(*shares, strict=True))
    surer = error[std.argsort(stable=True)[: (len(std) + 1) // 2]]
    right = int((match_errors_of_all <= RIGHT_WITHIN).sum())
    return Validation(
        median_px=float(error.median()),
        surer_median_px=float(surer.median()),
        within_3px=float((error <= RIGHT_WITHIN).float().mean()),
        match_precision=right / max(1, len(match_errors_of_all)),
        matches=len(match_errors_of_all) / len(pairs),
        pairs=len(pairs),
    )


def _match_errors(
    keypoints: Sequence[list[Tensor]], features0: DenseFeatures, features1: DenseFeatures, supervision: Supervision
) -> Tensor:
    """Errors in pixels of the mutual nearest neighbours among the keypoints of the first and the second images."""
    keypoints0, keypoints1 = keypoints
    points0, points1 = (pad_sequence(keypoints, batch_first=True) for keypoints in (keypoints0, keypoints1))
    descriptors0, descriptors1 = features0.describe(points0), features1.describe(points1)
    partners = torch.zeros_like(points0)
    matched = torch.zeros_like(points0[..., 0], dtype=torch.bool)
    for pair, (count0, count1) in enumerate(zip(map(len, keypoints0), map(len, keypoints1), strict=True)):
        indices = torch.as_tensor(match(descriptors0[pair, :count0], descriptors1[pair, :count1]).indices)
        partners[pair, indices[:, 0]] = points1[pair, indices[:, 1]]
        matched[pair, indices[:, 0]] = True
    return match_error(partners, dataclasses.replace(supervision, points=points0))[matched]


def _keypoints(images: Tensor, features: DenseFeatures, own: bool) -> list[Tensor]:
    """(N, 2) pixels of the keypoints of each of (B, 3, h, w) uint8 images."""
    if own and features.scores is not None:
        maps = features.scores.values
        return [refine(scores, strongest(scores[0], peaks(scores[0]), KEYPOINTS)) for scores in maps]
    pictures = (np.ascontiguousarray(image.permute(1, 2, 0).numpy()) for image in images)
    return [torch.as_tensor(SIFTDetector().detect(picture, KEYPOINTS).points) for picture in pictures]
