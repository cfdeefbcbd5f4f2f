"""What experts make of vectors where each entity has shares in some of them, expert by expert, forwards and back."""

from __future__ import annotations

from itertools import accumulate

import torch

from recbole_prune.sparse.contexts import SavingContext

# of all shares: from here on the gathering of rows costs more than it saves
_MOST = 0.6


def mixed(
    vectors: torch.Tensor,
    shares: torch.Tensor,
    weight_in: torch.Tensor,
    bias_in: torch.Tensor,
    weight_out: torch.Tensor,
    bias_out: torch.Tensor,
) -> torch.Tensor:
    """The sum over experts of share times ``relu(x W_in + b_in) W_out + b_out``, ``[b, d_T]``.

    Shares below the rounding of such a sum are taken for 0: at low temperatures an entity has one or two others, and
    time goes with their number.

    Args:
        vectors: ``[b, d_S]``.
        shares: ``[b, M]``.
        weight_in, bias_in: of the hidden layers, ``[M, d_S, m]`` and ``[M, 1, m]``.
        weight_out, bias_out: ``[M, m, d_T]`` and ``[M, 1, d_T]``.
    """
    one_by_one = vectors.device.type == "cpu" and not torch.is_autocast_cpu_enabled()
    if one_by_one:
        found: torch.Tensor = _Mixed.apply(vectors, shares, weight_in, bias_in, weight_out, bias_out)
        return found
    # one product for all, which a GPU prefers to many small ones; no expert's own [b, d_T] is ever written
    experts, width, hidden = weight_in.shape
    layer = torch.addmm(bias_in.flatten(), vectors, weight_in.transpose(0, 1).reshape(width, -1)).relu()
    weighted = layer.view(-1, experts, hidden) * shares.unsqueeze(2)
    return torch.addmm(shares @ bias_out.squeeze(1), weighted.flatten(1), weight_out.flatten(0, 1))


class _Pairs:
    """The pairs of expert and entity whose share counts, expert by expert; all, where most do.

    Attributes:
        rows: the entity of each pair ``[n]``; None where every expert has all.
        shares: of each pair, ``[n, 1]``.
        spans: experts that have entities, with where these stand among the pairs and among the rows.
    """

    def __init__(self, shares: torch.Tensor) -> None:
        by_expert = shares.t().contiguous()
        counted = by_expert >= torch.finfo(shares.dtype).eps
        self._shape, self._places = by_expert.shape, None
        self.rows: torch.Tensor | None = None
        self.shares, counts = by_expert.view(-1, 1), [len(shares)] * len(by_expert)
        if int(counted.sum()) < _MOST * counted.numel():
            self._places = counted.view(-1).nonzero()[:, 0]
            self.rows = self._places % len(shares)
            self.shares, counts = self.shares[self._places], counted.sum(1).tolist()
        ends = list(accumulate(counts, initial=0))
        pairs = [slice(start, end) for start, end in zip(ends, ends[1:])]
        self.spans = [
            (expert, span, slice(None) if self.rows is None else span)
            for expert, span in enumerate(pairs)
            if counts[expert]
        ]

    def rows_of(self, table: torch.Tensor) -> torch.Tensor:
        """The rows of ``[b, d]`` of all pairs."""
        return table if self.rows is None else table[self.rows]

    def summed(self, table: torch.Tensor, into: torch.Tensor) -> torch.Tensor:
        """Rows of all pairs added to their entities'."""
        return into + table if self.rows is None else into.index_add_(0, self.rows, table)

    def spread(self, values: torch.Tensor) -> torch.Tensor:
        """A value of each pair ``[n]`` as ``[b, M]``, 0 elsewhere."""
        if self._places is not None:
            values = values.new_zeros(self._shape.numel()).index_copy_(0, self._places, values.flatten())
        return values.view(self._shape).t()


class _Mixed(torch.autograd.Function):
    """A block per expert stays in the processor's cache, where ``[b, M x m]`` would go through memory many times."""

    @staticmethod
    def forward(ctx: SavingContext, *tensors: torch.Tensor) -> torch.Tensor:
        vectors, shares, weight_in, bias_in, weight_out, bias_out = tensors
        pairs = _Pairs(shares)
        inputs = pairs.rows_of(vectors)
        found = inputs.new_zeros(len(inputs), weight_out.shape[2])
        for expert, span, rows in pairs.spans:
            layer = torch.addmm(bias_in[expert], inputs[rows], weight_in[expert]).relu_().mul_(pairs.shares[span])
            found[rows].addmm_(layer, weight_out[expert])
        ctx.save_for_backward(*tensors)
        return pairs.summed(found, shares @ bias_out.squeeze(1))

    @staticmethod
    def backward(ctx: SavingContext, gradient: torch.Tensor) -> tuple[torch.Tensor, ...]:
        vectors, shares, weight_in, bias_in, weight_out, bias_out = ctx.saved_tensors
        pairs = _Pairs(shares)
        inputs, above = pairs.rows_of(vectors), pairs.rows_of(gradient)
        of_inputs, of_shares = torch.zeros_like(inputs), torch.zeros_like(pairs.shares)
        of_in, of_bias_in, of_out = (torch.zeros_like(each) for each in (weight_in, bias_in, weight_out))
        for expert, span, rows in pairs.spans:
            share = pairs.shares[span]
            layer = torch.addmm(bias_in[expert], inputs[rows], weight_in[expert]).relu_()
            of_layer = above[rows] @ weight_out[expert].t()
            torch.sum(of_layer * layer, 1, keepdim=True, out=of_shares[span])
            of_layer.mul_(layer > 0).mul_(share)
            torch.mm(inputs[rows].t(), of_layer, out=of_in[expert])
            torch.sum(of_layer, 0, keepdim=True, out=of_bias_in[expert])
            torch.mm(layer.mul_(share).t(), above[rows], out=of_out[expert])
            of_inputs[rows].addmm_(of_layer, weight_in[expert].t())
        return (
            pairs.summed(of_inputs, torch.zeros_like(vectors)),
            pairs.spread(of_shares) + gradient @ bias_out.squeeze(1).t(),
            of_in,
            of_bias_in,
            of_out,
            (shares.t() @ gradient).unsqueeze(1),
        )
