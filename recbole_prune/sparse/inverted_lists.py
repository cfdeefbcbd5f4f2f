"""The best items of users by dot products of sparse vectors: inverted lists of the items, scanned block by block.

Exact: a list is that of dense scoring with products added in float64 in the order of the coordinates, rounded once to
float32, equal scores in the order of item ids. The scan itself adds in float32 and keeps every item within the rounding
error of the k-th best; those are scored again exactly. Items come by falling length, so that the scan of a user ends
where no score can reach the k-th best any more (the upper bound of Cauchy and Schwarz). Needs numba; without it, and
for dense tables, matrix products find the candidates (:mod:`recbole_prune.sparse.dense_top_k`). Only numpy is imported.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

# so many accumulators of 4 bytes stay in a core's fastest caches, and offsets within them take two bytes
_ITEMS_AT_ONCE = 1 << 12
_USERS_AT_ONCE = 512
# above this density of the items a matrix product is faster than a scan (measured at width 64 on two x86 cores)
DENSEST_SCAN = 0.3


class Rows(NamedTuple):
    """A sparse table: compressed rows.

    Attributes:
        pointers: live entries before each row, shape ``[rows + 1]``.
        columns: column of every live entry, ascending in a row.
        values: float32.
    """

    pointers: Array
    columns: Array
    values: Array

    @classmethod
    def of(cls, table: Array) -> Rows:
        """The entries of a dense table that are not 0."""
        rows, columns = np.nonzero(table)
        counts = np.bincount(rows, minlength=len(table))
        pointers = np.concatenate([[0], np.cumsum(counts)])
        return cls(pointers, columns.astype(np.int32), np.ascontiguousarray(table[rows, columns], dtype=np.float32))

    def some(self, rows: Array) -> Rows:
        """Some rows, in the order asked for."""
        starts, counts = self.pointers[rows], self.pointers[rows + 1] - self.pointers[rows]
        pointers = np.concatenate([[0], np.cumsum(counts)])
        at = np.arange(pointers[-1]) + np.repeat(starts - pointers[:-1], counts)
        return Rows(pointers, self.columns[at], self.values[at])

    def dense(self, width: int) -> NDArray[np.float32]:
        """The dense table."""
        table = np.zeros((len(self.pointers) - 1, width), dtype=np.float32)
        table[np.repeat(np.arange(len(table)), np.diff(self.pointers)), self.columns] = self.values
        return table


@dataclass
class TopK:
    """The best items of users.

    Attributes:
        items: ids from the best on, int64, shape ``[users, k]``; -1 where fewer than k are left.
        scores: float32, likewise; -inf there.
        tied: whether two neighbours among the k best and the next one have equal scores, shape ``[users]``.
    """

    items: NDArray[np.int64]
    scores: NDArray[np.float32]
    tied: NDArray[np.bool_]

    @classmethod
    def empty(cls, users: int, k: int) -> TopK:
        """No items yet."""
        return cls(np.full((users, k), -1), np.full((users, k), -np.inf, np.float32), np.zeros(users, bool))


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class InvertedLists:
    """The items that have a live entry at each coordinate.

    Args:
        items: the item table; row 0 is padding and never recommended.
        width: its columns.
    """

    def __init__(self, items: Rows, width: int) -> None:
        self._items = items
        counts = np.diff(items.pointers)
        owner = np.repeat(np.arange(len(counts)), counts)
        # long items first: the best are found early, and blocks that cannot hold any of them are left out
        lengths = np.sqrt(np.bincount(owner, items.values.astype(np.float64) ** 2, minlength=len(counts)))
        live = np.flatnonzero((counts > 0) & (np.arange(len(counts)) > 0))
        self._ids = live[np.argsort(-lengths[live], kind="stable")].astype(np.int32)
        position = np.full(len(counts), -1)
        position[self._ids] = np.arange(len(self._ids))
        at = position[owner]
        blocks = -(-len(self._ids) // _ITEMS_AT_ONCE)
        key = at // _ITEMS_AT_ONCE * width + items.columns
        order = np.argsort(key, kind="stable")[np.count_nonzero(at < 0) :]  # padding comes first: its keys are negative
        self._offsets = (at[order] % _ITEMS_AT_ONCE).astype(np.uint16)
        self._weights = np.ascontiguousarray(items.values[order])
        bounds = np.concatenate([[0], np.cumsum(np.bincount(key[order], minlength=blocks * width))])
        self._starts = bounds[np.arange(blocks)[:, None] * width + np.arange(width + 1)]
        self._longest = lengths[self._ids[::_ITEMS_AT_ONCE]]
        self._largest = np.zeros(width)
        np.maximum.at(self._largest, items.columns, np.abs(items.values).astype(np.float64))

    def top_k(
        self, users: Rows, k: int, seen_pointers: Array, seen_items: Array, *, scale: float = 1.0, threads: int = 0
    ) -> TopK:
        """The k best items of each user.

        Args:
            users: one row per user.
            k: length of a list.
            seen_pointers: shape ``[users + 1]``, into ``seen_items``: ids that are left out, ascending for a user.
            scale: constant factor of the scores.
            threads: 0: all usable cores.
        """
        from recbole_prune.sparse.scan_kernel import scan

        total = len(users.pointers) - 1
        found = TopK.empty(total, k)

        def work(first: int) -> None:
            last = min(first + _USERS_AT_ONCE, total)
            scan(
                users.pointers, users.columns, users.values, first, last,
                self._starts, self._offsets, self._weights, self._ids, self._longest, self._largest, _ITEMS_AT_ONCE,
                *self._items, seen_pointers, seen_items, float(scale),
                found.items, found.scores, found.tied,
            )  # fmt: skip

        in_threads(work, range(0, total, _USERS_AT_ONCE), threads)
        return found


def largest(scores: NDArray[np.float32], k: int, threads: int = 0) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The k largest scores of each row of ``[rows, columns]``, k at most the columns, largest first; needs numba.

    Returns:
        columns and scores, each ``[rows, k]``; among equal scores those of smaller columns.
    """
    from recbole_prune.sparse import scan_kernel

    rows, kernel = len(scores), scan_kernel.largest
    items, values = np.empty((rows, k), np.int64), np.empty((rows, k), np.float32)
    step = -(-rows // (threads or usable_cores()))
    in_threads(
        lambda first: kernel(scores, first, min(rows, first + step), items, values), range(0, rows, step), threads
    )
    return items, values


def in_threads(work: Callable[[int], None], firsts: range, threads: int) -> None:
    """Call a function that releases the interpreter's lock for every first row; 0 threads: all usable cores."""
    threads = min(threads or usable_cores(), len(firsts))
    if threads < 2:
        for first in firsts:
            work(first)
        return
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, firsts))
