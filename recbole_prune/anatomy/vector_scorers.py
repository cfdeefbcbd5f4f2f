"""The kinds of scoring by a vector of the user or row and one of the item: looked up, propagated, decoded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from recbole_prune.anatomy.scorers import Rows, Scorer, user_ids
from recbole_prune.anatomy.shared_calls import call, evaluating, input_of, sharing
from recbole_prune.sparse.distinct import distinct
from recbole_prune.sparse.pair_scores import pair_scores

if TYPE_CHECKING:
    from recbole.model.abstract_recommender import AbstractRecommender

_USERS_AT_ONCE = 1 << 10
# nearly every user occurs among so many drawn ones per user
_DRAWS_OF_USER = 8


@dataclass(frozen=True)
class Vectors(Scorer):
    """Scoring by a vector of the user (of the row, in sequential models) and one of the item. It holds no model.

    Attributes:
        dot: the score is the plain dot product of the two vectors.
        shared_space: both have one width and are compared coordinate by coordinate, so that cosines say something.
        of_rows: the user vector is that of a row (a history) and not of a user id.
    """

    dot: bool = True
    shared_space: bool = True
    of_rows: bool = False

    def user_vectors(self, model: AbstractRecommender, rows: Rows) -> torch.Tensor:
        """The vectors of users (ids or rows ``[b]``), differentiable, ``[b, width]``."""
        raise NotImplementedError

    def item_table(self, model: AbstractRecommender) -> torch.Tensor:
        """The vectors of all items, differentiable, ``[items, width]``; row 0 is padding and means nothing."""
        return self.item_vectors(model, self.all_items(model))

    def item_vectors(self, model: AbstractRecommender, items: torch.Tensor) -> torch.Tensor:
        """The vectors of item ids of any shape, differentiable, ``[..., width]``."""
        return self.item_table(model)[items]

    @torch.no_grad()
    def tables(self, model: AbstractRecommender) -> tuple[torch.Tensor | None, torch.Tensor]:
        """All vectors as they are in evaluation, free of gradients: of a teacher.

        Returns:
            (users ``[users, width]`` or None where they are of rows, items ``[items, width]``); rows 0 are padding.
        """
        with evaluating(model), sharing(model, self.methods):
            items = self.item_table(model).clone()
            if self.of_rows:
                return None, items
            ids = torch.arange(int(model.n_users), device=model.device)
            return torch.cat([self.user_vectors(model, part) for part in ids.split(_USERS_AT_ONCE)]), items

    @torch.no_grad()
    def widths(self, model: AbstractRecommender) -> tuple[int, int]:
        """The widths of user and item vectors."""
        one = torch.ones(1, dtype=torch.long, device=model.device)
        with evaluating(model), sharing(model, self.methods):
            width = self.item_vectors(model, one).shape[-1]
            # what is compared with item vectors coordinate by coordinate is as wide
            return (width if self.of_rows else self.user_vectors(model, one).shape[-1]), width

    def query(self, model: AbstractRecommender, rows: Rows) -> torch.Tensor:
        """What the item vectors are multiplied with, ``[b, item width]``."""
        return self.user_vectors(model, rows)

    def offset(self, model: AbstractRecommender, rows: Rows, items: torch.Tensor) -> torch.Tensor | None:
        """What is added to the products for items of any shape that ends in ``[..., k]``."""
        return None

    def logits(self, model: AbstractRecommender, rows: Rows, items: torch.Tensor) -> torch.Tensor:
        """Products of queries and item vectors, plus offsets."""
        query = self.query(model, rows)
        if self._has_table(model, items.numel()):
            products = pair_scores(query, self.item_table(model), items)
        else:
            found, places = distinct(items, self.item_count(model))
            products = pair_scores(query, self.item_vectors(model, found), places)
        offset = self.offset(model, rows, items)
        return products if offset is None else products + offset

    def factors(self, model: AbstractRecommender, rows: Rows, pairs: int) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Queries and the item table, where their products are logits and it costs no more than the rows of so many."""
        if not self.dot or not self._has_table(model, pairs):
            return None
        return self.query(model, rows), self.item_table(model)

    def user_logits(self, model: AbstractRecommender, items: torch.Tensor, users: torch.Tensor) -> torch.Tensor:
        """Products of item vectors and the queries of the users that occur, plus offsets."""
        count, vectors = int(model.n_users), self.item_vectors(model, items)
        if self.pays_all_users(model, users.numel()):
            products = pair_scores(vectors, self.query(model, torch.arange(count, device=users.device)), users)
        else:
            found, places = distinct(users, count)
            products = pair_scores(vectors, self.query(model, found), places)
        offset = self.offset(model, users.reshape(-1), items[:, None].expand_as(users).reshape(-1, 1))
        return products if offset is None else products + offset.view(users.shape)

    def pays_all_users(self, model: AbstractRecommender, pairs: int) -> bool:
        """Whether vectors of all users cost less than telling apart those that occur in so many pairs."""
        return int(model.n_users) * _DRAWS_OF_USER <= pairs

    def _has_table(self, model: AbstractRecommender, pairs: int) -> bool:
        """Whether the whole table costs no more than the rows of so many items."""
        return self.item_count(model) <= pairs

    def all_logits(self, model: AbstractRecommender, rows: Rows) -> torch.Tensor:
        """One matrix product."""
        products = self.query(model, rows) @ self.item_table(model).t()
        offset = self.offset(model, rows, self.all_items(model).expand(len(rows), -1))
        return products if offset is None else products + offset


@dataclass(frozen=True)
class LookedUp(Vectors):
    """Vectors are rows of two tables.

    Attributes:
        users, items: names of the tables.
    """

    users: str = "user_embedding"
    items: str = "item_embedding"

    def user_vectors(self, model: AbstractRecommender, rows: Rows) -> torch.Tensor:
        """Rows of the user table."""
        vectors: torch.Tensor = getattr(model, self.users)(user_ids(model, rows))
        return vectors

    def item_vectors(self, model: AbstractRecommender, items: torch.Tensor) -> torch.Tensor:
        """Rows of the item table."""
        vectors: torch.Tensor = getattr(model, self.items)(items)
        return vectors

    def item_table(self, model: AbstractRecommender) -> torch.Tensor:
        """The item table, without what stands behind the items (entities)."""
        table: torch.Tensor = getattr(model, self.items).weight
        count = self.item_count(model)
        return table if len(table) == count else table[:count]  # a slice costs a copy in the backward pass


@dataclass(frozen=True)
class Propagated(Vectors):
    """Vectors are rows of two tables that one call computes.

    Attributes:
        path: of the method, whose first two results are users and items; entities may follow the items.
        argument: name of the model's attribute that it takes.
    """

    path: str = "forward"
    argument: str = ""

    def propagate(self, model: AbstractRecommender) -> tuple[torch.Tensor, torch.Tensor]:
        """Both tables."""
        arguments = [getattr(model, self.argument)] if self.argument else []
        found = call(model, self.path, *arguments, whole=True)
        return found[0], found[1][: self.item_count(model)]

    def user_vectors(self, model: AbstractRecommender, rows: Rows) -> torch.Tensor:
        """Rows of the first table."""
        return self.propagate(model)[0][user_ids(model, rows)]

    def item_table(self, model: AbstractRecommender) -> torch.Tensor:
        """The second table."""
        return self.propagate(model)[1]

    def _has_table(self, model: AbstractRecommender, pairs: int) -> bool:
        return True


@dataclass(frozen=True)
class Decoded(Vectors):
    """Autoencoders: the user vector is what the last layer reads, an item vector is a row of that layer.

    Attributes:
        decoder: name of the module whose last linear layer it is.
    """

    dot: bool = False  # the layer adds a bias
    methods: tuple[str, ...] = ("get_rating_matrix", "forward")
    decoder: str = "decoder"

    def layer(self, model: AbstractRecommender) -> nn.Linear:
        """The last linear layer."""
        return last_linear(getattr(model, self.decoder))

    def arguments(self, model: AbstractRecommender, users: torch.Tensor) -> Iterator[object]:
        """What ``forward`` takes."""
        yield call(model, "get_rating_matrix", users)

    def user_vectors(self, model: AbstractRecommender, rows: Rows) -> torch.Tensor:
        """The last layer's input."""
        return input_of(self.layer(model), model, "forward", *self.arguments(model, user_ids(model, rows)))

    def item_table(self, model: AbstractRecommender) -> torch.Tensor:
        """The last layer's weight."""
        return self.layer(model).weight

    def offset(self, model: AbstractRecommender, rows: Rows, items: torch.Tensor) -> torch.Tensor:
        """The last layer's bias."""
        return self.layer(model).bias[items]

    def _has_table(self, model: AbstractRecommender, pairs: int) -> bool:
        return True


def last_linear(module: nn.Module) -> nn.Linear:
    """The last linear layer of a module."""
    return [part for part in module.modules() if isinstance(part, nn.Linear)][-1]
