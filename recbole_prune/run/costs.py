"""Multiply-accumulates and bytes of the tickets of a run, for its summary."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from recbole_prune.artifact.export import weight_bytes
from recbole_prune.data.batches import first_batch
from recbole_prune.data.random_streams import preserved_random_streams
from recbole_prune.errors import StoreError
from recbole_prune.metering.macs import measure_macs
from recbole_prune.run.experiment import Experiment
from recbole_prune.run.store import RunFolder
from recbole_prune.run.ticket import Ticket

if TYPE_CHECKING:
    import torch

    from recbole_prune.config.prune_config import PruneConfig
    from recbole_prune.masking.masks import MaskSet
    from recbole_prune.training.model import MaskAware

Record = dict[str, Any]  # JSON


def count_tickets(experiment: Experiment, tickets: Sequence[Ticket]) -> dict[int, Record]:
    """What each ticket costs: ``macs`` as ``MacsReport.to_dict`` says it, ``bytes`` of its weights in an artifact.

    Only shapes and masks matter, so tickets of one shape are counted on one newly built model; what the folder's
    summary has is not counted again. Nothing fails and no random stream moves: a ticket that cannot be counted has
    ``not_counted`` with the reason for its ``macs``, or None for its ``bytes``.
    """
    models: dict[str, Any] = {}
    values = experiment.settings.export_values
    records = _counted_before(experiment.folder, values)
    with preserved_random_streams():
        for ticket in tickets:
            if ticket.ticket in records:
                continue
            changes = ticket.changes
            shape = json.dumps(changes, sort_keys=True)
            record = records[ticket.ticket] = {"macs": {}, "bytes": None}
            try:
                if shape not in models:
                    models.clear()  # one at a time
                    models[shape] = experiment.workshop.config_with(changes), experiment.workshop.build_model(changes)
                config, model = models[shape]
                record["bytes"] = weight_bytes(model, experiment.live_of(ticket, model), values)
                masks = None if ticket.mask_file is None else experiment.masks_of(ticket)
                with _without_units(model, masks if ticket.has_units else None):
                    worn = {} if masks is None or model.shrunk is not None else masks
                    record["macs"] = _count(experiment, ticket, config, model, worn)
            except Exception as error:  # a figure beside the result is no reason to lose the result
                experiment.logger.debug("cause", exc_info=True)
                record["macs"] = {"not_counted": [f"{type(error).__name__}: {error}"]}
    return records


@contextmanager
def _without_units(model: MaskAware, masks: MaskSet | None) -> Iterator[None]:
    """While it is open, the model is as small as the ticket trained it; None leaves it as it is."""
    model.whole_units = masks is not None
    model.set_masks(masks)
    try:
        yield
    finally:
        model.set_masks(None)
        model.whole_units = False


def _counted_before(folder: RunFolder, values: str) -> dict[int, Record]:
    """What an earlier process counted of the same journal, so that a finished run is shown at once."""
    try:
        found = folder.read_summary()
    except StoreError:  # it is written again
        return {}
    counted = [ticket for ticket in found["tickets"] if "inference" in ticket["macs"] and found["values"] == values]
    return {ticket["ticket"]: {"macs": ticket["macs"], "bytes": ticket["bytes"]} for ticket in counted}


def _count(
    experiment: Experiment, ticket: Ticket, config: PruneConfig, model: MaskAware, masks: Mapping[str, torch.Tensor]
) -> Record:
    batch = first_batch(experiment.workshop.train_data, model)
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
