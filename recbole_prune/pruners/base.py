"""What every pruner is: it decides masks and asks an experiment for training."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from recbole_prune.anatomy.tables import tables_without_empty_rows
from recbole_prune.errors import ConfigError
from recbole_prune.masking.allocate import counts_of_equal_rows, shares
from recbole_prune.masking.masks import MaskSet
from recbole_prune.masking.schedule import DEFAULT_ROUNDS, kept_counts
from recbole_prune.masking.scope import Scope
from recbole_prune.run.ticket import Plan, Ticket

if TYPE_CHECKING:
    from recbole_prune.run.experiment import Experiment


@dataclass(frozen=True)
class Promises:
    """What a method owes with the defaults of its property file; ``tests/conformance.py`` holds it to every line.

    Attributes:
        masks: every ticket is a mask. Without, tickets beside the dense one are models of other settings
            (``Plan.changes``) or have tables in other forms (``form`` of their journal line), and say in
            ``equal_to_kept`` what they are comparable to.
        exact: tickets keep what :meth:`Pruner.counts` says, to the entry, whenever they are evaluated.
        nested: what is pruned in a ticket is pruned in the tickets after it.
        trains: tickets beside the dense one are trained; without, they wear the dense one's weights.
        needs_dense: ticket 0 is always there; without, ``prune_dense`` can leave it out.
        above_random: a ticket validates better than one of as many random entries.
        repeats_last: the last two tickets have the same masks.
        least_sparsity: at lower ones the method may have no ticket.
        refuses: patterns of the messages with which a model may be turned down, before anything is trained.
    """

    masks: bool = True
    exact: bool = True
    nested: bool = True
    trains: bool = True
    needs_dense: bool = True
    above_random: bool = False
    repeats_last: bool = False
    least_sparsity: float = 0.0
    refuses: tuple[str, ...] = ()


class Pruner(ABC):
    """Yields tickets, the dense one first.

    Args:
        experiment: trains what the pruner plans; its ``settings`` hold the keys of the pruner's property file.

    Attributes:
        iterative: whether a ticket is made from the one before; others reach a target in one step.
        distiller: the only one it goes with; "" where it goes with any and with none.
        searches: whether a training before the tickets finds their masks (``Experiment.search``).
        dense_is_taught: whether the teacher of the run, if there is one, teaches ticket 0 too.
        promises: what the method owes.
    """

    iterative: ClassVar[bool] = False
    distiller: ClassVar[str] = ""
    searches: ClassVar[bool] = False
    dense_is_taught: ClassVar[bool] = True
    promises: ClassVar[Promises] = Promises()

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        self.settings = experiment.settings

    @property
    def scope(self) -> Scope:
        """The targets; ticket 0 may shrink it, so it is read when needed."""
        return self.experiment.scope

    def counts(self) -> list[int]:
        """Live entries of each ticket, ticket 0 first; for a tie rule that may remove more, the most it keeps.

        Where every row keeps equally many (``prune_allocation=row``), a round that would change no row is left out.

        Raises:
            ConfigError: the schedule is impossible for this scope.
        """
        counts = kept_counts(
            self.scope.prunable,
            rate=self.settings.prune_rate,
            rounds=self.rounds(),
            target=self.settings.prune_target_sparsity,
            official=getattr(self.settings, "prune_parity", "exact") == "official",
            of_initial=getattr(self.settings, "prune_rate_of", "live") == "initial",
        )
        return counts_of_equal_rows(self.scope, counts) if self.has_equal_rows else counts

    def announced(self) -> list[str]:
        """What a plan says of tickets that are no masks, and of points of the schedule without one; lines of text."""
        return []

    @property
    def has_equal_rows(self) -> bool:
        """Whether every row keeps equally many entries."""
        return bool(getattr(self.settings, "prune_allocation", "global") == "row")

    def table_bytes(self) -> list[int]:
        """Bytes of the targets of each ticket in float32, ticket 0 first, where no mask says them; else empty."""
        return []

    def rounds(self) -> int | None:
        """Number of prunes; None where steps of ``prune_rate`` lead to the target.

        The target alone takes the default rounds in an iterative method and one step in the others.
        """
        settings = self.settings
        if settings.prune_rounds is not None:
            return int(settings.prune_rounds)
        if "prune_rate" in settings.explicit:
            return None
        return DEFAULT_ROUNDS if self.iterative else 1

    @property
    def without_empty_rows(self) -> list[str]:
        """Targets in which a mask leaves every row an entry, since the model cannot do with a row of zeros."""
        if not self.promises.masks:
            return []
        tables = tables_without_empty_rows(self.experiment.config.model_class)
        return [target.name for target in self.scope if target.name in tables]

    def minima(self, minimum: int | None) -> dict[str, int]:
        """Entries that every row of each target keeps: ``minimum``, and one where the model needs it."""
        needed = self.without_empty_rows
        return {target.name: max(minimum or 0, target.name in needed) for target in self.scope}

    def check(self) -> None:
        """Raise ConfigError before any training if the settings cannot work for this model."""
        keep, minima = self.counts()[-1], self.minima(getattr(self.settings, "prune_min_per_row", None))
        protected = {target.name: target.rows * min(minima[target.name], target.width) for target in self.scope}
        self._check_protected(sum(protected.values()), keep, "")
        if any(protected.values()) and self.settings.prune_allocation == "tensor":
            quotas = shares(self.scope, {target.name: target.prunable for target in self.scope}, keep)
            for (name, entries), quota in zip(protected.items(), quotas):
                self._check_protected(entries, quota, f" of {name} (prune_allocation=tensor)")

    def _check_protected(self, protected: int, keep: int, where: str) -> None:
        if protected <= keep:
            return
        minimum, model = getattr(self.settings, "prune_min_per_row", None), self.experiment.config["model"]
        cause = f"prune_min_per_row={minimum}" if minimum else f"{model} needs a live entry in every row, which"
        raise ConfigError(
            f"{cause} protects {protected} entries{where}, but the last ticket keeps only {keep}: "
            f"lower {'prune_min_per_row or ' if minimum else ''}the final sparsity"
        )

    @abstractmethod
    def tickets(self) -> Iterator[Ticket]:
        """Train and yield tickets in order."""


class MaskPruner(Pruner):
    """A method whose tickets are masks on a schedule, each trained on its own."""

    def tickets(self) -> Iterator[Ticket]:
        """Ticket 0, then one ticket per entry of :meth:`Pruner.counts`, until ``prune_stop_below`` ends the search."""
        dense = previous = self.experiment.dense()
        yield dense
        for number, keep in enumerate(self.counts()[1:], 1):
            previous = self.experiment.obtain(number, partial(self.plan, number, keep, previous, dense))
            yield previous
            if self.is_too_low(previous, dense):
                fraction = self.settings.prune_stop_below
                self.experiment.logger.info(f"ticket {number} is worse than prune_stop_below={fraction}: stopping")
                return

    def is_too_low(self, ticket: Ticket, dense: Ticket) -> bool:
        """Whether validation fell below the fraction ``prune_stop_below`` of dense; an error: rose above dense / it."""
        fraction = getattr(self.settings, "prune_stop_below", None)
        if not fraction:
            return False
        if self.experiment.bigger:
            return bool(ticket.valid_score < fraction * dense.valid_score)
        return bool(ticket.valid_score > dense.valid_score / fraction)

    def plan(self, number: int, keep: int, previous: Ticket, dense: Ticket) -> Plan:
        """The training of ticket ``number``: masks, and weights as ``prune_rewind`` says."""
        rewind = self.settings.prune_rewind
        source = self.source(previous, dense)
        weights = self.experiment.weights_of(source) if rewind in ("none", "lr") else None
        return Plan(number, self.masks(number, keep, previous, dense), rewind=rewind, weights=weights)

    def source(self, previous: Ticket, dense: Ticket) -> Ticket:
        """The ticket whose weights a training without rewinding continues."""
        return previous

    @abstractmethod
    def masks(self, number: int, keep: int, previous: Ticket, dense: Ticket) -> MaskSet:
        """The masks of ticket ``number``."""
