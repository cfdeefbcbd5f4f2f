"""Which ticket of a run becomes its artifact, and writing that."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from recbole_prune.artifact import read_artifact
from recbole_prune.artifact.export import export_ticket
from recbole_prune.masking.allocate import entries_per_row, kept_in_rows
from recbole_prune.masking.schedule import removed_exact
from recbole_prune.run import provenance
from recbole_prune.run.experiment import Experiment
from recbole_prune.run.ticket import Ticket
from recbole_prune.run.verdict import choose


def choose_ticket(experiment: Experiment, tickets: Sequence[Ticket]) -> tuple[Ticket, str]:
    """The ticket to export and why, by the run's settings."""
    settings, scope = experiment.settings, experiment.scope
    target = settings.get("prune_target_sparsity")
    if target is not None and settings.prune_allocation == "row":  # what equal rows can reach of it
        keep = scope.prunable - removed_exact(target, scope.prunable)
        target = 1 - sum(kept_in_rows(scope, entries_per_row(scope, keep)).values()) / scope.prunable
    return choose(
        tickets,
        bigger=experiment.bigger,
        target=target,
        number=settings.export_ticket,
        tolerance=settings.get("prune_tolerance"),
        taught=settings.distiller is not None,
    )


def export_chosen(experiment: Experiment, tickets: Sequence[Ticket], folder: Path) -> Path:
    """Write the artifact of the chosen ticket, unless the folder has just that one."""
    chosen, _ = choose_ticket(experiment, tickets)
    settings = experiment.settings
    wanted = {
        "ticket": chosen.ticket,
        "checkpoint_sha256": chosen.checkpoint_sha256,
        "values": settings.export_values,
        "vectors": settings.export_vectors,
    }
    if provenance.artifact_is(folder, wanted):
        return folder
    config = experiment.workshop.config_with(chosen.changes)
    model = experiment.trained_model(chosen)
    export_ticket(
        folder,
        model=model,
        masks=experiment.live_of(chosen, model),
        config=config,
        dataset=experiment.workshop.dataset,
        seen=experiment.workshop.seen,
        info=provenance.artifact_info(config, chosen, wanted),
        values=settings.export_values,
        vectors=settings.export_vectors,
    )
    return folder


def can_recommend(artifact: Path) -> bool:
    """Whether ``recbole-prune recommend`` works on an artifact that was just written: it stores what it multiplies."""
    return read_artifact(artifact).info.get("serving") is not None
