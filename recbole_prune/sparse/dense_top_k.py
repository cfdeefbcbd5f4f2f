"""The best items of users by matrix products, exactly as :mod:`recbole_prune.sparse.inverted_lists` says."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from recbole_prune.sparse.inverted_lists import Array, TopK

_SCORES_AT_ONCE = 1 << 22


def dense_top_k(
    users: Array, items: Array, k: int, seen_pointers: Array, seen_items: Array, *, scale: float = 1.0
) -> TopK:
    """The k best items of each user, item 0 (padding) left out.

    Args:
        users: vectors, shape ``[users, width]``.
        items: vectors, shape ``[items, width]``.
        k: length of a list.
        seen_pointers: shape ``[users + 1]``, into ``seen_items``: ids that are left out.
        scale: constant factor of the scores.
    """
    users, items = np.asarray(users, np.float32), np.asarray(items, np.float32)
    found = TopK.empty(len(users), k)
    largest = np.abs(items).max(axis=0, initial=0.0).astype(np.float64)
    step = max(1, _SCORES_AT_ONCE // max(1, len(items)))
    for first in range(0, len(users), step):
        block = users[first : first + step]
        scaled = scale * block.astype(np.float64)
        scores = scaled.astype(np.float32) @ items.T
        scores[:, 0] = -np.inf
        counts = np.diff(seen_pointers[first : first + len(block) + 1])
        here = seen_items[seen_pointers[first] : seen_pointers[first + len(block)]]
        scores[np.repeat(np.arange(len(block)), counts), here] = -np.inf
        margin = (2 * items.shape[1] + 8) * 6e-8 * (np.abs(scaled) @ largest) + 1e-37
        _best_of_block(scores, scaled, items, k, margin, TopK(*(a[first : first + len(block)] for a in _parts(found))))
    return found


def _parts(found: TopK) -> tuple[Array, Array, Array]:
    return found.items, found.scores, found.tied


def _best_of_block(
    scores: NDArray[np.float32], scaled: Array, items: Array, k: int, margin: Array, found: TopK
) -> None:
    size = min(k + 1, scores.shape[1])
    least = np.partition(scores, scores.shape[1] - size, axis=1)[:, scores.shape[1] - size]
    bound = np.where(np.isfinite(least), least - margin, np.float32(np.finfo(np.float32).min))
    near = scores >= bound[:, None]
    # of the items that score exactly 0 only those with the smallest ids can be in a list
    empty = ~scaled.any(axis=1)
    if empty.any():
        rows = near[empty]
        near[empty] = rows & (np.cumsum(rows, axis=1) <= k + 1)
    user, item = np.nonzero(near)
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
