"""What a CAPS network is made of, as one frozen, serialisable value."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from capsdesc.io.text import parse_json

RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
LIGHT = "resnet_light"
EFFICIENTNETS = ("efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2")
ARCHITECTURES = ("caps", "compact")
SAMPLINGS = ("corners", "stride")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The settings that, with a state dict, define a network completely.

    Attributes:
        architecture: ``"caps"``, the paper's decoder, or ``"compact"``, the lean additive pyramid.
        encoder: an ImageNet classifier's name; its layers up to stride 16 are used. Or ``"resnet_light"``, a small one
            of our own that is trained from scratch.
        coarse_dim: channels of the coarse map (stride 16).
        fine_dim: channels of the fine map (stride 4).
        decoder_dim: width of the compact decoder; the paper's decoder has fixed widths.
        normalize: L2-normalise each map's samples and the concatenated descriptor. The paper does not.
        reliability: the compact network says at every point how likely it is to be found again, as a descriptor's
            last coordinate; see :meth:`capsdesc.models.DenseFeatures.describe`. Needs ``normalize``.
        keypoints: the compact network says of every pixel whether it is a keypoint.
        sampling: how pixels map to cells. ``"corners"`` is the paper's: the centres of the corner pixels
            meet the centres of the corner cells (``align_corners=True``). ``"stride"`` is exact for strided
            convolutions: cell ``i`` is centred on pixel ``stride * i``, whatever the image's size.

    Raises:
        ValueError: a value is not one of those listed, or a dimension is not positive.
    """

    architecture: str = "compact"
    encoder: str = "resnet18"
    coarse_dim: int = 128
    fine_dim: int = 128
    decoder_dim: int = 96
    normalize: bool = True
    reliability: bool = False
    keypoints: bool = False
    sampling: str = "stride"

    def __post_init__(self) -> None:
        _check_choice("architecture", self.architecture, ARCHITECTURES)
        _check_choice("sampling", self.sampling, SAMPLINGS)
        encoders = RESNETS if self.architecture == "caps" else (*RESNETS, LIGHT, *EFFICIENTNETS)
        _check_choice("encoder", self.encoder, encoders)
        for name in ("coarse_dim", "fine_dim", "decoder_dim"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ValueError(f"{name} is {value!r}; expected a positive integer")
        for name in ("normalize", "reliability", "keypoints"):
            if type(getattr(self, name)) is not bool:
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected true or false")
        if self.keypoints and self.architecture != "compact":
            raise ValueError("keypoints is true; only a network of the compact architecture finds them")
        if self.reliability and not (self.normalize and self.architecture == "compact"):
            raise ValueError("reliability is true; only a normalized network of the compact architecture has it")

    @classmethod
    def paper(cls, encoder: str = "resnet50") -> ModelConfig:
        """The network of the paper: raw features, corner-aligned sampling (section 3.3 and supplement)."""
        return cls(architecture="caps", encoder=encoder, normalize=False, sampling="corners")

    @classmethod
    def small(cls) -> ModelConfig:
        """A compact network of a quarter of the size, with descriptors of half the length."""
        return cls(encoder=LIGHT, coarse_dim=64, fine_dim=63, decoder_dim=48, reliability=True, keypoints=True)

    @property
    def descriptor_dim(self) -> int:
        """Length of a descriptor: the coarse and the fine sample and the reliability, concatenated."""
        return self.coarse_dim + self.fine_dim + self.reliability

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON or YAML."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelConfig:
        """The config of these values; what is not named takes its default.

        Raises:
            TypeError: ``values`` is not a mapping.
            ValueError: a key is unknown, or a value is refused.
        """
        if not isinstance(values, Mapping):
            raise TypeError(f"a model config is a mapping of settings, not {type(values).__name__}")
        known = [field.name for field in dataclasses.fields(cls)]
        unknown = sorted(str(key) for key in values if key not in known)
        if unknown:
            raise ValueError(f"unknown model setting {', '.join(unknown)}; known are {', '.join(known)}")
        return cls(**values)

    def to_json(self) -> str:
        """The config as a JSON text, one setting a line."""
        return json.dumps(self.to_dict(), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> ModelConfig:
        """The config of a JSON text, as :meth:`to_json` writes it.

        Raises:
            ValueError: the text is no JSON, or :meth:`from_dict` refuses its content.
        """
        return cls.from_dict(parse_json(text, "the model config"))


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; expected one of {', '.join(choices)}")
