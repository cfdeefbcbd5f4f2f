"""Positions of tables whose rows have equally many live entries, but for some that are live throughout (padding).

No row needs a count or a pointer: ``columns`` has the column numbers of all rows that are not whole, row by row in the
fewest bits that hold them, and ``full_rows`` the numbers of the whole rows, uint32. Only numpy is needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recbole_prune.artifact.bit_packing import bits_below, bytes_of, pack_bits, unpack_bits

Array = NDArray[Any]
Counts = NDArray[np.int64]

PARTS = frozenset({"columns", "full_rows"})
_ROW = np.uint32


def per_row(counts: Counts, columns: int) -> int | None:
    """Live entries of every row that is not whole; None where they differ, or there is no such row."""
    rest = np.unique(counts[counts < columns])
    return int(rest[0]) if len(rest) == 1 and len(counts) <= np.iinfo(_ROW).max else None


def size_of(counts: Counts, columns: int) -> int:
    """Bytes of the positions of such a table."""
    whole = int(np.count_nonzero(counts == columns))
    return bytes_of((int(counts.sum()) - whole * columns) * bits_below(columns)) + whole * np.dtype(_ROW).itemsize


def pack(mask: NDArray[np.bool_], counts: Counts) -> dict[str, Array]:
    """The parts of a mask of such a table."""
    whole = counts == mask.shape[1]
    columns = np.nonzero(mask[~whole])[1]
    return {
        "columns": pack_bits(columns, bits_below(mask.shape[1])),
        "full_rows": np.flatnonzero(whole).astype(_ROW),
    }


def wrong_size(parts: Mapping[str, Array], rows: int, columns: int, kept: int, each: int) -> str | None:
    """What is wrong with the sizes of the parts, None where nothing is; only numbers are compared.

    Args:
        parts: ``columns`` and ``full_rows``.
        rows, columns: shape of the table.
        kept: live entries.
        each: those of a row that is not whole.
    """
    whole = parts["full_rows"].size
    if each > columns or whole > rows or (rows - whole) * each + whole * columns != kept:
        return f"{rows} rows of {columns}, {whole} of them whole, with {each} entries each do not have {kept} entries"
    needed = bytes_of((rows - whole) * each * bits_below(columns))
    if parts["columns"].size != needed:
        return f"columns has {parts['columns'].size} elements where {needed} are needed"
    return None


def counts_of(parts: Mapping[str, Array], rows: int, columns: int, each: int) -> Counts | None:
    """Live entries of every row; None where the whole rows are no ascending row numbers."""
    whole = parts["full_rows"].astype(np.int64)
    if whole.size and (whole[-1] >= rows or not (whole[1:] > whole[:-1]).all()):
        return None
    counts = np.full(rows, each, dtype=np.int64)
    counts[whole] = columns
    return counts


def columns_of(parts: Mapping[str, Array], counts: Counts, columns: int, each: int) -> Counts:
    """The column of every live entry, row by row; those of rows that are not whole as they are stored."""
    found = np.empty(int(counts.sum()), dtype=np.int64)
    whole = np.zeros(len(counts), dtype=bool)
    whole[parts["full_rows"]] = True
    of_whole = np.repeat(whole, counts)
    found[of_whole] = np.tile(np.arange(columns), int(whole.sum()))
    found[~of_whole] = unpack_bits(parts["columns"], bits_below(columns), int((~whole).sum()) * each)
    return found
