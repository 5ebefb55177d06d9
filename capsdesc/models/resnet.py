"""ResNet encoders up to stride 16, with torchvision's parameter names, and a light one of the same blocks.

He et al., "Deep Residual Learning for Image Recognition", CVPR 2016; the stride of a bottleneck sits on its 3x3
convolution ("v1.5"), as in torchvision, so that its ImageNet weights and the official CAPS checkpoints load.
"""

from __future__ import annotations

from torch import Tensor, nn

# Of the light encoder: channels of the stem, then channels and blocks at stride 4, 8 and 16.
LIGHT_STEM = 16
LIGHT_LAYERS = ((32, 1), (64, 2), (128, 2))
BLOCKS_PER_LAYER = {
    "resnet18": (2, 2, 2),
    "resnet34": (3, 4, 6),
    "resnet50": (3, 4, 6),
    "resnet101": (3, 4, 23),
    "resnet152": (3, 8, 36),
}


def _downsample(inputs: int, outputs: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _downsample(inputs, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        out: Tensor = self.relu(self.bn2(self.conv2(x)) + shortcut)
        return out


class Bottleneck(nn.Module):
    """1x1, strided 3x3 and 1x1 convolutions and a shortcut."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = width * self.expansion
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _downsample(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        out: Tensor = self.relu(self.bn3(self.conv3(x)) + shortcut)
        return out


class ResNetEncoder(nn.Module):
    """Image to the outputs of the stem (stride 2), layer1 (stride 4), layer2 (stride 8) and layer3 (stride 16).

    The stem is called ``firstconv`` and ``firstbn``, as in the official CAPS checkpoints; torchvision's ``conv1`` and
    ``bn1`` are renamed when ImageNet weights are read.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        block = BasicBlock if name in ("resnet18", "resnet34") else Bottleneck
        self.channels = (64, *(width * block.expansion for width in (64, 128, 256)))
        self.firstconv = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.firstbn = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        layers = []
        inputs = 64
        for width, count, stride in zip((64, 128, 256), BLOCKS_PER_LAYER[name], (1, 2, 2), strict=True):
            blocks = []
            for index in range(count):
                blocks.append(block(inputs, width, stride if index == 0 else 1))
                inputs = width * block.expansion
            layers.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3 = layers

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        stride2 = self.relu(self.firstbn(self.firstconv(image)))
        stride4 = self.layer1(self.maxpool(stride2))
        stride8 = self.layer2(stride4)
        stride16 = self.layer3(stride8)
        return stride2, stride4, stride8, stride16


class LightEncoder(nn.Module):
    """A quarter of a ResNet-18's time: half its channels, and for its stem of 7 x 7 two strided 3 x 3.

    Image to stride 2, 4, 8 and 16, as :class:`ResNetEncoder`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.channels = (LIGHT_STEM, *(width for width, _ in LIGHT_LAYERS))
        self.stem = _strided(3, LIGHT_STEM)
        self.reduce = _strided(LIGHT_STEM, LIGHT_LAYERS[0][0])
        inputs = LIGHT_LAYERS[0][0]
        layers = []
        for index, (width, count) in enumerate(LIGHT_LAYERS):
            first = BasicBlock(inputs, width, 1 if index == 0 else 2)
            layers.append(nn.Sequential(first, *(BasicBlock(width, width, 1) for _ in range(count - 1))))
            inputs = width
        self.layer1, self.layer2, self.layer3 = layers

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        stride2 = self.stem(image)
        stride4 = self.layer1(self.reduce(stride2))
        stride8 = self.layer2(stride4)
        stride16 = self.layer3(stride8)
        return stride2, stride4, stride8, stride16


def _strided(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )
