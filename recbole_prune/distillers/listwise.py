"""The listwise loss of RRD, IR-RRD and those after them, and the lists that it is fed with."""

from __future__ import annotations

import numpy as np
import torch

from recbole_prune.data.membership import UsedIds
from recbole_prune.sparse.contexts import SavingContext

# below any score that matters; e to this power is 0 and, unlike that of -inf, has the gradient 0
_NOWHERE = -1e9


def plackett_luce(ranked: torch.Tensor, below: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood of a ranked list above a set, one value per row.

    For scores ``s_1..s_K`` of a list, best first, and ``r_1..r_L`` of a set without order:
    ``sum_k [log(sum_{i >= k} exp s_i + sum_j exp r_j) - s_k]``, the ListMLE probability cut off after ``K`` choices
    (Kang et al., CIKM 2020, RRD; methods/distillation_ranking.md 1.2), by logsumexp and without clamps.

    Args:
        ranked: logits ``[rows, K]``; NaN where a list is shorter.
        below: logits ``[rows, L]``, likewise.

    Returns:
        losses ``[rows]``.
    """
    # half precision has no number below any score that matters
    precision = torch.promote_types(torch.promote_types(ranked.dtype, below.dtype), torch.float32)
    losses: torch.Tensor = _PlackettLuce.apply(ranked.to(precision), below.to(precision))
    return losses


class _PlackettLuce(torch.autograd.Function):
    """By the formulas of the gradient, which need one pass over the list; ``logcumsumexp`` and its own are ten times
    slower on a CPU than adding up column after column.
    """

    @staticmethod
    def forward(ctx: SavingContext, ranked: torch.Tensor, below: torch.Tensor) -> torch.Tensor:
        columns, rest = (torch.where(scores.isnan(), _NOWHERE, scores).t().contiguous() for scores in (ranked, below))
        tails = torch.empty_like(columns)
        tail = rest.logsumexp(0) if len(rest) else rest.new_full(rest.shape[1:], _NOWHERE)
        for place in reversed(range(len(columns))):
            tail = torch.logaddexp(tail, columns[place], out=tails[place])
        listed = ~ranked.isnan().t()
        ctx.save_for_backward(columns, rest, tails, listed)
        return torch.where(listed, tails - columns, 0.0).sum(0)

    @staticmethod
    def backward(ctx: SavingContext, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """With ``D_k`` the k-th sum: ``-1 + exp(s_k) sum_{q <= k} 1 / D_q``, and ``exp(r_j) sum_k 1 / D_k``."""
        columns, rest, tails, listed = ctx.saved_tensors
        heads = torch.where(listed, -tails, _NOWHERE)
        for place in range(1, len(heads)):
            torch.logaddexp(heads[place - 1], heads[place], out=heads[place])
        of_ranked = torch.where(listed, torch.expm1(columns + heads), 0.0)
        of_rest = (rest + heads[-1]).exp() if len(heads) else torch.zeros_like(rest)
        return (of_ranked * gradient).t(), (of_rest * gradient).t()


def draw_ranks(
    lengths: np.ndarray, count: int, sharpness: float, longest: int, stream: np.random.Generator
) -> np.ndarray:
    """Draw ranks without replacement, a rank ``k`` with weight ``exp(-k / sharpness)``; ascending in every row.

    The exponential race (Efraimidis and Spirakis 2006): the ``count`` smallest of ``Exp(1) / weight`` are such a draw.

    Args:
        lengths: how long each row's list is, ``[rows]``.
        count: ranks to draw for a row; rows with shorter lists get all of theirs.
        sharpness: the ``T`` of the paper.
        longest: width of the lists.
        stream: random numbers.

    Returns:
        0-based ranks ``[rows, count]``, -1 where a list has no more.
    """
    race = stream.standard_exponential((len(lengths), longest), dtype=np.float32)
    keys = np.log(np.maximum(race, np.finfo(np.float32).tiny))
    keys += np.arange(longest, dtype=np.float32) / np.float32(sharpness)
    keys[np.arange(longest) >= lengths[:, None]] = np.inf
    count = min(count, longest)
    drawn = np.sort(np.argpartition(keys, count - 1, axis=1)[:, :count], axis=1)
    # places beyond a list sort last, since a list begins at rank 0
    return np.where(drawn < lengths[:, None], drawn, -1)


def draw_outside(used: UsedIds, count: int, first: int, stream: np.random.Generator) -> np.ndarray:
    """Draw values that a key has not used, uniformly and without replacement.

    Args:
        used: what each key must not get.
        count: values for each key.
        first: the smallest value; those below are padding.
        stream: random numbers.

    Returns:
        values ``[keys, count]`` in no order, -1 where a key has fewer left.
    """
    keys, values = used.key_count, used.value_count
    left = values - first - np.diff(used.offsets)  # padding is never used
    drawn = np.full((keys, count), -1, dtype=np.int64)
    rows = np.flatnonzero(left >= 2 * count)
    pending = np.repeat(rows, count), np.tile(np.arange(count), len(rows))
    while len(pending[0]):
        drawn[pending] = stream.integers(first, values, len(pending[0]))
        wrong = used.contains(pending[0], drawn[pending])
        wrong |= _repeated(drawn, pending)
        pending = pending[0][wrong], pending[1][wrong]
    for row in np.flatnonzero((left < 2 * count) & (left > 0)):
        free = np.setdiff1d(np.arange(first, values), used.values_of(int(row)), assume_unique=True)
        chosen = stream.permutation(free)[:count]
        drawn[row, : len(chosen)] = chosen
    return drawn


def draw_unused(used: UsedIds, count: int, first: int, stream: np.random.Generator) -> np.ndarray:
    """Draw values that a key has not used, uniformly and with replacement.

    Args:
        used: what each key must not get; none of it is below ``first``.
        count: values for each key.
        first: the smallest value; those below are padding.
        stream: random numbers.

    Returns:
        values ``[keys, count]``, -1 for a key that has used all.
    """
    taken = np.diff(used.offsets)
    left = used.value_count - first - taken
    places = (stream.random((used.key_count, count)) * left[:, None]).astype(np.int64)
    # a value stands behind as many unused ones as there are values below it that are not used
    keys, values = np.divmod(used.codes, used.value_count)
    unused_below = values - first - (np.arange(len(values)) - used.offsets[keys])
    starts = np.arange(used.key_count)[:, None] * np.int64(used.value_count)
    skipped = np.searchsorted(keys * used.value_count + unused_below, starts + places, side="right")
    drawn = first + places + skipped - used.offsets[:-1, None]
    return np.where(left[:, None] > 0, drawn, -1)


def _repeated(drawn: np.ndarray, pending: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Which of the values at the places ``pending`` stand in their row already, or at an earlier such place."""
    rows, place_of_row = np.unique(pending[0], return_inverse=True)
    fresh = np.zeros((len(rows), drawn.shape[1]), dtype=np.int64)
    fresh[place_of_row, pending[1]] = 1
    order = np.argsort(2 * drawn[rows] + fresh, axis=1, kind="stable")  # of equal values the fresh ones come last
    ordered = np.take_along_axis(drawn[rows], order, axis=1)
    again = np.zeros(ordered.shape, dtype=bool)
    again[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    found = np.empty_like(again)
    np.put_along_axis(found, order, again, axis=1)
    repeated: np.ndarray = found[place_of_row, pending[1]]
    return repeated
