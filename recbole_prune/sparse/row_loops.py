"""Loops over the live entries of rows, compiled by numba; imported only where that is available.

The rows of a batch lie anywhere in memory, so they are asked for before they are read: first where their entries
begin, then the entries.
"""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray

from recbole_prune.sparse.compiling import compile_loop
from recbole_prune.sparse.prefetching import ask_for

Whole = NDArray[np.integer]
Real = NDArray[np.floating]

_AHEAD = 24  # rows between asking and reading (from 16 to 64 it makes no difference)


@partial(compile_loop, alone=False)
def _ask_for_entries(pointers: Whole, columns: Whole, values: Real, ids: Whole, place: int) -> None:
    if place + _AHEAD < ids.size:
        ask_for(pointers, ids[place + _AHEAD])
    if place < ids.size:
        begin = pointers[ids[place]]
        ask_for(values, begin)
        ask_for(columns, begin)


@compile_loop
def scatter_rows(pointers: Whole, columns: Whole, values: Real, ids: Whole, table: Real) -> bool:
    """Write the rows ``ids`` into a table, one below the other; False, and nothing is done, if an id is no row."""
    outside = False
    # compiled loops read and write wherever an id points
    for i in range(ids.size):
        outside |= (ids[i] < 0) | (ids[i] >= pointers.size - 1)
    if outside:
        return False
    for i in range(min(ids.size, _AHEAD)):
        _ask_for_entries(pointers, columns, values, ids, i)
    for i in range(ids.size):
        _ask_for_entries(pointers, columns, values, ids, i + _AHEAD)
        for f in range(table.shape[1]):
            table[i, f] = 0
        for at in range(pointers[ids[i]], pointers[ids[i] + 1]):
            table[i, columns[at]] = values[at]
    return True


@compile_loop
def add_rows(pointers: Whole, columns: Whole, values: Real, ids: Whole, table: Real) -> None:
    """Add the rows of a table to the values of the rows ``ids``, all of which are there."""
    for i in range(min(ids.size, _AHEAD)):
        _ask_for_entries(pointers, columns, values, ids, i)
    for i in range(ids.size):
        _ask_for_entries(pointers, columns, values, ids, i + _AHEAD)
        for at in range(pointers[ids[i]], pointers[ids[i] + 1]):
            values[at] += table[i, columns[at]]


@compile_loop
def expand(pointers: Whole, columns: Whole, values: Real, table: Real) -> None:
    """Write all rows into a table."""
    for row in range(pointers.size - 1):
        for f in range(table.shape[1]):
            table[row, f] = 0
        for at in range(pointers[row], pointers[row + 1]):
            table[row, columns[at]] = values[at]


@compile_loop
def gather(pointers: Whole, columns: Whole, values: Real, table: Real) -> None:
    """Take all values from a table."""
    for row in range(pointers.size - 1):
        for at in range(pointers[row], pointers[row + 1]):
            values[at] = table[row, columns[at]]
