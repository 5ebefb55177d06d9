"""Small models with known random weights, and scenes whose geometry is exact."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import torch

from capsdesc.models import ModelConfig, build_network
from capsdesc.weights import save_pretrained

Pixels = npt.NDArray[np.uint8]


def texture(height: int, width: int, seed: int) -> Pixels:
    """Random colours with structure at several scales."""
    rng = np.random.default_rng(seed)
    layers = [cv2.GaussianBlur(rng.normal(size=(height, width, 3)), (0, 0), sigma) * sigma for sigma in (1, 2, 4)]
    pixels: Pixels = np.clip(128 + 120 * np.sum(layers, axis=0), 0, 255).astype(np.uint8)
    return pixels


@pytest.fixture(scope="session", autouse=True)
def single_precision() -> Iterator[None]:
    """Extractors compute in float32 also where AMX makes bfloat16 the default, which is too coarse to compare with."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("capsdesc.describe.extractor.describing_dtype", lambda device: torch.float32)
        yield


@pytest.fixture(scope="session")
def model_folders(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """A compact network (unit length, cells at strides) and the paper's (raw, corners) with random weights.

    Random convolutions see the same where the image is the same, so they match shifted images. Their similarities are
    made steep enough for the softmax of the coarse-to-fine search to have a clear maximum.
    """
    folder = tmp_path_factory.mktemp("models")
    configs = {"compact": ModelConfig(), "paper": ModelConfig.paper("resnet18")}
    for name, config in configs.items():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            state: dict[str, Any] = dict(build_network(config).state_dict())
        if name == "compact":
            state["log_inverse_temperature"] = torch.tensor([7.0, 7.0])
        else:
            for head in ("conv_coarse", "conv_fine"):
                state[f"{head}.bn.weight"] = 5 * state[f"{head}.bn.weight"]
        save_pretrained(folder / name, config, state)
    return {name: folder / name for name in configs}


@pytest.fixture(scope="session")
def keypoint_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights with every head, that of keypoints among them."""
    config = ModelConfig(fine_dim=127, reliability=True, keypoints=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build_network(config)
    folder = tmp_path_factory.mktemp("keypoints") / "model"
    save_pretrained(folder, config, network.state_dict())
    return folder


@pytest.fixture(scope="session")
def shifted_pair() -> tuple[Pixels, Pixels, npt.NDArray[np.float64]]:
    """Two (240, 320, 3) windows of one texture, and what takes points of the first to the second.

    The shift is whole cells of stride 16, also at half size, so a convolutional network sees the same cells in both.
    """
    whole = texture(272, 352, seed=0)
    image0, image1 = whole[:240, :320].copy(), whole[32:, 32:].copy()
    for image in (image0, image1):
        image.flags.writeable = False
    return image0, image1, np.array([-32.0, -32.0])


@pytest.fixture(scope="session")
def stereo_pair() -> tuple[Pixels, Pixels, npt.NDArray[np.float64]]:
    """Two (320, 400, 3) views of five fronto-parallel planes, and their common (3, 3) intrinsics.

    The second camera stands to the right of the first, so R is the identity and t is (-1, 0, 0).
    """
    K = np.array([[300.0, 0, 199.5], [0, 300.0, 159.5], [0, 0, 1]])
    strips = texture(320, 460, seed=1).reshape(5, 64, 460, 3)
    disparities = (8, 20, 32, 44, 56)
    image1 = np.concatenate([strip[:, d : d + 400] for strip, d in zip(strips, disparities, strict=True)])
    return np.concatenate(list(strips[:, :, :400])), image1, K
