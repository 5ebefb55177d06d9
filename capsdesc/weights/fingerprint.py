"""What tells one set of weights from another."""

from __future__ import annotations

import hashlib

from torch import nn

from capsdesc.models import ModelConfig


def fingerprint(config: ModelConfig, network: nn.Module) -> str:
    """A hash of the network that is loaded, not of the file it came from, which training may have replaced since."""
    digest = hashlib.sha256(config.to_json().encode())
    for name, tensor in network.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
