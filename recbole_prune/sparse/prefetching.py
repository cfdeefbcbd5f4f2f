"""Asking for a row of a table long before it is read, in loops compiled by numba; imported only where that is there.

Rows that a batch or a graph asks for lie anywhere in memory, and waiting for them is most of what such a loop does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from recbole_prune.sparse.compiling import compile_loop

if TYPE_CHECKING:
    from llvmlite import ir
    from numba.core.base import BaseContext
    from numba.core.typing.templates import Signature

Real = NDArray[np.floating]

_LINE = 16  # numbers that come from memory together


def declare_prefetch(builder: ir.IRBuilder) -> Callable[[ir.Value], None]:
    """What writes, into LLVM's instructions, that an address is asked for; nothing waits for it."""
    from llvmlite import ir
    from numba.core import cgutils

    byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
    kind = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")

    def ask_for(address: ir.Value) -> None:
        # for reading, into all caches, data
        builder.call(function, [builder.bitcast(address, byte), number(0), number(3), number(1)])

    return ask_for


def _make_prefetch() -> Callable[[NDArray[np.number], int], None]:
    """A function that a loop takes for a single instruction."""
    import numba

    if numba.config.DISABLE_JIT:
        return lambda table, place: None
    from numba.core import types
    from numba.extending import intrinsic

    def prefetch(typing: object, table: types.Array, place: types.Integer) -> tuple[Signature, Callable[..., object]]:
        def generate(
            context: BaseContext, builder: ir.IRBuilder, signature: Signature, arguments: Sequence[ir.Value]
        ) -> object:
            data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
            declare_prefetch(builder)(builder.gep(data, [arguments[1]]))
            return context.get_dummy_value()

        return types.void(table, place), generate

    made: Callable[[NDArray[np.number], int], None] = intrinsic(prefetch)
    return made


ask_for = _make_prefetch()
"""Ask for the number at a place of a contiguous array, which need not be there; for compiled loops."""


@partial(compile_loop, alone=False)
def ask_for_row(table: Real, row: int) -> None:
    """Ask for a row of a contiguous table; nothing waits for it."""
    width = table.shape[1]
    start = np.int64(row) * width
    for f in range(0, width, _LINE):
        ask_for(table, start + f)
