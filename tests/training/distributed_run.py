"""What torchrun starts in several processes: a run of a float64 network, stopped after a step and gone on with."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from capsdesc.models.config import ModelConfig
from capsdesc.models.network import CompactNetwork
from capsdesc.training import distributed
from capsdesc.training.batches import load_batches
from capsdesc.training.config import TrainingConfig
from capsdesc.training.dataset import DataConfig, PairDataset
from capsdesc.training.loop import train, training_step
from capsdesc.training.losses import LossConfig
from capsdesc.training.start import read_scenes

CONFIG = TrainingConfig(
    model=ModelConfig(encoder="resnet18", decoder_dim=16, coarse_dim=16, fine_dim=16, keypoints=True),
    loss=LossConfig(keypoints=0.5),
    data=DataConfig(width=64, height=48, queries=20, keypoints=20, augmentation=None),
    steps=4,
    batch_size=2,
    validate_every=2,
    validation_pairs=5,
    checkpoint_every=2,
    precision="float32",
)
GRADIENTS = "gradients.pt"


class DoubleNetwork(CompactNetwork):
    """Computes in float64, in which the order of sums is of no account; the maps and the loss stay float32.

    AdamW's first steps have the size of the learning rate however small the gradient, so in float32 the rounding of
    gradients that should be zero would set two runs apart at once.
    """

    def __init__(self) -> None:
        super().__init__(CONFIG.model)
        self.double()

    def forward(self, image: Tensor, scores: bool = False) -> tuple[Tensor, ...]:
        return super().forward(image.double(), scores)


def run(scene: Path, out: Path, *, max_minutes: float | None = None) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    scenes = read_scenes(scene, CONFIG.data)
    pairs = PairDataset(scenes, [], CONFIG.data, seed=0, length=CONFIG.steps * CONFIG.batch_size)
    judged = PairDataset(scenes, [], CONFIG.data, seed=1, length=CONFIG.validation_pairs)
    device = torch.device("cpu")
    train(CONFIG, DoubleNetwork(), pairs, judged, out, device=device, workers=0, max_minutes=max_minutes)


def gradients(scene: Path) -> dict[str, Tensor]:
    """How far each parameter and statistic of a network moves by one step of steepest descent of rate one."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = DoubleNetwork().train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    cpu = torch.device("cpu")
    distributed.synchronize_batch_norm(network, cpu)
    pairs = PairDataset(read_scenes(scene, CONFIG.data), [], CONFIG.data, seed=0, length=CONFIG.batch_size)
    share = (distributed.rank(), distributed.world_size())
    (batch,) = load_batches(pairs, CONFIG.batch_size, range(1), 0, cpu, share=share)
    training_step(
        distributed.replicate(network),
        CONFIG.model,
        CONFIG.loss,
        torch.optim.SGD(network.parameters(), lr=1.0),
        batch,
        cpu,
        torch.float32,
        dataclasses.replace(CONFIG.optimizer, max_gradient_norm=1e9),
    )
    return {name: before[name] - value for name, value in network.state_dict().items()}


def refuse_an_uneven_batch(scene: Path, out: Path) -> None:
    config = dataclasses.replace(CONFIG, batch_size=3)
    pairs = PairDataset(read_scenes(scene, config.data), [], config.data, seed=0, length=config.steps * 3)
    with pytest.raises(ValueError, match="batch_size is 3; expected a multiple of the 2 processes"):
        train(config, DoubleNetwork(), pairs, None, out, device=torch.device("cpu"))


if __name__ == "__main__":
    _, scene, out = map(Path, sys.argv)
    with distributed.process_group(torch.device("cpu")):
        refuse_an_uneven_batch(scene, out)
        moved = gradients(scene)
        run(scene, out, max_minutes=0)
        run(scene, out)
        if distributed.is_main():
            torch.save(moved, out / GRADIENTS)
