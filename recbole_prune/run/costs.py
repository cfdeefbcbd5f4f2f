"""What a run's table and summary say of its tickets beside their journal lines: bytes in an artifact, older counts."""

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
                sizes[ticket.ticket] = weight_bytes(
                    model, experiment.live_of(ticket, model), values, experiment.forms_of(ticket)
                )
            except Exception:  # a figure beside the result is no reason to lose the result
                experiment.logger.debug("cause", exc_info=True)
    return sizes


def with_older_macs(folder: RunFolder, tickets: Sequence[Ticket]) -> list[Ticket]:
    """The tickets; those whose journal lines, of older versions, have no MACs with those that the summary has."""
    macs: dict[int, Any] = {}
    for number, found in _in_summary(folder).items():
        places = (found, found.get("measured") or {})  # as they wrote it, and as it is written again
        for place in places:
            macs[number] = place.get("macs", macs.get(number))
    return [
        replace(ticket, measured={**(ticket.measured or {}), "macs": macs[ticket.ticket]})
        if macs.get(ticket.ticket) and "macs" not in (ticket.measured or {})
        else ticket
        for ticket in tickets
    ]


def _counted_before(folder: RunFolder, values: str) -> dict[int, int | None]:
    """What an earlier process counted of the same journal, so that a finished run is shown at once."""
    found = _in_summary(folder, values)
    return {number: ticket["bytes"] for number, ticket in found.items() if ticket["bytes"] is not None}


def _in_summary(folder: RunFolder, values: str | None = None) -> dict[int, dict[str, Any]]:
    """Tickets of a summary by their numbers; none where it is damaged or of artifacts with other ``values``."""
    try:
        found = folder.read_summary()
    except StoreError:  # it is written again
        return {}
    return {ticket["ticket"]: ticket for ticket in found["tickets"] if values in (None, found["values"])}
