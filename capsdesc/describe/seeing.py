"""A network at work on one image: where its keypoints are, and what points look like."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from capsdesc.describe.orientation import TurnedView
from capsdesc.keypoints.learned import BORDER, centres, peaks, strongest
from capsdesc.models import (
    DenseFeatures,
    ModelConfig,
    ScoreMap,
    SeenImage,
    Tile,
    cover,
    dense_features,
    fold_batch_norm,
    inverse_temperatures,
    tiles,
)
from capsdesc.models.maps import without_reliability
from capsdesc.models.network import FINE_STRIDE
from capsdesc.weights import Weights


@dataclasses.dataclass(frozen=True, eq=False)
class Seen:
    """Points of an image and what the network says of them; what was not asked for is None.

    Attributes:
        points: (N, 2) pixels.
        scores: (N,) how likely each is to be found again, between 0 and 1.
        descriptors: (N, D) float32.
        derivatives: (N, 2, C) float32, by the image's pixels.
    """

    points: Tensor
    scores: Tensor | None = None
    descriptors: Tensor | None = None
    derivatives: Tensor | None = None

    def __getitem__(self, rows: Tensor) -> Seen:
        """The points of these rows."""
        return Seen(**{name: values[rows] for name, values in vars(self).items() if values is not None})


class SeeingNetwork:
    """A network made ready to describe: batch normalisation folded, on its device, in its floating-point type.

    Images are (3, H, W) float tensors on the device, as large as the network is to see them.

    Attributes:
        config: the network's config.
        device: where it runs.
        dtype: what it computes in; what it returns is float32.
        reliability: whether descriptors say how likely a point is to be found again.
        inverse_temperatures: of the coarse and of the fine search.
    """

    def __init__(self, weights: Weights, device: torch.device, dtype: torch.dtype, reliability: bool) -> None:
        network = weights.build()
        self.config: ModelConfig = weights.config
        self.device, self.dtype, self.reliability = device, dtype, reliability
        coarse, fine = inverse_temperatures(network)
        self.inverse_temperatures = float(coarse.detach()), float(fine.detach())
        # Only where cells lie at fixed pixels and upsampling keeps them there is a part of an image like the whole.
        self._reach: int | None = getattr(network, "reach", None) if weights.config.sampling == "stride" else None
        self.network: nn.Module = fold_batch_norm(network).to(  # type: ignore[call-overload]
            device=device, memory_format=torch.channels_last
        )

    @property
    def descriptor_dim(self) -> int:
        """D, the length of a descriptor."""
        return self.config.descriptor_dim - (self.config.reliability and not self.reliability)

    def dense(self, image: Tensor) -> DenseFeatures:
        """All maps of an image but that of keypoints."""
        with self._computing():
            dense = dense_features(self.network, self.config, _batch(image))
        return dense if self.reliability else dense.without_reliability()

    def describe(self, view: TurnedView, derivatives: bool) -> tuple[Tensor, Tensor | None]:
        """(N, D) descriptors at a view's points and, if asked for, their (N, 2, C) derivatives by its pixels."""
        points = _with_neighbours(view.points, view.size).flatten(0, 1) if derivatives else view.points
        whole = Tile((0, 0), view.size, torch.arange(len(points), device=points.device))
        descriptors = points.new_empty(len(points), self.descriptor_dim)
        with self._computing():
            for tile in [whole] if self._reach is None else tiles(points, view.size, self._reach):
                inside = points[tile.members] - points.new_tensor(tile.origin)
                seen = SeenImage.of(self.network, self.config, _batch(view.crop(tile)))
                descriptors[tile.members] = seen.describe(inside, reliability=self.reliability)
        return self._with_derivatives(descriptors, points) if derivatives else (descriptors, None)

    def find(
        self,
        image: Tensor,
        count: int,
        allowed: Callable[[Tensor], Tensor] | None,
        *,
        describe: bool = False,
        derivatives: bool = False,
    ) -> Seen:
        """The network's own keypoints, strongest first, and if asked for what they look like, in one pass.

        Args:
            image: (3, H, W).
            count: at most so many.
            allowed: which of (N, 2) points may be keypoints; None for all.
            describe: whether to describe them.
            derivatives: whether to take derivatives too.
        """
        size = (image.shape[2], image.shape[1])
        parts = []
        with self._computing():
            for tile, own in cover(size, self._reach or 0):
                seen = SeenImage.of(self.network, self.config, _batch(tile.crop(image)))
                scores = seen.scores()
                with torch.autocast(self.device.type, enabled=False):  # places are float32
                    part = _find_in_tile(scores, tile, own, size, count, allowed)
                if describe:
                    points = _with_neighbours(part.points, size).flatten(0, 1) if derivatives else part.points
                    inside = points - points.new_tensor(tile.origin)
                    descriptors = (
                        seen.describe(inside, reliability=self.reliability)
                        if len(points)
                        else points.new_empty(0, self.descriptor_dim)
                    )
                    changes = None
                    if derivatives:
                        descriptors, changes = self._with_derivatives(descriptors, points)
                    part = dataclasses.replace(part, descriptors=descriptors, derivatives=changes)
                parts.append(part)
        if len(parts) == 1:
            return parts[0]
        fields = {field.name: [getattr(part, field.name) for part in parts] for field in dataclasses.fields(Seen)}
        whole = Seen(**{name: torch.cat(values) for name, values in fields.items() if values[0] is not None})
        assert whole.scores is not None
        return whole[whole.scores.argsort(descending=True, stable=True)[:count]]

    def _with_derivatives(self, descriptors: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        """The (N, D) descriptors at points and their derivatives, of those at (5 N, 2) points and their neighbours."""
        descriptors, points = descriptors.view(5, -1, self.descriptor_dim), points.view(5, -1, 2)
        appearance = without_reliability(descriptors) if self.reliability else descriptors
        # In an image of one pixel's width nothing changes along x.
        along_x, along_y = (
            (appearance[ahead] - appearance[behind]) / (points[ahead] - points[behind])[:, axis, None].clamp(min=1)
            for axis, (ahead, behind) in enumerate(((1, 2), (3, 4)))
        )
        return descriptors[0], torch.stack([along_x, along_y], dim=1)

    @contextlib.contextmanager
    def _computing(self) -> Iterator[None]:
        """Without gradients, in the floating-point type."""
        with (
            torch.no_grad(),
            torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32),
        ):
            yield


def _find_in_tile(
    scores: ScoreMap,
    tile: Tile,
    own: tuple[int, int, int, int],
    size: tuple[int, int],
    count: int,
    allowed: Callable[[Tensor], Tensor] | None,
) -> Seen:
    """The strongest keypoints of the pixels that are a tile's own, in the coordinates of the whole image."""

    def placed(pixels: Tensor) -> Tensor:
        return centres(scores.logits, pixels) + scores.shifts(pixels) + origin

    pixels = peaks(scores.logits, border=0)
    origin = pixels.new_tensor(tile.origin)
    low, high = pixels.new_tensor(own[:2]), pixels.new_tensor(own[2:])
    # Borders are those of the image, not of the tile.
    low, high = low.clamp(min=BORDER), torch.minimum(high, pixels.new_tensor(size) - BORDER)
    in_image = pixels + origin
    pixels = pixels[((in_image >= low) & (in_image < high)).all(-1)]
    if allowed is not None:
        pixels = pixels[allowed(placed(pixels))]
    pixels = strongest(scores.logits, pixels, count)
    return Seen(placed(pixels), scores.logits[pixels[:, 1], pixels[:, 0]].sigmoid())


def _batch(image: Tensor) -> Tensor:
    return image[None].contiguous(memory_format=torch.channels_last)


def _with_neighbours(points: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, 2) points of an image of that size, and those a fine cell right, left, below and above: (5, N, 2).

    Neighbours beyond the centres of the outermost pixels are those centres.
    """
    steps = FINE_STRIDE * points.new_tensor([[1, 0], [-1, 0], [0, 1], [0, -1]])
    neighbours = (points + steps[:, None]).clamp(min=0).minimum(points.new_tensor(size) - 1)
    return torch.cat([points[None], neighbours])
