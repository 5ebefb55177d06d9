"""Whether the binary files of a COLMAP model are whole.

COLMAP's own reader does not look: of a file that was cut short it makes up the rest, or never comes back.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

_RIGID = struct.calcsize("<7d")


class _Cursor:
    """A place in a file; to go beyond its end raises :class:`EOFError`."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.position = 0

    def skip(self, size: int) -> None:
        self.position += size
        if self.position > len(self.data):
            raise EOFError

    def number(self, layout: str) -> int:
        start = self.position
        self.skip(struct.calcsize(layout))
        return int(struct.unpack_from(layout, self.data, start)[0])

    def skip_name(self) -> None:
        end = self.data.find(b"\0", self.position)
        if end < 0:
            raise EOFError
        self.position = end + 1


def check_whole(model: Path, count_parameters: Callable[[int], int]) -> None:
    """Refuse a model of which a binary file is cut short, or longer than it says.

    Args:
        model: its folder.
        count_parameters: how many parameters a camera of this COLMAP model id has; it raises ValueError for no id.

    Raises:
        OSError: a file cannot be opened.
        ValueError: a file is not whole; it is named.
    """

    def skip_camera(cursor: _Cursor) -> None:
        cursor.skip(4)
        model_id = cursor.number("<i")
        cursor.skip(16 + 8 * count_parameters(model_id))

    records = {
        "rigs": _skip_rig,
        "cameras": skip_camera,
        "frames": _skip_frame,
        "images": _skip_image,
        "points3D": _skip_point,
    }
    for name, skip_record in records.items():
        path = model / f"{name}.bin"
        if not path.is_file():
            continue
        cursor = _Cursor(path.read_bytes())
        try:
            for _ in range(cursor.number("<Q")):
                skip_record(cursor)
        except EOFError:
            raise ValueError(
                f"{path} is cut short: it has {len(cursor.data)} bytes and says that it has more"
            ) from None
        except ValueError as error:
            raise ValueError(f"{path} is damaged: {error}") from error
        if cursor.position != len(cursor.data):
            raise ValueError(f"{path} is damaged: it goes on after its last record, at byte {cursor.position}")


def _skip_rig(cursor: _Cursor) -> None:
    cursor.skip(4)
    sensors = cursor.number("<I")
    if sensors:
        cursor.skip(8)
    for _ in range(sensors - 1):
        cursor.skip(8)
        if cursor.number("<B"):
            cursor.skip(_RIGID)


def _skip_frame(cursor: _Cursor) -> None:
    cursor.skip(8 + _RIGID)
    cursor.skip(16 * cursor.number("<I"))


def _skip_image(cursor: _Cursor) -> None:
    cursor.skip(4 + _RIGID + 4)
    cursor.skip_name()
    cursor.skip(24 * cursor.number("<Q"))


def _skip_point(cursor: _Cursor) -> None:
    cursor.skip(8 + 24 + 3 + 8)
    cursor.skip(8 * cursor.number("<Q"))
