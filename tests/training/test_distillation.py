"""A small network learns from a large one."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from capsdesc.commands.train import main
from capsdesc.models import DenseFeatures, FeatureMap, ModelConfig, build_network, dense_features
from capsdesc.training.config import TrainingConfig
from capsdesc.training.dataset import DataConfig, PairDataset, collate
from capsdesc.training.distillation import Teacher, distillation_loss, principal_directions
from capsdesc.training.loop import train
from capsdesc.training.supervision import Supervision
from capsdesc.types import Array
from capsdesc.weights import Weights, resolve

EXAMPLES = Path(__file__).parents[2] / "examples" / "data"
STUDENT = ModelConfig.small()
MAPS = ("coarse", "fine", "reliability", "scores")


def supervision(grids: Tensor) -> Supervision:
    """What nothing but the grids is read of."""
    none = torch.zeros(len(grids), 0, 2)
    return Supervision(
        points=none,
        valid=torch.zeros(len(grids), 0, dtype=torch.bool),
        fundamental=torch.zeros(len(grids), 3, 3),
        homography=torch.eye(3).expand(len(grids), 3, 3),
        planar=torch.ones(len(grids), dtype=torch.bool),
        keypoints0=none,
        keypoints1=none,
        detected0=torch.zeros(len(grids), 0, dtype=torch.bool),
        detected1=torch.zeros(len(grids), 0, dtype=torch.bool),
        grids=grids,
    )


def random_maps(seed: int, batch: int = 2) -> DenseFeatures:
    generator = torch.Generator().manual_seed(seed)

    def values(*shape: int) -> Tensor:
        return torch.randn(batch, *shape, generator=generator)

    def unit(*shape: int) -> FeatureMap:
        return FeatureMap(torch.nn.functional.normalize(values(*shape), dim=1), (1.0, 1.0))

    scores = torch.cat([3 * values(1, 32, 48), values(2, 32, 48).tanh()], dim=1)
    return DenseFeatures(
        coarse=unit(8, 2, 3),
        fine=unit(6, 8, 12),
        image_size=(48, 32),
        normalized=True,
        reliability=FeatureMap(values(1, 8, 12), (4.0, 4.0)),
        scores=FeatureMap(scores, (1.0, 1.0)),
    )


def test_directions_are_those_of_the_largest_singular_values() -> None:
    rng = np.random.default_rng(0)
    cells = rng.normal(size=(5, 400)) * np.array([[9.0], [1], [4], [0.1], [2]]) + 1
    mixed = np.linalg.qr(rng.normal(size=(5, 5)))[0] @ cells
    found = principal_directions(torch.from_numpy(mixed.reshape(5, 2, 10, 20)).transpose(0, 1).float(), 3).numpy()
    expected = np.linalg.svd(mixed)[0][:, :3].T
    np.testing.assert_allclose(found @ found.T, np.eye(3), atol=1e-5)
    np.testing.assert_allclose(np.abs((found * expected).sum(1)), 1, atol=1e-4)


def test_the_loss_is_what_it_says() -> None:
    students, teachers = (random_maps(0), random_maps(1)), (random_maps(2), random_maps(3))
    grids = torch.tensor([[[0, 0], [3, 5]], [[7, 1], [2, 2]]])
    loss = float(distillation_loss(students, teachers, supervision(grids)))

    def sigmoid(x: Array) -> Array:
        return np.asarray(1 / (1 + np.exp(-x)))

    def entropy(logits: Array, targets: Array) -> Array:
        chances = sigmoid(logits)
        return np.asarray(-(targets * np.log(chances) + (1 - targets) * np.log(1 - chances)))

    sides = []
    for side in (0, 1):
        mine, theirs = (
            {
                name: getattr(maps[side], name).values.double().numpy()
                for name in ("coarse", "fine", "reliability", "scores")
            }
            for maps in (students, teachers)
        )
        total = sum(1 - (mine[name] * theirs[name]).sum(1).mean() for name in ("coarse", "fine"))
        total += 0.1 * entropy(mine["reliability"], sigmoid(theirs["reliability"])).mean()
        drawn = []
        for image in (0, 1):
            left, top = grids[image, side].tolist()
            # Cells of 8 x 8 whose first begins 8 pixels before the grid's own begin.
            for row in range(32 // 8 + 2):
                for column in range(48 // 8 + 2):
                    y, x = (np.arange(first + 8 * k - 8, first + 8 * k) for first, k in ((top, row), (left, column)))
                    inside = ((y >= 0) & (y < 32))[:, None] & ((x >= 0) & (x < 48))[None]
                    if not inside.any():
                        drawn.append(np.log(64.0))
                        continue
                    at = np.ix_(y.clip(0, 31), x.clip(0, 47))
                    logits, wanted = (
                        np.where(inside, maps["scores"][image, 0][at], -np.inf) for maps in (mine, theirs)
                    )
                    chances = np.exp(wanted) / np.exp(wanted).sum()
                    logs = logits[inside] - np.log(np.exp(logits).sum())
                    drawn.append(-(chances[inside] * logs).sum())
        likely = sigmoid(theirs["scores"][:, 0])
        found = 64 * entropy(mine["scores"][:, 0], likely).mean()
        off = np.abs(mine["scores"][:, 1:] - theirs["scores"][:, 1:]).sum(1)
        sides.append(total + 0.2 * (np.mean(drawn) + found + (off * likely).sum() / likely.sum()))
    assert loss == pytest.approx(np.mean(sides), rel=1e-4)


def test_nothing_is_better_than_to_agree() -> None:
    teachers = (random_maps(2), random_maps(3))
    grids = supervision(torch.zeros(2, 2, 2, dtype=torch.int64))
    best = float(distillation_loss(teachers, teachers, grids))
    for seed in range(5):
        assert float(distillation_loss((random_maps(10 + seed), teachers[1]), teachers, grids)) > best + 0.1


def test_products_survive_the_projection_where_features_have_few_directions() -> None:
    """A teacher whose features lie in a plane of as many dimensions as the student has loses nothing."""
    config = ModelConfig(encoder="efficientnet_lite0", coarse_dim=24, fine_dim=24, decoder_dim=8)
    torch.manual_seed(0)
    network = build_network(config)
    with torch.no_grad():  # the last convolutions reach six dimensions
        for name in ("coarse_head", "fine_head"):
            head = network.get_submodule(name)
            weight, bias = head.get_parameter("weight"), head.get_parameter("bias")
            weight.copy_((torch.randn(24, 6) @ torch.randn(6, weight.shape[1]))[..., None, None])
            bias.zero_()
    weights = Weights(config, network.state_dict(), "made here")
    student = dataclasses.replace(STUDENT, coarse_dim=6, fine_dim=6, reliability=False, keypoints=False)
    images = torch.rand(2, 3, 64, 96)
    teacher = Teacher(weights, student, images)
    pairs = PairDataset([], sorted(EXAMPLES.glob("*.jpg"))[:2], small_data(), 0, 4)
    batch = collate([pairs[0], pairs[1]])
    taught, _ = teacher.maps(batch, torch.device("cpu"), torch.float32)
    with torch.no_grad():
        seen = dense_features(weights.build(), config, batch.images0.float() / 255)
    for projected, whole in ((taught.coarse, seen.coarse), (taught.fine, seen.fine)):
        assert projected.values.shape[1] == 6
        a, b = projected.values.flatten(2), whole.values.flatten(2)
        torch.testing.assert_close(a.transpose(1, 2) @ a, b.transpose(1, 2) @ b, atol=2e-3, rtol=0)


def small_data() -> DataConfig:
    return dataclasses.replace(TrainingConfig.small().data, width=96, height=64)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"coarse_dim": 300}, "coarse_dim=300: its own is 128"),
        ({"sampling": "corners"}, "sampling is 'corners'"),
        ({"normalize": False, "reliability": False}, "normalize is False"),
    ],
)
def test_what_cannot_be_taught_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Teacher(resolve(None), dataclasses.replace(STUDENT, **changes), torch.rand(1, 3, 64, 64))  # type: ignore[arg-type]


def test_who_knows_no_keypoints_teaches_none() -> None:
    config = ModelConfig(reliability=True)
    torch.manual_seed(0)
    ignorant = Weights(config, build_network(config).state_dict(), "made here")
    with pytest.raises(ValueError, match="cannot teach keypoints=True"):
        Teacher(ignorant, STUDENT, torch.rand(1, 3, 64, 64))


def test_teacher_and_weight_come_together(tmp_path: Path) -> None:
    config = dataclasses.replace(TrainingConfig.small(), steps=1)
    pairs = PairDataset([], sorted(EXAMPLES.glob("*.jpg"))[:1], config.data, 0, 8)
    with pytest.raises(ValueError, match=r"loss\.distillation is 1\.0 and there is no teacher"):
        train(config, build_network(config.model), pairs, None, tmp_path, device=torch.device("cpu"))


def test_a_student_learns_by_command_and_another_teacher_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "small"
    command = ["--photographs", str(EXAMPLES), "--config", "small", "--from-scratch", "-o", str(out)]
    command += ["--steps", "25", "--batch-size", "2", "--workers", "0", "--device", "cpu", "--no-tensorboard"]
    command += ["--set", "data.width=128", "data.height=96", "checkpoint_every=25", "optimizer.warmup=0.04"]
    assert main(command) == 0
    weights = resolve(str(out))
    assert weights.config == STUDENT
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    losses = [row["distillation"] for row in rows if "distillation" in row]
    assert len(losses) == 25
    assert np.mean(losses[-5:]) < 0.6 * np.mean(losses[:3])
    card = (out / "README.md").read_text()
    assert "taught by compact" in card
    assert "**Supervision**: a teacher's maps; all pairs are homographies" in card
    assert main([*command, "--teacher", str(out)]) == 1  # it would go on under another teacher
