"""What readers of several layouts ask of a folder."""

from __future__ import annotations

from pathlib import Path

from capsdesc.checks import real_array
from capsdesc.types import Float64Array

IMAGE_SUFFIXES = (".ppm", ".png", ".jpg", ".pgm")


def image_file(folder: Path, stem: str) -> Path:
    """The image of this name, whatever it ends in.

    Raises:
        FileNotFoundError: there is none.
    """
    for suffix in IMAGE_SUFFIXES:
        if (path := folder / f"{stem}{suffix}").exists():
            return path
    raise FileNotFoundError(f"{folder} holds no image {stem} ({', '.join(IMAGE_SUFFIXES)})")


def folders(folder: Path) -> list[Path]:
    """The folders in a folder, by name."""
    return sorted(path for path in folder.iterdir() if path.is_dir())


def folder_with(path: Path, *parts: str) -> Path:
    """The first of the folders ``path/PART`` that is there, or ``path`` itself."""
    return next((path / part for part in parts if (path / part).is_dir()), path)


def numbers(values: object, what: str, shape: tuple[int | None, ...]) -> Float64Array:
    """What a file holds as finite numbers of this shape, None standing for any length.

    Raises:
        ValueError: it is something else; ``what`` is what the message calls it.
    """
    try:
        return real_array(values, what, shape)
    except TypeError as error:
        raise ValueError(str(error)) from error
