"""Products of a graph's sparse matrix with tables, compiled by numba.

Imported only where numba is available. A product reads a row of the table for every stored entry, from anywhere in
memory (:mod:`recbole_prune.sparse.row_sums`); the product of some rows, and that with their transpose, go by way of a
copy of these rows, whose entries lie one behind the other as they are read.
"""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray

from recbole_prune.sparse.compiling import compile_loop
from recbole_prune.sparse.row_sums import sum_rows

Whole = NDArray[np.unsignedinteger]  # of numbers that are never negative the loops need not ask
Real = NDArray[np.floating]


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
        sum_rows(pointers[row], pointers[row + 1], columns.size, columns, weights, table, total)
        if own.size:
            mine = own[row]
            for f in range(total.size):
                total[f] = share * mine[f] + scale * total[f]


@compile_loop
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
        sum_rows(pointers[row], pointers[row + 1], columns.size, columns, weights, table, total)
        for at in range(live_pointers[row], live_pointers[row + 1]):
            values[at] = total[live_columns[at]]


@compile_loop
def some_rows(pointers: Whole, columns: Whole, weights: Real, rows: Whole) -> tuple[Whole, Whole, Real]:
    """The rows of a matrix in CSR form whose numbers are given, in CSR form; one may be there any number of times."""
    starts = np.zeros(rows.size + 1, pointers.dtype)
    for place in range(rows.size):
        starts[place + 1] = starts[place] + pointers[rows[place] + 1] - pointers[rows[place]]
    copied, weighed = np.empty(starts[rows.size], columns.dtype), np.empty(starts[rows.size], weights.dtype)
    for place in range(rows.size):
        to, begin = starts[place], pointers[rows[place]]
        for entry in range(starts[place + 1] - to):
            copied[to + entry] = columns[begin + entry]
            weighed[to + entry] = weights[begin + entry]
    return starts, copied, weighed


@compile_loop
def transpose(pointers: Whole, columns: Whole, weights: Real, width: int) -> tuple[Whole, Whole, Real]:
    """The transpose of a matrix in CSR form that has ``width`` columns, in CSR form."""
    # one place too far: where a row begins moves to where it ends, which is where the next one begins
    starts = np.zeros(width + 2, pointers.dtype)
    for at in range(columns.size):
        starts[columns[at] + 2] += 1
    for row in range(width):
        starts[row + 2] += starts[row + 1]
    rows, weighed = np.empty_like(columns), np.empty_like(weights)
    for row in range(pointers.size - 1):
        for at in range(pointers[row], pointers[row + 1]):
            to = starts[columns[at] + 1]
            starts[columns[at] + 1] += 1
            rows[to], weighed[to] = row, weights[at]
    return starts[: width + 1], rows, weighed
