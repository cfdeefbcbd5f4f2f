"""Vectors of varying lengths that every process sends to all."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from recbole_prune.ranks import group

_ROOM = 1.25  # beyond what the longest message needed


class Exchange:
    """One message of several vectors of four-byte numbers from every process to every other.

    What is received is overwritten by the next exchange.
    """

    def __init__(self) -> None:
        self._room = 1024
        self._own = torch.empty(0, dtype=torch.int32)
        self._received = torch.empty(0, 0, dtype=torch.int32)

    def of_all(self, parts: Sequence[torch.Tensor]) -> list[list[torch.Tensor]]:
        """The parts of every process, in the order of their numbers.

        Args:
            parts: int32 or float32 on a CPU, one dimension; as many in every process, of any length.

        Returns:
            int32, of each process as many; the bits of what it sent.
        """
        lengths = [len(part) for part in parts]
        start = len(lengths)
        while True:
            if len(self._own) != start + self._room:
                self._own = torch.zeros(start + self._room, dtype=torch.int32)
                self._received = self._own.new_zeros(group.count(), len(self._own))
            self._own[:start] = torch.tensor(lengths, dtype=torch.int32)
            if sum(lengths) <= self._room:
                pieces = self._own[start : start + sum(lengths)].split(lengths)
                for piece, part in zip(pieces, parts):
                    piece.copy_(part.view(torch.int32))
            group.gather_tensors(list(self._received), self._own)
            wanted = self._received[:, :start].tolist()
            longest = max(map(sum, wanted))
            if longest <= self._room:
                return [
                    list(message[start : start + sum(sizes)].split(sizes))
                    for message, sizes in zip(self._received, wanted)
                ]
            self._room = int(_ROOM * longest)  # all send again
