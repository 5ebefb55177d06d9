"""Feature maps that know where their cells lie in the image.

This is the one place where pixels become cells. Pixel (0, 0) is the centre of the top-left pixel, cell (0, 0) the
centre of the top-left cell, and each axis maps linearly: ``pixel = cell * scale + offset``.
"""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from capsdesc.models.config import ModelConfig
from capsdesc.models.network import COARSE_STRIDE, FINE_STRIDE, normalize_image


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
    """

    coarse: FeatureMap
    fine: FeatureMap
    image_size: tuple[int, int]
    normalized: bool

    def sample(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """(B, N, 2) pixel coordinates to coarse (B, N, Cc) and fine (B, N, Cf) features."""
        coarse, fine = self.coarse.sample(points), self.fine.sample(points)
        if self.normalized:
            coarse, fine = F.normalize(coarse, dim=-1), F.normalize(fine, dim=-1)
        return coarse, fine

    def describe(self, points: Tensor) -> Tensor:
        """(B, N, 2) pixel coordinates to (B, N, Cc + Cf) descriptors: both features concatenated (section 3.3)."""
        descriptors = torch.cat(self.sample(points), dim=-1)
        # Both halves have unit length, so this is what normalising the concatenation gives.
        return descriptors * 0.5**0.5 if self.normalized else descriptors

    def split(self, first: int) -> tuple[DenseFeatures, DenseFeatures]:
        """The maps of the first so many images, and those of the others."""
        halves = []
        for part in (slice(None, first), slice(first, None)):
            coarse = dataclasses.replace(self.coarse, values=self.coarse.values[part])
            fine = dataclasses.replace(self.fine, values=self.fine.values[part])
            halves.append(dataclasses.replace(self, coarse=coarse, fine=fine))
        return halves[0], halves[1]

    def seen_at(self, resize: tuple[float, float], image_size: tuple[int, int]) -> DenseFeatures:
        """The same maps over the image before it was resized by the factors ``resize`` along x and y."""
        return dataclasses.replace(
            self, coarse=self.coarse.seen_at(resize), fine=self.fine.seen_at(resize), image_size=image_size
        )


def dense_features(network: nn.Module, config: ModelConfig, images: Tensor) -> DenseFeatures:
    """Run a network over images of one size.

    Args:
        network: as :func:`~capsdesc.models.build_network` makes it.
        config: the network's config.
        images: (B, 3, H, W) RGB in 0..1.

    Returns:
        Float32 maps with their transforms.
    """
    height, width = images.shape[-2:]
    coarse, fine = (features.float() for features in network(normalize_image(images)))
    if config.normalize:
        coarse, fine = F.normalize(coarse, dim=1), F.normalize(fine, dim=1)
    return DenseFeatures(
        coarse=FeatureMap(coarse, cell_scale(coarse, (width, height), COARSE_STRIDE, config.sampling)),
        fine=FeatureMap(fine, cell_scale(fine, (width, height), FINE_STRIDE, config.sampling)),
        image_size=(width, height),
        normalized=config.normalize,
    )


def cell_scale(values: Tensor, image_size: tuple[int, int], stride: int, sampling: str) -> tuple[float, float]:
    """Pixels per cell along x and y of a map over an image of this size, for a config's ``sampling``."""
    if sampling == "stride":
        return float(stride), float(stride)
    height, width = values.shape[-2:]
    # With a single cell every pixel reads it, whatever the scale.
    return (image_size[0] - 1) / max(width - 1, 1) or 1.0, (image_size[1] - 1) / max(height - 1, 1) or 1.0
