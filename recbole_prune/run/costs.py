"""Multiply-accumulates of the tickets of a run, for its summary."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recbole_prune.data.batches import first_batch
from recbole_prune.data.random_streams import preserved_random_streams
from recbole_prune.metering.macs import measure_macs
from recbole_prune.run.experiment import Experiment
from recbole_prune.run.ticket import Ticket

Record = dict[str, Any]  # JSON


def count_tickets(experiment: Experiment, tickets: Sequence[Ticket]) -> dict[int, Record]:
    """What each ticket multiplies, as ``MacsReport.to_dict`` says it.

    Only shapes and masks matter, so tickets of one shape are counted on one newly built model; what the folder's
    summary has is not counted again. Nothing fails and no random stream moves: a ticket that cannot be counted has
    ``not_counted`` with the reason and nothing else.
    """
    models: dict[str, Any] = {}
    records = _records_in(experiment.folder.path / "summary.json")
    with preserved_random_streams():
        for ticket in tickets:
            if ticket.ticket in records:
                continue
            changes = ticket.method.get("changes", {})
            shape = json.dumps(changes, sort_keys=True)
            try:
                if shape not in models:
                    models.clear()  # one at a time
                    models[shape] = experiment.workshop.config_with(changes), experiment.workshop.build_model(changes)
                config, model = models[shape]
                records[ticket.ticket] = _count(experiment, ticket, config, model)
            except Exception as error:  # a figure beside the result is no reason to lose the result
                experiment.logger.debug("cause", exc_info=True)
                records[ticket.ticket] = {"not_counted": [f"{type(error).__name__}: {error}"]}
    return records


def _records_in(summary: Path) -> dict[int, Record]:
    """What an earlier process counted of the same journal, so that a finished run is shown at once."""
    try:
        tickets = json.loads(summary.read_bytes())["tickets"]
        return {ticket["ticket"]: ticket["macs"] for ticket in tickets if "inference" in ticket["macs"]}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _count(experiment: Experiment, ticket: Ticket, config: Any, model: Any) -> Record:
    batch = first_batch(experiment.workshop.train_data, model)
    masks = {} if ticket.mask_file is None else experiment.masks_of(ticket)
    report = measure_macs(model, config, experiment.workshop.dataset, batch, masks)
    return report.to_dict(_steps_between_dense_gradients(experiment, ticket))


def _steps_between_dense_gradients(experiment: Experiment, ticket: Ticket) -> float | None:
    """None where no mask moves, or moves without asking for gradients."""
    settings = experiment.settings
    if not ticket.method.get("updates"):
        return None
    if settings.prune_moments == "dense":
        return 1.0  # the moments of pruned entries take every gradient
    if settings.prune_growth != "gradient":
        return None
    return max(1.0, float(settings.prune_update_interval) / int(settings.prune_gradient_window))
