"""The mean of a graph's layers, of which training computes the last one for the rows of its batch only.

LightGCN's vectors are a mean over layers (He et al. 2020, arXiv:2002.02126, eq. 8), and the loss of a batch reads few
of them. By Horner's rule the mean is ``share * ego + matrix @ (share * ego + matrix @ (...))``: the outermost product,
and the first one of the backward pass, then go through the edges of the batch's nodes alone. The innermost product, and
the last one of the backward pass, read and write live entries where tables are compact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from recbole_prune.sparse import graph_products
from recbole_prune.sparse.compact import CompactEmbedding
from recbole_prune.sparse.rows import CompressedRows, look_up
from recbole_prune.sparse.unfinished import Unfinished
from recbole_prune.sparse.workspace import Workspace


class Nodes:
    """The vectors of a graph's nodes: tables, one below the other.

    Args:
        tables: of equal width.

    Attributes:
        values: dense ``[nodes, width]``, or the live entries where all tables are compact; differentiable.
        live: where those stand; None where ``values`` is dense.
        shape: of the dense form.
    """

    def __init__(self, tables: Sequence[nn.Embedding]) -> None:
        # what is recorded is the gradient of the whole table
        compact = [table for table in tables if isinstance(table, CompactEmbedding) and table.record is None]
        self.live: CompressedRows | None = None
        if len(compact) < len(tables):
            self.values = torch.cat([table.weight for table in tables])
            self.shape = self.values.shape
            return
        for table in compact:
            table.take_writes()
        self.values = torch.cat([table.values for table in compact])
        self.live = CompressedRows.stacked([table.rows for table in compact])
        self.shape = torch.Size(self.live.shape)


class Matrix(Protocol):
    """A sparse matrix that does not change."""

    workspace: Workspace

    @property
    def csr(self) -> torch.Tensor:
        """In CSR form with 32-bit indices."""

    @property
    def transposed(self) -> Matrix:
        """Its transpose."""


@dataclass(frozen=True)
class _Propagation:
    """The mean of layers as a linear map.

    Attributes:
        matrix: square.
        live: the live entries of what it is applied to; None where that is dense.
        layers: at least 1.
    """

    matrix: Matrix
    live: CompressedRows | None
    layers: int

    @property
    def share(self) -> float:
        """Of each layer in the mean."""
        return 1 / (self.layers + 1)

    def all_but_last(self, values: torch.Tensor) -> tuple[torch.Tensor, float]:
        """What the last product multiplies, and the factor on it."""
        ego = self.dense(values)
        if self.layers == 1:
            return ego, self.share
        inner = ego
        for scale in [self.share, *[1.0] * (self.layers - 2)]:
            inner = graph_products.multiply(self.matrix.csr, ego, self.share, inner, scale, self._table(inner))
        return inner, 1.0

    def dense(self, values: torch.Tensor) -> torch.Tensor:
        """The table of the values, for the time being."""
        return values if self.live is None else self.live.expand(values, self._table(values, self.live.shape))

    def _table(self, like: torch.Tensor, shape: Sequence[int] | None = None) -> torch.Tensor:
        return self.matrix.workspace.table(like.shape if shape is None else shape, like)

    def gradient_of_rows(self, rows: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
        """The gradient of the values where that of the mean is 0 but for ``vectors`` in some rows."""
        vectors, csr = vectors * self.share, self.matrix.csr
        is_kept = self.live is None and self.layers == 1
        found = None if is_kept else self._table(vectors, (csr.shape[1], vectors.shape[1]))
        total = self._spread(rows, vectors, found)
        if self.layers == 1:
            return total if self.live is None else self.live.gather(total)
        transposed = self.matrix.transposed.csr
        for _ in range(self.layers - 2):
            total = graph_products.multiply(transposed, None, 0.0, total, found=self._table(total))
            total.index_add_(0, rows, vectors)
        if self.live is None:
            return graph_products.multiply(transposed, None, 0.0, total).index_add_(0, rows, vectors)
        return self.live.add_rows(graph_products.multiply_live(transposed, total, self.live), rows, vectors)

    def _spread(self, rows: torch.Tensor, vectors: torch.Tensor, found: torch.Tensor | None) -> torch.Tensor:
        """``(1 + transposed matrix) @ v``, ``v`` being 0 but for ``vectors`` in some rows."""
        csr = self.matrix.csr
        if graph_products.entries_of_rows(csr, rows) <= csr.values().numel():
            return graph_products.spread(csr, rows, vectors, found)
        own = self._table(vectors, (csr.shape[1], vectors.shape[1])).zero_().index_add_(0, rows, vectors)
        return graph_products.multiply(self.matrix.transposed.csr, own, 1.0, own, found=found)

    def gradient(self, gradient: torch.Tensor) -> torch.Tensor:
        """The gradient of the values from that of the mean."""
        total = gradient * self.share
        own = total
        for _ in range(self.layers):
            total = graph_products.multiply(self.matrix.transposed.csr, own, 1.0, total)
        return total if self.live is None else self.live.gather(total)


class LayerMean:
    """Mean of ``ego``, ``A ego``, ..., ``A^layers ego``, differentiable once; its rows are computed when asked for.

    Args:
        matrix: ``A``, square.
        nodes: ``ego``.
        layers: at least 1.
        sizes: rows of each of the tables that the mean is split into.

    Attributes:
        handle: in place of the mean, for autograd: of its shape, filled with what is no number.
    """

    def __init__(
        self,
        matrix: Matrix,
        nodes: Nodes,
        layers: int,
        sizes: Sequence[int],
    ) -> None:
        # the graph of the backward pass holds this and not the layers
        self._propagation = _Propagation(matrix, nodes.live, layers)
        self._sizes = list(sizes)
        values = nodes.values.to(matrix.csr.dtype)
        self._values = values.detach()
        with torch.autocast(values.device.type, enabled=False):
            self._inner, self._scale = self._propagation.all_but_last(self._values)
        self._all: torch.Tensor | None = None
        self._spent = 0  # entries of the matrix that rows have cost
        self.handle: torch.Tensor = _Mean.apply(values, self._propagation, nodes.shape)

    def tables(self) -> tuple[Unfinished, ...]:
        """The mean as tables, none of which is computed yet."""
        return tuple(Unfinished.of(self, number, size) for number, size in enumerate(self._sizes))

    def rows(self, ids: torch.Tensor, table: int) -> torch.Tensor:
        """Rows of one of the tables, numbers int64 ``[n]``."""
        found: torch.Tensor = _Rows.apply(self.handle, self, ids + sum(self._sizes[:table]))
        return found

    @cached_property
    def finished(self) -> tuple[torch.Tensor, ...]:
        """The tables."""
        return torch.split(_Whole.apply(self.handle, self), self._sizes)

    def whole(self, found: torch.Tensor | None = None) -> torch.Tensor:
        """All rows of the mean, without gradient; they may be written to ``found``."""
        csr, ego = self._propagation.matrix.csr, self._propagation.dense(self._values)
        with torch.autocast(csr.device.type, enabled=False):
            return graph_products.multiply(csr, ego, self._propagation.share, self._inner, self._scale, found)

    def some(self, ids: torch.Tensor) -> torch.Tensor:
        """Some rows of the mean, without gradient.

        Rows of many edges, and rows that come again and again, cost more one by one than all of them at once. That is
        seen when as much has been spent: never more than twice of what had been best for these rows.
        """
        matrix, share, live = self._propagation.matrix, self._propagation.share, self._propagation.live
        if self._all is None:
            self._spent += graph_products.entries_of_rows(matrix.csr, ids)
            if self._spent > matrix.csr.values().numel():
                self._all = self.whole(matrix.workspace.table(self.handle.shape, self._inner))
        if self._all is not None:
            return self._all.index_select(0, ids)
        with torch.autocast(matrix.csr.device.type, enabled=False):
            own = self._values.index_select(0, ids) if live is None else look_up(self._values, live, ids)
            return graph_products.multiply_rows(matrix.csr, own, share, self._inner, self._scale, ids)


class _MeanContext(Protocol):
    propagation: _Propagation


class _Mean(torch.autograd.Function):
    """Values -> handle of the mean, whose gradient is dense or, where rows were asked for, sparse."""

    @staticmethod
    def forward(ctx: _MeanContext, values: torch.Tensor, propagation: _Propagation, shape: torch.Size) -> torch.Tensor:
        ctx.propagation = propagation
        return values.new_full((), float("nan")).expand(shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: _MeanContext, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        if not gradient.is_sparse:
            return ctx.propagation.gradient(gradient), None, None
        return ctx.propagation.gradient_of_rows(gradient._indices()[0], gradient._values()), None, None


class _RowsContext(Protocol):
    ids: torch.Tensor
    shape: torch.Size


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: _RowsContext, handle: torch.Tensor, mean: LayerMean, ids: torch.Tensor) -> torch.Tensor:
        ctx.ids, ctx.shape = ids, handle.shape
        return mean.some(ids)

    @staticmethod
    @once_differentiable
    def backward(ctx: _RowsContext, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        # those of several lookups are joined by autograd, not added up
        return torch.sparse_coo_tensor(ctx.ids[None], gradient, ctx.shape), None, None


class _Whole(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, handle: torch.Tensor, mean: LayerMean) -> torch.Tensor:
        return mean.whole()

    @staticmethod
    @once_differentiable
    def backward(ctx: object, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient, None
