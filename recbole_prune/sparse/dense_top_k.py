"""The best items of users by matrix products, exactly as :mod:`recbole_prune.sparse.inverted_lists` says."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from recbole_prune.sparse.compiling import available, pays
from recbole_prune.sparse.inverted_lists import Array, TopK, largest

_SCORES_AT_ONCE = 1 << 22
# so many more than the longest list are looked for at first: hardly ever are more within the rounding error of its end
_SPARE = 12
# what the compiled loop that finds the best of the scores saves against numpy's partition
_SECONDS_SAVED_BY_SCORE = 1.3e-8


def score_users(
    user_vectors: Array, item_vectors: Array, start: int, stop: int, scale: float = 1.0
) -> NDArray[np.float32]:
    """Scores of some users for the items ``start`` to ``stop - 1``.

    Products are added in float64, coordinate by coordinate, and rounded once: the scores that :func:`dense_top_k`
    ranks by, however it finds the best.

    Args:
        user_vectors: shape ``[users, width]``.
        item_vectors: the whole item table, shape ``[items, width]``.
        scale: constant factor of the scores.

    Returns:
        float32, shape ``[users, stop - start]``.
    """
    scaled = scale * user_vectors.astype(np.float64)
    total = np.zeros((len(user_vectors), stop - start))
    for column in range(user_vectors.shape[1]):
        total += scaled[:, column, None] * item_vectors[start:stop, column].astype(np.float64)
    return np.asarray(total.astype(np.float32))


def dense_top_k(
    users: Array, items: Array, k: int, seen_pointers: Array, seen_items: Array, *, scale: float = 1.0, threads: int = 0
) -> TopK:
    """The k best items of each user, item 0 (padding) left out.

    Args:
        users: vectors, shape ``[users, width]``.
        items: vectors, shape ``[items, width]``.
        k: length of a list.
        seen_pointers: shape ``[users + 1]``, into ``seen_items``: ids that are left out.
        scale: constant factor of the scores.
        threads: for finding the best of many scores, with numba; 0: all usable cores. The products take numpy's.
    """
    users, items = np.asarray(users, np.float32), np.asarray(items, np.float32)
    found = TopK.empty(len(users), k)
    longest = np.abs(items).max(axis=0, initial=0.0).astype(np.float64)
    step = max(1, _SCORES_AT_ONCE // max(1, len(items)))
    compiled = pays(len(users) * len(items) * _SECONDS_SAVED_BY_SCORE) and available()
    for first in range(0, len(users), step):
        block = users[first : first + step]
        scaled = scale * block.astype(np.float64)
        scores = scaled.astype(np.float32) @ items.T
        scores[:, 0] = -np.inf
        counts = np.diff(seen_pointers[first : first + len(block) + 1])
        here = seen_items[seen_pointers[first] : seen_pointers[first + len(block)]]
        scores[np.repeat(np.arange(len(block)), counts), here] = -np.inf
        margin = (2 * items.shape[1] + 8) * 6e-8 * (np.abs(scaled) @ longest) + 1e-37
        near = _near_the_best(scores, scaled, k, margin, threads if compiled else None)
        _best_of_block(*near, scaled, items, k, TopK(*(a[first : first + len(block)] for a in _parts(found))))
    return found


def _parts(found: TopK) -> tuple[Array, Array, Array]:
    return found.items, found.scores, found.tied


def _near_the_best(
    scores: NDArray[np.float32], scaled: Array, k: int, margin: Array, threads: int | None
) -> tuple[Array, Array]:
    """Rows and columns of the scores that are within the rounding error of the k + 1 best of their row, or better.

    They are found by numpy, or with so many ``threads`` by a compiled loop.
    """
    size = min(k + 1, scores.shape[1])
    more = size + _SPARE
    if threads is None or more > scores.shape[1]:
        least = np.partition(scores, scores.shape[1] - size, axis=1)[:, scores.shape[1] - size]
        return _at_least(scores, scaled, k, _bound(least, margin))
    columns, values = largest(scores, more, threads)
    bound = _bound(values[:, size - 1], margin)
    near = values >= bound[:, None]
    row, place = np.nonzero(near)
    [open_ended] = np.nonzero(near[:, -1])  # there may be further ones
    if not len(open_ended):
        return row, columns[row, place]
    ended = ~near[row, -1]
    others, their_columns = _at_least(scores[open_ended], scaled[open_ended], k, bound[open_ended])
    return (
        np.concatenate([row[ended], open_ended[others]]),
        np.concatenate([columns[row[ended], place[ended]], their_columns]),
    )


def _bound(least: NDArray[np.float32], margin: Array) -> Array:
    return np.where(np.isfinite(least), least - margin, np.float32(np.finfo(np.float32).min))


def _at_least(scores: NDArray[np.float32], scaled: Array, k: int, bound: Array) -> tuple[Array, Array]:
    """Rows and columns of the scores that reach the bound of their row."""
    near = scores >= bound[:, None]
    # of the items that score exactly 0 only those with the smallest ids can be in a list
    empty = ~scaled.any(axis=1)
    if empty.any():
        rows = near[empty]
        near[empty] = rows & (np.cumsum(rows, axis=1) <= k + 1)
    row, column = np.nonzero(near)
    return row, column


def _best_of_block(user: Array, item: Array, scaled: Array, items: Array, k: int, found: TopK) -> None:
    """The k best of the candidates, given as pairs of user and item, scored exactly."""
    exact = np.zeros(len(user))
    for column in range(items.shape[1]):
        exact += scaled[user, column] * items[item, column].astype(np.float64)
    rounded = exact.astype(np.float32)
    order = np.lexsort((item, -rounded, user))
    user, item, rounded = user[order], item[order], rounded[order]
    place = np.arange(len(user)) - np.searchsorted(user, user)
    listed = place < k
    found.items[user[listed], place[listed]] = item[listed]
    found.scores[user[listed], place[listed]] = rounded[listed]
    equal = (user[1:] == user[:-1]) & (rounded[1:] == rounded[:-1]) & listed[:-1]
    found.tied[user[:-1][equal]] = True
