"""Magnitude pruning after training, without any retraining: the strong simple baseline."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from recbole_prune.masking.allocate import entries_per_row, select
from recbole_prune.masking.masks import MaskSet
from recbole_prune.masking.scores import magnitude
from recbole_prune.pruners.base import Promises, Pruner
from recbole_prune.run.ticket import Plan, Ticket


class PostTrainingMagnitudePruning(Pruner):
    """MagPrune: keep the largest weights of the trained model, at least m in every row.

    Tran et al., "A Thorough Performance Benchmarking on Lightweight Embedding-based Recommender Systems",
    arXiv 2406.17335. m is ``prune_min_per_row``; empty, it is searched on validation for every sparsity, so that a
    sparser ticket may keep what a denser one has pruned. With ``prune_allocation=row`` every row keeps just m, which
    follows from the sparsity.
    """

    promises = Promises(nested=False, trains=False, above_random=True)

    def tickets(self) -> Iterator[Ticket]:
        """Ticket 0, then one evaluated, untrained ticket per sparsity."""
        dense = self.experiment.dense()
        yield dense
        for number, keep in enumerate(self.counts()[1:], 1):
            yield self.experiment.obtain(number, partial(self.plan, number, keep, dense))

    def plan(self, number: int, keep: int, dense: Ticket) -> Plan:
        """Masks of ``keep`` entries with the best minimum per row."""
        weights = self.experiment.weights_of(dense)
        minimum = self.settings.prune_min_per_row
        searched: dict[int, float] = {}
        if self.has_equal_rows:
            minimum = entries_per_row(self.scope, keep)
        elif minimum is None:
            minimum = self.search(keep, dense, searched)
        method = {"min_per_row": minimum, "searched": [[m, score] for m, score in sorted(searched.items())]}
        masks = self.masks(keep, minimum, dense)
        return Plan(number, masks, rewind="none", weights=weights, train=False, method=method)

    def masks(self, keep: int, minimum: int, dense: Ticket) -> MaskSet:
        """The ``keep`` largest weights, at least ``minimum`` in every row."""
        return select(
            magnitude(self.experiment.weights_of(dense), self.scope),
            self.experiment.masks_of(dense),
            keep,
            allocation=self.settings.prune_allocation,
            min_per_row=self.minima(minimum),
            seed=self.experiment.config["seed"],
        )

    def search(self, keep: int, dense: Ticket, scores: dict[int, float]) -> int:
        """The minimum per row with the best validation score, by interval search over a unimodal curve.

        Args:
            keep: entries that stay.
            dense: the trained model.
            scores: filled with what was tried.
        """
        weights = self.experiment.weights_of(dense)

        def loss(minimum: int) -> float:
            if minimum not in scores:
                scores[minimum] = self.experiment.validate(weights, self.masks(keep, minimum, dense))
                self.experiment.logger.info(f"magprune: at least {minimum} per row scores {scores[minimum]:.4f}")
            return -scores[minimum] if self.experiment.bigger else scores[minimum]

        low, high = 0, self.largest_minimum(keep)
        while high - low > 2:
            left, right = low + (high - low) // 3, high - (high - low) // 3
            if loss(left) <= loss(right):
                high = right
            else:
                low = left
        for minimum in {0, *range(low, high + 1)}:
            loss(minimum)
        return min(scores, key=lambda minimum: (loss(minimum), minimum))

    def largest_minimum(self, keep: int) -> int:
        """The largest minimum per row that ``keep`` entries can satisfy in every target."""
        fraction = keep / self.scope.prunable
        if self.settings.prune_allocation == "tensor":
            return min(int(fraction * target.width) for target in self.scope)
        widest = max(target.width for target in self.scope)
        return max(
            m for m in range(widest + 1) if sum(target.rows * min(m, target.width) for target in self.scope) <= keep
        )
