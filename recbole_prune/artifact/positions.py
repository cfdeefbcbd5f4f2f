"""Where the live entries of a table stand, in the fewest bytes; numpy only."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from recbole_prune.artifact import fixed_rows
from recbole_prune.artifact.bit_packing import bits_below, bytes_of, pack_bits

Array = NDArray[Any]

# parts of the encoding grid
GRID = ("row_bits", "column_bits")
# among those of equal size the first is taken
_OLDEST_FIRST = ("bitmap", "dense", "grid", "rows", "fixed")


def choose_positions(
    mask: NDArray[np.bool_], counts: NDArray[np.int64], stored: Array | None
) -> tuple[str, dict[str, Array], int, int]:
    """The smallest encoding: its name, its parts beside the values, count base and count bits.

    Args:
        mask: which entries are live.
        counts: live entries of each row.
        stored: their values as they are stored; None where a stored 0 is no 0.
    """
    kept = int(counts.sum())
    if kept == mask.size:
        return "dense", {}, 0, 0
    base = int(counts.min(initial=mask.shape[1]))
    bits = int(counts.max(initial=base) - base).bit_length()
    column_bits = bits_below(mask.shape[1])
    sizes = {
        "bitmap": bytes_of(mask.size),
        "rows": bytes_of(mask.shape[0] * bits) + bytes_of(kept * column_bits),
    }
    rows, sides = mask.any(axis=1), mask.any(axis=0)
    if np.count_nonzero(rows) * np.count_nonzero(sides) == kept:
        sizes["grid"] = bytes_of(rows.size) + bytes_of(sides.size)
    # zeros that are live could not be told from pruned ones
    if stored is not None and bool((stored != 0).all()):
        sizes["dense"] = (mask.size - kept) * stored.itemsize
    each = fixed_rows.per_row(counts, mask.shape[1])
    if each is not None:
        sizes["fixed"] = fixed_rows.size_of(counts, mask.shape[1])
    encoding = min((name for name in _OLDEST_FIRST if name in sizes), key=lambda name: sizes[name])
    if encoding == "bitmap":
        return encoding, {"bitmap": np.packbits(mask.reshape(-1), bitorder="little")}, 0, 0
    if encoding == "grid":
        return encoding, {n: np.packbits(b, bitorder="little") for n, b in zip(GRID, (rows, sides))}, 0, 0
    if encoding == "dense":
        return encoding, {}, 0, 0
    if encoding == "fixed" and each is not None:
        return encoding, fixed_rows.pack(mask, counts), each, 0
    packed = {"counts": pack_bits(counts - base, bits), "columns": pack_bits(np.nonzero(mask)[1], column_bits)}
    return encoding, packed, base, bits
