"""What a run keeps on disk: the state to go on from, its log, and the best weights so far."""

from __future__ import annotations

import dataclasses
import io
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from capsdesc.io.files import atomic_path, sweep
from capsdesc.io.settings import refuse_other_settings
from capsdesc.io.text import parse_yaml
from capsdesc.training.averaging import MovingAverage
from capsdesc.training.distributed import from_main, is_main
from capsdesc.weights.files import CARD_FILE, CONFIG_FILE, TENSORS_FILE

logger = logging.getLogger(__name__)

CHECKPOINT = "checkpoint.pt"
LOG = "log.jsonl"
CONFIG = "training.yaml"
BEST = "best.safetensors"


@dataclasses.dataclass(frozen=True, eq=False)
class Best:
    """The weights that validation liked best.

    Attributes:
        step: number of steps they were trained for.
        score: :attr:`~capsdesc.training.validation.Validation.net_matches` of them.
        state_dict: the weights, on the CPU.
    """

    step: int
    score: float
    state_dict: dict[str, Tensor]


class Settings(Protocol):
    """All settings of a run: :class:`~capsdesc.training.config.TrainingConfig`, or a matcher's."""

    def to_yaml(self) -> str: ...  # noqa: D102

    @classmethod
    def from_yaml(cls, text: str) -> Settings: ...  # noqa: D102


class RunFolder:
    """A run's folder. Only the main process touches it; the others are told what it holds.

    Args:
        path: made if it does not exist.
        config: the run's settings.
        data: digest of its data.
    """

    def __init__(self, path: Path, config: Settings, data: str) -> None:
        self.path, self.config, self.data = path, config, data

    def resume(self, network: nn.Module, average: MovingAverage, optimizer: torch.optim.Optimizer) -> int:
        """Load the checkpoint if there is one, else begin; returns the number of steps done.

        Raises:
            ValueError: the folder holds a run with other settings or data, or its checkpoint is damaged.
        """
        state = from_main(self._open() if is_main() else None)
        if state is None:
            return 0
        network.load_state_dict(state["network"])
        average.network.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["random"])
        logger.info("resumed at step %d", state["step"])
        return int(state["step"])

    def save(self, step: int, network: nn.Module, average: MovingAverage, optimizer: torch.optim.Optimizer) -> None:
        """Write the state after a step; the log must have been flushed."""
        state = {
            "step": step,
            "config": self.config.to_yaml(),
            "data": self.data,
            "network": network.state_dict(),
            "average": average.network.state_dict(),
            "optimizer": optimizer.state_dict(),
            "random": torch.get_rng_state(),
        }
        # Where a disk is full, torch's own writing of files does not say so.
        written = io.BytesIO()
        torch.save(state, written)
        with atomic_path(self.path / CHECKPOINT) as path:
            path.write_bytes(written.getbuffer())

    def save_best(self, best: Best) -> None:
        """Put these weights in the place of the best so far."""
        metadata = {"format": "pt", "step": str(best.step), "score": repr(best.score)}
        tensors = {name: tensor.cpu().contiguous() for name, tensor in best.state_dict.items()}
        with atomic_path(self.path / BEST) as path:
            path.write_bytes(safetensors.torch.save(tensors, metadata))

    def read_best(self) -> Best | None:
        """The best weights so far, or None before the first validation."""
        if not (self.path / BEST).exists():
            return None
        with safetensors.safe_open(self.path / BEST, "pt") as file:
            metadata = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return Best(int(metadata["step"]), float(metadata["score"]), tensors)

    def _open(self) -> Mapping[str, Any] | None:
        """The state to go on from; without one, the folder of a run that begins."""
        self.path.mkdir(parents=True, exist_ok=True)
        written = (CHECKPOINT, LOG, CONFIG, BEST, TENSORS_FILE, CONFIG_FILE, CARD_FILE)
        sweep(*(self.path / name for name in written))
        if not (self.path / CHECKPOINT).exists():
            with atomic_path(self.path / CONFIG) as path:
                path.write_text(self.config.to_yaml(), encoding="utf-8")
            for name in (LOG, BEST):
                (self.path / name).unlink(missing_ok=True)
            return None
        state = _read_checkpoint(self.path / CHECKPOINT)
        texts = self._completed(state["config"]), self.config.to_yaml()
        earlier, now = (parse_yaml(text, "settings") for text in texts)
        remedy = "give another folder, or the same settings to resume"
        refuse_other_settings(f"{self.path} holds a run", earlier, now, remedy)
        if state["data"] != self.data:
            raise ValueError(f"{self.path} holds a run on other data; give another folder, or the same data to resume")
        _cut_log(self.path / LOG, state["step"])
        return state

    def _completed(self, text: str) -> str:
        """A run's settings, with the defaults of those that the version which began it did not have."""
        try:
            return type(self.config).from_yaml(text).to_yaml()
        except ValueError:  # it had others that are gone: they are among the differences
            return text


def _read_checkpoint(path: Path) -> Mapping[str, Any]:
    try:
        state: Mapping[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        missing = {"step", "config", "data", "network", "average", "optimizer", "random"} - set(state)
    # On damaged bytes torch fails with nearly any error there is.
    except Exception as error:
        raise ValueError(f"{path} is damaged ({type(error).__name__}); without it training begins anew") from error
    if missing:
        raise ValueError(f"{path} is no checkpoint of a training run: it lacks {', '.join(sorted(missing))}")
    return state


def _cut_log(path: Path, step: int) -> None:
    """Drop what a killed run logged after its last checkpoint: it will be logged again."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    # Only the last row can be cut short, and then it lacks its end of line.
    kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
    with atomic_path(path) as temporary:
        temporary.write_text("".join(kept), encoding="utf-8")
