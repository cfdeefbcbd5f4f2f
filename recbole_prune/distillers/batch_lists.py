"""What the teacher ranks for a batch, and what is drawn beside it: of users once an epoch, of rows batch by batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
import torch

from recbole_prune.anatomy.logits import factors_of_pairs, pair_logits
from recbole_prune.data.used_ids import UsedIds
from recbole_prune.distillers.losses.listwise import plackett_luce_of, sum_of_lists
from recbole_prune.sparse.missing_ids import with_stand_ins
from recbole_prune.teachers.ranked_lists import Ranked

if TYPE_CHECKING:
    from recbole.data.interaction import Interaction
    from recbole.model.abstract_recommender import AbstractRecommender

    from recbole_prune.teachers.base import Rows, Teacher


class Drawn(NamedTuple):
    """Items for users or rows; ids are -1 where there are fewer.

    Attributes:
        interesting: what the teacher ranks high, best first, ``[n, K]``.
        scores: the teacher's, of those, ``[n, K]``.
        uninteresting: others, in no order, ``[n, L]``.
    """

    interesting: np.ndarray
    scores: np.ndarray
    uninteresting: np.ndarray


class Listed(NamedTuple):
    """The same as tensors beside a batch, and what the student is asked with: distinct users, or the batch's rows."""

    rows: Rows
    interesting: torch.Tensor
    scores: torch.Tensor
    uninteresting: torch.Tensor


# makes of what the teacher ranks for each of n keys, and of what each of them has consumed, what is learned from
Draw = Callable[[Ranked, UsedIds, np.random.Generator], Drawn]


class ListSource(Protocol):
    """Gives the lists of a batch; draws follow from the seed, the epoch and the batch, and shift no global stream."""

    def begin_epoch(self, epoch: int) -> None:
        """Called before the first batch of an epoch."""

    def of(self, batch: Interaction) -> Listed:
        """The lists of the next batch of the epoch."""


def list_source(teacher: Teacher, draw: Draw) -> ListSource:
    """The source for the student's kind of data."""
    return _OfRows(teacher, draw) if teacher.pupils.of_rows else _OfUsers(teacher, draw)


def take_ranks(ranked: Ranked, ranks: np.ndarray) -> Ranked:
    """Ids and scores at 0-based ranks ``[n, K]`` of each list; -1 and 0 where a rank is -1."""
    ids, scores = (np.take_along_axis(table, ranks.clip(min=0), axis=1) for table in ranked)
    return np.where(ranks >= 0, ids, -1), np.where(ranks >= 0, scores, 0.0)


def listed_logits(model: AbstractRecommender, rows: Rows, items: torch.Tensor) -> torch.Tensor:
    """Logits of items ``[b, k]`` for users or rows ``[b]``, differentiable; NaN where an id is -1."""
    return where_listed(lambda found: pair_logits(model, rows, found), items)


def where_listed(score: Callable[[torch.Tensor], torch.Tensor], ids: torch.Tensor) -> torch.Tensor:
    """Scores of ids ``[n, k]``; NaN where an id is -1."""
    missing = ids < 0
    if not missing.any():
        return score(ids)
    return score(with_stand_ins(ids)).masked_fill(missing, torch.nan)


def listwise_loss(model: AbstractRecommender, rows: Rows, items: torch.Tensor, count: int) -> torch.Tensor:
    """The sum over rows of :func:`plackett_luce` by logits of ids ``[b, K + L]``, a list of ``count`` and then a set.

    Args:
        model: the student.
        rows: user ids ``[b]``, or RecBole's rows.
        items: ids of items, -1 where there are fewer.
        count: the ``K`` of a list.
    """
    factors = factors_of_pairs(model, rows, items.numel())
    if factors is None:
        return plackett_luce_of(listed_logits(model, rows, items), count).sum()
    places = torch.arange(len(items), device=items.device)
    return sum_of_lists(factors[0], places, factors[1], items, count)


class _OfUsers:
    """Users are a closed set: the stored lists, and one draw for all of them in an epoch."""

    def __init__(self, teacher: Teacher, draw: Draw) -> None:
        self._teacher, self._pupils, self._draw = teacher, teacher.pupils, draw

    def begin_epoch(self, epoch: int) -> None:
        stream = np.random.default_rng([self._pupils.seed, epoch, 0])
        self._drawn = self._draw(self._teacher.ranked_items, self._pupils.consumed, stream)

    def of(self, batch: Interaction) -> Listed:
        users = batch[self._pupils.user_field].unique()
        places = users.cpu().numpy()
        return _beside(users, Drawn(*(table[places] for table in self._drawn)), users.device)


class _OfRows:
    """Every row is a history of its own: the teacher ranks the rows of each batch anew."""

    def __init__(self, teacher: Teacher, draw: Draw) -> None:
        self._teacher, self._pupils, self._draw = teacher, teacher.pupils, draw
        self.begin_epoch(0)

    def begin_epoch(self, epoch: int) -> None:
        self._epoch, self._batch = epoch, 0

    def of(self, batch: Interaction) -> Listed:
        stream = np.random.default_rng([self._pupils.seed, self._epoch, 0, self._batch])
        self._batch += 1
        drawn = self._draw(self._teacher.rank_rows(batch), self._pupils.consumed_in(batch), stream)
        return _beside(batch, drawn, batch[self._pupils.user_field].device)


def _beside(rows: Rows, drawn: Drawn, device: torch.device) -> Listed:
    ids = (torch.from_numpy(table).to(device, torch.long) for table in (drawn.interesting, drawn.uninteresting))
    interesting, uninteresting = ids
    return Listed(rows, interesting, torch.from_numpy(drawn.scores).to(device), uninteresting)
