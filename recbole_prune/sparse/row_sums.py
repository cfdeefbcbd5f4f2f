"""Sums of weighted rows of a table that stay in registers, in loops compiled by numba; imported only where that is.

numba makes of such a loop one that reads and writes the sum again and again and asks each time whether it overlaps the
rows: that, not memory, was most of its time. Here the instructions are written down: for up to 64 columns at a time
the sum is built in registers over all rows, which are asked for long before they are read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from recbole_prune.sparse.prefetching import declare_prefetch

if TYPE_CHECKING:
    from llvmlite import ir
    from numba.core.base import BaseContext
    from numba.core.typing.templates import Signature

Whole = NDArray[np.unsignedinteger]
Real = NDArray[np.floating]

_AHEAD = 32  # entries between asking for a row and reading it (measured from 8 to 48)
# numbers in a register, and registers, of the widths that are summed together; what is left of a row overlaps them
_BLOCKS = ((16, 4), (16, 2), (16, 1), (4, 1), (1, 1))


def _sum_rows_slowly(begin: int, end: int, last: int, columns: Whole, weights: Real, table: Real, total: Real) -> None:
    total[:] = 0
    for at in range(begin, end):
        total += weights[at] * table[columns[at]]


def _make_sum_rows() -> Callable[[int, int, int, Whole, Real, Real, Real], None]:
    import numba

    if numba.config.DISABLE_JIT:
        return _sum_rows_slowly
    from numba.core import cgutils, errors, types
    from numba.extending import intrinsic

    def sum_rows(typing: object, begin: types.Integer, end: types.Integer, last: types.Integer, columns: types.Array,
        weights: types.Array, table: types.Array, total: types.Array,
    ) -> tuple[Signature, Callable[..., object]]:  # fmt: skip
        arrays = columns, weights, table, total
        fits = str(columns.dtype).startswith("uint") and weights.dtype == table.dtype == total.dtype
        if not fits or any(kind.layout != "C" for kind in arrays):
            raise errors.TypingError(f"contiguous arrays of one type, and numbers without sign, not {arrays}")

        def generate(
            context: BaseContext, builder: ir.IRBuilder, signature: Signature, arguments: Sequence[ir.Value]
        ) -> object:
            arrays = [
                context.make_array(kind)(context, builder, value)
                for kind, value in zip(signature.args[3:], arguments[3:])
            ]
            width = cgutils.unpack_tuple(builder, arrays[2].shape)[1]
            _Sum(builder, arguments[:3], [array.data for array in arrays], width).write()
            return context.get_dummy_value()

        whole = types.uint64
        return types.void(whole, whole, whole, columns, weights, table, total), generate

    made: Callable[[int, int, int, Whole, Real, Real, Real], None] = intrinsic(sum_rows)
    return made


class _Sum:
    """Writes the instructions; every value is one of LLVM's.

    Args:
        builder: where they go.
        entries: begin, end and last, numbers of 64 bits.
        data: addresses of the first numbers of columns, weights, table and total.
        width: of the table.
    """

    def __init__(
        self, builder: ir.IRBuilder, entries: Sequence[ir.Value], data: Sequence[ir.Value], width: ir.Value
    ) -> None:
        from llvmlite import ir

        self._ir, self._builder = ir, builder
        self._begin, self._end, self._last = entries
        self._columns, self._weights, self._table, self._total = data
        self._width = width
        self._real = self._table.type.pointee
        self._size = 4 if isinstance(self._real, ir.FloatType) else 8
        self._ask_for = declare_prefetch(builder)

    def write(self) -> None:
        """All of the sum: as many wide blocks of columns as there are, then narrower ones."""
        start = self._number(0)
        for lanes, count in _BLOCKS:
            start = self._write_blocks(start, lanes, count)

    def _number(self, value: int) -> ir.Constant:
        return self._ir.Constant(self._ir.IntType(64), value)

    def _write_blocks(self, start: ir.Value, lanes: int, count: int) -> ir.Value:
        """Blocks of ``lanes * count`` columns from a column on; returns the first column that none of them has."""
        builder, size = self._builder, self._number(lanes * count)
        before = builder.block
        head, block, after = (builder.append_basic_block(name) for name in ("blocks", "block", "narrower"))
        builder.branch(head)
        builder.position_at_end(head)
        column = builder.phi(size.type)
        column.add_incoming(start, before)
        if count > 1:
            first = column
            fits = builder.icmp_unsigned("<=", builder.add(column, size), self._width)
        else:  # the last block of a row may begin in the one before: its sums are written twice
            latest = builder.sub(self._width, size)
            first = builder.select(builder.icmp_unsigned("<", column, latest), column, latest)
            fits = builder.and_(
                builder.icmp_unsigned("<", column, self._width), builder.icmp_unsigned(">=", self._width, size)
            )
        builder.cbranch(fits, block, after)
        builder.position_at_end(block)
        self._write_block(first, lanes, count)
        column.add_incoming(builder.add(column, size), builder.block)
        builder.branch(head)
        builder.position_at_end(after)
        return column

    def _write_block(self, first: ir.Value, lanes: int, count: int) -> None:
        """The loop over the entries for the columns from ``first`` on."""
        ir, builder = self._ir, self._builder
        kind = ir.VectorType(self._real, lanes) if lanes > 1 else self._real
        zero = ir.Constant(kind, [0.0] * lanes if lanes > 1 else 0.0)
        before = builder.block
        head, entry, after = (builder.append_basic_block(name) for name in ("entries", "entry", "sums"))
        builder.branch(head)
        builder.position_at_end(head)
        at = builder.phi(self._begin.type)
        at.add_incoming(self._begin, before)
        sums = [builder.phi(kind) for _ in range(count)]
        for each in sums:
            each.add_incoming(zero, before)
        builder.cbranch(builder.icmp_unsigned("<", at, self._end), entry, after)
        builder.position_at_end(entry)
        self._ask_for_block(at, first, lanes * count)
        weight = self._repeated(builder.load(builder.gep(self._weights, [at])), lanes)
        place = self._place(at, first)
        for number, each in enumerate(sums):
            row = builder.load(self._vector(self._table, place, number * lanes, kind), align=self._size)
            product = builder.fmul(weight, row, flags=("contract",))
            each.add_incoming(builder.fadd(each, product, flags=("contract",)), entry)
        at.add_incoming(builder.add(at, self._number(1)), entry)
        builder.branch(head)
        builder.position_at_end(after)
        for number, each in enumerate(sums):
            builder.store(each, self._vector(self._total, first, number * lanes, kind), align=self._size)

    def _ask_for_block(self, at: ir.Value, first: ir.Value, columns: int) -> None:
        builder = self._builder
        later = builder.add(at, self._number(_AHEAD))
        soon = builder.select(builder.icmp_unsigned("<", later, self._last), later, at)
        place = self._place(soon, first)
        for column in range(0, columns, 64 // self._size):
            self._ask_for(builder.gep(self._table, [builder.add(place, self._number(column))]))

    def _place(self, at: ir.Value, column: ir.Value) -> ir.Value:
        """Of a column in the row of an entry, among the numbers of the table."""
        builder = self._builder
        row = builder.load(builder.gep(self._columns, [at]))
        if row.type.width < 64:
            row = builder.zext(row, self._begin.type)
        return builder.add(builder.mul(row, self._width), column)

    def _vector(self, data: ir.Value, place: ir.Value, further: int, kind: ir.Type) -> ir.Value:
        builder = self._builder
        return builder.bitcast(builder.gep(data, [builder.add(place, self._number(further))]), kind.as_pointer())

    def _repeated(self, number: ir.Value, lanes: int) -> ir.Value:
        if lanes == 1:
            return number
        ir, builder = self._ir, self._builder
        nothing = ir.Constant(ir.VectorType(self._real, lanes), ir.Undefined)
        first = ir.IntType(32)
        one = builder.insert_element(nothing, number, ir.Constant(first, 0))
        return builder.shuffle_vector(one, nothing, ir.Constant(ir.VectorType(first, lanes), [0] * lanes))


sum_rows = _make_sum_rows()
"""Make a row the sum of ``weights[at] * table[columns[at]]`` over the entries from ``begin`` to ``end``.

For compiled loops; others are refused when they are compiled than contiguous arrays, and unsigned ``columns``, which
are within the table: that nothing asks.

Args:
    begin, end: entries.
    last: entries behind ``end`` are read soon, up to this one.
    columns: row of the table for every entry.
    weights: likewise.
    table: ``[n, width]``.
    total: ``[width]``, not within the table.
"""
