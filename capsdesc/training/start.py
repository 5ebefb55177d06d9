"""What training starts from: scenes, those held out to judge on, and a network."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from capsdesc.images import read_image, to_tensor
from capsdesc.models import ModelConfig, build_network
from capsdesc.training.config import TrainingConfig
from capsdesc.training.dataset import DataConfig, Scene
from capsdesc.training.sources.colmap import ColmapSource
from capsdesc.training.sources.listing import read_sources
from capsdesc.weights import load_encoder, resolve

logger = logging.getLogger(__name__)


def read_scenes(path: Path, config: DataConfig) -> list[Scene]:
    """The scenes of a folder with ``images/`` and ``sparse/``, or of a YAML file that lists sources."""
    sources = read_sources(path) if path.suffix in (".yaml", ".yml") else [ColmapSource(path=str(path))]
    scenes = [dataclasses.replace(scene, weight=source.weight) for source in sources for scene in source.scenes(config)]
    for scene in scenes:
        if len(scene.pairs) == 0:
            logger.warning("%s: no pair overlaps and differs enough to train on", scene.name)
    return scenes


def starting_network(
    config: ModelConfig,
    photographs: Sequence[Path],
    *,
    weights: str | None = None,
    encoder: str | None = None,
    from_scratch: bool = False,
) -> nn.Module:
    """The network with the parameters that training starts from.

    Args:
        config: of the network.
        photographs: that are trained on, for the batch statistics of an encoder.
        weights: fine-tune these; None for the bundled ones.
        encoder: start from this ImageNet encoder and a random decoder instead.
        from_scratch: start from random parameters throughout instead.

    Raises:
        ValueError: the weights or the encoder are of another network; weights may lack the keypoint head that the
            config asks for.
    """
    if from_scratch:
        return build_network(config)
    if encoder is None:
        resolved = resolve(weights)
        if resolved.config != config:
            # A head for keypoints may be added to what can describe already.
            if dataclasses.replace(resolved.config, keypoints=True) == config:
                logger.info("starting from %s and a random keypoint head", resolved.source)
                network = build_network(config)
                network.load_state_dict(resolved.state_dict, strict=False)
                return network
            raise ValueError(
                f"the weights {resolved.source} are of another network than the config asks for: "
                f"{resolved.config} is not {config}"
            )
        logger.info("starting from %s", resolved.source)
        return resolved.build()
    network = build_network(config)
    part = network if config.architecture == "caps" else network.get_submodule("encoder")
    state = load_encoder(encoder, config.encoder, images=lambda: sample_images(photographs))
    missing, unexpected = part.load_state_dict(state, strict=False)
    decoder_only = {name.split(".")[0] for name in missing} <= DECODER_PARTS
    if unexpected or not decoder_only:
        raise ValueError(f"{encoder} does not fit the encoder: missing {missing}, unexpected {unexpected}")
    return network


# What the paper's network has beside its encoder, which it extends.
DECODER_PARTS = {
    "conv_coarse",
    "upconv3",
    "iconv3",
    "upconv2",
    "iconv2",
    "conv_fine",
    "log_inverse_temperature",
}


def sample_images(photographs: Sequence[Path], count: int = 24, size: int = 320) -> torch.Tensor:
    """Centre squares of evenly spaced photographs, for statistics of activations; broken files are left out."""
    squares = []
    for k in np.unique(np.linspace(0, len(photographs) - 1, count).astype(int)):
        try:
            image = to_tensor(read_image(photographs[k]))
        except (OSError, ValueError) as error:
            logger.warning("skipped: %s", error)
            continue
        top, left = ((edge - min(edge, size)) // 2 for edge in image.shape[1:])
        square = image[:, top : top + size, left : left + size]
        squares.append(nn.functional.interpolate(square[None], size=(size, size), mode="area"))
    if not squares:
        raise ValueError(f"none of {count} photographs can be read; the encoder needs some for its batch statistics")
    return torch.cat(squares)


def hold_out(
    scenes: Sequence[Scene], validation: Sequence[Path], config: TrainingConfig
) -> tuple[list[Scene], list[Scene]]:
    """Training and validation scenes; without scenes of their own, a tenth of each scene's pairs is held out."""
    if validation:
        return list(scenes), [scene for path in validation for scene in read_scenes(path, config.data)]
    kept, held_out = [], []
    rng = np.random.default_rng(config.seed)
    for scene in scenes:
        order = rng.permutation(len(scene.pairs))
        count = max(1, len(order) // 10) if len(order) > 1 else 0
        held_out.append(dataclasses.replace(scene, pairs=scene.pairs[np.sort(order[:count])]))
        kept.append(dataclasses.replace(scene, pairs=scene.pairs[np.sort(order[count:])]))
    return kept, held_out
