"""JPEG files: their frame header, and whether all of the image is there (ITU-T T.81, annex B)."""

from __future__ import annotations

import dataclasses
import re
import struct
from collections.abc import Callable, Iterator
from typing import BinaryIO, NamedTuple

import numpy as np

from capsdesc.types import UInt8Array

END_OF_IMAGE = b"\xff\xd9"
_START_OF_SCAN = 0xDA
# 0xC4, 0xC8 and 0xCC between them are no frames.
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE = {0xC2, 0xC6, 0xCA, 0xCE}
_ARITHMETIC = {*range(0xC9, 0xD0)}
# What may stand between scans: tables, the number of lines, the restart interval, application data, comments.
_BETWEEN_SCANS = {0xC4, 0xCC, 0xDB, 0xDC, 0xDD, *range(0xE0, 0xF0), 0xFE}
# As decoders do, whatever is no marker is passed over: stray bytes between segments, and the coded data of a scan, in
# which 0xFF is followed by 0 or is a restart marker.
_MARKER = re.compile(rb"\xff+([^\x00\x01\xd0-\xd7\xff])")
_RESTART = re.compile(rb"\xff[\xd0-\xd7]")
# So much of a file has its frame header, but where a large preview stands before it.
_HEAD_BYTES = 2**17


class _Segment(NamedTuple):
    marker: int
    position: int
    content: bytes


@dataclasses.dataclass(frozen=True)
class Frame:
    """What a frame header says.

    Attributes:
        marker: of the frame, which tells the coding.
        width: in pixels.
        height: in pixels.
        sampling: horizontal and vertical sampling factor of each component, by its number.
    """

    marker: int
    width: int
    height: int
    sampling: dict[int, tuple[int, int]]

    @property
    def least_bytes(self) -> int:
        """No file with this frame is smaller: a block of 8 x 8 samples has a code of one bit for its mean at least.

        In a frame that is not progressive, it has another for the end of the block.
        """
        if self.marker in _ARITHMETIC:
            return 0
        most_x, most_y = (max(factors) for factors in zip(*self.sampling.values(), strict=True))
        blocks: int = sum(
            -(-self.width * x // (8 * most_x)) * -(-self.height * y // (8 * most_y)) for x, y in self.sampling.values()
        )
        return blocks * (1 if self.marker in _PROGRESSIVE else 2) // 8


def read_frame(file: BinaryIO) -> Frame:
    """The frame header of a JPEG file.

    Raises:
        ValueError: there is none, or it is broken.
    """
    head = file.read(_HEAD_BYTES)
    frame = _find_frame(head) or _find_frame(head + file.read())
    if frame is None:
        raise ValueError("the JPEG file is truncated before its size, or is none")
    return frame


def completed(data: bytes, decode: Callable[[bytes], UInt8Array | None]) -> bytes | None:
    """The file with the end-of-image marker that it may lack, or None if the image is truncated.

    Without the marker, decoders fill up what is missing, each in its own way. So the image is whole if all of its scans
    are there, and bytes put behind the last one change no pixel.

    Args:
        data: the content of the file.
        decode: any decoder, which returns None where it refuses.
    """
    start = next((segment.position for segment in _segments(data) if segment.marker == _START_OF_SCAN), len(data))
    # No coded data contain the marker; that of a thumbnail lies before them.
    if data.find(END_OF_IMAGE, start) >= 0:
        return data
    scan = _last_scan(data)
    if scan is None:
        return None
    body = data[: scan.stop].rstrip(b"\xff")
    if body.endswith(bytes(8)):  # what a broken copy left unwritten
        body = body.rstrip(b"\0\xff")
    image = decode(body + END_OF_IMAGE)
    if image is None:
        return None
    restarts = _RESTART.findall(body, scan.start)
    for step in (151, 44, 97):
        other = decode(body + _filler(step, restarts[-1][1] + 1 if restarts else 0) + END_OF_IMAGE)
        if other is None or not np.array_equal(image, other):
            return None
    return body + END_OF_IMAGE


def _filler(step: int, restart: int) -> bytes:
    """Coded data of no meaning, with the restart markers that the scan would go on with, from this one on."""
    meaningless = bytes(k * step % 255 for k in range(1, 64))
    return b"".join(meaningless + bytes((0xFF, 0xD0 + (restart + k) % 8)) for k in range(9))


def _last_scan(data: bytes) -> slice | None:
    """Where the last scan is, or None if there are not those for all coefficients of all components."""
    frame, missing = None, {}
    start, end = 0, len(data)
    for segment in _segments(data):
        if segment.marker in _FRAMES:
            frame = _frame(segment)
            missing = {component: set(range(64)) for component in frame.sampling}
        elif segment.marker == _START_OF_SCAN and frame:
            start = segment.position
            for component, coefficients in _final_coefficients(segment, frame):
                missing.get(component, set()).difference_update(coefficients)
        elif segment.marker not in _BETWEEN_SCANS:
            end = segment.position
            break
    return slice(start, end) if frame and not any(missing.values()) else None


def _segments(data: bytes) -> Iterator[_Segment]:
    """All segments, and the markers that stand alone, up to where they end or break."""
    position = 2
    while found := _MARKER.search(data, position):
        marker, start = found[1][0], found.end()
        if marker in (0xD8, 0xD9):
            yield _Segment(marker, found.start(), b"")
            position = start
            continue
        position = start + int.from_bytes(data[start : start + 2], "big")
        if position < start + 2 or position > len(data):
            return
        yield _Segment(marker, found.start(), data[start + 2 : position])


def _find_frame(data: bytes) -> Frame | None:
    for segment in _segments(data):
        if segment.marker in _FRAMES:
            return _frame(segment)
        if segment.marker in (_START_OF_SCAN, 0xD9):
            break
    return None


def _frame(segment: _Segment) -> Frame:
    try:
        _, height, width, count = struct.unpack_from(">BHHB", segment.content)
        components = list(struct.iter_unpack("BBB", segment.content[6 : 6 + 3 * count]))
    except struct.error as error:
        raise ValueError("the JPEG file has a broken frame header") from error
    sampling = {number: (factors >> 4, factors & 15) for number, factors, _ in components}
    if not sampling or any(0 in factors for factors in sampling.values()):
        raise ValueError("the JPEG file has a frame header without components")
    return Frame(segment.marker, width, height, sampling)


def _final_coefficients(scan: _Segment, frame: Frame) -> Iterator[tuple[int, range]]:
    """Components of a scan, with those of their 64 coefficients that have all of their bits after it."""
    content = scan.content
    if not content or len(content) != 4 + 2 * content[0]:
        return
    first, last, precision = content[-3:]
    if frame.marker not in _PROGRESSIVE:
        first, last, precision = 0, 63, 0
    if precision & 15 == 0:
        for component in content[1:-3:2]:
            yield component, range(first, last + 1)
