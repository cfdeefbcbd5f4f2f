"""The dense form of a compact table, and what a model writes into it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import GetSetDescriptorType
from typing import Any, Protocol, cast

import torch

from recbole_prune.sparse.rows import CompressedRows


class HandedOut:
    """A dense copy of a compact table that others hold, and what the table was when it was made.

    Attributes:
        table: the copy, an ordinary tensor without gradient.
    """

    def __init__(self, values: torch.Tensor, rows: CompressedRows) -> None:
        # tensors made in inference mode do not count their versions
        with torch.inference_mode(False), torch.no_grad():
            self.table = rows.expand(values.detach())
            self._note(values)

    def _note(self, values: torch.Tensor) -> None:
        self._version, self._values = self.table._version, values.detach().clone()

    @property
    def written(self) -> bool:
        """Whether anything was written into the table, or into a view of it."""
        return self.table._version != self._version

    def shows(self, values: torch.Tensor) -> bool:
        """Whether the values are still those of the table."""
        # not their version: torch's fused optimizers leave it as it is
        return torch.equal(self._values, values.detach())

    @torch.no_grad()
    def refresh(self, values: torch.Tensor, rows: CompressedRows) -> None:
        """Make the same tensor show the present values."""
        if not self.shows(values):
            self.table.copy_(rows.expand(values.detach()))
            self._note(values)

    @torch.no_grad()
    def take(self, values: torch.Tensor, rows: CompressedRows) -> None:
        """Put what was written into the values; what an optimizer has added to them since stays added."""
        now = rows.gather(self.table)
        added = (values - self._values).nan_to_num_(0.0, 0.0, 0.0)
        values.copy_(torch.where(now != self._values, now + added, values))


class Owner(Protocol):
    """What a dense table asks of the compact embedding whose values it shows."""

    def lend(self) -> torch.Tensor:
        """A dense tensor to write into."""

    def fill(self, table: torch.Tensor) -> None:
        """Take the live entries from a dense tensor."""

    def expect_write(self, table: DenseTable) -> None:
        """Something was written into the dense table."""


class DenseTable(torch.Tensor):
    """A compact table's dense form that hands what is written to it, or to its ``data``, back to the table."""

    _owner: Owner

    @classmethod
    def of(cls, owner: Owner, table: torch.Tensor) -> DenseTable:
        """Wrap ``table`` for the compact embedding ``owner``."""
        wrapped = table.as_subclass(cls)
        wrapped._owner = owner
        return wrapped

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Results of operations are plain tensors; a write that the owner would not see is an error."""
        kwargs = kwargs or {}
        tables = [table for table in (*args, *kwargs.values()) if isinstance(table, cls)]
        before = [_version(table) for table in tables]
        result = _plainly(func, types, args, kwargs)
        for table, version in zip(tables, before):
            if _version(table) != version:
                table._owner.expect_write(table)
        return result

    @property
    def data(self) -> torch.Tensor:
        """The table without gradient; what is written into it reaches the owner at the owner's next use."""
        return self._owner.lend()

    @data.setter
    def data(self, table: torch.Tensor) -> None:
        """Give the owner other values."""
        self._owner.fill(table)


_plainly = torch._C._disabled_torch_function_impl
# an attribute of tensors, asked of the class, is what gets it
_get_version = cast(GetSetDescriptorType, torch.Tensor._version).__get__


def _version(table: DenseTable) -> int:
    """Its version, asked for without ``__torch_function__``."""
    version: int = _plainly(_get_version, (DenseTable,), (table,), {})
    return version
