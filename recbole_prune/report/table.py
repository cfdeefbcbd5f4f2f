"""The table at the end of a run, no wider than 100 columns unless every metric is asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recbole_prune.errors import printable
from recbole_prune.run.siblings import SiblingRow
from recbole_prune.run.ticket import Ticket
from recbole_prune.run.verdict import highest_winning_sparsity

_PARTS = ("valid", "test")


def ticket_table(
    tickets: Sequence[Ticket],
    valid_metric: str,
    *,
    chosen: Ticket,
    bytes_of: Mapping[int, int | None],
    others: Sequence[SiblingRow] = (),
    every_metric: bool = False,
    teacher: Mapping[str, Any] | None = None,
    alone: Ticket | None = None,
) -> str:
    """One row per ticket, then the baselines that were run over the same settings.

    In a distilled run a column says how many weights there are, so that teacher and student can be compared.

    Args:
        tickets: ticket 0 first.
        valid_metric: RecBole's setting, for example ``MRR@10``.
        chosen: the exported ticket.
        bytes_of: bytes of a ticket's weights in an artifact, by its number; None where they could not be counted.
        others: pruned tickets of other runs over the same settings.
        every_metric: show all metrics instead of the validation metric alone.
        teacher: what the journal says of the teacher; it has the first row.
        alone: the student without a teacher; it has the second row.
    """
    metric = valid_metric.lower()
    names = [metric, *[name for name in tickets[0].valid if name != metric]] if every_metric else [metric]
    shown = [f"{part} {name}" for part in _PARTS for name in names] if every_metric else list(_PARTS)
    header = ["ticket", "sparsity", "kept", *shown, "bytes", "epochs", "best", "wins"]
    rows, sizes = [], []
    if teacher is not None:
        rows.append(_teacher_row(teacher, names))
        sizes.append(teacher["parameters"])
    if alone is not None:
        rows.append([*_row("alone", {**alone.to_record(), "bytes": bytes_of.get(0)}, names)[:-1], "-"])
        sizes.append(live_parameters(alone))
    for ticket in tickets:
        label = ("" if teacher is None else "taught ") + str(ticket.ticket) + "*" * (ticket is chosen)
        rows.append(_row(label, {**ticket.to_record(), "bytes": bytes_of.get(ticket.ticket)}, names))
        sizes.append(live_parameters(ticket))
    for other in sorted(others, key=lambda other: (other.ticket["sparsity"], other.method)):
        rows.append(_row(other.method, other.ticket, names))
        sizes.append(None)
    if teacher is None:
        return format_rows(header, rows)
    cells = ["weights", *("-" if size is None else str(size) for size in sizes)]
    header, *rows = [[*row[:3], cell, *row[3:]] for row, cell in zip([header, *rows], cells)]
    return format_rows(header, rows)


def live_parameters(ticket: Ticket) -> int:
    """How many trained weights of a ticket are not pruned, those outside its scope included."""
    return ticket.parameters - ticket.prunable + ticket.kept


def _teacher_row(teacher: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """Its metrics, where they are known and RecBole's."""
    metrics = [teacher["metrics"].get(part) or {} for part in _PARTS]
    figures = [figure(metrics[part], name) for part in range(len(_PARTS)) for name in names]
    return ["teacher", "-", "-", *figures, "-", "-", "-", "-"]


def legend(
    tickets: Sequence[Ticket],
    valid_metric: str,
    every_metric: bool = False,
    teacher: Mapping[str, Any] | None = None,
) -> list[str]:
    """What the columns mean, who the teacher is, and how far down the tickets win."""
    metric = "" if every_metric else f"valid, test: {valid_metric.lower()} (--verbose shows every metric); "
    lines = [
        f"{metric}bytes: weights in an artifact",
        "wins: yes = as good as dense on validation in no more epochs, metric = as good but later, no = worse",
    ]
    if teacher is not None:
        lines[1] = lines[1].replace("dense", "the dense taught student")
        lines.insert(
            0, f"teacher: {teacher_name(teacher)}; alone: the student without a teacher; weights: those not pruned"
        )
    if len(tickets) > 1:
        winner = highest_winning_sparsity(tickets)
        lines.append(f"highest winning sparsity: {'none' if winner is None else f'{100 * winner:.2f} %'}")
    return lines


def teacher_name(teacher: Mapping[str, Any]) -> str:
    """Its model and where it comes from, in a few words."""
    place = printable(Path(teacher["path"]).name)
    if teacher["kind"] == "lists":
        return f"ranked lists in {place}"
    ticket = f"ticket {teacher['ticket']} of " if teacher.get("ticket") is not None else ""
    return f"{teacher['model']}, {ticket}{place}"


def _row(label: str, record: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    cells = [label, f"{100 * record['sparsity']:.2f} %", str(record["kept"])]
    for part in _PARTS:
        cells += [figure(record[part], name) for name in names]
    size = record.get("bytes")
    cells += ["-" if size is None else str(size), str(record.get("epochs", "-")), str(record.get("best_epoch", "-"))]
    return [*cells, _verdict(record)]


def figure(metrics: Mapping[str, float | None], name: str) -> str:
    """A metric with four digits; ``undefined`` where the data does not define it, ``-`` where it was not measured."""
    if name not in metrics:
        return "-"
    value = metrics[name]
    return "undefined" if value is None else f"{value:.4f}"


def _verdict(record: Mapping[str, Any]) -> str:
    if record["wins"] is None:
        return "dense" if record["ticket"] == 0 else "-"
    return "yes" if record["wins"] else ("metric" if record["wins_metric"] else "no")


def format_rows(header: list[str], rows: list[list[str]]) -> str:
    """Right-aligned columns under their header."""
    widths = [max(map(len, column)) for column in zip(header, *rows)]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths)) for row in [header, *rows]]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])
