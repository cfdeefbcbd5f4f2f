"""A multinomial likelihood over more classes than fit into memory for every row at once."""

from __future__ import annotations

import torch

from recbole_prune.sparse.contexts import SavingContext

_LOGITS_AT_ONCE = 1 << 22


def multinomial_loss(
    vectors: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, rows: torch.Tensor, classes: torch.Tensor
) -> torch.Tensor:
    """``-sum log softmax(weight v + bias)`` over the classes that occur in each row.

    The gradient is found with the loss, some rows at a time, so that neither pass holds ``[rows, classes]`` numbers; a
    gradient of the gradient there is none.

    Args:
        vectors: ``[n, width]``.
        weight, bias: ``[classes, width]`` and ``[classes]``.
        rows, classes: the pairs that occur, each once, int64; rows ascend.

    Returns:
        the sum over all pairs.
    """
    with torch.autocast(vectors.device.type, enabled=False):
        loss: torch.Tensor = _Multinomial.apply(vectors.float(), weight.float(), bias.float(), rows, classes)
    return loss


class _Multinomial(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: SavingContext,
        vectors: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor,
        rows: torch.Tensor,
        classes: torch.Tensor,
    ) -> torch.Tensor:
        total, of_vectors = vectors.new_zeros(()), torch.empty_like(vectors)
        of_weight, of_bias = torch.zeros_like(weight), torch.zeros_like(bias)
        counts = torch.bincount(rows, minlength=len(vectors)).to(vectors).unsqueeze(1)
        step = max(1, _LOGITS_AT_ONCE // len(weight))
        starts = torch.arange(0, len(vectors), step, device=rows.device)
        ends = [*torch.searchsorted(rows, starts).tolist(), len(rows)]
        for number, start in enumerate(range(0, len(vectors), step)):
            some, pairs = slice(start, start + step), slice(ends[number], ends[number + 1])
            places = rows[pairs] - start, classes[pairs]
            chances = torch.addmm(bias, vectors[some], weight.t()).log_softmax(1)
            total -= chances[places].sum()
            gradient = chances.exp_().mul_(counts[some])
            gradient[places] -= 1
            of_vectors[some] = gradient @ weight
            of_weight.addmm_(gradient.t(), vectors[some])
            of_bias += gradient.sum(0)
        ctx.save_for_backward(of_vectors, of_weight, of_bias)
        return total

    @staticmethod
    def backward(
        ctx: SavingContext, gradient: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, None, None]:
        of_vectors, of_weight, of_bias = ctx.saved_tensors
        return gradient * of_vectors, gradient * of_weight, gradient * of_bias, None, None
