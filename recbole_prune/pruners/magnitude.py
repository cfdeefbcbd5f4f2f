"""Magnitude pruning with retraining: iterative (lottery tickets) and one-shot."""

from __future__ import annotations

from recbole_prune.masking.allocate import select, select_official
from recbole_prune.masking.masks import MaskSet
from recbole_prune.masking.scores import magnitude
from recbole_prune.pruners.base import MaskPruner, Promises
from recbole_prune.run.ticket import Ticket


class IterativeMagnitudePruning(MaskPruner):
    """IMP: train, prune the smallest live weights of the best epoch, rewind, repeat.

    Frankle and Carbin, arXiv 1803.03635; for recommenders Wang et al., arXiv 2108.00944, Algorithm 1. Rewinding to
    epoch k: Frankle et al., arXiv 1903.01611; learning-rate rewinding: Renda et al., arXiv 2003.02389.
    """

    iterative = True
    promises = Promises(above_random=True)

    def masks(self, number: int, keep: int, previous: Ticket, dense: Ticket) -> MaskSet:
        """Prune the previous ticket by the magnitude of its best weights."""
        return self.prune(self.source(previous, dense), keep, self.settings.prune_rate)

    def prune(self, ticket: Ticket, keep: int, rate: float) -> MaskSet:
        """Masks nested in those of ``ticket``: exactly ``keep`` entries, or by the official rule with ``rate``."""
        scores = magnitude(self.experiment.weights_of(ticket), self.scope)
        masks = self.experiment.masks_of(ticket)
        allocation = self.settings.prune_allocation
        if self.settings.prune_parity == "official":
            return select_official(scores, masks, rate, allocation=allocation)
        return select(
            scores,
            masks,
            keep,
            allocation=allocation,
            min_per_row=self.minima(self.settings.prune_min_per_row),
            seed=self.experiment.config["seed"],
        )


class OneShotMagnitudePruning(IterativeMagnitudePruning):
    """OMP: every ticket is pruned from the trained dense model in one step, at the sparsities IMP would visit.

    Frankle and Carbin, arXiv 1803.03635 (one-shot); Wang et al., arXiv 2108.00944, section 4.3.
    """

    iterative = False

    def counts(self) -> list[int]:
        """As IMP; the official rule computes every sparsity from the dense model."""
        counts = super().counts()
        if self.settings.prune_parity == "official":
            prunable = counts[0]
            counts[1:] = [prunable - int(self._fraction(i) * prunable) - 1 for i in range(1, len(counts))]
        return counts

    def _fraction(self, number: int) -> float:
        return float(1 - (1 - self.settings.prune_rate) ** number)

    def source(self, previous: Ticket, dense: Ticket) -> Ticket:
        """Always the dense model."""
        return dense

    def masks(self, number: int, keep: int, previous: Ticket, dense: Ticket) -> MaskSet:
        """Prune the dense model to the sparsity of ticket ``number`` at once."""
        return self.prune(dense, keep, self._fraction(number))
