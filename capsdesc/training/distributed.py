"""Several processes that train one network, as ``torchrun`` starts them.

Each process runs the network over its share of every batch. What couples the samples of a batch is computed over the
whole of it, so that the steps are those of one process but for the order of float32 sums:

- Batch normalisation takes its statistics over all processes.
- The loss divides by sums over the batch, so the feature maps are gathered before it and every process computes the
  loss of the whole batch. Where processes meet, gradients are those of the sum of these equal losses; the mean over
  processes that DistributedDataParallel takes of them is the gradient of one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from capsdesc.models import DenseFeatures, FeatureMap
from capsdesc.training.supervision import Supervision

T = TypeVar("T")


@contextlib.contextmanager
def process_group(device: torch.device) -> Iterator[torch.device]:
    """Join the processes that ``torchrun`` started together; nothing happens in a process that it did not start.

    Args:
        device: where to compute. Of several GPUs each process of a machine takes its own.

    Yields:
        The device of this process.
    """
    if not dist.is_torchelastic_launched():
        yield device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    yield device
    # Not after an error: the others may wait for this process, and torchrun ends them when it fails.
    dist.destroy_process_group()


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this is the process that writes and logs."""
    return rank() == 0


def from_main(value: T) -> T:
    """What the main process passed; the others' values are ignored."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def from_all(value: T) -> list[T]:
    """What each process passed, in their order."""
    if world_size() == 1:
        return [value]
    values: list[T] = [value] * world_size()
    dist.all_gather_object(values, value)
    return values


def replicate(network: nn.Module) -> nn.Module:
    """The network as one of its replicas that are trained together; itself where there is one process."""
    if world_size() == 1:
        return network
    return DistributedDataParallel(network, gradient_as_bucket_view=True)


def original(network: nn.Module) -> nn.Module:
    """The network that a replica was made of."""
    return network.module if isinstance(network, DistributedDataParallel) else network


def gather_features(features: DenseFeatures) -> DenseFeatures:
    """The maps of all processes' images, in their order; gradients flow back to each."""
    if world_size() == 1:
        return features
    maps = {name: value for name, value in vars(features).items() if isinstance(value, FeatureMap)}
    rows = _Gather.apply(*(of.values for of in maps.values()))  # type: ignore[no-untyped-call]
    gathered: dict[str, Any] = {
        name: dataclasses.replace(of, values=values) for (name, of), values in zip(maps.items(), rows, strict=True)
    }
    return dataclasses.replace(features, **gathered)


def gather_supervision(supervision: Supervision) -> Supervision:
    """The supervision of all processes' pairs, in their order."""
    if world_size() == 1:
        return supervision
    fields = {field.name: getattr(supervision, field.name) for field in dataclasses.fields(supervision)}
    return Supervision(**{name: _gather(value) for name, value in fields.items()})


def _gather(tensor: Tensor) -> Tensor:
    """Rows of all processes, in their order."""
    if tensor.dtype == torch.bool:  # gloo knows no truth values
        return _gather(tensor.byte()).bool()
    parts = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(world_size())]
    dist.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)


class _Gather(torch.autograd.Function):
    """Rows of all processes of several tensors.

    In one function, so that a map that the loss does not use has a gradient too, of zero: DistributedDataParallel waits
    for the gradient of every parameter.
    """

    @staticmethod
    def forward(_: Any, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(_gather(tensor) for tensor in tensors)

    @staticmethod
    def backward(_: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        # Every process computes the same of what was gathered, so the sum over them is so many times the own.
        return tuple(gradient.chunk(world_size())[rank()] * world_size() for gradient in gradients)


def _sum_over_all(tensor: Tensor) -> Tensor:
    total: Tensor = _SumOverAll.apply(tensor)  # type: ignore[no-untyped-call]
    return total


class _SumOverAll(torch.autograd.Function):
    """The sum over all processes."""

    @staticmethod
    def forward(_: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        dist.all_reduce(total)
        return total


def synchronize_batch_norm(network: nn.Module, device: torch.device) -> None:
    """Make the batch normalisation inside a network use the statistics of all processes; names and values stay."""
    if world_size() == 1:
        return
    if device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
        return
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, SynchronizedBatchNorm2d.like(child))


class SynchronizedBatchNorm2d(nn.BatchNorm2d):
    """What ``torch.nn.SyncBatchNorm`` is on GPUs only. All processes must have as many images of the same size."""

    momentum: float
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    @classmethod
    def like(cls, norm: nn.BatchNorm2d) -> SynchronizedBatchNorm2d:
        """One with the parameters, statistics and mode of another."""
        new = cls(norm.num_features, norm.eps, norm.momentum).train(norm.training)
        new.load_state_dict(norm.state_dict(), assign=True)
        return new

    def forward(self, input: Tensor) -> Tensor:  # noqa: D102
        if not self.training:
            return super().forward(input)
        x = input.to(torch.promote_types(input.dtype, torch.float32))
        count = x.numel() // x.shape[1] * world_size()
        mean = _sum_over_all(x.sum((0, 2, 3))) / count
        centred = x - mean[:, None, None]
        # Summing squares of centred values takes a second exchange, but loses no digits.
        variance = _sum_over_all(centred.square().sum((0, 2, 3))) / count
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)
            self.num_batches_tracked += 1
        scale = self.weight * (variance + self.eps).rsqrt()
        normalized: Tensor = centred * scale[:, None, None] + self.bias[:, None, None]
        return normalized.to(input.dtype)
