"""The energy of a whole run: every round of it, its teacher, and what a ticket saves of it against the dense model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

from recbole_prune.errors import StoreError
from recbole_prune.metering.accounts import PARTS
from recbole_prune.metering.reductions import Cost, Reduction, lower_by, reduction
from recbole_prune.run.opening import run_folder_of
from recbole_prune.run.store import RunFolder
from recbole_prune.run.ticket import Ticket

Record = dict[str, Any]  # JSON


def energy_record(ticket: Ticket) -> Record | None:
    """What a ticket's line says of energy; None where it was trained without measuring it."""
    found: Record | None = (ticket.measured or {}).get("energy")
    return found


def measured_parts(record: Mapping[str, Any]) -> list[str]:
    """The parts of the machine that had a meter."""
    return [part for part in PARTS if record["meters"].get(part, {}).get("method") is not None]


def cost_of(ticket: Ticket, kind: str) -> Cost:
    """Joules of all parts that have a meter, and seconds, of ``train``, ``validate`` or ``recommend``.

    Of ``recommend`` for 1,000 lists. Seconds of training are known without a meter too; what was not trained took none.
    """
    if kind == "train" and not ticket.epochs:
        return Cost(0.0, 0.0)
    record = energy_record(ticket)
    if record is None or (kind == "train" and not is_whole(ticket)):
        return Cost(None, ticket.train_seconds if kind == "train" else None)
    found = record[kind]
    seconds = found["window_s"] if found["windows"] else None
    cost = Cost(_sum(found[f"{part}_energy_J"] for part in measured_parts(record)), seconds)
    if kind != "recommend":
        return cost
    lists = found["lists"]
    return Cost(*(None if not lists or value is None else 1000 * value / lists for value in (cost.joules, seconds)))


def is_whole(ticket: Ticket) -> bool:
    """Whether every epoch was measured; one that a process without ``measure_energy`` trained before a kill was not."""
    record = energy_record(ticket)
    return record is not None and record["train"]["windows"] >= ticket.epochs  # some trainers open several in an epoch


def net_joules(ticket: Ticket, kind: str) -> float | None:
    """Joules above those of the machine at rest."""
    record = energy_record(ticket)
    if record is None or (kind == "train" and not is_whole(ticket)):
        return None
    return _sum(record[kind][f"{part}_energy_net_J"] for part in measured_parts(record))


def total_cost(tickets: Sequence[Ticket]) -> Cost:
    """Training of every one of them: what a method costs that tries several."""
    costs = [cost_of(ticket, "train") for ticket in tickets]
    return _known(reduce(add, costs), _measured_alike(tickets)) if costs else Cost(None, None)


def _measured_alike(tickets: Iterable[Ticket]) -> bool:
    """Whether the same parts of the machine were measured of all; else sums and ratios would take a part for 0 J."""
    records = filter(None, map(energy_record, tickets))
    return len({tuple(measured_parts(record)) for record in records}) <= 1


def cost_of_teacher(teacher: Mapping[str, Any] | None) -> Cost:
    """The training of the run folders that the teachers of a run lie in; not known where one lies in none."""
    return total_cost(_tickets_of_teacher(teacher))


def cost_with_teacher(tickets: Sequence[Ticket], teacher: Mapping[str, Any]) -> Cost:
    """That of the tickets and of the teacher together; not known where either is not."""
    found = _tickets_of_teacher(teacher)
    return total_cost([*tickets, *found]) if found else Cost(None, None)


def _tickets_of_teacher(teacher: Mapping[str, Any] | None) -> list[Ticket]:
    """Every ticket of the run folders that teachers lie in; none where one of them lies in none."""
    members = [] if teacher is None else teacher.get("members", [teacher])
    found = [_tickets_of(run_folder_of(Path(member["path"]))) for member in members]
    return [ticket for tickets in found for ticket in tickets] if all(found) else []


def _tickets_of(folder: Path) -> list[Ticket]:
    try:
        return [Ticket.from_record(record) for record in RunFolder(folder).tickets()] if folder.is_dir() else []
    except (StoreError, TypeError):  # of another version, or damaged
        return []


def summary_of_energy(
    tickets: Sequence[Ticket], chosen: Ticket, bytes_of: Mapping[int, int | None], teacher: Mapping[str, Any] | None
) -> Record:
    """What ``summary.json`` says of energy.

    Args:
        tickets: all of the run.
        chosen: the exported one.
        bytes_of: bytes of a ticket's weights in an artifact, by its number.
        teacher: what the journal says of it.

    Returns:
        ``training`` of all tickets, ``teacher`` and ``with_teacher``, each ``joules`` and ``seconds``; ``reductions``
        as :func:`reductions` gives them.
    """
    found: Record = {"training": asdict(total_cost(tickets))}
    if teacher is not None:
        both = cost_with_teacher(tickets, teacher)
        found.update(teacher=asdict(cost_of_teacher(teacher)), with_teacher=asdict(both))
    saved = reductions(tickets, chosen, bytes_of)
    found["reductions"] = {what: asdict(one) if isinstance(one, Reduction) else one for what, one in saved.items()}
    return found


def reductions(
    tickets: Sequence[Ticket], chosen: Ticket, bytes_of: Mapping[int, int | None]
) -> dict[str, Reduction | dict[str, float | None]]:
    """By how much the chosen ticket is cheaper than ticket 0; empty where the run has none, or it is the chosen one.

    Returns:
        ``training`` of the chosen ticket alone, ``all_training`` of all tickets together, ``recommending``,
        each with energy, power and time apart; ``size``: ``parameters`` and ``bytes``.
    """
    dense = next((ticket for ticket in tickets if ticket.ticket == 0), None)
    if dense is None or dense is chosen:
        return {}
    before, alike = cost_of(dense, "train"), _measured_alike([dense, chosen])
    live = [ticket.parameters - ticket.prunable + ticket.kept for ticket in (dense, chosen)]
    return {
        "training": reduction(before, _known(cost_of(chosen, "train"), alike)),
        "all_training": reduction(before, total_cost(tickets)),
        "recommending": reduction(cost_of(dense, "recommend"), _known(cost_of(chosen, "recommend"), alike)),
        "size": {
            "parameters": lower_by(*live),
            "bytes": lower_by(bytes_of.get(0), bytes_of.get(chosen.ticket)),
        },
    }


def _known(cost: Cost, alike: bool) -> Cost:
    return cost if alike else Cost(None, cost.seconds)


def _sum(values: Iterable[float | None]) -> float | None:
    """None where there is nothing, or something of it is not known."""
    known = list(values)
    return sum(value or 0.0 for value in known) if known and None not in known else None
