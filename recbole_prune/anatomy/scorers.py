"""The kinds of scoring that RecBole's models have: by pairs, by whole rows, by bundles of fields, and by vectors.

Those by vectors are in ``vector_scorers.py``.
``general_scorers.py``, ``sequential_scorers.py`` and ``context_scorers.py`` say which class is of which kind;
``vectors.py`` and ``logits.py`` are what others call.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Union

import torch
from torch import nn

from recbole_prune.sparse.distinct import distinct

if TYPE_CHECKING:
    from recbole.data.interaction import Interaction
    from recbole.model.abstract_recommender import AbstractRecommender

# user ids [b] of a general recommender, or RecBole's rows
Rows = Union[torch.Tensor, "Interaction"]

# pairs of a row and an item that go through a network at once
_PAIRS_AT_ONCE = 1 << 14
_USERS_AT_ONCE = 1 << 10


def user_ids(model: AbstractRecommender, rows: Rows) -> torch.Tensor:
    """The user ids of rows, ``[b]``."""
    ids: torch.Tensor = rows if isinstance(rows, torch.Tensor) else rows[model.USER_ID]
    return ids


@dataclass(frozen=True)
class Scorer:
    """How a class of models scores.

    Attributes:
        no_vectors: why it has no user and item vectors, a sentence without its subject; "" where it has.
        no_lists: why a row has no list of items, likewise.
        no_fields: why the vectors of a row's fields say nothing, likewise.
        methods: what its loss computes that its scores may use again (:func:`shared_calls.sharing`).
    """

    no_vectors: str = ""
    no_lists: str = ""
    no_fields: str = "is not context-aware, so its rows are no bundles of fields"
    methods: tuple[str, ...] = ("forward",)

    def on(self, model: AbstractRecommender) -> Scorer:
        """The scorer of one model, whose settings may decide."""
        return self

    def layer(self, model: AbstractRecommender) -> nn.Module | None:
        """The layer to watch in the calls of :attr:`methods`."""
        return None

    def item_count(self, model: AbstractRecommender) -> int:
        """Number of items, the padding item 0 included."""
        return int(model.n_items)

    def all_items(self, model: AbstractRecommender) -> torch.Tensor:
        """Every item id, ``[items]``."""
        return torch.arange(self.item_count(model), device=model.device)

    def logits(self, model: AbstractRecommender, rows: Rows, items: torch.Tensor) -> torch.Tensor:
        """Logits of items ``[b, k]`` for rows ``[b]``, differentiable, ``[b, k]``."""
        raise NotImplementedError

    def all_logits(self, model: AbstractRecommender, rows: Rows) -> torch.Tensor:
        """Logits of all items for rows ``[b]``, ``[b, items]``."""
        parts = self.all_items(model).split(max(1, _PAIRS_AT_ONCE // len(rows)))
        return torch.cat([self.logits(model, rows, part.expand(len(rows), -1)) for part in parts], dim=1)

    def user_logits(self, model: AbstractRecommender, items: torch.Tensor, users: torch.Tensor) -> torch.Tensor:
        """Logits of items ``[n]`` for user ids ``[n, k]``, differentiable, ``[n, k]``."""
        repeated = items.repeat_interleave(users.shape[1]).unsqueeze(1)
        return self.logits(model, users.reshape(-1), repeated).view(users.shape)

    def batch_logits(self, model: AbstractRecommender, batch: Interaction) -> torch.Tensor:
        """The logit of every row of a batch and its item, ``[b]``."""
        return self.logits(model, batch, batch[model.ITEM_ID].unsqueeze(1)).squeeze(1)

    def ranked(self, model: AbstractRecommender, logits: torch.Tensor) -> torch.Tensor:
        """What ``full_sort_predict`` gives where the logits are these."""
        return logits

    def predicted(self, model: AbstractRecommender, logits: torch.Tensor) -> torch.Tensor:
        """What ``predict`` gives where the logits are these."""
        return self.ranked(model, logits)


@dataclass(frozen=True)
class OfPairs(Scorer):
    """Scoring by a network that reads a row and an item; a base before :class:`Vectors` where there are some.

    Attributes:
        fields: names of the model's attributes that name the fields of a row; general models read the user only.
    """

    fields: tuple[str, ...] = ("USER_ID",)

    def of_pairs(self, model: AbstractRecommender, items: torch.Tensor, *fields: torch.Tensor) -> torch.Tensor:
        """Logits ``[pairs]`` of items and the fields of their rows."""
        logits: torch.Tensor = model.forward(*fields, items)
        return logits

    def logits(self, model: AbstractRecommender, rows: Rows, items: torch.Tensor) -> torch.Tensor:
        """Every pair through the network."""
        fields = [rows] if isinstance(rows, torch.Tensor) else [rows[getattr(model, name)] for name in self.fields]
        repeated = [field.repeat_interleave(items.shape[1], dim=0) for field in fields]
        return self.of_pairs(model, items.reshape(-1), *repeated).reshape(items.shape)

    def all_logits(self, model: AbstractRecommender, rows: Rows) -> torch.Tensor:
        """Every pair, some items at a time."""
        return Scorer.all_logits(self, model, rows)

    def user_logits(self, model: AbstractRecommender, items: torch.Tensor, users: torch.Tensor) -> torch.Tensor:
        """Every pair."""
        return Scorer.user_logits(self, model, items, users)


@dataclass(frozen=True)
class WholeRows(Scorer):
    """Scoring of all items of a row at once, without vectors."""

    def all_logits(self, model: AbstractRecommender, rows: Rows) -> torch.Tensor:
        """What the model computes for a row."""
        raise NotImplementedError

    def logits(self, model: AbstractRecommender, rows: Rows, items: torch.Tensor) -> torch.Tensor:
        """Some of them."""
        return self.all_logits(model, rows).gather(1, items)

    def user_logits(self, model: AbstractRecommender, items: torch.Tensor, users: torch.Tensor) -> torch.Tensor:
        """Some of the rows of all users that occur, some users at a time."""
        found, places = distinct(users.reshape(-1), int(model.n_users))
        repeated, parts, values = items.repeat_interleave(users.shape[1]), [], []
        for number, some in enumerate(found.split(_USERS_AT_ONCE)):
            pairs = (places // _USERS_AT_ONCE == number).nonzero().squeeze(1)
            rows = self.all_logits(model, some)
            values.append(rows[places[pairs] - number * _USERS_AT_ONCE, repeated[pairs]])
            parts.append(pairs)
        return torch.cat(values)[torch.cat(parts).argsort()].view(users.shape)
