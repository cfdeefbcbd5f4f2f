"""UltraGCN: a graph recommender without message passing.

Source: Mao et al., "UltraGCN: Ultra Simplification of Graph Convolutional Networks for Recommendation", CIKM 2021,
arXiv 2110.15114, and the authors' code. Where the two differ, the code is the default (``item_item_weighting``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from recbole.model.abstract_recommender import GeneralRecommender
from recbole.utils import InputType
from torch import nn
from torch.nn import functional

from recbole_prune.errors import ConfigError
from recbole_prune.sparse.contexts import SavingContext
from recbole_prune.sparse.pair_scores import pair_scores

if TYPE_CHECKING:
    from recbole.config import Config
    from recbole.data.dataset import Dataset
    from recbole.data.interaction import Interaction

# rows of the item-item matrix made at once
_ROWS_AT_ONCE = 1024


class _Context(SavingContext, Protocol):
    skipped: int


class _HalfSquares(torch.autograd.Function):
    """Half the sum of the squares of a tensor without its first entries, with one pass forward and one back."""

    @staticmethod
    def forward(ctx: _Context, values: torch.Tensor, skipped: int) -> torch.Tensor:
        ctx.skipped = skipped
        ctx.save_for_backward(values)
        counted = values.reshape(-1)[skipped:]
        return counted.dot(counted) / 2

    @staticmethod
    def backward(ctx: _Context, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        (values,) = ctx.saved_tensors
        result = values * gradient
        result.view(-1)[: ctx.skipped] = 0
        return result, None


class UltraGCN(GeneralRecommender):
    """UltraGCN as a RecBole model.

    The loss of a batch of positives is a sum, not a mean: weighted softplus terms of the positives, of
    ``negative_num`` random items for each (weight ``negative_weight`` over their number) and of the most similar items
    of each positive (``item_item_weight``), plus ``reg_weight`` / 2 times the squared length of both tables without
    their padding rows. Scores are dot products. Negatives are drawn here, from torch's global stream, among all real
    items. Where the data has a label field, positives are the interactions with a label above 0.

    Args:
        config: RecBole's config; the settings are explained in ``properties/model/UltraGCN.yaml``.
        dataset: the training part.

    Raises:
        ConfigError: the data loader is to draw negatives too.
    """

    input_type = InputType.POINTWISE

    def __init__(self, config: Config, dataset: Dataset) -> None:
        super().__init__(config, dataset)
        sampling = config["train_neg_sample_args"]
        if sampling["distribution"] != "none":
            raise ConfigError(
                f"train_neg_sample_args={dict(sampling)}: UltraGCN draws its negatives itself and takes every row of a "
                "batch as a positive; leave the key out, or set it to ~ (no negative sampling)"
            )
        self.label_field = config["LABEL_FIELD"]
        self.weights = [float(config[name]) for name in ("w1", "w2", "w3", "w4")]
        self.negative_num = int(config["negative_num"])
        self.negative_weight = float(config["negative_weight"])
        self.reg_weight = float(config["reg_weight"])
        self.item_item_weight = float(config["item_item_weight"])
        interactions = self._positives(dataset)
        user_factor, item_factor = degree_factors(interactions)
        similar, similarity = similar_items(
            interactions, int(config["similar_item_num"]), config["item_item_weighting"] == "paper"
        )
        for name, value in (
            ("user_factor", torch.from_numpy(user_factor).float()),
            ("item_factor", torch.from_numpy(item_factor).float()),
            ("similar", torch.from_numpy(similar)),
            ("similarity", torch.from_numpy(similarity).float()),
        ):
            self.register_buffer(name, value, persistent=False)  # the data says them; checkpoints need not
        self.user_embedding = nn.Embedding(self.n_users, config["embedding_size"])
        self.item_embedding = nn.Embedding(self.n_items, config["embedding_size"])
        for table in (self.user_embedding, self.item_embedding):
            nn.init.normal_(table.weight, std=float(config["initial_std"]))

    def _positives(self, dataset: Dataset) -> sp.csr_matrix:
        """``[users, items]``: 1 for a positive, however often it is in the data."""
        label = self.label_field if self.label_field in dataset.inter_feat.columns else None
        return (dataset.inter_matrix(form="csr", value_field=label) > 0).astype(np.float64)

    def forward(self, users: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        """Scores of items ``[batch, n]`` for users ``[batch]``, shape ``[batch, n]``."""
        if self.n_items <= items.numel():
            return pair_scores(self.user_embedding(users), self.item_embedding.weight, items)
        rows, places = items.unique(return_inverse=True)  # a catalogue of which a batch sees a part
        return pair_scores(self.user_embedding(users), self.item_embedding(rows), places)

    def calculate_loss(self, interaction: Interaction) -> torch.Tensor:
        """The loss of the positives of a batch; draws the negatives."""
        if self.label_field in interaction:
            interaction = interaction[interaction[self.label_field] > 0]
        users, positives = interaction[self.USER_ID], interaction[self.ITEM_ID]
        negatives = torch.randint(1, self.n_items, (len(users), self.negative_num), device=users.device)
        return self.loss_of(users, positives, negatives)

    def loss_of(self, users: torch.Tensor, positives: torch.Tensor, negatives: torch.Tensor) -> torch.Tensor:
        """The loss of positives ``[batch]`` and given negatives ``[batch, n]``."""
        liked = torch.cat([positives.unsqueeze(1), self.similar[positives]], dim=1)
        scores = self(users, torch.cat([liked, negatives], dim=1))
        # disliked items count by their score, liked ones by the opposite
        signs = scores.new_ones(scores.shape[1])
        signs[: liked.shape[1]] = -1
        losses = self._weights(users, positives, negatives) * functional.softplus(scores * signs)
        return losses.sum() + self._l2()

    def _weights(self, users: torch.Tensor, positives: torch.Tensor, negatives: torch.Tensor) -> torch.Tensor:
        """What the positive, its similar items and the negatives weigh in the loss, ``[batch, 1 + similar + n]``."""
        w1, w2, w3, w4 = self.weights
        share = self.negative_weight / max(1, negatives.shape[1])
        user_factor = self.user_factor[users].unsqueeze(1)
        of_negatives = self.item_factor.take(negatives).mul_(user_factor * (w4 * share)).add_(w3 * share)
        of_positives = w1 + w2 * user_factor * self.item_factor[positives].unsqueeze(1)
        return torch.cat([of_positives, self.item_item_weight * self.similarity[positives], of_negatives], dim=1)

    def _l2(self) -> torch.Tensor:
        """Half the squared length of both tables without the padding row, times ``reg_weight``."""
        squares: torch.Tensor = self.user_factor.new_zeros(())
        for table in (self.user_embedding, self.item_embedding):
            # the parameter rather than the weight: pruned entries are 0, and compact storage has none of them
            rows = getattr(table, "rows", None)
            padding = table.embedding_dim if rows is None else rows.span(0, 1).stop
            squares = squares + _HalfSquares.apply(next(table.parameters()), padding)
        return self.reg_weight * squares

    def predict(self, interaction: Interaction) -> torch.Tensor:
        """Scores of the pairs of a batch."""
        users, items = interaction[self.USER_ID], interaction[self.ITEM_ID]
        scores: torch.Tensor = (self.user_embedding(users) * self.item_embedding(items)).sum(dim=1)
        return scores

    def full_sort_predict(self, interaction: Interaction) -> torch.Tensor:
        """Scores of all items for the users of a batch, flattened."""
        users = interaction[self.USER_ID]
        scores: torch.Tensor = self.user_embedding(users) @ self.item_embedding.weight.t()
        return scores.view(-1)


def degree_factors(interactions: sp.csr_matrix) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The two factors of beta, the weight of a pair: ``beta_ui = sqrt(d_u + 1) / d_u * 1 / sqrt(d_i + 1)``.

    Args:
        interactions: ``[users, items]``, 1 for a positive.

    Returns:
        factors of users (0 for those without interactions) and of items (1 for those without, as in the authors' code),
        float64.
    """
    users, items = (np.asarray(interactions.sum(axis=axis)).ravel() for axis in (1, 0))
    return _over(np.sqrt(users + 1), users), 1 / np.sqrt(items + 1)


def similar_items(
    interactions: sp.csr_matrix, count: int, paper: bool = False
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The items with the largest omega for each item, largest first, equal ones by id.

    With ``G = R^T R`` and its row sums g: ``omega_ij = G_ij * sqrt(g_i + 1) / g_i / sqrt(g_j + 1)`` as in the authors'
    code, where an item is its own neighbour, or ``G_ij / (g_i - G_ii) * sqrt(g_i / g_j)`` as in the paper (equation
    16), where it is not. Memory grows with the entries of some rows of G.

    Returns:
        ids and omegas, shape ``[items, count]``; where fewer items co-occur, id 0 with omega 0.
    """
    interactions = interactions.tocsr()
    transposed, items = interactions.T.tocsr(), interactions.shape[1]
    sizes = np.asarray(interactions.sum(axis=1)).ravel()
    sums, degrees = transposed @ sizes, np.asarray(interactions.sum(axis=0)).ravel()
    if paper:
        of_row, of_column = _over(np.sqrt(sums), sums - degrees), _over(1.0, np.sqrt(sums))
    else:
        of_row, of_column = _over(np.sqrt(sums + 1), sums), 1 / np.sqrt(sums + 1)
    ids, omegas = np.zeros((items, count), dtype=np.int64), np.zeros((items, count))
    for first in range(0, items, _ROWS_AT_ONCE):
        block = (transposed[first : first + _ROWS_AT_ONCE] @ interactions).tocsr()
        block.sort_indices()
        for row in range(block.shape[0]):
            item = first + row
            entries = slice(block.indptr[row], block.indptr[row + 1])
            columns = block.indices[entries]
            values = block.data[entries] * of_row[item] * of_column[columns]
            if paper:
                columns, values = columns[columns != item], values[columns != item]
            if len(values) > count > 0:  # leave few to sort
                near = values >= np.partition(values, -count)[-count]
                columns, values = columns[near], values[near]
            best = np.argsort(-values, kind="stable")[:count]
            ids[item, : len(best)], omegas[item, : len(best)] = columns[best], values[best]
    return ids, omegas


def _over(numerator: NDArray[np.float64] | float, denominator: NDArray[np.float64]) -> NDArray[np.float64]:
    """A quotient that is 0 where the denominator is."""
    quotient = np.zeros(denominator.shape)
    np.divide(numerator, denominator, out=quotient, where=denominator != 0)
    return quotient
