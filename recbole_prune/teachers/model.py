"""A trained model of RecBole as a teacher, in the student's ids: its logits and rankings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from recbole.data.interaction import Interaction

from recbole_prune.anatomy.logits import batch_logits, pair_logits, reason_without_lists, score_rows
from recbole_prune.anatomy.vectors import (
    known_class,
    reason_unknown,
    scorer_of,
    shared_propagation,
)
from recbole_prune.sparse.pair_scores import pair_scores
from recbole_prune.teachers.base import Basics, Rows, Tables, same_draws
from recbole_prune.teachers.matching import Matching
from recbole_prune.teachers.model_vectors import VectorTeacher
from recbole_prune.teachers.ranked_lists import (
    Ranked,
    best_of_columns,
    best_of_groups,
    best_of_listed,
    best_of_products,
    best_of_rows,
)

if TYPE_CHECKING:
    from recbole.data.dataset import Dataset
    from recbole.model.abstract_recommender import AbstractRecommender


Build = Callable[[], "AbstractRecommender"]


class ModelTeacher(VectorTeacher):
    """A trained model of RecBole, with or without gradients; it stays in evaluation mode.

    Args:
        model, dataset, matching, basics: as for :class:`VectorTeacher`.
        recorded: builds the models of the states before this one, earliest first.
    """

    def __init__(
        self,
        model: AbstractRecommender,
        dataset: Dataset,
        matching: Matching,
        basics: Basics,
        recorded: Sequence[Build] = (),
    ) -> None:
        super().__init__(model, dataset, matching, basics)
        self._recorded = recorded

    # ---- logits ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def batch_logits(self, interaction: Interaction) -> torch.Tensor:
        """The logit of every row of a batch; where it is a product of vectors, nothing is propagated anew."""
        tables = self.products if self._states is None else None
        if tables is None:
            logits = self._reading(lambda: batch_logits(self.model, self.matching.rows(interaction)))
        else:
            logits = self._reading(lambda: self._product_of_pairs(tables, interaction))
        if not logits.isfinite().all():
            raise self.refuse("gives logits that are NaN or infinite")
        return logits.float()

    @torch.no_grad()
    def row_logits(self, rows: Rows) -> torch.Tensor:
        """Logits of all items; of users, where student or teacher knows no histories."""
        self._require_lists()
        with same_draws(self.pupils.seed), shared_propagation(self.model):
            logits = self._scores_of_rows(rows).float()
        if not logits[:, 1:].isfinite().all():
            raise self.refuse("gives logits that are NaN or infinite")
        return logits.masked_fill(self._unknown(rows)[:, None], torch.nan)

    @torch.no_grad()
    def pair_logits(self, rows: Rows, items: torch.Tensor) -> torch.Tensor:
        """By products of vectors, else by the model's logits of pairs, else by its scores of all items."""
        self._require_lists()
        asked = items.clamp(min=1)
        with same_draws(self.pupils.seed), shared_propagation(self.model):
            logits = self._reading(lambda: self._logits_of_pairs(rows, asked)).float()
        if not logits.isfinite().all():
            raise self.refuse("gives logits that are NaN or infinite")
        return logits.masked_fill((items < 0) | self._unknown(rows)[:, None], torch.nan)

    def _logits_of_pairs(self, rows: Rows, items: torch.Tensor) -> torch.Tensor:
        histories = self._histories(rows)
        tables = self.products if histories is None else None
        if tables is not None:
            return pair_scores(tables[0][self._users_in(rows)], tables[1], items)
        if scorer_of(self.model) is None:
            return self._scores_of_rows(rows).gather(1, items)
        theirs = items if self.matching.items is None else self.matching.items[items]
        return pair_logits(self.model, self._rows_of(self._users_in(rows)) if histories is None else histories, theirs)

    def _histories(self, rows: Rows) -> Interaction | None:
        """The rows as the model would have them, where student and model read histories; None where users count."""
        if isinstance(rows, torch.Tensor) or self._states is None or not self.pupils.of_rows:
            return None
        return self.matching.rows(rows)

    def _unknown(self, rows: Rows) -> torch.Tensor:
        """Users without a history for a sequential teacher, ``[b]``."""
        users = self._users_in(rows)
        if self._states is None or self.pupils.of_rows:
            return torch.zeros_like(users, dtype=torch.bool)
        return ~self._is_known[users]

    def _users_in(self, rows: Rows) -> torch.Tensor:
        ids = rows if isinstance(rows, torch.Tensor) else rows[self.pupils.user_field]
        return ids.to(self.device)

    def _scores_of_rows(self, rows: Rows) -> torch.Tensor:
        """Scores of all the student's items for users or rows."""
        histories = self._histories(rows)
        if histories is None:
            return self._scores_of_users(self._users_in(rows))
        return self._of_items(self._reading(lambda: score_rows(self.model, histories)))

    def _product_of_pairs(self, tables: tuple[torch.Tensor, torch.Tensor], batch: Interaction) -> torch.Tensor:
        users, items = (batch[field].to(self.device) for field in (self.pupils.user_field, self.pupils.item_field))
        return (tables[0][users] * tables[1][items]).sum(1)

    @cached_property
    def _is_known(self) -> torch.Tensor:
        found = torch.zeros(self.pupils.user_count, dtype=torch.bool)
        found[torch.from_numpy(self._known_users())] = True
        return found.to(self.device)

    def _scores_of_users(self, users: torch.Tensor) -> torch.Tensor:
        """Scores of all the student's items; where they are products of vectors, nothing is propagated anew."""
        tables = self.products
        if tables is not None:
            return tables[0][users] @ tables[1].t()
        return self._of_items(self._reading(lambda: score_rows(self.model, self._rows_of(users))))

    def _of_items(self, scores: torch.Tensor) -> torch.Tensor:
        """Columns in the student's order."""
        return scores if self.matching.items is None else scores[:, self.matching.items.to(scores.device)]

    def require_logits(self) -> None:
        """Refuse a model of which no logits are known, only scores."""
        kind = type(self.model)
        if known_class(kind) is None:
            reason = reason_unknown(kind)
            raise self.refuse(f"has no logits to copy, take a method that learns from rankings: {reason}")

    def _require_lists(self) -> None:
        reason = reason_without_lists(type(self.model)) if known_class(type(self.model)) else ""
        if reason:
            raise self.refuse(f"ranks no items for a user: {reason}")

    @property
    def products(self) -> Tables:
        """The tables whose products are the scores; None where they are not."""
        if self._accessor is None or not self._accessor.dot:
            return None
        users, items = self._tables
        if users is None:
            users = self._vectors_of_states()
        return users, items

    # ---- rankings ----------------------------------------------------------------------------------------------------

    @cached_property
    def states(self) -> Sequence[np.ndarray]:
        """Each is ranked by a model that goes again; computed once for a run folder."""
        found = []
        for number, build in enumerate(self._recorded, 1):
            with same_draws(self.pupils.seed):
                found.append(self._store.get(f"items_of_state_{number}", partial(self._rank_state, build))["ids"])
        return (*found, self.items_of_users)

    def _rank_state(self, build: Build) -> dict[str, np.ndarray]:
        basics = Basics(self.identity, self.pupils, self.length, self._store)
        return {"ids": ModelTeacher(build(), self._dataset, self.matching, basics).rank_items()[0]}

    def rank_observed(self, length: int) -> np.ndarray:
        """A pass over the users."""
        self._require_lists()
        what = f"the teacher {self.identity['path']}, training items of users"
        arguments = length, what, self.device, self._known_users()
        with shared_propagation(self.model):
            return best_of_listed(self._scores_of_users, self.pupils.consumed, *arguments)[0]

    def rank_items(self) -> Ranked:
        """A pass over the users."""
        self._require_lists()
        tables, arguments = self.products, self._arguments("items of users")
        if tables is not None:
            return best_of_products(*tables, self.pupils.unranked, *arguments[:2], self._known_users())
        with shared_propagation(self.model):
            return best_of_rows(self._scores_of_users, self.pupils.unranked, *arguments, self._known_users())

    @torch.no_grad()
    def rank_rows(self, batch: Interaction) -> Ranked:
        """Scores of the rows, a part of the batch at a time where there are many items."""
        self._require_lists()
        unranked, arguments = self.pupils.unranked_in(batch), self._arguments("items of the rows of a batch")
        with same_draws(self.pupils.seed), shared_propagation(self.model):
            return best_of_rows(
                lambda places: self._scores_of_rows(batch[places]), unranked, *arguments, np.arange(len(batch))
            )

    @torch.no_grad()
    def rank_in_groups(self, rows: Rows, groups: Sequence[np.ndarray]) -> np.ndarray:
        """Among all items."""
        self._require_lists()
        rows = rows.to(self.device)  # places of them are there
        known, consumed = np.flatnonzero((~self._unknown(rows)).cpu().numpy()), self.pupils.consumed_by(rows)
        arguments = self._arguments("items of users in groups of items")
        with same_draws(self.pupils.seed), shared_propagation(self.model):
            return best_of_groups(
                lambda places: self._scores_of_rows(rows[places]), consumed, *arguments, known, groups
            )

    def rank_users(self) -> Ranked:
        """A pass over the items where scores are products, else a second one over the users."""
        self._require_lists()
        tables, known = self.products, self._known_users()
        arguments = self._arguments("users of items")
        if tables is None or len(known) < self.pupils.user_count - 1:
            with shared_propagation(self.model):
                return best_of_columns(self._scores_of_users, self.pupils.consumed, *arguments, known)
        items = np.arange(1, self.pupils.item_count)
        return best_of_products(tables[1], tables[0], self.pupils.consumers, *arguments[:2], items)

    def _arguments(self, what: str) -> tuple[int, str, torch.device]:
        return self.length, f"the teacher {self.identity['path']}, {what}", self.device


class UntrainedTeacher(ModelTeacher):
    """A model that is to be trained as a teacher: it says what its class and settings lack, and ranks nothing."""

    def rank_items(self) -> Ranked:
        """Lists of length 0; one user is scored, which a model may be unable to do."""
        return self._lists_of_nothing(self.pupils.user_count)

    def rank_users(self) -> Ranked:
        """As :meth:`rank_items`."""
        return self._lists_of_nothing(self.pupils.item_count)

    def rank_observed(self, length: int) -> np.ndarray:
        """As :meth:`rank_items`."""
        return self.rank_items()[0]

    def _lists_of_nothing(self, count: int) -> Ranked:
        self._require_lists()
        self._scores_of_users(torch.from_numpy(self._known_users()[:1]).to(self.device))
        return np.empty((count, 0), np.int32), np.empty((count, 0), np.float32)
