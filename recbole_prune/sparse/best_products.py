"""The best columns of rows whose scores are products of vectors: no score is written that cannot be in a list."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from recbole_prune.sparse.inverted_lists import in_threads

# columns of the table that are scored together: their coordinates and scores stay in the first cache
_MEMBERS = 256
_ROWS_AT_ONCE = 256
# how much more a computed product may be than the product of the lengths
_ROUNDING = 1 + 1e-4

Array = NDArray[np.float32]


def best_products(
    vectors: Array,
    rows: NDArray[np.int64],
    table: Array,
    offsets: NDArray[np.int64],
    codes: NDArray[np.int64],
    k: int,
    threads: int = 0,
) -> tuple[NDArray[np.int32], Array]:
    """The k best ids of some rows by the products with a table's rows, id 0 (padding) left out; needs numba.

    Args:
        vectors: of all rows, finite ``[R, width]``.
        rows: those to rank ``[n]``.
        table: of what is ranked, finite ``[columns, width]``.
        offsets, codes: what is left out: ascending codes ``row * columns + id``, and where those of a row begin.
        k: how many to find.
        threads: 0: all usable cores.

    Returns:
        (ids, scores), each ``[R, k]``, best first, lower ids first among equal scores; -1 and 0 behind the end of a
        list and in rows that are not ranked.
    """
    from recbole_prune.sparse.product_kernel import best_products as by_loop

    vectors, table = np.ascontiguousarray(vectors, np.float32), np.asarray(table, np.float32)
    long_first, lengths = _by_length(table)
    blocks, ids = _in_blocks(table, long_first)
    found = np.full((len(vectors), k), -1, np.int32), np.zeros((len(vectors), k), np.float32)
    arguments = vectors, _lengths(vectors) * _ROUNDING, blocks, ids, lengths, len(table), offsets, codes, *found

    def work(first: int) -> None:
        by_loop(arguments[0], rows[first : first + _ROWS_AT_ONCE], *arguments[1:])

    in_threads(work, range(0, len(rows), _ROWS_AT_ONCE), threads)
    return found


def ranks_of_products(
    vectors: Array, rows: NDArray[np.int64], table: Array, ids: NDArray[np.int32], threads: int = 0
) -> NDArray[np.int32]:
    """How many ids but 0 have a product above that of each of some ids; needs numba.

    Args:
        vectors, rows, table, threads: as for :func:`best_products`.
        ids: those that are asked for, of all rows ``[R, P]``; -1 stands for none.

    Returns:
        ``[R, P]``; 0 for none, and in rows that are not asked for.
    """
    from recbole_prune.sparse.product_kernel import ranks_of_products as by_loop

    vectors, table = np.ascontiguousarray(vectors, np.float32), np.asarray(table, np.float32)
    blocks, asked = _in_blocks(table, np.arange(1, len(table)))[0], np.ascontiguousarray(ids, np.int32)
    ranks = np.zeros(ids.shape, np.int32)

    def work(first: int) -> None:
        by_loop(vectors, rows[first : first + _ROWS_AT_ONCE], blocks, len(table), asked, ranks)

    in_threads(work, range(0, len(rows), _ROWS_AT_ONCE), threads)
    return ranks


def _lengths(vectors: Array) -> NDArray[np.float64]:
    lengths: NDArray[np.float64] = np.sqrt(np.square(vectors, dtype=np.float64).sum(1))
    return lengths


def _by_length(table: Array) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Ids but 0, long vectors first, and the greatest length in each block of them."""
    lengths = _lengths(table)
    order = 1 + np.argsort(-lengths[1:], kind="stable")
    return order, lengths[order[::_MEMBERS]]


def _in_blocks(table: Array, order: NDArray[np.int64]) -> tuple[Array, NDArray[np.int64]]:
    """Coordinates ``[blocks, width, members]`` and ids ``[blocks, members]``, 0 and -1 behind the end."""
    count = -(-len(order) // _MEMBERS)
    ids = np.full(count * _MEMBERS, -1, np.int64)
    ids[: len(order)] = order
    rows = np.where(ids[:, None] >= 0, table[ids], np.float32(0))
    blocks = rows.reshape(count, _MEMBERS, -1).transpose(0, 2, 1)
    return np.ascontiguousarray(blocks), ids.reshape(count, _MEMBERS)
