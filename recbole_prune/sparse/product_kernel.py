"""Ranks among the products of vectors with a table, compiled by numba; imported only where numba is available."""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray

from recbole_prune.sparse.compiling import compile_loop

Single = NDArray[np.float32]
Long = NDArray[np.int64]

# rows that go through a block of the table together, while it is in the cache
_TOGETHER = 16
# equal parts of the range of the scores that are asked for: few of which stand in one
_BINS = 8192


@partial(compile_loop, alone=False, fastmath={"reassoc", "contract", "nsz"})
def _add_products(vector: Single, block: Single, scores: Single) -> None:
    """Add products with the columns of a block ``[width, columns]`` to their scores, four coordinates at a time."""
    end = vector.size - vector.size % 4
    for f in range(0, end, 4):
        of_a, of_b, of_c, of_d = vector[f], vector[f + 1], vector[f + 2], vector[f + 3]
        a, b, c, d = block[f], block[f + 1], block[f + 2], block[f + 3]
        for place in range(scores.size):
            scores[place] += of_a * a[place] + of_b * b[place] + of_c * c[place] + of_d * d[place]
    for f in range(end, vector.size):
        of_a, a = vector[f], block[f]
        for place in range(scores.size):
            scores[place] += of_a * a[place]


@partial(compile_loop, alone=False, fastmath={"contract"})
def _bin_of(score: np.float32, least: np.float32, scale: np.float32) -> int:
    """Which of equal parts of a range a score is in; what is no number is in one, too."""
    place = (score - least) * scale
    if place >= _BINS - 1:  # before it is made a whole number, of which not all are
        return _BINS - 1
    return int(place) if place > 0 else 0


@partial(compile_loop, alone=False)
def _count_above(
    scores: Single,
    ids: NDArray[np.int32],
    own: Single,
    starts: NDArray[np.int32],
    counts: Long,
    ranks: NDArray[np.int32],
) -> None:
    """How many scores are above those of some ids ``[P]``; ``own`` is as long, ``counts`` one longer."""
    asked = 0
    for place in range(ids.size):
        if ids[place] > 0:
            own[asked] = scores[ids[place] - 1]
            asked += 1
    if not asked:
        return
    own[:asked].sort()
    least, scale = own[0], np.float32(_BINS) / max(own[asked - 1] - own[0], np.float32(1e-30))
    starts[:], counts[:] = 0, 0
    for place in range(asked):
        starts[_bin_of(own[place], least, scale) + 1] += 1
    for number in range(_BINS):
        starts[number + 1] += starts[number]
    for score in scores:
        if score > least:
            number = _bin_of(score, least, scale)
            below = starts[number]
            while below < starts[number + 1] and own[below] < score:
                below += 1
            counts[below] += 1
    for place in range(asked - 1, -1, -1):  # those above more of them are above these, too
        counts[place] += counts[place + 1]
    for place in range(ids.size):
        if ids[place] > 0:
            ranks[place] = counts[np.searchsorted(own[:asked], scores[ids[place] - 1]) + 1]


@compile_loop
def ranks_of_products(vectors: Single, rows: Long, table: Single, columns: int, ids: NDArray[np.int32],
    ranks: NDArray[np.int32],
) -> None:  # fmt: skip
    """How many columns score above each of some ids, for some rows; nothing else changes.

    Args:
        vectors, rows: those of all rows ``[R, width]``, and which are asked for ``[n]``.
        table: blocks of the columns from 1 on, in their order ``[blocks, width, members]``.
        columns: how many there are, with column 0.
        ids: of the columns that are asked for ``[R, P]``; -1 stands for none.
        ranks: ``[R, P]``.
    """
    blocks, _, members = table.shape
    scores = np.empty((_TOGETHER, blocks * members), np.float32)
    own, starts = np.empty(ids.shape[1], np.float32), np.empty(_BINS + 1, np.int32)
    counts = np.empty(ids.shape[1] + 1, np.int64)
    for begin in range(0, rows.size, _TOGETHER):
        some = rows[begin : begin + _TOGETHER]
        for block in range(blocks):
            for at in range(some.size):
                part = scores[at, block * members : (block + 1) * members]
                part[:] = 0
                _add_products(vectors[some[at]], table[block], part)
        for at in range(some.size):
            _count_above(scores[at, : columns - 1], ids[some[at]], own, starts, counts, ranks[some[at]])
