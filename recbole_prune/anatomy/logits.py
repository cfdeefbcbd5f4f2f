"""A model's scores before any sigmoid: of pairs and batches, differentiable, and of all items for a teacher."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from recbole_prune.anatomy.scorers import Rows, Scorer, user_ids
from recbole_prune.anatomy.shared_calls import evaluating
from recbole_prune.anatomy.vector_scorers import Vectors
from recbole_prune.anatomy.vectors import reason_unknown, reason_without_lists, scorer_of, shared_propagation
from recbole_prune.errors import ConfigError

if TYPE_CHECKING:
    from recbole.data.interaction import Interaction
    from recbole.model.abstract_recommender import AbstractRecommender


def pair_logits(model: AbstractRecommender, rows: Rows, items: torch.Tensor) -> torch.Tensor:
    """Logits of some items for each row, differentiable.

    Args:
        model: a RecBole model, in the mode of the caller's choice.
        rows: user ids ``[b]`` of a general or knowledge-aware model, or RecBole's rows.
        items: item ids ``[b, k]``.

    Returns:
        ``[b, k]``.

    Raises:
        ConfigError: the model's rows have no lists of items, or its class is unknown.
    """
    with shared_propagation(model):
        return scorer_with_lists(model).logits(model, rows, items)


def user_logits(model: AbstractRecommender, items: torch.Tensor, users: torch.Tensor) -> torch.Tensor:
    """Logits of some users for each item, differentiable: :func:`pair_logits` seen from the items.

    Args:
        model: a general or knowledge-aware model of RecBole's, in the mode of the caller's choice.
        items: item ids ``[n]``.
        users: user ids ``[n, k]``.

    Returns:
        ``[n, k]``.

    Raises:
        ConfigError: the model's rows have no lists of items, or its class is unknown.
    """
    with shared_propagation(model):
        return scorer_with_lists(model).user_logits(model, items, users)


def product_tables(model: AbstractRecommender, pairs: int) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Vectors of all users and of all items, differentiable, where a logit is their plain product.

    Args:
        model: in the mode of the caller's choice.
        pairs: of users and items whose logits are wanted.

    Returns:
        ``[users, width]`` and ``[items, width]``; None where logits are something else, where users are histories, or
        where the vectors of those that occur in so few pairs cost less than all.
    """
    scorer = scorer_with_lists(model)
    if not isinstance(scorer, Vectors) or scorer.of_rows or not scorer.dot or not scorer.pays_all_users(model, pairs):
        return None
    with shared_propagation(model):
        users = torch.arange(int(model.n_users), device=model.device)
        return scorer.user_vectors(model, users), scorer.item_table(model)


def factors_of_pairs(model: AbstractRecommender, rows: Rows, pairs: int) -> tuple[torch.Tensor, torch.Tensor] | None:
    """What :func:`pair_logits` multiplies, differentiable, where a logit is a plain product of vectors.

    Args:
        model, rows: as for :func:`pair_logits`.
        pairs: of rows and items whose logits are wanted.

    Returns:
        vectors of the rows ``[b, width]`` and of all items ``[items, width]``; None where logits are something else, or
        where the vectors of the items in so few pairs cost less than all.
    """
    scorer = scorer_with_lists(model)
    if not isinstance(scorer, Vectors):
        return None
    with shared_propagation(model):
        return scorer.factors(model, rows, pairs)


def evaluated_factors(model: AbstractRecommender) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Vectors of all users and items as they are in evaluation, free of gradients, whose products are the logits.

    Returns:
        ``[users, width]`` and ``[items, width]``; None where logits are something else, or where users are histories.
    """
    scorer = scorer_with_lists(model)
    if not isinstance(scorer, Vectors) or scorer.of_rows or not scorer.dot:
        return None
    users, items = scorer.tables(model)
    assert users is not None, "of a model whose users are no histories"
    return users, items


def row_logits(model: AbstractRecommender, rows: Rows) -> torch.Tensor:
    """Logits of all items for each row, differentiable, ``[b, items]``: for models whose loss is over whole rows.

    Column 0 is padding. Arguments and errors as :func:`pair_logits`.
    """
    with shared_propagation(model):
        return scorer_with_lists(model).all_logits(model, rows)


def batch_logits(model: AbstractRecommender, batch: Interaction) -> torch.Tensor:
    """The logit of every row of a batch (of context-aware models) or of its item (of others), differentiable, ``[b]``.

    Raises:
        ConfigError: the model's class is unknown.
    """
    with shared_propagation(model):
        return _scorer(model).batch_logits(model, batch)


def scorer_with_lists(model: AbstractRecommender) -> Scorer:
    """How a model scores lists of items.

    Raises:
        ConfigError: its rows have none, or its class is unknown.
    """
    reason = reason_without_lists(type(model))
    if reason:
        raise ConfigError(reason)
    return _scorer(model)


def _scorer(model: AbstractRecommender) -> Scorer:
    scorer = scorer_of(model)
    if scorer is None:
        raise ConfigError(reason_unknown(type(model)))
    return scorer


@torch.no_grad()
def score_rows(model: AbstractRecommender, rows: Rows, item_features: Interaction | None = None) -> torch.Tensor:
    """Scores of all items in evaluation mode, free of gradients: of a teacher.

    They are logits where those are known, else what ``full_sort_predict`` or else ``predict`` gives. A model that is
    asked for many rows propagates once inside :func:`shared_propagation`.

    Args:
        model: a RecBole model; non-gradient ones too.
        rows: user ids ``[b]`` or RecBole's rows.
        item_features: RecBole's features of all items, for models that read them from the rows (context-aware ones).

    Returns:
        ``[b, items]``; column 0 is padding.

    Raises:
        ConfigError: the model needs ``item_features`` and has none.
    """
    scorer = scorer_of(model)
    with evaluating(model), shared_propagation(model):
        if scorer is not None and not scorer.no_lists:
            return scorer.all_logits(model, rows)
        return _own_scores(model, scorer, _interaction(model, rows), item_features)


def _interaction(model: AbstractRecommender, rows: Rows) -> Interaction:
    from recbole.data.interaction import Interaction

    return Interaction({model.USER_ID: user_ids(model, rows)}) if isinstance(rows, torch.Tensor) else rows


def _own_scores(
    model: AbstractRecommender, scorer: Scorer | None, rows: Interaction, item_features: Interaction | None
) -> torch.Tensor:
    """As RecBole's evaluation: all items at once, or every row beside every item."""
    if scorer is None:
        try:
            scores: torch.Tensor = model.full_sort_predict(rows)
            return scores.reshape(len(rows), -1)
        except NotImplementedError:
            pass
    if item_features is None:
        raise ConfigError(f"{type(model).__name__} scores pairs and needs the features of the items beside each row")
    pairs = rows.repeat_interleave(len(item_features))
    pairs.update(item_features.repeat(len(rows)))
    pairs = pairs.to(model.device)
    scores = model.predict(pairs) if scorer is None else scorer.batch_logits(model, pairs)
    return scores.reshape(len(rows), -1)
