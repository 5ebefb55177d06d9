"""What readers of several layouts ask of a folder."""

from __future__ import annotations

from pathlib import Path

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
