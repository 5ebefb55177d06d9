"""Weights of the matcher that sees context: ``config.json`` beside ``model.safetensors``, as those of descriptors."""

from __future__ import annotations

import contextlib
import importlib.resources
import os
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from capsdesc.io.files import atomic_path
from capsdesc.isolation import isolated
from capsdesc.models.context import ContextConfig, ContextNetwork
from capsdesc.weights.files import (
    CARD_FILE,
    CONFIG_FILE,
    TENSORS_FILE,
    Readable,
    conform,
    read_safetensors,
    shapes,
)

_BUNDLED = importlib.resources.files("capsdesc.weights") / "bundled_matcher"


@isolated()
def load_context(path: str | os.PathLike[str] | None = None) -> ContextNetwork:
    """A trained network of :class:`capsdesc.CAPSMatcher`: float32, on the CPU, in eval mode.

    Args:
        path: None for the bundled one; else a folder with ``config.json`` and ``model.safetensors``.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file cannot be read, or the two do not fit each other.
    """
    config_file: Readable
    tensors_file: Readable
    if path is None:
        source = "the bundled matcher"
        config_file, tensors_file = (_BUNDLED / name for name in (CONFIG_FILE, TENSORS_FILE))
    else:
        folder = Path(path)
        source = str(folder)
        config_file, tensors_file = folder / CONFIG_FILE, folder / TENSORS_FILE
        for file in (config_file, tensors_file):
            if not file.is_file():
                raise FileNotFoundError(f"{folder} is no matcher: there is no {file}")
    try:
        config = ContextConfig.from_json(config_file.read_bytes().decode("utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{source}: {CONFIG_FILE} is refused: {error}") from error
    network = _empty(config)
    tensors = conform(read_safetensors(tensors_file, source), shapes(network), source)
    network.load_state_dict(tensors, strict=True, assign=True)
    return network.eval()


@isolated()
def save_context(
    folder: str | os.PathLike[str],
    config: ContextConfig,
    state_dict: Mapping[str, Tensor],
    *,
    dtype: torch.dtype = torch.float32,
    card: str | None = None,
) -> None:
    """Write a matcher that :func:`load_context` reads; all files are written before any takes its place.

    Args:
        folder: made if it does not exist; files of these names in it are replaced.
        config: the network's config.
        state_dict: the network's ``state_dict()``, complete.
        dtype: of the stored tensors, ``torch.float32`` or ``torch.float16``.
        card: text of the model card, written as ``README.md``.

    Raises:
        ValueError: ``state_dict`` does not fit ``config``, or has values that are not finite, in ``dtype``.
    """
    expected = shapes(_empty(config))
    tensors = conform(state_dict, expected, "state_dict")
    stored = {key: tensor.to("cpu", dtype).contiguous() for key, tensor in tensors.items()}
    conform(stored, expected, f"state_dict as {dtype}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:

        def temporary(name: str) -> Path:
            return Path(stack.enter_context(atomic_path(folder / name)))

        temporary(TENSORS_FILE).write_bytes(safetensors.torch.save(stored, metadata={"format": "pt"}))
        temporary(CONFIG_FILE).write_text(config.to_json(), encoding="utf-8")
        if card is not None:
            temporary(CARD_FILE).write_text(card, encoding="utf-8")


def _empty(config: ContextConfig) -> ContextNetwork:
    # On the meta device nothing is allocated and no random number is drawn.
    with torch.device("meta"):
        return ContextNetwork(config)
