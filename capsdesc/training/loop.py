"""The training loop: steps, validation, and which weights come out of it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import math
import os
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from capsdesc.devices import training_format
from capsdesc.io.files import name_full_disk
from capsdesc.io.locks import sole_use
from capsdesc.isolation import isolated
from capsdesc.models import DenseFeatures
from capsdesc.models.config import ModelConfig
from capsdesc.training import distributed
from capsdesc.training.averaging import MovingAverage
from capsdesc.training.batches import load_batches, network_dtype, pair_features
from capsdesc.training.checkpoint import LOG, Best, RunFolder
from capsdesc.training.config import OptimizerConfig, TrainingConfig
from capsdesc.training.dataset import Batch, PairDataset
from capsdesc.training.distillation import Teacher
from capsdesc.training.losses import LossConfig, caps_loss
from capsdesc.training.monitor import EVERY, Monitor, draw_answers
from capsdesc.training.validation import Validation, validate

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a call of :func:`train` ended.

    Attributes:
        finished: whether all steps are done.
        step: the step whose weights the network holds.
    """

    finished: bool
    step: int


@isolated(gradients=True)
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
    tensorboard: bool = False,
    held: bool = False,
    teacher: Teacher | None = None,
) -> Outcome:
    """Train a network, or go on where a killed run with the same settings and folder stopped.

    On one device and with the same number of threads, a resumed run ends in the same bits as one that was never killed.
    Where several processes train together (:func:`capsdesc.training.distributed.process_group`), all must call this.

    Args:
        config: all settings.
        network: with the parameters to start from. Afterwards it holds, in eval mode, the averaged weights of the last
            step or those that validation liked best, whichever it likes better.
        training_pairs: at least ``config.steps * config.batch_size`` samples.
        validation_pairs: held-out samples, or None for no validation.
        out: folder for the checkpoint, the log, the best weights and the settings.
        device: where to train.
        workers: processes that prepare pairs, for each process that trains.
        max_minutes: stop after this long, with a checkpoint to go on from.
        tensorboard: whether to write curves and pictures for TensorBoard to ``out``.
        held: whether the caller has the sole use of ``out`` (:func:`capsdesc.io.locks.sole_use`) for longer than this.
        teacher: whose maps the network learns to agree with, where ``config.loss.distillation`` has a weight.

    Raises:
        BlockingIOError: another run is at work in ``out``.
        ImportError: ``tensorboard`` is set, but it is not installed.
        ValueError: ``out`` holds a run with other settings, data or teacher, there is a weight for a teacher and none
            or a teacher and no weight, or the processes cannot share a batch evenly.
        FloatingPointError: the loss is no longer finite.
    """
    lock = sole_use(out, is_folder=True) if distributed.is_main() and not held else contextlib.nullcontext()
    with lock:
        return _train(
            config, network, training_pairs, validation_pairs, out, device, workers, max_minutes, tensorboard, teacher
        )


def _train(
    config: TrainingConfig,
    network: nn.Module,
    training_pairs: PairDataset,
    validation_pairs: PairDataset | None,
    out: Path,
    device: torch.device,
    workers: int,
    max_minutes: float | None,
    tensorboard: bool,
    teacher: Teacher | None,
) -> Outcome:
    """:func:`train` in a folder that is held."""
    start_time = time.monotonic()
    share = (distributed.rank(), distributed.world_size())
    if config.batch_size % share[1]:
        raise ValueError(f"batch_size is {config.batch_size}; expected a multiple of the {share[1]} processes")
    if (teacher is None) == (config.loss.distillation > 0):
        raise ValueError(
            f"loss.distillation is {config.loss.distillation} "
            f"{'and there is no teacher' if teacher is None else 'but there is a teacher'}: give both, or neither"
        )
    dtype = network_dtype(config.precision, device)
    precision = str(dtype).removeprefix("torch.")
    if config.precision == "auto":
        logger.info("precision auto is %s on this %s", precision, device.type)
    network = network.to(  # type: ignore[call-overload]
        device=device, memory_format=training_format(device, dtype)
    ).train()
    if config.optimizer.only:
        _freeze_all_but(network, config.optimizer.only)
    distributed.synchronize_batch_norm(network, device)
    optimizer = make_optimizer(network, config.optimizer)
    average = MovingAverage(network, config.ema)
    judged_on = validation_pairs.fingerprint if validation_pairs is not None else "nothing"
    learned_from = f" {teacher.fingerprint}" if teacher is not None else ""
    folder = RunFolder(out, config, f"{training_pairs.fingerprint} {judged_on}{learned_from}")
    step = folder.resume(network, average, optimizer)
    replica = distributed.replicate(network)
    loader = load_batches(training_pairs, config.batch_size, range(step, config.steps), workers, device, share=share)
    is_main = distributed.is_main()
    result: Validation | None = None
    with contextlib.ExitStack() as stack:
        stack.enter_context(name_full_disk(out / LOG))
        log = stack.enter_context(open(out / LOG if is_main else os.devnull, "a", encoding="utf-8"))
        progress = stack.enter_context(
            tqdm(total=config.steps, initial=step, unit="step", disable=None if is_main else True, mininterval=1.0)
        )
        monitor = Monitor(out, step) if tensorboard and is_main else None
        if monitor is not None:
            stack.callback(monitor.close)
        if step == 0 and validation_pairs is not None:
            start = validate(average.network, config, validation_pairs, device, workers)
            log.write(json.dumps({"step": 0, "validation": dataclasses.asdict(start)}) + "\n")
            if is_main:
                progress.write(_summary(0, start))
        previous = time.monotonic()
        for batch in loader:
            step_start = time.monotonic()
            _set_learning_rate(optimizer, learning_rate_factor(step, config.steps, config.optimizer))
            parts = training_step(
                replica, config.model, config.loss, optimizer, batch, device, dtype, config.optimizer, teacher
            )
            average.update(step)
            step += 1
            now = time.monotonic()
            row: dict[str, Any] = {"step": step, "seconds": round(now - step_start, 3), "precision": precision}
            row |= {name: round(value, 5) for name, value in parts.items()}
            if monitor is not None and (step % EVERY == 0 or step == config.steps):
                rates = {group["name"]: group["lr"] for group in optimizer.param_groups}
                monitor.step(step, parts, rates, config.batch_size / (now - previous))
            result = None
            if validation_pairs is not None and (step % config.validate_every == 0 or step == config.steps):
                result = validate(average.network, config, validation_pairs, device, workers)
                row["validation"] = dataclasses.asdict(result)
                if is_main:
                    progress.write(_summary(step, result))
                    _keep_if_best(folder, step, result, average.network)
                if monitor is not None:
                    picture = draw_answers(average.network, config, validation_pairs, device)
                    monitor.validation(step, result, picture)
            log.write(json.dumps(row) + "\n")
            shown = {"loss": f"{parts['loss']:.4f}"}
            if "median_px" in parts:
                shown["px"] = f"{parts['median_px']:.1f}"
            progress.set_postfix(shown, refresh=False)
            progress.update()
            out_of_time = max_minutes is not None and distributed.from_main(now - start_time > 60 * max_minutes)
            if is_main and (step % config.checkpoint_every == 0 or step == config.steps or out_of_time):
                log.flush()
                if monitor is not None:
                    monitor.flush()
                folder.save(step, network, average, optimizer)
            if out_of_time:
                break
            previous = time.monotonic()
    finished = step == config.steps
    best = distributed.from_main(folder.read_best() if is_main else None)
    if best is not None and validation_pairs is not None and not finished:
        # After the last step there was a validation. Here it is not logged, as a run that nothing stopped has none.
        result = result or validate(average.network, config, validation_pairs, device, workers)
        if result.net_matches > best.score:
            best = None
    network.load_state_dict(average.network.state_dict() if best is None else best.state_dict)
    network.eval()
    if best is None:
        unjudged = validation_pairs is not None and result is None
        logger.info(
            "the weights are those of the last step, %d%s", step, ", before their first validation" if unjudged else ""
        )
        return Outcome(finished, step)
    logger.info(
        "the weights are those of step %d, the best: %.1f more right than wrong matches a pair", best.step, best.score
    )
    return Outcome(finished, best.step)


def _summary(step: int, result: Validation) -> str:
    return (
        f"step {step}: held-out epipolar error {result.median_px:.2f} px (median; surer half "
        f"{result.surer_median_px:.2f}), {100 * result.within_3px:.1f} % within 3 px; "
        f"{result.right_matches:.1f} right matches a pair, {100 * result.match_precision:.1f} % of {result.matches:.1f}"
    )


def _keep_if_best(folder: RunFolder, step: int, result: Validation, network: nn.Module) -> None:
    best = folder.read_best()
    if best is None or result.net_matches > best.score:
        folder.save_best(Best(step, result.net_matches, network.state_dict()))


def training_step(
    network: nn.Module,
    model_config: ModelConfig,
    loss_config: LossConfig,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    device: torch.device,
    dtype: torch.dtype,
    optimizer_config: OptimizerConfig,
    teacher: Teacher | None = None,
) -> dict[str, float]:
    """One optimizer step; returns the loss and its parts.

    Where several processes train together, ``network`` is a replica and ``batch`` the process's share; what is returned
    is of the whole batch.
    """

    def gathered(features: tuple[DenseFeatures, DenseFeatures]) -> tuple[DenseFeatures, DenseFeatures]:
        return distributed.gather_features(features[0]), distributed.gather_features(features[1])

    taught = gathered(teacher.maps(batch, device, dtype)) if teacher is not None else None
    features0, features1 = gathered(pair_features(network, model_config, batch, device, dtype))
    supervision = distributed.gather_supervision(batch.supervision.to(device))
    parts = caps_loss(distributed.original(network), features0, features1, supervision, loss_config, taught)
    if not bool(torch.isfinite(parts["loss"])):
        raise FloatingPointError("the loss is no longer finite: lower the learning rate or look at the poses")
    optimizer.zero_grad(set_to_none=True)
    parts["loss"].backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(network.parameters(), optimizer_config.max_gradient_norm)
    optimizer.step()
    return {name: float(value.detach()) for name, value in parts.items()}


def make_optimizer(network: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """AdamW with rates of their own for the encoder and the temperatures (with weight decay 0 it is Adam)."""
    encoder_names = {"firstconv", "firstbn", "layer1", "layer2", "layer3", "encoder"}
    groups: dict[str, list[nn.Parameter]] = {"encoder": [], "temperature": [], "decoder": []}
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        if name == "log_inverse_temperature":
            groups["temperature"].append(parameter)
        else:
            groups["encoder" if name.split(".")[0] in encoder_names else "decoder"].append(parameter)
    factors = {"encoder": config.encoder_factor, "temperature": config.temperature_factor, "decoder": 1.0}
    return torch.optim.AdamW(
        [
            {"params": parameters, "name": name, "peak": config.learning_rate * factors[name]}
            for name, parameters in groups.items()
            if parameters
        ],
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
    )


def _freeze_all_but(network: nn.Module, name: str) -> None:
    """Leave one part of a network to be trained, by the name of its module."""
    parts = dict(network.named_children())
    if name not in parts:
        raise ValueError(f"optimizer.only is {name!r}; expected a part of the network: {', '.join(parts)}")
    network.requires_grad_(False)
    network.eval()
    parts[name].requires_grad_(True).train()


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
