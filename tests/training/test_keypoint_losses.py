"""The keypoint loss against its definition in numpy, finite differences, and a head that learns by it."""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from capsdesc.models import DenseFeatures, FeatureMap, ModelConfig, build_network, dense_features
from capsdesc.training.keypoint_losses import (
    CELL,
    FLOOR,
    agreement_loss,
    draw_chances,
    in_cells,
    keypoint_loss,
    smoothed,
)
from capsdesc.training.losses import LossConfig, caps_loss
from capsdesc.training.supervision import Supervision
from capsdesc.types import Array

HEIGHT, WIDTH = 37, 45


def random_scores(images: int = 2, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(images, 1, HEIGHT, WIDTH)))


def numpy_chances(scores: Array, begin: Array) -> Array:
    """Softmax over each cell, one pixel after the other."""
    chances = np.zeros_like(scores)
    row, column = ((np.arange(size) - first) // CELL for size, first in zip(scores.shape, begin[::-1], strict=True))
    for i in set(row):
        for j in set(column):
            cell = np.ix_(row == i, column == j)
            weights = np.exp(scores[cell])
            chances[cell] = weights / weights.sum()
    return chances


def numpy_agreement(scores: list[Array], H: Array, begins: Array, sigma: float) -> tuple[float, int]:
    """Sum of minus the logarithms, and number of cells, from the definition; H moves whole pixels onto whole pixels."""
    chances = [numpy_chances(values, begin) for values, begin in zip(scores, begins, strict=True)]
    total, count = 0.0, 0
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    for own, other, there, begin in ((0, 1, H, begins[0]), (1, 0, np.linalg.inv(H), begins[1])):
        met = np.zeros((HEIGHT, WIDTH))
        inside = np.zeros((HEIGHT, WIDTH), dtype=bool)
        for row in range(HEIGHT):
            for column in range(WIDTH):
                place = there @ [column, row, 1]
                place = place[:2] / place[2]
                inside[row, column] = (place >= 0).all() and (place <= (WIDTH - 1, HEIGHT - 1)).all()
                away = (x - place[0]) ** 2 + (y - place[1]) ** 2
                near = (np.abs(x - place[0]) <= round(3 * sigma)) & (np.abs(y - place[1]) <= round(3 * sigma))
                met[row, column] = (chances[other] * np.exp(-0.5 * away / sigma**2) * near).sum()
        for top in range(int(begin[1]) - CELL, HEIGHT, CELL):
            for left in range(int(begin[0]) - CELL, WIDTH, CELL):
                cell = np.s_[max(0, top) : top + CELL, max(0, left) : left + CELL]
                is_whole = top >= 0 and left >= 0 and top + CELL <= HEIGHT and left + CELL <= WIDTH
                if is_whole and inside[cell].all():
                    total -= np.log(min(1, (chances[own] * met)[cell].sum()) + FLOOR)
                    count += 1
    return total, count


@pytest.mark.parametrize("begin", [(0, 0), (3, 7), (5, 1)])
def test_one_pixel_is_drawn_in_each_cell(begin: tuple[int, int]) -> None:
    scores = random_scores(1)
    found = draw_chances(scores, torch.tensor([begin]))[0, 0].numpy()
    np.testing.assert_allclose(found, numpy_chances(scores[0, 0].numpy(), np.array(begin)), rtol=1e-6)


def test_cells_hold_every_pixel_once() -> None:
    values = torch.arange(1.0, 2 * HEIGHT * WIDTH + 1).view(2, 1, HEIGHT, WIDTH)
    cells = in_cells(values, torch.tensor([[0, 0], [6, 3]]))
    for image in (0, 1):
        kept = cells[image][cells[image] > 0]
        assert sorted(kept.tolist()) == values[image].flatten().tolist()


def test_smoothing_is_opencvs() -> None:
    values = random_scores(1)
    found = smoothed(values, 1.0)[0, 0].numpy()
    kernel = cv2.getGaussianKernel(7, 1.0)
    expected = cv2.sepFilter2D(values[0, 0].numpy(), -1, kernel, kernel, borderType=cv2.BORDER_CONSTANT)
    np.testing.assert_allclose(found, expected / kernel.max() ** 2, rtol=1e-6, atol=1e-9)


def test_agreement_is_its_definition() -> None:
    scores0, scores1 = random_scores(seed=1), random_scores(seed=2)
    # A shift, and a quarter turn about the middle.
    homographies = np.array([[[1, 0, 6], [0, 1, -4], [0, 0, 1.0]], [[0, -1, 40], [1, 0, -4], [0, 0, 1.0]]])
    grids = np.array([[[0, 0], [3, 5]], [[7, 2], [1, 6]]])
    found = agreement_loss(scores0, scores1, torch.from_numpy(homographies), torch.from_numpy(grids), sigma=0.7)
    terms = [
        numpy_agreement([scores0[k, 0].numpy(), scores1[k, 0].numpy()], homographies[k], grids[k], 0.7) for k in (0, 1)
    ]
    totals, counts = zip(*terms, strict=True)
    assert min(counts) > 5
    assert float(found) == pytest.approx(sum(totals) / sum(counts), rel=1e-6)


def test_the_gradient_of_agreement_is_right() -> None:
    scores0, scores1 = (random_scores(1, seed)[..., :20, :20].clone().requires_grad_() for seed in (3, 4))
    H = torch.tensor([[[1.1, 0.02, -1], [0.01, 0.95, 1], [1e-4, 0, 1.0]]], dtype=torch.float64)
    grids = torch.tensor([[[2, 3], [1, 0]]])
    assert torch.autograd.gradcheck(lambda a, b: agreement_loss(a, b, H, grids, 1.0), (scores0, scores1))


def supervision(pairs: int, planar: list[bool], shift: tuple[float, float] = (0.0, 0.0)) -> Supervision:
    """Views that are moved by a shift along x and y; its epipolar lines have that direction."""
    H = torch.eye(3).repeat(pairs, 1, 1)
    H[:, 0, 2], H[:, 1, 2] = shift
    dx, dy = shift
    fundamental = torch.tensor([[0, 0, dy], [0, 0, -dx], [-dy, dx, 0.0]]).repeat(pairs, 1, 1)
    none = torch.zeros(pairs, 0, 2)
    return Supervision(
        points=torch.full((pairs, 4, 2), 20.0),
        valid=torch.ones(pairs, 4, dtype=torch.bool),
        fundamental=fundamental / fundamental.norm(dim=(1, 2), keepdim=True).clamp_min(1e-9),
        homography=H,
        planar=torch.tensor(planar),
        keypoints0=none,
        keypoints1=none,
        detected0=torch.zeros(pairs, 0, dtype=torch.bool),
        detected1=torch.zeros(pairs, 0, dtype=torch.bool),
        grids=torch.zeros(pairs, 2, 2, dtype=torch.int64),
    )


def features(scores: Tensor, seed: int = 0) -> DenseFeatures:
    """Maps with these logits, no shifts, and descriptors that tell all pixels apart."""
    images, _, height, width = scores.shape
    scores = torch.cat([scores, torch.zeros(images, 2, height, width)], dim=1)
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randn(1, 32, height, width, generator=generator).expand(images, -1, -1, -1)
    return DenseFeatures(
        FeatureMap(maps, (1.0, 1.0)),
        FeatureMap(maps, (1.0, 1.0)),
        (width, height),
        True,
        None,
        FeatureMap(scores, (1.0, 1.0)),
    )


def spikes(shift: int = 0) -> Tensor:
    scores = torch.full((1, 1, 48, 64), -8.0)
    for y in range(8, 40, 8):
        for x in range(8, 56, 8):
            scores[0, 0, y, x + shift] = 8.0
    return scores


def test_keypoints_at_the_same_places_lose_least() -> None:
    known = supervision(1, [True], shift=(2.0, 0.0))

    def loss(shift: int) -> float:
        ours, theirs = features(spikes()), features(spikes(shift))
        # What is seen moves with the image, wherever keypoints are.
        coarse, fine = (FeatureMap(seen.values.roll(2, -1), (1.0, 1.0)) for seen in (theirs.coarse, theirs.fine))
        theirs = dataclasses.replace(theirs, coarse=coarse, fine=fine)
        return float(keypoint_loss(ours, theirs, known, 0.7, 100, 3.0))

    same, beside, elsewhere = loss(2), loss(3), loss(6)
    assert same + 0.3 < beside
    assert beside + 0.3 < elsewhere


def test_posed_pairs_rank_keypoints_by_their_line() -> None:
    scores0, scores1 = (spikes().requires_grad_() for _ in range(2))
    right = supervision(1, [False], shift=(1.0, 0.0))  # rows stay rows, so all matches are on their lines
    keypoint_loss(features(scores0), features(scores1), right, 0.7, 100, 3.0).backward()  # type: ignore[no-untyped-call]
    assert scores0.grad is not None
    assert scores0.grad[0, 0, 16, 16] < 0  # a step raises it
    scores0.grad.zero_()
    wrong = supervision(1, [False], shift=(1.0, 0.0))
    wrong.fundamental[0] = torch.tensor([[0, 0, 0], [0, 0, -1.0], [0, 1.0, 20.0]])  # 20 px above
    keypoint_loss(features(scores0), features(scores1), wrong, 0.7, 100, 3.0).backward()  # type: ignore[no-untyped-call]
    assert scores0.grad[0, 0, 16, 16] > 0


@pytest.mark.parametrize("planar", [True, False])
def test_where_nothing_is_found_the_loss_is_finite_and_has_a_gradient(planar: bool) -> None:
    scores = torch.zeros(1, 1, 30, 30, requires_grad=True)
    loss = keypoint_loss(features(scores), features(scores), supervision(1, [planar]), 0.7, 100, 3.0)
    loss.backward()  # type: ignore[no-untyped-call]
    assert torch.isfinite(loss)
    assert scores.grad is not None
    assert torch.isfinite(scores.grad).all()


def test_features_without_scores_are_refused() -> None:
    bare = dataclasses.replace(features(spikes()), scores=None)
    with pytest.raises(ValueError, match=r"model\.keypoints"):
        keypoint_loss(bare, bare, supervision(1, [True]), 0.7, 100, 3.0)


def test_a_head_learns_to_find_places_again_and_leaves_all_else_alone() -> None:
    torch.manual_seed(0)
    config = ModelConfig(decoder_dim=16, coarse_dim=16, fine_dim=16, keypoints=True)
    network = build_network(config).eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    only = LossConfig(epipolar_coarse=0, epipolar_fine=0, cycle_coarse=0, cycle_fine=0, keypoints=1, keypoint_count=64)
    optimizer = torch.optim.AdamW(network.get_submodule("keypoint_head").parameters(), lr=1e-2)
    rng = np.random.default_rng(0)

    def step() -> Tensor:
        dx, dy = rng.integers(-9, 10, 2)
        texture = cv2.GaussianBlur(rng.normal(size=(128, 160, 3)), (0, 0), 2.0)
        texture = (texture - texture.min()) / np.ptp(texture)
        views = np.stack([texture[16:-16, 16:-16], texture[16 - dy : 112 - dy, 16 - dx : 144 - dx]])
        images = torch.from_numpy(views).permute(0, 3, 1, 2).float().contiguous()
        seen = dense_features(network, config, images, scores=True).split(1)
        parts = caps_loss(network, *seen, supervision(1, [True], shift=(float(dx), float(dy))), only)
        assert set(parts) == {"loss", "keypoints"}
        return parts["loss"]

    losses = []
    for _ in range(60):
        loss = step()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(float(loss.detach()))
    assert np.mean(losses[-10:]) < 0.85 * np.mean(losses[:5])
    touched = {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, before[name])}
    assert touched
    assert all(name.startswith("keypoint_head.") for name in touched)
    assert all(parameter.grad is None for name, parameter in network.named_parameters() if "keypoint_head" not in name)
