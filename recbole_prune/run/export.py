"""Which ticket of a run becomes its artifact, writing that, and what its values score as they are stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from logging import getLogger
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recbole_prune.artifact import read_artifact
from recbole_prune.artifact.export import export_ticket
from recbole_prune.data.random_streams import have_moved, preserved_random_streams, random_state
from recbole_prune.masking.allocate import entries_per_row, kept_in_rows
from recbole_prune.masking.schedule import removed_exact
from recbole_prune.run import provenance
from recbole_prune.run.experiment import Experiment
from recbole_prune.run.ticket import Metrics, Ticket, defined_metrics
from recbole_prune.run.verdict import choose
from recbole_prune.training.session import Session

if TYPE_CHECKING:
    from recbole_prune.training.model import MaskAware

# fields of ticket.json: metrics of the weights as they are stored, beside valid and test of those that were trained
STORED = ("stored_valid", "stored_test")


def choose_ticket(experiment: Experiment, tickets: Sequence[Ticket]) -> tuple[Ticket, str]:
    """The ticket to export and why, by the run's settings."""
    settings, scope = experiment.settings, experiment.scope
    target, reach = settings.get("prune_target_sparsity"), None
    if target is not None and settings.prune_allocation == "row":
        keep = scope.prunable - removed_exact(target, scope.prunable)
        reach = 1 - sum(kept_in_rows(scope, entries_per_row(scope, keep)).values()) / scope.prunable
    return choose(
        tickets,
        bigger=experiment.bigger,
        target=target,
        reach=reach,
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
        **({"int4_clip": settings.export_int4_clip} if settings.export_values == "int4" else {}),
    }
    if provenance.artifact_is(folder, wanted, STORED if settings.export_evaluate else ()):
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
        clip=settings.export_int4_clip,
        vectors=settings.export_vectors,
        evaluate=partial(_evaluate, experiment, chosen) if settings.export_evaluate else None,
        forms=experiment.forms_of(chosen),
    )
    return folder


def _evaluate(experiment: Experiment, ticket: Ticket, model: MaskAware) -> dict[str, Metrics]:
    """Metrics of a model that has the stored form of a ticket's weights, on the data of ``valid`` and ``test``.

    Whatever the values are stored as, the same random numbers are drawn, where an evaluation draws some.
    """
    workshop, log = experiment.workshop, getLogger("recbole_prune")
    log.info(f"evaluating ticket {ticket.ticket} with its values as {experiment.settings.export_values} stores them")
    trainer = workshop.trainer(model, Session("an artifact", workshop.loaders, fused=False), ticket.changes)
    found = {}
    with preserved_random_streams(workshop.loaders):
        workshop.reseed()
        streams = random_state()
        for name, loader in zip(STORED, (workshop.select_data, workshop.test_data)):
            experiment.progress.evaluation_begins(f"evaluating the stored values: {name}")
            metrics = trainer.evaluate(loader, load_best_model=False) or {}
            found[name] = defined_metrics(metrics, f"ticket {ticket.ticket}, {name}")
        if have_moved(streams):
            log.warning(
                f"evaluating {experiment.config['model']} draws random numbers here, so stored_valid and stored_test "
                "differ from valid and test by the draw, too: compare them with those of --export_values=fp32"
            )
    return found


def can_recommend(artifact: Path) -> bool:
    """Whether ``recbole-prune recommend`` works on an artifact that was just written: it has what is multiplied."""
    return read_artifact(artifact).info.get("serving") is not None


def stored_metrics(artifact: Path) -> Mapping[str, Any]:
    """Fields of an artifact that was just written: what its ticket scored, and what its stored values score."""
    info = read_artifact(artifact).info
    return {name: info[name] for name in ("values", "valid", "test", *STORED)}
