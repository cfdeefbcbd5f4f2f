"""Adam that leaves the rows of a table that a batch does not read for later, with the steps of torch's own Adam.

A batch reads few rows of a large table, and yet Adam passes over all of them, their moments and a gradient that is
almost everywhere 0: on a CPU most of the time of a step. Here the rows are stepped when they are next read, and all of
them at the end of an epoch, so that everything else sees what torch's Adam would have left, up to rounding.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol, cast

import numpy as np
import torch
from torch import nn
from torch.autograd.function import once_differentiable

from recbole_prune.sparse.compiling import available

# a table of fewer rows for each row of a batch is read almost whole by every batch
_ROWS_FOR_EACH_OF_A_BATCH = 4
# torch divides its own step among threads, these loops are one
_MOST_THREADS = 2
# what the series of the kernels is made for; torch's defaults
_BETAS = 0.9, 0.999
_DEFAULTS = {"weight_decay": 0, "amsgrad": False, "maximize": False, "differentiable": False, "capturable": False}


class Coefficients(NamedTuple):
    """What the loops know of the steps of an epoch, in arrays with room for more; see ``sparse/adam_kernels.py``."""

    rates: np.ndarray
    corrections: np.ndarray
    sums: np.ndarray
    nearest: np.ndarray

    @classmethod
    def empty(cls, room: int) -> Coefficients:
        """For so many steps."""
        from recbole_prune.sparse.adam_kernels import MOMENTS

        return cls(np.zeros(room), np.ones(room), np.zeros((room, MOMENTS)), np.zeros(room))

    def grown(self) -> Coefficients:
        """With twice the room."""
        return Coefficients(*(np.concatenate([part, np.zeros_like(part)]) for part in self))


class LazyTable:
    """A table of which training reads rows, while an epoch lasts.

    Args:
        module: an ordinary embedding.
        optimizer: the Adam that steps it.
        group: the group of its parameter.
    """

    def __init__(self, module: nn.Embedding, optimizer: torch.optim.Optimizer, group: dict[str, Any]) -> None:
        self.module, self._group = module, group
        self.parameter = cast(nn.Parameter, module.weight)
        self._states = optimizer.state
        self._before, self._steps = int(self._states.get(self.parameter, {}).get("step", 0)), 0
        self._coefficients = Coefficients.empty(1024)
        rows = len(self.parameter)
        self._made = np.zeros(rows, np.int32)
        self._place = np.full(rows, -1, np.int32)
        self._looked_up: list[torch.Tensor] = []
        self.is_open = True
        module.__class__ = _ReadByRows
        module._lazy = self  # type: ignore[assignment]

    def _run(self, loop: str, *of_batch: np.ndarray) -> None:
        from recbole_prune.sparse import adam_kernels

        state = self._states[self.parameter]
        tensors = self.parameter, state["exp_avg"], state["exp_avg_sq"]
        arrays = [*(tensor.detach().numpy() for tensor in tensors), self._made, *of_batch]
        getattr(adam_kernels, loop)(
            *arrays, self._before, self._steps, *self._coefficients, *_BETAS, self._group["eps"]
        )

    def catch_up(self, ids: torch.Tensor) -> None:
        """Make the steps that the rows ``ids`` have missed; nothing if one of them is no row."""
        if self._steps:
            self._run("catch_up", ids.detach().reshape(-1).numpy())

    def note(self, ids: torch.Tensor) -> None:
        """Rows ``ids`` are read."""
        self.catch_up(ids)
        self._looked_up.append(ids.detach().reshape(-1))

    def read(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows that were read since the last step and their gradients, 0 where they have none; one may come again."""
        ids = torch.cat([torch.zeros(0, dtype=torch.int64), *self._looked_up])
        gradient = self.parameter.grad
        if gradient is None:
            return ids, self.parameter.new_zeros(len(ids), self.parameter.shape[1])
        found, rows = gradient._indices()[0], gradient._values()
        if len(found) == len(ids):  # every lookup has one
            return found, rows
        return torch.cat([found, ids]), torch.cat([rows, rows.new_zeros(len(ids), rows.shape[1])])

    def close(self) -> None:
        """Make all steps that any row has missed, and be an ordinary embedding again."""
        if not self.is_open:
            return
        self.catch_up(torch.arange(len(self.parameter)))
        if self._steps:
            self._states[self.parameter]["step"].fill_(self._before + self._steps)
        self.is_open = False
        del self.module._lazy
        self.module.__class__ = nn.Embedding

    def step(self) -> None:
        """Adam's step, if the parameter has a gradient; one of the whole table is left to the optimizer."""
        from recbole_prune.sparse.adam_kernels import advance

        gradient = self.parameter.grad
        self._looked_up.clear()
        if gradient is None:
            return
        # whoever made it has read the whole table; past `weight` (a regulariser over `parameters()`) that is seen here,
        # in the first batch of an epoch, before any row waits
        if not gradient.is_sparse:
            self.close()
        if not self.is_open:
            self.parameter.grad = gradient.to_dense()
            return
        self.parameter.grad = None
        if not self._states[self.parameter]:  # as torch begins it
            moments = {name: torch.zeros_like(self.parameter) for name in ("exp_avg", "exp_avg_sq")}
            self._states[self.parameter] = {"step": torch.zeros((), dtype=torch.float32), **moments}
        self._steps += 1
        if self._steps > len(self._coefficients.rates):
            self._coefficients = self._coefficients.grown()
        rates, corrections, sums, nearest = self._coefficients
        (b1, b2), step = _BETAS, self._before + self._steps
        rate, correction = self._group["lr"] / (1 - b1**step), (1 - b2**step) ** 0.5
        rates[self._steps - 1], corrections[self._steps - 1] = rate, correction
        ids, rows = gradient._indices()[0].numpy(), gradient._values().contiguous().numpy()
        self._run("step_rows", ids, rows, self._place)
        advance(sums, nearest, self._steps, rate, correction, b1, b2)


class _ReadByRows(nn.Embedding):
    """The embedding of a :class:`LazyTable`; whoever reads its weight finds every step made."""

    _lazy: LazyTable

    @property
    def weight(self) -> nn.Parameter:  # type: ignore[override]
        """The parameter, of an ordinary embedding from now on."""
        lazy = self._lazy
        lazy.close()
        return lazy.parameter

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        """Those of an embedding."""
        self._lazy.close()
        return self.named_parameters(prefix, recurse, remove_duplicate)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """The rows, with every step made."""
        rows: torch.Tensor = _LookUp.apply(self._lazy.parameter, ids, self._lazy)
        return rows


class _Context(Protocol):
    ids: torch.Tensor
    shape: torch.Size
    padding: int | None


class _LookUp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: _Context, weight: torch.Tensor, ids: torch.Tensor, table: LazyTable) -> torch.Tensor:
        table.note(ids)
        ctx.ids, ctx.shape, ctx.padding = ids.reshape(1, -1), weight.shape, table.module.padding_idx
        return nn.functional.embedding(ids, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: _Context, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        rows = gradient.reshape(-1, ctx.shape[1])
        if ctx.padding is not None:
            rows = rows.masked_fill((ctx.ids[0] == ctx.padding)[:, None], 0.0)
        return torch.sparse_coo_tensor(ctx.ids, rows, ctx.shape, check_invariants=False), None, None


def lazy_tables(
    model: nn.Module, optimizer: torch.optim.Optimizer, batch_size: int, masked: Iterable[nn.Parameter] = ()
) -> list[LazyTable]:
    """The tables whose rows may wait, which wait from now on.

    Args:
        model: on a CPU.
        optimizer: the only one that steps its parameters.
        batch_size: rows of a batch.
        masked: parameters that change after every step.
    """
    known = hasattr(optimizer, "register_step_pre_hook") and type(optimizer) is torch.optim.Adam
    if not (known and available() and torch.get_num_threads() <= _MOST_THREADS):
        return []
    groups = {id(parameter): group for group in optimizer.param_groups for parameter in group["params"]}
    uses = Counter(id(each) for module in model.modules() for each in module._parameters.values())
    left_out = set(map(id, masked))
    return [
        LazyTable(module, optimizer, groups[id(module.weight)])
        for module in list(model.modules())
        if type(module) is nn.Embedding
        and uses[id(module.weight)] == 1
        and id(module.weight) not in left_out
        and len(module.weight) >= _ROWS_FOR_EACH_OF_A_BATCH * batch_size
        and _is_plain(module)
        and _is_plain_adam(groups.get(id(module.weight), {}))
    ]


def _is_plain(module: nn.Embedding) -> bool:
    weight = module.weight
    ordinary = weight.device.type == "cpu" and weight.dtype is torch.float32 and weight.is_contiguous()
    own_ways = module.sparse or module.max_norm is not None or module.scale_grad_by_freq
    return ordinary and weight.requires_grad and not own_ways


def _is_plain_adam(group: Mapping[str, Any]) -> bool:
    same = all(group.get(name, value) == value for name, value in _DEFAULTS.items())
    return bool(group) and same and tuple(group["betas"]) == _BETAS and isinstance(group["lr"], float)


@contextmanager
def rows_wait(tables: Sequence[LazyTable], optimizer: torch.optim.Optimizer) -> Iterator[Sequence[LazyTable]]:
    """While it is open, steps of the optimizer leave rows of the tables for later; afterwards none is missing."""
    if not tables:
        yield tables
        return

    def step(*_: object) -> None:
        for table in tables:
            table.step()

    handle = optimizer.register_step_pre_hook(step)
    try:
        yield tables
    finally:
        handle.remove()
        for table in tables:
            table.close()
