"""The two networks: an image in, a coarse (stride 16) and a fine (stride 4) feature map out."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from capsdesc.models.config import EFFICIENTNETS, ModelConfig
from capsdesc.models.efficientnet_lite import EfficientNetLiteEncoder
from capsdesc.models.resnet import ResNetEncoder

COARSE_STRIDE = 16
FINE_STRIDE = 4
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# Where the learned inverse temperatures of the coarse and the fine softmax start. Unit-length features need one; the
# paper's raw features carry their own scale.
LOG_INVERSE_TEMPERATURE = (3.4, 3.0)


class ConvBlock(nn.Module):
    """Convolution, batch normalisation and ELU: the unit of the paper's decoder."""

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, padding=(kernel - 1) // 2)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.elu(self.bn(self.conv(x)))


class UpConv(nn.Module):
    """Corner-aligned x2 upsampling, then a :class:`ConvBlock`."""

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__()
        self.conv = ConvBlock(inputs, outputs, kernel)

    def forward(self, x: Tensor) -> Tensor:
        x = F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=True)
        out: Tensor = self.conv(x)
        return out


class CAPSNetwork(ResNetEncoder):
    """The paper's network: a ResNet encoder and a U-shaped decoder (section 3.3 and supplement).

    Parameter names are those of the official checkpoints without their ``net.`` prefix.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config.encoder)
        stride4, stride8, stride16 = self.channels
        self.conv_coarse = ConvBlock(stride16, config.coarse_dim, 1)
        self.upconv3 = UpConv(stride16, 512, 3)
        self.iconv3 = ConvBlock(stride8 + 512, 512, 3)
        self.upconv2 = UpConv(512, 256, 3)
        self.iconv2 = ConvBlock(stride4 + 256, 256, 3)
        self.conv_fine = ConvBlock(256, config.fine_dim, 1)
        if config.normalize:
            self.log_inverse_temperature = nn.Parameter(torch.tensor(LOG_INVERSE_TEMPERATURE))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        stride4, stride8, stride16 = super().forward(image)
        coarse = self.conv_coarse(stride16)
        x = self.iconv3(_beside(stride8, self.upconv3(stride16)))
        x = self.iconv2(_beside(stride4, self.upconv2(x)))
        return coarse, self.conv_fine(x)


def _beside(skip: Tensor, upsampled: Tensor) -> Tensor:
    """Skip and upsampled map concatenated; the latter is zero-padded to the skip's size, smaller half first."""
    missing_h = skip.shape[-2] - upsampled.shape[-2]
    missing_w = skip.shape[-1] - upsampled.shape[-1]
    left, top = missing_w // 2, missing_h // 2
    return torch.cat([skip, F.pad(upsampled, (left, missing_w - left, top, missing_h - top))], dim=1)


class CompactNetwork(nn.Module):
    """A light encoder and an additive pyramid: 1x1 laterals, upsample and add, one 3x3 each at stride 8 and 4."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        name = config.encoder
        self.encoder: nn.Module = EfficientNetLiteEncoder(name) if name in EFFICIENTNETS else ResNetEncoder(name)
        stride4, stride8, stride16 = self.encoder.channels
        width = config.decoder_dim
        self.lateral4 = nn.Conv2d(stride4, width, 1)
        self.lateral8 = nn.Conv2d(stride8, width, 1)
        self.lateral16 = nn.Conv2d(stride16, width, 1)
        self.smooth8 = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.ReLU(inplace=True))
        self.smooth4 = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.ReLU(inplace=True))
        self.coarse_head = nn.Conv2d(stride16, config.coarse_dim, 1)
        self.fine_head = nn.Conv2d(width, config.fine_dim, 1)
        if config.normalize:
            self.log_inverse_temperature = nn.Parameter(torch.tensor(LOG_INVERSE_TEMPERATURE))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        stride4, stride8, stride16 = self.encoder(image)
        x = self.smooth8(self.lateral8(stride8) + _upsample_exactly(self.lateral16(stride16), stride8))
        x = self.smooth4(self.lateral4(stride4) + _upsample_exactly(x, stride4))
        return self.coarse_head(stride16), self.fine_head(x)


def _upsample_exactly(x: Tensor, like: Tensor) -> Tensor:
    """Bilinear x2 upsampling that keeps every cell where it is: output cell 2i lies on input cell i.

    Strided convolutions centre cell i on pixel ``stride * i`` for every image size; this keeps it so, which the usual
    corner-aligned or half-pixel upsampling does not. ``like`` has 2n or 2n - 1 cells for the n of ``x``.
    """
    height, width = x.shape[-2:]
    x = F.interpolate(x, size=(2 * height - 1, 2 * width - 1), mode="bilinear", align_corners=True)
    right, bottom = like.shape[-1] - x.shape[-1], like.shape[-2] - x.shape[-2]
    return F.pad(x, (0, right, 0, bottom), mode="replicate") if right or bottom else x


def inverse_temperatures(network: nn.Module) -> tuple[Tensor, Tensor]:
    """What the coarse and the fine dot products are multiplied by before the softmax: scalars."""
    learned = getattr(network, "log_inverse_temperature", None)
    coarse, fine = torch.ones(2) if learned is None else learned.exp()
    return coarse, fine


def normalize_image(image: Tensor) -> Tensor:
    """RGB in 0..1, (B, 3, H, W), to zero mean and unit variance over ImageNet."""
    mean = image.new_tensor(IMAGENET_MEAN).view(1, 3, 1, 1)
    std = image.new_tensor(IMAGENET_STD).view(1, 3, 1, 1)
    return (image - mean) / std


def build_network(config: ModelConfig) -> nn.Module:
    """The network of a config, with fresh random parameters.

    It takes (B, 3, H, W) images as :func:`normalize_image` makes them, of any size, and returns the coarse
    (B, coarse_dim, ceil(H / 16), ceil(W / 16)) and the fine (B, fine_dim, ceil(H / 4), ceil(W / 4)) map.
    """
    return CAPSNetwork(config) if config.architecture == "caps" else CompactNetwork(config)
