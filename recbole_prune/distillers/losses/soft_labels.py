"""What the point-wise ranking methods compute: weights of positions (RD), soft labels and who gets them (CD)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch.autograd.function import once_differentiable
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid

from recbole_prune.distillers.losses.products import ByTorch, loss_in_one_loop
from recbole_prune.sparse.compiling import available
from recbole_prune.sparse.contexts import SavingContext


def position_weights(count: int, sharpness: float) -> torch.Tensor:
    """Weights of the ranks 1 to ``count``, proportional to ``exp(-rank / sharpness)`` and 1 together.

    Source: Tang and Wang, KDD 2018 (RD; methods/distillation_ranking.md, section 2, step 2).
    """
    return torch.softmax(-torch.arange(1, count + 1, dtype=torch.float32) / sharpness, 0)


def discrepancy_weights(
    above: torch.Tensor, drawn: int | torch.Tensor, items: int, slope: float, first: int = 1
) -> torch.Tensor:
    """How far the student is from ranking the teacher's items where the teacher does, between 0 and 1 (RD, step 3).

    Args:
        above: how many of the drawn items the student scores above each of the teacher's, ``[..., K]``.
        drawn: how many were drawn.
        items: how many there are to draw from, one more than the largest estimated rank.
        slope: the ``mu`` of the paper.
        first: the rank of the teacher's best item; the code counts from 0.
    """
    estimated = torch.div((items - 1) * above, drawn, rounding_mode="floor")
    ranks = torch.arange(first, first + above.shape[-1], device=above.device)
    return torch.tanh((slope * (estimated - ranks)).clamp(min=0))


def weighted_positives(scores: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """``-sum_r w_r log sigmoid(s_r)``, one value per row; NaN scores, where a list is shorter, count nothing."""
    listed = ~scores.isnan()
    return -(weights * logsigmoid(torch.where(listed, scores, 0.0)) * listed).sum(-1)


def soft_cross_entropy(
    scores: torch.Tensor, teacher: torch.Tensor, scale: float = 1.0, shift: float = 0.0
) -> torch.Tensor:
    """Cross-entropy with the teacher's probabilities ``sigmoid((z + shift) / scale)``, one value per row.

    Source: Lee et al., ICDM 2019 (CD; methods/distillation_ranking.md, section 3, steps 3 and 4).

    Args:
        scores: the student's logits ``[rows, items]``; NaN counts nothing.
        teacher: the teacher's logits of the same items.
        scale, shift: ``T1`` and ``T2``.
    """
    listed = ~scores.isnan()
    targets = torch.where(listed, torch.sigmoid((teacher + shift) / scale), 0.5)
    losses = binary_cross_entropy_with_logits(torch.where(listed, scores, 0.0), targets, reduction="none")
    return (losses * listed).sum(-1)


def soft_list_cross_entropy(scores: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """Cross-entropy between the softmax of teacher and student over the known items of a list, one value per row.

    Args:
        scores: the student's logits ``[rows, items]``.
        teacher: the teacher's logits of the same items; an item with NaN in either is none of the list.
        temperature: what both are divided by.

    Returns:
        losses ``[rows]``, 0 where nothing is known.
    """
    both = scores.float(), teacher.float()
    if scores.device.type == "cpu" and not teacher.requires_grad and available():
        losses: torch.Tensor = _SoftLists.apply(*both, temperature)
        return losses
    return soft_lists_by_torch(*both, temperature)


def soft_lists_by_torch(scores: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """:func:`soft_list_cross_entropy` without compiled loops."""
    listed = ~(scores.isnan() | teacher.isnan())
    lowest = torch.finfo(torch.float32).min  # e to it is 0 and, unlike minus infinity, a row of nothing else has no NaN
    mine, theirs = (
        (torch.where(listed, logits, 0.0) / temperature).masked_fill(~listed, lowest) for logits in (scores, teacher)
    )
    return -(theirs.softmax(1) * mine.log_softmax(1) * listed).sum(1)


class _SoftLists(torch.autograd.Function):
    """Losses and gradients share all powers of e, so one compiled loop over the lists gives both."""

    @staticmethod
    def forward(ctx: SavingContext, scores: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
        from recbole_prune.sparse.pair_kernels import soft_list_rows

        mine, theirs = scores.detach().contiguous(), teacher.detach().contiguous()
        losses, gradients = mine.new_empty(len(mine)), torch.empty_like(mine)
        soft_list_rows(mine.numpy(), theirs.numpy(), 1 / temperature, losses.numpy(), gradients.numpy())
        ctx.save_for_backward(gradients)
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: SavingContext, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (gradients,) = ctx.saved_tensors
        return gradients * gradient[:, None], None, None


class TwoLists(NamedTuple):
    """Two lists of each row, of which the softmax is to be that of targets; what is in both stands there once.

    Attributes:
        ids: those in the first list alone, those in both, and those in the second alone, int32 ``[R, P]``.
        targets: of both softmaxes together, weighted by their shares, float32 ``[R, P]``.
        ends: of these three parts, int32 ``[R, 3]``.
        shares: of the first list's cross-entropy, float32 ``[R]``; that of the second counts for the rest of 1.
    """

    ids: torch.Tensor
    targets: torch.Tensor
    ends: torch.Tensor
    shares: torch.Tensor


def sum_of_two_lists(
    vectors: torch.Tensor,
    table: torch.Tensor,
    rows: torch.Tensor,
    counts: torch.Tensor,
    lists: TwoLists,
    temperature: float,
    by_torch: ByTorch,
) -> torch.Tensor:
    """The sum of both cross-entropies of some rows, whose scores are products of vectors with a table.

    Args:
        vectors, table: ``[n, width]`` and ``[items, width]``, of the kind that :func:`loops_take`.
        rows: of the lists of each vector ``[n]``.
        counts: how often each vector counts ``[n]``.
        lists: of all rows.
        temperature: what scores are divided by.
        by_torch: the same of scores of any size.
    """
    from recbole_prune.sparse.pair_kernels import sum_of_two_lists as by_loop

    def loop(mine: np.ndarray, theirs: np.ndarray, of_mine: np.ndarray, of_theirs: np.ndarray) -> float:
        ids, targets, ends, shares = (tensor.numpy() for tensor in lists)
        of_rows = rows.numpy(), counts.numpy(), ids, targets, ends, shares
        return by_loop(mine, theirs, *of_rows, 1 / temperature, of_mine, of_theirs)

    return loss_in_one_loop(vectors, table, loop, by_torch)


def soft_row_cross_entropy(scores: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """Cross-entropy between the softmax of teacher and student over the items of a row, times ``temperature ** 2``.

    Source: Hinton et al. 2015, arXiv 1503.02531, section 2; the factor keeps gradients as large at any temperature.

    Args:
        scores: the student's logits ``[rows, items]``.
        teacher: the teacher's logits of the same items; a row with NaN counts nothing.
        temperature: what both are divided by.

    Returns:
        losses ``[rows]``.
    """
    known = ~teacher.isnan().any(1)
    targets = (torch.where(known[:, None], teacher, 0.0) / temperature).softmax(1)
    losses = -(targets * (scores / temperature).log_softmax(1)).sum(1)
    return temperature**2 * losses * known


def tries_of_draws(shape: tuple[int, ...], rule: str, sharpness: float, stream: np.random.Generator) -> np.ndarray:
    """Of how many items, drawn uniformly and with replacement, each draw takes the best one.

    With ``p`` an item's rank over the number of all, an item is then taken with a probability proportional to
    ``1 - p`` (``linear``) or to ``exp(-sharpness * p)`` (``exponential``), and nothing has to be ranked for it (CD,
    step 2). The best of ``m`` uniform places has the density ``m (1 - p) ** (m - 1)``: ``linear`` is ``m = 2``; and
    ``exp(-g p)`` is proportional to ``sum_m g ** (m - 1) / m! * m (1 - p) ** (m - 1)``, so ``exponential`` is a Poisson
    number ``m`` of mean ``g`` that is not 0.

    Args:
        shape: of what is given back.
        rule: ``linear`` or ``exponential``.
        sharpness: the ``gamma`` of the paper, of the exponential rule.
        stream: random numbers.
    """
    if rule == "linear":
        return np.full(shape, 2)
    # the first event of a Poisson process on [0, sharpness] that has one, and those behind it
    first = -np.log1p(stream.random(shape) * np.expm1(-sharpness))
    tries: np.ndarray = 1 + stream.poisson((sharpness - first).clip(min=0))
    return tries


def best_tries(scores: torch.Tensor, tries: torch.Tensor) -> torch.Tensor:
    """Which try of each draw has the highest score.

    Args:
        scores: of the tries ``[n, M]``, those of a draw side by side, draw by draw; what stands behind them is not
            looked at. NaN is never the best of several.
        tries: of each draw ``[n, K]``; at least 1 and together at most ``M``.

    Returns:
        places in ``scores`` ``[n, K]``.
    """
    ends = tries.cumsum(1)
    draws = torch.searchsorted(ends, torch.arange(scores.shape[1], device=ends.device).repeat(len(ends), 1), right=True)
    order = scores.masked_fill(scores.isnan(), -torch.inf).sort(dim=1, descending=True, stable=True)[1]
    by_draw = draws.gather(1, order).sort(dim=1, stable=True)[1]
    return order.gather(1, by_draw.gather(1, ends - tries))
