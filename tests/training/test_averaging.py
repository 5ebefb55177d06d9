"""The moving average of weights, re-derived in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from capsdesc.training.averaging import MovingAverage


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).train()


@pytest.mark.parametrize("decay", [0.2, 0.999])
def test_weights_and_statistics_follow_with_a_decay_that_rises(decay: float) -> None:
    followed = network()
    average = MovingAverage(followed, decay)
    expected = {name: value.numpy().copy() for name, value in followed.state_dict().items()}
    for step in range(12):
        followed(torch.randn(5, 3, 4, 4) + step)
        with torch.no_grad():
            for parameter in followed.parameters():
                parameter.add_(torch.randn_like(parameter))
        average.update(step)
        kept = min(decay, (1 + step) / (10 + step))
        for name, value in followed.state_dict().items():
            expected[name] = (
                value.numpy().copy()
                if name.endswith("num_batches_tracked")
                else kept * expected[name] + (1 - kept) * value.numpy()
            )
    state = average.network.state_dict()
    assert state.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(state[name].numpy(), value, rtol=1e-5, atol=1e-5, err_msg=name)
    assert int(state["1.num_batches_tracked"]) == 12
    assert not average.network.training
    assert followed.training
    assert all(parameter.requires_grad for parameter in followed.parameters())


def test_no_average_is_the_network_itself() -> None:
    followed = network()
    average = MovingAverage(followed, 0.0)
    before = {name: value.clone() for name, value in followed.state_dict().items()}
    average.update(0)
    assert average.network is followed
    assert all(torch.equal(value, before[name]) for name, value in followed.state_dict().items())
