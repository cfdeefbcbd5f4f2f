"""Sparse from the first step to the last: fixed random masks, and masks that move while the model trains."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from recbole_prune.errors import ConfigError
from recbole_prune.masking.allocate import counts_of_equal_rows, entries_per_row, kept_in_rows
from recbole_prune.masking.masks import MaskSet
from recbole_prune.masking.random_masks import equal_rows, kept_by_target, random_masks
from recbole_prune.masking.schedule import removed_exact
from recbole_prune.pruners.base import Promises, Pruner
from recbole_prune.pruners.prune_and_grow import PruneAndGrow
from recbole_prune.run.ticket import Plan, Ticket
from recbole_prune.training.parts import Part


class StaticSparseTraining(Pruner):
    """A fixed random mask, trained once: what prune-and-grow has to beat.

    Ticket 0 is the dense model to compare with (``prune_dense``), ticket 1 the sparse one.
    """

    promises = Promises(needs_dense=False, refuses=("leaves no live entry in",))

    def counts(self) -> list[int]:
        """The dense model, and the live entries at ``prune_target_sparsity`` (their mean for ``bernoulli``)."""
        return [self.scope.prunable, sum(self.kept().values())]

    def kept(self) -> dict[str, int]:
        """Live entries of each target."""
        if self.has_equal_rows:
            return kept_in_rows(self.scope, self.entries_per_row())
        return kept_by_target(self.scope, 1 - self.settings.prune_target_sparsity, self.settings.prune_init)

    def entries_per_row(self) -> int:
        """Those that every row has with ``prune_allocation=row``, the fewest that reach no higher sparsity."""
        keep = self.scope.prunable - removed_exact(self.settings.prune_target_sparsity, self.scope.prunable)
        counts_of_equal_rows(self.scope, [self.scope.prunable, keep])
        return entries_per_row(self.scope, keep)

    def check(self) -> None:
        """Raise ConfigError if there is no target sparsity, or if it leaves a target without live entries."""
        if self.settings.prune_target_sparsity is None:
            raise ConfigError("prune_target_sparsity is empty: --pruner=" + self.settings.pruner + " needs a sparsity")
        for name, kept in self.kept().items():
            if not kept:
                raise ConfigError(
                    f"prune_target_sparsity={self.settings.prune_target_sparsity} leaves no live entry in {name} "
                    f"({self.scope[name].prunable} entries): choose a lower one, or leave it out with prune_exclude"
                )
        for name in self.without_empty_rows:
            if self.kept()[name] < self.scope[name].rows:
                raise ConfigError(
                    f"prune_target_sparsity={self.settings.prune_target_sparsity} leaves no live entry in some rows of "
                    f"{name}, and {self.experiment.config['model']} needs one in each: choose a lower one, or leave it "
                    "out with prune_exclude"
                )

    def tickets(self) -> Iterator[Ticket]:
        """The dense ticket if it is wanted, then the sparse one."""
        if self.settings.prune_dense or 0 in self.experiment.tickets:
            yield self.experiment.dense()
        yield self.experiment.obtain(1, self.plan)

    def plan(self) -> Plan:
        """One training under random masks."""
        return Plan(1, self.masks(), parts=self.parts())

    def masks(self) -> MaskSet:
        """The initial masks."""
        seed, init = self.experiment.config["seed"], self.settings.prune_init
        if self.has_equal_rows:
            return equal_rows(self.scope, self.entries_per_row(), seed)
        return random_masks(self.scope, self.kept(), init, seed, without_empty_rows=self.without_empty_rows)

    def parts(self) -> tuple[Part, ...]:
        """What trains along: nothing, the masks stay."""
        return ()


class DynamicSparseTraining(StaticSparseTraining):
    """Prune and grow: every ``prune_update_interval`` steps the smallest live entries make room for as many others.

    ``dsl``: growth where the gradient is largest, cosine ratio; Wang et al., "Dynamic Sparse Learning", WSDM 2024,
    arXiv 2402.02855. ``rigl``: Evci et al., "Rigging the Lottery", ICML 2020, arXiv 1911.11134. They differ in the
    defaults of their property files.
    """

    promises = replace(StaticSparseTraining.promises, above_random=True)

    def check(self) -> None:
        """As above; and combinations that need dense moments must be able to have them."""
        super().check()
        settings = self.settings
        official = settings.prune_parity == "official"
        if official and settings.prune_moments != "dense":
            raise ConfigError(
                f"prune_moments={settings.prune_moments}: prune_parity=official keeps the moments of pruned entries, "
                "set prune_moments=dense"
            )
        if settings.prune_growth == "momentum" and settings.prune_moments != "dense":
            raise ConfigError(
                f"prune_moments={settings.prune_moments}: prune_growth=momentum ranks by moments of pruned entries, "
                "set prune_moments=dense"
            )
        learner = str(self.experiment.config["learner"]).lower()
        if settings.prune_growth == "momentum" and "adam" not in learner:
            raise ConfigError(
                f"learner={learner} has no moments of the kind that prune_growth=momentum ranks by (Adam's mean and "
                "variance): set learner=adam, or prune_growth=gradient or random"
            )
        if settings.prune_update_ratio < settings.prune_update_floor:
            raise ConfigError(
                f"prune_update_ratio={settings.prune_update_ratio} is below prune_update_floor="
                f"{settings.prune_update_floor}, so the schedule would rise: it falls from the ratio to the floor "
                "(for masks that never move there is --pruner=static)"
            )
        if settings.prune_moments == "dense" and settings.prune_storage == "compact":
            raise ConfigError(
                "prune_storage=compact holds no moments of pruned entries, as prune_moments=dense asks for: "
                "set prune_moments=reset, or prune_storage=masked"
            )
        if official:
            self.experiment.logger.warning(
                "prune_parity=official repeats the rule of the DSL code, its leak included: live entries take part in "
                "the growth, so the sparsity rises during the training; the journal has the sparsity reached"
            )
            if settings.prune_gradient_window != 1 or settings.prune_init == "aligned":
                self.experiment.logger.warning(
                    f"prune_init={settings.prune_init} and prune_gradient_window={settings.prune_gradient_window} are "
                    "not those of the DSL code: prune_init=bernoulli prune_gradient_window=1 are"
                )

    def parts(self) -> tuple[Part, ...]:
        """The updates over all optimizer steps of the training."""
        experiment = self.experiment
        steps = experiment.workshop.steps_per_epoch * experiment.config["epochs"]
        updates = PruneAndGrow(self.settings, steps, experiment.config["seed"], self.without_empty_rows)
        if not any(map(updates.is_update, range(updates.last_update + 1))):
            experiment.logger.warning(
                f"prune_update_interval={self.settings.prune_update_interval}: the training has {steps} steps and no "
                f"update up to step {updates.last_update}, so the masks never move"
            )
        return (updates,)


class SparseEvolutionaryTraining(DynamicSparseTraining):
    """``set``: as above with random growth by default, and so without a promise to be better than a random mask.

    Mocanu et al., Nature Communications 2018, arXiv 1707.04780.
    """

    promises = StaticSparseTraining.promises
