"""The positions of a table's live entries, and the lookup and expansion of values stored without the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, Optional, Protocol

import torch
from numpy.typing import NDArray
from torch.autograd.function import once_differentiable

from recbole_prune.sparse.contexts import SavingContext
from recbole_prune.sparse.row_kernels import kernel


@dataclass(frozen=True)
class CompressedRows:
    """Where the live entries of a table stand: compressed sparse rows without the values.

    Attributes:
        shape: rows and columns of the table.
        pointers: live entries before each row, int32 (int64 above 2^31 entries), shape ``[rows + 1]``.
        columns: column of every live entry, row by row, in the narrowest type that holds it (uint8, int16 or int32).
    """

    shape: tuple[int, int]
    pointers: torch.Tensor
    columns: torch.Tensor

    @classmethod
    def of(cls, mask: torch.Tensor) -> CompressedRows:
        """The live entries of a boolean mask ``[rows, columns]``."""
        rows, width = mask.shape
        counts = torch.zeros(rows + 1, dtype=torch.int64, device=mask.device)
        parts = []
        for start in range(0, rows, _ROWS_AT_ONCE):
            block = mask[start : start + _ROWS_AT_ONCE]
            counts[start + 1 : start + 1 + len(block)] = block.sum(1)
            parts.append(block.nonzero()[:, 1].to(_narrowest(width)))
        pointers = counts.cumsum(0)
        live = int(pointers[-1])
        return cls((rows, width), pointers.to(torch.int32 if live < 2**31 else torch.int64), torch.cat(parts))

    @classmethod
    def stacked(cls, parts: Sequence[CompressedRows]) -> CompressedRows:
        """Those of tables of one width, one below the other."""
        before, pointers = 0, [parts[0].pointers[:1].long()]
        for part in parts:
            pointers.append(part.pointers[1:].long() + before)
            before += part.live
        shape = sum(part.shape[0] for part in parts), parts[0].shape[1]
        joined = torch.cat(pointers).to(torch.int32 if before < 2**31 else torch.int64)
        return cls(shape, joined, torch.cat([part.columns for part in parts]))

    @property
    def live(self) -> int:
        """Number of live entries."""
        return len(self.columns)

    @property
    def nbytes(self) -> int:
        """Bytes of the positions."""
        return sum(part.numel() * part.element_size() for part in (self.pointers, self.columns))

    def to(self, device: torch.device) -> CompressedRows:
        """The same positions on a device."""
        if self.pointers.device == device:
            return self
        return CompressedRows(self.shape, self.pointers.to(device), self.columns.to(device))

    @cached_property
    def _on_host(self) -> NDArray[Any]:
        """The pointers, copied once: to read a number from a GPU is to wait for all that it was asked to do before."""
        return self.pointers.cpu().numpy()

    @cached_property
    def arrays(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """Pointers and columns on a CPU, for loops: a batch asks for them a dozen times."""
        return self.pointers.numpy(), self.columns.numpy()

    def span(self, start: int, stop: int) -> slice:
        """Where the live entries of the rows ``start`` to ``stop - 1`` stand among all."""
        return slice(int(self._on_host[start]), int(self._on_host[stop]))

    def flat(self, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Positions ``row * width + column`` of the live entries of the rows ``start`` to ``stop - 1``, int64."""
        stop = self.shape[0] if stop is None else stop
        columns, pointers = self.columns[self.span(start, stop)], self.pointers[start : stop + 1].long()
        rows = torch.arange(start, stop, device=pointers.device)
        owner = torch.repeat_interleave(rows, pointers[1:] - pointers[:-1], output_size=len(columns))
        return owner.mul_(self.shape[1]).add_(columns)

    def entries_of(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The live entries of some rows, ``ids`` int64 of shape ``[n]``.

        Returns:
            their positions ``i * width + column`` in the table of the rows looked up, and among the live entries.
        """
        # not pointers[ids], which takes negative ids for rows from the end
        starts = self.pointers.index_select(0, ids)
        counts = self.pointers.index_select(0, ids + 1) - starts
        owner = torch.repeat_interleave(counts)  # how many there are only the device knows: a lookup waits for it
        position = torch.arange(len(owner), device=owner.device)
        position += (starts - counts.cumsum(0) + counts).index_select(0, owner)
        return owner.mul_(self.shape[1]).add_(self.columns.index_select(0, position)), position

    def gather(self, table: torch.Tensor) -> torch.Tensor:
        """The live entries of a dense table, row by row, shape ``[live]``."""
        values = table.new_empty(self.live)
        loop = kernel("gather", self, values, table)
        if loop:
            loop()
            return values
        flat = table.reshape(-1)
        parts = [flat.index_select(0, self.flat(*block)) for block in self._blocks()]
        return torch.cat(parts)

    def expand(self, values: torch.Tensor, table: torch.Tensor | None = None) -> torch.Tensor:
        """The dense table of the shape, in ``table`` if that is given; pruned entries are 0."""
        table = values.new_empty(self.shape) if table is None else table
        loop = kernel("expand", self, values, table)
        if loop:
            loop()
            return table
        table.zero_()
        for start, stop in self._blocks():
            table.view(-1).scatter_(0, _for_scatter(self.flat(start, stop)), values[self.span(start, stop)])
        return table

    def add_rows(self, values: torch.Tensor, ids: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
        """Add the live entries of ``vectors`` ``[n, columns]`` to those of the rows ``ids`` ``[n]``, in place."""
        loop = kernel("add_rows", self, values, ids, vectors.contiguous())
        if loop:
            loop()
            return values
        flat, position = self.entries_of(ids)
        return values.index_add_(0, position, vectors.reshape(-1).index_select(0, flat))

    def _blocks(self) -> list[tuple[int, int]]:
        """Ranges of rows whose positions fit beside a large table."""
        return [(start, min(start + _ROWS_AT_ONCE, self.shape[0])) for start in range(0, self.shape[0], _ROWS_AT_ONCE)]


_ROWS_AT_ONCE = 1 << 17
Recording = Optional[Callable[[Optional[torch.Tensor], torch.Tensor], None]]


def _narrowest(width: int) -> torch.dtype:
    return torch.uint8 if width <= 2**8 else torch.int16 if width <= 2**15 else torch.int32


class _ExpandContext(Protocol):
    rows: CompressedRows
    record: Recording


class _Expand(torch.autograd.Function):
    """Values -> dense table; backward keeps the gradient of the live entries."""

    @staticmethod
    def forward(ctx: _ExpandContext, values: torch.Tensor, rows: CompressedRows, record: Recording) -> torch.Tensor:
        ctx.rows, ctx.record = rows, record
        return rows.expand(values)

    @staticmethod
    @once_differentiable
    def backward(ctx: _ExpandContext, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        if ctx.record is not None:
            ctx.record(None, gradient)
        return ctx.rows.gather(gradient), None, None


def expand(values: torch.Tensor, rows: CompressedRows, record: Recording = None) -> torch.Tensor:
    """The dense table, differentiable with respect to ``values``; ``record`` as in :func:`look_up`."""
    table: torch.Tensor = _Expand.apply(values, rows, record)
    return table


@cache
def _scatters_by_int32() -> bool:
    """Whether this torch takes 32-bit positions in ``scatter_`` on a CPU (1.13 does not)."""
    try:
        torch.zeros(1).scatter_(0, torch.zeros(1, dtype=torch.int32), torch.ones(1))
    except RuntimeError:
        return False
    return True


def _for_scatter(positions: torch.Tensor) -> torch.Tensor:
    return positions if positions.device.type == "cpu" and _scatters_by_int32() else positions.long()


class _LookUpContext(SavingContext, Protocol):
    rows: CompressedRows
    padding_idx: int | None
    live: int
    ids: torch.Tensor | None  # kept where there is a record
    record: Recording


class _LookUp(torch.autograd.Function):
    """Values and row numbers -> dense rows; backward adds up the gradients of the live entries."""

    @staticmethod
    def forward(
        ctx: _LookUpContext,
        values: torch.Tensor,
        rows: CompressedRows,
        ids: torch.Tensor,
        padding_idx: int | None,
        record: Recording,
    ) -> torch.Tensor:
        looked_up = values.new_empty(len(ids), rows.shape[1])
        ctx.rows, ctx.padding_idx, ctx.live, ctx.record = rows, padding_idx, len(values), record
        ctx.ids = ids if record is not None else None
        loop = kernel("scatter_rows", rows, values, ids, looked_up)
        if loop:
            if not loop():
                _check(ids, rows.shape[0])
            ctx.save_for_backward(ids)
            return looked_up
        _check(ids, rows.shape[0])
        flat, position = rows.entries_of(ids)
        looked_up.zero_().view(-1).scatter_(0, _for_scatter(flat), values.index_select(0, position))
        ctx.save_for_backward(flat, position)
        return looked_up

    @staticmethod
    @once_differentiable
    def backward(ctx: _LookUpContext, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None, None, None]:
        rows, live = ctx.rows, gradient.new_zeros(ctx.live)
        saved = ctx.saved_tensors  # torch.utils.checkpoint gives them once
        if len(saved) == 1:
            rows.add_rows(live, *saved, gradient)
        else:
            flat, position = saved
            live.index_add_(0, position, gradient.reshape(-1).index_select(0, flat))
        if ctx.padding_idx is not None:
            live[rows.span(ctx.padding_idx, ctx.padding_idx + 1)] = 0
        if ctx.record is not None and ctx.ids is not None:
            real = slice(None) if ctx.padding_idx is None else ctx.ids != ctx.padding_idx
            ctx.record(ctx.ids[real], gradient[real])
        return live, None, None, None, None


def look_up(
    values: torch.Tensor,
    rows: CompressedRows,
    ids: torch.Tensor,
    padding_idx: int | None = None,
    record: Recording = None,
) -> torch.Tensor:
    """Rows of a compact table.

    Args:
        values: live entries, shape ``[live]``.
        rows: where they stand.
        ids: row numbers, any shape.
        padding_idx: a row that gets no gradient, as in ``nn.Embedding``.
        record: called in the backward pass with row numbers (None: all rows) and their dense gradients.

    Returns:
        shape ``[*ids.shape, columns]``; it can be differentiated once (no ``create_graph``).

    Raises:
        IndexError: an id is not the number of a row.
    """
    looked_up: torch.Tensor = _LookUp.apply(values, rows, ids.reshape(-1), padding_idx, record)
    return looked_up.view(*ids.shape, rows.shape[1])


def _check(ids: torch.Tensor, rows: int) -> None:
    # on a GPU torch's own indexing asserts, and a check here would wait for the device
    if ids.device.type != "cpu" or not ids.numel():
        return
    low, high = (int(bound) for bound in torch.aminmax(ids))
    if low < 0 or high >= rows:
        raise IndexError(f"row {low if low < 0 else high} of an embedding of {rows} rows")
