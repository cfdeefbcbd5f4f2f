"""Dot products of each user of a batch with items of its own, differentiable.

A batch of a model that draws hundreds of items for every positive (UltraGCN) has far more pairs than items. Looking up
the drawn rows writes and reads ``[batch, n, width]`` twice; of a matrix product with all items most is thrown away. The
loops of ``pair_kernels.py`` read each row where it lies; numba compiles them where it is installed (extra ``fast``).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch

from recbole_prune.sparse.compiling import available, is_shown_to_torch
from recbole_prune.sparse.contexts import SavingContext

# scores of all items cost less than looking up the drawn ones up to so many items per draw
# (a matrix product against gathered rows, measured on two x86 cores)
_ITEMS_PER_DRAW = 40


@cache
def _loops() -> tuple[Callable[..., None], Callable[..., None]]:
    from recbole_prune.sparse.pair_kernels import add_gradients, score

    return score, add_gradients


def _run(number: int, *tensors: torch.Tensor) -> None:
    _loops()[number](*(tensor.detach().numpy() for tensor in tensors))


class _PairScores(torch.autograd.Function):
    @staticmethod
    def forward(ctx: SavingContext, vectors: torch.Tensor, table: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        vectors, table, ids = vectors.contiguous(), table.contiguous(), ids.contiguous()
        ctx.save_for_backward(vectors, table, ids)
        scores = vectors.new_empty(ids.shape)
        _run(0, vectors, table, ids, scores)
        return scores

    @staticmethod
    def backward(ctx: SavingContext, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        vectors, table, ids = ctx.saved_tensors
        gradients = torch.zeros_like(vectors), torch.zeros_like(table)
        _run(1, gradient.contiguous(), vectors, table, ids, *gradients)
        return (*gradients, None)


def pair_scores(vectors: torch.Tensor, table: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """``scores[i, k] = vectors[i] . table[ids[i, k]]``.

    The loops need numba and float32 on a CPU; elsewhere the same numbers up to rounding come from a matrix product or
    from the gathered rows, whichever is less work.

    Args:
        vectors: ``[batch, width]``.
        table: ``[rows, width]``.
        ids: rows of the table, int64 ``[batch, n]``; a row may come any number of times.

    Returns:
        ``[batch, n]``.

    Raises:
        ValueError: vectors and table have different widths.
    """
    if vectors.shape[1] != table.shape[1]:  # the loops would read beyond the vectors
        raise ValueError(f"vectors of width {vectors.shape[1]} and a table of width {table.shape[1]} have no products")
    in_loops = vectors.device.type == "cpu" and vectors.dtype == table.dtype == torch.float32
    if in_loops and not is_shown_to_torch() and available():
        scores: torch.Tensor = _PairScores.apply(vectors, table, ids)
        return scores
    return pair_scores_by_torch(vectors, table, ids)


def pair_scores_by_torch(vectors: torch.Tensor, table: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """:func:`pair_scores` without compiled loops."""
    if len(table) <= _ITEMS_PER_DRAW * ids.shape[1] and not is_shown_to_torch():
        return (vectors @ table.t()).gather(1, ids)
    # the backward pass of `table[ids]` adds up the gradients of one row one after the other on a GPU
    return torch.bmm(torch.nn.functional.embedding(ids, table), vectors.unsqueeze(2)).squeeze(2)
