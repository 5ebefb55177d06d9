"""Every accepted form of an image as 8-bit RGB, as a float tensor or as grey."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any, TypeAlias, TypeGuard, cast

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from capsdesc.images.files import check_size, read_image, repeat_grey, size_of_file, to_8_bits
from capsdesc.isolation import isolated
from capsdesc.types import UInt8Array

if TYPE_CHECKING:
    import PIL.Image

ImageLike: TypeAlias = "str | os.PathLike[str] | npt.NDArray[np.uint8] | PIL.Image.Image | Tensor"
"""A path, an (H, W, 3) RGB or (H, W) grey uint8 array, a PIL image, or a (3, H, W) RGB float tensor in 0..1."""

# How far resizing and colour transforms may leave 0..1 by rounding; beyond it the values are on another scale.
UNIT_TOLERANCE = 1e-3

_TO_UINT8 = {
    "b": "image * np.uint8(255)",
    "u": "np.rint(image / 257).astype(np.uint8) for the full 16-bit range",
    "f": "np.rint(image * 255).astype(np.uint8) for values in 0..1",
}


def to_rgb(image: ImageLike, *, name: str = "image") -> UInt8Array:
    """Any accepted form of an image as an 8-bit RGB array.

    Args:
        image: A path (see :func:`read_image`), an (H, W, 3) RGB or (H, W) grey uint8 array, a PIL image of any mode
            but "F" (16-bit and "I" images are scaled from 0..65535, alpha is dropped), or a (3, H, W) RGB float
            tensor in 0..1.
        name: What error messages call the image.

    Returns:
        (H, W, 3) uint8 RGB; an (H, W, 3) array is returned itself, not a copy.

    Raises:
        FileNotFoundError: ``image`` is a path with nothing at it.
        TypeError: ``image`` is none of these forms or has another dtype.
        ValueError: The shape is another, the image is empty, a tensor leaves 0..1, or a file cannot be decoded.
    """
    if isinstance(image, str | os.PathLike):
        return read_image(image)
    if isinstance(image, np.ndarray):
        _check_array(image, name)
        return image if image.ndim == 3 else repeat_grey(image)
    if isinstance(image, Tensor):
        rgb = (_unit_tensor(image, name) * 255).round().byte().permute(1, 2, 0)
        return cast(UInt8Array, rgb.contiguous().cpu().numpy())
    if _is_pil(image):
        return _pil_to_rgb(image, name)
    raise _not_an_image(image, name)


@isolated()
def to_tensor(image: ImageLike, device: torch.device | str | None = None, *, name: str = "image") -> Tensor:
    """Any accepted form of an image as a float tensor.

    Args:
        image: As for :func:`to_rgb`.
        device: Where the tensor is to lie. ``None``: a tensor stays where it is, any other form comes to the CPU.
        name: What error messages call the image.

    Returns:
        (3, H, W) float32 RGB in 0..1, detached. A tensor is not quantised to 8 bits; values that leave 0..1 by less
        than 0.001 are clamped.

    Raises:
        FileNotFoundError, TypeError, ValueError: As :func:`to_rgb`.
    """
    if isinstance(image, Tensor):
        return _unit_tensor(image, name).to(device)
    rgb = np.ascontiguousarray(to_rgb(image, name=name))
    # torch.tensor copies, so the result never shares memory with the user's array, which may be read-only.
    return torch.tensor(rgb, device=device).permute(2, 0, 1).contiguous().float().div_(255)


def to_gray(image: ImageLike, *, name: str = "image") -> UInt8Array:
    """Any accepted form of an image as 8-bit grey, with the weights of ``cv2.COLOR_RGB2GRAY``.

    Args:
        image: As for :func:`to_rgb`.
        name: What error messages call the image.

    Returns:
        (H, W) uint8.

    Raises:
        FileNotFoundError, TypeError, ValueError: As :func:`to_rgb`.
    """
    return cast(UInt8Array, cv2.cvtColor(np.ascontiguousarray(to_rgb(image, name=name)), cv2.COLOR_RGB2GRAY))


def image_size(image: ImageLike, *, name: str = "image") -> tuple[int, int]:
    """Width and height in pixels. Nothing is decoded: of a file, the header is read.

    Args:
        image: As for :func:`to_rgb`. The values of a tensor are not looked at, nor the pixels of a file.
        name: What error messages call the image.

    Returns:
        (width, height).

    Raises:
        FileNotFoundError, TypeError, ValueError: As :func:`to_rgb`.
    """
    if isinstance(image, str | os.PathLike):
        width, height = size_of_file(image)
    elif isinstance(image, np.ndarray):
        _check_array(image, name)
        height, width = image.shape[:2]
    elif isinstance(image, Tensor):
        _check_tensor(image, name)
        height, width = image.shape[1:]
    elif _is_pil(image):
        width, height = image.size
        _check_not_empty(height, width, name)
    else:
        raise _not_an_image(image, name)
    return width, height


def _is_pil(image: object) -> TypeGuard[PIL.Image.Image]:
    # Whoever holds a PIL image has imported PIL; so it stays an optional dependency.
    module = sys.modules.get("PIL.Image")
    return module is not None and isinstance(image, module.Image)


def _pil_to_rgb(image: PIL.Image.Image, name: str) -> UInt8Array:
    _check_not_empty(image.height, image.width, name)
    if image.mode == "F":
        raise ValueError(f"{name} is a PIL image of mode 'F', whose range is not known; convert it to 'L' or 'RGB'")
    try:
        check_size(image.width, image.height)
        if not image.mode.startswith("I"):
            return np.array(image.convert("RGB"))
        pixels = np.asarray(image)
    except (OSError, ValueError) as error:
        raise ValueError(f"{name}: cannot read the PIL image of mode {image.mode!r}: {error}") from error
    if pixels.min() < 0 or pixels.max() > 65535:
        raise ValueError(
            f"{name} is a PIL image of mode {image.mode!r} with values in {pixels.min()}..{pixels.max()}; "
            "0..65535 is expected"
        )
    return repeat_grey(to_8_bits(pixels))


def _check_not_empty(height: int, width: int, name: str) -> None:
    if height == 0 or width == 0:
        raise ValueError(f"{name} is empty: {width} px wide and {height} px high")


def _check_array(image: npt.NDArray[Any], name: str) -> None:
    if image.dtype != np.uint8:
        hint = _TO_UINT8.get(image.dtype.kind)
        raise TypeError(
            f"{name} must be a uint8 array, got {image.dtype}" + (f"; convert it with {hint}" if hint else "")
        )
    if image.ndim != 2 and (image.ndim != 3 or image.shape[2] != 3):
        raise ValueError(
            f"{name} must be an (H, W, 3) RGB or an (H, W) grey array, got shape {image.shape}{_array_hint(image)}"
        )
    _check_not_empty(image.shape[0], image.shape[1], name)


def _array_hint(image: npt.NDArray[Any]) -> str:
    if image.ndim == 4 and len(image) == 1:
        return "; pass one image, image[0]"
    if image.ndim != 3:
        return ""
    if image.shape[2] in (1, 2):
        return "; pass image[..., 0]"
    if image.shape[2] == 4:
        return "; drop the alpha with image[..., :3]"
    if image.shape[0] == 3:
        return "; transpose it with image.transpose(1, 2, 0)"
    return ""


def _check_tensor(image: Tensor, name: str) -> None:
    if not image.is_floating_point():
        raise TypeError(
            f"{name} must be a float tensor in 0..1, got {image.dtype}; convert 8-bit values with image.float() / 255"
        )
    if image.ndim != 3 or image.shape[0] != 3:
        raise ValueError(f"{name} must be a (3, H, W) tensor, got shape {tuple(image.shape)}{_tensor_hint(image)}")
    _check_not_empty(image.shape[1], image.shape[2], name)


def _tensor_hint(image: Tensor) -> str:
    if image.ndim == 4 and len(image) == 1:
        return "; pass one image, image[0]"
    if image.ndim == 2:
        return "; repeat grey with image.expand(3, -1, -1)"
    if image.ndim != 3:
        return ""
    if image.shape[0] == 1:
        return "; repeat grey with image.expand(3, -1, -1)"
    if image.shape[2] == 3:
        return "; permute it with image.permute(2, 0, 1)"
    if image.shape[0] == 4:
        return "; drop the alpha with image[:3]"
    return ""


def _unit_tensor(image: Tensor, name: str) -> Tensor:
    """The tensor in float32, detached and clamped to 0..1, once it is known to be an image."""
    _check_tensor(image, name)
    values = image.detach().float()
    low, high = (float(bound) for bound in values.aminmax())
    # Written so that NaN fails too.
    if not (low >= -UNIT_TOLERANCE and high <= 1 + UNIT_TOLERANCE):
        raise ValueError(
            f"{name} must be a tensor with values in 0..1, got {low:g}..{high:g}; divide 8-bit values by 255, and "
            "look for NaN"
        )
    return values.clamp(0, 1).contiguous()


def _not_an_image(image: object, name: str) -> TypeError:
    return TypeError(
        f"{name} must be a path, an (H, W, 3) or (H, W) uint8 array, a PIL image or a (3, H, W) float tensor in 0..1, "
        f"got {type(image).__name__}"
    )
