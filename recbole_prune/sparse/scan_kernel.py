"""The scan of inverted lists, compiled by numba; imported only where numba is available."""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray

from recbole_prune.sparse.compiling import compile_loop

# accumulators are looked at in groups: how many of a group reach the bound is counted without branches, by vectors
_GROUP = 64
# values of which only the largest counts for the bound: as many, or fewer where lists are long
_LARGE_SHARE, _SMALL_SHARE = 64, 16

Whole = NDArray[np.integer]
Single = NDArray[np.float32]
Double = NDArray[np.float64]


@partial(compile_loop, alone=False)
def _insert(items: NDArray[np.int64], scores: Single, listed: int, item: int, score: np.float32) -> int:
    """Put an item into a list ordered by falling scores, then by ids; returns the new length."""
    last = scores.size - 1
    if listed == scores.size and (score < scores[last] or (score == scores[last] and item > items[last])):
        return listed
    place = min(listed, last)
    while place > 0 and (scores[place - 1] < score or (scores[place - 1] == score and items[place - 1] > item)):
        items[place], scores[place] = items[place - 1], scores[place - 1]
        place -= 1
    items[place], scores[place] = item, score
    return int(min(listed + 1, scores.size))


@partial(compile_loop, alone=False)
def _add_list(
    accumulators: Single, offsets: NDArray[np.uint16], weights: Single, first: int, last: int, factor: np.float32
) -> None:
    """Add one coordinate's products to the scores of the items in its list.

    Eight at a time, all loads before the stores: no item is twice in a list, which a compiler cannot know. That nearly
    halves the time of the scan; unsigned positions spare the test for negative ones.
    """
    at, end, one, eight = np.uint64(first), np.uint64(last), np.uint64(1), np.uint64(8)
    while at + eight <= end:
        i0, i1, i2, i3 = offsets[at], offsets[at + one], offsets[at + np.uint64(2)], offsets[at + np.uint64(3)]
        at4 = at + np.uint64(4)
        i4, i5, i6, i7 = offsets[at4], offsets[at4 + one], offsets[at4 + np.uint64(2)], offsets[at4 + np.uint64(3)]
        s0 = accumulators[i0] + factor * weights[at]
        s1 = accumulators[i1] + factor * weights[at + one]
        s2 = accumulators[i2] + factor * weights[at + np.uint64(2)]
        s3 = accumulators[i3] + factor * weights[at + np.uint64(3)]
        s4 = accumulators[i4] + factor * weights[at4]
        s5 = accumulators[i5] + factor * weights[at4 + one]
        s6 = accumulators[i6] + factor * weights[at4 + np.uint64(2)]
        s7 = accumulators[i7] + factor * weights[at4 + np.uint64(3)]
        accumulators[i0], accumulators[i1], accumulators[i2], accumulators[i3] = s0, s1, s2, s3
        accumulators[i4], accumulators[i5], accumulators[i6], accumulators[i7] = s4, s5, s6, s7
        at += eight
    while at < end:
        accumulators[offsets[at]] += factor * weights[at]
        at += one


@compile_loop
def scan(
    user_pointers: Whole,
    user_columns: Whole,
    user_values: Single,
    first_user: int,
    last_user: int,
    starts: Whole,
    offsets: NDArray[np.uint16],
    weights: Single,
    ids: NDArray[np.int32],
    longest: Double,
    largest: Double,
    block: int,
    item_pointers: Whole,
    item_columns: Whole,
    item_values: Single,
    seen_pointers: Whole,
    seen_items: Whole,
    scale: float,
    found_items: NDArray[np.int64],
    found_scores: Single,
    tied: NDArray[np.bool_],
) -> None:
    """The best items of the users ``first_user`` to ``last_user - 1``, written into the last three arrays.

    ``starts`` says for each block and coordinate where its list begins in ``offsets`` and ``weights``; ``ids`` names
    the items by falling length, ``longest`` the largest length of a block, ``largest`` the largest weight of a
    coordinate.
    """
    k, items = found_items.shape[1], item_pointers.size - 1
    blocks, width = starts.shape[0], starts.shape[1] - 1
    accumulators = np.empty(block, np.float32)
    members = np.empty(_GROUP + 1, np.uint8)
    candidates, rough = np.empty(ids.size, np.int32), np.empty(ids.size, np.float32)
    best = np.empty(k, np.float32)
    vector = np.zeros(width, np.float64)
    left_out = np.zeros(items, np.int64)
    totals, totalled = np.empty(items, np.float64), np.zeros(items, np.int64)
    list_items, list_scores = np.empty(k + 1, np.int64), np.empty(k + 1, np.float32)
    for user in range(first_user, last_user):
        begin, end = user_pointers[user], user_pointers[user + 1]
        sum_of_largest = length = 0.0
        for at in range(begin, end):
            column = user_columns[at]
            vector[column] = scale * np.float64(user_values[at])
            sum_of_largest += abs(vector[column]) * largest[column]
            length += vector[column] ** 2
        length = np.sqrt(length)
        for at in range(seen_pointers[user], seen_pointers[user + 1]):
            left_out[seen_items[at]] = user + 1
        # twice the rounding of a float32 sum, and what the final rounding to float32 can make equal
        margin = np.float32((2 * (end - begin) + 8) * 6e-8 * sum_of_largest + 1e-37)
        best[:] = -np.inf
        bound = np.float32(1e-37)
        count = 0
        for number in range(blocks):
            # no score exceeds the product of the lengths, and the lengths of items fall from block to block
            if length * longest[number] + margin < bound:
                break
            accumulators[:] = 0
            for at in range(begin, end):
                column = user_columns[at]
                _add_list(
                    accumulators, offsets, weights, starts[number, column], starts[number, column + 1],
                    np.float32(vector[column]),
                )  # fmt: skip
            for group in range(0, block, _GROUP):
                reached = np.uint32(0)
                for member in range(_GROUP):
                    reached |= np.uint32(accumulators[np.uint64(group + member)] >= bound)
                if not reached:
                    continue
                hits = 0
                for member in range(_GROUP):
                    members[hits] = member
                    hits += accumulators[np.uint64(group + member)] >= bound
                for hit in range(hits):
                    score = accumulators[group + members[hit]]
                    item = ids[number * block + group + members[hit]]
                    if score < bound or left_out[item] == user + 1:
                        continue
                    candidates[count], rough[count] = item, score
                    count += 1
                    if score > best[k - 1]:
                        place = k - 1
                        while place > 0 and best[place - 1] < score:
                            best[place] = best[place - 1]
                            place -= 1
                        best[place] = score
                        bound = max(bound, best[k - 1] - margin)
        listed = 0
        if best[k - 1] - margin > np.float32(1e-37):
            for at in range(count):
                if rough[at] >= bound:
                    item = candidates[at]
                    total = 0.0
                    for entry in range(item_pointers[item], item_pointers[item + 1]):
                        total += vector[item_columns[entry]] * np.float64(item_values[entry])
                    listed = _insert(list_items, list_scores, listed, item, np.float32(total))
        else:  # fewer than k scores are clearly above 0, the score of every item without an entry in the user's lists
            count = 0
            for number in range(blocks):
                for at in range(begin, end):
                    column = user_columns[at]
                    for entry in range(starts[number, column], starts[number, column + 1]):
                        item = ids[number * block + offsets[entry]]
                        if totalled[item] != user + 1:
                            totalled[item], totals[item] = user + 1, 0.0
                            candidates[count] = item
                            count += 1
                        totals[item] += vector[column] * np.float64(weights[entry])
            for at in range(count):
                item = candidates[at]
                if left_out[item] != user + 1:
                    listed = _insert(list_items, list_scores, listed, item, np.float32(totals[item]))
            for item in range(1, items):
                last = list_scores[k]
                if listed == k + 1 and (last > 0 or (last == 0 and list_items[k] < item)):
                    break
                if left_out[item] != user + 1 and totalled[item] != user + 1:
                    listed = _insert(list_items, list_scores, listed, item, np.float32(0))
        for at in range(begin, end):
            vector[user_columns[at]] = 0
        for place in range(min(k, listed)):
            found_items[user, place], found_scores[user, place] = list_items[place], list_scores[place]
            if place + 1 < listed and list_scores[place] == list_scores[place + 1]:
                tied[user] = True


@partial(compile_loop, alone=False)
def _below_the_best(values: Single, k: int, maxima: Single) -> np.float32:
    """A number that at least k of the values exceed: the k-th largest of the maxima of groups is none too large.

    Hardly more than k do, so that all others are passed over in one comparison.
    """
    maxima[:] = -np.inf  # not the first values: a NaN among them would stay
    for start in range(0, values.size - maxima.size + 1, maxima.size):
        for group in range(maxima.size):  # a group is every so-many-th value, so that groups fill vectors
            value = values[start + group]
            maxima[group] = value if value > maxima[group] else maxima[group]
    bound = np.partition(maxima, maxima.size - k)[maxima.size - k]
    below: np.float32 = np.nextafter(bound, np.float32(-np.inf))
    return below


@compile_loop
def largest(scores: Single, first: int, last: int, found_items: NDArray[np.int64], found_scores: Single) -> None:
    """The k largest of each row of scores, largest first; among equal ones those first in the row."""
    k, columns = found_items.shape[1], scores.shape[1]
    maxima = np.empty(columns // (_LARGE_SHARE if columns >= 4 * k * _LARGE_SHARE else _SMALL_SHARE), np.float32)
    for row in range(first, last):
        values, items, best = scores[row], found_items[row], found_scores[row]
        best[:] = -np.inf
        items[:] = 0
        below = _below_the_best(values, k, maxima) if maxima.size >= k else np.float32(-np.inf)
        for start in range(0, columns, _GROUP):
            group = values[start : start + _GROUP]
            bound = max(best[k - 1], below)
            reached = 0
            for member in range(group.size):
                reached += group[member] > bound
            if not reached:
                continue
            for member in range(group.size):
                score = group[member]
                if score > bound and score > best[k - 1]:
                    place = k - 1
                    while place > 0 and best[place - 1] < score:
                        best[place], items[place] = best[place - 1], items[place - 1]
                        place -= 1
                    best[place], items[place] = score, start + member
