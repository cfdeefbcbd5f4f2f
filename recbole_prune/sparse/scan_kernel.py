"""The scan of inverted lists, compiled by numba; imported only where numba is installed."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

# accumulators are looked at in groups: how many of a group reach the bound is counted without branches, by vectors
_GROUP = 64


def _scan(
    user_pointers: Any,
    user_columns: Any,
    user_values: Any,
    first_user: int,
    last_user: int,
    starts: Any,
    offsets: Any,
    weights: Any,
    items: int,
    block: int,
    largest: Any,
    item_pointers: Any,
    item_columns: Any,
    item_values: Any,
    seen_pointers: Any,
    seen_items: Any,
    scale: float,
    found_items: Any,
    found_scores: Any,
    tied: Any,
) -> None:
    k = found_items.shape[1]
    width = starts.shape[1] - 1
    accumulators = np.empty(block, np.float32)
    groups = accumulators.reshape(block // _GROUP, _GROUP)
    candidates = np.empty(items, np.int32)
    rough = np.empty(items, np.float32)
    best = np.empty(k, np.float32)
    vector = np.zeros(width, np.float64)
    for user in range(first_user, last_user):
        begin, end = user_pointers[user], user_pointers[user + 1]
        sum_of_largest = 0.0
        for at in range(begin, end):
            vector[user_columns[at]] = scale * np.float64(user_values[at])
            sum_of_largest += abs(scale * user_values[at]) * largest[user_columns[at]]
        # twice the rounding of a float32 sum, and what the final rounding to float32 can make equal
        margin = np.float32((2 * (end - begin) + 8) * 6e-8 * sum_of_largest + 1e-37)
        best[:] = -np.inf
        bound = np.float32(-np.inf)
        zeros = count = 0
        seen_at, seen_end = seen_pointers[user], seen_pointers[user + 1]
        for number in range(starts.shape[0]):
            base = number * block
            size = min(block, items - base)
            accumulators[:] = 0
            accumulators[size:] = -np.inf
            for at in range(begin, end):
                column = user_columns[at]
                factor = np.float32(vector[column])
                for entry in range(starts[number, column], starts[number, column + 1]):
                    accumulators[offsets[entry]] += factor * weights[entry]
            if number == 0:
                accumulators[0] = -np.inf  # padding
            while seen_at < seen_end and seen_items[seen_at] < base + size:
                accumulators[seen_items[seen_at] - base] = -np.inf
                seen_at += 1
            for number_of_group in range((size + _GROUP - 1) // _GROUP):
                group = groups[number_of_group]
                reached = 0
                for member in range(_GROUP):
                    reached += group[member] >= bound
                if not reached:
                    continue
                for member in range(_GROUP):
                    score = group[member]
                    if score < bound or score == -np.inf:
                        continue
                    if score == 0:
                        # equal scores are ordered by id: only the first k of them can be in a list
                        zeros += 1
                        if zeros > k + 1:
                            continue
                    candidates[count] = base + number_of_group * _GROUP + member
                    rough[count] = score
                    count += 1
                    if score > best[k - 1]:
                        place = k - 1
                        while place > 0 and best[place - 1] < score:
                            best[place] = best[place - 1]
                            place -= 1
                        best[place] = score
                        bound = best[k - 1] - margin
        kept = 0
        for at in range(count):
            if rough[at] >= bound:
                candidates[kept] = candidates[at]
                kept += 1
        exact = rough[:kept]
        for at in range(kept):
            total = 0.0
            item = candidates[at]
            for entry in range(item_pointers[item], item_pointers[item + 1]):
                total += vector[item_columns[entry]] * np.float64(item_values[entry])
            exact[at] = np.float32(total)
        for at in range(begin, end):
            vector[user_columns[at]] = 0
        # candidates are in the order of their ids, and a stable order keeps equal scores so
        order = np.argsort(-exact, kind="mergesort")
        for place in range(min(k, kept)):
            found_items[user, place] = candidates[order[place]]
            found_scores[user, place] = exact[order[place]]
            if place + 1 < kept and exact[order[place]] == exact[order[place + 1]]:
                tied[user] = True


def _largest(scores: Any, first: int, last: int, found_items: Any, found_scores: Any) -> None:
    """The k largest of each row of scores, largest first; among equal ones those first in the row."""
    k, columns = found_items.shape[1], scores.shape[1]
    for row in range(first, last):
        values, items, best = scores[row], found_items[row], found_scores[row]
        best[:] = -np.inf
        items[:] = 0
        for start in range(0, columns, _GROUP):
            group = values[start : start + _GROUP]
            bound = best[k - 1]
            reached = 0
            for member in range(group.size):
                reached += group[member] > bound
            if not reached:
                continue
            for member in range(group.size):
                score = group[member]
                if score > best[k - 1]:
                    place = k - 1
                    while place > 0 and best[place - 1] < score:
                        best[place], items[place] = best[place - 1], items[place - 1]
                        place -= 1
                    best[place], items[place] = score, start + member


@cache
def compiled(name: str) -> Callable[..., None]:
    """A loop of this module, compiled: ``scan`` or ``largest``; it releases the interpreter's lock.

    Raises:
        ImportError: numba is not installed.
    """
    from numba import njit

    loop = {"scan": _scan, "largest": _largest}[name]
    try:
        return njit(loop, nogil=True, cache=True)  # type: ignore[no-any-return]
    except RuntimeError:  # numba finds no folder for its cache
        return njit(loop, nogil=True)  # type: ignore[no-any-return]
