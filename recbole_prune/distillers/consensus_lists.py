"""The consensus of several rankings: short lists of every user, which count by rank and by how steady the rank is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from recbole_prune.teachers.ranked_lists import best_of_sums

# one ranking: ids of items best first, int32 or uint16 [users, length], 0 behind the end of a list
Lists = np.ndarray


class Decay(NamedTuple):
    """How fast an item's importance falls: ``exp(-rank / ranks) + exp(-standard deviation / spread)``."""

    ranks: float
    spread: float


def importance(ranks: torch.Tensor, spread: torch.Tensor, length: int, decay: Decay) -> torch.Tensor:
    """What a head says for an item: nothing from the rank ``length`` on.

    Source: methods/distillation_ranking.md, section 6, step 5.

    Args:
        ranks: 0-based.
        spread: standard deviation of the rank over the last evaluations, in the shape of ``ranks``.
        length: of the lists.
        decay: of both terms.
    """
    said = torch.exp(-ranks / decay.ranks) + torch.exp(-spread / decay.spread)
    return torch.where(ranks < length, said, 0.0)


def ranks_in(lists: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
    """0-based ranks of items ``[n, k]`` in lists ``[n, length]`` row by row; ``length`` where a list has them not."""
    length = lists.shape[1]
    ids, ranks = lists.sort(dim=1)
    places = torch.searchsorted(ids, items).clamp(max=length - 1)
    return torch.where(ids.gather(1, places) == items, ranks.gather(1, places), length)


def spread_of(items: torch.Tensor, history: Sequence[Lists]) -> torch.Tensor:
    """Standard deviations (of a population) of the ranks of items ``[n, k]`` over several lists; 0 over none."""
    if not history:
        return torch.zeros(items.shape, dtype=torch.float64)
    ranks = torch.stack([ranks_in(_as_ids(lists), items) for lists in history])
    return ranks.double().std(dim=0, unbiased=False)


def consensus_of(heads: Sequence[Lists], history: Sequence[Sequence[Lists]], decay: Decay) -> Lists:
    """The best items of every user by the importance that all heads together give them.

    Args:
        heads: the ranking of each head that counts.
        history: the rankings of each evaluation over which a rank is to be steady, those of the heads in each; without
            any all ranks are.
        decay: of the importance.

    Returns:
        lists of the same shape; lower ids first among equals.
    """
    rows, length = heads[0].shape

    def entries(some: slice) -> tuple[torch.Tensor, torch.Tensor]:
        spoken = [_spoken(lists[some], [past[x][some] for past in history], decay) for x, lists in enumerate(heads)]
        ids, values = (torch.cat(parts, dim=1) for parts in zip(*spoken))
        return ids, values

    ids, _ = best_of_sums(entries, rows, len(heads) * length, length, nothing=0)
    return ids.astype(heads[0].dtype)


def _spoken(lists: Lists, history: Sequence[Lists], decay: Decay) -> tuple[torch.Tensor, torch.Tensor]:
    """Items of one head's lists and their importance, ``[n, length]`` each."""
    items = _as_ids(lists)
    ranks = torch.arange(items.shape[1], dtype=torch.float64).expand(items.shape)
    return items, importance(ranks, spread_of(items, history), items.shape[1], decay)


def _as_ids(lists: Lists) -> torch.Tensor:
    return torch.from_numpy(lists.astype(np.int64))


class Consensus:
    """Rankings of the heads at the last evaluations, and the lists that follow from them.

    They take ``(window + 1) * heads * length`` numbers of 2 or 4 bytes for a user.

    Args:
        window: evaluations over which a rank is to be steady; the consensus begins at the one after so many.
        decay: of the importance.
        official: as the authors' code does it: the ranks that count are those of the evaluation before, how steady
            they are is found once, when the consensus begins, and at that time all are taken to be.

    Attributes:
        lists: of all users, as int ``[users, length]``, 0 behind the end; None before it begins.
    """

    def __init__(self, window: int, decay: Decay, official: bool) -> None:
        self.window, self.decay, self.official = window, decay, official
        self.lists: Lists | None = None
        self._history: list[list[Lists]] = []
        self._first: list[list[Lists]] = []
        self._evaluations = 0

    def add(self, heads: Sequence[Lists]) -> None:
        """Take in the rankings of an evaluation, ids ``[users, length]`` of each head, 0 behind the end of a list."""
        now, before = list(heads), self._history[-1:]
        self._history = [*self._history, now][-self.window :]
        self._evaluations += 1
        if self._evaluations <= self.window:
            return
        if not self.official:
            self.lists = consensus_of(now, self._history, self.decay)
            return
        self.lists = consensus_of(before[0], self._first, self.decay)
        self._first = self._first or list(self._history)

    def state(self) -> dict[str, Any]:
        """Everything that later lists depend on."""
        state = {"lists": self.lists, "evaluations": self._evaluations, "first": self._first}
        return {**state, "history": self._history}

    def restore(self, state: dict[str, Any]) -> None:
        """Undo :meth:`state`."""
        self.lists, self._evaluations = state["lists"], state["evaluations"]
        self._history, self._first = state["history"], state["first"]
