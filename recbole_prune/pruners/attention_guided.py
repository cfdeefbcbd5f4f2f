"""Pruning while, or before, a student learns from a teacher's features: SP-SAD, LTH-SAD, SS-SAD."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property, partial

from recbole_prune.errors import ConfigError
from recbole_prune.masking.masks import MaskSet
from recbole_prune.pruners.base import MaskPruner, Promises
from recbole_prune.pruners.magnitude import IterativeMagnitudePruning
from recbole_prune.pruners.structured import StructuredPruning
from recbole_prune.run.ticket import Plan, Ticket


class PruningUnderDistillation(MaskPruner):
    """SP-SAD and LTH-SAD: every level a ticket, on from the level before or from the initial weights.

    Rajaram et al., arXiv 2401.10484, Algorithm 1; what the paper leaves open is decided as in
    methods/attention_distillation_pruning.md, section 4. Which units or entries go is what ``structured`` or ``imp``
    would choose (``prune_granularity``), and what the rest starts from follows from ``prune_rewind``.
    """

    iterative = True
    distiller = "sad"
    promises = Promises(exact=False, refuses=StructuredPruning.promises.refuses)

    @cached_property
    def chooser(self) -> MaskPruner:
        """Decides the masks."""
        whole_units = self.settings.prune_granularity == "units"
        return (StructuredPruning if whole_units else IterativeMagnitudePruning)(self.experiment)

    def check(self) -> None:
        """There is a teacher, and the model has what is to be removed."""
        if self.settings.distiller != self.distiller:
            raise ConfigError(
                f"pruner={self.settings.pruner} needs --distiller={self.distiller} and a teacher, whose features carry "
                f"the student over what is removed; for pruning alone take --pruner=structured or imp"
            )
        self.chooser.check()

    def counts(self) -> list[int]:
        """As the methods that choose."""
        return self.chooser.counts()

    def masks(self, number: int, keep: int, previous: Ticket, dense: Ticket) -> MaskSet:
        """As the methods that choose."""
        return self.chooser.masks(number, keep, previous, dense)

    def plan(self, number: int, keep: int, previous: Ticket, dense: Ticket) -> Plan:
        """A level of ``prune_round_epochs`` epochs."""
        return replace(self.chooser.plan(number, keep, previous, dense), epochs=self.settings.prune_round_epochs)


class SparseStudent(PruningUnderDistillation):
    """SS-SAD: lottery tickets of the student alone, then the last one's masks once more with the teacher."""

    dense_is_taught = False
    promises = replace(PruningUnderDistillation.promises, repeats_last=True)

    def counts(self) -> list[int]:
        """The last masks are worn twice."""
        counts = super().counts()
        return [*counts, counts[-1]] if self.settings.prune_teach_last else counts

    def tickets(self) -> Iterator[Ticket]:
        """Stage 1 without a teacher, then stage 2 with fixed masks."""
        dense = previous = self.experiment.dense(self.dense_is_taught)
        yield dense
        counts = super().counts()
        for number, keep in enumerate(counts[1:], 1):
            previous = self.experiment.obtain(number, partial(self.alone, number, keep, previous, dense))
            yield previous
        if self.settings.prune_teach_last:
            yield self.experiment.obtain(len(counts), partial(self.taught, len(counts), previous))

    def alone(self, number: int, keep: int, previous: Ticket, dense: Ticket) -> Plan:
        """A lottery ticket of stage 1."""
        return replace(self.plan(number, keep, previous, dense), taught=False)

    def taught(self, number: int, sparse: Ticket) -> Plan:
        """Stage 2: the masks of ``sparse``, from the initial weights."""
        units = {"units": sparse.method["units"]} if sparse.has_units else {}
        epochs = self.settings.prune_round_epochs
        return Plan(number, self.experiment.masks_of(sparse), epochs=epochs, whole_units=sparse.has_units, method=units)
