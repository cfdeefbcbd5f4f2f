"""Vectors of varying lengths that every process sends to all."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from recbole_prune.ranks import group
from recbole_prune.ranks.wires import Numbers

_ROOM = 1.25  # beyond what the longest message needed


class Exchange:
    """One message of several vectors of four-byte numbers from every process to every other.

    What is received is overwritten by the next exchange.
    """

    def __init__(self) -> None:
        self._own = np.zeros(1024, np.int32)
        self._room = len(self._own)

    def of_all(self, parts: Sequence[torch.Tensor]) -> list[list[torch.Tensor]]:
        """The parts of every process, in the order of their numbers.

        Args:
            parts: int32 or float32 on a CPU, one dimension; as many in every process, of any length.

        Returns:
            int32, of each process as many; the bits of what it sent.
        """
        head = [0, *map(len, parts)]
        head[0] = len(head) + sum(head)
        if len(self._own) < head[0]:
            self._own = np.zeros(int(_ROOM * head[0]), np.int32)
        end = len(head)
        self._own[:end] = head
        for part in parts:
            self._own[end : end + len(part)] = part.detach().numpy().view(np.int32)
            end += len(part)
        messages = group.exchange(self._own[:end]) if group.have_wires() else self._padded(end)
        return [_parts(torch.from_numpy(message), len(head)) for message in messages]

    def _padded(self, length: int) -> list[Numbers]:
        """The messages where there are no wires: gloo takes such of one length, so all send as much room."""
        while True:
            own = torch.zeros(self._room, dtype=torch.int32)
            held = min(length, self._room)
            own[:held] = torch.from_numpy(self._own[:held])
            received = own.new_empty(group.count(), len(own))
            group.gather_tensors(list(received), own)
            longest = int(received[:, 0].max())
            if longest <= self._room:
                return [message[: int(message[0])].numpy() for message in received]
            self._room = int(_ROOM * longest)  # all send again


def _parts(message: torch.Tensor, start: int) -> list[torch.Tensor]:
    return list(message[start:].split(message[1:start].tolist()))
