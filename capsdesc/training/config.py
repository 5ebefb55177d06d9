"""The settings of a training run: frozen dataclasses that round-trip to YAML and refuse unknown keys."""

from __future__ import annotations

import dataclasses

import yaml

from capsdesc.checks import check_numbers
from capsdesc.io.settings import build, plain
from capsdesc.io.text import parse_yaml
from capsdesc.models.config import ModelConfig
from capsdesc.training.augmentation import AugmentationConfig
from capsdesc.training.dataset import DataConfig
from capsdesc.training.losses import LossConfig

SCHEDULES = ("one_cycle", "halving")
PRECISIONS = ("auto", "float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """How the parameters move.

    Attributes:
        learning_rate: the peak rate of the decoder and heads.
        encoder_factor: factor on it for the pretrained encoder.
        temperature_factor: factor on it for the learned temperatures.
        weight_decay: decoupled weight decay (AdamW).
        schedule: ``"one_cycle"`` over the whole run, or ``"halving"`` every ``halve_every`` steps (supplement).
        halve_every: steps between halvings.
        warmup: share of the run in which a one-cycle schedule rises.
        max_gradient_norm: gradients longer than this are shortened to it.
        only: name of the one part of the network that is trained, such as ``"reliability_head"``; all else stays as it
            is, statistics included. Empty trains everything.
    """

    learning_rate: float = 1e-3
    encoder_factor: float = 0.2
    temperature_factor: float = 5.0
    weight_decay: float = 1e-4
    schedule: str = "one_cycle"
    halve_every: int = 80_000
    warmup: float = 0.1
    max_gradient_norm: float = 1.0
    only: str = ""

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule is {self.schedule!r}; expected one of {', '.join(SCHEDULES)}")
        check_numbers(self, least=0)
        check_numbers(self, "halve_every", least=1)


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """Everything that, with the data and the encoder's weights, defines a run.

    Attributes:
        model: the network.
        data: which pairs are drawn.
        loss: weights and thresholds of the losses.
        optimizer: how the parameters move.
        steps: number of optimizer steps.
        batch_size: pairs per step.
        seed: of the data and of the parameters that start random.
        ema: decay of the moving average of the weights, which is judged and published; 0 is no average. It begins
            lower, see :class:`~capsdesc.training.averaging.MovingAverage`.
        precision: of the network: ``"float32"``, ``"bfloat16"``, or ``"auto"``: bfloat16 where the hardware has it.
            Losses are always computed in float32.
        validate_every: steps between validations on held-out pairs.
        validation_pairs: how many pairs are held out per validation.
        checkpoint_every: steps between checkpoints.
    """

    model: ModelConfig = ModelConfig(fine_dim=127, reliability=True)
    data: DataConfig = DataConfig()
    loss: LossConfig = LossConfig(contrastive=0.3, matching=0.3, reliability=0.3)
    optimizer: OptimizerConfig = OptimizerConfig()
    steps: int = 1300
    batch_size: int = 4
    seed: int = 0
    ema: float = 0.999
    precision: str = "auto"
    validate_every: int = 250
    validation_pairs: int = 32
    checkpoint_every: int = 100

    def __post_init__(self) -> None:
        check_numbers(self, "steps", "batch_size", "validate_every", "validation_pairs", "checkpoint_every", least=1)
        check_numbers(self, "seed", least=0)
        check_numbers(self, "ema", least=0, most=1)
        if self.loss.keypoints and not self.model.keypoints:
            raise ValueError("loss.keypoints has a weight, but model.keypoints is false: set both, or neither")
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision is {self.precision!r}; expected one of {', '.join(PRECISIONS)}")

    @classmethod
    def compact(cls) -> TrainingConfig:
        """From an ImageNet encoder to a model like the bundled one, in one run."""
        return cls(
            model=ModelConfig(fine_dim=127, reliability=True, keypoints=True),
            data=DataConfig(planar_share=0.55, keypoints=1536),
            loss=LossConfig(contrastive=0.3, matching=1.0, reliability=0.3, keypoints=1.0, keypoint_sigma=0.5),
            optimizer=OptimizerConfig(encoder_factor=0.4, warmup=0.08),
            steps=1500,
            ema=0.998,
            validate_every=500,
        )

    @classmethod
    def fine_tuning(cls, model: ModelConfig) -> TrainingConfig:
        """The default recipe for a network that is trained already, with a loss for its keypoints if it finds any."""
        config = cls(model=model)
        if not model.keypoints:
            return config
        return dataclasses.replace(config, loss=dataclasses.replace(config.loss, keypoints=1.0, keypoint_sigma=0.5))

    @classmethod
    def small(cls) -> TrainingConfig:
        """From random weights to a model like the bundled small one, taught by a larger one: the first of its runs."""
        return cls(
            model=ModelConfig.small(),
            data=DataConfig(width=416, height=320, queries=16, keypoints=0, sift_share=0.0, planar_share=1.0),
            loss=LossConfig(epipolar_coarse=0.0, epipolar_fine=0.0, cycle_coarse=0.0, cycle_fine=0.0, distillation=1.0),
            optimizer=OptimizerConfig(learning_rate=2e-3, encoder_factor=1.0),
            steps=3000,
            batch_size=8,
            ema=0.998,
            validate_every=500,
        )

    @classmethod
    def paper(cls) -> TrainingConfig:
        """The paper's recipe (supplement): ResNet-50, Adam, 200 k steps of 6 pairs, its losses and colour jitter."""
        jitter = AugmentationConfig.jitter(brightness=1.0, contrast=1.0, saturation=1.0, hue=0.4)
        return cls(
            model=ModelConfig.paper(),
            data=DataConfig(
                width=640,
                height=480,
                queries=500,
                planar_share=0.0,
                min_rotation=0.0,
                zoom_sigma=0.0,
                turn_sigma=0.0,
                augmentation=jitter,
            ),
            loss=LossConfig(),
            optimizer=OptimizerConfig(
                learning_rate=1e-4, encoder_factor=1.0, weight_decay=0.0, schedule="halving", max_gradient_norm=1e9
            ),
            steps=200_000,
            batch_size=6,
            ema=0.0,
        )

    def to_yaml(self) -> str:
        """The config as YAML, every setting written out."""
        return yaml.safe_dump(plain(dataclasses.asdict(self)), sort_keys=False)

    @classmethod
    def from_yaml(cls, text: str) -> TrainingConfig:
        """The config of a YAML text; what it does not name keeps its default.

        Raises:
            ValueError: it is no YAML mapping, a key is unknown, or a value is refused; the key is named in full.
        """
        values = parse_yaml(text, "the training config")
        return build(cls, {} if values is None else values)


NAMED_CONFIGS = {
    "default": TrainingConfig,
    "compact": TrainingConfig.compact,
    "small": TrainingConfig.small,
    "caps_paper": TrainingConfig.paper,
}
