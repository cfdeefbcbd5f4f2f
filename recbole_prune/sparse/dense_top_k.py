"""The best items of users in dense tables, exactly as :mod:`recbole_prune.sparse.inverted_lists` says."""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from recbole_prune.sparse.best_products import ProductSearch, Wanted, are_finite, longest
from recbole_prune.sparse.compiling import available, pays
from recbole_prune.sparse.inverted_lists import Array, TopK

_SCORES_AT_ONCE = 1 << 22
# what the search saves by score against a matrix product and numpy's partition
_SECONDS_SAVED_BY_SCORE = 1.3e-8
# as many users take as long as the preparation of the search, by coordinate of their vectors
_USERS_TO_SEARCH = 8


def score_users(
    user_vectors: Array, item_vectors: Array, start: int, stop: int, scale: float = 1.0
) -> NDArray[np.float32]:
    """Scores of some users for the items ``start`` to ``stop - 1``.

    Products are added in float64, coordinate by coordinate, and rounded once: the scores that rankings
    are by, however it finds the best.

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


class DenseItems:
    """A table of items that finds the best ones for users; item 0 (padding) never is.

    For many users they are searched for by bounds (:mod:`recbole_prune.sparse.best_products`) where numba is installed;
    for a few, matrix products find them, which takes numpy alone. The lists are the same.

    Args:
        table: vectors, shape ``[items, width]``.
    """

    def __init__(self, table: Array) -> None:
        self._table = np.asarray(table, np.float32)
        self._users = 0

    @cached_property
    def _longest(self) -> float:
        return longest(self._table)

    @cached_property
    def _search(self) -> ProductSearch:
        return ProductSearch(self._table)

    def top_k(
        self, users: Array, k: int, seen_pointers: Array, seen_items: Array, *, scale: float = 1.0, threads: int = 0
    ) -> TopK:
        """The k best items of each user.

        Args:
            users: vectors, shape ``[users, width]``.
            k: length of a list.
            seen_pointers: shape ``[users + 1]``, into ``seen_items``: ids that are left out, ascending for a user.
            scale: constant factor of the scores.
            threads: for the search; 0: all usable cores. Matrix products take numpy's.
        """
        users = np.asarray(users, np.float32)
        self._users += len(users)
        saved = len(users) * len(self._table) * _SECONDS_SAVED_BY_SCORE
        many = self._users >= _USERS_TO_SEARCH * self._table.shape[1]
        if not (many and pays(saved) and available() and are_finite(users, self._longest, scale)):
            return by_matrix_products(users, self._table, k, seen_pointers, seen_items, scale)
        pointers, seen = np.asarray(seen_pointers, np.int64), np.asarray(seen_items, np.int64)
        return self._search.top_k(Wanted(users, pointers[:-1], pointers[1:], seen, scale), k, threads)


def by_matrix_products(
    users: Array, items: Array, k: int, seen_pointers: Array, seen_items: Array, scale: float = 1.0
) -> TopK:
    """The k best items of each user; arguments as for :class:`DenseItems`."""
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
        near = _near_the_best(scores, scaled, k, margin)
        _best_of_block(*near, scaled, items, k, TopK(*(a[first : first + len(block)] for a in _parts(found))))
    return found


def best_of_scores(scores: Array, k: int, seen_items: Array) -> TopK:
    """The k best items of one user.

    Args:
        scores: of all items, shape ``[items]``.
        k: length of the list.
        seen_items: ids that are left out.
    """
    found, rounded = TopK.empty(1, k), scores.astype(np.float32)
    rounded[0] = rounded[seen_items] = -np.inf
    best = np.argsort(-rounded, kind="stable")[: k + 1]
    best = best[rounded[best] > -np.inf]
    found.tied[0] = (np.diff(rounded[best]) == 0).any()
    found.items[0, : len(best[:k])], found.scores[0, : len(best[:k])] = best[:k], rounded[best[:k]]
    return found


def _parts(found: TopK) -> tuple[Array, Array, Array]:
    return found.items, found.scores, found.tied


def _near_the_best(scores: NDArray[np.float32], scaled: Array, k: int, margin: Array) -> tuple[Array, Array]:
    """Rows and columns of the scores that are within the rounding error of the k + 1 best of their row, or better."""
    size = min(k + 1, scores.shape[1])
    least = np.partition(scores, scores.shape[1] - size, axis=1)[:, scores.shape[1] - size]
    bound = np.where(np.isfinite(least), least - margin, np.float32(np.finfo(np.float32).min))
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
