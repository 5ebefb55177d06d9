"""Whether an LZW stream of a TIFF file is whole: how many bytes it unpacks to, which is told without unpacking."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_CLEAR, _END, _FIRST = 256, 257, 258
# Codes after a Clear have 9 bits, and get one more whenever the table is one entry short of full
# (TIFF 6.0, section 13). Writers clear it before 4096 entries; decoders allow for some that are late.
_TABLE = 5119 - _FIRST
_WIDTHS = np.full(_TABLE, 12)
_WIDTHS[:1790], _WIDTHS[:766], _WIDTHS[:254] = 11, 10, 9
_PLACES = np.concatenate([[0], np.cumsum(_WIDTHS)])


def unpacked_size(stream: bytes, most: int) -> int:
    """Bytes that a stream unpacks to, or -1 if it is damaged.

    A code of the table stands for the string of an earlier code and one byte more, so lengths follow from the codes
    alone.

    Args:
        stream: codes of 9 to 12 bits, highest bit first.
        most: counting ends when there are more.
    """
    padded = np.frombuffer(stream + bytes(3), np.uint8)
    bits = 8 * len(stream)
    size = position = runs = 0
    while position + 9 <= bits and size <= most:
        # A table is not cleared for nothing; else a small file could keep this busy for hours.
        runs += 1
        if runs > 16 + size // 16:
            return -1
        start = position >> 3
        # Most strips begin with one.
        if int.from_bytes(stream[start : start + 2], "big") >> (7 - (position & 7)) & 0x1FF == _CLEAR:
            position += 9
            continue
        places = position + _PLACES[: np.searchsorted(_PLACES, bits - position, side="right")]
        places, widths = places[:-1], _WIDTHS[: len(places) - 1]
        # Three bytes hold any code.
        first, second, third = (padded[(places >> 3) + k].astype(np.int64) for k in range(3))
        codes = (first << 16 | second << 8 | third) >> (24 - widths - (places & 7)) & (1 << widths) - 1
        ends = np.flatnonzero(codes >> 1 == _CLEAR >> 1)
        count = int(ends[0]) if len(ends) else len(codes)
        if not len(ends) and count == _TABLE:
            return -1
        known = codes[:count]
        # Each code after the first adds an entry, which it may use at once.
        if (known >= _FIRST + np.arange(count)).any() or (count and known[0] >= _CLEAR):
            return -1
        size += _total_length(known)
        if not len(ends) or codes[count] == _END:
            break
        position = int(places[count] + widths[count])
    return size


def _total_length(codes: npt.NDArray[np.int64]) -> int:
    """Bytes that codes stand for, where code 258 + j is the string of codes[j] with one byte more."""
    lengths, earlier = np.ones(len(codes), dtype=np.int64), codes - _FIRST
    chained = np.flatnonzero(earlier >= 0)
    # Each step doubles how far back lengths are added up.
    while len(chained):
        back = earlier[chained]
        lengths[chained] += lengths[back]
        earlier[chained] = earlier[back]
        chained = chained[earlier[chained] >= 0]
    return int(lengths.sum())
