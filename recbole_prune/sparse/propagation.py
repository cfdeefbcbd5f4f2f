"""Graph propagation on compressed sparse rows, for every model that multiplies a fixed sparse matrix.

RecBole's graph models keep their matrix in COO form and call ``torch.sparse.mm`` with it in every batch. The same
product on CSR with 32-bit indices takes a fifth of the time on a CPU or less, and its backward, for which torch
transposes the COO matrix anew each time, is one more such product. The models stay as they are: their matrix becomes a
tensor that multiplies in another way.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from logging import getLogger
from typing import Any, Protocol, TypeVar, cast

import torch
from torch import nn

from recbole_prune.sparse import graph_products
from recbole_prune.sparse.layer_mean import LayerMean, Nodes
from recbole_prune.sparse.unfinished import unwrapped
from recbole_prune.sparse.workspace import Workspace

_PRODUCTS = frozenset(
    {
        torch.sparse.mm,
        torch.spmm,
        torch.mm,
        torch.matmul,
        torch.Tensor.mm,
        torch.Tensor.matmul,
        torch.Tensor.__matmul__,
    }
)
_LONGEST_CONTAINER = 1000  # entries; longer lists and dicts of a model are data, not matrices
_Value = TypeVar("_Value")


def speed_up_propagation(model: nn.Module) -> None:
    """Replace the fixed sparse matrices among a model's attributes by :class:`FixedMatrix`.

    To be called whenever a model may have got new ones: at every ``train()`` and ``eval()``, since models such as SGL
    and KGAT rebuild theirs between epochs. Matrices that are there already stay the same object. A matrix is converted
    at its first product, whatever happened before, so that a resumed training repeats the products of an unbroken one.
    What a model makes per batch is no attribute at these moments and stays COO: it would be converted for a single use.
    """
    known: dict[int, FixedMatrix] = {}
    for module in model.modules():
        _replace(vars(module), known)


def _replace(container: dict[Any, Any] | list[Any], known: dict[int, FixedMatrix]) -> None:
    entries: Iterable[tuple[Any, Any]] = container.items() if isinstance(container, dict) else enumerate(container)
    for key, value in list(entries):
        if type(value) is torch.Tensor:
            if _is_fixed_matrix(value):
                container[key] = known.setdefault(id(value), FixedMatrix.of(value))
        elif type(value) in (list, dict) and len(value) <= _LONGEST_CONTAINER:
            _replace(value, known)


def _is_fixed_matrix(value: torch.Tensor) -> bool:
    return (
        value.layout is torch.sparse_coo
        and value.dim() == value.sparse_dim() == 2
        and not value.requires_grad
        and max(value._nnz(), *value.shape) < 2**31
        and _multiplies_csr(value.device.type, value.dtype)
    )


def plain(value: _Value) -> _Value | torch.Tensor:
    """The COO tensor that a :class:`FixedMatrix` stands for; anything else as it is."""
    return cast(FixedMatrix, value).plain if type(value) is FixedMatrix else value


class FixedMatrix(torch.Tensor):
    """A sparse COO matrix that multiplies dense ones by way of CSR and is a plain COO tensor in all else.

    Results of other operations, copies and pickles are plain tensors, so a checkpoint needs nothing of this package.

    Attributes:
        plain: the COO tensor, which shares its memory.
    """

    plain: torch.Tensor
    _rows: _CompressedRows | None

    @classmethod
    def of(cls, matrix: torch.Tensor) -> FixedMatrix:
        """A fixed matrix over the memory of ``matrix``, a COO tensor without gradient, shape ``(m, n)``."""
        fixed: FixedMatrix = torch.Tensor._make_subclass(cls, matrix)
        fixed.plain, fixed._rows = matrix, None
        return fixed

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Products with a dense matrix by way of CSR; all else as the COO tensor does it."""
        if func in _PRODUCTS and len(args) == 2 and not kwargs:
            left, right = args
            if type(left) is cls and left.can_multiply(right):
                return left._multiply(right)
        return func(*unwrapped(args, plain), **unwrapped(kwargs or {}, plain))

    def can_multiply(self, right: object) -> bool:
        """Whether the product with ``right`` can go by way of CSR."""
        matrix = self.plain
        return (
            isinstance(right, torch.Tensor)
            and type(right) in (torch.Tensor, nn.Parameter)
            and right.layout is torch.strided
            and right.dim() == 2
            and right.shape[0] == matrix.shape[1]
            and right.is_floating_point()
            and right.device == matrix.device
            and not matrix.requires_grad
        )

    def _multiply(self, right: torch.Tensor) -> torch.Tensor:
        return self._apply(_Product, right)

    def mean_of_layers(self, ego: torch.Tensor, layers: int) -> torch.Tensor:
        """Mean of ``ego``, ``A ego``, ..., ``A^layers ego`` without keeping the layers; shape of ``ego``.

        Source: LightGCN (He et al. 2020, arXiv:2002.02126), eq. 8 with equal weights.
        """
        return self._apply(_MeanOfLayers, ego, layers)

    def unfinished_mean(
        self, tables: Sequence[nn.Embedding], sizes: Sequence[int], layers: int
    ) -> tuple[torch.Tensor, ...] | None:
        """:meth:`mean_of_layers` of tables, one below the other, as tables of so many rows each.

        Their rows are computed when they are asked for. None where that is not possible, without layers, and on a GPU.
        """
        nodes, matrix = Nodes(tables), self.plain
        square = nodes.shape[0] == sum(sizes) == matrix.shape[0] == matrix.shape[1] and nodes.values.is_floating_point()
        on_cpu = nodes.values.device.type == matrix.device.type == "cpu"
        if layers < 1 or matrix.requires_grad or not (square and on_cpu):
            return None
        return LayerMean(self._compressed(), nodes, layers, sizes).tables()

    def _compressed(self) -> _CompressedRows:
        if self._rows is None or self._rows.version != self.plain._version:
            self._rows = _CompressedRows(self.plain)
        return self._rows

    def _apply(self, function: type[torch.autograd.Function], dense: torch.Tensor, *arguments: int) -> torch.Tensor:
        # autocast would cast one side only, which is why RecBole's graph models fail under it
        with torch.autocast(dense.device.type, enabled=False):
            result: torch.Tensor = function.apply(dense.to(self.plain.dtype), self._compressed(), *arguments)
        return result


class _Context(Protocol):
    rows: _CompressedRows
    layers: int


class _Product(torch.autograd.Function):
    """matrix @ dense; the gradient of dense is transposed matrix @ gradient, itself differentiable."""

    @staticmethod
    def forward(ctx: _Context, dense: torch.Tensor, rows: _CompressedRows) -> torch.Tensor:
        ctx.rows = rows
        return graph_products.multiply(rows.csr, None, 0.0, dense)

    @staticmethod
    def backward(ctx: _Context, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return _Product.apply(gradient, ctx.rows.transposed), None


class _MeanOfLayers(torch.autograd.Function):
    """sum of (matrix ^ k) dense for k = 0 ... layers, over layers + 1; the gradient is the same with the transpose."""

    @staticmethod
    def forward(ctx: _Context, dense: torch.Tensor, rows: _CompressedRows, layers: int) -> torch.Tensor:
        ctx.rows, ctx.layers = rows, layers
        share = 1 / (layers + 1)
        total = dense * share
        for _ in range(layers):  # Horner's rule
            total = graph_products.multiply(rows.csr, dense, share, total)
        return total

    @staticmethod
    def backward(ctx: _Context, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return _MeanOfLayers.apply(gradient, ctx.rows.transposed, ctx.layers), None, None


class _CompressedRows:
    """A matrix in CSR form with 32-bit indices, and its transpose, which is made at the first backward."""

    def __init__(self, matrix: torch.Tensor, transposed: _CompressedRows | None = None) -> None:
        self.version = matrix._version
        self.csr = _compress(matrix)
        self.workspace = Workspace()
        self._coo = matrix
        self._transposed = transposed

    @property
    def transposed(self) -> _CompressedRows:
        """The transpose; of a symmetric matrix (the normalised adjacency of most models) itself."""
        if self._transposed is None:
            other = _CompressedRows(self._coo.t(), transposed=self)
            self._transposed = self if _same_matrix(self.csr, other.csr) else other
        return self._transposed


def _compress(matrix: torch.Tensor) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*Sparse CSR tensor support is in beta.*")
        csr = matrix.detach().coalesce().to_sparse_csr()
        return torch.sparse_csr_tensor(csr.crow_indices().int(), csr.col_indices().int(), csr.values(), csr.shape)


def _same_matrix(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and all(
        torch.equal(getattr(a, part)(), getattr(b, part)()) for part in ("crow_indices", "col_indices", "values")
    )


@cache
def _multiplies_csr(device: str, dtype: torch.dtype) -> bool:
    """Whether this build of torch multiplies CSR with 32-bit indices there (on a CPU it needs MKL)."""
    try:
        matrix = torch.eye(2, dtype=dtype, device=device).to_sparse()
        works = torch.equal(torch.mm(_compress(matrix), matrix.to_dense()), matrix.to_dense())
    except RuntimeError as error:
        works = False
        getLogger().debug(f"propagation stays in COO form: {error}")
    return works
