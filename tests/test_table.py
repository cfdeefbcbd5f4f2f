"""The table at the end of a run says what was found, aligned and complete."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from test_verdict import ticket

from recbole_prune.report.table import format_rows, shown_metrics, ticket_table
from recbole_prune.run.siblings import SiblingRow
from recbole_prune.run.ticket import Ticket

VALID = {"recall@10": 0.1234567, "ndcg@10": 0.2}
TEST = {"recall@10": 0.1, "ndcg@10": 0.25}


def metric_ticket(number: int, sparsity: float, wins_metric: Any, wins: Any, **changes: Any) -> Ticket:
    return ticket(number, sparsity, wins_metric=wins_metric, wins=wins, valid=VALID, test=TEST, **changes)


def tickets() -> list[Ticket]:
    return [
        metric_ticket(0, 0.0, None, None),
        metric_ticket(1, 0.1, True, True),
        metric_ticket(2, 0.3, True, False, epochs=7, best_epoch=6),
        metric_ticket(3, 0.95123, False, False, kept=48),
    ]


def rows_of(table: str) -> tuple[list[str], dict[str, list[str]]]:
    """Header cells and the cells of each row by its first cell, columns cut where the ruler is."""
    lines = table.splitlines()
    ruler = next(i for i, line in enumerate(lines) if set(line) == {"-", " "})
    spans, start = [], 0
    for width in map(len, lines[ruler].split("  ")):
        spans.append((start, start + width))
        start += width + 2
    cut = [[line[a:b].strip() for a, b in spans] for line in [lines[ruler - 1], *lines[ruler + 1 :]]]
    return cut[0], {cells[0]: cells for cells in cut[1:]}


def test_every_ticket_has_a_row_with_its_numbers() -> None:
    all_tickets = tickets()
    header, rows = rows_of(ticket_table(all_tickets, "NDCG@10", chosen=all_tickets[2], reason="because"))
    assert header == [
        "ticket",
        "sparsity",
        "kept",
        "valid ndcg@10",
        "valid recall@10",
        "test ndcg@10",
        "test recall@10",
        "epochs",
        "best",
        "wins",
    ]
    assert rows["0"] == ["0", "0.00 %", "1000", "0.2000", "0.1235", "0.2500", "0.1000", "30", "20", "dense"]
    assert rows["1"][-1] == "yes" and rows["1"][1:3] == ["10.00 %", "900"]
    assert rows["2*"][-3:] == ["7", "6", "metric"]
    assert rows["3"][1:3] == ["95.12 %", "48"] and rows["3"][-1] == "no"


def test_choice_highest_winner_and_folder_are_named() -> None:
    all_tickets = tickets()
    table = ticket_table(
        all_tickets, "NDCG@10", chosen=all_tickets[2], reason="the sparsest", folder=Path("pruned/ml/BPR/imp-1a")
    )
    lines = table.splitlines()
    assert "* chosen: ticket 2, the sparsest" in lines
    assert "highest winning sparsity: 10.00 %" in lines  # ticket 2 is as good, but in more epochs
    assert f"folder: {Path('pruned/ml/BPR/imp-1a')}" in lines
    assert table.count("2*") == 1 and table.count("*") == 2


def test_no_winner_is_said() -> None:
    losers = [metric_ticket(0, 0.0, None, None), metric_ticket(1, 0.1, False, False)]
    table = ticket_table(losers, "NDCG@10", chosen=losers[1], reason="closest")
    assert "highest winning sparsity: none" in table and "folder" not in table


def test_a_dense_run_has_no_winning_sparsity() -> None:
    dense = tickets()[:1]
    table = ticket_table(dense, "NDCG@10", chosen=dense[0], reason="nothing was pruned")
    assert "highest winning sparsity" not in table and "0*" in table


def test_baselines_follow_in_order_of_sparsity() -> None:
    all_tickets = tickets()
    summary = {"sparsity": 0.3, "kept": 700, "valid": VALID, "test": TEST, "wins": False, "wins_metric": True}
    others = [
        SiblingRow("small_dense", None, {**summary, "sparsity": 0.5, "valid": {"ndcg@10": 0.1}, "test": {}}),
        SiblingRow("random", None, {**summary, "epochs": 4, "best_epoch": 3}),
        SiblingRow("omp", None, summary),
    ]
    table = ticket_table(all_tickets, "NDCG@10", chosen=all_tickets[1], reason="", others=others)
    _, rows = rows_of(table)
    assert [name for name in rows if name in ("small_dense", "random", "omp")] == ["omp", "random", "small_dense"]
    assert rows["random"][-3:] == ["4", "3", "metric"]
    assert rows["omp"][-3:] == ["-", "-", "metric"]
    assert rows["small_dense"][3:7] == ["0.1000", "-", "-", "-"]  # not measured, not 0


def test_columns_are_aligned() -> None:
    all_tickets = tickets()
    lines = ticket_table(all_tickets, "NDCG@10", chosen=all_tickets[1], reason="").splitlines()
    block = lines[1 : 3 + len(all_tickets)]
    assert len({len(line) for line in block}) == 1


def test_the_validation_metric_comes_first_and_a_terminal_is_not_flooded() -> None:
    names = [f"{metric}@{k}" for metric in ("recall", "mrr", "ndcg") for k in (5, 10, 20)]
    shown = shown_metrics(names, "NDCG@20")
    assert shown[0] == "ndcg@20" and len(shown) == 6 and len(set(shown)) == 6
    assert shown[1:] == names[:5]
    assert shown_metrics(["auc", "logloss"], "AUC") == ["auc", "logloss"]


@pytest.mark.parametrize("rows", [[["1", "long cell"], ["22", "x"]], []])
def test_format_rows(rows: list[list[str]]) -> None:
    text = format_rows(["a", "bb"], rows)
    assert text.splitlines()[0].split() == ["a", "bb"]
    assert len({len(line) for line in text.splitlines()}) == 1
    if rows:
        assert text.splitlines() == [" a         bb", "--  ---------", " 1  long cell", "22          x"]
