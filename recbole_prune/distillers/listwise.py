"""The listwise loss of RRD, IR-RRD and those after them, and the lists that it is fed with."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch.autograd.function import once_differentiable

from recbole_prune.data.membership import UsedIds
from recbole_prune.sparse.compiling import available
from recbole_prune.sparse.contexts import SavingContext
from recbole_prune.sparse.pair_scores import pair_scores

Pair = tuple[torch.Tensor, torch.Tensor]

# below any score that matters; e to this power is 0 and, unlike that of -inf, has the gradient 0
_NOWHERE = -1e9


def plackett_luce(ranked: torch.Tensor, below: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood of a ranked list above a set, one value per row.

    For scores ``s_1..s_K`` of a list, best first, and ``r_1..r_L`` of a set without order:
    ``sum_k [log(sum_{i >= k} exp s_i + sum_j exp r_j) - s_k]``, the ListMLE probability cut off after ``K`` choices
    (Kang et al., CIKM 2020, RRD; methods/distillation_ranking.md 1.2), without clamps.

    Args:
        ranked: logits ``[rows, K]``; NaN where a list is shorter.
        below: logits ``[rows, L]``, likewise.

    Returns:
        losses ``[rows]``; they can be differentiated once.
    """
    return plackett_luce_of(torch.cat([ranked, below], 1), ranked.shape[1])


def plackett_luce_of(logits: torch.Tensor, count: int) -> torch.Tensor:
    """:func:`plackett_luce` of logits side by side, ``[rows, K + L]``, of which the first ``count`` are the list."""
    # half precision has no number below any score that matters
    losses: torch.Tensor = _PlackettLuce.apply(logits.to(torch.promote_types(logits.dtype, torch.float32)), count)
    return losses


def sum_of_lists(
    vectors: torch.Tensor, rows: torch.Tensor, table: torch.Tensor, lists: torch.Tensor, count: int
) -> torch.Tensor:
    """The sum of :func:`plackett_luce` over some rows whose logits are products, ``vectors[row] . table[id]``.

    Args:
        vectors: of all rows, ``[R, width]``.
        rows: those to add up, without repetition, ``[n]``.
        table: what the lists are of, ``[C, width]``.
        lists: ids of every row, ``[R, K + L]``, the list and then the set; -1 where there are fewer.
        count: the ``K`` of a list.
    """
    if _loops_take(vectors) and _loops_take(table):
        total: torch.Tensor = _SumOfLists.apply(vectors, rows, table, lists, count)
        return total
    return _sum_of_logits(vectors, rows, table, lists, count)


def _sum_of_logits(
    vectors: torch.Tensor, rows: torch.Tensor, table: torch.Tensor, lists: torch.Tensor, count: int
) -> torch.Tensor:
    ids = lists.index_select(0, rows).long()
    logits = pair_scores(vectors.index_select(0, rows), table, ids.clamp(min=0))
    return plackett_luce_of(logits.masked_fill(ids < 0, torch.nan), count).sum()


class _SumOfLists(torch.autograd.Function):
    """From vectors to the loss and back in one loop, row by row; no logit is ever written."""

    @staticmethod
    def forward(
        ctx: SavingContext,
        vectors: torch.Tensor,
        rows: torch.Tensor,
        table: torch.Tensor,
        lists: torch.Tensor,
        count: int,
    ) -> torch.Tensor:
        from recbole_prune.sparse.pair_kernels import sum_of_lists as by_loop

        mine, theirs = vectors.detach().contiguous(), table.detach().contiguous()
        of_mine, of_theirs = torch.zeros_like(mine), torch.zeros_like(theirs)
        ids = rows.numpy(), lists.contiguous().numpy()
        total = by_loop(mine.numpy(), ids[0], theirs.numpy(), ids[1], count, of_mine.numpy(), of_theirs.numpy())
        if not math.isfinite(total):  # scores too far apart for it
            with torch.enable_grad():
                sides = mine.requires_grad_(), theirs.requires_grad_()
                exact = _sum_of_logits(sides[0], rows, sides[1], lists, count)
                of_mine, of_theirs = torch.autograd.grad(exact, sides)
            total = float(exact)
        ctx.save_for_backward(of_mine, of_theirs)
        return vectors.new_tensor(total)

    @staticmethod
    @once_differentiable
    def backward(ctx: SavingContext, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        of_vectors, of_table = ctx.saved_tensors
        return of_vectors * gradient, None, of_table * gradient, None, None


class _PlackettLuce(torch.autograd.Function):
    """The gradient shares all powers of e with the losses, so one pass over the lists gives both."""

    @staticmethod
    def forward(ctx: SavingContext, logits: torch.Tensor, count: int) -> torch.Tensor:
        losses, gradients = _by_loop(logits, count) or plackett_luce_by_torch(logits, count)
        ctx.save_for_backward(gradients)
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: SavingContext, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        (gradients,) = ctx.saved_tensors
        return gradients * gradient[:, None], None


def plackett_luce_by_torch(logits: torch.Tensor, count: int) -> Pair:
    """Losses ``[rows]`` and their gradients ``[rows, K + L]`` by logarithms of sums, for scores of any size.

    With ``D_k`` the k-th sum, the gradients are ``-1 + exp(s_k) sum_{q <= k} 1 / D_q`` and ``exp(r_j) sum_k 1 / D_k``.
    Adding up column after column is ten times faster on a CPU than ``logcumsumexp``.
    """
    columns = torch.where(logits.isnan(), _NOWHERE, logits).t().contiguous()
    ranked, rest = columns[:count], columns[count:]
    listed, tails = ~logits[:, :count].isnan().t(), torch.empty_like(ranked)
    tail = rest.logsumexp(0) if len(rest) else rest.new_full(rest.shape[1:], _NOWHERE)
    for place in reversed(range(count)):
        tail = torch.logaddexp(tail, ranked[place], out=tails[place])
    heads = torch.where(listed, -tails, _NOWHERE)
    for place in range(1, count):
        torch.logaddexp(heads[place - 1], heads[place], out=heads[place])
    of_ranked = torch.where(listed, torch.expm1(ranked + heads), 0.0)
    of_rest = (rest + heads[-1]).exp() if count else torch.zeros_like(rest)
    return torch.where(listed, tails - ranked, 0.0).sum(0), torch.cat([of_ranked, of_rest]).t()


def _loops_take(tensor: torch.Tensor) -> bool:
    return tensor.device.type == "cpu" and tensor.dtype == torch.float32 and available()


def _by_loop(logits: torch.Tensor, count: int) -> Pair | None:
    """The same from one compiled loop; None where it cannot: no numba, no CPU, or scores too far apart."""
    if not _loops_take(logits):
        return None
    losses, gradients = logits.new_empty(len(logits)), torch.empty_like(logits, memory_format=torch.contiguous_format)
    arrays = [tensor.detach().numpy() for tensor in (logits.contiguous(), losses, gradients)]
    from recbole_prune.sparse.pair_kernels import plackett_luce_rows

    return (losses, gradients) if plackett_luce_rows(arrays[0], arrays[1], arrays[2], count) else None


# ranks so many times the sharpness behind the last one to draw win in one row of fifty
_FEW_WIN = 6


def _exponentials(stream: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return np.maximum(stream.standard_exponential(shape, dtype=np.float32), np.finfo(np.float32).tiny)


def draw_ranks(
    lengths: np.ndarray, count: int, sharpness: float, longest: int, stream: np.random.Generator
) -> np.ndarray:
    """Draw ranks without replacement, a rank ``k`` with weight ``exp(-k / sharpness)``; ascending in every row.

    The exponential race (Efraimidis and Spirakis 2006): the ``count`` smallest of ``Exp(1) / weight`` are such a draw.
    Of the ranks behind the first few, which seldom win, only the first arrival is drawn, an exponential too (of their
    weights' sum). Where it wins they are drawn as well, and moved so that their first is that arrival: the distances
    from it are exponentials whatever it is.

    Args:
        lengths: how long each row's list is, ``[rows]``.
        count: ranks to draw for a row; rows with shorter lists get all of theirs.
        sharpness: the ``T`` of the paper.
        longest: width of the lists.
        stream: random numbers.

    Returns:
        0-based ranks ``[rows, count]``, -1 where a list has no more.
    """
    count = min(count, longest)
    near = min(longest, count + math.ceil(_FEW_WIN * sharpness))
    keys = np.log(_exponentials(stream, (len(lengths), near)))
    keys += np.arange(near, dtype=np.float32) / np.float32(sharpness)
    keys[np.arange(near) >= lengths[:, None]] = np.inf
    drawn = np.argpartition(keys, count - 1, axis=1)[:, :count]
    if near < longest:
        slowness = np.exp(np.minimum(np.arange(longest - near) / sharpness, 700.0))  # of the ranks behind, from 1
        weights = np.append(0.0, np.cumsum(1 / slowness))[(lengths - near).clip(min=0)]
        with np.errstate(divide="ignore"):
            arrivals = _exponentials(stream, (len(lengths),)) / weights
        last = np.take_along_axis(keys, drawn, axis=1).max(1)
        late = np.flatnonzero(np.log(arrivals) + near / sharpness < last)
        times = _exponentials(stream, (len(late), longest - near)) * slowness
        times[np.arange(near, longest) >= lengths[late, None]] = np.inf
        times += (arrivals[late] - times.min(1, initial=np.inf))[:, None]
        both = np.concatenate([keys[late], np.log(times) + near / sharpness], axis=1)
        drawn[late] = np.argpartition(both, count - 1, axis=1)[:, :count]
    drawn.sort(axis=1)
    # places beyond a list sort last, since a list begins at rank 0
    return np.where(drawn < lengths[:, None], drawn, -1)


def draw_weighted(log_weights: np.ndarray, count: int, stream: np.random.Generator) -> np.ndarray:
    """Draw columns without replacement by any weights: the race of :func:`draw_ranks` with all columns in it.

    Args:
        log_weights: logarithms of the weights, float32 ``[rows, columns]``; minus infinity is never drawn.
        count: columns to draw for a row.
        stream: random numbers.

    Returns:
        columns ``[rows, count]`` (at most all) in the order of the draw, -1 where a row has no more.
    """
    keys = np.log(_exponentials(stream, log_weights.shape)) - log_weights
    count = min(count, log_weights.shape[1])
    drawn = np.argpartition(keys, count - 1, axis=1)[:, :count]
    keys = np.take_along_axis(keys, drawn, axis=1)
    order = np.argsort(keys, axis=1)
    ended = np.isinf(np.take_along_axis(keys, order, axis=1))
    return np.where(ended, -1, np.take_along_axis(drawn, order, axis=1))


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
    begins = np.append(True, pending[0][1:] != pending[0][:-1])  # those of a row stand together
    rows, place_of_row = pending[0][begins], np.cumsum(begins) - 1
    count = drawn.shape[1]
    fresh = np.zeros((len(rows), count), dtype=np.int64)
    fresh[place_of_row, pending[1]] = 1
    # of equal values the fresh ones come last
    ordered = np.sort((2 * drawn[rows] + fresh) * count + np.arange(count), axis=1)
    values = ordered // (2 * count)
    again, places = np.nonzero(values[:, 1:] == values[:, :-1])
    found = np.zeros((len(rows), count), dtype=bool)
    found[again, ordered[again, places + 1] % count] = True
    repeated: np.ndarray = found[place_of_row, pending[1]]
    return repeated
