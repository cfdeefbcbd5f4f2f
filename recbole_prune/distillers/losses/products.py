"""Losses of the products of vectors with a table that one compiled loop computes from the vectors to the gradients."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch.autograd.function import once_differentiable

from recbole_prune.sparse.compiling import available
from recbole_prune.sparse.contexts import SavingContext

# the loss of vectors and a table as numpy arrays; adds its gradients to two more
Loop = Callable[..., float]
ByTorch = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def loops_take(*tensors: torch.Tensor) -> bool:
    """Whether compiled loops can read some numbers."""
    plain = all(tensor.device.type == "cpu" and tensor.dtype == torch.float32 for tensor in tensors)
    return plain and available()


def loss_in_one_loop(vectors: torch.Tensor, table: torch.Tensor, loop: Loop, by_torch: ByTorch) -> torch.Tensor:
    """A loss that a loop gives with its gradients; it can be differentiated once.

    Args:
        vectors, table: of the kind that :func:`loops_take`.
        loop: takes vectors, table and arrays of zeros for both gradients, and gives the loss; NaN or infinity where
            scores are too far apart for it.
        by_torch: the same for scores of any size, slowly.
    """
    total: torch.Tensor = _InOneLoop.apply(vectors, table, loop, by_torch)
    return total


class _InOneLoop(torch.autograd.Function):
    """No score is kept for the backward pass, only the gradients."""

    @staticmethod
    def forward(
        ctx: SavingContext, vectors: torch.Tensor, table: torch.Tensor, loop: Loop, by_torch: ByTorch
    ) -> torch.Tensor:
        sides = vectors.detach().contiguous(), table.detach().contiguous()
        gradients: tuple[torch.Tensor, ...] = torch.zeros_like(sides[0]), torch.zeros_like(sides[1])
        total = loop(*(tensor.numpy() for tensor in (*sides, *gradients)))
        if not math.isfinite(total):
            with torch.enable_grad():
                sides = sides[0].requires_grad_(), sides[1].requires_grad_()
                exact = by_torch(*sides)
                gradients = torch.autograd.grad(exact, sides)
            total = float(exact)
        ctx.save_for_backward(*gradients)
        return vectors.new_tensor(total)

    @staticmethod
    @once_differentiable
    def backward(ctx: SavingContext, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        of_vectors, of_table = ctx.saved_tensors
        return of_vectors * gradient, of_table * gradient, None, None
