"""TIFF files: their first directory, pixels as they are stored, and whether all of them are there (TIFF 6.0).

OpenCV turns pixels as the orientation tag asks, multiplies them by their alpha, and makes something of damaged strips
without a word. So the tags are set right before it sees them, and each strip is unpacked first, or as good as.
"""

from __future__ import annotations

import dataclasses
import io
import struct
import zlib
from typing import BinaryIO

from capsdesc.images.lzw import unpacked_size

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _FILL_ORDER = 256, 257, 258, 259, 262, 266
_STRIP_OFFSETS, _ORIENTATION, _BANDS, _STRIP_ROWS, _STRIP_BYTES, _PLANES = 273, 274, 277, 278, 279, 284
_TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS, _TILE_BYTES, _EXTRA_SAMPLES, _SUBSAMPLING = 322, 323, 324, 325, 338, 530
_GEO_KEYS = 34735  # OGC GeoTIFF 1.1, section 7.1.1
_TAGS = {
    *(_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _FILL_ORDER),
    *(_STRIP_OFFSETS, _ORIENTATION, _BANDS, _STRIP_ROWS, _STRIP_BYTES, _PLANES),
    *(_TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS, _TILE_BYTES, _EXTRA_SAMPLES, _SUBSAMPLING),
    _GEO_KEYS,
}
_INTEGERS = {1: "B", 3: "H", 4: "I", 16: "Q"}
_NONE, _LZW, _DEFLATE, _OLD_DEFLATE, _PACKBITS = 1, 5, 8, 32946, 32773
_RGB, _YCBCR = 2, 6
_UPRIGHT, _PREMULTIPLIED = 1, 1
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
_CHUNK = 2**20
_MOST_VALUES = 2**22  # strips or tiles


@dataclasses.dataclass(frozen=True)
class _Field:
    """A field of a directory: its values, their type and where in the file they are."""

    values: tuple[int, ...]
    form: str
    position: int


@dataclasses.dataclass(frozen=True)
class Layout:
    """The first directory of a TIFF file, as far as it tells where the pixels are.

    Attributes:
        width: in pixels.
        height: in pixels.
        order: of bytes, as `struct` has it.
        fields: by tag.
    """

    width: int
    height: int
    order: str
    fields: dict[int, _Field]

    def values(self, tag: int, *default: int) -> tuple[int, ...]:
        """The values of a field, or these."""
        return self.fields[tag].values if tag in self.fields else default

    def value(self, tag: int, default: int) -> int:
        """The first value of a field, or this."""
        return self.values(tag, default)[0]

    @property
    def is_georeferenced(self) -> bool:
        """Whether the file says where on Earth its pixels are."""
        return _GEO_KEYS in self.fields

    @property
    def opencv_reads_all_bands(self) -> bool:
        """Of several bands that are no colours OpenCV reads one, or none."""
        bands, colours = self.value(_BANDS, 1), self.value(_PHOTOMETRIC, 0) in (_RGB, _YCBCR)
        return bands == 1 or (bands in (3, 4) and colours)


def read_layout(file: BinaryIO) -> Layout:
    """The first directory of a TIFF or BigTIFF file.

    Raises:
        ValueError: it is broken.
        struct.error: it is cut off.
    """
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    order = "<" if file.read(2) == b"II" else ">"

    def read(form: str) -> tuple[int, ...]:
        return struct.unpack(order + form, file.read(struct.calcsize(order + form)))

    big = read("H")[0] == 43
    word, words = ("Q", 8) if big else ("I", 4)
    if big:
        read("I")
    (start,) = read(word)
    file.seek(min(start, size))
    (count,) = read("Q" if big else "H")
    start = file.tell()
    fields: dict[int, _Field] = {}
    for position in range(start, start + count * (4 + 2 * words), 4 + 2 * words):
        file.seek(position)
        tag, kind, number = read("HH" + word)
        if tag not in _TAGS or tag in fields or kind not in _INTEGERS:
            continue
        form = f"{number}{_INTEGERS[kind]}"
        if not 0 < number <= min(size, _MOST_VALUES):
            raise ValueError(f"the TIFF file says that tag {tag} has {number} values")
        at = position + 4 + words
        if struct.calcsize(order + form) > words:
            (at,) = read(word)
            file.seek(min(at, size))
        fields[tag] = _Field(read(form), _INTEGERS[kind], at)
    if _WIDTH not in fields or _HEIGHT not in fields:
        raise ValueError("the TIFF file does not say its size")
    return Layout(fields[_WIDTH].values[0], fields[_HEIGHT].values[0], order, fields)


def as_stored(data: bytes) -> bytes:
    """The file so that its pixels are decoded as they are stored: neither turned nor multiplied by their alpha.

    Raises:
        ValueError: it has more bands than an image, is damaged, or truncated.
    """
    layout = read_layout(io.BytesIO(data))
    bands = layout.value(_BANDS, 1)
    if bands > 4:
        raise ValueError(f"it has {bands} bands; 1 (grey), 3 (RGB) or 4 (with alpha) are expected")
    _check_pixels(data, layout, bands)
    for tag, value in ((_ORIENTATION, _UPRIGHT), (_EXTRA_SAMPLES, _PREMULTIPLIED)):
        field = layout.fields.get(tag)
        if field and field.values[0] != value:
            stored = struct.pack(layout.order + field.form, value)
            data = data[: field.position] + stored + data[field.position + len(stored) :]
    return data


def _check_pixels(data: bytes, layout: Layout, bands: int) -> None:
    """Every strip or tile must lie in the file and hold so many bytes as its pixels need."""
    tiled = _TILE_WIDTH in layout.fields
    width, height = layout.value(_TILE_WIDTH, layout.width), layout.height
    rows = layout.value(_TILE_HEIGHT if tiled else _STRIP_ROWS, height)
    if width < 1 or rows < 1:
        raise ValueError(f"the TIFF file says that it has tiles or strips of {width} x {rows} pixels")
    rows = rows if tiled else min(rows, height)
    bits = layout.values(_BITS, 1)
    bits = bits if len(bits) == bands else bits[:1] * bands
    compression = layout.value(_COMPRESSION, _NONE)
    planes = bits if layout.value(_PLANES, 1) == 2 else (sum(bits),)
    down, across = -(-height // rows), -(-layout.width // width)
    offsets = layout.values(_TILE_OFFSETS if tiled else _STRIP_OFFSETS)
    counts = layout.values(_TILE_BYTES if tiled else _STRIP_BYTES) or (len(data),) * len(offsets)
    if min(len(offsets), len(counts)) < down * across * len(planes):
        raise ValueError(f"the TIFF file has {len(offsets)} of {down * across * len(planes)} strips or tiles")
    for k, (offset, count) in enumerate(zip(offsets, counts, strict=False)):
        plane, piece = divmod(k, down * across)
        if plane == len(planes):
            break
        full = _bytes_of(layout, planes[plane], width, rows)
        needed = full if tiled else _bytes_of(layout, planes[plane], width, min(rows, height - piece * rows))
        if compression == _NONE:
            whole = offset + needed <= len(data)
        else:
            strip = data[offset : offset + count]
            if layout.value(_FILL_ORDER, 1) == 2:
                strip = strip.translate(_REVERSED)
            whole = _is_whole(strip, compression, needed, full, count)
        if not whole:
            raise ValueError(f"the TIFF file is damaged or truncated: strip or tile {k} lacks pixels")


def _bytes_of(layout: Layout, bits: int, width: int, rows: int) -> int:
    """Bytes of so many pixels of so many bits each, every row on bytes of its own."""
    if layout.value(_PHOTOMETRIC, 0) == _YCBCR and layout.value(_PLANES, 1) == 1:
        # Two samples of colour come with a block of those of light (TIFF 6.0, section 21).
        x, y = (max(1, factor) for factor in (*layout.values(_SUBSAMPLING, 2, 2), 1)[:2])
        return -(-width // x) * -(-rows // y) * (x * y + 2) * bits // 24
    return rows * -(-width * bits // 8)


def _is_whole(strip: bytes, compression: int, needed: int, full: int, count: int) -> bool:
    """Whether a strip unpacks to the bytes that its pixels need; some writers make the last one as long as all."""
    if compression == _LZW:
        return unpacked_size(strip, full) in (needed, full)
    if compression in (_DEFLATE, _OLD_DEFLATE):
        return _inflated_size(strip, full) >= needed
    if compression == _PACKBITS:
        return _packbits_size(strip, full) >= needed
    return len(strip) == count  # other codes are OpenCV's alone to judge


def _inflated_size(strip: bytes, most: int) -> int:
    """Bytes that a zlib stream holds, or 0 where it is damaged or holds more than ``most``."""
    stream = zlib.decompressobj()
    size = 0
    try:
        # One more than is wanted, so that the end with its check sum is read.
        while size <= most and not stream.eof and strip:
            size += len(stream.decompress(strip, min(_CHUNK, most + 1 - size)))
            strip = stream.unconsumed_tail
    except zlib.error:
        return 0
    return size if size <= most else 0


def _packbits_size(strip: bytes, most: int) -> int:
    """Bytes that a PackBits stream (TIFF 6.0, section 9) holds, up to ``most``."""
    position = size = 0
    while position < len(strip) and size < most:
        head = strip[position]
        if head < 128:
            position, size = position + head + 2, size + head + 1
        else:
            position, size = position + (2 if head > 128 else 1), size + (257 - head if head > 128 else 0)
    return size - max(0, position - len(strip))
