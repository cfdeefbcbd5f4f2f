"""The best of products of vectors with a table, and ranks among all of them, compiled by numba; none is kept for long.

Imported only where numba is available.
"""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray

from recbole_prune.sparse.compiling import compile_loop

Single = NDArray[np.float32]
Long = NDArray[np.int64]

# rows that go through a block of the table together, while it is in the cache
_TOGETHER = 16
# scores of which the largest is compared at first
_GROUP = 64
# equal parts of the range of the scores that are asked for: few of which stand in one
_BINS = 8192
_ID_BITS = 32
_LAST_ID = (1 << _ID_BITS) - 1
_SIGN = 0x7FFFFFFF


@partial(compile_loop, alone=False, fastmath={"reassoc", "contract", "nsz"})
def _score_block(vector: Single, block: Single, scores: Single) -> None:
    """Scores of the columns of a block ``[width, columns]``, four coordinates at a time."""
    scores[:] = 0
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


@partial(compile_loop, alone=False)
def _is_in(code: int, codes: Long) -> bool:
    """Whether an ascending array has it."""
    place = np.searchsorted(codes, code)
    return bool(place < codes.size and codes[place] == code)


@partial(compile_loop, alone=False)
def _collect(scores: Single, ids: Long, bound: float, first_code: int, excluded: Long, keys: Long, count: int) -> int:
    """Append the keys of what scores at least ``bound`` and is not excluded; how many there are then.

    A key orders by score, and at equal scores by lower id. Ids of -1 stand for nothing.
    """
    bits = scores.view(np.int32)
    for start in range(0, scores.size, _GROUP):
        reached = 0
        for place in range(start, start + _GROUP):
            reached += scores[place] >= bound
        if not reached:
            continue
        for place in range(start, start + _GROUP):
            if scores[place] >= bound and ids[place] >= 0 and not _is_in(first_code + ids[place], excluded):
                # floats order as their bits do, negative ones the other way around; 0 and -0 are equal
                high = np.int64(bits[place]) if scores[place] != 0 else np.int64(0)
                high = high if high >= 0 else high ^ _SIGN
                keys[count] = (high << _ID_BITS) + (_LAST_ID - ids[place])
                count += 1
    return count


@partial(compile_loop, alone=False)
def _score_of(key: int, bits: NDArray[np.int32]) -> np.float32:
    """The score in a key, by way of an array of one number."""
    high = key >> _ID_BITS
    bits[0] = high if high >= 0 else high ^ _SIGN
    score: np.float32 = bits.view(np.float32)[0]
    return score


@partial(compile_loop, alone=False)
def _keep_best(keys: Long, count: int, k: int) -> int:
    """Bring the k largest keys of so many to the front, and say how many there are."""
    if count <= k:
        return count
    keys[:k] = np.partition(keys[:count], count - k)[count - k :]
    return k


@compile_loop
def best_products(
    vectors: Single, rows: Long, lengths: NDArray[np.float64], table: Single, ids: Long, longest: NDArray[np.float64],
    columns: int, offsets: Long, codes: Long, found_ids: NDArray[np.int32], found_scores: Single,
) -> None:  # fmt: skip
    """The k best of each of some rows, best first; what is found stands in the row's place, and nothing else changes.

    Args:
        vectors: of all rows ``[R, width]``.
        rows: those to rank ``[n]``.
        lengths: no less than those of the vectors ``[R]``.
        table: blocks of columns ``[blocks, width, members]``, long ones first; as many members as groups fill.
        ids: of the columns ``[blocks, members]``, -1 where there is none.
        longest: no less than the length of a block's longest column ``[blocks]``.
        columns: how many ids there are.
        offsets, codes: what is excluded: codes ``row * columns + id``, ascending, and where those of a row begin.
        found_ids, found_scores: ``[R, k]``.
    """
    blocks, _, members = table.shape
    k = found_ids.shape[1]
    room = 2 * (k + members)
    keys, counts = np.empty((_TOGETHER, room), np.int64), np.empty(_TOGETHER, np.int64)
    bounds, scores = np.empty(_TOGETHER, np.float32), np.empty(members, np.float32)
    bits = np.empty(1, np.int32)
    for begin in range(0, rows.size, _TOGETHER):
        some = rows[begin : begin + _TOGETHER]
        counts[:], bounds[:] = 0, -np.inf
        for block in range(blocks):
            for at in range(some.size):
                row = some[at]
                if lengths[row] * longest[block] < bounds[at]:
                    continue
                _score_block(vectors[row], table[block], scores)
                excluded = codes[offsets[row] : offsets[row + 1]]
                mine = keys[at]
                counts[at] = _collect(scores, ids[block], bounds[at], row * columns, excluded, mine, counts[at])
                if counts[at] > room - members:
                    counts[at] = _keep_best(mine, counts[at], k)
                    bounds[at] = _score_of(mine[:k].min(), bits)
        for at in range(some.size):
            count = _keep_best(keys[at], counts[at], k)
            best = np.sort(keys[at, :count])
            for place in range(count):
                key = best[count - 1 - place]
                found_ids[some[at], place] = _LAST_ID - (key & _LAST_ID)
                found_scores[some[at], place] = _score_of(key, bits)


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
        vectors, rows: as for :func:`best_products`.
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
                _score_block(vectors[some[at]], table[block], part)
        for at in range(some.size):
            _count_above(scores[at, : columns - 1], ids[some[at]], own, starts, counts, ranks[some[at]])
