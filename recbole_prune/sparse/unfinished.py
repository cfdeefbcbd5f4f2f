"""Tables of which rows are computed when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch


class Mean(Protocol):
    """What computes tables; :class:`~recbole_prune.sparse.layer_mean.LayerMean` does.

    Attributes:
        handle: in place of all tables, one below the other, for autograd.
    """

    handle: torch.Tensor

    def rows(self, ids: torch.Tensor, table: int) -> torch.Tensor:
        """Rows of one of the tables, numbers int64 ``[n]``."""

    @property
    def finished(self) -> tuple[torch.Tensor, ...]:
        """The tables."""


_plainly = torch._C._disabled_torch_function_impl
# what says nothing of the numbers
_OF_SHAPE = frozenset(
    {
        *(
            getattr(torch.Tensor, name).__get__
            for name in "shape dtype device layout ndim is_cuda is_sparse requires_grad".split()
        ),
        *(getattr(torch.Tensor, name) for name in "size dim numel __len__ is_floating_point".split()),
    }
)


class Unfinished(torch.Tensor):
    """A table of a mean of layers: ``table[ids]`` computes those rows, anything else the whole mean, once.

    Its own memory holds what is no number, so what reads that past torch's functions cannot go unnoticed.
    """

    _mean: Mean
    _number: int

    @classmethod
    def of(cls, mean: Mean, number: int, rows: int) -> Unfinished:
        """One of the tables of a mean."""
        handle = mean.handle
        table: Unfinished = torch.Tensor._make_subclass(cls, handle.detach()[:rows], handle.requires_grad)
        table._mean, table._number = mean, number
        return table

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Rows by their ids; all else with the finished tables."""
        if func in _OF_SHAPE:
            return _plainly(func, types, args, kwargs or {})
        if func is torch.Tensor.__getitem__ and type(args[0]) is cls and _are_ids(args[1], args[0]):
            table, ids = args
            rows = table._mean.rows(ids.reshape(-1), table._number)
            return rows.view(*ids.shape, rows.shape[1])
        return func(*unwrapped(args, _finish), **unwrapped(kwargs or {}, _finish))


def _are_ids(key: object, table: Unfinished) -> bool:
    if type(key) is not torch.Tensor or key.dtype is not torch.int64 or not key.numel() or key.device != table.device:
        return False
    low, high = (int(bound) for bound in torch.aminmax(key))
    return low >= 0 and high < len(table)  # else torch says what is wrong, or counts from the end


def _finish(value: object) -> object:
    return value._mean.finished[value._number] if type(value) is Unfinished else value


def unwrapped(value: Any, plain: Callable[[object], object]) -> Any:
    """Arguments of a function of torch with each part, in lists, tuples and dicts too, replaced."""
    if type(value) in (list, tuple):
        return type(value)(unwrapped(part, plain) for part in value)
    if type(value) is dict:
        return {name: unwrapped(part, plain) for name, part in value.items()}
    return plain(value)
