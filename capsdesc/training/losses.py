"""The losses of the paper and some of our own.

The paper's are epipolar and cycle, weighted by the matcher's own certainty (section 3.1 and 3.2). Ours are about the
descriptors themselves: in homography pairs right answers are known exactly, in posed ones up to a line.
"""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from capsdesc.checks import check_numbers
from capsdesc.describe.search import Correspondence, back_again, coarse_to_fine
from capsdesc.models.maps import DenseFeatures
from capsdesc.models.network import inverse_temperatures
from capsdesc.training.distillation import distillation_loss
from capsdesc.training.keypoint_losses import keypoint_loss
from capsdesc.training.supervision import Supervision, homogeneous, match_error, transfer

# The network's logit of being found again is SHARPNESS times the calibrated one, and TRUST more: unreliable points are
# kept from matching, and of the others hardly any. With less trust more matches are right, but poses are worse.
SHARPNESS, TRUST = 2.0, 1.0


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """Weights and thresholds of the loss. Those of the paper are the defaults, ``contrastive`` apart.

    Attributes:
        epipolar_coarse: weight of the coarse epipolar loss.
        epipolar_fine: weight of the fine epipolar loss.
        cycle_coarse: weight of the coarse cycle loss.
        cycle_fine: weight of the fine cycle loss.
        certainty: whether errors count the more the surer the matcher is of them, as in the paper, or all alike.
        contrastive: weight of the dual-softmax loss on the descriptors of known correspondences. Only homography pairs
            have them, and the paper has no such loss.
        contrastive_radius: other points closer than this to the right one, in pixels, are no wrong answers.
        matching: weight of the loss on how keypoints detected in both images match. The paper has no such loss.
        matching_radius: matches within this distance, in pixels, of the right place or the epipolar line are right.
        wrong_radius: matches farther than this are wrong; those between count as neither.
        reliability: weight of the loss on the network's guess which keypoints are found again, where it makes one.
        keypoints: weight of the loss on the network's own keypoints, where it finds some. The paper has no such loss.
        keypoint_sigma: how exactly two views should agree on a keypoint, in pixels.
        keypoint_count: how many of the strongest keypoints of a view are matched, to rank them.
        distillation: weight of the distance of the network's maps from a teacher's.
        max_epipolar_coarse: coarse matches farther than this share of the shorter edge from the line are left out.
        max_epipolar_fine: likewise fine matches.
        max_coarse_for_fine: fine matches whose coarse match is farther than this share from the line are left out.
        max_cycle: loops that end farther than this share of the shorter edge from their start are left out.
        max_cycle_px: likewise in pixels.
    """

    epipolar_coarse: float = 1.0
    epipolar_fine: float = 1.0
    cycle_coarse: float = 0.1
    cycle_fine: float = 0.1
    certainty: bool = True
    contrastive: float = 0.0
    contrastive_radius: float = 4.0
    matching: float = 0.0
    matching_radius: float = 3.0
    wrong_radius: float = 5.0
    reliability: float = 0.0
    keypoints: float = 0.0
    keypoint_sigma: float = 0.7
    keypoint_count: int = 512
    distillation: float = 0.0
    max_epipolar_coarse: float = 0.5
    max_epipolar_fine: float = 0.5
    max_coarse_for_fine: float = 0.125
    max_cycle: float = 0.025
    max_cycle_px: float = 40.0

    def __post_init__(self) -> None:
        check_numbers(self, least=0)
        check_numbers(self, "keypoint_sigma", least=0.1)


def certainty_weighted_mean(errors: Tensor, std: Tensor, keep: Tensor) -> Tensor:
    """Mean of the kept errors, each weighted by 1 / std (section 3.2); the weights' mean over the kept is one."""
    weights = torch.where(keep, 1 / std.clamp_min(1e-6), torch.zeros_like(std)).detach()
    # A sum over nothing must be a zero that still has a gradient. A masked error may be infinite: it must not reach it.
    errors = torch.where(keep, errors, torch.zeros_like(errors))
    return (weights * errors).sum() / weights.sum().clamp_min(1e-12)


def caps_loss(
    network: nn.Module,
    features0: DenseFeatures,
    features1: DenseFeatures,
    supervision: Supervision,
    config: LossConfig,
    taught: tuple[DenseFeatures, DenseFeatures] | None = None,
) -> dict[str, Tensor]:
    """The training loss of a batch of pairs and its parts.

    Args:
        network: whose inverse temperatures are used.
        features0: maps of the first images.
        features1: maps of the second images.
        supervision: query points and what is known of them.
        config: weights and thresholds.
        taught: what a teacher sees in the first and in the second images, or None.

    Returns:
        Scalars: ``loss``, its unweighted parts by the names of the weights in ``config``, and ``median_px``, the median
        error of the fine answers in pixels (no gradient). Where none of the paper's losses has a weight, they and
        ``median_px`` are left out.
    """
    parts = {}
    if config.epipolar_coarse or config.epipolar_fine or config.cycle_coarse or config.cycle_fine:
        parts = search_losses(network, features0, features1, supervision, config)
    median = {name: parts.pop(name) for name in ("median_px",) if name in parts}
    if config.contrastive:
        parts["contrastive"] = contrastive_loss(features0, features1, supervision, config.contrastive_radius)
    if config.matching:
        parts["matching"] = matching_loss(features0, features1, supervision, config)
    if config.reliability and features0.reliability is not None:
        parts["reliability"] = reliability_loss(features0, features1, supervision, config.matching_radius)
    if config.keypoints and features0.scores is not None:
        parts["keypoints"] = keypoint_loss(
            features0, features1, supervision, config.keypoint_sigma, config.keypoint_count, config.matching_radius
        )
    if config.distillation and taught is not None:
        parts["distillation"] = distillation_loss((features0, features1), taught, supervision)
    loss = torch.stack([getattr(config, name) * part for name, part in parts.items()]).sum()
    return {"loss": loss, **parts, **median}


def search_losses(
    network: nn.Module,
    features0: DenseFeatures,
    features1: DenseFeatures,
    supervision: Supervision,
    config: LossConfig,
) -> dict[str, Tensor]:
    """The paper's losses on where the coarse-to-fine search finds the query points, by name, and ``median_px``."""
    points, valid = supervision.points, supervision.valid
    temperatures = inverse_temperatures(network)
    coarse, fine = coarse_to_fine(points, features0, features1, temperatures)
    coarse_loop, fine_loop = back_again(points, coarse, fine, features0, features1, temperatures)
    width, height = features1.image_size
    shorter, longer = min(width, height), max(width, height)

    def spread(found: Correspondence, image_size: tuple[int, int]) -> Tensor:
        half_size = found.std.new_tensor([(image_size[0] - 1) / 2, (image_size[1] - 1) / 2])
        return (found.std / half_size).sum(-1)

    error_coarse = match_error(coarse.expected, supervision)
    error_fine = match_error(fine.expected, supervision)
    error_loop_coarse = (coarse_loop.expected - points).norm(dim=-1)
    error_loop_fine = (fine_loop.expected - points).norm(dim=-1)
    max_loop = min(config.max_cycle * shorter, config.max_cycle_px)
    std_coarse, std_fine = spread(coarse, features1.image_size), spread(fine, features1.image_size)
    std_loop_coarse = std_coarse * spread(coarse_loop, features0.image_size)
    std_loop_fine = std_fine * spread(fine_loop, features0.image_size)

    keep_coarse = valid & (error_coarse < config.max_epipolar_coarse * shorter)
    keep_fine = valid & (error_fine < config.max_epipolar_fine * shorter)
    keep_fine &= error_coarse < config.max_coarse_for_fine * shorter
    terms = {
        "epipolar_coarse": (error_coarse, std_coarse, keep_coarse),
        "epipolar_fine": (error_fine, std_fine, keep_fine),
        "cycle_coarse": (error_loop_coarse, std_loop_coarse, valid & (error_loop_coarse < max_loop)),
        "cycle_fine": (error_loop_fine, std_loop_fine, valid & (error_loop_fine < max_loop)),
    }
    parts = {
        name: certainty_weighted_mean(error, std if config.certainty else torch.ones_like(std), keep) / longer
        for name, (error, std, keep) in terms.items()
    }
    median = error_fine.detach()[valid].median() if bool(valid.any()) else error_fine.new_tensor(torch.nan)
    return {**parts, "median_px": median}


def contrastive_loss(
    features0: DenseFeatures,
    features1: DenseFeatures,
    supervision: Supervision,
    radius: float,
    inverse_temperature: float = 20.0,
) -> Tensor:
    """How well each descriptor picks its known partner among those of all query points of its pair, both ways.

    Cross entropy of the softmax over cosines, as in CLIP (Radford et al. 2021), over the homography pairs.

    Args:
        features0: maps of the first images.
        features1: maps of the second images.
        supervision: query points; only planar pairs count.
        radius: other points within this distance of the right one, in pixels in image 1, are no wrong answers.
        inverse_temperature: factor on the cosines.

    Returns:
        A scalar; zero when no pair is planar.
    """
    partners = transfer(supervision.points, supervision.homography)
    width, height = features1.image_size
    inside = ((partners >= 0) & (partners <= partners.new_tensor([width - 1, height - 1]))).all(-1)
    keep = supervision.valid & supervision.planar[:, None] & inside
    partners = torch.where(keep[..., None], partners, torch.zeros_like(partners))
    a = F.normalize(features0.without_reliability().describe(supervision.points), dim=-1)
    b = F.normalize(features1.without_reliability().describe(partners), dim=-1)
    logits = inverse_temperature * a @ b.transpose(1, 2)
    with torch.no_grad():
        same = torch.eye(logits.shape[1], dtype=torch.bool, device=logits.device)
        ignored = (torch.cdist(partners, partners) < radius) | ~keep[:, None, :] | ~keep[:, :, None]
        ignored &= ~same
    logits = logits.masked_fill(ignored, -torch.inf)
    wrong = -(logits.log_softmax(1) + logits.log_softmax(2)).diagonal(dim1=1, dim2=2) / 2
    return torch.where(keep, wrong, torch.zeros_like(wrong)).sum() / keep.sum().clamp_min(1)


def matching_loss(
    features0: DenseFeatures,
    features1: DenseFeatures,
    supervision: Supervision,
    config: LossConfig,
    inverse_temperature: float = 30.0,
) -> Tensor:
    """How keypoints that were detected in each image by itself match, as a user matches them.

    The probability that two keypoints are each other's nearest is relaxed to the product of both softmaxes (LoFTR, Sun
    et al. 2021). It should be large between keypoints within ``matching_radius`` and small between those farther apart
    than ``wrong_radius``. Above all, a keypoint that was not found again in the other image should match nothing: these
    make most of the wrong matches in practice, and no loss on known correspondences ever sees them.

    In posed pairs distances are to the epipolar line. On a line there is a choice, so keypoints are drawn there only as
    far as they already match near it rather than elsewhere.

    Args:
        features0: maps of the first images.
        features1: maps of the second images.
        supervision: keypoints and what is known of the pairs.
        config: radii.
        inverse_temperature: factor on the cosines.

    Returns:
        A scalar; zero without keypoints.
    """
    keypoints0, keypoints1 = supervision.keypoints0, supervision.keypoints1
    both = supervision.detected0[:, :, None] & supervision.detected1[:, None, :]
    a = F.normalize(features0.without_reliability().describe(keypoints0), dim=-1)
    b = F.normalize(features1.without_reliability().describe(keypoints1), dim=-1)
    logits = (inverse_temperature * a @ b.transpose(1, 2)).masked_fill(~both, -1e4)
    log_mutual = logits.log_softmax(1) + logits.log_softmax(2)
    with torch.no_grad():
        lines = homogeneous(keypoints0) @ supervision.fundamental.transpose(1, 2)
        to_line = (lines @ homogeneous(keypoints1).transpose(1, 2)).abs()
        to_line /= lines[..., :2].norm(dim=-1, keepdim=True).clamp_min(1e-12)
        to_place = torch.cdist(transfer(keypoints0, supervision.homography), keypoints1)
        planar = supervision.planar[:, None, None]
        distance = torch.where(planar, to_place, to_line)
        right = both & (distance <= config.matching_radius)
        wrong = both & (distance > config.wrong_radius)
        findable = right.any(2)
    log_right = log_mutual.masked_fill(~right, -1e4).logsumexp(2)
    chance_wrong = torch.where(wrong, log_mutual.exp(), torch.zeros_like(logits)).sum(2)
    with torch.no_grad():
        chance_right = log_right.exp()
        share = chance_right / (chance_right + chance_wrong).clamp_min(1e-12)
        pull = torch.where(planar[:, :, 0], findable.float(), findable * share)
    drawn = (pull * -log_right).sum() / pull.sum().clamp_min(1)
    # Away from 1, where the gradient has no bound.
    avoided = -torch.log1p(-chance_wrong.clamp_max(0.99))
    detected = supervision.detected0
    return drawn + torch.where(detected, avoided, torch.zeros_like(avoided)).sum() / detected.sum().clamp_min(1)


def reliability_loss(
    features0: DenseFeatures, features1: DenseFeatures, supervision: Supervision, radius: float
) -> Tensor:
    """How well the network tells which keypoints of an image are found again in another; over the homography pairs.

    Cross entropy of the calibrated logits, (logit - TRUST) / SHARPNESS. Keypoints whose place is not in the other
    image say nothing about it and are left out.

    Args:
        features0: maps of the first images, with a reliability.
        features1: maps of the second images, with a reliability.
        supervision: keypoints; only planar pairs count.
        radius: a keypoint is found again where the other image has one within this distance of its place, in pixels of
            image 1.

    Returns:
        A scalar; zero when no pair is planar.

    Raises:
        ValueError: the features have no reliability.
    """
    if features0.reliability is None or features1.reliability is None:
        raise ValueError("the reliability loss needs a network with a reliability head: set model.reliability")
    keypoints0, keypoints1 = supervision.keypoints0, supervision.keypoints1
    both = supervision.detected0[:, :, None] & supervision.detected1[:, None, :]
    near = both & (torch.cdist(transfer(keypoints0, supervision.homography), keypoints1) <= radius)
    total, count = keypoints0.new_zeros(()), keypoints0.new_zeros(())
    backwards = supervision.homography.inverse()
    for reliability, other, keypoints, detected, homography, found in (
        (features0.reliability, features1, keypoints0, supervision.detected0, supervision.homography, near.any(2)),
        (features1.reliability, features0, keypoints1, supervision.detected1, backwards, near.any(1)),
    ):
        places = transfer(keypoints, homography)
        last = places.new_tensor(other.image_size) - 1
        keep = detected & supervision.planar[:, None] & ((places >= 0) & (places <= last)).all(-1)
        logits = (reliability.sample(keypoints)[..., 0] - TRUST) / SHARPNESS
        wrong = F.binary_cross_entropy_with_logits(logits, found.to(logits.dtype), reduction="none")
        total = total + torch.where(keep, wrong, torch.zeros_like(wrong)).sum()
        count = count + keep.sum()
    return total / count.clamp_min(1)
