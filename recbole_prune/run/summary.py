"""``summary.json``: what a finished run found, for its table, its siblings and reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from recbole_prune.errors import PruneError
from recbole_prune.run.energy import summary_of_energy
from recbole_prune.run.experiment import Experiment
from recbole_prune.run.siblings import SiblingRow
from recbole_prune.run.ticket import Ticket
from recbole_prune.run.verdict import highest_winning_sparsity


@dataclass(frozen=True)
class AsGood:
    """Which tickets were tested to be as good as the dense model.

    Attributes:
        metric: as the journal names it.
        margin: ``report_margin``.
        blocks: of pruned tickets by number the fields of ``report.statistics.PairedTest``, as JSON has them.
        not_tested: why there are no blocks though tickets were pruned; None where there are.
    """

    metric: str
    margin: float
    blocks: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)
    not_tested: str | None = None

    def to_json(self) -> dict[str, Any]:
        """What the summary says beside the blocks, which stand with their tickets."""
        return {"metric": self.metric, "data": "test", "margin": self.margin, "not_tested": self.not_tested}


@dataclass(frozen=True)
class RunResult:
    """What a run found.

    Attributes:
        experiment: the run, for those who ask on.
        tickets: ticket 0 first.
        chosen: the exported one and ``reason`` why.
        notice: what the protocol leaks, None if nothing.
        artifact: folder of the artifact.
        recommends: whether ``recbole-prune recommend`` takes it.
        stored: what its values score as they are stored, where that was asked for.
        bytes_of: a ticket's weights in an artifact, by its number; None where they could not be counted.
        as_good: the tested statement about each pruned ticket.
        teacher: what the journal says of the teacher, None without.
        alone: the student's dense model without a teacher, None where it was left out.
        siblings: pruned tickets of other runs over the same training settings.
        failure: why the artifact or the summary could not be written, None if both are there.
    """

    experiment: Experiment
    tickets: Sequence[Ticket]
    chosen: Ticket
    reason: str
    notice: str | None
    artifact: str
    bytes_of: Mapping[int, int | None]
    as_good: AsGood
    siblings: Sequence[SiblingRow] = ()
    recommends: bool = False
    stored: Mapping[str, Any] = field(default_factory=dict)
    teacher: Mapping[str, Any] | None = None
    alone: Ticket | None = None
    failure: PruneError | None = None

    @property
    def dense(self) -> Ticket | None:
        """Ticket 0, None where the run has none."""
        return next((ticket for ticket in self.tickets if ticket.ticket == 0), None)

    def raise_failure(self) -> None:
        """Raise ``failure``, if there is one."""
        if self.failure is not None:
            raise self.failure

    def to_dict(self) -> dict[str, Any]:
        """The result in RecBole's way: see :func:`recbole_prune.run_recbole_prune`."""
        return {
            "folder": str(self.experiment.folder.path),
            "artifact": self.artifact,
            "tickets": [ticket.to_record() for ticket in self.tickets],
            "chosen": self.chosen.to_record(),
            "best_valid_score": self.chosen.valid_score,
            "valid_score_bigger": self.experiment.bigger,
            "best_valid_result": self.chosen.valid,
            "test_result": self.chosen.test,
        }


def summary_of(result: RunResult) -> dict[str, Any]:
    """The content of ``summary.json``."""
    config, dense = result.experiment.config, result.dense
    return {
        "model": config["model"],
        "dataset": config["dataset"],
        "pruner": config.settings.pruner,
        "distiller": config.settings.distiller,
        "base_hash": config.base_hash,
        "teacher": result.teacher,
        "valid_metric": config["valid_metric"],
        "selected_on": config.settings.prune_select,
        "notice": result.notice,
        "values": config.settings.export_values,
        "alone": result.alone and _alone_summary(result.alone),
        "dense": dense and {"valid": dense.valid, "test": dense.test, "best_epoch": dense.best_epoch},
        "chosen": result.chosen.ticket,
        "reason": result.reason,
        "as_good": result.as_good.to_json(),
        "highest_winning_sparsity": highest_winning_sparsity(result.tickets),
        "energy": summary_of_energy(result.tickets, result.chosen, result.bytes_of, result.teacher),
        "tickets": [_ticket_summary(ticket, result) for ticket in result.tickets],
    }


def _alone_summary(alone: Ticket) -> dict[str, Any]:
    groups = {name: alone.method[name] for name in ("popularity",) if name in alone.method}
    return {"valid": alone.valid, "test": alone.test, **groups}


def _ticket_summary(ticket: Ticket, result: RunResult) -> dict[str, Any]:
    fields = (
        "ticket", "sparsity", "kept", "valid", "test", "wins_metric", "wins", "relative_epochs", "train_seconds",
        "measured",
    )  # fmt: skip
    found = {name: getattr(ticket, name) for name in fields}
    return {**found, "bytes": result.bytes_of[ticket.ticket], "as_good": result.as_good.blocks.get(ticket.ticket)}
