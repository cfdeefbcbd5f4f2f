"""Joules, watts and seconds of the tickets of a run, and by how much the chosen one is cheaper than the dense model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from recbole_prune.metering.reductions import Cost, Reduction
from recbole_prune.report.table import format_rows
from recbole_prune.run.energy import (
    cost_of,
    cost_of_teacher,
    cost_with_teacher,
    energy_record,
    is_whole,
    measured_parts,
    net_joules,
    reductions,
    total_cost,
)
from recbole_prune.run.measuring import said_of_meters
from recbole_prune.run.summary import RunResult
from recbole_prune.run.ticket import Ticket

_HEADER = ["ticket", "train s", "train J", "net J", "mean W", "J/epoch", "valid J", "J/1,000 lists"]
_FLAGS = {
    "drift": "the machine at rest took more than 5 % more or less after a ticket than before it",
    "short_windows": "windows shorter than 20 s in the mean, in which a counter's steps matter",
    "shared_cpu": "a tenth and more of what the processors worked was for other processes, which cpu counts too",
    "sampled": "power was sampled, which misses what lies between samples",
    "unverified_zone": "a daemon on another host does not say which of its counters are packages",
}
_WHAT = {
    "training": "training",
    "all_training": "training, all tickets",
    "recommending": "making lists",
}


def energy_lines(result: RunResult) -> Iterator[str]:
    """What ``measure_energy=True`` adds under the table of a run; nothing where it was not asked for."""
    if not result.experiment.settings.measure_energy:
        return
    yield ""
    records = [record for record in map(energy_record, result.tickets) if record is not None]
    if not records:
        yield "energy and power: not measured: the tickets were trained without measure_energy (--fresh=True trains)"
    else:
        parts = measured_parts(records[-1])
        if parts:
            yield format_rows(_HEADER, [_row(ticket, result.chosen) for ticket in result.tickets])
            yield from _totals(result)
        yield said_of_meters(records[-1]["meters"])
        yield from _remarks(result.tickets)
    yield from _saved(result)


def _row(ticket: Ticket, chosen: Ticket) -> list[str]:
    train, lists = cost_of(ticket, "train"), cost_of(ticket, "recommend")
    record = energy_record(ticket)
    epochs = None if record is None else [record["train"][f"{p}_energy_per_epoch_J"] for p in measured_parts(record)]
    per_epoch = sum(epochs) if epochs and None not in epochs else None
    return [
        f"{ticket.ticket}{'*' * (ticket is chosen)}",
        number(train.seconds),
        number(train.joules),
        number(net_joules(ticket, "train")),
        number(train.watts),
        number(per_epoch),
        number(cost_of(ticket, "validate").joules),
        number(lists.joules),
    ]


def number(value: float | None) -> str:
    """Three digits that count; ``-`` where it was not measured, which is not 0."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _totals(result: RunResult) -> Iterator[str]:
    """The training of all tickets, and with that of the teacher."""
    yield f"training of all tickets: {_said(total_cost(result.tickets))}"
    if result.teacher is not None:
        taught, both = cost_of_teacher(result.teacher), cost_with_teacher(result.tickets, result.teacher)
        yield f"with the teacher's own training, {_said(taught)}: {_said(both)}"


def _said(cost: Cost) -> str:
    joules = "energy not measured" if cost.joules is None else f"{number(cost.joules)} J"
    return f"{joules} in {number(cost.seconds)} s" if cost.seconds is not None else joules


def _remarks(tickets: Sequence[Ticket]) -> Iterator[str]:
    """Flags of the meters, and why single numbers are missing."""
    flags: set[str] = set()
    reasons: dict[str, list[int]] = {}
    for ticket in tickets:
        record = energy_record(ticket)
        if record is None:
            reasons.setdefault("trained without measure_energy=True", []).append(ticket.ticket)
            continue
        if not is_whole(ticket):
            reasons.setdefault("trained in part without measure_energy=True", []).append(ticket.ticket)
        flags.update(record["flags"])
        for part in measured_parts(record):
            found = {kind: record[kind][f"{part}_reason"] for kind in ("train", "validate", "recommend")}
            for kind, reason in found.items():
                if reason is not None:
                    reasons.setdefault(f"{part}, {kind}: {reason}", []).append(ticket.ticket)
    for reason, numbers in reasons.items():
        yield f"not measured of ticket {', '.join(map(str, numbers))}: {reason}"
    for flag in sorted(flags):
        yield f"{flag}: {_FLAGS.get(flag, flag)}"


def _saved(result: RunResult) -> Iterator[str]:
    """Reductions against ticket 0, the papers' quantities, each with what it means."""
    saved = reductions(result.tickets, result.chosen, result.bytes_of)
    if not saved:
        return
    rows = [[_WHAT[what], *map(share, (one.energy, one.power, one.time))] for what, one in _apart(saved)]
    yield ""
    yield format_rows([f"ticket {result.chosen.ticket} saves of ticket 0", "energy", "power", "time"], rows)
    size = saved["size"]
    if isinstance(size, Mapping):
        yield f"size: {share(size['parameters'])} of the parameters, {share(size['bytes'])} of the bytes of weights"
    yield (
        "Energy is power times time: what ends sooner at the same power saves energy, not power. Minus: it takes more."
    )


def _apart(saved: Mapping[str, object]) -> Iterator[tuple[str, Reduction]]:
    for what, one in saved.items():
        if isinstance(one, Reduction):
            yield what, one


def share(value: float | None) -> str:
    """A percentage; ``not measured`` where it is not known."""
    return "not measured" if value is None else f"{100 * value:.2f} %"
