"""Embedding tables that store their live entries only."""

from __future__ import annotations

import copy
import copyreg
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from typing import Any, SupportsIndex, cast

import torch
from torch import nn

from recbole_prune.sparse.dense_table import DenseTable, HandedOut
from recbole_prune.sparse.rows import CompressedRows, expand, look_up


class CompactEmbedding(nn.Embedding):
    """An ``nn.Embedding`` whose pruned entries do not exist: no value, no gradient, no optimizer moments.

    Made in place from an ``nn.Embedding`` by :func:`compact`, so every reference to the module stays good. Its one
    parameter is ``values``, the live entries row by row, shape ``[live]``. A lookup costs work in proportion to the
    live entries of the rows looked up. ``weight`` is the dense table, made when asked for and differentiable, for
    models that use the whole table; ``state_dict`` has the dense table under the key ``weight`` and nothing else.

    What is written into ``weight.data``, or under ``no_grad`` into ``weight``, reaches the values at the table's next
    use, where entries are live. A copy of the module (``copy.deepcopy``) is compact too; a pickle is a dense one.
    """

    values: nn.Parameter
    rows: CompressedRows
    _dense: tuple[HandedOut, DenseTable] | None
    _lent: HandedOut | None
    record: Callable[[torch.Tensor | None, torch.Tensor], None] | None = None

    @property
    def weight(self) -> torch.Tensor:  # type: ignore[override]
        """The dense table, shape ``[num_embeddings, embedding_dim]``."""
        self.take_writes()
        if torch.is_grad_enabled():
            return DenseTable.of(self, expand(self.values, self.rows, self.record))
        # evaluation asks for it with every block of users
        if self._dense is None or not self._dense[0].shows(self.values):
            made = HandedOut(self.values, self.rows)
            self._dense = made, DenseTable.of(self, made.table)
        return self._dense[1]

    def lend(self) -> torch.Tensor:
        """``weight.data``: one tensor, whoever asks, until something was written into it and has been taken."""
        self.take_writes()
        if self._lent is None:
            self._lent = HandedOut(self.values, self.rows)
        self._lent.refresh(self.values, self.rows)
        return self._lent.table

    def take_writes(self) -> None:
        """Take over what was written into the dense tables that were handed out."""
        if self._lent is not None and self._lent.written:
            self._lent.take(self.values, self.rows)
            self._lent = None
        if self._dense is not None and self._dense[0].written:
            self._dense[0].take(self.values, self.rows)
            self._dense = None

    def expect_write(self, table: DenseTable) -> None:
        """Called after a write into a table that :attr:`weight` was.

        Raises:
            RuntimeError: :meth:`take_writes` will not look at that table.
        """
        if self._dense is None or self._dense[1] is not table:
            raise RuntimeError(
                "this write to the weight of a compact embedding is lost: write to weight.data, "
                "or ask for weight inside torch.no_grad()"
            )

    def _forget_tables(self) -> None:
        self._dense = self._lent = None

    @torch.no_grad()
    def fill(self, table: torch.Tensor) -> None:
        """Take the live entries from a dense table of the same shape."""
        self.values.copy_(self.rows.gather(table.to(self.values.device)))
        self._forget_tables()

    @torch.no_grad()
    def move(self, mask: torch.Tensor, moments: Iterable[torch.Tensor] = ()) -> None:
        """Change which entries are live, as many as before; entries that become live start at 0.

        Args:
            mask: boolean, shape of the table.
            moments: further tensors of the shape of ``values`` that change in the same way.

        Raises:
            ValueError: the number of live entries differs.
        """
        moved = CompressedRows.of(mask.to(self.values.device))
        if moved.live != self.rows.live:
            raise ValueError(f"{moved.live} entries cannot take the place of {self.rows.live}")
        self.take_writes()
        before, after = self.rows.flat(), moved.flat()
        source = torch.searchsorted(before, after).clamp_(max=max(0, len(before) - 1))
        stayed = before[source] == after
        for tensor in (self.values, *moments):
            tensor.copy_(torch.where(stayed, tensor[source], torch.zeros_like(tensor)))
        self.rows = moved
        self._forget_tables()

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """The rows of ids of any shape, as ``nn.Embedding`` gives them."""
        self.take_writes()
        return look_up(self.values, self.rows, input, self.padding_idx, self.record)

    def train(self, mode: bool = True) -> CompactEmbedding:
        """As ``nn.Module``; the dense table of an evaluation is released."""
        self.take_writes()
        self._dense = None
        return super().train(mode)

    def extra_repr(self) -> str:
        """What ``print(model)`` shows."""
        return f"{super().extra_repr()}, live={len(self.values)}"

    def to_dense(self) -> nn.Embedding:
        """A plain ``nn.Embedding`` of the same table; pruned entries are 0."""
        self.take_writes()
        table = self.rows.expand(self.values.detach())
        dense = nn.Embedding(self.num_embeddings, self.embedding_dim, padding_idx=self.padding_idx, _weight=table)
        dense.weight.requires_grad_(self.values.requires_grad)
        return dense.train(self.training)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], *args: object, **kwargs: object) -> CompactEmbedding:
        """``to``, ``cuda``, ``double`` ...: the positions go to the device with the values."""
        self.take_writes()
        super()._apply(fn, *args, **kwargs)
        self.rows = self.rows.to(self.values.device)
        self._forget_tables()
        return self

    def _save_to_state_dict(self, destination: MutableMapping[str, torch.Tensor], prefix: str, keep_vars: bool) -> None:
        self.take_writes()
        destination[prefix + "weight"] = self.rows.expand(self.values if keep_vars else self.values.detach())

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, torch.Tensor],
        prefix: str,
        local_metadata: Mapping[str, object],
        strict: bool,
        missing: list[str],
        unexpected: list[str],
        errors: list[str],
    ) -> None:
        table = state_dict.get(prefix + "weight")
        if table is None:
            missing.append(prefix + "weight")
        elif tuple(table.shape) != self.rows.shape:
            errors.append(f"size mismatch for {prefix}weight: {tuple(table.shape)} instead of {self.rows.shape}")
        else:
            self.fill(table)
        if strict:
            unexpected += [key for key in state_dict if key.startswith(prefix) and key != prefix + "weight"]

    def __deepcopy__(self, memo: dict[int, Any]) -> CompactEmbedding:
        """A compact embedding with values of its own; its gradients are not recorded."""
        self.take_writes()
        other = memo[id(self)] = self.__new__(type(self))
        # positions are never changed, only replaced
        shared: dict[str, Any] = {"rows": self.rows, "_dense": None, "_lent": None}
        copied = {name: value for name, value in vars(self).items() if name not in (*shared, "record")}
        vars(other).update(copy.deepcopy(copied, memo), **shared)
        return other

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple[Any, ...]:
        """Pickled as a dense embedding: some checkpoints hold whole modules, and plain RecBole reads them."""
        return copyreg._reconstructor, (nn.Embedding, object, None), self.to_dense().__dict__  # type: ignore[attr-defined]


def compact(module: nn.Embedding, mask: torch.Tensor) -> CompactEmbedding:
    """Turn an embedding into a compact one, in place; the dense table and its gradient are released.

    Args:
        module: the embedding; plain lookups only (no ``max_norm``, ``scale_grad_by_freq`` or ``sparse``).
        mask: boolean, shape of its table; True is live.
    """
    rows = CompressedRows.of(mask.to(module.weight.device))
    weight = module.weight
    values = nn.Parameter(rows.gather(weight.detach()), requires_grad=weight.requires_grad)
    del module._parameters["weight"]
    module.__class__ = CompactEmbedding
    made = cast(CompactEmbedding, module)
    made.values, made.rows = values, rows
    made._forget_tables()
    return made


def expand_in_place(module: CompactEmbedding) -> nn.Embedding:
    """Undo :func:`compact`: the module is a plain ``nn.Embedding`` again, pruned entries are 0."""
    weight = module.to_dense().weight
    del module._parameters["values"]
    for name in ("rows", "_dense", "_lent", "record"):
        vars(module).pop(name, None)
    plain = cast(nn.Embedding, module)
    plain.__class__ = nn.Embedding
    plain.weight = weight
    return plain


def take_writes(model: nn.Module) -> None:
    """Before the parameters of a model are read: what was written into the tables of compact ones."""
    for _ in compact_modules(model):
        pass


def compact_modules(model: nn.Module) -> Iterator[tuple[str, CompactEmbedding]]:
    """Name of the table in ``state_dict`` and module, for every compact embedding of a model; writes are taken."""
    for prefix, module in model.named_modules():
        if isinstance(module, CompactEmbedding):
            module.take_writes()
            yield f"{prefix}.weight" if prefix else "weight", module
