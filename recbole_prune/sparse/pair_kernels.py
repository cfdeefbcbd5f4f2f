"""Products of rows with rows of a table and the listwise loss of them, compiled by numba.

Imported only where numba is available. One file, since a loop kept on disk is believed while its own file is the same.
"""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray

from recbole_prune.sparse.compiling import compile_loop

Floats = NDArray[np.float32]
Ids = NDArray[np.signedinteger]

# sums may be taken in another order, which is what lets the compiler use vector instructions
_FREE = {"reassoc", "contract", "nsz"}
# powers of e that the loop takes: sums of them and of their inverses stay far inside of float32
_LARGEST = 40.0
# the product of what a list's logarithms are taken of is kept between these
_SMALLEST_PRODUCT, _LARGEST_PRODUCT = 1e-200, 1e200

# sums of powers of e below are lost beside those of the largest score
_LEAST_SUM = np.float32(1e-30)
# gradients of scores that are kept before they are added to those of the table
_SCORES_AT_ONCE = 1 << 21


@partial(compile_loop, alone=False, fastmath=_FREE)
def score_row(vector: Floats, table: Floats, ids: Ids, scores: Floats) -> None:
    """Four rows at a time: their products add up independently of each other, so no addition waits for the last."""
    end, zero = ids.size - ids.size % 4, np.float32(0)
    for k in range(0, end, 4):
        a, b, c, d = ids[k], ids[k + 1], ids[k + 2], ids[k + 3]
        sum_a, sum_b, sum_c, sum_d = zero, zero, zero, zero
        for f in range(table.shape[1]):
            value = vector[f]
            sum_a += value * table[a, f]
            sum_b += value * table[b, f]
            sum_c += value * table[c, f]
            sum_d += value * table[d, f]
        scores[k], scores[k + 1], scores[k + 2], scores[k + 3] = sum_a, sum_b, sum_c, sum_d
    for k in range(end, ids.size):
        a, sum_a = ids[k], zero
        for f in range(table.shape[1]):
            sum_a += vector[f] * table[a, f]
        scores[k] = sum_a


@partial(compile_loop, alone=False, fastmath=_FREE)
def add_to_vector(gradient: Floats, table: Floats, ids: Ids, to_vector: Floats) -> None:
    """Add the gradients of one row's scores to those of its vector, four scores at a time."""
    end = ids.size - ids.size % 4
    for k in range(0, end, 4):
        a, b, c, d = table[ids[k]], table[ids[k + 1]], table[ids[k + 2]], table[ids[k + 3]]
        of_a, of_b, of_c, of_d = gradient[k], gradient[k + 1], gradient[k + 2], gradient[k + 3]
        for f in range(table.shape[1]):
            to_vector[f] += of_a * a[f] + of_b * b[f] + of_c * c[f] + of_d * d[f]
    for k in range(end, ids.size):
        a, of_a = table[ids[k]], gradient[k]
        for f in range(table.shape[1]):
            to_vector[f] += of_a * a[f]


@partial(compile_loop, alone=False, fastmath=_FREE)
def add_to_table(gradient: Floats, vector: Floats, ids: Ids, to_table: Floats) -> None:
    """Add the gradients of one row's scores to those of the table, one by one: a row of it may come twice."""
    for k in range(ids.size):
        to_row, of_a = to_table[ids[k]], gradient[k]
        for f in range(to_table.shape[1]):
            to_row[f] += of_a * vector[f]


@compile_loop
def score(vectors: Floats, table: Floats, ids: Ids, scores: Floats) -> None:
    """Scores ``[batch, n]`` of vectors ``[batch, width]`` with the rows ``ids`` of a table."""
    for i in range(ids.shape[0]):
        score_row(vectors[i], table, ids[i], scores[i])


@compile_loop
def add_gradients(
    gradient: Floats, vectors: Floats, table: Floats, ids: Ids, to_vectors: Floats, to_table: Floats
) -> None:
    """Add the gradients of :func:`score`'s scores.

    The pairs are sorted by rows of the table: each row is then read and written once, and the vectors, which are fewer,
    stay in the cache.
    """
    ends = np.zeros(table.shape[0] + 1, np.int64)
    for i in range(ids.shape[0]):
        add_to_vector(gradient[i], table, ids[i], to_vectors[i])
        for k in range(ids.shape[1]):
            ends[ids[i, k] + 1] += 1
    for row in range(table.shape[0]):
        ends[row + 1] += ends[row]
    of_row, owners = np.empty(ids.size, np.float32), np.empty(ids.size, np.int32)
    for i in range(ids.shape[0]):
        for k in range(ids.shape[1]):  # each entry of `ends` moves from where its pairs begin to where they end
            place = ends[ids[i, k]]
            of_row[place], owners[place] = gradient[i, k], i
            ends[ids[i, k]] = place + 1
    begin = 0
    for row in range(table.shape[0]):
        end = ends[row]
        if end > begin:
            add_to_vector(of_row[begin:end], vectors, owners[begin:end], to_table[row])
        begin = end


@partial(compile_loop, alone=False)
def _of_list(scores: Floats, gradient: Floats, tails: Floats, count: int) -> float:
    """The loss of one row, whose gradient is written; NaN where scores are too far apart."""
    first, head, tail, loss, product = 0, np.float32(0), np.float32(0), 0.0, 1.0
    while first < count and np.isnan(scores[first]):
        first += 1
    if first == count:  # nothing is said of a row without a list
        gradient[:] = 0
        return 0.0
    origin = scores[first]  # the loss is that of differences
    for place in range(scores.size - 1, -1, -1):
        score = scores[place] - origin
        gradient[place] = 0
        if not np.isnan(score):
            if not -_LARGEST < score < _LARGEST:
                return np.nan
            gradient[place] = np.exp(score)
            tail += gradient[place]
            if place < count:
                loss -= score
                product *= tail
                if not _SMALLEST_PRODUCT < product < _LARGEST_PRODUCT:
                    loss, product = loss + np.log(product), 1.0
        if place < count:
            tails[place] = tail
    for place in range(first, count):
        if not np.isnan(scores[place]):
            head += np.float32(1) / tails[place]
            gradient[place] = gradient[place] * head - np.float32(1)
    for place in range(count, scores.size):
        gradient[place] *= head
    return float(loss + np.log(product))


@compile_loop
def plackett_luce_rows(logits: Floats, losses: Floats, gradients: Floats, count: int) -> bool:
    """Losses ``[rows]`` and gradients of logits ``[rows, K + L]``, NaN where nothing stands; False: too far apart."""
    tails = np.empty(count, np.float32)
    for row in range(logits.shape[0]):
        losses[row] = _of_list(logits[row], gradients[row], tails, count)
        if np.isnan(losses[row]):
            return False
    return True


@partial(compile_loop, fastmath=_FREE)
def soft_list_rows(scores: Floats, teacher: Floats, scale: float, losses: Floats, gradients: Floats) -> None:
    """Cross-entropies ``[rows]`` of the softmax of two lists over what both know, and their gradients.

    Args:
        scores, teacher: logits ``[rows, items]``, NaN where nothing is known.
        scale: ``1 / temperature``.
        losses, gradients: what is written, ``[rows]`` and ``[rows, items]``.
    """
    factor, targets = np.float32(scale), np.empty(scores.shape[1], np.float32)
    for row in range(scores.shape[0]):
        mine, theirs, gradient = scores[row], teacher[row], gradients[row]
        top, their_top = np.float32(-np.inf), np.float32(-np.inf)
        for place in range(mine.size):
            if not (np.isnan(mine[place]) or np.isnan(theirs[place])):
                top, their_top = max(top, mine[place]), max(their_top, theirs[place])
        total, their_total, product = 0.0, 0.0, 0.0
        for place in range(mine.size):
            gradient[place], targets[place] = 0, 0
            if not (np.isnan(mine[place]) or np.isnan(theirs[place])):
                above = (mine[place] - top) * factor
                gradient[place] = np.exp(above)
                targets[place] = np.exp((theirs[place] - their_top) * factor)
                total += gradient[place]
                their_total += targets[place]
                product += targets[place] * above
        losses[row] = 0
        if total > 0:
            losses[row] = np.log(total) - product / their_total
            own, other = factor / np.float32(total), factor / np.float32(their_total)
            for place in range(mine.size):
                gradient[place] = own * gradient[place] - other * targets[place]


@compile_loop
def sum_of_lists(
    vectors: Floats, rows: Ids, table: Floats, lists: Ids, count: int, to_vectors: Floats, to_table: Floats
) -> float:
    """The sum of the losses of some rows, whose scores are products of vectors with rows of a table; adds gradients.

    What is read for a row's scores is still at hand for the gradient of its vector. The gradients of the table are
    added for many rows at once: two tables of a few MB that are read in turns have no place in the cache together.
    NaN where scores are too far apart; lists have -1 where nothing stands.
    """
    width, total = lists.shape[1], 0.0
    step = max(1, min(rows.size, _SCORES_AT_ONCE // max(1, width)))
    gradient, scores = np.empty((step, width), np.float32), np.empty(width, np.float32)
    tails = np.empty(count, np.float32)
    for begin in range(0, rows.size, step):
        some = rows[begin : begin + step]
        for at in range(some.size):
            row = some[at]
            score_row(vectors[row], table, lists[row], scores)
            for place in range(width):
                if lists[row, place] < 0:
                    scores[place] = np.nan
            loss = _of_list(scores, gradient[at], tails, count)
            if np.isnan(loss):
                return loss
            total += loss
            add_to_vector(gradient[at], table, lists[row], to_vectors[row])
        for at in range(some.size):
            add_to_table(gradient[at], vectors[some[at]], lists[some[at]], to_table)
    return total


@partial(compile_loop, alone=False, fastmath=_FREE)
def _of_two_lists(scores: Floats, targets: Floats, ends: Ids, share: float, factor: float, gradient: Floats) -> float:
    """The loss of one row, whose gradient is written; NaN where scores are too far apart."""
    begin, middle, end = ends[0], ends[1], ends[2]
    if end == 0:
        return 0.0
    scale, top, product = np.float32(factor), scores[:end].max(), np.float32(0)
    for place in range(end):
        above = (scores[place] - top) * scale
        product += targets[place] * above
        gradient[place] = np.exp(above)
    in_both = gradient[begin:middle].sum()
    first, second = gradient[:begin].sum() + in_both, in_both + gradient[middle:end].sum()
    if (middle > 0 and first < _LEAST_SUM) or (end > begin and second < _LEAST_SUM):
        return np.nan
    loss, of_first, of_second = -float(product), np.float32(0), np.float32(0)
    if middle > 0:
        loss += share * float(np.log(np.float64(first)))
        of_first = np.float32(share) / first
    if end > begin:
        loss += (1 - share) * float(np.log(np.float64(second)))
        of_second = np.float32(1 - share) / second
    for place in range(end):
        own = of_first if place < middle else np.float32(0)
        other = of_second if place >= begin else np.float32(0)
        gradient[place] = (gradient[place] * (own + other) - targets[place]) * scale
    return loss


@compile_loop
def sum_of_two_lists(
    vectors: Floats, table: Floats, rows: Ids, counts: Ids, lists: Ids, targets: Floats, ends: Ids, shares: Floats,
    factor: float, to_vectors: Floats, to_table: Floats,
) -> float:  # fmt: skip
    """The sum of weighted cross-entropies of two lists, whose scores are products of vectors with a table's rows.

    As :func:`sum_of_lists`, and adds gradients like it.

    Args:
        vectors, table: ``[n, width]`` and ``[C, width]``.
        rows: of the lists of each vector ``[n]``; those below are of all rows.
        counts: how often each vector counts ``[n]``.
        lists: ids ``[R, P]``: those in the first list alone, those in both, and those in the second alone.
        targets: of both softmaxes together, weighted ``[R, P]``.
        ends: of the three parts ``[R, 3]``.
        shares: of the first list's cross-entropy ``[R]``; that of the second counts for the rest of 1.
        factor: of the scores, ``1 / temperature``.
    """
    width, total = lists.shape[1], 0.0
    step = max(1, min(rows.size, _SCORES_AT_ONCE // max(1, width)))
    gradient, scores = np.empty((step, width), np.float32), np.empty(width, np.float32)
    for begin in range(0, rows.size, step):
        many = min(step, rows.size - begin)
        for at in range(many):
            row, count = rows[begin + at], np.float32(counts[begin + at])
            ids = lists[row, : ends[row, 2]]
            score_row(vectors[begin + at], table, ids, scores)
            loss = _of_two_lists(scores, targets[row], ends[row], shares[row], factor, gradient[at])
            if np.isnan(loss):
                return loss
            total += loss * float(count)
            for place in range(ids.size):
                gradient[at, place] *= count
            add_to_vector(gradient[at], table, ids, to_vectors[begin + at])
        for at in range(many):
            row = rows[begin + at]
            add_to_table(gradient[at], vectors[begin + at], lists[row, : ends[row, 2]], to_table)
    return total
