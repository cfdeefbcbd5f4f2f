"""No pruning: the dense baseline, run through the same way."""

from __future__ import annotations

from collections.abc import Iterator

from recbole_prune.pruners.base import Pruner
from recbole_prune.run.ticket import Ticket


class NoPruning(Pruner):
    """Ticket 0 only: plain RecBole training with this package's folder, table and artifact."""

    def counts(self) -> list[int]:
        """The dense model."""
        return [self.scope.prunable]

    def tickets(self) -> Iterator[Ticket]:
        """Ticket 0."""
        yield self.experiment.dense()
