"""Features in ``.npz`` archives."""

from __future__ import annotations

import dataclasses
import os
import zipfile
from pathlib import Path
from typing import IO

import numpy as np

from capsdesc.io.hloc import DERIVATIVES_DTYPE
from capsdesc.io.storage import Store, packed, unpacked
from capsdesc.types import Features

# Beside integers: what they are multiplied by.
_STEP = "descriptors_step"


def save_features(
    file: str | os.PathLike[str] | IO[bytes], features: Features, *, settings: str, store: Store = "float32"
) -> None:
    """Write features as an ``.npz`` archive with an array for each field of :class:`Features` that is not ``None``.

    Derivatives are kept in half precision.

    Args:
        file: path that ends in ``.npz``, or a file open for writing.
        features: in numpy.
        settings: text that is kept beside them as ``settings``: what they were made with.
        store: type of the descriptors in the file; of ``"int8"`` the step is kept as ``descriptors_step``.

    Raises:
        ValueError: ``store`` is another one.
    """
    fields = {name: np.asarray(value) for name, value in vars(features).items() if value is not None}
    fields["descriptors"], step = packed(fields["descriptors"], store)
    if step is not None:
        fields[_STEP] = np.asarray(step)
    if features.derivatives is not None:
        fields["derivatives"] = fields["derivatives"].astype(DERIVATIVES_DTYPE)
    np.savez(file, settings=np.asarray(settings), **fields)  # type: ignore[arg-type]


def load_features(file: str | os.PathLike[str] | IO[bytes]) -> Features:
    """Read features that :func:`save_features` wrote.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no such archive.
    """
    try:
        with np.load(file) as stored:
            fields = {field.name: stored.get(field.name) for field in dataclasses.fields(Features)}
            step = stored.get(_STEP)
    # Not an archive of arrays but one array has no context.
    except (zipfile.BadZipFile, EOFError, AttributeError, TypeError) as error:
        raise ValueError(f"{file} holds no features: {error}") from error
    missing = [name for name in ("keypoints", "descriptors", "image_size") if fields[name] is None]
    if missing:
        raise ValueError(f"{file} holds no features: it has no {' and no '.join(missing)}")
    width, height = fields["image_size"].tolist()
    fields["descriptors"] = unpacked(fields["descriptors"], step)
    if fields["derivatives"] is not None:
        fields["derivatives"] = fields["derivatives"].astype(np.float32)
    model = None if fields["model"] is None else str(fields["model"])
    return Features(**{**fields, "image_size": (width, height), "model": model})


def settings_in(path: Path) -> str | None:
    """The settings that :func:`save_features` kept in an archive; ``None`` where there are none."""
    try:
        with np.load(path) as stored:
            return str(stored["settings"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def holds_derivatives(path: Path) -> bool:
    """Whether there are derivatives in an archive."""
    try:
        with np.load(path) as stored:
            return "derivatives" in stored.files
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile):
        return False
