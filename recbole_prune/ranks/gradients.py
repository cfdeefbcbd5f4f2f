"""Sums of gradients over the processes of a run.

Of the gradient of a table a batch touches few entries, so on a CPU processes send each other these entries. All of them
add in the order of the processes, so that every one has the same sum bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from recbole_prune.ranks import group

_LEAST_ENTRIES = 1 << 14  # a smaller tensor goes as it is
_MOST_POSITIONS = 2**31
_ROOM = 1.25  # beyond what the batch before needed
_DENSEST = 0.4  # an entry with its position takes two numbers


class GradientSums:
    """Adds up the gradients of some parameters over all processes.

    Args:
        parameters: in the same order in every process.
        tables: those of them of whose gradients most entries are 0.
    """

    def __init__(self, parameters: Iterable[torch.Tensor], tables: Iterable[torch.Tensor]) -> None:
        wanted = {id(table) for table in tables}
        self._all = list(dict.fromkeys(parameters))
        self._sparse: list[torch.Tensor] = []
        positions = 0
        for parameter in self._all:
            size = parameter.numel()
            fits = parameter.dtype == torch.float32 and parameter.device.type == "cpu" and parameter.is_contiguous()
            if id(parameter) in wanted and fits and size >= _LEAST_ENTRIES and positions + size < _MOST_POSITIONS:
                self._sparse.append(parameter)
                positions += size
        self._capacity = 1024

    def add_up(self, is_finite: bool) -> bool:
        """Replace every gradient by the sum of all processes'.

        A parameter has one afterwards if it had one in any process.

        Args:
            is_finite: what this process says of its loss.

        Returns:
            whether all of them said so.
        """
        messages = self._exchange(is_finite)
        size = 1 + len(self._all)
        heads = [message[:size].tolist() for message in messages]
        present = [any(there) for there in list(zip(*heads))[1:]]
        sparse = set(map(id, self._sparse))
        dense = [each for each, there in zip(self._all, present) if there and id(each) not in sparse]
        self._add_sparse(
            [message[size:] for message in messages],
            {id(each) for each, there in zip(self._all, present) if there},
        )
        self._add_dense(dense)
        return all(head[0] for head in heads)

    # ---- entries with their positions --------------------------------------------------------------------------------

    def _exchange(self, is_finite: bool) -> list[torch.Tensor]:
        """Everybody's message, int32: finite, present gradients, how many entries, positions, values.

        Where one is too long for the room there is, all send again with more.
        """
        head = [int(is_finite), *(int(each.grad is not None) for each in self._all)]
        positions, values = self._entries()
        start = len(head) + 1
        while True:
            own = torch.empty(start + 2 * self._capacity, dtype=torch.int32)
            own[: len(head)] = torch.tensor(head, dtype=torch.int32)
            own[len(head)] = len(positions)
            if len(positions) <= self._capacity:
                own[start : start + len(positions)] = positions
                own[start + self._capacity : start + self._capacity + len(values)] = values.view(torch.int32)
            all_of_them = own.new_empty(group.count(), len(own))
            group.gather_tensors(list(all_of_them), own)
            longest = int(all_of_them[:, len(head)].max())
            if longest <= self._capacity:
                return list(all_of_them)
            if longest > _DENSEST * sum(table.numel() for table in self._sparse):
                self._sparse, self._capacity = [], 0  # a graph spreads gradients over whole tables
                return self._exchange(is_finite)
            self._capacity = int(_ROOM * longest)

    def _entries(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Positions among the entries of all tables, int32, and values of the entries that are not 0."""
        positions, values, start = [], [], 0
        for table in self._sparse:
            if table.grad is not None:
                flat = _dense(table).view(-1)
                found = torch.nonzero(flat).view(-1)
                values.append(flat.index_select(0, found))
                positions.append(found.add_(start).int())
            start += table.numel()
        if not positions:
            return torch.zeros(0, dtype=torch.int32), torch.zeros(0)
        return torch.cat(positions), torch.cat(values)

    def _add_sparse(self, entries: Sequence[torch.Tensor], present: set[int]) -> None:
        """Write the sums of entries into the gradients of tables."""
        room = (len(entries[0]) - 1) // 2
        parts = []
        for message in entries:
            held = int(message[0])
            parts.append((message[1 : 1 + held], message[1 + room : 1 + room + held].view(torch.float32)))
        own, start = group.rank(), 0
        for table in self._sparse:
            stop = start + table.numel()
            if id(table) in present:
                if table.grad is None:
                    table.grad = torch.zeros_like(table)
                flat = table.grad.view(-1)
                of_table = [_between(part, start, stop) for part in parts]
                if len(of_table) == 2:  # the sum of two is the same in any order
                    flat.index_add_(0, *of_table[1 - own])
                    start = stop
                    continue
                flat.index_fill_(0, of_table[own][0], 0.0)
                for positions, values in of_table:
                    flat.index_add_(0, positions, values)
            start = stop

    # ---- whole tensors -----------------------------------------------------------------------------------------------

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
