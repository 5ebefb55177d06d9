"""Photographs as a viewer sees them, with a focal length."""

from __future__ import annotations

import dataclasses
import os
import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt

from capsdesc.images import read_image, shrink
from capsdesc.types import UInt8Array

EXAMPLE = tuple(Path(__file__).with_name(f"tankard_{k}.jpg") for k in range(2))
"""A pair to begin with."""

MAX_PIXELS = 80_000_000
"""Photographs of more are refused before they are decoded."""

# Without EXIF data a focal length of so many longer edges is assumed, a horizontal field of view of 45 degrees.
GUESSED_FOCAL = 1.2
_FILM_DIAGONAL = float(np.hypot(36, 24))  # millimetres


@dataclasses.dataclass(frozen=True, eq=False)
class Photograph:
    """A photograph in memory.

    Attributes:
        pixels: (H, W, 3) uint8 RGB, turned as EXIF data ask.
        focal: focal length in pixels.
        focal_source: where that is from, in words.
    """

    pixels: UInt8Array
    focal: float
    focal_source: str

    def intrinsics(self, focal: float | None = None) -> npt.NDArray[np.float64]:
        """(3, 3) intrinsics with the principal point in the middle, for this focal length in pixels or its own.

        Raises:
            ValueError: ``focal`` is not positive.
        """
        f = self.focal if focal is None else focal
        if not 0 < f < np.inf:
            raise ValueError(f"the focal length is {f} px; expected a positive number")
        height, width = self.pixels.shape[:2]
        return np.array([[f, 0, (width - 1) / 2], [0, f, (height - 1) / 2], [0, 0, 1]])


def read_photograph(path: str | os.PathLike[str], max_size: int) -> Photograph:
    """Read a photograph as browsers show it: turned as its EXIF data ask.

    The focal length is that of the EXIF data if they have the one that gives the same field of view on 35 mm film,
    of the same diagonal; otherwise it is a guess.

    Args:
        path: an image file that Pillow and OpenCV can read.
        max_size: a longer edge is shrunk to so many pixels.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no image that can be read, or one of more than `MAX_PIXELS`.
        ImportError: Pillow is not installed.
    """
    try:
        from PIL import ExifTags, Image, ImageOps
    except ImportError as error:
        raise ImportError("the demo reads photographs with Pillow: pip install 'capsdesc[demo]'") from error
    name = Path(path).name
    broken = (
        f"{name} cannot be read as a photograph: it is broken, or of a format other than JPEG, PNG, TIFF, WebP and "
        "their like"
    )
    try:
        with Image.open(path) as image:
            width, height = image.size
            exif = image.getexif()
            film_focal = exif.get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.FocalLengthIn35mmFilm)
            orientation = exif.get(ExifTags.Base.Orientation, 1)
    except FileNotFoundError:
        raise
    except Image.DecompressionBombError as error:
        raise ValueError(f"{name} has far more than {MAX_PIXELS:,} pixels: shrink it") from error
    # Of a broken file Pillow raises SyntaxError and others, too.
    except (OSError, SyntaxError, EOFError, KeyError, IndexError, TypeError, ValueError, struct.error) as error:
        raise ValueError(broken) from error
    if width * height > MAX_PIXELS:
        raise ValueError(f"{name} has {width} x {height} pixels: shrink it to {MAX_PIXELS:,} or fewer")
    try:
        stored = Image.fromarray(read_image(path))
    except ValueError as error:
        raise ValueError(broken) from error
    stored.getexif()[ExifTags.Base.Orientation] = orientation
    pixels = shrink(np.array(ImageOps.exif_transpose(stored)), max_size)
    # EXIF's 0 stands for an unknown length.
    if film_focal:
        diagonal = float(np.hypot(*pixels.shape[:2]))
        return Photograph(
            pixels, film_focal * diagonal / _FILM_DIAGONAL, f"from EXIF data: {film_focal} mm on 35 mm film"
        )
    return Photograph(pixels, GUESSED_FOCAL * max(pixels.shape[:2]), "a guess: the photograph does not say")
