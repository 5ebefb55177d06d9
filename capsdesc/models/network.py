"""The two networks: an image in, a coarse (stride 16) and a fine (stride 4) feature map out.

With a reliability head there is a third map: the logit, at stride 4, of a point's being found again. With a keypoint
head there is, where it is asked for, a last one: the logit of every pixel's being a keypoint.

A network has two parts: ``pyramid``, what all maps have in common, and ``maps``. Whoever reads the maps of a single
image at few points gives ``maps`` a mask ``read`` of the cells at stride 4 that they need. Then all maps but the coarse
one are (1, C, 1, K): the K cells of the mask, row by row.
"""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from capsdesc.models.config import EFFICIENTNETS, LIGHT, ModelConfig
from capsdesc.models.efficientnet_lite import EfficientNetLiteEncoder
from capsdesc.models.resnet import LightEncoder, ResNetEncoder

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
    """Corner-aligned x2 upsampling, then a :class:`ConvBlock` of 3 x 3 cells."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = ConvBlock(inputs, outputs, 3)

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu":
            return F.elu(self.conv.bn(_convolve_upsampled(x, self.conv.conv)))
        x = F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=True)
        out: Tensor = self.conv(x)
        return out


def _convolve_upsampled(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """A 3 x 3 convolution of the corner-aligned x2 upsampling of (B, C, h, w), with a third of the multiplications.

    Both are linear, and upsampling treats all channels alike. So each tap of the kernel mixes channels at the low
    resolution, and its outcome is upsampled and shifted.
    """
    batch, channels, height, width = x.shape
    taps = conv.weight.permute(3, 0, 2, 1).reshape(-1, channels)
    mixed = (taps @ x.flatten(2)).reshape(batch, 3, -1, width)
    wide = torch.stack([mixed[:, tap] @ matrix.T for tap, matrix in enumerate(_upsampled_taps(x, width))]).sum(0)
    tall = _upsampled_taps(x, height).transpose(0, 1).flatten(1) @ wide.view(batch, -1, 3 * height, 2 * width)
    return tall if conv.bias is None else tall + conv.bias[:, None, None]


def _upsampled_taps(x: Tensor, size: int) -> Tensor:
    """(3, 2 * size, size) matrices from a line to what each tap of a zero-padded kernel sees of it upsampled."""
    each = torch.eye(size, dtype=x.dtype, device=x.device)[None]
    upsampled = F.interpolate(each, scale_factor=2.0, mode="linear", align_corners=True)[0]
    return F.pad(upsampled, (1, 1)).unfold(1, 2 * size, 1).permute(1, 2, 0)


@dataclasses.dataclass(frozen=True, eq=False)
class Pyramid:
    """Features of images: of the stem (stride 2), of the decoder (stride 4) and of the encoder (stride 16)."""

    stride2: Tensor
    stride4: Tensor
    stride16: Tensor


class CAPSNetwork(ResNetEncoder):
    """The paper's network: a ResNet encoder and a U-shaped decoder (section 3.3 and supplement).

    Parameter names are those of the official checkpoints without their ``net.`` prefix.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config.encoder)
        _, stride4, stride8, stride16 = self.channels
        self.conv_coarse = ConvBlock(stride16, config.coarse_dim, 1)
        self.upconv3 = UpConv(stride16, 512)
        self.iconv3 = ConvBlock(stride8 + 512, 512, 3)
        self.upconv2 = UpConv(512, 256)
        self.iconv2 = ConvBlock(stride4 + 256, 256, 3)
        self.conv_fine = ConvBlock(256, config.fine_dim, 1)
        if config.normalize:
            self.log_inverse_temperature = nn.Parameter(torch.tensor(LOG_INVERSE_TEMPERATURE))

    def pyramid(self, image: Tensor) -> Pyramid:
        """All but the last convolution of either map."""
        stride2, stride4, stride8, stride16 = super().forward(image)
        x = self.iconv3(_beside(stride8, self.upconv3(stride16)))
        return Pyramid(stride2, self.iconv2(_beside(stride4, self.upconv2(x))), stride16)

    def maps(self, pyramid: Pyramid, read: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The coarse and the fine map."""
        x = pyramid.stride4
        return self.conv_coarse(pyramid.stride16), self.conv_fine(x if read is None else _cells(x, read))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return self.maps(self.pyramid(image))


def _beside(skip: Tensor, upsampled: Tensor) -> Tensor:
    """Skip and upsampled map concatenated; the latter is zero-padded to the skip's size, smaller half first."""
    missing_h = skip.shape[-2] - upsampled.shape[-2]
    missing_w = skip.shape[-1] - upsampled.shape[-1]
    left, top = missing_w // 2, missing_h // 2
    return torch.cat([skip, F.pad(upsampled, (left, missing_w - left, top, missing_h - top))], dim=1)


class CompactNetwork(nn.Module):
    """A light encoder and an additive pyramid: 1x1 laterals, upsample and add, one 3x3 each at stride 8 and 4.

    Attributes:
        reach: how many pixels to each side of a cell its features depend on.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.encoder = _encoder(config.encoder)
        stride2, stride4, stride8, stride16 = self.encoder.channels
        width = config.decoder_dim
        self.lateral4 = nn.Conv2d(stride4, width, 1)
        self.lateral8 = nn.Conv2d(stride8, width, 1)
        self.lateral16 = nn.Conv2d(stride16, width, 1)
        self.smooth8 = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.ReLU(inplace=True))
        self.smooth4 = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.ReLU(inplace=True))
        self.coarse_head = nn.Conv2d(stride16, config.coarse_dim, 1)
        self.fine_head = nn.Conv2d(width, config.fine_dim, 1)
        if config.reliability:
            self.reliability_head = nn.Sequential(nn.Conv2d(width, width, 1), nn.ReLU(), nn.Conv2d(width, 1, 1))
        if config.normalize:
            self.log_inverse_temperature = nn.Parameter(torch.tensor(LOG_INVERSE_TEMPERATURE))
        if config.keypoints:
            self.keypoint_head = KeypointHead(stride2, width, max(4, width // 3))
        self.has_reliability = config.reliability
        # Keypoints follow descriptors, not the other way round. But a light stem has no room to see for them what
        # descriptors do not need, unless it learns for both.
        self.keypoints_teach = config.encoder == LIGHT
        # Upsampling from stride s reads cells s / 2 away, a 3x3 at stride s those s away. The keypoint head reaches as
        # far: its two 3x3 at stride 2 after upsampling to it are no more than the smoothing at stride 4.
        self.reach = _reach(self.encoder) + (8 + 8) + (4 + 4)

    def pyramid(self, image: Tensor) -> Pyramid:
        """What all maps are made of: everything but the last smoothing and the heads."""
        stride2, stride4, stride8, stride16 = self.encoder(image)
        x = self.smooth8(self.lateral8(stride8) + _upsample_exactly(self.lateral16(stride16), stride8))
        lateral = self.lateral4(stride4)
        # Under autocast upsampling makes float32 of it, which every reader would make small again for itself.
        return Pyramid(stride2, (lateral + _upsample_exactly(x, stride4)).to(lateral.dtype), stride16)

    def maps(self, pyramid: Pyramid, read: Tensor | None = None) -> tuple[Tensor, ...]:
        """The coarse and the fine map, and the logits of reliability if the network has them."""
        x = pyramid.stride4
        x = self.smooth4(x) if read is None else self.smooth4[1](_convolve_cells(self.smooth4[0], x, read))
        maps = (self.coarse_head(pyramid.stride16), self.fine_head(x))
        return (*maps, self.reliability_head(x)) if self.has_reliability else maps

    def scores(self, pyramid: Pyramid) -> Tensor:
        """(B, 3, 2h, 2w) of h x w cells at stride 2: each pixel's keypoint logit and its shift along x and y."""
        answers = F.pixel_shuffle(self.answers(pyramid), 2)
        return torch.cat([answers[:, :1], answers[:, 1:].tanh()], dim=1)

    def answers(self, pyramid: Pyramid) -> Tensor:
        """The same, (B, 12, h, w), with shifts before their tanh, which takes longer than all else where all have it.

        Channel 4 c + 2 y + x of a cell is what it says in place c of its pixel in row y and column x.
        """
        seen = pyramid.stride2, pyramid.stride4
        answers: Tensor = self.keypoint_head(*(seen if self.keypoints_teach else (part.detach() for part in seen)))
        return answers

    def forward(self, image: Tensor, scores: bool = False) -> tuple[Tensor, ...]:
        pyramid = self.pyramid(image)
        maps = self.maps(pyramid)
        return (*maps, self.scores(pyramid)) if scores else maps


class KeypointHead(nn.Module):
    """For every pixel a keypoint logit and where, beside its centre, the keypoint is; a light branch at stride 2.

    What it returns is said at :meth:`CompactNetwork.answers`.

    The stem has seen every pixel and keeps what is small; the pyramid knows what it is part of. Each cell answers for
    its four pixels (Shi et al., CVPR 2016), so that the map is as fine as the image at a quarter of the cost.
    """

    def __init__(self, stem: int, context: int, width: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(stem, width, 1)
        self.context = nn.Conv2d(context, 4 * width, 1, bias=False)
        self.mix = nn.Conv2d(width, width, 3, padding=1)
        self.answer = nn.Conv2d(width, 4 * 3, 3, padding=1)

    def forward(self, stride2: Tensor, stride4: Tensor) -> Tensor:
        height, width = stride2.shape[-2:]
        context = F.pixel_shuffle(self.context(stride4), 2)[..., :height, :width]
        # In place: new memory of this size costs as much as the sum.
        x = self.stem(stride2).add_(context).relu_()
        answers: Tensor = self.answer(self.mix(x).relu_())
        return answers


def _encoder(name: str) -> ResNetEncoder | LightEncoder | EfficientNetLiteEncoder:
    if name == LIGHT:
        return LightEncoder()
    return EfficientNetLiteEncoder(name) if name in EFFICIENTNETS else ResNetEncoder(name)


def _reach(encoder: nn.Module) -> int:
    """How many pixels to each side of a cell at stride 16 an encoder's features depend on."""
    pixels, stride = 0, 1
    for name, layer in encoder.named_modules():
        # Shortcuts run beside the layers that are named in their order, and reach no farther.
        if isinstance(layer, (nn.Conv2d, nn.MaxPool2d)) and "downsample" not in name:
            kernel, step = (
                max(size) if isinstance(size, tuple) else size for size in (layer.kernel_size, layer.stride)
            )
            pixels += kernel // 2 * stride
            stride *= step
    return pixels


def _cells(x: Tensor, read: Tensor) -> Tensor:
    """The cells of a mask, (1, C, 1, K)."""
    return x.permute(0, 2, 3, 1)[:, read].transpose(1, 2)[:, :, None]


def _convolve_cells(convolution: nn.Module, x: Tensor, read: Tensor) -> Tensor:
    """What a zero-padded 3 x 3 convolution makes of (1, C, h, w) at the cells of a mask, (1, C', 1, K)."""
    weight, bias = convolution.get_parameter("weight"), convolution.get_parameter("bias")
    padded = F.pad(x, (1, 1, 1, 1)).permute(0, 2, 3, 1)[0]
    rows, columns = read.nonzero(as_tuple=True)
    width = padded.shape[1]
    around = torch.arange(3, device=x.device)
    taps = (rows * width + columns)[:, None] + (around[:, None] * width + around).flatten()
    patches = F.embedding(taps, padded.flatten(0, 1)).flatten(1)
    return F.linear(patches, weight.permute(0, 2, 3, 1).flatten(1), bias).T[None, :, None]


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
    return (image - mean).div_(std)


def fold_batch_norm(network: nn.Module) -> nn.Module:
    """The network, changed to compute the same without batch normalisation, which each convolution takes over.

    Args:
        network: in eval mode, each normalisation registered right after its convolution. It trains no more.
    """
    for name, layer in list(network.named_modules()):
        if isinstance(layer, nn.Conv2d):
            before, convolution = name, layer
        elif isinstance(layer, nn.BatchNorm2d):
            _replace(network, before, fuse_conv_bn_eval(convolution, layer))
            _replace(network, name, nn.Identity())
    return network


def _replace(network: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(network.get_submodule(parent), child, layer)


def build_network(config: ModelConfig) -> nn.Module:
    """The network of a config, with fresh random parameters.

    It takes (B, 3, H, W) images as :func:`normalize_image` makes them, of any size, and returns the coarse
    (B, coarse_dim, ceil(H / 16), ceil(W / 16)) and the fine (B, fine_dim, ceil(H / 4), ceil(W / 4)) map, and with
    ``config.reliability`` the (B, 1, ceil(H / 4), ceil(W / 4)) logits of it. With ``config.keypoints`` it takes
    ``scores=True`` and then returns (B, 3, 2 ceil(H / 2), 2 ceil(W / 2)) answers of its keypoint head too.
    """
    return CAPSNetwork(config) if config.architecture == "caps" else CompactNetwork(config)
