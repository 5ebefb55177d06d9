"""Checkpoints of the authors' own training code (github.com/qianqianwang68/caps), to the key."""

from __future__ import annotations

import os
from pathlib import Path

from capsdesc.isolation import isolated
from capsdesc.models import ModelConfig
from capsdesc.models.config import RESNETS
from capsdesc.weights.files import Weights, conform, expected_shapes, read_pickle, save_pretrained

_PREFIX = "net."


def read_official(path: str | os.PathLike[str]) -> Weights:
    """The paper's network of an official checkpoint.

    The checkpoint is ``{step, state_dict, optimizer, scheduler}``, of which the state dict is used, or a bare state
    dict; its keys start with ``net.`` or are bare, all alike, once what torch's wrappers put before all of them is
    taken off. The encoder is the ResNet that the tensors fit best, and then they must fit it exactly.

    Raises:
        OSError: the file cannot be opened.
        ValueError: it is no such checkpoint; the message names the keys that do not fit.
    """
    path = Path(path).absolute()
    state_dict = read_pickle(path)
    prefix = _PREFIX if any(key.startswith(_PREFIX) for key in state_dict) else ""
    given = {(key, tensor.shape) for key, tensor in state_dict.items()}
    configs = [ModelConfig.paper(encoder) for encoder in RESNETS]
    candidates = [
        (config, {prefix + key: shape for key, shape in expected_shapes(config).items()}) for config in configs
    ]
    config, expected = min(candidates, key=lambda candidate: len(given ^ set(candidate[1].items())))
    tensors = conform(state_dict, expected, f"{path} (taken for {config.encoder})")
    return Weights(config, {key.removeprefix(prefix): tensor for key, tensor in tensors.items()}, str(path))


@isolated()
def convert_official(path: str | os.PathLike[str], folder: str | os.PathLike[str]) -> Weights:
    """Convert an official checkpoint to ``config.json`` and ``model.safetensors`` (float32, so nothing is lost).

    Raises:
        OSError: the checkpoint cannot be opened, or the folder not be written.
        ValueError: see :func:`read_official`.
    """
    weights = read_official(path)
    save_pretrained(folder, weights.config, weights.state_dict)
    return weights
