"""Model classes of a user's own, in a module as a user would have one."""

from __future__ import annotations

from typing import Any

import torch
from recbole.model.abstract_recommender import GeneralRecommender
from recbole.model.general_recommender import LightGCN, bpr
from recbole.utils import InputType
from torch import nn


class Biased(GeneralRecommender):  # type: ignore[misc]
    """Dot products and an item bias, from nothing; reads a setting of its own."""

    input_type = InputType.PAIRWISE

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.users = nn.Embedding(self.n_users, config["embedding_size"])
        self.items = nn.Embedding(self.n_items, config["embedding_size"])
        self.bias = nn.Embedding(self.n_items, 1)
        self.strength = config["bias_strength"] or 1.0

    def score(self, users: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        """Scores of pairs, ``[pairs]``."""
        return (self.users(users) * self.items(items)).sum(-1) + self.strength * self.bias(items)[:, 0]

    def calculate_loss(self, interaction: Any) -> torch.Tensor:
        """BPR's."""
        users = interaction[self.USER_ID]
        better, worse = (self.score(users, interaction[name]) for name in (self.ITEM_ID, self.NEG_ITEM_ID))
        return -torch.log(torch.sigmoid(better - worse) + 1e-10).mean()

    def predict(self, interaction: Any) -> torch.Tensor:
        """Scores of pairs."""
        return self.score(interaction[self.USER_ID], interaction[self.ITEM_ID])

    def full_sort_predict(self, interaction: Any) -> torch.Tensor:
        """Scores of all items, flat."""
        products = self.users(interaction[self.USER_ID]) @ self.items.weight.T
        return (products + self.strength * self.bias.weight[:, 0]).view(-1)


class BPR(bpr.BPR):  # type: ignore[misc]
    """RecBole's name, and other scores."""

    def forward(self, user: torch.Tensor, item: torch.Tensor) -> Any:
        """Item vectors of twice the length."""
        users, items = super().forward(user, item)
        return users, 2 * items

    def full_sort_predict(self, interaction: Any) -> torch.Tensor:
        """Twice RecBole's scores."""
        return 2 * super().full_sort_predict(interaction)


class Deeper(LightGCN):  # type: ignore[misc]
    """A subclass of a model of RecBole's."""

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.n_layers = 3


class Gated(bpr.BPR):  # type: ignore[misc]
    """A layer of its own beside RecBole's tables, as wide as they are."""

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.gate = nn.Linear(self.embedding_size, 1)

    def forward(self, user: torch.Tensor, item: torch.Tensor) -> Any:
        """User vectors times a number that follows from them."""
        users, items = super().forward(user, item)
        return users * self.gate(users).sigmoid(), items

    def full_sort_predict(self, interaction: Any) -> torch.Tensor:
        """Products with all items."""
        users = self.user_embedding(interaction[self.USER_ID])
        return ((users * self.gate(users).sigmoid()) @ self.item_embedding.weight.T).view(-1)


class Normed(bpr.BPR):  # type: ignore[misc]
    """Divides by the deviation over all dimensions."""

    def full_sort_predict(self, interaction: Any) -> torch.Tensor:
        """Products of normalised vectors."""
        users = nn.functional.layer_norm(self.user_embedding(interaction[self.USER_ID]), [self.embedding_size])
        return (users @ self.item_embedding.weight.T).view(-1)
