"""Of whole rows of a student's logits what a loss over all items needs: some of them, and the sum over the others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch.utils.checkpoint import checkpoint

from recbole_prune.anatomy.logits import scorer_with_lists
from recbole_prune.anatomy.scorers import OfPairs, Rows, Scorer
from recbole_prune.anatomy.vector_scorers import Vectors
from recbole_prune.anatomy.vectors import shared_propagation
from recbole_prune.sparse.contexts import SavingContext
from recbole_prune.sparse.missing_ids import with_stand_ins
from recbole_prune.sparse.pair_scores import pair_scores

if TYPE_CHECKING:
    from recbole.model.abstract_recommender import AbstractRecommender

# the log of a sum over nothing: below any logit that matters, and a number that can be computed with
NOTHING = -1e9
# logits that are held at once: 2 MB stay in a CPU's cache, a GPU wants more work at once
_LOGITS_AT_ONCE = {"cpu": 1 << 19, "cuda": 1 << 26}
# width of vectors up to which a product is taken the other way around
_NARROW = 16
# pairs whose way through a network is held at once
_PAIRS_AT_ONCE = 1 << 17

# logits of listed items, and the log of the sum over others
Found = tuple[torch.Tensor, torch.Tensor]
Parts = list[tuple[slice, torch.Tensor]]


def listed_and_rest(
    model: AbstractRecommender,
    rows: Rows,
    listed: torch.Tensor,
    outside: np.ndarray,
    bound: float | None = None,
) -> Found:
    """Logits of some items of each row, and the log of the sum of ``exp`` over the other ones; differentiable.

    Logits ``[b, items]`` are held once at most, where they are not part of the model's own way through a row: products
    of vectors some rows at a time, and in the backward pass again; pairs that go through a network likewise.

    Args:
        model: a RecBole model, in the mode of the caller's choice.
        rows: user ids ``[b]``, or RecBole's rows.
        listed: item ids ``[b, k]``, -1 where there are fewer.
        outside: what does not count among the others, besides padding: codes ``row * items + item``, ascending.
        bound: logits beyond it are cut to it, in either direction, and have no gradient.

    Returns:
        (logits of the listed items ``[b, k]``, NaN where an id is -1; logs of sums ``[b]``, :data:`NOTHING` where no
        item is left).

    Raises:
        ConfigError: the model's rows have no lists of items, or its class is unknown.
    """
    with shared_propagation(model):
        scorer, places = scorer_with_lists(model), with_stand_ins(listed)
        columns = scorer.item_count(model)
        if isinstance(scorer, Vectors) and _is_of_products(scorer):
            at_once = _LOGITS_AT_ONCE.get(listed.device.type, _LOGITS_AT_ONCE["cuda"])
            parts = _parts(listed, columns, outside, at_once)
            logits, rest = _of_products(model, scorer, rows, places, parts, bound)
        elif isinstance(scorer, OfPairs) and isinstance(rows, torch.Tensor):
            parts = _parts(listed, columns, outside, _PAIRS_AT_ONCE)
            logits, rest = _of_pairs(model, scorer, rows, places, parts, bound)
        else:
            [(_, hidden)] = _parts(listed, columns, outside, len(listed) * columns)
            logits, rest = _of_rows(model, scorer, rows, places, hidden, bound)
    return logits.masked_fill(listed < 0, torch.nan), rest


def _parts(listed: torch.Tensor, columns: int, outside: np.ndarray, at_once: int) -> Parts:
    """Rows whose logits are held together, and the places in them, row after row, of what does not count."""
    step = max(1, at_once // columns)
    starts = range(0, len(listed), step)
    cuts = np.searchsorted(outside, [start * columns for start in (*starts, len(listed))])
    codes = torch.from_numpy(outside).to(listed.device)
    return [
        (slice(start, start + step), codes[cut:end] - start * columns)
        for start, cut, end in zip(starts, cuts, cuts[1:])
    ]


def _is_of_products(scorer: Vectors) -> bool:
    return (type(scorer).all_logits, type(scorer).offset) == (Vectors.all_logits, Vectors.offset)


def _of_rows(
    model: AbstractRecommender,
    scorer: Scorer,
    rows: Rows,
    places: torch.Tensor,
    hidden: torch.Tensor,
    bound: float | None,
) -> Found:
    logits = scorer.all_logits(model, rows).float()
    if bound is not None:
        logits = logits.clamp(-bound, bound)
    others = logits.flatten().index_fill(0, hidden, NOTHING).view_as(logits)[:, 1:]
    return logits.gather(1, places), others.logsumexp(1).clamp(min=NOTHING)


def _of_pairs(
    model: AbstractRecommender,
    scorer: Scorer,
    users: torch.Tensor,
    places: torch.Tensor,
    parts: Parts,
    bound: float | None,
) -> Found:
    """Some rows at a time; what the network computes for them is dropped and computed again in the backward pass."""

    def of_some(users: torch.Tensor, places: torch.Tensor, hidden: torch.Tensor) -> Found:
        with shared_propagation(model):
            return _of_rows(model, scorer, users, places, hidden, bound)

    found = [checkpoint(of_some, users[some], places[some], hidden, use_reentrant=False) for some, hidden in parts]
    logits, rest = map(torch.cat, zip(*found))
    return logits, rest


def _of_products(
    model: AbstractRecommender,
    scorer: Vectors,
    rows: Rows,
    places: torch.Tensor,
    parts: Parts,
    bound: float | None,
) -> Found:
    queries, table = scorer.query(model, rows).float(), scorer.item_table(model).float()
    with torch.autocast(queries.device.type, enabled=False):
        logits = pair_scores(queries, table, places)
        rest: torch.Tensor = _RestOfProducts.apply(queries, table, parts, bound)
    return logits if bound is None else logits.clamp(-bound, bound), rest


class _RestContext(SavingContext, Protocol):
    parts: Parts
    bound: float | None


class _RestOfProducts(torch.autograd.Function):
    """``log sum_j exp(query . item_j)`` over the items of each row that count, by the gradient's formula."""

    @staticmethod
    def forward(
        ctx: _RestContext, queries: torch.Tensor, table: torch.Tensor, parts: Parts, bound: float | None
    ) -> torch.Tensor:
        rest = queries.new_empty(len(queries))
        for some, hidden in parts:
            logits = queries[some] @ table.t()
            if bound is not None:
                logits.clamp_(-bound, bound)
            logits.view(-1).index_fill_(0, hidden, NOTHING)
            logits[:, 0] = NOTHING
            rest[some] = logits.logsumexp(1)
        rest.clamp_(min=NOTHING)
        ctx.save_for_backward(queries, table, rest)
        ctx.parts, ctx.bound = parts, bound
        return rest

    @staticmethod
    def backward(ctx: _RestContext, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None, None]:
        """Every item has its share of the sum."""
        queries, table, rest = ctx.saved_tensors
        of_queries, of_table = torch.empty_like(queries), torch.zeros_like(table)
        weighted = queries * gradient[:, None]
        for some, hidden in ctx.parts:
            shares = queries[some] @ table.t()
            beyond = None if ctx.bound is None else shares.abs() > ctx.bound
            if ctx.bound is not None:
                shares.clamp_(-ctx.bound, ctx.bound)
            shares.sub_(rest[some, None]).exp_()
            shares.view(-1).index_fill_(0, hidden, 0.0)
            shares[:, 0] = 0.0
            if beyond is not None:
                shares.masked_fill_(beyond, 0.0)
            of_queries[some] = _product(shares, table)
            of_table += _product(shares.t(), weighted[some])
        return of_queries.mul_(gradient[:, None]), of_table, None, None


def _product(shares: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
    """``shares @ vectors``; of narrow vectors the other way around, which CPUs compute in half the time."""
    if vectors.shape[1] > _NARROW:
        return shares @ vectors
    return (vectors.t() @ shares.t()).t()
