"""Dot products of each user of a batch with items of its own, differentiable.

A batch of a model that draws hundreds of items for every positive (UltraGCN) has far more pairs than items. Looking up
the drawn rows writes and reads ``[batch, n, width]`` twice; of a matrix product with all items most is thrown away. The
loops below read each row where it lies. They are compiled by numba where it is installed (extra ``fast``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray

from recbole_prune.sparse.compiling import available, compile_loop
from recbole_prune.sparse.contexts import SavingContext

Floats = NDArray[np.float32]
Ids = NDArray[np.int64]

# scores of all items cost less than looking up the drawn ones up to so many items per draw
# (a matrix product against gathered rows, measured on two x86 cores)
_ITEMS_PER_DRAW = 40


def _score(vectors: Floats, table: Floats, ids: Ids, scores: Floats) -> None:
    """Four rows at a time: their products add up independently of each other, so no addition waits for the last."""
    end, zero = ids.shape[1] - ids.shape[1] % 4, np.float32(0)
    for i in range(ids.shape[0]):
        for k in range(0, end, 4):
            a, b, c, d = ids[i, k], ids[i, k + 1], ids[i, k + 2], ids[i, k + 3]
            sum_a, sum_b, sum_c, sum_d = zero, zero, zero, zero
            for f in range(table.shape[1]):
                value = vectors[i, f]
                sum_a += value * table[a, f]
                sum_b += value * table[b, f]
                sum_c += value * table[c, f]
                sum_d += value * table[d, f]
            scores[i, k], scores[i, k + 1], scores[i, k + 2], scores[i, k + 3] = sum_a, sum_b, sum_c, sum_d
        for k in range(end, ids.shape[1]):
            a, sum_a = ids[i, k], zero
            for f in range(table.shape[1]):
                sum_a += vectors[i, f] * table[a, f]
            scores[i, k] = sum_a


def _add_gradients(
    gradient: Floats, vectors: Floats, table: Floats, ids: Ids, vectors_gradient: Floats, table_gradient: Floats
) -> None:
    end = ids.shape[1] - ids.shape[1] % 4
    for i in range(ids.shape[0]):
        vector, to_vector = vectors[i], vectors_gradient[i]
        for k in range(0, end, 4):
            a, b, c, d = table[ids[i, k]], table[ids[i, k + 1]], table[ids[i, k + 2]], table[ids[i, k + 3]]
            of_a, of_b, of_c, of_d = gradient[i, k], gradient[i, k + 1], gradient[i, k + 2], gradient[i, k + 3]
            for f in range(table.shape[1]):
                to_vector[f] += of_a * a[f] + of_b * b[f] + of_c * c[f] + of_d * d[f]
        for k in range(end, ids.shape[1]):
            a, of_a = table[ids[i, k]], gradient[i, k]
            for f in range(table.shape[1]):
                to_vector[f] += of_a * a[f]
        for k in range(ids.shape[1]):  # one by one: a row may come twice
            to_row, of_a = table_gradient[ids[i, k]], gradient[i, k]
            for f in range(table.shape[1]):
                to_row[f] += of_a * vector[f]


@cache
def _loops() -> tuple[Callable[..., None], Callable[..., None]]:
    # sums may be taken in another order, which is what lets the compiler use vector instructions
    free = {"reassoc", "contract", "nsz"}
    return compile_loop(_score, fastmath=free), compile_loop(_add_gradients, fastmath=free)


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
    if in_loops and not _row_by_row and available():
        scores: torch.Tensor = _PairScores.apply(vectors, table, ids)
        return scores
    return pair_scores_by_torch(vectors, table, ids)


def pair_scores_by_torch(vectors: torch.Tensor, table: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """:func:`pair_scores` without compiled loops."""
    if len(table) <= _ITEMS_PER_DRAW * ids.shape[1] and not _row_by_row:
        return (vectors @ table.t()).gather(1, ids)
    return torch.bmm(table[ids], vectors.unsqueeze(2)).squeeze(2)


_row_by_row = False


@contextmanager
def shown_to_torch() -> Iterator[None]:
    """The products of the pairs as operations of torch, no more of them than there are pairs: for counting them."""
    global _row_by_row
    before, _row_by_row = _row_by_row, True
    try:
        yield
    finally:
        _row_by_row = before
