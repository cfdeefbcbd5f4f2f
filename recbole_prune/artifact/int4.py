"""Four bits a value: every row has codes from 0 to 15, a lowest value and a step, ``value = low + code * scale``.

The range of a row is searched for the smallest squared error, as Guan et al., "Post-Training 4-bit Quantization on
Embedding Tables" (arXiv 1911.02079) do it and torch's ``choose_qparams_optimized`` with 200 bins and a ratio of 0.16:
thirty-two times the end moves inwards whose step leaves the smaller error, and the best of all ranges is taken.
Without the search it is the whole range. ``low`` and ``scale`` are float16.

Codes of a row lie two in a byte, even places in the low half; a row begins at a whole byte. Only numpy is needed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

CLIPS = ("search", "none")
BITS = 4

_MOST = (1 << BITS) - 1
_BINS, _MOVES = 200, 32  # of the search: at most 0.16 of a range is cut off
_BLOCK = 1 << 16  # values whose ranges are searched together: they stay in a processor's cache
# distance of a value from its decoded form, in steps: inside half a step, and a little for a step in float16; at the
# ends what is cut off, at most 0.16 / 0.84 of 15 steps, comes on top
_INSIDE, _AT_ENDS = 0.51, 3.4

Floats = NDArray[np.float64]
Halves = NDArray[np.float16]
Counts = NDArray[np.int64]
Bytes = NDArray[np.uint8]


def bytes_of_rows(counts: Counts) -> Counts:
    """Bytes of the codes of rows with so many values."""
    return (counts + 1) // 2


def quantize(values: NDArray[Any], counts: Counts, clip: str) -> tuple[Bytes, Halves, Halves]:
    """Round values to four bits.

    Args:
        values: all finite in float16, row by row.
        counts: values of each row, none 0.
        clip: one of :data:`CLIPS`.

    Returns:
        packed codes of shape ``[sum of bytes_of_rows(counts)]``; ``low`` and ``scale`` of each row, float16.
    """
    lows, scales = np.zeros(len(counts), np.float16), np.zeros(len(counts), np.float16)
    sizes = bytes_of_rows(counts)
    packed = np.zeros(int(sizes.sum()), np.uint8)
    firsts, first_bytes = np.cumsum(counts) - counts, np.cumsum(sizes) - sizes
    for count in np.unique(counts).tolist():
        alike = np.flatnonzero(counts == count)
        step = max(1, _BLOCK // count)
        for rows in (alike[start : start + step] for start in range(0, len(alike), step)):
            table = values[firsts[rows, None] + np.arange(count)].astype(np.float64)
            lows[rows], scales[rows] = _rounded(*_range(table, clip))
            codes = np.zeros((len(rows), count + count % 2), np.uint8)
            codes[:, :count] = _codes(table, lows[rows], scales[rows])
            packed[first_bytes[rows, None] + np.arange(codes.shape[1] // 2)] = codes[:, ::2] | codes[:, 1::2] << BITS
    return packed, lows, scales


def dequantize(packed: Bytes, counts: Counts, lows: Halves, scales: Halves) -> NDArray[np.float32]:
    """Undo :func:`quantize`, up to rounding."""
    steps = np.repeat(scales.astype(np.float32), counts)
    with np.errstate(over="ignore", invalid="ignore"):  # what a forged scale makes of it, the caller refuses
        return np.repeat(lows.astype(np.float32), counts) + unpack(packed, counts) * steps


def unpack(packed: Bytes, counts: Counts) -> Bytes:
    """The codes of rows with so many values, row by row."""
    firsts, sizes = np.cumsum(counts) - counts, bytes_of_rows(counts)
    places = np.arange(int(counts.sum())) - np.repeat(firsts, counts)
    codes = packed[np.repeat(np.cumsum(sizes) - sizes, counts) + places // 2] >> (BITS * (places % 2)).astype(np.uint8)
    return codes & np.uint8(_MOST)


def rounding_error(packed: Bytes, counts: Counts, lows: Halves, scales: Halves) -> Floats:
    """The most that each value is away from what was rounded; ends of a range may have been cut off."""
    codes = unpack(packed, counts)
    low, scale = (np.repeat(np.abs(part.astype(np.float64)), counts) for part in (lows, scales))
    arithmetic = (low + _MOST * scale) * 2.0**-23
    # low is rounded to eleven bits, and steps end at 2**-24
    at_ends = _AT_ENDS * scale + np.maximum(low * 2.0**-10, 2.0**-24) + 2.0**-20
    error: Floats = np.where((codes == 0) | (codes == _MOST), at_ends, _INSIDE * scale) + arithmetic
    return error


def _rounded(low: Floats, high: Floats) -> tuple[Halves, Halves]:
    """The lowest value and the step of ranges in float16; a range that ends below its rounded low has no step."""
    lowest = low.astype(np.float16)
    return lowest, np.maximum((high - lowest) / _MOST, 0).astype(np.float16)


def _codes(table: Floats, low: Halves, scale: Halves) -> Floats:
    steps = np.where(scale > 0, scale, np.inf).astype(np.float64)  # without a step every code is 0
    codes = table - low[:, None].astype(np.float64)
    codes /= steps[:, None]
    np.rint(codes, out=codes)
    return np.clip(codes, 0, _MOST, out=codes)


def _range(table: Floats, clip: str) -> tuple[Floats, Floats]:
    """The lowest and the highest value of each row that codes 0 and 15 stand for."""
    low, high = table.min(axis=1), table.max(axis=1)
    if clip == "none":
        return low, high
    best, least, step = (low, high), _error(table, low, high), (high - low) / _BINS
    for _ in range(_MOVES):
        if_low, if_high = _error(table, low + step, high), _error(table, low, high - step)
        moves = if_low < if_high
        low, high = np.where(moves, low + step, low), np.where(moves, high, high - step)
        error = np.where(moves, if_low, if_high)
        better = error < least
        best = np.where(better, low, best[0]), np.where(better, high, best[1])
        least = np.minimum(least, error)
    return best


def _error(table: Floats, low: Floats, high: Floats) -> Floats:
    """Sum of squares over each row of what rounding to a range changes."""
    lowest, scale = _rounded(low, high)
    decoded = _codes(table, lowest, scale)
    decoded *= scale[:, None]
    decoded += lowest[:, None]
    decoded -= table
    error: Floats = np.einsum("rc,rc->r", decoded, decoded)
    return error
