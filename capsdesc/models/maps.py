"""Feature maps that know where their cells lie in the image.

This is the one place where pixels become cells. Pixel (0, 0) is the centre of the top-left pixel, cell (0, 0) the
centre of the top-left cell, and each axis maps linearly: ``pixel = cell * scale + offset``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from capsdesc.models.config import ModelConfig
from capsdesc.models.network import (
    COARSE_STRIDE,
    FINE_STRIDE,
    CAPSNetwork,
    CompactNetwork,
    Pyramid,
    normalize_image,
)


@dataclasses.dataclass(frozen=True, eq=False)
class FeatureMap:
    """Features on a regular grid of cells over an image.

    Attributes:
        values: (B, C, h, w) features.
        scale: pixels per cell along x and y.
        offset: pixel coordinates x, y of the centre of cell (0, 0).
    """

    values: Tensor
    scale: tuple[float, float]
    offset: tuple[float, float] = (0.0, 0.0)

    @property
    def columns(self) -> Tensor:
        """(w,) pixel x of each column of cells."""
        cells = torch.arange(self.values.shape[-1], device=self.values.device, dtype=torch.float32)
        return cells * self.scale[0] + self.offset[0]

    @property
    def rows(self) -> Tensor:
        """(h,) pixel y of each row of cells."""
        cells = torch.arange(self.values.shape[-2], device=self.values.device, dtype=torch.float32)
        return cells * self.scale[1] + self.offset[1]

    def pixels_to_cells(self, points: Tensor) -> Tensor:
        """(..., 2) pixel coordinates x, y to fractional cell coordinates (column, row)."""
        return (points - points.new_tensor(self.offset)) / points.new_tensor(self.scale)

    def sample(self, points: Tensor) -> Tensor:
        """Bilinear samples; beyond the outermost cells the map goes on with its border value.

        Args:
            points: (B, N, 2) pixel coordinates x, y.

        Returns:
            (B, N, C) features.
        """
        height, width = self.values.shape[-2:]
        # grid_sample without align_corners=True would read up to half a cell beside the point (torch >= 1.3).
        last_cell = points.new_tensor([max(width - 1, 1), max(height - 1, 1)])
        grid = self.pixels_to_cells(points) * (2 / last_cell) - 1
        samples = F.grid_sample(
            self.values, grid[:, None].to(self.values.dtype), padding_mode="border", align_corners=True
        )
        return samples[:, :, 0].transpose(1, 2)

    def seen_at(self, resize: tuple[float, float]) -> FeatureMap:
        """The same map over the image before it was resized by the factors ``resize`` along x and y."""
        (sx, sy), (ox, oy), (rx, ry) = self.scale, self.offset, resize
        # A pixel centre p of the original is (p + 0.5) * r - 0.5 in the resized image.
        return dataclasses.replace(
            self, scale=(sx / rx, sy / ry), offset=((ox + 0.5) / rx - 0.5, (oy + 0.5) / ry - 0.5)
        )


@dataclasses.dataclass(frozen=True, eq=False)
class DenseFeatures:
    """The coarse and the fine descriptor map of images, from which any point's descriptor is read.

    Attributes:
        coarse: features at stride 16.
        fine: features at stride 4.
        image_size: width and height in pixels that the maps' pixel coordinates refer to.
        normalized: whether features and descriptors have unit length.
        reliability: (B, 1, h, w) logits of a point's being found again, or None.
        scores: (B, 3, H, W) logits of a pixel's being a keypoint, and how far to the right and down it is then shifted,
            see :func:`capsdesc.keypoints.learned.refine`; or None.
    """

    coarse: FeatureMap
    fine: FeatureMap
    image_size: tuple[int, int]
    normalized: bool
    reliability: FeatureMap | None = None
    scores: FeatureMap | None = None

    def sample(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """(B, N, 2) pixel coordinates to coarse (B, N, Cc) and fine (B, N, Cf) features."""
        coarse, fine = self.coarse.sample(points), self.fine.sample(points)
        if self.normalized:
            coarse, fine = F.normalize(coarse, dim=-1), F.normalize(fine, dim=-1)
        return coarse, fine

    def describe(self, points: Tensor) -> Tensor:
        """Descriptors at points: both features, concatenated (section 3.3).

        With a reliability r between 0 and 1 the descriptor is (sqrt(r) d, sqrt(1 - r)), of unit length again. The less
        reliable two points are, the more alike their last coordinates make them. So what has no partner finds its
        nearest neighbour among other points that have none, where hardly any two are each other's nearest, instead of
        taking the place of a right match.

        Args:
            points: (B, N, 2) pixel coordinates x, y.

        Returns:
            (B, N, Cc + Cf), or one more with a reliability.
        """
        descriptors: Tensor = torch.cat(self.sample(points), dim=-1)
        if not self.normalized:
            return descriptors
        # Both halves have unit length, so this is what normalising the concatenation gives.
        descriptors = descriptors * 0.5**0.5
        if self.reliability is None:
            return descriptors
        logit = self.reliability.sample(points)
        # The roots of sigmoid(x) and sigmoid(-x) by way of logarithms, so that their gradients stay finite.
        root, root_of_rest = (0.5 * F.logsigmoid(logit)).exp(), (0.5 * F.logsigmoid(-logit)).exp()
        with_reliability: Tensor = torch.cat([descriptors * root, root_of_rest], dim=-1)
        return with_reliability

    def without_reliability(self) -> DenseFeatures:
        """The same maps, with descriptors that say nothing of reliability and are shorter by one."""
        return dataclasses.replace(self, reliability=None)

    def split(self, first: int) -> tuple[DenseFeatures, DenseFeatures]:
        """The maps of the first so many images, and those of the others."""

        def part(rows: slice) -> DenseFeatures:
            return self._each(lambda feature_map: dataclasses.replace(feature_map, values=feature_map.values[rows]))

        return part(slice(None, first)), part(slice(first, None))

    def seen_at(self, resize: tuple[float, float], image_size: tuple[int, int]) -> DenseFeatures:
        """The same maps over the image before it was resized by the factors ``resize`` along x and y."""
        return dataclasses.replace(self._each(lambda feature_map: feature_map.seen_at(resize)), image_size=image_size)

    def _each(self, change: Callable[[FeatureMap], FeatureMap]) -> DenseFeatures:
        """The same with every map changed."""
        return dataclasses.replace(
            self,
            coarse=change(self.coarse),
            fine=change(self.fine),
            reliability=None if self.reliability is None else change(self.reliability),
            scores=None if self.scores is None else change(self.scores),
        )


def without_reliability(descriptors: Tensor) -> Tensor:
    """The (..., C) descriptors that go into (..., C + 1) ones in :meth:`DenseFeatures.describe`."""
    return F.normalize(descriptors[..., :-1], dim=-1)


# Computing cells one by one takes twice as long a cell as computing the whole map.
_FEW_CELLS = 0.5


def dense_features(network: nn.Module, config: ModelConfig, images: Tensor, *, scores: bool = False) -> DenseFeatures:
    """Run a network over images of one size.

    Args:
        network: as :func:`~capsdesc.models.build_network` makes it.
        config: the network's config.
        images: (B, 3, H, W) RGB in 0..1.
        scores: whether to compute the map of keypoint logits too, which ``config.keypoints`` must have.

    Returns:
        Float32 maps with their transforms.
    """
    images = normalize_image(images)
    maps = network(images, scores=True) if scores else network(images)
    height, width = images.shape[-2:]
    return _placed(maps[: len(maps) - scores], config, (width, height), maps[-1] if scores else None)


@dataclasses.dataclass(frozen=True, eq=False)
class ScoreMap:
    """What ``scores`` of :class:`DenseFeatures` says, of a single image, with shifts only where they are asked for.

    Attributes:
        logits: (H, W) float32.
        cells: (8, h, w), of each cell at stride 2 the shifts of its pixels before their tanh, see
            :meth:`~capsdesc.models.network.CompactNetwork.answers`.
    """

    logits: Tensor
    cells: Tensor

    def shifts(self, pixels: Tensor) -> Tensor:
        """(N, 2) float32 shifts along x and y of (N, 2) pixels x, y."""
        columns, rows = pixels.unbind(-1)
        of_cell = 2 * (rows % 2) + columns % 2
        channels = of_cell + of_cell.new_tensor([[0], [4]])
        return self.cells[channels, rows // 2, columns // 2].tanh().float().T


@dataclasses.dataclass(frozen=True, eq=False)
class SeenImage:
    """A single image after the part of a network that all its maps have in common, to be read at points.

    It must be read under the same autocast as it was made.

    Attributes:
        network: as :func:`~capsdesc.models.build_network` makes it.
        config: the network's config.
        image_size: width and height in pixels.
        pyramid: what its maps are made of.
    """

    network: CAPSNetwork | CompactNetwork
    config: ModelConfig
    image_size: tuple[int, int]
    pyramid: Pyramid

    @classmethod
    def of(cls, network: nn.Module, config: ModelConfig, image: Tensor) -> SeenImage:
        """The (1, 3, H, W) image, RGB in 0..1, seen by a network."""
        parts = cast("CAPSNetwork | CompactNetwork", network)
        height, width = image.shape[-2:]
        return cls(parts, config, (width, height), parts.pyramid(normalize_image(image)))

    def scores(self) -> ScoreMap:
        """What the network says of keypoints; the config must have them."""
        width, height = self.image_size
        answers = cast("CompactNetwork", self.network).answers(self.pyramid)[0]
        rows, columns = answers.shape[1:]
        logits = answers[:4].permute(1, 2, 0).float().view(rows, columns, 2, 2).transpose(1, 2)
        # Cells at stride 2 may reach a pixel beyond the image.
        return ScoreMap(logits.reshape(2 * rows, 2 * columns)[:height, :width], answers[4:])

    def describe(self, points: Tensor, *, reliability: bool) -> Tensor:
        """(N, D) descriptors at (N, 2) pixels; only the cells that they need are computed, where that saves time.

        Args:
            points: pixel coordinates x, y.
            reliability: whether descriptors say how likely a point is to be found again, where the network has that.
        """
        # Single cells have been seen to save time on CPUs only.
        read = _cells_read(points, self.image_size, self.config.sampling) if points.device.type == "cpu" else None
        if read is not None and read.float().mean() > _FEW_CELLS:
            read = None
        maps = self.network.maps(self.pyramid, read)
        if read is not None:
            maps = (maps[0], *(_spread(values, read) for values in maps[1:]))
        dense = _placed(maps, self.config, self.image_size, None)
        # Whatever the network computes in, it is read in float32.
        with torch.autocast(points.device.type, enabled=False):
            return (dense if reliability else dense.without_reliability()).describe(points[None])[0]


def _placed(
    maps: Sequence[Tensor], config: ModelConfig, image_size: tuple[int, int], scores: Tensor | None
) -> DenseFeatures:
    """A network's output as float32 maps over the image."""

    def placed(values: Tensor, stride: int) -> FeatureMap:
        return FeatureMap(values, cell_scale(values, image_size, stride, config.sampling))

    coarse, fine, *logits = (values.float() for values in maps)
    if config.normalize:
        coarse, fine = F.normalize(coarse, dim=1), F.normalize(fine, dim=1)
    width, height = image_size
    return DenseFeatures(
        coarse=placed(coarse, COARSE_STRIDE),
        fine=placed(fine, FINE_STRIDE),
        image_size=image_size,
        normalized=config.normalize,
        reliability=placed(logits[0], FINE_STRIDE) if logits else None,
        # Cells at stride 2 may reach a pixel beyond the image.
        scores=None if scores is None else FeatureMap(scores[..., :height, :width].float(), (1.0, 1.0)),
    )


def _cells_read(points: Tensor, image_size: tuple[int, int], sampling: str) -> Tensor:
    """(h, w) mask of the cells at stride 4 from which samples at (N, 2) pixels are interpolated."""
    width, height = (-(-size // FINE_STRIDE) for size in image_size)
    read = torch.zeros(height, width, dtype=torch.bool, device=points.device)
    upper_left = FeatureMap(read, cell_scale(read, image_size, FINE_STRIDE, sampling)).pixels_to_cells(points)
    columns, rows = upper_left.floor().long().unbind(-1)
    for down in (0, 1):
        for right in (0, 1):
            read[(rows + down).clamp(0, height - 1), (columns + right).clamp(0, width - 1)] = True
    return read


def _spread(values: Tensor, read: Tensor) -> Tensor:
    """(1, C, 1, K) values of the cells of an (h, w) mask to a (1, C, h, w) map that is zero elsewhere."""
    spread = values.new_zeros(1, *read.shape, values.shape[1])
    spread[:, read] = values[:, :, 0].transpose(1, 2)
    return spread.permute(0, 3, 1, 2)


def cell_scale(values: Tensor, image_size: tuple[int, int], stride: int, sampling: str) -> tuple[float, float]:
    """Pixels per cell along x and y of a map over an image of this size, for a config's ``sampling``."""
    if sampling == "stride":
        return float(stride), float(stride)
    height, width = values.shape[-2:]
    # With a single cell every pixel reads it, whatever the scale.
    return (image_size[0] - 1) / max(width - 1, 1) or 1.0, (image_size[1] - 1) / max(height - 1, 1) or 1.0
