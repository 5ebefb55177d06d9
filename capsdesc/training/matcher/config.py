"""All settings of training a matcher, as files and the command line name them."""

from __future__ import annotations

import dataclasses

import yaml

from capsdesc.checks import check_numbers
from capsdesc.io.settings import build, plain
from capsdesc.io.text import parse_yaml
from capsdesc.models.context import ContextConfig
from capsdesc.training.augmentation import AugmentationConfig
from capsdesc.training.config import PRECISIONS
from capsdesc.training.dataset import DataConfig


@dataclasses.dataclass(frozen=True)
class MatcherTrainingConfig:
    """Settings of training a matcher.

    Attributes:
        network: the matcher; training fills in whose descriptors it is for.
        data: which pairs are drawn and described.
        pairs: so many are described before training; each is seen many times, with fewer keypoints, mirrored, swapped.
        keypoints: of each view at most.
        steps: number of optimizer steps.
        batch_size: pairs per step.
        learning_rate: the largest; it rises for ``warmup`` steps and falls along a cosine.
        weight_decay: of AdamW.
        warmup: steps.
        seed: of the data, of what is drawn of it, and of the parameters.
        ema: decay of the moving average of the weights, which is judged and published.
        precision: of the network: ``"float32"``, ``"bfloat16"``, or ``"auto"``: bfloat16 where the hardware has it.
        validate_every: steps between validations.
        validation_pairs: how many held-out pairs are judged.
        checkpoint_every: steps between checkpoints.

    Raises:
        ValueError: a setting is out of range.
    """

    network: ContextConfig = ContextConfig(descriptor="")
    data: DataConfig = DataConfig(
        width=640,
        height=480,
        queries=64,
        keypoints=0,
        planar_share=0.4,
        planar_jitter=0.3,
        min_covisibility=0.12,
        augmentation=AugmentationConfig(resample=0.08, blur=0.15, noise=0.12, jpeg=0.12),
    )
    pairs: int = 3000
    keypoints: int = 1280
    steps: int = 12000
    batch_size: int = 2
    learning_rate: float = 1e-3
    weight_decay: float = 1e-3
    warmup: int = 200
    seed: int = 0
    ema: float = 0.998
    precision: str = "auto"
    validate_every: int = 1000
    validation_pairs: int = 60
    checkpoint_every: int = 250

    def __post_init__(self) -> None:
        names = ("pairs", "keypoints", "steps", "batch_size", "validate_every", "validation_pairs", "checkpoint_every")
        check_numbers(self, *names, least=1)
        check_numbers(self, "seed", "warmup", "weight_decay", "learning_rate", least=0)
        check_numbers(self, "ema", least=0, most=1)
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision is {self.precision!r}; expected one of {', '.join(PRECISIONS)}")

    def to_yaml(self) -> str:
        """The config as YAML, every setting written out."""
        return yaml.safe_dump(plain(dataclasses.asdict(self)), sort_keys=False)

    @classmethod
    def from_yaml(cls, text: str) -> MatcherTrainingConfig:
        """The config of a YAML text; what it does not name keeps its default.

        Raises:
            ValueError: it is no YAML mapping, a key is unknown, or a value is refused; the key is named in full.
        """
        values = parse_yaml(text, "the training config")
        return build(cls, {} if values is None else values)
