"""What experts make of vectors where each entity has shares in some of them, expert by expert, forwards and back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from recbole_prune.sparse.contexts import SavingContext

# of the hidden layers and of those behind them: [M, d_S, m], [M, 1, m], [M, m, d_T], [M, 1, d_T]
Weights = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]

# of all shares: from here on the gathering of rows costs more than it saves
_MOST = 0.6
# pairs whose hidden layers fit into a processor's cache
_BLOCK = 1024


def mixed(vectors: torch.Tensor, shares: torch.Tensor, weights: Weights, least: float) -> torch.Tensor:
    """The sum over experts of share times ``relu(x W_in + b_in) W_out + b_out``, ``[b, d_T]``.

    At low temperatures an entity has one or two shares that count, and time goes with their number.

    Args:
        vectors: ``[b, d_S]``.
        shares: ``[b, M]``.
        weights: of all experts, ``W_in, b_in, W_out, b_out``.
        least: on a CPU shares below it are taken for 0, as those below the rounding of the sum always are.
    """
    one_by_one = vectors.device.type == "cpu" and not torch.is_autocast_cpu_enabled()
    if one_by_one:
        found: torch.Tensor = _Mixed.apply(least, vectors, shares, *weights)
        return found
    weight_in, bias_in, weight_out, bias_out = weights
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
        counts: of the pairs of each expert.
    """

    def __init__(self, shares: torch.Tensor, least: float) -> None:
        by_expert = shares.t().contiguous()
        counted = by_expert >= max(least, torch.finfo(shares.dtype).eps)
        self._shape, self._places = by_expert.shape, None
        self.rows: torch.Tensor | None = None
        self.shares, self.counts = by_expert.view(-1, 1), [len(shares)] * len(by_expert)
        if int(counted.sum()) < _MOST * counted.numel():
            self._places = counted.view(-1).nonzero()[:, 0]
            self.rows = self._places % len(shares)
            self.shares, self.counts = self.shares[self._places], counted.sum(1).tolist()

    def rows_of(self, table: torch.Tensor) -> torch.Tensor:
        """The rows of ``[b, d]`` of all pairs."""
        return table if self.rows is None else table[self.rows]

    def by_expert(self, table: torch.Tensor) -> Sequence[torch.Tensor]:
        """Each expert's rows of a table (:meth:`rows_of`)."""
        return (table,) * len(self.counts) if self.rows is None else table.split(self.counts)

    def blocks(self) -> Iterator[tuple[torch.Tensor, range, list[int]]]:
        """Shares of the pairs of some experts, these experts, and their numbers of pairs, about ``_BLOCK`` in all."""
        first, place, size = 0, 0, 0
        for expert, count in enumerate(self.counts):
            size += count
            if expert + 1 == len(self.counts) or size + self.counts[expert + 1] > _BLOCK:
                yield self.shares[place : place + size], range(first, expert + 1), self.counts[first : expert + 1]
                first, place, size = expert + 1, place + size, 0

    def summed(self, table: torch.Tensor, into: torch.Tensor) -> torch.Tensor:
        """Rows of all pairs added to their entities'."""
        return into + table if self.rows is None else into.index_add_(0, self.rows, table)

    def spread(self, values: torch.Tensor) -> torch.Tensor:
        """A value of each pair as ``[b, M]``, 0 elsewhere."""
        if self._places is not None:
            values = values.new_zeros(self._shape.numel()).index_copy_(0, self._places, values.flatten())
        return values.view(self._shape).t()


class _Mixed(torch.autograd.Function):
    """Blocks of pairs stay in the processor's cache, where ``[b, M x m]`` would go through memory many times."""

    @staticmethod
    def forward(ctx: SavingContext, least: float, *tensors: torch.Tensor) -> torch.Tensor:
        vectors, shares, weight_in, bias_in, weight_out, bias_out = tensors
        pairs = _Pairs(shares, least)
        inputs = pairs.rows_of(vectors)
        found = inputs.new_zeros(len(inputs), weight_out.shape[2])
        rows, to_rows = pairs.by_expert(inputs), pairs.by_expert(found)
        first, bias, second = weight_in.unbind(), bias_in.unbind(), weight_out.unbind()
        for share, experts, counts in pairs.blocks():
            layer = inputs.new_empty(len(share), weight_in.shape[2])
            layers = layer.split(counts)
            for expert, part in zip(experts, layers):
                torch.addmm(bias[expert], rows[expert], first[expert], out=part)
            layer.relu_().mul_(share)
            for expert, part in zip(experts, layers):
                to_rows[expert].addmm_(part, second[expert])
        ctx.save_for_backward(shares.new_tensor(least), *tensors)
        return pairs.summed(found, shares @ bias_out.squeeze(1))

    @staticmethod
    def backward(ctx: SavingContext, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        least, vectors, shares, weight_in, bias_in, weight_out, bias_out = ctx.saved_tensors
        pairs = _Pairs(shares, float(least))
        inputs, of_shares = pairs.rows_of(vectors), []
        of_inputs = torch.zeros_like(inputs)
        rows, above, to_rows = (pairs.by_expert(table) for table in (inputs, pairs.rows_of(gradient), of_inputs))
        first, bias, second = weight_in.unbind(), bias_in.unbind(), weight_out.unbind()
        gradients = torch.empty_like(weight_in), torch.empty_like(bias_in), torch.empty_like(weight_out)
        to_first, to_bias, to_second = (each.unbind() for each in gradients)
        for share, experts, counts in pairs.blocks():
            layer, of_layer = (inputs.new_empty(len(share), weight_in.shape[2]) for _ in range(2))
            parts = list(zip(experts, layer.split(counts), of_layer.split(counts)))
            for expert, part, of_part in parts:
                torch.addmm(bias[expert], rows[expert], first[expert], out=part)
                torch.mm(above[expert], second[expert].t(), out=of_part)
            layer.relu_()
            of_shares.append((of_layer * layer).sum(1))
            # the sign of a ReLU is its derivative; a comparison takes several times as long
            of_layer.mul_(layer.sign().mul_(share))
            layer.mul_(share)
            # without rows all of these are sums over nothing
            for expert, part, of_part in parts:
                torch.mm(rows[expert].t(), of_part, out=to_first[expert])
                torch.sum(of_part, 0, keepdim=True, out=to_bias[expert])
                torch.mm(part.t(), above[expert], out=to_second[expert])
                to_rows[expert].addmm_(of_part, first[expert].t())
        return (
            None,
            pairs.summed(of_inputs, torch.zeros_like(vectors)),
            pairs.spread(torch.cat(of_shares)) + gradient @ bias_out.squeeze(1).t(),
            *gradients,
            (shares.t() @ gradient).unsqueeze(1),
        )
