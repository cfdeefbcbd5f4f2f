"""Other runs over the same training settings: their dense model is shared, their results stand in the table."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from recbole_prune.errors import StoreError
from recbole_prune.masking.masks import MaskSet
from recbole_prune.run.experiment import Experiment
from recbole_prune.run.provenance import read_record
from recbole_prune.run.store import REWIND, RunFolder
from recbole_prune.run.ticket import Ticket, method_name

_SAME = ("base_hash", "data_sha256", "versions")


def _others(folder: Path) -> Iterator[Path]:
    """Run folders beside ``folder`` that were begun with the same training settings, data and versions."""
    own = read_record(folder)
    for other in sorted(folder.parent.iterdir()):
        if other == folder or not (other / "config.yaml").is_file() or ".old-" in other.name:
            continue
        try:
            record = read_record(other)
        except StoreError:
            continue
        if all(record.get(key) == own[key] for key in _SAME):
            yield other


def adopt_dense(experiment: Experiment) -> None:
    """Copy ticket 0 of another run, instead of training the same dense model again.

    Only a run with the same training settings, data, library versions and scope qualifies; its files are
    hash-checked. The journal line says where the ticket comes from.
    """
    folder, settings = experiment.folder, experiment.settings
    if settings.fresh or experiment.tickets or folder.load_resume(0) is not None:
        return
    scope = read_record(folder.path)["scope"]
    unkept = []
    for other in _others(folder.path):
        if read_record(other)["scope"] != scope:
            continue
        source = RunFolder(other)
        try:
            dense = next((t for t in map(Ticket.from_record, source.tickets()) if t.ticket == 0), None)
            if dense is None or dense.mask_file is None or dense.mask_sha256 is None:
                continue
            if not source.has(dense.checkpoint_file):
                unkept.append(other.name)
                continue
            method = {key: value for key, value in dense.method.items() if not key.startswith("rewind_")}
            if settings.prune_rewind == "late":
                if dense.method.get("rewind_epoch") != settings.prune_rewind_epoch:
                    continue
                method.update({key: dense.method[key] for key in ("rewind_epoch", "rewind_sha256")})
                folder.write(REWIND, source.read(REWIND, method["rewind_sha256"]))
            mask = source.read(dense.mask_file, dense.mask_sha256)
            MaskSet.from_bytes(mask, experiment.scope)  # 0.1.0 may have decided its scope otherwise
            folder.write(dense.checkpoint_file, source.read(dense.checkpoint_file, dense.checkpoint_sha256))
            folder.write(dense.mask_file, mask)
        except StoreError as error:
            experiment.logger.warning(f"cannot share the dense model of {other}: {error}")
            continue
        adopted = replace(dense, method={**method, "adopted_from": other.name})
        folder.append_ticket(adopted.to_record())
        experiment.load_journal()
        experiment.logger.info(f"ticket 0 is the dense model that {other.name} trained with the same settings")
        return
    if unkept:
        experiment.logger.info(f"no dense model to share: {', '.join(unkept)} did not keep its checkpoint of ticket 0")


class SiblingRow(NamedTuple):
    """A pruned ticket of another run over the same training settings, as its ``summary.json`` tells it."""

    pruner: str
    distiller: str | None
    ticket: dict[str, Any]

    @property
    def method(self) -> str:
        """``pruner`` or ``pruner+distiller``, as in the names of run folders."""
        return method_name(self.pruner, self.distiller)


def rows_of_others(folder: RunFolder) -> list[SiblingRow]:
    """Every pruned ticket of finished runs over the same training settings."""
    rows = []
    for other in _others(folder.path):
        try:
            summary = json.loads((other / "summary.json").read_bytes())
            method = summary["pruner"], summary.get("distiller")
            rows += [SiblingRow(*method, ticket) for ticket in summary["tickets"] if ticket["ticket"] > 0]
        except (OSError, ValueError, KeyError):
            continue
    return rows
