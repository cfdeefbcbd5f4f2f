"""Loops over compressed rows, compiled by numba where it is installed (extra ``fast``); else None.

torch needs ten operations with temporaries for what is one loop over the live entries of a batch's rows.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from recbole_prune.sparse.compiling import available, compile_loop

# The rows of a batch lie anywhere in memory. Reading the first entry of some of them in a loop of its own, without
# branches, lets the processor wait for all at once; the loop over their entries waits for each in turn.
_TOUCHED_TOGETHER = 128

Whole = NDArray[np.integer]
Real = NDArray[np.floating]


def _scatter_rows(pointers: Whole, columns: Whole, values: Real, ids: Whole, table: Real) -> tuple[bool, float]:
    touched, last, outside = 0.0, values.size - 1, False
    # compiled loops read and write wherever an id points
    for i in range(ids.size):
        outside |= (ids[i] < 0) | (ids[i] >= pointers.size - 1)
    if outside:
        return False, touched
    for first in range(0, ids.size, _TOUCHED_TOGETHER):
        end = min(ids.size, first + _TOUCHED_TOGETHER)
        for i in range(first, end):
            at = min(pointers[ids[i]], last)
            touched += values[at] + columns[at]
        for i in range(first, end):
            for at in range(pointers[ids[i]], pointers[ids[i] + 1]):
                table[i, columns[at]] = values[at]
    return True, touched


def _add_rows(pointers: Whole, columns: Whole, values: Real, ids: Whole, table: Real) -> float:
    touched, last = 0.0, values.size - 1
    for first in range(0, ids.size, _TOUCHED_TOGETHER):
        end = min(ids.size, first + _TOUCHED_TOGETHER)
        for i in range(first, end):
            at = min(pointers[ids[i]], last)
            touched += values[at] + columns[at]
        for i in range(first, end):
            for at in range(pointers[ids[i]], pointers[ids[i] + 1]):
                values[at] += table[i, columns[at]]
    return touched


def _expand(pointers: Whole, columns: Whole, values: Real, table: Real) -> None:
    for row in range(pointers.size - 1):
        for at in range(pointers[row], pointers[row + 1]):
            table[row, columns[at]] = values[at]


def _gather(pointers: Whole, columns: Whole, values: Real, table: Real) -> None:
    for row in range(pointers.size - 1):
        for at in range(pointers[row], pointers[row + 1]):
            values[at] = table[row, columns[at]]


_LOOPS: dict[str, Callable[..., Any]] = {
    "scatter_rows": _scatter_rows,
    "add_rows": _add_rows,
    "expand": _expand,
    "gather": _gather,
}


@cache
def _compiled(name: str) -> Callable[..., Any]:
    return compile_loop(_LOOPS[name])


def kernel(name: str, *tensors: torch.Tensor) -> Callable[[], Any] | None:
    """One of the loops, ready to be called on tensors, or None where it cannot: no numba, no CPU, or nothing is live.

    Args:
        name: ``scatter_rows`` (values of the rows ``ids`` into a zero table; the first result is False, and nothing is
            done, if an id is not a row), ``add_rows`` (a table added to the values of the rows ``ids``), ``expand``
            (all values into a zero table) or ``gather`` (a table into all values).
        tensors: pointers, columns, values, then ids where there are any, then the table ``[rows, columns]``.
    """
    if tensors[-1].device.type != "cpu" or tensors[-1].dtype not in (torch.float32, torch.float64):
        return None
    if not available():
        return None
    arrays = [tensor.detach().numpy() for tensor in tensors]
    if len(arrays[2]) == 0:
        return None
    loop = _compiled(name)
    return lambda: loop(*arrays)
