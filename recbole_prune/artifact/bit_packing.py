"""Small integers in as few bits as they need; numpy only."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

# numbers packed at a time; a multiple of 8, so that every block but the last ends at a byte
_BLOCK = 1 << 20


def bytes_of(bits: int) -> int:
    """Bytes that so many bits fill."""
    return (bits + 7) // 8


def bits_below(count: int) -> int:
    """Bits of a number below ``count``."""
    return max(count - 1, 0).bit_length()


def pack_bits(numbers: Array, width: int) -> NDArray[np.uint8]:
    """Non-negative integers below ``2 ** width``, one after the other in ``width`` bits each, low bit first."""
    if width == 0 or numbers.size == 0:
        return np.zeros(0, dtype=np.uint8)
    weights = np.arange(width, dtype=np.uint64)
    blocks = []
    for start in range(0, numbers.size, _BLOCK):
        block = numbers[start : start + _BLOCK].astype(np.uint64)
        bits = (block[:, None] >> weights) & np.uint64(1)
        blocks.append(np.packbits(bits.astype(np.uint8), bitorder="little"))
    return np.concatenate(blocks)


def unpack_bits(packed: Array, width: int, count: int) -> NDArray[np.int64]:
    """Undo :func:`pack_bits`: ``count`` integers of ``width`` bits."""
    numbers = np.zeros(count, dtype=np.int64)
    if width == 0:
        return numbers
    for start in range(0, count, _BLOCK):
        block = numbers[start : start + _BLOCK]
        first = start * width // 8
        bits = np.unpackbits(packed[first:], count=block.size * width, bitorder="little").reshape(-1, width)
        for bit in range(width):
            block |= bits[:, bit].astype(np.int64) << bit
    return numbers
