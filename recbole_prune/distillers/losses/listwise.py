"""The listwise loss of RRD, IR-RRD and those after them."""

from __future__ import annotations

import torch
from torch.autograd.function import once_differentiable

from recbole_prune.distillers.losses.products import loops_take, loss_in_one_loop
from recbole_prune.sparse.contexts import SavingContext
from recbole_prune.sparse.missing_ids import with_stand_ins
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

    def by_torch(mine: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
        return _sum_of_logits(mine, rows, theirs, lists, count)

    if not loops_take(vectors, table):
        return by_torch(vectors, table)
    from recbole_prune.sparse.pair_kernels import sum_of_lists as by_loop

    ids = rows.numpy(), lists.contiguous().numpy()
    return loss_in_one_loop(
        vectors, table, lambda mine, theirs, *both: by_loop(mine, ids[0], theirs, ids[1], count, *both), by_torch
    )


def _sum_of_logits(
    vectors: torch.Tensor, rows: torch.Tensor, table: torch.Tensor, lists: torch.Tensor, count: int
) -> torch.Tensor:
    ids = lists.index_select(0, rows).long()
    logits = pair_scores(vectors.index_select(0, rows), table, with_stand_ins(ids))
    return plackett_luce_of(logits.masked_fill(ids < 0, torch.nan), count).sum()


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
    """
    columns = torch.where(logits.isnan(), _NOWHERE, logits).t().contiguous()
    # only differences count, and those of large scores lose digits; where nothing is listed, nowhere stays far away
    columns -= columns.amax(0).clamp(min=_NOWHERE / 2)
    ranked, rest = columns[:count], columns[count:]
    listed = ~logits[:, :count].isnan().t()
    tail = rest.logsumexp(0) if len(rest) else rest.new_full(rest.shape[1:], _NOWHERE)
    tails = _running_logsumexp(torch.cat([tail[None], ranked.flip(0)]))[1:].flip(0)
    heads = _running_logsumexp(torch.where(listed, -tails, _NOWHERE))
    of_ranked = torch.where(listed, torch.expm1(ranked + heads), 0.0)
    of_rest = (rest + heads[-1]).exp() if count else torch.zeros_like(rest)
    return torch.where(listed, tails - ranked, 0.0).sum(0), torch.cat([of_ranked, of_rest]).t()


def _running_logsumexp(columns: torch.Tensor) -> torch.Tensor:
    """``logcumsumexp(0)``: one call on a GPU; on a CPU column after column is ten times faster."""
    if columns.device.type != "cpu":
        return columns.logcumsumexp(0)
    sums = columns.clone()
    for place in range(1, len(sums)):
        torch.logaddexp(sums[place - 1], sums[place], out=sums[place])
    return sums


def _by_loop(logits: torch.Tensor, count: int) -> Pair | None:
    """The same from one compiled loop; None where it cannot: no numba, no CPU, or scores too far apart."""
    if not loops_take(logits):
        return None
    losses, gradients = logits.new_empty(len(logits)), torch.empty_like(logits, memory_format=torch.contiguous_format)
    arrays = [tensor.detach().numpy() for tensor in (logits.contiguous(), losses, gradients)]
    from recbole_prune.sparse.pair_kernels import plackett_luce_rows

    return (losses, gradients) if plackett_luce_rows(arrays[0], arrays[1], arrays[2], count) else None
