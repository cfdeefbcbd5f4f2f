"""Other runs over the same training settings: their dense model is shared, their results stand in the table.

What is damaged there, or cannot be read, costs this run nothing but a warning.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from logging import getLogger
from pathlib import Path
from typing import Any, NamedTuple

from recbole_prune.config.settings import Settings
from recbole_prune.config.usage import is_used
from recbole_prune.disk.files import read_file
from recbole_prune.disk.names import SET_ASIDE, method_name
from recbole_prune.errors import StoreError
from recbole_prune.masking.masks import MaskSet
from recbole_prune.run import user_values
from recbole_prune.run.experiment import Experiment
from recbole_prune.run.provenance import read_record
from recbole_prune.run.store import CONFIG, REWIND, SUMMARY, RunFolder, recorded_states
from recbole_prune.run.ticket import Ticket

_SAME = ("base_hash", "data_sha256", "versions")
_UNTOLD = {"bytes": None, "as_good": None}


@contextmanager
def _harmless(place: Path, what: str) -> Iterator[None]:
    """Turn what is wrong with another run into a warning that names it; a line of another version may lack fields."""
    try:
        yield
    except (StoreError, OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        said = f"{place} cannot be read: {type(error).__name__} {error}"
        getLogger("recbole_prune").warning(f"{what}: {error if isinstance(error, StoreError) else said}")


def _others(folder: RunFolder) -> Iterator[tuple[RunFolder, dict[str, Any]]]:
    """Runs beside this one that were begun with the same training settings, data and versions, and their records."""
    own = read_record(folder)
    for path in sorted(folder.path.parent.iterdir()):
        if path == folder.path or SET_ASIDE in path.name:
            continue
        other, record = RunFolder(path), None
        with _harmless(path, "a run beside this one is left out"):
            if (path / CONFIG).is_file():
                record = read_record(other)
        if record is not None and all(record.get(key) == own[key] for key in _SAME):
            yield other, record


def adopt_dense(experiment: Experiment, taught: bool = True) -> None:
    """Copy ticket 0 of another run, instead of training the same dense model again.

    Only a run with the same training settings, data, library versions and scope qualifies; its files are
    hash-checked. The journal line says where the ticket comes from.

    Args:
        experiment: of this run.
        taught: whether its teacher, if there is one, teaches ticket 0 too.
    """
    folder, settings = experiment.folder, experiment.settings
    if settings.fresh or experiment.tickets or folder.load_resume(0) is not None:
        return
    scope, unkept = read_record(folder)["scope"], []
    for other, record in _others(folder):
        with _harmless(other.path, "a dense model is not shared"):
            dense = _dense_of(other) if record.get("scope") == scope else None
            if dense is None or dense.is_taught != taught:
                continue
            if not other.has(dense.checkpoint_file):
                unkept.append(other.path.name)
            elif _adopt(dense, other, experiment):
                return
    if unkept:
        experiment.logger.info(f"no dense model to share: {', '.join(unkept)} did not keep its checkpoint of ticket 0")


def _dense_of(other: RunFolder) -> Ticket | None:
    """Ticket 0 of another run, None where it has none."""
    return next((ticket for ticket in map(Ticket.from_record, other.tickets()) if ticket.ticket == 0), None)


def _keeps_network(settings: Settings) -> bool:
    """Whether the distiller's network goes on from the dense ticket."""
    return bool(settings.distiller) and is_used("distill_network", settings) and settings.distill_network == "keep"


def _adopt(dense: Ticket, other: RunFolder, experiment: Experiment) -> bool:
    """Whether ticket 0 of another run could be made this run's."""
    folder, settings = experiment.folder, experiment.settings
    if dense.mask_file is None or dense.mask_sha256 is None:
        return False
    method = {key: value for key, value in dense.method.items() if not key.startswith("rewind_") and key != "states"}
    if settings.distill_record_states:
        if dense.method.get("states", {}).get("count") != settings.distill_record_states:
            return False
        method["states"] = dense.method["states"]
    if dense.is_taught and "legacy" not in method and _keeps_network(settings):
        return False  # a run of before networks went on from ticket to ticket
    if settings.prune_rewind == "late":
        if dense.method.get("rewind_epoch") != settings.prune_rewind_epoch:
            return False
        method.update({key: dense.method[key] for key in ("rewind_epoch", "rewind_sha256")})
        folder.write(REWIND, other.read(REWIND, method["rewind_sha256"]))
    legacy = [method["legacy"]] if "legacy" in method else []
    for state in (*recorded_states(method), *legacy):
        folder.write(state["file"], other.read(state["file"], state["sha256"]))
    mask = other.read(dense.mask_file, dense.mask_sha256)
    MaskSet.from_bytes(mask, experiment.scope)  # 0.1.0 may have decided its scope otherwise
    folder.write(dense.checkpoint_file, other.read(dense.checkpoint_file, dense.checkpoint_sha256))
    folder.write(dense.mask_file, mask)
    user_values.adopt(dense, other, folder)
    adopted = replace(dense, method={**method, "adopted_from": other.path.name})
    folder.append_ticket(adopted.to_record())
    experiment.load_journal()
    experiment.logger.info(f"ticket 0 is the dense model that {other.path.name} trained with the same settings")
    return True


class SiblingRow(NamedTuple):
    """A pruned ticket of another run over the same training settings.

    ``ticket`` is its journal line, with ``bytes`` and ``as_good`` (a block of
    :class:`~recbole_prune.run.summary.AsGood`) where the summary of its run has them, else None.
    """

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
    for other, record in _others(folder):
        with _harmless(other.path, "a run beside this one is left out of the table"):
            if not (other.path / SUMMARY).is_file():
                continue  # it goes on
            method = record["settings"]["pruner"], record["settings"].get("distiller")
            tickets = [ticket for ticket in map(Ticket.from_record, other.tickets()) if ticket.ticket > 0]
            told = _told_of_tickets(other)
            rows += [
                SiblingRow(*method, {**ticket.to_record(), **_UNTOLD, **told.get(ticket.ticket, {})})
                for ticket in tickets
            ]
    return rows


def _told_of_tickets(other: RunFolder) -> dict[int, dict[str, Any]]:
    """Bytes of each ticket and its tests, as another run's summary says; nothing where it is damaged."""
    path = other.path / SUMMARY
    with _harmless(path, "bytes and tests of its tickets are not shown"):
        has_seals = other.identity() is not None
        summary = other.read_summary() if has_seals else json.loads(read_file(path))
        return {
            t["ticket"]: {
                "bytes": t["bytes"] if isinstance(t["bytes"], int) else None,
                "as_good": t["as_good"] if isinstance(t.get("as_good"), dict) else None,
            }
            for t in summary["tickets"]
        }
    return {}
