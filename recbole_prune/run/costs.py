"""Bytes of the weights of a run's tickets in an artifact, for its table and summary."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from recbole_prune.artifact.export import weight_bytes
from recbole_prune.data.random_streams import preserved_random_streams
from recbole_prune.errors import StoreError
from recbole_prune.run.experiment import Experiment
from recbole_prune.run.store import RunFolder
from recbole_prune.run.ticket import Ticket


def count_bytes(experiment: Experiment, tickets: Sequence[Ticket]) -> dict[int, int | None]:
    """Bytes of each ticket's weights, by its number; None where they could not be counted.

    Only shapes and masks matter, so tickets of one shape are counted on one newly built model; what the folder's
    summary has is not counted again. Nothing fails and no random stream moves.
    """
    models: dict[str, Any] = {}
    values = experiment.settings.export_values
    sizes = _counted_before(experiment.folder, values)
    with preserved_random_streams():
        for ticket in tickets:
            if ticket.ticket in sizes:
                continue
            shape = json.dumps(ticket.changes, sort_keys=True)
            sizes[ticket.ticket] = None
            try:
                if shape not in models:
                    models.clear()  # one at a time
                    models[shape] = experiment.workshop.build_model(ticket.changes)
                model = models[shape]
                sizes[ticket.ticket] = weight_bytes(model, experiment.live_of(ticket, model), values)
            except Exception:  # a figure beside the result is no reason to lose the result
                experiment.logger.debug("cause", exc_info=True)
    return sizes


def with_older_macs(folder: RunFolder, tickets: Sequence[Ticket]) -> list[Ticket]:
    """The tickets, those of older versions with the MACs that their summary has; their journal lines have none."""
    try:
        older = {ticket["ticket"]: ticket for ticket in folder.read_summary()["tickets"]}
    except StoreError:
        return list(tickets)

    def macs_of(number: int) -> Any:
        found = older.get(number, {})
        return found.get("macs") or (found.get("measured") or {}).get("macs")

    lacking = {each.ticket for each in tickets if "macs" not in (each.measured or {}) and macs_of(each.ticket)}
    return [
        replace(each, measured={**(each.measured or {}), "macs": macs_of(each.ticket)})
        if each.ticket in lacking
        else each
        for each in tickets
    ]


def _counted_before(folder: RunFolder, values: str) -> dict[int, int | None]:
    """What an earlier process counted of the same journal, so that a finished run is shown at once."""
    try:
        found = folder.read_summary()
    except StoreError:  # it is written again
        return {}
    counted = [ticket for ticket in found["tickets"] if ticket["bytes"] is not None and found["values"] == values]
    return {ticket["ticket"]: ticket["bytes"] for ticket in counted}
