"""The best items of every user of an evaluation, in blocks of users."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import sqrt
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from recbole_prune.sparse.best_products import ProductSearch, Wanted, are_finite, longest
from recbole_prune.sparse.compiling import available
from recbole_prune.sparse.inverted_lists import InvertedLists, Rows, largest

if TYPE_CHECKING:
    from recbole.data.dataloader import FullSortEvalDataLoader

# items whose largest score stands for all of them in the first pass over a row
_GROUP = 64
# scores of a block of users: a few MB stay in a CPU's last cache, a GPU wants more work at once
_BLOCK_SCORES = {"cpu": 1 << 22, "cuda": 1 << 26}
# with fewer users a matrix product is bound by reading the item table
_LEAST_USERS = 32
# users that are scanned between two steps of a progress bar
_SCANNED_USERS = 4096
# a search by bounds is prepared, and tried, for so many multiplications and users
_LEAST_PRODUCTS, _LEAST_ROWS = 1 << 33, 1 << 11
# what it may cost beside adding up every coordinate of every product: as long as a matrix product takes (measured)
_SEARCHED_SHARE = 1.5
_TRIED_LENGTH = 21


def scores_at_once(device: torch.device) -> int:
    """How many scores a block of users has on a device."""
    return _BLOCK_SCORES.get(device.type, _BLOCK_SCORES["cuda"])


def top_k(scores: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k largest of every row: in one pass with numba, else among the k groups with the largest maxima.

    Args:
        scores: ``[rows, width]``, without NaN.
        k: at most ``width``.

    Returns:
        (values, positions), each ``[rows, k]``, largest first; which of equal values come first is not defined.
    """
    rows, width = scores.shape
    if scores.device.type == "cpu" and scores.dtype == torch.float32 and available():
        items, best = largest(scores.numpy(), k, torch.get_num_threads())
        return torch.from_numpy(best), torch.from_numpy(items)
    if width % _GROUP or width // _GROUP <= k:
        values, positions = torch.topk(scores, k, dim=1)
        return values, positions
    grouped = scores.view(rows, -1, _GROUP)
    # at most k - 1 values are larger than any of the k largest, so they lie in at most k groups
    groups = torch.topk(grouped.amax(2), k, dim=1, sorted=False).indices
    members = grouped.gather(1, groups[:, :, None].expand(-1, -1, _GROUP)).view(rows, -1)
    values, found = torch.topk(members, k, dim=1)
    group = groups.gather(1, torch.div(found, _GROUP, rounding_mode="floor"))
    return values, group * _GROUP + found % _GROUP


@dataclass(frozen=True)
class EvaluationRows:
    """Users of a full-sort dataloader in its order, with the items they have had and those to be found.

    Attributes:
        users: internal ids ``[rows]``.
        item_count: number of items, padding included.
        history_pointers: where each row's part of ``history_items`` begins, on the CPU ``[rows + 1]``.
        history_items: items that are not ranked, ascending for a user, on the device.
        positive_codes: ``row * item_count + item``, ascending, on the device.
        positive_counts: positives of each row, on the device ``[rows]``.
    """

    users: torch.Tensor
    item_count: int
    history_pointers: torch.Tensor
    history_items: torch.Tensor
    positive_codes: torch.Tensor
    positive_counts: torch.Tensor

    @classmethod
    def of(cls, loader: FullSortEvalDataLoader, device: torch.device | str) -> EvaluationRows:
        """The rows of RecBole's ``FullSortEvalDataLoader`` (not of sequences)."""
        users, item_count = loader.uid_list, loader._dataset.item_num
        history_items, history_counts = _join([items.sort().values for items in loader.uid2history_item[users.numpy()]])
        positives, counts = _join(loader.uid2positive_item[users.numpy()])
        pointers = torch.zeros(len(users) + 1, dtype=torch.int64)
        torch.cumsum(history_counts, 0, out=pointers[1:])
        rows = torch.repeat_interleave(torch.arange(len(users)), counts)
        codes = torch.sort(rows * item_count + positives).values
        return cls(users, item_count, pointers, history_items.to(device), codes.to(device), counts.to(device))

    def __len__(self) -> int:
        return len(self.users)


def _join(lists: Sequence[torch.Tensor] | NDArray[np.object_]) -> tuple[torch.Tensor, torch.Tensor]:
    """All entries of some tensors one after the other, and how many each has."""
    counts = np.fromiter((len(entries) for entries in lists), np.int64, len(lists))
    return torch.cat(list(lists)), torch.from_numpy(counts)


class Ranker(ABC):
    """Ranks the users of :class:`EvaluationRows` by the dot products of user and item vectors.

    Attributes:
        way: how it ranks, in words.
        rows: the users to rank.
        rounding: by how much a user's scores depend on the order of summation, ``[rows]``.
        block_users: users that are best ranked together.
    """

    way: ClassVar[str]
    rows: EvaluationRows
    rounding: torch.Tensor
    block_users: int

    @abstractmethod
    def rank(self, start: int, stop: int, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The k best items of rows ``start`` to ``stop``, without padding and history.

        Returns:
            (items int64, scores), each ``[stop - start, k]``, best first. Where fewer items are left the score is
            minus infinity. The order of equal scores is not defined.
        """

    @abstractmethod
    def scores(self, rows: torch.Tensor) -> torch.Tensor:
        """All scores of rows ``[n]``; padding and history minus infinity, ``[n, item_count]``."""


class DenseRanker(Ranker):
    """A matrix product per block of users.

    Args:
        rows: the users to rank.
        user_vectors: ``[users, width]``, by internal id.
        item_vectors: ``[at least item_count, width]``, by internal id.
        scale: constant factor of the scores.
    """

    way = "blocks of matrix products"

    def __init__(
        self, rows: EvaluationRows, user_vectors: torch.Tensor, item_vectors: torch.Tensor, scale: float
    ) -> None:
        self.rows = rows
        self._users = user_vectors[rows.users.to(user_vectors.device)] * scale
        # at least one column beyond the items, so that one more than all items can be asked for
        self._columns = (rows.item_count // _GROUP + 1) * _GROUP
        self._items = item_vectors.new_zeros(item_vectors.shape[1], self._columns)
        self._items[:, : rows.item_count] = item_vectors[: rows.item_count].T
        # the usual error of a sum of `width` products, not the worst one
        unit = torch.finfo(self._users.dtype).eps * sqrt(self._users.shape[1])
        self.rounding = unit * self._users.norm(dim=1) * self._items.norm(dim=0).max()
        scores = scores_at_once(self._users.device)
        self.block_users = max(_LEAST_USERS, scores // self._columns)
        self._buffer = self._users.new_empty(self.block_users, self._columns)

    def rank(self, start: int, stop: int, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The best of a matrix product, which is written into a buffer: one call at a time."""
        pointers = self.rows.history_pointers[start : stop + 1]
        history = self.rows.history_items[pointers[0] : pointers[-1]]
        out = self._buffer[: stop - start]
        values, items = top_k(self._masked(self._users[start:stop], pointers.diff(), history, out), k)
        return items, values

    def scores(self, rows: torch.Tensor) -> torch.Tensor:
        """The same product for any rows, in memory of its own."""
        pointers = self.rows.history_pointers
        rows = rows.cpu()
        parts = [self.rows.history_items[pointers[row] : pointers[row + 1]] for row in rows]
        counts = (pointers[1:] - pointers[:-1])[rows]
        users = self._users[rows.to(self._users.device)]
        scores = self._masked(users, counts, torch.cat(parts), users.new_empty(len(rows), self._columns))
        return scores[:, : self.rows.item_count]

    def _masked(
        self, users: torch.Tensor, history_counts: torch.Tensor, history: torch.Tensor, out: torch.Tensor
    ) -> torch.Tensor:
        torch.mm(users, self._items, out=out)
        out[:, 0] = -torch.inf
        out[:, self.rows.item_count :] = -torch.inf
        of_row = torch.repeat_interleave(torch.arange(len(users)), history_counts).to(history.device)
        out.view(-1).index_fill_(0, of_row * self._columns + history, -torch.inf)
        return out


class ScanRanker(Ranker):
    """Inverted lists over the live entries of sparse tables; exact, so that ties are all that stays open.

    Args:
        rows: the users to rank.
        users, items: compressed rows of the tables, by internal id.
        dense: ranks the few rows that have to be ranked in RecBole's way; made when it is needed.
        scale: constant factor of the scores.
    """

    way = "a scan of inverted lists"

    def __init__(
        self, rows: EvaluationRows, users: Rows, items: Rows, width: int, dense: Callable[[], Ranker], scale: float
    ) -> None:
        self.rows = rows
        self._users = users.some(rows.users.numpy())
        self._lists = InvertedLists(items.some(np.arange(rows.item_count)), width)
        self._make_dense = dense
        self._scale = scale
        unit = torch.finfo(torch.float32).eps * sqrt(width) * abs(scale)
        self.rounding = torch.from_numpy(unit * _norms(self._users) * _norms(items).max(initial=0.0)).float()
        self.block_users = _SCANNED_USERS

    @cached_property
    def _dense(self) -> Ranker:
        return self._make_dense()

    def rank(self, start: int, stop: int, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The best by a scan; where fewer than k items are left, the further ones are item 0."""
        pointers = self.rows.history_pointers[start : stop + 1].numpy()
        history = self.rows.history_items[pointers[0] : pointers[-1]].numpy()
        users = self._users.some(np.arange(start, stop))
        found = self._lists.top_k(
            users, k, pointers - pointers[0], history, scale=self._scale, threads=torch.get_num_threads()
        )
        return torch.from_numpy(found.items).clamp_(min=0), torch.from_numpy(found.scores)

    def scores(self, rows: torch.Tensor) -> torch.Tensor:
        """Those of the dense ranker."""
        return self._dense.scores(rows)


class SearchRanker(Ranker):
    """Bounds on the products of dense vectors; exact, so that ties are all that stays open.

    Args:
        rows: the users to rank.
        user_vectors: finite float32 ``[users, width]``, by internal id, on the CPU.
        item_vectors: likewise ``[at least item_count, width]``.
        dense: ranks the few rows that have to be ranked in RecBole's way.
        scale: constant factor of the scores.
    """

    way = "a search by bounds"

    def __init__(
        self,
        rows: EvaluationRows,
        user_vectors: torch.Tensor,
        item_vectors: torch.Tensor,
        dense: DenseRanker,
        scale: float,
    ) -> None:
        self.rows, self._dense = rows, dense
        pointers, history = rows.history_pointers.numpy(), rows.history_items.numpy()
        self._wanted = Wanted(user_vectors[rows.users].numpy(), pointers[:-1], pointers[1:], history, scale)
        self._search = ProductSearch(item_vectors[: rows.item_count].numpy())
        self.rounding = dense.rounding
        self.block_users = _SCANNED_USERS

    @classmethod
    def of(
        cls,
        rows: EvaluationRows,
        user_vectors: torch.Tensor,
        item_vectors: torch.Tensor,
        dense: DenseRanker,
        scale: float,
    ) -> SearchRanker | None:
        """A ranker that is faster than ``dense``, arguments as for the class; None where that one is."""
        width = user_vectors.shape[1]
        products = len(rows) * rows.item_count * width
        kind = {(each.device.type, each.dtype) for each in (user_vectors, item_vectors)}
        if kind != {("cpu", torch.float32)} or products < _LEAST_PRODUCTS or not available():
            return None
        users, items = user_vectors.numpy(), item_vectors.numpy()
        if len(rows) < _LEAST_ROWS or not are_finite(users, longest(items), scale):
            return None
        made = cls(rows, user_vectors, item_vectors, dense, scale)
        return made if made._search.cost(made._wanted, _TRIED_LENGTH) < _SEARCHED_SHARE else None

    def rank(self, start: int, stop: int, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The best that a search finds; where fewer than k items are left, the further ones are item 0."""
        found = self._search.top_k(self._wanted.some(slice(start, stop)), k, torch.get_num_threads())
        return torch.from_numpy(found.items).long().clamp_(min=0), torch.from_numpy(found.scores)

    def scores(self, rows: torch.Tensor) -> torch.Tensor:
        """Those of the dense ranker."""
        return self._dense.scores(rows)


def _norms(rows: Rows) -> np.ndarray:
    """Euclidean norm of every row."""
    squares = np.square(rows.values, dtype=np.float64)
    owner = np.repeat(np.arange(len(rows.pointers) - 1), np.diff(rows.pointers))
    return np.sqrt(np.bincount(owner, squares, minlength=len(rows.pointers) - 1))
