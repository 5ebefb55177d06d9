"""Pictures that commands write."""

from __future__ import annotations

from pathlib import Path

import cv2

from capsdesc.io.files import atomic_path
from capsdesc.types import UInt8Array


def check_picture(path: Path | None) -> None:
    """Refuse a path that no picture can be written to, before the work is done."""
    if path is None or path.is_dir() or not path.parent.is_dir():
        return  # no picture is asked for, or writing will say what is wrong
    if not path.suffix or not cv2.haveImageWriter(path.name):
        raise ValueError(f"cannot write a picture to {path}: expected an ending such as .png or .jpg")


def write_picture(path: Path, picture: UInt8Array) -> None:
    """Write an RGB picture, whole or not at all, and say so."""
    with atomic_path(path) as temporary:
        # Not imwrite, which fails on Windows where a path is not ASCII.
        done, encoded = cv2.imencode(path.suffix, cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
        if not done:
            raise ValueError(f"cannot write a picture to {path}")
        temporary.write_bytes(encoded.tobytes())
    print(f"wrote {path}")
