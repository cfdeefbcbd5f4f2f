"""The rows of training batches that one of several processes computes gradients of."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from recbole.data.dataloader.abstract_dataloader import AbstractDataLoader
from recbole.data.interaction import Interaction


class OwnRows:
    """What a trainer iterates over instead of a training loader: every batch of it, every ``count``-th row of those.

    All processes draw whole batches from equal random streams, so that together they train on just the batches that one
    process would train on. Else it is the loader.

    Args:
        loader: RecBole's.
        rank, count: which part of how many.
        sums: the loss grows with the rows of its batch.

    Attributes:
        share: what gradients of the present part are multiplied by, so that their sum over the parts is the gradient of
            the batch.
    """

    share = 1.0

    def __init__(self, loader: AbstractDataLoader, rank: int, count: int, *, sums: bool) -> None:
        self._loader, self._rank, self._count, self._sums = loader, rank, count, sums

    def __len__(self) -> int:
        return len(self._loader)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def __iter__(self) -> Iterator[Interaction]:
        for batch in self._loader:
            part = Interaction({name: self._part(column) for name, column in batch.interaction.items()})
            if self._is_whole(len(batch)):
                self.share = 1 / self._count
            else:
                self.share = 1.0 if self._sums else len(part) / len(batch)
            yield part

    def _is_whole(self, rows: int) -> bool:
        """Whether so few rows are not divided: a normalisation over a batch needs two."""
        return rows < 2 * self._count

    def _part(self, column: torch.Tensor) -> torch.Tensor:
        # of a batch of positives and then negatives each part has the same share of both
        return column if self._is_whole(len(column)) else column[self._rank :: self._count].contiguous()
