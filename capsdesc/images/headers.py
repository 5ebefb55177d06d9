"""What the headers of image files say: the size in pixels, before anything is decoded."""

from __future__ import annotations

import dataclasses
import re
import struct
from collections.abc import Callable, Iterator
from typing import BinaryIO

from capsdesc.images import jpeg, tiff

# A run of 258 bytes takes two bits at least (RFC 1951), so that deflate makes nothing smaller than by this factor.
_DEFLATE_FACTOR = 1032


@dataclasses.dataclass(frozen=True)
class Header:
    """What the header of an image file says.

    Attributes:
        width: in pixels.
        height: in pixels.
        least_bytes: no file of this format with so many pixels is smaller.
    """

    width: int
    height: int
    least_bytes: int = 0


def read_header(file: BinaryIO) -> Header | None:
    """The header of an image file, or None if it is in no format that is known here.

    Known are all that the wheels of OpenCV read: AVIF, BMP, GIF, JPEG, JPEG 2000, PBM to PAM, PNG, Sun raster, TIFF
    and WebP.

    Args:
        file: open for reading, at its beginning.

    Raises:
        ValueError: the header is broken or cut off, or announces pixels that are floating-point numbers.
    """
    start = file.read(16)
    for signature, read in _FORMATS:
        if signature.match(start):
            file.seek(0)
            try:
                header = read(file)
            except struct.error as error:
                raise ValueError("it is truncated within its header") from error
            if header.width < 1 or header.height < 1:
                raise ValueError(f"its header says {header.width} x {header.height} pixels")
            return header
    return None


def _unpack(form: str, file: BinaryIO, position: int) -> tuple[int, ...]:
    file.seek(position)
    return struct.unpack(form, file.read(struct.calcsize(form)))


def _jpeg(file: BinaryIO) -> Header:
    frame = jpeg.read_frame(file)
    return Header(frame.width, frame.height, frame.least_bytes)


def _tiff(file: BinaryIO) -> Header:
    layout = tiff.read_layout(file)
    return Header(layout.width, layout.height)


def _png(file: BinaryIO) -> Header:
    width, height, bits, colour = _unpack(">IIBB", file, 16)
    channels = {2: 3, 4: 2, 6: 4}.get(colour, 1)
    return Header(width, height, width * height * channels * bits // 8 // _DEFLATE_FACTOR)


def _webp(file: BinaryIO) -> Header:
    (kind,) = struct.unpack("4s", file.read(16)[12:])
    if kind == b"VP8X":
        low_width, high_width, low_height, high_height = _unpack("<HBHB", file, 24)
        return Header(1 + low_width + (high_width << 16), 1 + low_height + (high_height << 16))
    if kind == b"VP8L":
        (sizes,) = _unpack("<I", file, 21)
        return Header(1 + (sizes & 0x3FFF), 1 + (sizes >> 14 & 0x3FFF))
    if kind == b"VP8 ":
        width, height = _unpack("<HH", file, 26)
        return Header(width & 0x3FFF, height & 0x3FFF)
    raise ValueError(f"it is a WebP file that begins with {kind!r}, which is no picture")


def _gif(file: BinaryIO) -> Header:
    return Header(*_unpack("<HH", file, 6))


def _bmp(file: BinaryIO) -> Header:
    (size,) = _unpack("<I", file, 14)
    if size == 12:  # OS/2
        width, height, _, bits = _unpack("<HHHH", file, 18)
        return Header(width, height, height * (width * bits // 8))
    width, height, _, bits, compression = _unpack("<iiHHI", file, 18)
    height = abs(height)  # negative where the first row is the upper one
    plain = compression in (0, 3)
    return Header(width, height, height * (width * bits // 8) if plain else 0)


def _sun_raster(file: BinaryIO) -> Header:
    return Header(*_unpack(">II", file, 4))


_BETWEEN = rb"(?:\s|#[^\n]*\n)+"
_NETPBM = re.compile(rb"P([1-6])" + _BETWEEN + rb"(\d{1,10})" + _BETWEEN + rb"(\d{1,10})")


def _netpbm(file: BinaryIO) -> Header:
    found = _NETPBM.match(file.read(2**16))
    if not found:
        raise ValueError("its header has no width and height")
    kind, width, height = (int(number) for number in found.groups())
    return Header(width, height, height * (-(-width // 8) if kind == 4 else width * (3 if kind in (3, 6) else 1)))


def _pam(file: BinaryIO) -> Header:
    head, _, _ = file.read(2**16).partition(b"ENDHDR")
    fields = dict(re.findall(rb"^(WIDTH|HEIGHT|DEPTH)\s+(\d{1,10})\s*$", head, re.MULTILINE))
    if len(fields) != 3:
        raise ValueError("its header has no width, height or depth")
    width, height, depth = (int(fields[name]) for name in (b"WIDTH", b"HEIGHT", b"DEPTH"))
    return Header(width, height, width * height * depth)


def _boxes(file: BinaryIO, start: int, end: int | None = None) -> Iterator[tuple[bytes, int, int | None]]:
    """Name, first byte and end (None: the file's) of each box of an ISO base media file (ISO/IEC 14496-12, 4.2)."""
    while end is None or start < end:
        file.seek(start)
        head = file.read(16)
        if len(head) < 8:
            return
        size, name = struct.unpack(">I4s", head[:8])
        skipped = 8
        if size == 1:
            (size,), skipped = struct.unpack(">Q", head[8:]), 16
        if size == 0:
            yield name, start + skipped, end
            return
        if size < skipped:
            raise ValueError("its header has a box of less than nothing")
        yield name, start + skipped, start + size
        start += size


def _jpeg_2000(file: BinaryIO) -> Header:
    for name, start, _ in _boxes(file, 0):
        if name == b"jp2c":
            return _jpeg_2000_codestream(file, start)
    raise ValueError("it has no codestream, or is truncated before it")


def _jpeg_2000_codestream(file: BinaryIO, start: int = 0) -> Header:
    # ISO/IEC 15444-1, A.5.1: the image lies on a reference grid, and need not begin at its origin.
    right, bottom, left, top = _unpack(">IIII", file, start + 8)
    return Header(right - left, bottom - top)


def _avif(file: BinaryIO) -> Header:
    sizes = [_unpack(">II", file, start + 4) for start in _nested_boxes(file, (b"meta", b"iprp", b"ipco", b"ispe"), 0)]
    if not sizes:
        raise ValueError("it has no size, or is truncated before it")
    # Beside the picture's there are those of its tiles, thumbnail and alpha, none of them larger.
    return Header(*max(sizes, key=lambda size: size[0] * size[1]))


def _nested_boxes(file: BinaryIO, names: tuple[bytes, ...], start: int, end: int | None = None) -> Iterator[int]:
    """First bytes of the boxes of the last name, in those of the names before it."""
    for name, first, last in _boxes(file, start, end):
        if name == names[0] and len(names) == 1:
            yield first
        elif name == names[0]:
            yield from _nested_boxes(file, names[1:], first + (4 if name == b"meta" else 0), last)


def _floating_point(file: BinaryIO) -> Header:
    raise ValueError("it holds floating-point pixels; an 8-bit or a 16-bit unsigned image is expected")


_FORMATS: tuple[tuple[re.Pattern[bytes], Callable[[BinaryIO], Header]], ...] = tuple(
    (re.compile(signature, re.DOTALL), read)
    for signature, read in (
        (rb"\xff\xd8\xff", _jpeg),
        (rb"\x89PNG\r\n\x1a\n", _png),
        (rb"II[*+]\0|MM\0[*+]", _tiff),
        (rb"RIFF....WEBP", _webp),
        (rb"GIF8[79]a", _gif),
        (rb"BM", _bmp),
        (rb"P[1-6]\s", _netpbm),
        (rb"P7\s", _pam),
        (rb"\x59\xa6\x6a\x95", _sun_raster),
        (rb"\0\0\0\x0cjP  \r\n\x87\n", _jpeg_2000),
        (rb"\xff\x4f\xff\x51", _jpeg_2000_codestream),
        (rb"....ftyp", _avif),
        (rb"P[Ff]\s|#\?R|\x76\x2f\x31\x01", _floating_point),  # PFM, Radiance, OpenEXR
    )
)
