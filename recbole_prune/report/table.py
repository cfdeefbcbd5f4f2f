"""The table at the end of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recbole_prune.report.costs import macs_line
from recbole_prune.run.siblings import SiblingRow
from recbole_prune.run.summary import RunResult
from recbole_prune.run.ticket import Ticket
from recbole_prune.run.verdict import highest_winning_sparsity
from recbole_prune.run.workshop import NO_TEST_DATA

_MOST_METRICS = 6


def result_text(result: RunResult) -> str:
    """What a run ends by saying: the table, what it cost, and what its protocol leaks."""
    experiment = result.experiment
    text = [
        ticket_table(
            result.tickets,
            experiment.config["valid_metric"],
            chosen=result.chosen,
            reason=result.reason,
            others=result.siblings,
            folder=experiment.folder.path,
        ),
        macs_line(result.chosen, result.dense, result.macs[result.chosen.ticket]),
    ]
    if not result.chosen.test:
        text.append(f"\nNOTE {NO_TEST_DATA}")
    if result.notice:
        text.append(f"\nNOTE {result.notice}")
    return "\n".join(text)


def shown_metrics(metrics: Sequence[str], valid_metric: str) -> list[str]:
    """The validation metric first, then the others as far as a terminal is wide."""
    first = valid_metric.lower()
    return [first, *[name for name in metrics if name != first]][:_MOST_METRICS]


def ticket_table(
    tickets: Sequence[Ticket],
    valid_metric: str,
    *,
    chosen: Ticket,
    reason: str,
    others: Sequence[SiblingRow] = (),
    folder: Path | None = None,
) -> str:
    """One row per ticket, the baselines that were run at about the same sparsities, the choice and the folder.

    Args:
        tickets: ticket 0 first.
        valid_metric: RecBole's setting, for example ``MRR@10``.
        chosen: the exported ticket and ``reason`` why.
        others: pruned tickets of other runs over the same settings.
        folder: where everything lies.
    """
    names = shown_metrics(list(tickets[0].valid), valid_metric)
    header = ["ticket", "sparsity", "kept", *[f"valid {n}" for n in names], *[f"test {n}" for n in names]]
    header += ["epochs", "best", "wins"]
    rows = [_row(str(t.ticket) + ("*" if t is chosen else ""), t.to_record(), names) for t in tickets]
    for other in sorted(others, key=lambda other: (other.ticket["sparsity"], other.method)):
        rows.append(_row(other.method, other.ticket, names))
    lines = ["", format_rows(header, rows)]
    lines.append("wins: yes = as good as dense on validation in no more epochs, metric = as good but later, no = worse")
    lines.append(f"* chosen: ticket {chosen.ticket}, {reason}")
    winner = highest_winning_sparsity(tickets)
    if len(tickets) > 1:
        lines.append(f"highest winning sparsity: {'none' if winner is None else f'{100 * winner:.2f} %'}")
    if folder is not None:
        lines.append(f"folder: {folder}")
    return "\n".join(lines)


def _row(label: str, record: dict[str, Any], names: list[str]) -> list[str]:
    cells = [label, f"{100 * record['sparsity']:.2f} %", str(record["kept"])]
    for part in ("valid", "test"):
        cells += [figure(record[part], name) for name in names]
    cells += [str(record.get("epochs", "-")), str(record.get("best_epoch", "-"))]
    return [*cells, _verdict(record)]


def figure(metrics: Mapping[str, float | None], name: str) -> str:
    """A metric with four digits; ``undefined`` where the data does not define it, ``-`` where it was not measured."""
    if name not in metrics:
        return "-"
    value = metrics[name]
    return "undefined" if value is None else f"{value:.4f}"


def _verdict(record: dict[str, Any]) -> str:
    if record["wins"] is None:
        return "dense" if record["ticket"] == 0 else "-"
    return "yes" if record["wins"] else ("metric" if record["wins_metric"] else "no")


def format_rows(header: list[str], rows: list[list[str]]) -> str:
    """Right-aligned columns under their header."""
    widths = [max(map(len, column)) for column in zip(header, *rows)]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths)) for row in [header, *rows]]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])
