"""The exponential moving average of a network's weights, which is judged and published."""

from __future__ import annotations

import copy

import torch
from torch import nn


class MovingAverage:
    """A network whose weights follow another's.

    Not ``torch.optim.swa_utils.AveragedModel``: its first update drops the weights that training started from, its
    count of updates waits for the GPU at each step, and it would have to be kept in checkpoints beside the step.

    Batch statistics are averaged like the weights they belong to; counters are copied. The decay rises as
    ``min(decay, (1 + step) / (10 + step))``, so that the start is soon forgotten.

    Args:
        network: the network to follow.
        decay: share of the average that a step keeps at most; 0 switches averaging off.

    Attributes:
        network: of the averaged weights, in eval mode; the followed network itself where ``decay`` is 0.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.network = network
        if decay == 0:
            return
        self.network = copy.deepcopy(network).requires_grad_(False).eval()
        self._averages, self._counters = _by_kind(self.network)
        self._followed, self._followed_counters = _by_kind(network)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the followed weights after step number ``step``, counted from 0."""
        if self.decay == 0:
            return
        kept = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._averages, self._followed, 1 - kept)
        if self._counters:
            torch._foreach_copy_(self._counters, self._followed_counters)


def _by_kind(network: nn.Module) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The floating-point tensors of a network, and its counters."""
    tensors = [tensor.detach() for tensor in network.state_dict().values()]
    return [t for t in tensors if t.is_floating_point()], [t for t in tensors if not t.is_floating_point()]
