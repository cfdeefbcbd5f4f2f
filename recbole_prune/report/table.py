"""The table at the end of a run, no wider than 100 columns unless every metric is asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import compress
from pathlib import Path
from typing import Any

from recbole_prune.config.evaluation import smaller_is_better
from recbole_prune.errors import printable
from recbole_prune.report.popularity import GROUPS, popularity_legend, recall_of
from recbole_prune.report.rows import figure, format_rows, verdict
from recbole_prune.run.opening import run_folder_of
from recbole_prune.run.siblings import SiblingRow
from recbole_prune.run.summary import AsGood
from recbole_prune.run.ticket import Ticket
from recbole_prune.run.verdict import highest_winning_sparsity

_PARTS = ("valid", "test")
_WITHOUT_TEACHER = "taught: with other objectives, which are gone; alone: without them"


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
    as_good: AsGood | None = None,
) -> str:
    """One row per ticket, then the baselines that were run over the same settings.

    In a distilled run a column says how many weights there are, so that teacher and student can be compared; two say
    how much of the popular and of the unpopular items is found, where that was measured, and take the place of others.
    The last column is there where tickets were tested to be as good as the dense model.

    Args:
        tickets: ticket 0 first.
        valid_metric: RecBole's setting, for example ``MRR@10``.
        chosen: the exported ticket.
        bytes_of: bytes of a ticket's weights in an artifact, by its number; None where they could not be counted.
        others: pruned tickets of other runs over the same settings.
        every_metric: show all metrics instead of the validation metric alone.
        teacher: what the journal says of the teacher; it has the first row, of several each has one.
        alone: the student without a teacher; it has the next row.
        as_good: what was tested of the tickets.
    """
    metric = valid_metric.lower()
    names = [metric, *[name for name in tickets[0].valid if name != metric]] if every_metric else [metric]
    shown = [f"{part} {name}" for part in _PARTS for name in names] if every_metric else list(_PARTS)
    header = ["ticket", "sparsity", "kept", *shown, "bytes", "epochs", "best", "wins"]
    rows, sizes, records = [], [], []

    def add(row: list[str], size: int | None, record: Mapping[str, Any]) -> None:
        rows.append(row)
        sizes.append(size)
        records.append(record)

    taught = is_taught(tickets, teacher)
    for label, member in teachers_of(teacher).items():
        add(_teacher_row(label, member, names), member["parameters"], member)
    if alone is not None:
        record = {**alone.to_record(), "bytes": bytes_of.get(0)}
        add([*_row("alone", record, names)[:-1], "-"], live_parameters(alone), record)
    for ticket in tickets:
        label = ("taught " if taught and ticket.is_taught else "") + str(ticket.ticket) + "*" * (ticket is chosen)
        block = None if as_good is None else as_good.blocks.get(ticket.ticket)
        record = {**ticket.to_record(), "bytes": bytes_of.get(ticket.ticket), "as_good": block}
        add(_row(label, record, names), live_parameters(ticket), record)
    for other in sorted(others, key=lambda other: (other.ticket["sparsity"], other.method)):
        add(_row(other.method, other.ticket, names), None, other.ticket)
    dropped: set[str] = set()
    if any(map(_tested, records)):
        header = [*header, "as good"]
        rows = [[*row, (_tested(record) or {}).get("as_good", "-")] for row, record in zip(rows, records)]
        dropped.add("kept")  # sparsity says it too, and a terminal has 80 columns
    if taught:
        dropped |= {"kept", "epochs", "best"} if any(map(recall_of, records)) else set()
        dropped |= {"weights"} if len(dropped) > 1 and "as good" in header else set()  # in words below the table
        header, rows = _with_columns_of_teaching(header, rows, sizes, records)
    kept = [every_metric or name not in dropped for name in header]
    header, *rows = [list(compress(row, kept)) for row in [header, *rows]]
    return format_rows(header, rows)


def shows_tests(as_good: AsGood, others: Sequence[SiblingRow]) -> bool:
    """Whether the table has the column ``as good``: tickets of this run, or of another in it, were tested."""
    return bool(as_good.blocks) or any(_tested(other.ticket) for other in others)


def _tested(record: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The tests of a ticket, of this run or of another."""
    found: Mapping[str, Any] | None = record.get("as_good")
    return found


def is_taught(tickets: Sequence[Ticket], teacher: Mapping[str, Any] | None) -> bool:
    """Whether a distiller trained along, with a teacher or without one."""
    return teacher is not None or any("distill_epoch_seconds" in ticket.method for ticket in tickets)


def _with_columns_of_teaching(
    header: list[str], rows: list[list[str]], sizes: list[int | None], records: list[Mapping[str, Any]]
) -> tuple[list[str], list[list[str]]]:
    """The weights before the metrics; recall by popularity, where it was measured, after them."""
    groups = GROUPS if any(map(recall_of, records)) else {}
    after = header.index("bytes")
    weights = ["weights", *("-" if size is None else str(size) for size in sizes)]
    recall = [list(groups.values()), *([figure(recall_of(record), group) for group in groups] for record in records)]
    header, *rows = [
        [*row[:3], size, *row[3:after], *figures, *row[after:]]
        for row, size, figures in zip([header, *rows], weights, recall)
    ]
    return header, rows


def live_parameters(ticket: Ticket) -> int:
    """How many trained weights of a ticket are not pruned, those outside its scope included."""
    return ticket.parameters - ticket.prunable + ticket.kept


def teachers_of(teacher: Mapping[str, Any] | None) -> dict[str, Mapping[str, Any]]:
    """What the journal says of each teacher of a run, by what reports call it: ``teacher``, or with numbers."""
    if teacher is None:
        return {}
    members = teacher.get("members", [teacher])
    return {f"teacher {number}" if len(members) > 1 else "teacher": each for number, each in enumerate(members, 1)}


def _teacher_row(label: str, teacher: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """Its metrics, where they are known and RecBole's."""
    metrics = [teacher["metrics"].get(part) or {} for part in _PARTS]
    figures = [figure(metrics[part], name) for part in range(len(_PARTS)) for name in names]
    return [label, "-", "-", *figures, "-", "-", "-", "-"]


def legend(
    tickets: Sequence[Ticket],
    valid_metric: str,
    every_metric: bool = False,
    teacher: Mapping[str, Any] | None = None,
    tested: bool = False,
) -> list[str]:
    """What the columns mean but for ``as good``, who the teacher is, and how far down the tickets win.

    Args:
        tickets, valid_metric, every_metric, teacher: as for :func:`ticket_table`.
        tested: whether the table has the column ``as good``.
    """
    teachers, taught = teachers_of(teacher), is_taught(tickets, teacher)
    popularity = popularity_legend([*teachers.values(), *(ticket.method for ticket in tickets)]) if taught else []
    more = "every metric and column" if popularity or tested else "every metric"
    names = list(tickets[0].valid) if every_metric else [valid_metric.lower()]
    smaller = ", ".join(name for name in names if smaller_is_better(name))
    metric = f"smaller is better: {smaller}; " if smaller else ""
    if not every_metric:
        better = ", smaller is better" if smaller else ""
        metric = f"valid, test: {valid_metric.lower()}{better} (--verbose shows {more}); "
    lines = [
        f"{metric}bytes: weights in an artifact",
        "wins: yes = reaches dense's validation score in no more epochs, metric = but later, no = does not",
    ]
    if taught:
        lines[1] = lines[1].replace("dense", "the dense taught student")
        who = "; ".join(f"{label}: {teacher_name(member)}" for label, member in teachers.items())
        who = f"{who}; alone: the student without a teacher" if who else _WITHOUT_TEACHER
        has_weights = every_metric or not (popularity and tested)
        lines.insert(0, f"{who}; weights: those not pruned" if has_weights else who)
        lines += popularity
    if len(tickets) > 1:
        winner = highest_winning_sparsity(tickets)
        lines.append(f"highest winning sparsity: {'none' if winner is None else f'{100 * winner:.2f} %'}")
    return lines


def teacher_name(teacher: Mapping[str, Any]) -> str:
    """Its model and where it comes from, in a few words; run folders of two models may have the same name."""
    path = Path(teacher["path"])
    if teacher["kind"] == "lists":
        return f"ranked lists in {printable(path.name)}"
    if teacher.get("ticket") is None:
        return f"{teacher['model']}, {printable(path.name)}"
    return f"ticket {teacher['ticket']} of {teacher['model']}/{printable(run_folder_of(path).name)}"


def _row(label: str, record: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    cells = [label, f"{100 * record['sparsity']:.2f} %", str(record["kept"])]
    for part in _PARTS:
        cells += [figure(record[part], name) for name in names]
    size = record.get("bytes")
    cells += ["-" if size is None else str(size), str(record.get("epochs", "-")), str(record.get("best_epoch", "-"))]
    return [*cells, verdict(record)]
