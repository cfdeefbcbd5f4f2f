"""Which ticket of a run becomes its artifact, and writing that."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from recbole_prune.artifact import read_artifact
from recbole_prune.artifact.export import export_ticket
from recbole_prune.run import provenance
from recbole_prune.run.experiment import Experiment
from recbole_prune.run.ticket import Ticket
from recbole_prune.run.verdict import choose


def choose_ticket(experiment: Experiment, tickets: Sequence[Ticket]) -> tuple[Ticket, str]:
    """The ticket to export and why, by the run's settings."""
    settings = experiment.settings
    return choose(
        tickets,
        bigger=experiment.bigger,
        target=settings.get("prune_target_sparsity"),
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
        forms=experiment.forms_of(chosen),
    )
    return folder


def can_recommend(artifact: Path) -> bool:
    """Whether ``recbole-prune recommend`` works on an artifact that was just written: it stores what it multiplies."""
    return read_artifact(artifact).info.get("serving") is not None
