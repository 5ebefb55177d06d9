"""What teaches a network where keypoints are: that they are found again in another view, and match there.

Homography pairs tell the exact place. There the logits of a view are read as a draw of one pixel from each cell of a
grid (as in DISK, Tyszkiewicz et al., NeurIPS 2020); how likely both views draw the same place has a closed form, so no
reward need be sampled. What is found, the strongest peaks, is then placed between the pixels by the distance to its
match (as in ALIKE, Zhao et al., TMM 2022), and ranked by whether its descriptor finds it again. The last is known in
posed pairs too, up to the epipolar line (as in PoSFeat, Li et al., CVPR 2022). No other detector is asked.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from capsdesc.keypoints.learned import peaks, refine, strongest
from capsdesc.matching import match
from capsdesc.models.maps import DenseFeatures
from capsdesc.training.supervision import Supervision, epipolar_distance, transfer

# Edge of the cells in pixels: of 8 x 8 pixels one is drawn.
CELL = 8
# Below this chance of being drawn again a cell counts less and less: it may show nothing that could be found.
FLOOR = 0.03
# Weights of the loss's parts beside the agreement of draws.
PLACE, RANK = 1.0, 1.0
# A keypoint is ranked as one that is found again if its match lies within this distance, in pixels: on an edge, along
# which it may slip, it does not.
RANK_RADIUS = 1.0


def keypoint_loss(
    features0: DenseFeatures,
    features1: DenseFeatures,
    supervision: Supervision,
    sigma: float,
    count: int,
    radius: float,
) -> Tensor:
    """How badly the network's keypoints are found again; its gradient reaches the score maps alone.

    Args:
        features0: maps of the first images, with scores.
        features1: maps of the second images, with scores.
        supervision: what is known of the pairs.
        sigma: how exactly both views should draw the same place, in pixels.
        count: so many of the strongest peaks of a view are matched.
        radius: matches within this distance, in pixels, of the right place or the epipolar line are right.

    Returns:
        A scalar.

    Raises:
        ValueError: the features have no scores.
    """
    if features0.scores is None or features1.scores is None:
        raise ValueError("the keypoint loss needs a network that finds keypoints: set model.keypoints")
    scores = (features0.scores.values[:, :1], features1.scores.values[:, :1])
    planar = supervision.planar
    agreement = scores[0].sum() * 0  # where there is nothing to learn from, that still is a loss
    if bool(planar.any()):
        agreement = agreement_loss(
            scores[0][planar], scores[1][planar], supervision.homography[planar], supervision.grids[planar], sigma
        )
    judged = [
        fates for pair in range(len(planar)) for fates in _fates(features0, features1, supervision, pair, count, radius)
    ]
    logits, right, distances = (torch.cat(values) for values in zip(*judged, strict=True))
    # Means over nothing must be zeros that still have a gradient.
    ranking = F.binary_cross_entropy_with_logits(logits, right.to(logits.dtype), reduction="sum")
    return (
        agreement
        + RANK * ranking / max(1, len(logits))
        + PLACE * distances.clamp(max=radius).sum() / max(1, len(distances))
    )


def agreement_loss(scores0: Tensor, scores1: Tensor, homography: Tensor, grids: Tensor, sigma: float) -> Tensor:
    """How unlikely both views draw the same places, in cells that the other view shows whole.

    In each cell of one view a pixel is drawn by the softmax of its logits. The chance that one is drawn in the other
    view at the same place is the sum over the cell of both pixels' chances, the other view's being smoothed by a
    Gaussian of height one; the loss is minus its logarithm, over cells and both directions.

    Args:
        scores0: (B, 1, H, W) logits of the first images.
        scores1: (B, 1, H, W) logits of the second images.
        homography: (B, 3, 3), x1 ~ H x0.
        grids: (B, 2, 2) x and y of where the cells of the first and of the second images begin.
        sigma: of the Gaussian in pixels.
    """
    height, width = scores0.shape[-2:]
    chances0, chances1 = draw_chances(scores0, grids[:, 0]), draw_chances(scores1, grids[:, 1])
    y, x = torch.meshgrid(
        torch.arange(height, device=scores0.device), torch.arange(width, device=scores0.device), indexing="ij"
    )
    pixels = torch.stack([x, y], dim=-1).view(1, -1, 2).to(scores0.dtype).expand(len(scores0), -1, -1)
    last = pixels.new_tensor([width - 1, height - 1])
    total, count = scores0.new_zeros(()), scores0.new_zeros(())
    for own, other, there, grid in (
        (chances0, chances1, homography, grids[:, 0]),
        (chances1, chances0, homography.inverse(), grids[:, 1]),
    ):
        places = transfer(pixels, there)
        inside = ((places >= 0) & (places <= last)).all(-1).view(-1, 1, height, width).to(own.dtype)
        at = (places * (2 / last) - 1).view(-1, height, width, 2)
        met = F.grid_sample(smoothed(other, sigma), at, padding_mode="zeros", align_corners=True)
        agreed = in_cells(own * met * inside, grid).sum(1)
        whole = in_cells(inside, grid).amin(1) > 0
        total = total - ((agreed.clamp(max=1) + FLOOR).log() * whole).sum()
        count = count + whole.sum()
    return total / count.clamp_min(1)


def draw_chances(scores: Tensor, grid: Tensor) -> Tensor:
    """(B, 1, H, W) chances that each pixel is the one drawn in its cell, for grids that begin at (B, 2) pixels."""
    height, width = scores.shape[-2:]
    chances = F.pixel_shuffle(in_cells(scores, grid, outside=-1e4).softmax(1), CELL)
    return torch.stack(
        [
            drawn[:, top : top + height, left : left + width]
            for drawn, (left, top) in zip(chances, _margins(grid), strict=True)
        ]
    )


def in_cells(values: Tensor, grid: Tensor, outside: float = 0.0) -> Tensor:
    """(B, 1, H, W) values to (B, CELL * CELL, h, w), those of each cell of grids that begin at (B, 2) pixels.

    All grids have as many cells, and what of these is outside of the image has the value ``outside``.
    """
    height, width = values.shape[-2:]
    rows, columns = (size // CELL + 2 for size in (height, width))
    padded = [
        F.pad(one, (left, columns * CELL - width - left, top, rows * CELL - height - top), value=outside)
        for one, (left, top) in zip(values, _margins(grid), strict=True)
    ]
    return F.pixel_unshuffle(torch.stack(padded), CELL)


def _margins(grid: Tensor) -> list[list[int]]:
    """How many pixels of the first cell lie left of and above the image."""
    margins: list[list[int]] = (CELL - grid).tolist()
    return margins


def smoothed(chances: Tensor, sigma: float) -> Tensor:
    """(B, 1, H, W) chances smoothed by a Gaussian of height one."""
    reach = int(3 * sigma + 0.5)
    steps = torch.arange(-reach, reach + 1, dtype=torch.float64)
    weights = torch.exp(-0.5 * (steps / sigma) ** 2).tolist()
    # Sums of shifted copies: convolutions of a single channel are slow.
    for dim, margin in ((-1, (reach, reach)), (-2, (0, 0, reach, reach))):
        size, padded = chances.shape[dim], F.pad(chances, margin)
        chances = torch.stack([weight * padded.narrow(dim, k, size) for k, weight in enumerate(weights)]).sum(0)
    return chances


def _fates(
    features0: DenseFeatures,
    features1: DenseFeatures,
    supervision: Supervision,
    pair: int,
    count: int,
    radius: float,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """For each view of a pair: the logits of its keypoints whose fate in the other view is known, whether each is
    matched rightly there, and, in homography pairs, how far the right matches are off.

    In homography pairs the fate of all that lie in the other view is known; in posed pairs that of matched ones.
    """
    keypoints0, keypoints1 = _keypoints(features0, pair, count), _keypoints(features1, pair, count)
    matches = torch.as_tensor(match(keypoints0.descriptors, keypoints1.descriptors).indices)
    homography, fundamental = supervision.homography[pair], supervision.fundamental[pair]
    for own, other, (mine, theirs), H, F_ in (
        (keypoints0, keypoints1, (0, 1), homography, fundamental),
        (keypoints1, keypoints0, (1, 0), homography.inverse(), fundamental.T),
    ):
        rows, partners = matches[:, mine], matches[:, theirs]
        if not bool(supervision.planar[pair]):
            off = epipolar_distance(own.points[None, rows], other.points[None, partners], F_[None])[0]
            yield own.logits[rows], off.detach() <= RANK_RADIUS, own.logits[:0]
            continue
        places = transfer(own.points[None], H[None])[0]
        seen = ((places >= 0) & (places <= places.new_tensor(features0.image_size) - 1)).all(-1)
        off = (places[rows] - other.points[partners]).norm(dim=-1)
        is_right = off.detach() <= radius
        right = torch.zeros_like(seen)
        right[rows] = off.detach() <= RANK_RADIUS
        yield own.logits[seen], right[seen], off[is_right & seen[rows]]


@dataclasses.dataclass(frozen=True, eq=False)
class _Keypoints:
    """(N, 2) points and (N,) logits, which have gradients, and (N, C) descriptors, which have none."""

    points: Tensor
    logits: Tensor
    descriptors: Tensor


def _keypoints(features: DenseFeatures, image: int, count: int) -> _Keypoints:
    """The strongest keypoints of one image of several."""
    assert features.scores is not None
    scores = features.scores.values[image]
    with torch.no_grad():
        pixels = strongest(scores[0], peaks(scores[0]), count)
    points = refine(scores, pixels)
    with torch.no_grad():
        _, after = features.without_reliability().split(image)
        one, _ = after.split(1)
        descriptors = one.describe(points[None])[0]
    return _Keypoints(points, scores[0, pixels[:, 1], pixels[:, 0]], descriptors)
