"""The products that training on a graph asks of its matrix: all rows, some rows, live entries only.

Loops compiled by numba where they run (:mod:`recbole_prune.sparse.graph_kernels`), else torch's sparse products, equal
up to rounding. Every function takes a square matrix in CSR form with 32-bit indices, of the type of the tables.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from recbole_prune.sparse.compiling import available
from recbole_prune.sparse.inverted_lists import in_threads
from recbole_prune.sparse.rows import CompressedRows

# live entries of a row up to which reading them alone costs less than reading a dense row (measured, width 64)
_FEW_LIVE = 3
_ROWS_AT_ONCE = 1 << 12  # in each of several threads
_LINE = 16  # numbers of a row that a processor reads together


def multiply(
    csr: torch.Tensor, own: torch.Tensor | None, share: float, table: torch.Tensor, scale: float = 1.0
) -> torch.Tensor:
    """``share * own + scale * (csr @ table)``, shape of ``table``; without ``own`` the product, unscaled."""
    if _in_loops(csr):
        from recbole_prune.sparse.graph_kernels import multiply as by_loop

        found = table.new_empty(table.shape)
        own = table.new_empty(0, table.shape[1]) if own is None else own
        _run(by_loop, len(table), _ROWS_AT_ONCE, csr, own, share, table, scale, found)
        return found
    product: torch.Tensor = (
        torch.mm(csr, table) if own is None else torch.addmm(own, csr, table, beta=share, alpha=scale)
    )
    return product


def multiply_rows(
    csr: torch.Tensor, own: torch.Tensor, share: float, table: torch.Tensor, scale: float, rows: torch.Tensor
) -> torch.Tensor:
    """``share * own + scale * (csr[rows] @ table)``: numbers of rows ``[n]``, result and ``own`` ``[n, width]``."""
    if _in_loops(csr):
        from recbole_prune.sparse.graph_kernels import multiply_rows as by_loop

        found: torch.Tensor = own.new_empty(own.shape)
        _run(by_loop, len(rows), _ROWS_AT_ONCE, csr, own, share, table, scale, rows.int(), found)
        return found
    columns, owner, weights = _entries(csr, rows)
    some = torch.sparse_coo_tensor(torch.stack([owner, columns]), weights, (len(rows), csr.shape[1]))
    product: torch.Tensor = torch.sparse.mm(some, table)
    return product.mul_(scale).add_(own, alpha=share)


def multiply_compact(csr: torch.Tensor, values: torch.Tensor, live: CompressedRows, scale: float) -> torch.Tensor:
    """``scale * (table + csr @ table)`` of a compact table, dense ``[rows, width]``."""
    if not (_in_loops(csr) and 0 < live.live <= _FEW_LIVE * live.shape[0]):
        table = live.expand(values)
        return multiply(csr, table, scale, table, scale)
    from recbole_prune.sparse.graph_kernels import multiply_compact as by_loop

    found = values.new_empty(live.shape)
    _run(by_loop, len(found), _ROWS_AT_ONCE, csr, live.pointers, live.columns, values, scale, found)
    return found


def multiply_live(csr: torch.Tensor, table: torch.Tensor, live: CompressedRows) -> torch.Tensor:
    """The live entries of ``csr @ table``, shape ``[live]``."""
    if not (_in_loops(csr) and live.live):
        return live.gather(torch.mm(csr, table))
    from recbole_prune.sparse.graph_kernels import multiply_live as by_loop

    values = table.new_empty(live.live)
    _run(by_loop, len(table), _ROWS_AT_ONCE, csr, table, live.pointers, live.columns, values)
    return values


def spread(csr: torch.Tensor, rows: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
    """``v + transposed csr @ v``, ``v`` being 0 but for the sums of ``vectors`` ``[n, width]`` in ``rows`` ``[n]``."""
    found = vectors.new_zeros(csr.shape[1], vectors.shape[1])
    if _in_loops(csr):
        from recbole_prune.sparse.graph_kernels import spread as by_loop

        # rows have neighbours in common, columns have not
        step = _LINE * max(1, vectors.shape[1] // (_LINE * torch.get_num_threads()))
        _run(by_loop, vectors.shape[1], step, csr, rows.int(), vectors, found)
        return found
    columns, owner, weights = _entries(csr, rows)
    some = torch.sparse_coo_tensor(torch.stack([columns, owner]), weights, (csr.shape[1], len(rows)))
    return found.index_add_(0, rows, vectors).add_(torch.sparse.mm(some, vectors))


def _in_loops(csr: torch.Tensor) -> bool:
    return csr.device.type == "cpu" and csr.dtype in (torch.float32, torch.float64) and available()


def _entries(csr: torch.Tensor, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Columns of the entries of some rows, which of ``rows`` each is of, and what they weigh."""
    starts = csr.crow_indices().index_select(0, rows).long()
    counts = csr.crow_indices().index_select(0, rows + 1) - starts
    owner = torch.repeat_interleave(counts)
    position = torch.arange(len(owner), device=owner.device)
    position += (starts - counts.cumsum(0) + counts).index_select(0, owner)
    return csr.col_indices().index_select(0, position).long(), owner, csr.values().index_select(0, position)


def _run(loop: Callable[..., None], count: int, step: int, csr: torch.Tensor, *arguments: torch.Tensor | float) -> None:
    """A loop from 0 to ``count``, in torch's threads by so many at once.

    Args:
        loop: takes the matrix, the arguments, and from where to where it goes.
        count, step: as said.
        csr: the matrix.
        arguments: tensors, handed over as arrays, and numbers, as those of the matrix's type.
    """
    weights = csr.values().numpy()
    unsigned = [part.numpy().view("uint32") for part in (csr.crow_indices(), csr.col_indices())]
    number = weights.dtype.type  # with a Python number all would be computed in double precision
    given = [x.detach().contiguous().numpy() if isinstance(x, torch.Tensor) else number(x) for x in arguments]
    threads = torch.get_num_threads()
    step = step if threads > 1 else max(1, count)
    in_threads(
        lambda first: loop(*unsigned, weights, *given, first, min(count, first + step)), range(0, count, step), threads
    )
