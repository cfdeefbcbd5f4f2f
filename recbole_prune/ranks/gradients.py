"""Sums of gradients over the processes of a run.

Of the gradient of a table a batch touches few entries, so on a CPU processes send each other these entries, or the rows
that they have read. All of them add in the order of the processes, so that every one has the same sum bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

import torch

from recbole_prune.ranks import group
from recbole_prune.ranks.exchange import Exchange

_LEAST_ENTRIES = 1 << 14  # a smaller tensor goes as it is
_MOST_POSITIONS = 2**31
_MOST_CARRIED = 1 << 20  # more numbers go through gloo, which divides the work
_DENSEST = 0.4  # an entry with its position takes two numbers
_ABSENT, _WHOLE, _OF_ROWS = range(3)  # what a process has of a gradient

Entries = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


class _Said(NamedTuple):
    """What the processes have told each other.

    Attributes:
        all_finite: whether every loss is.
        are_dense: whether some process has too many entries that are not 0 to send them.
        kinds: of every parameter, what each process has of its gradient.
        entries: of every process, positions and values.
        rows: of every process, ids and rows of each table.
        carried: of every process, whole gradients.
    """

    all_finite: bool
    are_dense: bool
    kinds: list[tuple[int, ...]]
    entries: list[tuple[torch.Tensor, torch.Tensor]]
    rows: list[list[torch.Tensor]]
    carried: list[list[torch.Tensor]]


class RowTable(Protocol):
    """A table that training reads by rows, and whose gradient is one of rows unless somebody has read all of it."""

    @property
    def parameter(self) -> torch.Tensor:
        """The table."""

    @property
    def is_open(self) -> bool:
        """Whether that is still so."""

    def read(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows that were read since the last step, int64, and their gradients; a row may come several times."""

    def catch_up(self, ids: torch.Tensor) -> None:
        """Do to rows what reading them does."""


class GradientSums:
    """Adds up the gradients of some parameters over all processes.

    Args:
        parameters: in the same order in every process.
        tables: those of them of whose gradients most entries are 0.
        entries: positions, int32, and values of the entries of a vector that are not 0.
    """

    def __init__(self, parameters: Iterable[torch.Tensor], tables: Iterable[torch.Tensor], entries: Entries) -> None:
        wanted = {id(table) for table in tables}
        self._all = list(dict.fromkeys(parameters))
        self._find, self._exchange = entries, Exchange()
        self._sparse: list[torch.Tensor] = []
        self._by_rows: dict[int, RowTable] = {}
        positions = 0
        for parameter in self._all:
            size = parameter.numel()
            fits = _is_on_cpu(parameter) and parameter.is_contiguous()
            if id(parameter) in wanted and fits and size >= _LEAST_ENTRIES and positions + size < _MOST_POSITIONS:
                self._sparse.append(parameter)
                positions += size
        self._carried = self._few_enough()

    def read_by_rows(self, tables: Iterable[RowTable]) -> None:
        """From now on the sums for these tables, float32 on a CPU, are gradients of rows too."""
        self._by_rows = {id(table.parameter): table for table in tables}

    def add_up(self, is_finite: bool) -> bool:
        """Replace every gradient by the sum of all processes'.

        A parameter has one afterwards if it had one in any process.

        Args:
            is_finite: what this process says of its loss.

        Returns:
            whether all of them said so.
        """
        said = self._of_all(is_finite)
        if self._make_whole(said.kinds):  # where one process has rows of a gradient, and another all of it
            said = self._of_all(is_finite)
        self._add_rows(said.rows, {id(each): kind for each, kind in zip(self._all, said.kinds)})
        whole = [each for each, kind in zip(self._all, said.kinds) if _WHOLE in kind]
        present, sent = set(map(id, whole)), list(self._carried)
        self._add_carried(said.carried, present)
        if said.are_dense:
            self._sparse = []  # a graph spreads gradients over whole tables
            self._carried = self._few_enough()
        self._add_sparse(said.entries, present)
        done = set(map(id, [*sent, *self._sparse]))
        self._add_dense([each for each in whole if id(each) not in done])
        return said.all_finite

    def _kind(self, parameter: torch.Tensor) -> int:
        if parameter.grad is None:
            return _ABSENT
        return _OF_ROWS if id(parameter) in self._by_rows and parameter.grad.is_sparse else _WHOLE

    def _make_whole(self, kinds: Sequence[tuple[int, ...]]) -> bool:
        mixed = [each for each, kind in zip(self._all, kinds) if {_WHOLE, _OF_ROWS} <= set(kind)]
        for parameter in mixed:
            if parameter.grad is not None:
                _dense(parameter)
        return bool(mixed)

    def _of_all(self, is_finite: bool) -> _Said:
        positions, values = self._entries()
        are_dense = len(positions) > _DENSEST * sum(table.numel() for table in self._sparse)
        if are_dense:  # they are not sent as entries, not even once
            positions, values = positions[:0], values[:0]
        head = torch.tensor([int(is_finite), int(are_dense), *map(self._kind, self._all)], dtype=torch.int32)
        parts = [head, positions, values]
        for table in self._by_rows.values():
            parts += self._rows_of(table)
        behind_rows = len(parts)
        for parameter in self._carried:
            is_whole = self._kind(parameter) == _WHOLE
            parts.append(_dense(parameter).reshape(-1) if is_whole else torch.zeros(0))
        messages = self._exchange.of_all(parts)
        heads = [message[0].tolist() for message in messages]
        return _Said(
            all(head[0] for head in heads),
            any(head[1] for head in heads),
            list(zip(*heads))[2:],
            [(message[1], message[2].view(torch.float32)) for message in messages],
            [message[3:behind_rows] for message in messages],
            [message[behind_rows:] for message in messages],
        )

    # ---- rows --------------------------------------------------------------------------------------------------------

    def _rows_of(self, table: RowTable) -> tuple[torch.Tensor, torch.Tensor]:
        if not table.is_open or self._kind(table.parameter) == _WHOLE:
            return torch.zeros(0, dtype=torch.int32), torch.zeros(0)
        ids, rows = table.read()
        return ids.int(), rows.reshape(-1)

    def _add_rows(self, of_processes: Sequence[Sequence[torch.Tensor]], kinds: Mapping[int, tuple[int, ...]]) -> None:
        """Give tables the rows of all processes.

        A row that only some of them have read has waited for its steps elsewhere, which at once are not, bit for bit,
        what they are one after the other: so all processes step all rows that any has read.
        """
        for number, table in enumerate(self._by_rows.values()):
            parameter, kind = table.parameter, kinds[id(table.parameter)]
            parts = [message[2 * number : 2 * number + 2] for message in of_processes]
            ids = torch.cat([ids for ids, _ in parts]).long()
            if _WHOLE in kind or not len(ids):
                continue
            table.catch_up(ids)
            if _OF_ROWS not in kind:
                continue
            rows = torch.cat([rows for _, rows in parts]).view(torch.float32).view(len(ids), parameter.shape[1])
            parameter.grad = torch.sparse_coo_tensor(ids[None], rows, parameter.shape, check_invariants=False)

    # ---- entries with their positions --------------------------------------------------------------------------------

    def _entries(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Positions among the entries of all tables, int32, and values of the entries that are not 0."""
        positions, values, start = [torch.zeros(0, dtype=torch.int32)], [torch.zeros(0)], 0
        for table in self._sparse:
            if self._kind(table) == _WHOLE:
                found, of_table = self._find(_dense(table).view(-1))
                positions.append(found.add_(start))
                values.append(of_table)
            start += table.numel()
        return torch.cat(positions), torch.cat(values)

    def _add_sparse(self, entries: Sequence[tuple[torch.Tensor, torch.Tensor]], present: set[int]) -> None:
        """Write the sums of entries into the gradients of tables."""
        own, start = group.rank(), 0
        for table in self._sparse:
            stop = start + table.numel()
            if id(table) in present:
                if table.grad is None:
                    table.grad = torch.zeros_like(table)
                flat = table.grad.view(-1)
                of_table = [_between(part, start, stop) for part in entries]
                if len(of_table) == 2:  # the sum of two is the same in any order
                    flat.index_add_(0, *of_table[1 - own])
                else:
                    flat.index_fill_(0, of_table[own][0], 0.0)
                    for positions, values in of_table:
                        flat.index_add_(0, positions, values)
            start = stop

    # ---- whole tensors -----------------------------------------------------------------------------------------------

    def _few_enough(self) -> list[torch.Tensor]:
        """The parameters whose whole gradients go with the message: all others on a CPU, if they are small."""
        sparse = set(map(id, self._sparse))
        found = [each for each in self._all if id(each) not in sparse and _is_on_cpu(each)]
        numbers = sum(each.numel() for each in found) * (group.count() - 1)
        return found if group.have_wires() and numbers <= _MOST_CARRIED else []

    def _add_carried(self, of_processes: Sequence[Sequence[torch.Tensor]], present: set[int]) -> None:
        for number, parameter in enumerate(self._carried):
            if id(parameter) in present:
                parts = [message[number].view(torch.float32) for message in of_processes]
                total = torch.zeros(parameter.numel())
                for part in parts:
                    total += part if len(part) else 0.0
                parameter.grad = total.view_as(parameter)

    def _add_dense(self, parameters: Sequence[torch.Tensor]) -> None:
        kinds = dict.fromkeys((each.dtype, each.device) for each in parameters)
        for kind in kinds:
            same = [each for each in parameters if (each.dtype, each.device) == kind]
            for each in same:
                if each.grad is None:
                    each.grad = torch.zeros_like(each)
            if len(same) == 1:
                each = same[0]
                each.grad = _dense(each).contiguous()
                group.add_up(each.grad)
                continue
            buffer = torch.cat([_dense(each).reshape(-1) for each in same])
            group.add_up(buffer)
            for each, total in zip(same, buffer.split([each.numel() for each in same])):
                each.grad = total.view_as(each)


def _is_on_cpu(parameter: torch.Tensor) -> bool:
    return parameter.dtype == torch.float32 and parameter.device.type == "cpu"


def _dense(parameter: torch.Tensor) -> torch.Tensor:
    gradient = parameter.grad
    assert gradient is not None, "it is present"
    if gradient.is_sparse:
        gradient = parameter.grad = gradient.to_dense()
    return gradient


def _between(part: tuple[torch.Tensor, torch.Tensor], start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Those of ascending positions that are of a table, counted from its first entry, and their values."""
    positions, values = part
    low, high = torch.searchsorted(positions, torch.tensor([start, stop], dtype=torch.int32)).tolist()
    return positions[low:high].long().sub_(start), values[low:high]
