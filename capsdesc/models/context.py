"""The network that tells right candidates of a pair of images from wrong ones by what the others around them say.

A candidate is a pair of keypoints whose descriptors are close. It is judged by its own similarity beside that of its
rivals, by whether the candidates near it in either image move with it (a consensus of neighbourhoods, learned), and by
what all candidates of the pair agree on, which a few tokens sum up and hand back (induced attention, Lee et al., Set
Transformer, ICML 2019; OANet, Zhang et al., ICCV 2019, pools and unpools likewise). All of it is linear in the number
of candidates.
"""

from __future__ import annotations

import dataclasses
import json
import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from capsdesc.checks import check_numbers
from capsdesc.io.settings import build
from capsdesc.io.text import parse_json

EVIDENCE = 8
"""How many numbers say what the descriptors alone know of a candidate."""
_FREQUENCIES = 5
# Of everything: no more than a file can ask for without harm.
_MOST = 4096


@dataclasses.dataclass(frozen=True)
class ContextConfig:
    """What a matcher that sees context is made of.

    Attributes:
        descriptor: the fingerprint of the weights whose features it was trained on.
        dimensions: of their descriptors, reliability included.
        width: channels of a candidate.
        blocks: how often candidates look around.
        tokens: that sum up all candidates.
        heads: of the attention to and from tokens.
        neighbours: how many matches around a candidate are looked at in each image.
        candidates: partners of a keypoint that are looked at.
        reliability: whether the last number of a descriptor says how reliable it is.

    Raises:
        ValueError: a number is out of range.
    """

    descriptor: str
    dimensions: int = 256
    width: int = 64
    blocks: int = 4
    tokens: int = 64
    heads: int = 4
    neighbours: int = 6
    candidates: int = 2
    reliability: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.descriptor, str):
            raise ValueError(f"descriptor is {self.descriptor!r}; expected the fingerprint of weights")
        names = ("dimensions", "width", "blocks", "tokens", "heads", "neighbours", "candidates")
        check_numbers(self, *names, least=1, most=_MOST)
        if self.width % self.heads:
            raise ValueError(f"width is {self.width}; expected a multiple of the {self.heads} heads")

    @classmethod
    def from_json(cls, text: str) -> ContextConfig:
        """The config of a file; what it does not name takes its default.

        Raises:
            ValueError: it is no JSON object, does not say whose descriptors it takes, or has other entries.
        """
        values = parse_json(text, "the matcher's config")
        # Whose descriptors they are has no default.
        return build(cls, {"descriptor": None, **values} if isinstance(values, dict) else values)

    def to_json(self) -> str:
        """The config as text."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"


@dataclasses.dataclass(frozen=True, eq=False)
class Candidates:
    """What the network is told of a pair of images with C candidates, A of them mutual nearest neighbours.

    Attributes:
        rows: (C,) int64 keypoint of image 0 of each.
        columns: (C,) int64 keypoint of image 1 of each.
        evidence: (C, EVIDENCE) what the descriptors say.
        places: (2, C, 2) where the keypoints are, the images' longer edges being from -1 to 1.
        anchors: (A,) int64 the candidates that are mutual nearest neighbours.
        near: (2, C, K) int64 indices of the anchors nearest to each candidate in image 0 and in image 1.
        present: (2, C, K) whether there is such an anchor.
    """

    rows: Tensor
    columns: Tensor
    evidence: Tensor
    places: Tensor
    anchors: Tensor
    near: Tensor
    present: Tensor


class ContextNetwork(nn.Module):
    """Candidates to logits of being right; see the module.

    Args:
        config: its sizes.
    """

    def __init__(self, config: ContextConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.embed = nn.Sequential(nn.Linear(EVIDENCE + 8 * _FREQUENCIES, width), nn.ReLU(), nn.Linear(width, width))
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.blocks))
        self.judge = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 1)) for _ in range(config.blocks)
        )

    def forward(self, candidates: Candidates, at_once: int | None = None) -> list[Tensor]:
        """(C,) logits after each block in training; only those after the last one, which are the answer, otherwise.

        Args:
            candidates: of a pair of images, C of them.
            at_once: so many look around at a time, so that what they see stays in the processor's caches; None: all.
        """
        if len(candidates.evidence) == 0:
            return [candidates.evidence[:, 0]]
        x = self.embed(torch.cat([candidates.evidence, _waves(candidates.places)], dim=1)).float()
        around = _Around.of(candidates)
        logits = []
        for number, (block, judge) in enumerate(zip(self.blocks, self.judge, strict=True), 1):
            x = block(x, around, at_once)
            if self.training or number == len(self.blocks):
                # Not in half precision: among rivals, and at a threshold, the last digits decide.
                with torch.autocast(x.device.type, enabled=False):
                    logits.append(judge(x)[:, 0])
        return logits


class _Block(nn.Module):
    """One look around: at the anchors near a candidate in either image, and at what all have in common."""

    def __init__(self, config: ContextConfig) -> None:
        super().__init__()
        width = config.width
        self.norm = nn.LayerNorm(width)
        self.of_edge = nn.Linear(_EDGE, width)
        self.of_anchor = nn.Linear(width, width)
        self.heads = config.heads
        self.tokens = nn.Parameter(torch.randn(config.tokens, width) / math.sqrt(width))
        self.to_tokens = nn.Linear(width, 2 * width)
        self.think = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width)
        )
        self.ask = nn.Linear(width, width)
        self.from_tokens = nn.Linear(width, 2 * width)
        self.merge = nn.Sequential(nn.Linear(6 * width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor, around: _Around, at_once: int | None) -> Tensor:
        seen = self.norm(x)
        anchors = self.of_anchor(seen[around.anchors]).float() + self.of_edge.bias
        # What an anchor that is not there says is nothing after the ReLU.
        anchors = torch.cat([anchors, torch.full_like(anchors[:1], -torch.inf)])
        keys, values = self.to_tokens(seen).chunk(2, dim=-1)
        tokens = self._attend(self.tokens, keys, values)
        tokens = tokens + self.think(tokens)
        keys, values = self.from_tokens(tokens).chunk(2, dim=-1)

        def look(part: slice) -> Tensor:
            heard = []
            # There is little to multiply and much to read, which processors do best in float32.
            with torch.autocast(x.device.type, enabled=False):
                for side in (0, 1):
                    near, edges = around.near[side, part], around.edges[side, part]
                    message = F.embedding(near.flatten(), anchors)
                    message = message.addmm_(edges.flatten(0, 1), self.of_edge.weight.T).relu_()
                    message = message.view(*near.shape, -1)
                    heard += [message.amax(1), message.sum(1) / around.counts[side, part]]
            common = self._attend(self.ask(seen[part]), keys, values)
            merged: Tensor = x[part] + self.merge(torch.cat([seen[part], *heard, common], dim=1))
            return merged

        if at_once is None:
            return look(slice(None))
        return torch.cat([look(slice(start, start + at_once)) for start in range(0, len(x), at_once)])

    def _attend(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        q, k, v = (t.view(t.shape[0], self.heads, -1).transpose(0, 1)[None] for t in (queries, keys, values))
        attended: Tensor = F.scaled_dot_product_attention(q, k, v)[0].transpose(0, 1).flatten(-2)
        return attended


_EDGE = 9


class _Around(NamedTuple):
    """What is around each of C candidates.

    Attributes:
        anchors: (A,) which candidates are anchors.
        near: (2, C, K) the anchors nearest to a candidate in image 0 and in image 1; A where there is none.
        counts: (2, C, 1) how many there are, at least 1.
        edges: (2, C, K, 9) how they lie beside it.
    """

    anchors: Tensor
    near: Tensor
    counts: Tensor
    edges: Tensor

    @classmethod
    def of(cls, candidates: Candidates) -> _Around:
        present = candidates.present
        # Not len, which is no part of an exported graph.
        near = torch.where(present, candidates.near, candidates.anchors.shape[0])
        counts = present.sum(2, keepdim=True).clamp_min(1)
        return cls(candidates.anchors, near, counts, torch.stack([_edges(candidates, side) for side in (0, 1)]))


def _edges(candidates: Candidates, side: int) -> Tensor:
    """(C, K, 9) how anchors near a candidate in one image lie beside it in both.

    In units of the distance of the farthest of them, so that it is the same for keypoints as dense or as sparse; long
    steps count by their logarithm.
    """
    places = torch.cat([candidates.places[side], candidates.places[1 - side]], dim=1)
    steps = F.embedding(candidates.near[side], places[candidates.anchors]) - places[:, None]
    here, there = steps.chunk(2, dim=-1)
    distances = here.norm(dim=-1) * candidates.present[side]
    scale = distances.amax(1, keepdim=True)[..., None].clamp_min(1e-4)
    here, there = here / scale, there / scale
    length = there.norm(dim=-1, keepdim=True)
    short = there * (torch.log1p(length) / length.clamp_min(1e-6))
    aside = (there - here).norm(dim=-1, keepdim=True)
    extra = [torch.log1p(length), here.norm(dim=-1, keepdim=True), torch.log1p(aside)]
    return torch.cat([here, short, *extra, torch.exp(-aside), scale.log().expand_as(aside) / 4], dim=-1)


def _waves(places: Tensor) -> Tensor:
    """(C, 8 frequencies) sines and cosines of where candidates are in both images."""
    angles = torch.cat([places[0], places[1]], dim=1)[..., None] * (
        math.pi * 2.0 ** torch.arange(-1, _FREQUENCIES - 1, device=places.device)
    )
    return torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(1)
