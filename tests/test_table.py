"""The table at the end of a run says what was found, aligned, complete and no wider than a terminal."""

from __future__ import annotations

from typing import Any

import pytest
from test_verdict import ticket

from recbole_prune.report.table import format_rows, legend, teacher_name, ticket_table
from recbole_prune.run.siblings import SiblingRow
from recbole_prune.run.ticket import Ticket

VALID = {"recall@10": 0.1234567, "ndcg@10": 0.2}
TEST = {"recall@10": 0.1, "ndcg@10": 0.25}
BYTES = {0: 4000, 1: 3700, 2: 3000, 3: None}


def metric_ticket(number: int, sparsity: float, wins_metric: Any, wins: Any, **changes: Any) -> Ticket:
    return ticket(number, sparsity, wins_metric=wins_metric, wins=wins, valid=VALID, test=TEST, **changes)


def tickets() -> list[Ticket]:
    return [
        metric_ticket(0, 0.0, None, None),
        metric_ticket(1, 0.1, True, True),
        metric_ticket(2, 0.3, True, False, epochs=7, best_epoch=6),
        metric_ticket(3, 0.95123, False, False, kept=48),
    ]


def table_of(chosen: int = 2, **changes: Any) -> str:
    found = tickets()
    return ticket_table(found, "NDCG@10", chosen=found[chosen], bytes_of=BYTES, **changes)


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
    header, rows = rows_of(table_of())
    assert header == ["ticket", "sparsity", "kept", "valid", "test", "bytes", "epochs", "best", "wins"]
    assert rows["0"] == ["0", "0.00 %", "1000", "0.2000", "0.2500", "4000", "30", "20", "dense"]
    assert rows["1"][-1] == "yes" and rows["1"][1:3] == ["10.00 %", "900"]
    assert rows["2*"][-3:] == ["7", "6", "metric"]
    assert rows["3"][1:3] == ["95.12 %", "48"] and rows["3"][-1] == "no"
    assert rows["3"][5] == "-", "not counted, not 0"
    assert "valid, test: ndcg@10" in legend(tickets(), "NDCG@10")[0]


def test_the_highest_winner_is_named() -> None:
    assert legend(tickets(), "NDCG@10")[-1] == "highest winning sparsity: 10.00 %", "ticket 2 reaches it later"
    losers = [metric_ticket(0, 0.0, None, None), metric_ticket(1, 0.1, False, False)]
    assert legend(losers, "NDCG@10")[-1] == "highest winning sparsity: none"
    assert "highest" not in " ".join(legend(losers[:1], "NDCG@10"))


def test_every_metric_is_shown_when_asked_for() -> None:
    header, rows = rows_of(table_of(every_metric=True))
    assert header[3:7] == ["valid ndcg@10", "valid recall@10", "test ndcg@10", "test recall@10"]
    assert rows["1"][3:7] == ["0.2000", "0.1235", "0.2500", "0.1000"]


def test_baselines_follow_in_order_of_sparsity() -> None:
    summary = {"sparsity": 0.3, "kept": 700, "valid": VALID, "test": TEST, "wins": False, "wins_metric": True}
    others = [
        SiblingRow("small_dense", None, {**summary, "sparsity": 0.5, "valid": {"ndcg@10": 0.1}, "test": {}}),
        SiblingRow("random", None, {**summary, "epochs": 4, "best_epoch": 3, "bytes": 2800}),
        SiblingRow("omp", None, summary),
    ]
    _, rows = rows_of(table_of(others=others))
    assert [name for name in rows if name in ("small_dense", "random", "omp")] == ["omp", "random", "small_dense"]
    assert rows["random"][-4:] == ["2800", "4", "3", "metric"]
    assert rows["omp"][-4:] == ["-", "-", "-", "metric"]
    assert rows["small_dense"][3:5] == ["0.1000", "-"]  # not measured, not 0


TEACHER = {
    "kind": "run",
    "path": "/elsewhere/none-0123456789",
    "ticket": 0,
    "model": "BPR",
    "parameters": 123456,
    "metrics": {"valid": {"ndcg@10": 0.4}, "test": {"ndcg@10": 0.5}},
}


def test_a_distilled_run_counts_the_weights_of_teacher_and_students() -> None:
    others = [SiblingRow("small_dense", None, {**metric_ticket(1, 0.5, None, None).to_record(), "bytes": 7})]
    table = table_of(teacher=TEACHER, alone=metric_ticket(0, 0.0, None, None), others=others)
    header, rows = rows_of(table)
    found = tickets()
    outside = found[0].parameters - found[0].prunable
    assert header[:6] == ["ticket", "sparsity", "kept", "weights", "valid", "test"]
    assert rows["teacher"] == ["teacher", "-", "-", "123456", "0.4000", "0.5000", "-", "-", "-", "-"]
    assert rows["alone"][3] == rows["taught 0"][3] == str(found[0].parameters), "nothing is pruned"
    assert rows["alone"][6] == "4000" and rows["alone"][-1] == "-"
    assert rows["taught 2*"][3] == str(outside + found[2].kept)
    assert rows["taught 3"][3] == str(outside + 48)
    assert rows["small_dense"][3] == "-", "another run does not say"
    assert max(map(len, table.splitlines())) <= 100


def test_recall_by_popularity_stands_where_it_was_measured() -> None:
    recall = {"k": 20, "popular": 0.25, "unpopular": 0.0625, "popular_users": 3, "unpopular_users": 4}
    measured = {"popularity": recall}
    alone = metric_ticket(0, 0.0, None, None, method={"popularity": None})
    found = [
        metric_ticket(0, 0.0, None, None, method=measured, kept=9_000_000, prunable=9_000_000, parameters=9_000_010),
        metric_ticket(12, 0.5, True, False, method={"popularity": {**recall, "unpopular": None}}),
    ]
    arguments: dict[str, Any] = {"chosen": found[1], "bytes_of": {0: 36_000_040, 12: 9_000_000}, "alone": alone}
    table = ticket_table(found, "NDCG@10", teacher={**TEACHER, **measured}, **arguments)
    header, rows = rows_of(table)
    assert header == ["ticket", "sparsity", "weights", "valid", "test", "popular", "rare", "bytes", "wins"]
    assert rows["teacher"][5:7] == rows["taught 0"][5:7] == ["0.2500", "0.0625"]
    assert rows["taught 12*"][5:7] == ["0.2500", "undefined"] and rows["alone"][5:7] == ["-", "-"]
    assert max(map(len, table.replace("undefined", "      ").splitlines())) <= 84
    header, rows = rows_of(ticket_table(found, "NDCG@10", teacher=TEACHER, every_metric=True, **arguments))
    assert header[8:] == ["popular", "rare", "bytes", "epochs", "best", "wins"] and "kept" in header
    assert rows["taught 0"][8:10] == ["0.2500", "0.0625"] and rows["teacher"][8:10] == ["-", "-"]
    lines = legend(found, "NDCG@10", teacher=TEACHER)
    assert any(line.startswith("popular, rare: test recall@20 of the most popular items") for line in lines)
    assert not any("rare" in line for line in legend(tickets(), "NDCG@10", teacher=TEACHER))
    header, _ = rows_of(ticket_table(found, "NDCG@10", chosen=found[0], bytes_of={}))
    assert "popular" not in header, "nobody teaches"


def test_the_legend_names_the_teacher() -> None:
    first, *rest = legend(tickets(), "NDCG@10", teacher=TEACHER)
    assert first.startswith("teacher: ticket 0 of BPR/none-0123456789;")
    assert any("reaches the dense taught student's validation score" in line for line in rest)
    lists = {"kind": "lists", "path": "/elsewhere/best.tsv", "model": None, "parameters": None, "metrics": {}}
    assert legend(tickets(), "NDCG@10", teacher=lists)[0].startswith("teacher: ranked lists in best.tsv;")
    _, rows = rows_of(table_of(teacher=lists))
    assert rows["teacher"] == ["teacher", *["-"] * 9]


def test_several_teachers_have_a_row_each() -> None:
    lists = {"kind": "lists", "path": "/elsewhere/best.tsv", "model": None, "parameters": None, "metrics": {}}
    together = {"kind": "ensemble", "path": "", "parameters": None, "metrics": {}, "members": [TEACHER, lists]}
    first, *_ = legend(tickets(), "NDCG@10", teacher=together)
    assert first.startswith("teacher 1: ticket 0 of BPR/none-0123456789; teacher 2: ranked lists in best.tsv; alone:")
    table = table_of(teacher=together)
    assert [line[:9].strip() for line in table.splitlines()[2:4]] == ["teacher 1", "teacher 2"]
    assert "123456" in table.splitlines()[2] and max(map(len, table.splitlines())) <= 100


def test_runs_of_two_models_are_told_apart() -> None:
    """Their folders have the same name where their settings are the same, and so have checkpoints and artifacts."""
    run = TEACHER["path"]
    for path in (run, f"{run}/checkpoints/ticket-000.pth", f"{run}/artifact"):
        found = [teacher_name({**TEACHER, "model": model, "path": path}) for model in ("BPR", "LightGCN")]
        assert found == ["ticket 0 of BPR/none-0123456789", "ticket 0 of LightGCN/none-0123456789"]
    saved = {**TEACHER, "kind": "checkpoint", "path": "/elsewhere/BPR-today.pth", "ticket": None}
    assert teacher_name(saved) == "BPR, BPR-today.pth"


def test_columns_are_aligned_within_100() -> None:
    assert len({len(line) for line in table_of().splitlines()[: 2 + len(tickets())]}) == 1
    metric = "itemcoverage@100"
    numbers = {"valid": {metric: 12345.6789}, "test": {metric: 12345.6789}, "kept": 10**10, "epochs": 10000}
    large = [ticket(number, 0.5, **numbers, best_epoch=10000) for number in (10, 11)]
    other = SiblingRow("small_dense", "hetcomp", {**large[0].to_record(), "bytes": 4 * 10**10})
    sizes = {10: 4 * 10**10, 11: 4 * 10**10}
    table = ticket_table(large, metric, chosen=large[1], bytes_of=sizes, others=[other])
    assert max(map(len, [*table.splitlines(), *legend(large, metric)])) <= 100


@pytest.mark.parametrize("rows", [[["1", "long cell"], ["22", "x"]], []])
def test_format_rows(rows: list[list[str]]) -> None:
    text = format_rows(["a", "bb"], rows)
    assert text.splitlines()[0].split() == ["a", "bb"]
    assert len({len(line) for line in text.splitlines()}) == 1
    if rows:
        assert text.splitlines() == [" a         bb", "--  ---------", " 1  long cell", "22          x"]
