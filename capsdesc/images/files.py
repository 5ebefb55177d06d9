"""Image files: found in folders, measured by their headers, and read."""

from __future__ import annotations

import contextlib
import io
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

import cv2
import numpy as np
import numpy.typing as npt

from capsdesc.images import jpeg, tiff
from capsdesc.images.headers import Header, read_header
from capsdesc.types import UInt8Array

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = (
    *(".bmp", ".dib", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".ras", ".sr"),
    *(".tif", ".tiff", ".webp"),
)
"""Endings, in small letters, by which image files are found in folders: those of formats that every OpenCV reads."""

MAX_PIXELS = 2**28
"""Images of more pixels than 16384 x 16384 are refused, unless the environment variable CAPSDESC_MAX_PIXELS has another
number."""

_MAX_PIXELS_VARIABLE = "CAPSDESC_MAX_PIXELS"
# Beyond these OpenCV refuses on its own.
_OPENCV_MAX_PIXELS, _OPENCV_MAX_EDGE = 2**30, 2**20


def read_image(path: str | os.PathLike[str]) -> UInt8Array:
    """Read an image file as 8-bit RGB.

    Pixels come as they are stored, in every format: tags that ask for a turn (EXIF's orientation, that of TIFF) are
    ignored, as COLMAP ignores them, so keypoints agree with the cameras it estimates. 16-bit files are scaled to 8 bits
    (65535 becomes 255), alpha is dropped without blending, and grey is repeated over the three channels.

    Size and memory are bounded: by what the header says, files are refused before they are decoded if they have more
    than :data:`MAX_PIXELS` pixels, or less data than so many pixels need.

    Args:
        path: A file in any format OpenCV decodes.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        FileNotFoundError: Nothing is at ``path``.
        ValueError: ``path`` is a folder, or a file that is truncated, damaged, too large, no image, or neither 8-bit
            nor 16-bit.
    """
    with _named(path):
        pixels = _decoded(path)
        if pixels.dtype == np.uint16:
            pixels = to_8_bits(pixels)
        if pixels.dtype != np.uint8:
            raise ValueError(f"it holds {pixels.dtype} pixels; an 8-bit or a 16-bit unsigned image is expected")
    if pixels.ndim == 2:
        return repeat_grey(cast(UInt8Array, pixels))
    return cast(UInt8Array, cv2.cvtColor(np.ascontiguousarray(pixels[..., :3]), cv2.COLOR_BGR2RGB))


def read_stored(path: str | os.PathLike[str]) -> npt.NDArray[Any]:
    """Read an image file as it is stored, whatever its depth: alpha, 16 bits and, in TIFF, floating-point numbers stay.

    Args:
        path: As for :func:`read_image`.

    Returns:
        (H, W), (H, W, 3) RGB or (H, W, 4) with alpha.

    Raises:
        FileNotFoundError, ValueError: As :func:`read_image`.
    """
    with _named(path):
        pixels = _decoded(path)
    swap_red_and_blue(pixels)
    return pixels


def swap_red_and_blue(pixels: npt.NDArray[Any]) -> None:
    """OpenCV's order of channels to RGB and back, in place: a large image has no room for it twice."""
    if pixels.ndim == 3 and pixels.shape[2] in (3, 4):
        for row in pixels:
            row[:, :3] = row[:, 2::-1].copy()


def _decoded(path: str | os.PathLike[str]) -> npt.NDArray[Any]:
    """Pixels as they are stored, channels in OpenCV's order."""
    with _open(path) as file:
        # OpenCV's own reading of files fails on Windows where a path is not ASCII.
        data = file.read()
    header = _checked_header(io.BytesIO(data), len(data))
    if data.startswith(b"\xff\xd8\xff"):
        whole = jpeg.completed(data, _decode)
        if whole is None:
            raise ValueError("the JPEG file is truncated")
        data = whole
    elif data[:2] in (b"II", b"MM") and header:
        data = tiff.as_stored(data)
    pixels = _decode(data)
    if pixels is None:
        raise ValueError(_why_not(header))
    return pixels


def size_of_file(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Width and height in pixels, by the header of the file alone.

    Raises:
        FileNotFoundError: Nothing is at ``path``.
        ValueError: As :func:`read_image`, as far as the header tells.
    """
    with _named(path), _open(path) as file:
        header = _checked_header(file, os.fstat(file.fileno()).st_size)
    if header is None:  # a format that only some OpenCV reads
        height, width = read_image(path).shape[:2]
        return width, height
    return header.width, header.height


def check_size(width: int, height: int) -> None:
    """Refuse images whose pixels would take more memory than the user allows.

    Raises:
        ValueError: There are more than CAPSDESC_MAX_PIXELS, or this is no number.
    """
    text = os.environ.get(_MAX_PIXELS_VARIABLE) or str(MAX_PIXELS)
    if not text.isdecimal():
        raise ValueError(f"{_MAX_PIXELS_VARIABLE} is {text!r} in the environment; expected a whole number of pixels")
    if width * height > int(text):
        raise ValueError(
            f"it has {width} x {height} pixels, and no more than {int(text):,} are read: shrink it, or set the "
            f"environment variable {_MAX_PIXELS_VARIABLE} to allow more"
        )


def find_images(folder: str | os.PathLike[str]) -> list[Path]:
    """Image files anywhere under a folder, by name; no hidden ones.

    Among the hidden are those that a killed program left half written, and what macOS writes beside a file. Links to
    folders are followed, but no folder is searched twice: of several ways to it, one without links counts, or else the
    first by name.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: There is no image in it.
    """
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"no folder {os.fspath(folder)!r}")
    found, searched = [], set()
    links = [Path(folder)]
    while links:
        # What links lead to waits until all that lies here is known.
        left = [links.pop(0)]
        while left:
            current = left.pop()
            real = os.path.realpath(current)
            if real in searched:
                continue
            searched.add(real)
            try:
                entries = sorted(current.iterdir())
            except PermissionError as error:
                logger.warning("left out the folder %s: %s", current, error.strerror)
                continue
            for path in entries:
                if path.is_dir():
                    (links if path.is_symlink() else left).append(path)
                elif path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and path.is_file():
                    found.append(path)
    if not found:
        raise ValueError(f"no image ({', '.join(IMAGE_SUFFIXES)}) in {os.fspath(folder)!r}")
    return sorted(found)


def to_8_bits(pixels: npt.NDArray[Any]) -> UInt8Array:
    """0..65535 to 0..255, rounded to nearest."""
    # Rows at a time: the sum needs more than 16 bits, and a large image has no room for it twice.
    scaled = np.empty(pixels.shape, np.uint8)
    for row, out in zip(pixels, scaled, strict=True):
        out[...] = (row.astype(np.uint32) + 128) // 257
    return scaled


def repeat_grey(gray: UInt8Array) -> UInt8Array:
    """(H, W) grey as (H, W, 3)."""
    return np.repeat(gray[..., None], 3, axis=2)


@contextlib.contextmanager
def _named(path: str | os.PathLike[str]) -> Iterator[None]:
    """Errors begin with the name of the file."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"cannot read {os.fspath(path)!r} as an image: {error}") from error


def _open(path: str | os.PathLike[str]) -> BinaryIO:
    if Path(path).is_dir():
        raise ValueError("it is a folder")
    try:
        return Path(path).open("rb")
    except FileNotFoundError as error:
        raise FileNotFoundError(f"no image file at {os.fspath(path)!r}") from error


def _checked_header(file: BinaryIO, size: int) -> Header | None:
    """The header, if what it says is within bounds; None for a format that is not known."""
    if size == 0:
        raise ValueError("the file is empty")
    header = read_header(file)
    if header:
        check_size(header.width, header.height)
        if size < header.least_bytes:
            raise ValueError(
                f"it is truncated: {header.width} x {header.height} pixels need {header.least_bytes:,} bytes or more, "
                f"the file has {size:,}"
            )
    return header


def _decode(data: bytes) -> npt.NDArray[Any] | None:
    """Pixels as they are stored, channels in OpenCV's order; None where OpenCV refuses."""
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        return None


def _why_not(header: Header | None) -> str:
    if header is None:
        return "it is in no format OpenCV decodes"
    if header.width * header.height > _OPENCV_MAX_PIXELS or max(header.width, header.height) > _OPENCV_MAX_EDGE:
        return (
            f"OpenCV does not decode {header.width} x {header.height} pixels unless OPENCV_IO_MAX_IMAGE_PIXELS (and "
            "_WIDTH, _HEIGHT) are set in the environment before it is imported"
        )
    return "it is truncated, damaged, or of a kind that OpenCV does not decode"
