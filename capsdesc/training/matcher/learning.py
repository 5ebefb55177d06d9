"""Learning to tell right candidates from wrong ones, from poses and homographies alone."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from capsdesc.isolation import isolated
from capsdesc.matching.context import MIN_SCORE, one_to_one
from capsdesc.models.context import Candidates, ContextNetwork
from capsdesc.training.averaging import MovingAverage
from capsdesc.training.batches import network_dtype
from capsdesc.training.checkpoint import LOG, RunFolder
from capsdesc.training.loop import Outcome
from capsdesc.training.matcher.config import MatcherTrainingConfig
from capsdesc.training.matcher.pairs import (
    DescribedPair,
    candidate_errors,
    candidates_of,
    changed,
    read_pair,
)

logger = logging.getLogger(__name__)

# Candidates of planar pairs are right within the first, of posed pairs within the second: there only the distance to a
# line is known, on which others lie by chance. Beyond the third they are wrong; what is between is not judged.
RIGHT_PLACE, RIGHT_LINE, WRONG = 3.0, 2.0, 5.0
# The judgement after each block but the last counts by this.
EARLY = 0.4
# How often training hides what the descriptors say of reliability, which not all descriptors have.
HIDDEN = 0.3
# Means over right and over wrong candidates are over so many at least: fewer shall not weigh more each.
FEWEST = 20
# Matches of validation are right within this, in pixels.
RIGHT_WITHIN = 3.0


@dataclasses.dataclass(frozen=True)
class MatcherValidation:
    """How held-out pairs are matched, beside mutual nearest neighbours of the same descriptors.

    Attributes:
        precision: share of matches within 3 px of the right place or the epipolar line.
        right: of them a pair.
        nearest_precision: of the mutual nearest neighbours.
        nearest_right: of them a pair.
        pairs: how many were judged.
    """

    precision: float
    right: float
    nearest_precision: float
    nearest_right: float
    pairs: int


def labels(pair: DescribedPair, candidates: Candidates) -> tuple[Tensor, Tensor]:
    """(C,) which candidates are right, and which are wrong; what is neither is not known.

    In posed pairs only those that are the nearest of one of their keypoints can be called right: of the others too many
    are near the epipolar line by chance.
    """
    errors = candidate_errors(pair, candidates)
    if pair.planar:
        return errors <= RIGHT_PLACE, errors > WRONG
    nearest = candidates.evidence[:, 3:5].amax(1) > 0
    return (errors <= RIGHT_LINE) & nearest, errors > WRONG


def matcher_loss(logits: Sequence[Tensor], right: Tensor, wrong: Tensor) -> Tensor:
    """Cross entropy of the judgements after each block; right and wrong candidates weigh the same, as few as one is."""
    total = logits[-1].sum() * 0
    for block, judged in enumerate(logits):
        of_right = (F.softplus(-judged) * right).sum() / right.sum().clamp_min(FEWEST)
        of_wrong = (F.softplus(judged) * wrong).sum() / wrong.sum().clamp_min(FEWEST)
        total = total + (of_right + of_wrong) * (1.0 if block == len(logits) - 1 else EARLY)
    return total


@torch.no_grad()
def validate_matcher(network: ContextNetwork, files: Sequence[Path]) -> MatcherValidation:
    """Judge a network on described pairs; each pair counts the same."""
    figures = []
    for file in files:
        pair = read_pair(file)
        candidates = candidates_of(pair, network.config)
        errors = candidate_errors(pair, candidates)
        scores = network(candidates)[-1].sigmoid()
        matched = one_to_one(candidates, scores, *map(len, pair.points)) & (scores >= MIN_SCORE)
        for kept in (matched, candidates.anchors):
            right = float((errors[kept] <= RIGHT_WITHIN).sum())
            figures.append((right / max(1, len(errors[kept])), right))
    ours, nearest = (np.mean(figures[k::2], axis=0) for k in (0, 1))
    return MatcherValidation(float(ours[0]), float(ours[1]), float(nearest[0]), float(nearest[1]), len(files))


@isolated(gradients=True)
def train_matcher(
    config: MatcherTrainingConfig,
    network: ContextNetwork,
    files: Sequence[Path],
    held_out: Sequence[Path],
    out: Path,
    *,
    data: str,
    max_minutes: float | None = None,
) -> Outcome:
    """Train a matcher, or go on where a killed run with the same settings and folder stopped.

    With the same number of threads, a resumed run ends in the same bits as one that was never killed.

    Args:
        config: all settings.
        network: with the parameters to start from; afterwards it holds the averaged weights of the last step.
        files: described pairs to train on.
        held_out: described pairs to judge on; may be none.
        out: folder for the checkpoint and the log.
        data: digest of what the pairs were drawn from.
        max_minutes: stop after this long, with a checkpoint to go on from.

    Raises:
        ValueError: ``out`` holds a run with other settings or data.
        FloatingPointError: the loss is no longer finite.
    """
    start = time.monotonic()
    dtype = network_dtype(config.precision, torch.device("cpu"))
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, betas=(0.9, 0.98)
    )
    average = MovingAverage(network.train(), config.ema)
    folder = RunFolder(out, config, data)
    step = folder.resume(network, average, optimizer)
    with (
        open(out / LOG, "a", encoding="utf-8") as log,
        tqdm(total=config.steps, initial=step, unit="step", mininterval=1.0, disable=None) as progress,
    ):
        while step < config.steps:
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * _rate(step, config)
            loss = _step(config, network, optimizer, files, step, dtype)
            if not math.isfinite(loss):
                raise FloatingPointError("the loss is no longer finite: lower learning_rate")
            average.update(step)
            step += 1
            row: dict[str, object] = {"step": step, "loss": round(loss, 5)}
            if held_out and (step % config.validate_every == 0 or step == config.steps):
                judged = average.network
                assert isinstance(judged, ContextNetwork)
                result = validate_matcher(judged, held_out)
                row["validation"] = dataclasses.asdict(result)
                progress.write(
                    f"step {step}: {result.right:.1f} right matches a pair, {100 * result.precision:.1f} % of all "
                    f"(nearest neighbours {result.nearest_right:.1f}, {100 * result.nearest_precision:.1f} %)"
                )
            log.write(json.dumps(row) + "\n")
            progress.set_postfix({"loss": f"{loss:.4f}"}, refresh=False)
            progress.update()
            out_of_time = max_minutes is not None and time.monotonic() - start > 60 * max_minutes
            if step % config.checkpoint_every == 0 or step == config.steps or out_of_time:
                log.flush()
                folder.save(step, network, average, optimizer)
            if out_of_time:
                break
    network.load_state_dict(average.network.state_dict())
    network.eval()
    return Outcome(step == config.steps, step)


def _step(
    config: MatcherTrainingConfig,
    network: ContextNetwork,
    optimizer: torch.optim.Optimizer,
    files: Sequence[Path],
    step: int,
    dtype: torch.dtype,
) -> float:
    """One optimizer step on the pairs that its number draws; returns the loss."""
    rng = np.random.default_rng((config.seed, step))
    optimizer.zero_grad(set_to_none=True)
    total = 0.0
    for index in rng.integers(len(files), size=config.batch_size):
        pair = changed(read_pair(files[index]), rng)
        mirrored = rng.random(2) < 0.25
        candidates = candidates_of(pair, network.config, (bool(mirrored[0]), bool(mirrored[1])))
        if len(candidates.rows) == 0:
            continue  # nothing was detected in one of the views
        if rng.random() < HIDDEN:
            candidates.evidence[:, 6:] = 1
        right, wrong = labels(pair, candidates)
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            logits = network(candidates)
        loss = matcher_loss([judged.float() for judged in logits], right, wrong) / config.batch_size
        loss.backward()  # type: ignore[no-untyped-call]
        total += float(loss.detach())
    torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    optimizer.step()
    return total


def _rate(step: int, config: MatcherTrainingConfig) -> float:
    """What the learning rate is multiplied by at a step; a pure function, so that nothing must be saved."""
    return min(1.0, (step + 1) / max(1, config.warmup)) * 0.5 * (1 + math.cos(math.pi * step / config.steps))
