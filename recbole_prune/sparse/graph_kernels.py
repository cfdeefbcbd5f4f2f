"""Products of a graph's sparse matrix with tables, compiled by numba.

Imported only where numba is available. A product reads a row of the table for every stored entry, from anywhere in
memory: that is its cost. Rows are asked for long before they are read, which saves a third of the time, and four are
added at a time, so that the sum is written once for them.
"""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray

from recbole_prune.sparse.compiling import compile_loop
from recbole_prune.sparse.prefetching import ask_for_row

Whole = NDArray[np.unsignedinteger]  # of numbers that are never negative the loops need not ask
Real = NDArray[np.floating]

_AHEAD = 24  # entries between asking for a row and reading it


@partial(compile_loop, alone=False, fastmath={"contract"})
def _sum_neighbours(begin: int, end: int, last: int, columns: Whole, weights: Real, table: Real, total: Real) -> None:
    """Make a row the sum of ``weights[at] * table[columns[at]]`` over the entries from ``begin`` to ``end``.

    Those behind are read soon, up to ``last``.
    """
    for f in range(total.size):
        total[f] = 0
    at = begin
    while at + 4 <= end:
        if at + _AHEAD + 4 <= last:
            for entry in range(at + _AHEAD, at + _AHEAD + 4):
                ask_for_row(table, columns[entry])
        one, two = table[columns[at]], table[columns[at + 1]]
        three, four = table[columns[at + 2]], table[columns[at + 3]]
        a, b, c, d = weights[at], weights[at + 1], weights[at + 2], weights[at + 3]
        for f in range(total.size):
            total[f] += a * one[f] + b * two[f] + c * three[f] + d * four[f]
        at += 4
    while at < end:
        if at + _AHEAD < last:
            ask_for_row(table, columns[at + _AHEAD])
        one, a = table[columns[at]], weights[at]
        for f in range(total.size):
            total[f] += a * one[f]
        at += 1


@partial(compile_loop, fastmath={"contract"})
def multiply(pointers: Whole, columns: Whole, weights: Real, own: Real, share: float, table: Real, scale: float,
    found: Real, first: int, last: int,
) -> None:  # fmt: skip
    """``share * own + scale * (matrix @ table)`` in some rows; nothing else changes.

    Args:
        pointers, columns, weights: the matrix in CSR form, ``[m, n]``.
        own: ``[m, width]``; if it is empty, the product alone and unscaled.
        table: ``[n, width]``.
        found: ``[m, width]``.
        first, last: which rows.
    """
    for row in range(first, last):
        total = found[row]
        _sum_neighbours(pointers[row], pointers[row + 1], columns.size, columns, weights, table, total)
        if own.size:
            mine = own[row]
            for f in range(total.size):
                total[f] = share * mine[f] + scale * total[f]


@partial(compile_loop, fastmath={"contract"})
def multiply_rows(pointers: Whole, columns: Whole, weights: Real, own: Real, share: float, table: Real, scale: float,
    rows: Whole, found: Real, first: int, last: int,
) -> None:  # fmt: skip
    """``share * own + scale * (matrix[rows] @ table)`` for some of ``rows``; nothing else changes.

    Args:
        pointers, columns, weights, table: as for :func:`multiply`.
        own: one for each of ``rows``, ``[len(rows), width]``.
        rows: numbers of rows.
        found: one for each of ``rows``.
        first, last: which of ``rows``.
    """
    for place in range(first, last):
        row, total, mine = rows[place], found[place], own[place]
        _sum_neighbours(pointers[row], pointers[row + 1], 0, columns, weights, table, total)
        for f in range(total.size):
            total[f] = share * mine[f] + scale * total[f]


@partial(compile_loop, fastmath={"contract"})
def multiply_live(pointers: Whole, columns: Whole, weights: Real, table: Real, live_pointers: Whole,
    live_columns: Whole, values: Real, first: int, last: int,
) -> None:  # fmt: skip
    """Live entries of ``matrix @ table`` in some of its rows; nothing else changes.

    Args:
        pointers, columns, weights, table: as for :func:`multiply`.
        live_pointers, live_columns: where the live entries are, row by row.
        values: of all live entries.
        first, last: which rows.
    """
    total = np.empty(table.shape[1], table.dtype)
    for row in range(first, last):
        _sum_neighbours(pointers[row], pointers[row + 1], columns.size, columns, weights, table, total)
        for at in range(live_pointers[row], live_pointers[row + 1]):
            values[at] = total[live_columns[at]]


@partial(compile_loop, fastmath={"contract"})
def multiply_compact(pointers: Whole, columns: Whole, weights: Real, live_pointers: Whole, live_columns: Whole,
    values: Real, scale: float, found: Real, first: int, last: int,
) -> None:  # fmt: skip
    """``scale * (own[r] + matrix[r] @ table)`` of some rows, the table a compact one; nothing else changes.

    Args:
        pointers, columns, weights: as for :func:`multiply`, square.
        live_pointers, live_columns, values: the table's live entries.
        found: ``[m, width]``.
        first, last: which rows.
    """
    for row in range(first, last):
        total = found[row]
        for f in range(total.size):
            total[f] = 0
        for at in range(live_pointers[row], live_pointers[row + 1]):
            total[live_columns[at]] = values[at]
        for edge in range(pointers[row], pointers[row + 1]):
            node, a = columns[edge], weights[edge]
            for at in range(live_pointers[node], live_pointers[node + 1]):
                total[live_columns[at]] += a * values[at]
        for f in range(total.size):
            total[f] *= scale


@partial(compile_loop, fastmath={"contract"})
def spread(pointers: Whole, columns: Whole, weights: Real, rows: Whole, vectors: Real, table: Real,
    first: int, last: int,
) -> None:  # fmt: skip
    """Add ``(1 + transposed matrix) @ v`` to some columns of a table, ``v`` being 0 in all but some rows.

    Args:
        pointers, columns, weights: as for :func:`multiply`, square.
        rows: numbers of rows; one may come any number of times.
        vectors: what stands in them, ``[len(rows), width]``.
        table: ``[m, width]``.
        first, last: which columns.
    """
    for place in range(rows.size):
        row, vector = rows[place], vectors[place, first:last]
        total = table[row, first:last]
        for f in range(total.size):
            total[f] += vector[f]
        for at in range(pointers[row], pointers[row + 1]):
            total, a = table[columns[at], first:last], weights[at]
            for f in range(total.size):
                total[f] += a * vector[f]
