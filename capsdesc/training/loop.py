"""The training loop: steps, validation, checkpoints, exact resume."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from capsdesc.correspondence import coarse_to_fine
from capsdesc.io.files import atomic_path
from capsdesc.models import DenseFeatures, dense_features, inverse_temperatures
from capsdesc.models.config import ModelConfig
from capsdesc.models.precision import fastest_dtype
from capsdesc.training.config import OptimizerConfig, TrainingConfig
from capsdesc.training.dataset import Batch, PairDataset, collate
from capsdesc.training.losses import LossConfig, caps_loss, match_error

logger = logging.getLogger(__name__)

CHECKPOINT = "checkpoint.pt"
LOG = "log.jsonl"
CONFIG = "training.yaml"


@dataclasses.dataclass(frozen=True)
class Validation:
    """How far the fine answers are from the truth on held-out pairs.

    Attributes:
        median_px: median distance to the epipolar line in pixels.
        within_3px: share of query points within 3 px of their line.
        pairs: how many pairs were judged.
    """

    median_px: float
    within_3px: float
    pairs: int


def train(
    config: TrainingConfig,
    network: nn.Module,
    training_pairs: PairDataset,
    validation_pairs: PairDataset | None,
    out: Path,
    *,
    device: torch.device,
    workers: int = 1,
    max_minutes: float | None = None,
) -> bool:
    """Train a network, or go on where a killed run with the same settings and folder stopped.

    On one device and with the same number of threads, a resumed run ends in the same bits as one that was never killed.

    Args:
        config: all settings.
        network: with the parameters to start from; holds the trained ones afterwards.
        training_pairs: at least ``config.steps * config.batch_size`` samples.
        validation_pairs: held-out samples, or None for no validation.
        out: folder for the checkpoint, the log and the settings.
        device: where to train.
        workers: processes that prepare pairs.
        max_minutes: stop after this long, with a checkpoint to go on from.

    Returns:
        Whether all steps are done.

    Raises:
        ValueError: ``out`` holds a run with other settings or data.
        FloatingPointError: the loss is no longer finite.
    """
    out.mkdir(parents=True, exist_ok=True)
    start_time = time.monotonic()
    network = network.to(device=device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimizer = make_optimizer(network, config.optimizer)
    data = training_pairs.fingerprint
    step = _resume(config, data, network, optimizer, out, device)
    dtype = _network_dtype(config.precision, device)
    loader = _loader(training_pairs, config.batch_size, range(step, config.steps), workers, device)
    finished = True
    with (
        open(out / LOG, "a", encoding="utf-8") as log,
        tqdm(total=config.steps, initial=step, unit="step", disable=None, mininterval=1.0) as progress,
    ):
        for batch in loader:
            step_start = time.monotonic()
            _set_learning_rate(optimizer, learning_rate_factor(step, config.steps, config.optimizer))
            parts = training_step(network, config.model, config.loss, optimizer, batch, device, dtype, config.optimizer)
            step += 1
            row: dict[str, Any] = {"step": step, "seconds": round(time.monotonic() - step_start, 3)}
            row |= {name: round(value, 5) for name, value in parts.items()}
            if validation_pairs is not None and (step % config.validate_every == 0 or step == config.steps):
                result = validate(network, config, validation_pairs, device, workers)
                row["validation"] = dataclasses.asdict(result)
                progress.write(
                    f"step {step}: held-out epipolar error {result.median_px:.2f} px (median), "
                    f"{100 * result.within_3px:.1f} % within 3 px"
                )
            log.write(json.dumps(row) + "\n")
            progress.set_postfix(loss=f"{parts['loss']:.4f}", px=f"{parts['median_px']:.1f}", refresh=False)
            progress.update()
            out_of_time = max_minutes is not None and time.monotonic() - start_time > 60 * max_minutes
            if step % config.checkpoint_every == 0 or step == config.steps or out_of_time:
                log.flush()
                _save(config, data, network, optimizer, step, out)
            if out_of_time and step < config.steps:
                finished = False
                break
    network.eval()
    return finished


def training_step(
    network: nn.Module,
    model_config: ModelConfig,
    loss_config: LossConfig,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    device: torch.device,
    dtype: torch.dtype,
    optimizer_config: OptimizerConfig,
) -> dict[str, float]:
    """One optimizer step; returns the loss and its parts."""
    features0, features1 = _pair_features(network, model_config, batch, device, dtype)
    parts = caps_loss(network, features0, features1, batch.supervision.to(device), loss_config)
    if not bool(torch.isfinite(parts["loss"])):
        raise FloatingPointError("the loss is no longer finite: lower the learning rate or look at the poses")
    optimizer.zero_grad(set_to_none=True)
    parts["loss"].backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(network.parameters(), optimizer_config.max_gradient_norm)
    optimizer.step()
    return {name: float(value.detach()) for name, value in parts.items()}


@torch.no_grad()
def validate(
    network: nn.Module, config: TrainingConfig, pairs: PairDataset, device: torch.device, workers: int = 0
) -> Validation:
    """The epipolar error of the fine answers on held-out pairs; the network is left in the mode it was in."""
    was_training = network.training
    network.eval()
    dtype = _network_dtype(config.precision, device)
    batches = math.ceil(len(pairs) / config.batch_size)
    errors: list[Tensor] = []
    for batch in _loader(pairs, config.batch_size, range(batches), workers, device):
        features0, features1 = _pair_features(network, config.model, batch, device, dtype)
        supervision = batch.supervision.to(device)
        _, fine = coarse_to_fine(supervision.points, features0, features1, inverse_temperatures(network))
        errors.append(match_error(fine.expected, supervision)[supervision.valid].cpu())
    network.train(was_training)
    error = torch.cat(errors)
    return Validation(median_px=float(error.median()), within_3px=float((error <= 3).float().mean()), pairs=len(pairs))


def make_optimizer(network: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """AdamW with rates of their own for the encoder and the temperatures (with weight decay 0 it is Adam)."""
    encoder_names = {"firstconv", "firstbn", "layer1", "layer2", "layer3", "encoder"}
    groups: dict[str, list[nn.Parameter]] = {"encoder": [], "temperature": [], "decoder": []}
    for name, parameter in network.named_parameters():
        if name == "log_inverse_temperature":
            groups["temperature"].append(parameter)
        else:
            groups["encoder" if name.split(".")[0] in encoder_names else "decoder"].append(parameter)
    factors = {"encoder": config.encoder_factor, "temperature": config.temperature_factor, "decoder": 1.0}
    return torch.optim.AdamW(
        [
            {"params": parameters, "peak": config.learning_rate * factors[name]}
            for name, parameters in groups.items()
            if parameters
        ],
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
    )


def learning_rate_factor(step: int, steps: int, config: OptimizerConfig) -> float:
    """What the peak learning rates are multiplied by at a step; a pure function, so that nothing must be saved."""
    if config.schedule == "halving":
        return 0.5 ** (step // config.halve_every)
    rise = max(1.0, config.warmup * steps)
    if step < rise:
        return (step + 1) / (rise + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1.0, steps - rise)))


def _set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor


def _network_dtype(precision: str, device: torch.device) -> torch.dtype:
    return fastest_dtype(device) if precision == "auto" else torch.float32 if precision == "float32" else torch.bfloat16


def _pair_features(
    network: nn.Module, config: ModelConfig, batch: Batch, device: torch.device, dtype: torch.dtype
) -> tuple[DenseFeatures, DenseFeatures]:
    """Maps of the first and of the second images, from one pass over both."""
    images = torch.cat([batch.images0, batch.images1]).to(device, non_blocking=True)
    images = (images.float() / 255).contiguous(memory_format=torch.channels_last)
    with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
        features = dense_features(network, config, images)
    return features.split(len(batch.images0))


class _Batches(torch.utils.data.Sampler[list[int]]):
    """The sample indices of given steps: step s holds the samples s * size to (s + 1) * size - 1."""

    def __init__(self, size: int, steps: range, samples: int) -> None:
        self.size, self.steps, self.samples = size, steps, samples

    def __iter__(self) -> Iterator[list[int]]:
        for step in self.steps:
            yield list(range(step * self.size, min((step + 1) * self.size, self.samples)))

    def __len__(self) -> int:
        return len(self.steps)


def _loader(pairs: PairDataset, batch_size: int, steps: range, workers: int, device: torch.device) -> DataLoader[Any]:
    return DataLoader(
        pairs,
        batch_sampler=_Batches(batch_size, steps, len(pairs)),
        num_workers=workers,
        collate_fn=collate,
        worker_init_fn=_start_worker,
        pin_memory=device.type == "cuda",
    )


def _start_worker(_: int) -> None:
    # A worker is one process among several: threads of its own would only fight for the same cores.
    torch.set_num_threads(1)
    cv2.setNumThreads(0)


def _save(
    config: TrainingConfig, data: str, network: nn.Module, optimizer: torch.optim.Optimizer, step: int, out: Path
) -> None:
    state = {
        "step": step,
        "config": config.to_yaml(),
        "data": data,
        "network": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "random": torch.get_rng_state(),
    }
    with atomic_path(out / CHECKPOINT) as path:
        torch.save(state, path)


def _resume(
    config: TrainingConfig,
    data: str,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    out: Path,
    device: torch.device,
) -> int:
    """Load the checkpoint of ``out`` if there is one; returns the number of steps done."""
    if not (out / CHECKPOINT).exists():
        with atomic_path(out / CONFIG) as path:
            path.write_text(config.to_yaml(), encoding="utf-8")
        (out / LOG).unlink(missing_ok=True)
        return 0
    state = torch.load(out / CHECKPOINT, map_location=device, weights_only=True)
    if state["config"] != config.to_yaml():
        raise ValueError(f"{out} holds a run with other settings: give another folder, or the same settings to resume")
    if state["data"] != data:
        raise ValueError(f"{out} holds a run on other data: give another folder, or the same data to resume")
    network.load_state_dict(state["network"])
    optimizer.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["random"].cpu())
    step = int(state["step"])
    _cut_log(out / LOG, step)
    logger.info("resumed at step %d", step)
    return step


def _cut_log(path: Path, step: int) -> None:
    """Drop what a killed run logged after its last checkpoint: it will be logged again."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    # Only the last row can be cut short, and then it lacks its end of line.
    kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
    with atomic_path(path) as temporary:
        temporary.write_text("".join(kept), encoding="utf-8")
