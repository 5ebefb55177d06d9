"""From pairs to feature maps: loading batches and running the network over them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import cv2
import torch
from torch import nn
from torch.utils.data import DataLoader, Sampler

from capsdesc.devices import fastest_dtype, training_format
from capsdesc.models import DenseFeatures, ModelConfig, dense_features
from capsdesc.training.dataset import Batch, PairDataset, collate


def load_batches(
    pairs: PairDataset,
    batch_size: int,
    numbers: range,
    workers: int,
    device: torch.device,
    *,
    share: tuple[int, int] = (0, 1),
) -> DataLoader[Any]:
    """Batches of given numbers: number b holds the samples b * batch_size to (b + 1) * batch_size - 1.

    Args:
        pairs: the samples; the last batch holds fewer where they do not fill it.
        batch_size: samples per batch.
        numbers: which batches.
        workers: processes that prepare pairs.
        device: where the batches will be used.
        share: (k, n) for the k-th of n equal shares of each batch, which n must divide.
    """
    return DataLoader(
        pairs,
        batch_sampler=_Batches(batch_size, numbers, len(pairs), share),
        num_workers=workers,
        collate_fn=collate,
        worker_init_fn=_start_worker,
        pin_memory=device.type == "cuda",
    )


class _Batches(Sampler[list[int]]):
    """The sample indices of each batch."""

    def __init__(self, size: int, numbers: range, samples: int, share: tuple[int, int]) -> None:
        self.size, self.numbers, self.samples = size, numbers, samples
        part, parts = share
        self.first, self.last = size * part // parts, size * (part + 1) // parts

    def __iter__(self) -> Iterator[list[int]]:
        for number in self.numbers:
            start = number * self.size
            yield list(range(start + self.first, min(start + self.last, self.samples)))

    def __len__(self) -> int:
        return len(self.numbers)


def _start_worker(_: int) -> None:
    # A worker is one process among several: threads of its own would only fight for the same cores.
    torch.set_num_threads(1)
    cv2.setNumThreads(0)


def network_dtype(precision: str, device: torch.device) -> torch.dtype:
    """What a config's ``precision`` is on a device."""
    return fastest_dtype(device) if precision == "auto" else torch.float32 if precision == "float32" else torch.bfloat16


def pair_features(
    network: nn.Module, config: ModelConfig, batch: Batch, device: torch.device, dtype: torch.dtype
) -> tuple[DenseFeatures, DenseFeatures]:
    """Maps of the first and of the second images, from one pass over both."""
    images = torch.cat([batch.images0, batch.images1]).to(device, non_blocking=True)
    images = (images.float() / 255).contiguous(memory_format=training_format(device, dtype))
    with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
        features = dense_features(network, config, images, scores=config.keypoints)
    return features.split(len(batch.images0))
