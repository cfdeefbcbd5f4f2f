"""Random masks of exact size: the control that shows what choosing entries is worth."""

from __future__ import annotations

from recbole_prune.masking.allocate import select
from recbole_prune.masking.masks import MaskSet
from recbole_prune.masking.scores import uniform
from recbole_prune.pruners.base import MaskPruner
from recbole_prune.run.ticket import Ticket


class RandomPruning(MaskPruner):
    """RP: entries are removed uniformly at random (Wang et al., arXiv 2108.00944, section 4.3).

    One random order of all entries decides every ticket, so each mask is uniform for its size and they are nested.
    """

    def counts(self) -> list[int]:
        """The sizes of IMP's tickets; the official rule takes every sparsity in one step from the dense model."""
        counts = super().counts()
        if self.settings.prune_parity == "official":
            prunable, rate = counts[0], self.settings.prune_rate
            counts[1:] = [prunable - int((1 - (1 - rate) ** number) * prunable) for number in range(1, len(counts))]
        return counts

    def masks(self, number: int, keep: int, previous: Ticket, dense: Ticket) -> MaskSet:
        """The first ``keep`` entries of the random order."""
        seed = self.experiment.config["seed"]
        return select(
            uniform(self.scope, seed),
            MaskSet.dense(self.scope),
            keep,
            allocation=self.settings.prune_allocation,
            min_per_row=self.minima(self.settings.prune_min_per_row),
            seed=seed,
        )
