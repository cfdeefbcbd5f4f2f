"""The products that training on a graph asks of its matrix: all rows, some rows, live entries only.

Loops compiled by numba where they run (:mod:`recbole_prune.sparse.graph_kernels`), else torch's sparse products, equal
up to rounding. Every function takes a matrix in CSR form with 32-bit indices, of the type of the tables.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from numpy.typing import NDArray

from recbole_prune.sparse.compiling import available, is_shown_to_torch
from recbole_prune.sparse.inverted_lists import in_threads
from recbole_prune.sparse.rows import CompressedRows

_ROWS_AT_ONCE = 1 << 12  # in each of several threads
_Arrays = tuple[NDArray[Any], NDArray[Any], NDArray[Any]]  # a matrix in CSR form


def multiply(
    csr: torch.Tensor,
    own: torch.Tensor | None,
    share: float,
    table: torch.Tensor,
    scale: float = 1.0,
    found: torch.Tensor | None = None,
) -> torch.Tensor:
    """``share * own + scale * (csr @ table)``; without ``own`` the product, unscaled.

    Args:
        csr: ``[m, n]``.
        own: ``[m, width]``.
        share, scale: factors.
        table: ``[n, width]``.
        found: where the result may be written, ``[m, width]``.
    """
    if _in_loops(csr):
        if found is None:
            found = table.new_empty(csr.shape[0], table.shape[1])
        _multiply(_arrays(csr), own, share, table, scale, found)
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
        found = own.new_empty(own.shape)
        _multiply(_some_rows(csr, rows), own, share, table, scale, found)
        return found
    columns, owner, weights = _entries(csr, rows)
    some = torch.sparse_coo_tensor(torch.stack([owner, columns]), weights, (len(rows), csr.shape[1]))
    product: torch.Tensor = torch.sparse.mm(some, table)
    return product.mul_(scale).add_(own, alpha=share)


def multiply_live(csr: torch.Tensor, table: torch.Tensor, live: CompressedRows) -> torch.Tensor:
    """The live entries of ``csr @ table``, shape ``[live]``."""
    if not (_in_loops(csr) and live.live):
        return live.gather(torch.mm(csr, table))
    from recbole_prune.sparse.graph_kernels import multiply_live as by_loop

    values = table.new_empty(live.live)
    _run(by_loop, _arrays(csr), table, live.pointers, live.columns, values)
    return values


def entries_of_rows(csr: torch.Tensor, rows: torch.Tensor) -> int:
    """How many stored entries some rows have, ``[n]``, each counted as often as it is there."""
    pointers = csr.crow_indices()
    return int((pointers.index_select(0, rows + 1) - pointers.index_select(0, rows)).sum())


def spread(
    csr: torch.Tensor, rows: torch.Tensor, vectors: torch.Tensor, found: torch.Tensor | None = None
) -> torch.Tensor:
    """``v + transposed csr @ v``, ``v`` being 0 but for the sums of ``vectors`` ``[n, width]`` in ``rows`` ``[n]``.

    It may be written to ``found``. The matrix is square.
    """
    shape = csr.shape[1], vectors.shape[1]
    if _in_loops(csr):
        from recbole_prune.sparse.graph_kernels import transpose

        found = vectors.new_empty(shape) if found is None else found
        _multiply(transpose(*_some_rows(csr, rows), csr.shape[1]), None, 0.0, vectors, 1.0, found)
        return found.index_add_(0, rows, vectors)
    columns, owner, weights = _entries(csr, rows)
    some = torch.sparse_coo_tensor(torch.stack([columns, owner]), weights, (csr.shape[1], len(rows)))
    return vectors.new_zeros(shape).index_add_(0, rows, vectors).add_(torch.sparse.mm(some, vectors))


def _in_loops(csr: torch.Tensor) -> bool:
    fits = csr.device.type == "cpu" and csr.dtype in (torch.float32, torch.float64)
    return fits and not is_shown_to_torch() and available()


def _entries(csr: torch.Tensor, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Columns of the entries of some rows, which of ``rows`` each is of, and what they weigh."""
    starts = csr.crow_indices().index_select(0, rows).long()
    counts = csr.crow_indices().index_select(0, rows + 1) - starts
    owner = torch.repeat_interleave(counts)
    position = torch.arange(len(owner), device=owner.device)
    position += (starts - counts.cumsum(0) + counts).index_select(0, owner)
    return csr.col_indices().index_select(0, position).long(), owner, csr.values().index_select(0, position)


def _arrays(csr: torch.Tensor) -> _Arrays:
    pointers, columns = (part.numpy().view("uint32") for part in (csr.crow_indices(), csr.col_indices()))
    return pointers, columns, csr.values().numpy()


def _some_rows(csr: torch.Tensor, rows: torch.Tensor) -> _Arrays:
    from recbole_prune.sparse.graph_kernels import some_rows

    found: _Arrays = some_rows(*_arrays(csr), rows.numpy())
    return found


def _multiply(
    matrix: _Arrays, own: torch.Tensor | None, share: float, table: torch.Tensor, scale: float, found: torch.Tensor
) -> None:
    from recbole_prune.sparse.graph_kernels import multiply as by_loop

    _run(by_loop, matrix, table[:0] if own is None else own, share, table, scale, found)


def _run(loop: Callable[..., None], matrix: _Arrays, *arguments: torch.Tensor | float) -> None:
    """A loop over the rows of a matrix, in torch's threads by so many at once.

    Args:
        loop: takes the matrix, the arguments, and from where to where it goes.
        matrix: as said.
        arguments: tensors, handed over as arrays, and numbers, as those of the matrix's type.
    """
    number = matrix[2].dtype.type  # with a Python number all would be computed in double precision
    given = [x.detach().contiguous().numpy() if isinstance(x, torch.Tensor) else number(x) for x in arguments]
    count, threads = len(matrix[0]) - 1, torch.get_num_threads()
    step = _ROWS_AT_ONCE if threads > 1 else max(1, count)
    in_threads(lambda first: loop(*matrix, *given, first, min(count, first + step)), range(0, count, step), threads)
