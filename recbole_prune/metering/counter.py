"""Counts the multiply-accumulates of whatever torch executes, dense, scaled by density and exact from masks."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from recbole_prune.metering.factors import COMPUTED, VIEWS, Factor, Factors, floating_tensors, product_factor
from recbole_prune.sparse.compiling import shown_to_torch

if TYPE_CHECKING:
    from torch._ops import OpOverload

MATRIX, SPARSE, PAIRS = "matrix", "sparse", "pairs"


@dataclass(frozen=True)
class Macs:
    """Multiply-accumulates by both accountings (methods/dynamic_sparse_learning.md, section 7).

    Attributes:
        dense: what dense kernels execute.
        density_scaled: accounting A: each product times the density of its masked factor, of the sparser one if both
            are masked.
        exact: accounting B: multiplications with both factors live, counted from the masks.
    """

    dense: float = 0
    density_scaled: float = 0
    exact: float = 0

    def __add__(self, other: Macs) -> Macs:
        return Macs(self.dense + other.dense, self.density_scaled + other.density_scaled, self.exact + other.exact)

    def __sub__(self, other: Macs) -> Macs:
        return self + other * -1

    def __mul__(self, factor: float) -> Macs:
        return Macs(self.dense * factor, self.density_scaled * factor, self.exact * factor)

    def __truediv__(self, divisor: float) -> Macs:
        return Macs(self.dense / divisor, self.density_scaled / divisor, self.exact / divisor)


# operations with products that no rule below counts; norms, activations and softmax are not counted by convention
_WITHOUT_RULE = re.compile(
    r"fft|cdist|pdist|multi_head_attention|encoder_layer_fwd|embedding_bag|trilinear|sparse_sparse|linalg_(?!vector_norm)"
)


class MacsCounter(TorchDispatchMode):
    """A context in which products are counted, in place of our loops those of torch.

    Other loops of numba, numpy and extensions of torch are not seen.

    - products of matrices, convolutions, recurrent layers and fused attention (``matrix``), as torch's FlopCounterMode
      counts them (it counts two operations for each);
    - products of a sparse matrix with a dense one (``sparse``): stored entries times columns;
    - element-wise products (``pairs``) that are summed, as a dot product is, or of which one factor is a weight, rows
      of one or a view of those, and the other depends on weights too. Those of gates and activations, which neither
      holds for, are only reported by :meth:`not_counted`.

    Results of products and sums are taken as dense.

    Attributes:
        by_kind: MACs so far for each of the kinds.
        places: where the storages begin that operations have read.
    """

    def __init__(self, factors: Factors) -> None:
        super().__init__()
        self.by_kind = {kind: Macs() for kind in (MATRIX, SPARSE, PAIRS)}
        self.places: set[int] = set()
        self._factors = factors
        # element-wise products that count if they are summed: by place, with their number if that is to be reported
        self._summable: dict[tuple[int, int] | None, tuple[Macs, int]] = {}
        self._not_summed = 0
        self._without_rule: Counter[str] = Counter()
        self._shown = ExitStack()

    def __enter__(self) -> MacsCounter:
        self._shown.enter_context(shown_to_torch())
        super().__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        self._shown.close()

    @property
    def total(self) -> Macs:
        """MACs of all kinds so far."""
        return self.by_kind[MATRIX] + self.by_kind[SPARSE] + self.by_kind[PAIRS]

    def not_counted(self) -> list[str]:
        """What was executed without being counted, a line for each kind of operation."""
        lines = [f"{times} x {name}" for name, times in sorted(self._without_rule.items())]
        waiting = self._not_summed + sum(products for _, products in self._summable.values())
        return lines + ([f"{waiting:,} element-wise products that are not summed"] if waiting else [])

    def __torch_dispatch__(
        self,
        func: OpOverload,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Count an operation and note what is known of its result."""
        kwargs = kwargs or {}
        name = func._schema.name.rpartition("::")[2].rstrip("_")
        known = [(t, self._factors.of(t)) for t in floating_tensors([*args, *kwargs.values()])]
        self.places.update(start_of_storage(tensor) for tensor, _ in known if tensor.layout is torch.strided)
        result = func(*args, **kwargs)
        if name not in VIEWS:  # what lay there before is overwritten
            for tensor in floating_tensors([result]):
                self._not_summed += self._summable.pop(_place(tensor), (None, 0))[1]
        factor: Factor | list[Factor] | None = self._count(name, args, known, result)
        if factor is None:
            factor = self._factors.result(name, func, args, kwargs, known)
        self._note(result, factor)
        return result

    def _note(self, result: object, factor: Factor | list[Factor] | None) -> None:
        if isinstance(result, torch.Tensor):
            assert not isinstance(factor, list), "one tensor has one factor"
            self._factors.set(result, factor if result.is_floating_point() else None)
        elif isinstance(result, (list, tuple)):
            each = factor if isinstance(factor, list) else [factor] * len(result)
            for part, part_factor in zip(result, each):
                self._note(part, part_factor)

    def _count(
        self, name: str, args: tuple[Any, ...], known: list[tuple[torch.Tensor, Factor | None]], result: Any
    ) -> Factor | None:
        """Count one operation; its result's factor where a rule knows it better than :class:`Factors`."""
        factors = {id(tensor): factor for tensor, factor in known}
        if name in _PRODUCTS:
            left, right = _PRODUCTS[name]
            self._product(args[left], args[right], factors)
        elif name in ("convolution", "_convolution"):
            self._convolution(args, factors, result)
        elif name in ("mkldnn_rnn_layer", "_cudnn_rnn"):
            self._recurrent(args, factors)
        elif name.startswith("_scaled_dot_product"):
            (*batch, queries, width), keys = args[0].shape, args[1].shape[-2]
            macs = torch.Size(batch).numel() * queries * keys * (width + args[2].shape[-1])
            self._add(MATRIX, Macs(macs, macs, macs))
        elif name in ("mul", "pow") and _is_elementwise_product(name, args):
            left, right = (args[0], args[0]) if name == "pow" else args[:2]
            return self._elementwise(left, right, factors, result)
        elif name in ("sum", "mean"):
            self._add(PAIRS, self._summable.pop(_place(args[0]), (Macs(), 0))[0])
        elif _WITHOUT_RULE.search(name):
            self._without_rule[name] += 1
        return None

    def _add(self, kind: str, macs: Macs) -> None:
        self.by_kind[kind] += macs

    def _product(self, left: torch.Tensor, right: torch.Tensor, factors: dict[int, Factor | None]) -> None:
        """``left @ right``, either of them a matrix, a batch of matrices or a vector."""
        a, b = factors.get(id(left)), factors.get(id(right))
        if left.layout is not torch.strided or right.layout is not torch.strided:
            self._sparse_product(left, right, a, b)
            return
        rows = left.shape[-2] if left.dim() > 1 else 1
        columns = right.shape[-1] if right.dim() > 1 else 1
        dense = left.numel() * columns
        exact = dense
        if _live(a) is not None or _live(b) is not None:
            # for everything that is summed over: live factors on the left times live factors on the right
            lefts, rights = _counts(_live(a), rows, -2), _counts(_live(b), columns, -1)
            exact = int((lefts * rights).sum())
        self._add(MATRIX, Macs(dense, _density(a, b) * dense, exact))

    def _sparse_product(self, left: torch.Tensor, right: torch.Tensor, a: Factor | None, b: Factor | None) -> None:
        if left.layout is not torch.strided and right.layout is not torch.strided:
            self._without_rule["product of two sparse matrices"] += 1
            return
        matrix, other, factor = (left, right, b) if left.layout is not torch.strided else (right.t(), left.t(), a)
        dense = exact = matrix._nnz() * other.shape[-1]
        live = _live(factor)
        if live is not None:
            live = live if other is right else live.t()
            uses = torch.bincount(_columns(matrix), minlength=matrix.shape[1])
            exact = int((uses * live.sum(-1)).sum())
        self._add(SPARSE, Macs(dense, dense * _density(factor), exact))

    def _convolution(self, args: tuple[Any, ...], factors: dict[int, Factor | None], result: torch.Tensor) -> None:
        """Each weight is used at every place of the output; padding counts, unless the input is masked too."""
        entries, weight, transposed = args[0], args[1], args[6]
        a, b = factors.get(id(entries)), factors.get(id(weight))
        dense = (entries if transposed else result).numel() * weight[0].numel()
        exact = dense
        if _live(a) is not None:
            pairs = torch.ops.aten.convolution(_as_numbers(entries, a), _as_numbers(weight, b), None, *args[3:9])
            exact = int(pairs.double().sum())
        elif _live(b) is not None:
            exact = dense // weight.numel() * int(_counts(_live(b), 0, None))
        self._add(MATRIX, Macs(dense, _density(a, b) * dense, exact))

    def _recurrent(self, args: tuple[Any, ...], factors: dict[int, Factor | None]) -> None:
        """A fused recurrent layer: every weight matrix once per step and sequence; what comes in is taken as dense."""
        steps = args[0].shape[:-1].numel()
        for weight in floating_tensors([list(part) if isinstance(part, (list, tuple)) else part for part in args[1:5]]):
            if weight.dim() != 2:
                continue
            factor = factors.get(id(weight)) or COMPUTED
            live = weight.numel() if factor.live is None else int(factor.live.sum())
            self._add(MATRIX, Macs(1, factor.density, live / weight.numel()) * (steps * weight.numel()))

    def _elementwise(
        self, left: torch.Tensor, right: torch.Tensor, factors: dict[int, Factor | None], result: torch.Tensor
    ) -> Factor | None:
        a, b = factors.get(id(left)), factors.get(id(right))
        if a is None and b is None:
            return None
        factor = product_factor(a, b, result.shape)
        dense = result.numel()
        exact = dense if factor.live is None else int(factor.live.sum())
        macs = Macs(dense, factor.density * dense, exact)
        of_weights = a is not None and b is not None
        if a is not None and b is not None and left is not right and (a.is_table or b.is_table):
            self._add(PAIRS, macs)
        else:
            self._summable[_place(result)] = macs, dense if of_weights else 0
        return factor


# operation -> where its two factors stand among the arguments
_PRODUCTS = {
    **dict.fromkeys("mm bmm mv dot vdot _sparse_mm".split(), (0, 1)),
    **dict.fromkeys("addmm baddbmm addmv addbmm _sparse_addmm sparse_sampled_addmm".split(), (1, 2)),
}


def _is_elementwise_product(name: str, args: tuple[Any, ...]) -> bool:
    """Whether an operation multiplies two tensors entry by entry, neither of them a single number."""
    if name == "pow":
        return not isinstance(args[0], (int, float)) and not isinstance(args[1], torch.Tensor) and args[1] == 2
    return all(
        isinstance(value, torch.Tensor) and value.numel() > 1 and value.is_floating_point() for value in args[:2]
    )


def _live(factor: Factor | None) -> torch.Tensor | None:
    return None if factor is None else factor.live


def _density(*factors: Factor | None) -> float:
    return min((factor.density for factor in factors if factor is not None), default=1.0)


def _counts(live: torch.Tensor | None, otherwise: int, dimension: int | None) -> torch.Tensor:
    """Live entries along a dimension of a matrix, ``otherwise`` if all are live; a vector is its own counts."""
    if live is None:
        return torch.tensor(otherwise)
    if dimension is None:
        return live.sum()
    return live.sum(dimension) if live.dim() > 1 else live.long()


def _as_numbers(tensor: torch.Tensor, factor: Factor | None) -> torch.Tensor:
    """1.0 where a tensor is live."""
    live = _live(factor)
    return torch.ones_like(tensor, dtype=torch.float32) if live is None else live.float()


def _columns(matrix: torch.Tensor) -> torch.Tensor:
    """The column of every stored entry of a sparse matrix."""
    if matrix.layout is torch.sparse_csr:
        return matrix.col_indices().long()
    return (matrix if matrix.layout is torch.sparse_coo else matrix.to_sparse())._indices()[1]


def start_of_storage(tensor: torch.Tensor) -> int:
    """The address; views of a tensor have that of the whole."""
    storage = tensor.untyped_storage() if hasattr(tensor, "untyped_storage") else tensor.storage()  # torch 1
    return int(storage.data_ptr())


def _place(tensor: torch.Tensor) -> tuple[int, int] | None:
    return (tensor.data_ptr(), tensor.numel()) if tensor.layout is torch.strided else None
