"""A trained model of RecBole in the student's ids: what it is asked with, and its vectors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from recbole.data.interaction import Interaction

from recbole_prune.anatomy.feature_points.features import Feature
from recbole_prune.anatomy.feature_points.features import Tables as FeatureTables
from recbole_prune.anatomy.feature_points.table import Drawn, features_of, node_tables, reason_without_features
from recbole_prune.anatomy.vectors import field_vectors, reason_without_fields, reason_without_vectors, vectors_of
from recbole_prune.teachers.base import Basics, Rows, Tables, Teacher, same_draws
from recbole_prune.teachers.matching import LastStates, Matching

if TYPE_CHECKING:
    from recbole.data.dataset import Dataset
    from recbole.model.abstract_recommender import AbstractRecommender


_Read = TypeVar("_Read")
_USERS_AT_ONCE = 1 << 10


class VectorTeacher(Teacher):
    """A trained model of RecBole as far as its vectors go; it stays in evaluation mode.

    Args:
        model: on the student's device.
        dataset: RecBole's training dataset that it was built for.
        matching: of the student's ids and its own.
        basics: as for :class:`Teacher`.
    """

    def __init__(self, model: AbstractRecommender, dataset: Dataset, matching: Matching, basics: Basics) -> None:
        super().__init__(basics)
        self._dataset = dataset
        self.model = model.eval().requires_grad_(False)
        self.matching = matching
        self.device: torch.device = matching.device
        self._accessor = vectors_of(model)
        self._states = LastStates(dataset, self.device) if hasattr(model, "ITEM_SEQ") else None

    @property
    def widths(self) -> tuple[int, int]:
        """The widths of its user and item vectors."""
        self._require_vectors()
        assert self._accessor is not None
        users, items = self._tables
        width = self._accessor.widths(self.model)[0] if users is None else users.shape[1]
        return width, items.shape[1]

    def require_one_space(self) -> None:
        """Refuse a model whose user and item vectors are of two spaces."""
        self._require_vectors()
        assert self._accessor is not None
        if not self._accessor.shared_space:
            kind = type(self.model).__name__
            raise self.refuse(
                f"has no cosines to copy: the user and item vectors of {kind} are not in one space; take a method that "
                "learns from rankings"
            )

    @property
    def tables(self) -> Tables:
        """Its tables, in the student's order."""
        self._require_vectors()
        users, items = self._tables
        return None if users is None else (users, items)

    def _require_vectors(self) -> None:
        if self._accessor is None:
            reason = reason_without_vectors(type(self.model))
            raise self.refuse(f"has no vectors to copy, take a method that learns from rankings: {reason}")

    @cached_property
    def _tables(self) -> tuple[torch.Tensor | None, torch.Tensor]:
        assert self._accessor is not None
        with same_draws(self.pupils.seed):
            users, items = self._accessor.tables(self.model)
        items = _in_order(items, self.matching.items).float()
        if users is not None:
            users = _in_order(users, self.matching.users).float()
        elif not self.pupils.of_rows:
            users = self._vectors_of_states()
        for kind, table in (("user", users), ("item", items)):
            wrong = 0 if table is None else int((~table[1:].isfinite()).any(1).sum())
            if wrong:
                raise self.refuse(f"has NaN or infinite numbers in {wrong} of its {kind} vectors")
        return users, items

    def _vectors_of_states(self) -> torch.Tensor:
        """Vectors of the students' users after all their training items; 0 for those without a history."""
        assert self._accessor is not None
        known, parts = self._known_users(), []
        with torch.no_grad():
            for ids in torch.from_numpy(known).split(_USERS_AT_ONCE):
                parts.append(self._accessor.user_vectors(self.model, self._rows_of(ids.to(self.device))))
        found = torch.cat(parts).float()
        table = found.new_zeros(self.pupils.user_count, found.shape[1])
        table[torch.from_numpy(known).to(self.device)] = found
        return table

    @torch.no_grad()
    def user_vectors(self, rows: Rows) -> torch.Tensor:
        """Vectors of users, or of rows where student and teacher have vectors of rows."""
        self._require_vectors()
        users, accessor = self._tables[0], self._accessor
        if users is not None:
            return users[rows if isinstance(rows, torch.Tensor) else rows[self.pupils.user_field].to(users.device)]
        assert accessor is not None
        return self._reading(lambda: accessor.user_vectors(self.model, self.matching.rows(rows)).float())

    def item_vectors(self, ids: torch.Tensor) -> torch.Tensor:
        """Vectors of items."""
        self._require_vectors()
        return self._tables[1][ids]

    @torch.no_grad()
    def field_vectors(self, batch: Interaction) -> torch.Tensor:
        """By the model's own tables."""
        reason = reason_without_fields(type(self.model))
        if reason:
            raise self.refuse(f"has no vectors of fields to copy: {reason}")
        return self._reading(lambda: field_vectors(self.model, self.matching.rows(batch)).float())

    def features(self, batch: Interaction, drawn: Drawn | None = None) -> list[Feature]:
        """By its layers; tables of a graph are computed once. What was drawn goes by ids, which must be its own."""
        reason = reason_without_features(type(self.model))
        if reason:
            raise self.refuse(f"has no feature points to copy, take a method that learns from rankings: {reason}")
        student, teacher = (
            side.config["MAX_ITEM_LIST_LENGTH"] for side in (self.matching.student, self.matching.teacher)
        )
        if self.matching.items is not None or student != teacher:
            drawn = None
        with same_draws(self.pupils.seed):
            return self._reading(lambda: features_of(self.model, self.matching.rows(batch), self._node_tables, drawn))

    @cached_property
    def _node_tables(self) -> Mapping[str, FeatureTables]:
        return node_tables(self.model)

    # ---- what the model is asked with --------------------------------------------------------------------------------

    def _known_users(self) -> np.ndarray:
        """The users that it can be asked about: all but those without a history for a sequential teacher."""
        users = np.arange(self.pupils.user_count)
        if self._states is None:
            return users[1:]
        theirs = users if self.matching.users is None else self.matching.users.cpu().numpy()
        return users[np.isin(theirs, self._states.known())]

    def _rows_of(self, users: torch.Tensor) -> Rows:
        """What the model is asked with: its ids of users, or their histories."""
        ids = users if self.matching.users is None else self.matching.users[users]
        return ids if self._states is None else self._states.rows(ids)

    def _reading(self, compute: Callable[[], _Read]) -> _Read:
        """Name the field of a row that the student's batches lack."""
        try:
            return compute()
        except KeyError as error:
            raise self.refuse(f"reads the field {error}, which the student's batches do not have") from error


def _in_order(table: torch.Tensor, ids: torch.Tensor | None) -> torch.Tensor:
    """Rows in the student's order."""
    return table if ids is None else table[ids.to(table.device)]
