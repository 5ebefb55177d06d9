"""Deformable convolution in plain torch, for where torchvision's compiled operators are not at hand.

Kornia 0.9 has one of its own, but needs Python 3.11, and older ones serve here too.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def deform_conv2d(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    padding: tuple[int, int] = (0, 0),
    mask: Tensor | None = None,
) -> Tensor:
    """Convolution whose every tap is moved, and with a mask scaled, on its own at every output pixel.

    Zhu et al., "Deformable ConvNets v2", CVPR 2019, equation 1; without a mask it is the first version's (Dai et al.,
    ICCV 2017). Arguments are called and laid out as in ``torchvision.ops.deform_conv2d``, at stride and dilation 1
    and with one group.

    Args:
        input: (B, C, H, W) images. They are read between pixels bilinearly, as 0 outside.
        offset: (B, 2 kh kw, H', W') how far each tap is moved, in pixels: y then x of each, row by row of the kernel.
        weight: (D, C, kh, kw) kernels.
        bias: (D,), or None for none.
        padding: rows above and below and columns left and right that outputs go beyond ``input``:
            H' = H + 2 padding[0] - kh + 1, likewise W'.
        mask: (B, kh kw, H', W') factors of the taps, or None for 1.

    Returns:
        (B, D, H', W').

    Raises:
        ValueError: a shape does not go with the others.
    """
    batch, channels, height, width = input.shape
    kernel_height, kernel_width = weight.shape[2:]
    taps = kernel_height * kernel_width
    rows, columns = height + 2 * padding[0] - kernel_height + 1, width + 2 * padding[1] - kernel_width + 1
    _check_shape("weight", weight, (len(weight), channels, kernel_height, kernel_width))
    _check_shape("offset", offset, (batch, 2 * taps, rows, columns))
    if mask is not None:
        _check_shape("mask", mask, (batch, taps, rows, columns))

    offset = offset.reshape(batch, kernel_height, kernel_width, 2, rows, columns)
    y = _taps(rows, kernel_height, padding[0], offset)[:, None, :, None] + offset[:, :, :, 0]
    x = _taps(columns, kernel_width, padding[1], offset)[:, None, :] + offset[:, :, :, 1]
    # -1 and 1 are the outer edges of the outermost pixels, so that a single row or column is no special case.
    grid = torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], dim=-1)
    sampled = F.grid_sample(input, grid.flatten(1, 3), mode="bilinear", padding_mode="zeros", align_corners=False)
    sampled = sampled.reshape(batch, channels, taps, rows * columns)
    if mask is not None:
        sampled = sampled * mask.reshape(batch, 1, taps, rows * columns)
    output = (weight.flatten(1) @ sampled.flatten(1, 2)).reshape(batch, len(weight), rows, columns)
    return output if bias is None else output + bias[:, None, None]


def _taps(size: int, kernel: int, padding: int, like: Tensor) -> Tensor:
    """(kernel, size) where each tap reads along one axis for each output pixel, before it is moved."""
    steps = torch.arange(size + kernel - 1, dtype=like.dtype, device=like.device) - padding
    return steps.unfold(0, size, 1)


def _check_shape(name: str, values: Tensor, expected: tuple[int, ...]) -> None:
    if values.shape != expected:
        raise ValueError(f"{name} has shape {tuple(values.shape)}; the other shapes ask for {expected}")
