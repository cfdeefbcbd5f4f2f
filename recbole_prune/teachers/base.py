"""What a distiller asks a teacher; ``sources.py`` finds and opens them."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Optional, Union

import numpy as np
import torch
from recbole.data.interaction import Interaction

from recbole_prune.data.random_streams import preserved_random_streams
from recbole_prune.data.unused_ids import draw_unused
from recbole_prune.errors import ConfigError
from recbole_prune.teachers.ranked_lists import Ranked, split_by_groups

if TYPE_CHECKING:
    from recbole_prune.anatomy.feature_points.features import Feature
    from recbole_prune.anatomy.feature_points.table import Drawn
    from recbole_prune.teachers.pupils import Pupils
    from recbole_prune.teachers.store import ListStore

Rows = Union[torch.Tensor, Interaction]
Tables = Optional[tuple[torch.Tensor, torch.Tensor]]


class Basics(NamedTuple):
    """What every teacher is made with.

    Attributes:
        identity: for the journal: ``kind``, ``path``, ``sha256``, ``model``, ``parameters``, ``metrics`` and, of a run
            whose tests rank items, ``popularity``.
        pupils: the student's data.
        length: how long the rankings are.
        store: where they are kept.
    """

    identity: dict[str, Any]
    pupils: Pupils
    length: int
    store: ListStore


class Teacher(ABC):
    """What somebody knows about the student's users and items; all ids are the student's, nothing has a gradient.

    A distiller holds it as a plain attribute: no module of it is registered in a student. What a kind of teacher cannot
    say it refuses with a ConfigError in one sentence, so ask before any training.

    Attributes:
        identity: for the journal.
        pupils: the student's data.
        length: how long the rankings are.
        has_scores: whether it ranks with scores.
        without_vectors, without_logits, without_features: how it refuses what it has none of.
    """

    without_vectors: ClassVar[str] = "has no vectors to copy: take a method that learns from rankings"
    without_logits: ClassVar[str] = "has no logits to copy"
    without_features: ClassVar[str] = "has no layers to copy: take a method that learns from rankings"
    has_scores = True

    def __init__(self, basics: Basics) -> None:
        self.identity, self.pupils, self.length, self._store = basics

    def refuse(self, reason: str) -> ConfigError:
        """The error that names this teacher."""
        return ConfigError(f"the teacher {self.identity['path']} {reason}")

    @property
    def members(self) -> tuple[Teacher, ...]:
        """The teachers that it consists of: itself, or several."""
        return (self,)

    @property
    def states(self) -> Sequence[np.ndarray]:
        """What it ranked in the course of its training, earliest first: each as :attr:`items_of_users`, the last one.

        Before that one are the states that were recorded, for distillers that read them.
        """
        return (self.items_of_users,)

    @property
    def widths(self) -> tuple[int, int]:
        """The widths of its user and item vectors."""
        raise self.refuse(self.without_vectors)

    def require_one_space(self) -> None:
        """Refuse a teacher whose user and item vectors cannot be compared with each other."""
        raise self.refuse(self.without_vectors)

    @property
    def tables(self) -> Tables:
        """Its vectors of users ``[U, d]`` and items ``[N, d]``; None where student and teacher have vectors of rows."""
        raise self.refuse(self.without_vectors)

    def user_vectors(self, rows: Rows) -> torch.Tensor:
        """Vectors ``[b, d]`` of user ids or of the rows of a batch."""
        raise self.refuse(self.without_vectors)

    def item_vectors(self, ids: torch.Tensor) -> torch.Tensor:
        """Vectors of item ids of any shape ``[..., d]``."""
        raise self.refuse(self.without_vectors)

    def field_vectors(self, batch: Interaction) -> torch.Tensor:
        """Vectors of the fields of each row of a batch side by side ``[b, fields x d]``, of context-aware models."""
        raise self.refuse(self.without_vectors)

    def features(self, batch: Interaction, drawn: Drawn | None = None) -> list[Feature]:
        """What its feature points say of the rows of a batch.

        Args:
            batch: the student's.
            drawn: what the student's loss has drawn of it.
        """
        raise self.refuse(self.without_features)

    def require_logits(self) -> None:
        """Refuse a teacher without logits."""
        raise self.refuse(self.without_logits)

    def batch_logits(self, interaction: Interaction) -> torch.Tensor:
        """The logit of every row of a batch ``[b]``."""
        raise self.refuse(self.without_logits)

    def row_logits(self, rows: Rows) -> torch.Tensor:
        """Logits of all the student's items for users or rows ``[b, N]``; NaN in the rows that it does not know.

        Column 0 is padding and means nothing.
        """
        raise self.refuse(self.without_logits)

    def pair_logits(self, rows: Rows, items: torch.Tensor) -> torch.Tensor:
        """Logits of items ``[b, k]`` for users or rows ``[b]``; NaN where an id is -1 or a user is not known."""
        raise self.refuse(self.without_logits)

    def offer(self, rows: Rows, count: int, stream: np.random.Generator) -> np.ndarray:
        """Items for users or rows, drawn uniformly and with replacement among those not consumed, all or those listed.

        Returns:
            ids ``[b, count]``, -1 where there are none; :meth:`pair_logits` knows their logits.
        """
        return draw_unused(self.pupils.consumed_by(rows), count, 1, stream)

    @property
    def items_of_users(self) -> np.ndarray:
        """The best items of every user, int32 ``[U, length]``, best first, then -1.

        Those that it has in training are left out, unless ``pupils.mask_observed`` is False.
        """
        return self.ranked_items[0]

    @property
    def scores(self) -> np.ndarray:
        """The scores of :attr:`items_of_users`, float32, 0 where that is -1."""
        return self.ranked_items[1]

    @property
    def ranked_items(self) -> Ranked:
        """:attr:`items_of_users` with its scores, 0 where the teacher has none."""
        found = self._items_of_users
        return found["ids"], found["scores"]

    def require_scores(self) -> None:
        """Refuse a teacher that ranks without scores."""
        if not self.has_scores:
            raise self.refuse("has lists without scores, which this method needs: add them to every line (.jsonl)")

    def rank_rows(self, batch: Interaction) -> Ranked:
        """The best items for each row of a batch, and their scores.

        As :attr:`items_of_users` and :attr:`scores` otherwise, ``[b, length]``.
        """
        users = batch[self.pupils.user_field].cpu().numpy()
        ids, scores = self.ranked_items
        return ids[users], scores[users]

    def rank_in_groups(self, rows: Rows, groups: Sequence[np.ndarray]) -> np.ndarray:
        """The best items of each group of items, for users or rows; here those of :attr:`items_of_users`.

        Args:
            rows: user ids ``[n]`` or the rows of a batch.
            groups: ids of the items of each group, ascending.

        Returns:
            ids ``[n, groups, length]``, best first, then -1; without what is consumed.
        """
        lists = self.items_of_users[rows.cpu().numpy()] if isinstance(rows, torch.Tensor) else self.rank_rows(rows)[0]
        return split_by_groups(lists, groups)

    def items_in_groups(self, groups: Sequence[np.ndarray]) -> np.ndarray:
        """:meth:`rank_in_groups` of all users, int32 ``[U, groups, length]``, nothing for padding."""

        def rank() -> dict[str, np.ndarray]:
            ranked = self.rank_in_groups(torch.arange(1, self.pupils.user_count), groups)
            return {"ids": np.concatenate([np.full_like(ranked[:1], -1), ranked])}

        with same_draws(self.pupils.seed):
            return self._store.get("items_in_groups", rank)["ids"]

    @property
    def users_of_items(self) -> np.ndarray:
        """The best users of every item that have it not in training, int32 ``[N, length]``, best first, then -1."""
        return self._users_of_items["ids"]

    @cached_property
    def _items_of_users(self) -> dict[str, np.ndarray]:
        with same_draws(self.pupils.seed):
            return self._store.get("items_of_users", lambda: _named(self.rank_items()))

    @cached_property
    def _users_of_items(self) -> dict[str, np.ndarray]:
        with same_draws(self.pupils.seed):
            return self._store.get("users_of_items", lambda: {"ids": self.rank_users()[0]})

    def noted(self, name: str, compute: Callable[[], Any]) -> Any:
        """A value of JSON that is computed once for a run folder."""
        return self._store.note(name, compute)

    @abstractmethod
    def rank_items(self) -> Ranked:
        """Compute :attr:`items_of_users` and :attr:`scores`."""

    @abstractmethod
    def rank_observed(self, length: int) -> np.ndarray:
        """The items of every user in training in its own order, int32 ``[U, length]``, -1 behind the end.

        Items that it does not rank are left out.
        """

    @abstractmethod
    def rank_users(self) -> Ranked:
        """Compute :attr:`users_of_items`."""


@contextmanager
def same_draws(seed: int) -> Iterator[None]:
    """The same random numbers in every process, for models that draw when they score; the run's streams stay."""
    with preserved_random_streams():
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        yield


def _named(ranked: Ranked) -> dict[str, np.ndarray]:
    return dict(zip(("ids", "scores"), ranked))
