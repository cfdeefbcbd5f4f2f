"""The search for the best rows of a table by bounds of products, compiled by numba.

Imported only where numba is available.
"""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray

from recbole_prune.sparse.compiling import compile_loop

Single = NDArray[np.float32]
Double = NDArray[np.float64]
Long = NDArray[np.int64]

# vectors that go through a block of the table together, while it is in the cache
_TOGETHER = 64
# limits that are compared with a bound at first
_GROUP = 64
# of lists, for all vectors that go together
_ROOM = 1 << 16
_ID_BITS = 32
_LAST_ID = (1 << _ID_BITS) - 1
_SIGN = 0x7FFFFFFF


@partial(compile_loop, alone=False, fastmath={"reassoc", "contract", "nsz"})
def _limit_four(
    leading: Single, others: Single, i: int, j: int, k: int, m: int, block: Single, lengths: Single, limits: Single
) -> None:
    """What products of four vectors with the columns of a block ``[at least depth, columns]`` are at most.

    A block's coordinates are read once for all four: that is nearly twice as fast as one by one.
    """
    of_i, of_j, of_k, of_m = limits[0], limits[1], limits[2], limits[3]
    other_i, other_j, other_k, other_m = others[i], others[j], others[k], others[m]
    for place in range(lengths.size):
        length = lengths[place]
        of_i[place], of_j[place] = other_i * length, other_j * length
        of_k[place], of_m[place] = other_k * length, other_m * length
    end = leading.shape[1] - leading.shape[1] % 4
    for f in range(0, end, 4):
        a, b, c, d = block[f], block[f + 1], block[f + 2], block[f + 3]
        ia, ib, ic, id_ = leading[i, f], leading[i, f + 1], leading[i, f + 2], leading[i, f + 3]
        ja, jb, jc, jd = leading[j, f], leading[j, f + 1], leading[j, f + 2], leading[j, f + 3]
        ka, kb, kc, kd = leading[k, f], leading[k, f + 1], leading[k, f + 2], leading[k, f + 3]
        ma, mb, mc, md = leading[m, f], leading[m, f + 1], leading[m, f + 2], leading[m, f + 3]
        for place in range(lengths.size):
            of_i[place] += ia * a[place] + ib * b[place] + ic * c[place] + id_ * d[place]
            of_j[place] += ja * a[place] + jb * b[place] + jc * c[place] + jd * d[place]
            of_k[place] += ka * a[place] + kb * b[place] + kc * c[place] + kd * d[place]
            of_m[place] += ma * a[place] + mb * b[place] + mc * c[place] + md * d[place]
    for f in range(end, leading.shape[1]):
        a, ia, ja, ka, ma = block[f], leading[i, f], leading[j, f], leading[k, f], leading[m, f]
        for place in range(lengths.size):
            of_i[place] += ia * a[place]
            of_j[place] += ja * a[place]
            of_k[place] += ka * a[place]
            of_m[place] += ma * a[place]


@partial(compile_loop, alone=False)
def _reaching(limits: Single, bound: np.float32, places: Long) -> int:
    """Write the places of the limits that reach a bound; how many there are."""
    hits = 0
    for start in range(0, limits.size, _GROUP):
        reached = np.int32(0)
        for place in range(_GROUP):
            reached += np.int32(limits[np.uint64(start + place)] >= bound)
        if reached:
            for place in range(start, start + _GROUP):
                if limits[np.uint64(place)] >= bound:
                    places[hits] = place
                    hits += 1
    return hits


@partial(compile_loop, alone=False, fastmath={"reassoc", "contract", "nsz"})
def _product(vectors: Single, row: int, table: Single, other: int) -> np.float32:
    total = np.float32(0)
    for f in range(vectors.shape[1]):
        total += vectors[row, f] * table[other, f]
    return total


@partial(compile_loop, alone=False)
def _is_in(number: int, numbers: Long) -> bool:
    """Whether an ascending array has it."""
    place = np.searchsorted(numbers, number)
    return bool(place < numbers.size and numbers[place] == number)


@partial(compile_loop, alone=False)
def _replace_least(heap: Single, value: np.float32) -> None:
    """Put a value in the place of the least one, which comes first in a heap."""
    place, child = 0, 1
    while child < heap.size:
        if child + 1 < heap.size and heap[child + 1] < heap[child]:
            child += 1
        if value <= heap[child]:
            break
        heap[place] = heap[child]
        place, child = child, 2 * child + 1
    heap[place] = value


@partial(compile_loop, alone=False)
def _key(score: np.float32, number: int, single: Single) -> int:
    """Orders by score, and at equal scores by lower id; ``single`` is an array of one number."""
    single[0] = score if score != 0 else np.float32(0)  # -0 is equal to it
    high = np.int64(single.view(np.int32)[0])
    high = high if high >= 0 else high ^ _SIGN  # floats order as their bits do, negative ones the other way around
    return int((high << _ID_BITS) + (_LAST_ID - number))


@partial(compile_loop, alone=False)
def _score_of(key: int, single: Single) -> np.float32:
    high = key >> _ID_BITS
    single.view(np.int32)[0] = high if high >= 0 else high ^ _SIGN
    score: np.float32 = single[0]
    return score


@partial(compile_loop, alone=False)
def _keep_best(keys: Long, count: int, k: int) -> int:
    """Bring the k largest keys of so many to the front, and say how many there are."""
    if count <= k:
        return count
    keys[:k] = np.partition(keys[:count], count - k)[count - k :]
    return k


@partial(compile_loop, alone=False)
def _score_exactly(
    vector: Double, table: Single, ids: NDArray[np.int32], rough: Single, bound: float, keys: Long, count: int,
    single: Single,
) -> int:  # fmt: skip
    """Append the keys of those ids whose rough score reaches a bound; how many keys there are then.

    Products are added in float64, coordinate by coordinate.
    """
    for at in range(ids.size):
        if rough[at] >= bound:
            item, total = table[ids[at]], 0.0
            for f in range(vector.size):
                total += vector[f] * np.float64(item[f])
            keys[count] = _key(np.float32(total), ids[at], single)
            count += 1
    return count


@partial(compile_loop, alone=False)
def _first_ids(columns: int, seen: Long, wanted: int, keys: Long, single: Single) -> int:
    """Write the keys of the lowest ids from 1 on that are not seen, all of which score 0; how many there are."""
    count = 0
    for number in range(1, columns):
        if count == wanted:
            break
        if not _is_in(number, seen):
            keys[count] = _key(np.float32(0), number, single)
            count += 1
    return count


@compile_loop
def best_products(
    scaled: Double, units: Single, leading: Single, others: Single, sizes: Double, margins: Double, table: Single,
    rows: Single, blocks: Single, lengths: Single, ids: NDArray[np.int32], longest: Double, seen_starts: Long,
    seen_ends: Long, seen: Long, found_ids: Long, found_scores: Single, tied: NDArray[np.bool_], work: Long,
) -> None:  # fmt: skip
    """The k best of each of some vectors, best first, equal scores by id.

    Args:
        scaled: vectors ``[n, width]``; their products with the table are the scores.
        units: the vectors made as long as 1.
        leading: the first coordinates of the units after a rotation ``[n, depth]``.
        others: the length of the other coordinates ``[n]``.
        sizes: the largest length of a row of the table times that of each vector ``[n]``.
        margins: how much less than the k-th best rough score that of an item in the list may be, both divided by the
            size; infinite for vectors whose scores are all 0 ``[n]``.
        table: what is ranked ``[columns, width]``.
        rows: the table's, long ones first, the longest of length 1 ``[blocks * members, width]``.
        blocks: their coordinates after the rotation ``[blocks, at least depth, members]``.
        lengths: of the coordinates from ``depth`` on ``[blocks, members]``.
        ids: of the rows ``[blocks, members]``; -1 where there is none.
        longest: the length of a block's first row ``[blocks]``.
        seen_starts, seen_ends, seen: ids that are left out, ascending for a vector, and where its own are ``[n]``.
        found_ids, found_scores: ``[n, k]``; left as they are behind the end of a list.
        tied: set where two neighbours among the k best and the next one have equal scores ``[n]``.
        work: of the vectors, blocks that were compared and rows that were scored are added to it ``[2]``.
    """
    count_of_blocks, _, members = blocks.shape
    k = found_ids.shape[1]
    wanted = k + 1
    most = max(4, min(_TOGETHER, _ROOM // wanted))
    room = 2 * wanted + members
    candidates, rough = np.empty((most, room), np.int32), np.empty((most, room), np.float32)
    best, keys = np.empty((most, wanted), np.float32), np.empty((most, wanted + room), np.int64)
    counts, exact, bounds = np.empty(most, np.int64), np.empty(most, np.int64), np.empty(most, np.float64)
    limits, places = np.empty((4, members), np.float32), np.empty(members, np.int64)
    going_on, single = np.zeros(most + 4, np.int64), np.empty(1, np.float32)
    for begin in range(0, len(units), most):
        together = min(most, len(units) - begin)
        counts[:], exact[:], best[:], bounds[:] = 0, 0, -np.inf, -np.inf
        for block in range(count_of_blocks):
            count = 0
            for at in range(together):
                going_on[count] = begin + at
                count += longest[block] >= bounds[at] and margins[begin + at] != np.inf
            if not count:
                break
            for first in range(0, count, 4):
                some = going_on[first : first + 4]  # of fewer than four, the others are any
                _limit_four(leading, others, some[0], some[1], some[2], some[3], blocks[block], lengths[block], limits)
                for of_four in range(min(4, count - first)):
                    row = some[of_four]
                    at = row - begin
                    if counts[at] > room - members:
                        exact[at] = _score_exactly(
                            scaled[row], table, candidates[at, : counts[at]], rough[at], bounds[at], keys[at],
                            exact[at], single,
                        )  # fmt: skip
                        exact[at] = _keep_best(keys[at], exact[at], wanted)
                        counts[at] = 0
                        if exact[at] == wanted:
                            least = np.float64(_score_of(keys[at, :wanted].min(), single)) / sizes[row]
                            bounds[at] = max(bounds[at], least - margins[row])
                    hits = _reaching(limits[of_four], np.float32(bounds[at]), places)
                    work[0] += 1
                    for hit in range(hits):
                        place = places[hit]
                        if limits[of_four, place] < np.float32(bounds[at]) or ids[block, place] < 0:
                            continue
                        work[1] += 1
                        score = _product(units, row, rows, block * members + place)
                        if score < np.float32(bounds[at]):
                            continue
                        if _is_in(ids[block, place], seen[seen_starts[row] : seen_ends[row]]):
                            continue
                        candidates[at, counts[at]], rough[at, counts[at]] = ids[block, place], score
                        counts[at] += 1
                        if score > best[at, 0]:
                            _replace_least(best[at], score)
                            bounds[at] = max(bounds[at], best[at, 0] - margins[row])
        for at in range(together):
            row = begin + at
            if margins[row] == np.inf:
                exact[at] = _first_ids(len(table), seen[seen_starts[row] : seen_ends[row]], wanted, keys[at], single)
            count = _score_exactly(
                scaled[row], table, candidates[at, : counts[at]], rough[at], bounds[at], keys[at], exact[at], single
            )
            count = _keep_best(keys[at], count, wanted)
            ordered = np.sort(keys[at, :count])[::-1]
            for place in range(min(k, count)):
                found_ids[row, place] = _LAST_ID - (ordered[place] & _LAST_ID)
                found_scores[row, place] = _score_of(ordered[place], single)
                if place + 1 < count and ordered[place] >> _ID_BITS == ordered[place + 1] >> _ID_BITS:
                    tied[row] = True
