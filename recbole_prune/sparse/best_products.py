"""The best rows of a table by their products with vectors: only rows that may be among the best are scored.

Exact: a list is that of products added in float64 in the order of the coordinates, rounded once to float32, equal
scores in the order of ids. The table is rotated to its principal axes, on the first of which most of every product
lies. What the others add is at most the product of the lengths there, by Cauchy and Schwarz; only where the sum reaches
the k-th best score so far is a row scored. Long rows come first, and the search ends where the whole lengths say that
nothing better follows (LEMP, Teflioudi et al., SIGMOD 2015; FEXIPRO, Li et al., SIGMOD 2017). All of that is float32,
and bounds are lower by more than its rounding; what is left is scored exactly. Needs numba.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from recbole_prune.sparse.inverted_lists import Array, TopK, in_threads

# rows of the table that are scored together: their coordinates and scores stay in the first cache
_MEMBERS = 256
_VECTORS_AT_ONCE = 256
_ROTATED_AT_ONCE = 1 << 16
_EPSILON = 6e-8  # more than half the distance of 1 to the next float32
_LEAST = 1.5e-45  # more than the least float32
_LARGEST = 1e38
# how many coordinates are compared at first: the best for some vectors, or the second where there are few
_DEPTHS = (8, 16, 32, 48, 64, 96, 128)
_MANY_VECTORS, _VECTORS_TRIED = 1024, 32
# time of scoring a row, and of each of its coordinates, in that of adding a coordinate to the limits of many rows
_COST_OF_ROW, _COST_OF_COORDINATE = 800, 6

Single = NDArray[np.float32]
Double = NDArray[np.float64]


class Wanted(NamedTuple):
    """Vectors whose best rows are searched for.

    Attributes:
        vectors: float32 ``[n, width]``; :func:`are_finite` holds for them, the table, and ``scale``.
        seen_starts, seen_ends: where the ids begin and end that are left out for a vector ``[n]``.
        seen: ids, ascending for a vector.
        scale: constant factor of the scores.
    """

    vectors: Single
    seen_starts: NDArray[np.int64]
    seen_ends: NDArray[np.int64]
    seen: NDArray[np.int64]
    scale: float = 1.0

    def some(self, which: slice | NDArray[np.int64]) -> Wanted:
        """Some of the vectors."""
        return self._replace(
            vectors=self.vectors[which], seen_starts=self.seen_starts[which], seen_ends=self.seen_ends[which]
        )


class ProductSearch:
    """Finds the best rows of a table for many vectors; row 0 (padding) never is.

    Args:
        table: float32, finite ``[columns, width]``.
    """

    def __init__(self, table: Single) -> None:
        self._table = np.ascontiguousarray(table, np.float32)
        lengths = _lengths(self._table)
        lengths[:1] = 0
        self._longest = float(lengths.max(initial=0.0))
        order = 1 + np.argsort(-lengths[1:], kind="stable")
        divisor, count = self._longest or 1.0, -(-len(order) // _MEMBERS)
        self._ids = _padded(order.astype(np.int32), count * _MEMBERS, -1).reshape(count, _MEMBERS)
        self._rows = _padded((self._table[order] / divisor).astype(np.float32), count * _MEMBERS, 0.0)
        self._starts = lengths[order[::_MEMBERS]] / divisor
        width = self._table.shape[1]
        # any orthonormal axes do; by how far they miss being so counts as rounding
        self._axes = np.linalg.eigh((self._rows.T @ self._rows).astype(np.float64))[1][:, ::-1]
        self._slack = float(np.linalg.norm(self._axes @ self._axes.T - np.eye(width)))
        self._depths = [min(depth, width) for depth in _DEPTHS[: 1 + sum(depth < width for depth in _DEPTHS)]]
        self._blocks = np.empty((len(self._starts), self._depths[-1], _MEMBERS), np.float32)
        self._others = np.empty((len(self._depths), len(self._starts), _MEMBERS), np.float32)
        for first in range(0, len(self._starts), _ROTATED_AT_ONCE // _MEMBERS):
            some = slice(first, first + _ROTATED_AT_ONCE // _MEMBERS)
            rotated = self._rows[some.start * _MEMBERS : some.stop * _MEMBERS].astype(np.float64) @ self._axes
            parts = rotated.reshape(-1, _MEMBERS, width)
            self._blocks[some] = parts[:, :, : self._depths[-1]].transpose(0, 2, 1)
            for level, depth in enumerate(self._depths):
                self._others[level, some] = _lengths(parts[:, :, depth:])

    def top_k(self, wanted: Wanted, k: int, threads: int = 0) -> TopK:
        """The k best rows of each vector.

        Args:
            wanted: the vectors.
            k: length of a list.
            threads: 0: all usable cores.
        """
        count = len(wanted.vectors)
        found, level = TopK.empty(count, k), min(1, len(self._depths) - 1)
        if count >= _MANY_VECTORS:
            level = int(np.argmin(self._costs(wanted, k)))

        def work_on(first: int) -> None:
            some = slice(first, first + _VECTORS_AT_ONCE)
            self._search(wanted.some(some), level, TopK(found.items[some], found.scores[some], found.tied[some]))

        in_threads(work_on, range(0, count, _VECTORS_AT_ONCE), threads)
        return found

    def cost(self, wanted: Wanted, k: int) -> float:
        """How long :meth:`top_k` takes, tried on some of the vectors: as a share of adding up every coordinate."""
        return min(self._costs(wanted, k)) / (_VECTORS_TRIED * max(1, self._table.size))

    def _costs(self, wanted: Wanted, k: int) -> list[int]:
        """Of some of the vectors with each of the depths, in additions of a coordinate."""
        tried = wanted.some(np.linspace(0, len(wanted.vectors) - 1, _VECTORS_TRIED).astype(np.int64))
        of_row, costs = _COST_OF_ROW + _COST_OF_COORDINATE * self._table.shape[1], []
        for level, depth in enumerate(self._depths):
            blocks, rows = self._search(tried, level, TopK.empty(_VECTORS_TRIED, k))
            costs.append(int(blocks) * _MEMBERS * depth + int(rows) * of_row)
        return costs

    def _search(self, wanted: Wanted, level: int, into: TopK) -> NDArray[np.int64]:
        """Find the best rows of some vectors; how many blocks were compared, and how many rows scored."""
        from recbole_prune.sparse.search_kernel import best_products

        done = np.zeros(2, np.int64)
        best_products(
            *self._prepared(wanted.vectors, self._depths[level], wanted.scale), self._table, self._rows, self._blocks,
            self._others[level], self._ids, self._starts, wanted.seen_starts, wanted.seen_ends, wanted.seen, into.items,
            into.scores, into.tied, done,
        )  # fmt: skip
        return done

    def _prepared(
        self, vectors: Single, depth: int, scale: float
    ) -> tuple[Double, Single, Single, Single, Double, Double]:
        """What the loop takes of some vectors."""
        scaled = scale * vectors.astype(np.float64)
        lengths = _lengths(scaled)
        units = scaled / np.where(lengths > 0, lengths, 1.0)[:, None]
        rotated = units @ self._axes
        sizes = lengths * self._longest
        all_zero = sizes < 7e-46
        # a rough score, the k-th best of them, and its own last rounding may each miss by a share of the size
        margins = (2 * len(self._axes) + 16) * _EPSILON + 2 * self._slack + _LEAST / np.where(all_zero, 1.0, sizes)
        return (
            scaled, units.astype(np.float32), rotated[:, :depth].astype(np.float32),
            _lengths(rotated[:, depth:]).astype(np.float32), sizes, np.where(all_zero, np.inf, margins),
        )  # fmt: skip


def longest(vectors: Single) -> float:
    """The largest length of a vector; NaN where one is NaN."""
    return float(_lengths(vectors).max(initial=0.0))


def are_finite(vectors: Single, longest_row: float, scale: float = 1.0) -> bool:
    """Whether no product with the rows of a table can be NaN or infinite."""
    return abs(scale) * longest(vectors) * longest_row < _LARGEST  # not so with NaN


def _lengths(vectors: NDArray[np.floating]) -> Double:
    lengths: Double = np.sqrt(np.square(vectors, dtype=np.float64).sum(-1))
    return lengths


def _padded(array: Array, count: int, nothing: float) -> Array:
    """An array of so many entries, ``nothing`` behind its own."""
    padded = np.full((count, *array.shape[1:]), nothing, array.dtype)
    padded[: len(array)] = array
    return padded


def ranks_of_products(
    vectors: Single, rows: NDArray[np.int64], table: Single, ids: NDArray[np.int32], threads: int = 0
) -> NDArray[np.int32]:
    """How many ids but 0 have a product above that of each of some ids; needs numba.

    Args:
        vectors: of all rows, finite ``[R, width]``.
        rows: those that are asked for ``[n]``.
        table: of what is ranked, finite ``[columns, width]``.
        ids: those that are asked for, of all rows ``[R, P]``; -1 stands for none.
        threads: 0: all usable cores.

    Returns:
        ``[R, P]``; 0 for none, and in rows that are not asked for.
    """
    from recbole_prune.sparse.product_kernel import ranks_of_products as by_loop

    vectors, table = np.ascontiguousarray(vectors, np.float32), np.asarray(table, np.float32)
    count = -(-len(table[1:]) // _MEMBERS)
    blocks = _padded(table[1:], count * _MEMBERS, 0.0).reshape(count, _MEMBERS, -1).transpose(0, 2, 1)
    arguments = np.ascontiguousarray(blocks), len(table), np.ascontiguousarray(ids, np.int32)
    ranks = np.zeros(ids.shape, np.int32)

    def work(first: int) -> None:
        by_loop(vectors, rows[first : first + _VECTORS_AT_ONCE], *arguments, ranks)

    in_threads(work, range(0, len(rows), _VECTORS_AT_ONCE), threads)
    return ranks
