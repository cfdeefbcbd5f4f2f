"""The tested statement of a run: its column, its sentence, its place in the summary, and where nothing is tested."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_table import TEACHER, metric_ticket, rows_of, tickets
from zoo import DATASET, config_for

from recbole_prune import run_recbole_prune
from recbole_prune.disk.user_values import Arrays, name_of
from recbole_prune.report.as_good import as_good_legend, as_good_of, verdict_sentence
from recbole_prune.report.costs import times_faster
from recbole_prune.report.statistics import verdicts
from recbole_prune.report.table import legend, ticket_table
from recbole_prune.report.users import read_users
from recbole_prune.run.siblings import SiblingRow
from recbole_prune.run.summary import AsGood

USERS = 4000


def values(metric: str = "ndcg@10", **losses: float) -> Arrays:
    """Values of 4,000 users: the dense model's, and those of tickets that lose a share of it on average."""
    generator = np.random.default_rng(1)
    dense = generator.uniform(0.1, 0.9, USERS)
    noise = generator.normal(0, 0.05, USERS)
    found = {0: dense, **{int(name[1:]): dense * (1 - loss) + noise for name, loss in losses.items()}}
    arrays: Arrays = {name_of("test", number, metric): each.astype(np.float32) for number, each in found.items()}
    return {**arrays, "test/users": np.arange(1, USERS + 1)}


def block_of(found: AsGood, number: int) -> Any:
    return found.blocks[number]


# ---- what is tested --------------------------------------------------------------------------------------------------


def test_pruned_tickets_are_tested_on_the_test_data_and_corrected_together() -> None:
    arrays = values(t1=-0.05, t2=0.01, t3=0.3)
    found = as_good_of(tickets(), arrays, "NDCG@10", 0.01)
    assert {number: block["as_good"] for number, block in found.blocks.items()} == {1: "yes", 2: "open", 3: "no"}
    family = {number: arrays[name_of("test", number, "ndcg@10")] for number in (1, 2, 3)}
    expected = verdicts(arrays[name_of("test", 0, "ndcg@10")], family, 0.01)
    assert found.blocks == {number: test.to_json() for number, test in expected.items()}
    assert found.to_json() == {"metric": "ndcg@10", "data": "test", "margin": 0.01, "not_tested": None}


def test_rows_of_one_user_are_one_value() -> None:
    """Each user twice: twice as many rows say no more than half of them."""
    arrays = values(t1=0.004)
    twice: Arrays = {name: np.concatenate([found, found]) for name, found in arrays.items()}
    once, again = (as_good_of(tickets(), found, "NDCG@10", 0.01).blocks for found in (arrays, twice))
    assert once == again and block_of(as_good_of(tickets(), twice, "NDCG@10", 0.01), 1)["users"] == USERS
    twice["test/users"] = np.arange(2 * USERS)
    apart = as_good_of(tickets(), twice, "NDCG@10", 0.01).blocks
    assert apart[1]["p_noninferior"] < once[1]["p_noninferior"]


def test_a_ticket_without_values_is_left_out_and_does_not_count() -> None:
    arrays = values(t1=0.004, t2=0.004)
    both, one = (as_good_of(tickets(), found, "NDCG@10", 0.01) for found in (arrays, {**arrays}))
    del arrays[name_of("test", 2, "ndcg@10")]
    one = as_good_of(tickets(), arrays, "NDCG@10", 0.01)
    assert sorted(one.blocks) == [1] and sorted(both.blocks) == [1, 2]
    assert block_of(one, 1)["p_adjusted"] == block_of(one, 1)["p_noninferior"] < block_of(both, 1)["p_adjusted"]


@pytest.mark.parametrize(
    ("found", "metric", "said"),
    [
        (tickets(), "NDCG@10", "as good: not tested, an older version trained these tickets"),
        (tickets(), "AUC", "as good: not tested, auc has no value for each user"),
        ([metric_ticket(1, 0.5, None, None)], "NDCG@10", "as good: not tested, this run has no dense model"),
        (
            [metric_ticket(n, 0.5, n or None, n or None) for n in (0, 1)],
            "NDCG@10",
            "as good: not tested, there is no test",
        ),
    ],
)
def test_where_nothing_is_tested_it_is_said_why(found: list[Any], metric: str, said: str) -> None:
    if "no test" in said:
        found = [type(ticket)(**{**vars(ticket), "test": {}}) for ticket in found]
    tested = as_good_of(found, {}, metric, 0.01)
    assert not tested.blocks and as_good_legend(tested, False)[0].startswith(said)
    [sentence] = verdict_sentence(found[-1], tested, (100, 400), None)
    assert "is not tested: " in sentence and "4 times smaller on disk" in sentence
    header, _ = rows_of(ticket_table(found, metric, chosen=found[0], bytes_of={}, as_good=tested))
    assert header[-1] == "wins"


def test_of_a_dense_model_alone_nothing_is_said() -> None:
    tested = as_good_of(tickets()[:1], values(), "NDCG@10", 0.01)
    assert (tested.not_tested, as_good_legend(tested, False)) == (None, [])
    assert verdict_sentence(tickets()[0], tested, (400, 400), None) == []


# ---- the column ------------------------------------------------------------------------------------------------------


def test_the_column_stands_beside_wins() -> None:
    found = tickets()
    tested = as_good_of(found, values(t1=-0.05, t2=0.01, t3=0.3), "NDCG@10", 0.01)
    others = [
        SiblingRow("omp", None, {**found[2].to_record(), "as_good": {"as_good": "yes"}}),
        SiblingRow("random", None, found[2].to_record()),
    ]
    table = ticket_table(found, "NDCG@10", chosen=found[2], bytes_of={0: 4000}, others=others, as_good=tested)
    header, rows = rows_of(table)
    assert header[-2:] == ["wins", "as good"]
    assert {label: tuple(cells[-2:]) for label, cells in rows.items()} == {
        "0": ("dense", "-"), "1": ("yes", "yes"), "2*": ("metric", "open"), "3": ("no", "no"),
        "omp": ("metric", "yes"), "random": ("metric", "-"),
    }  # fmt: skip
    assert max(map(len, table.splitlines())) <= 80 and "kept" not in header
    wide = ticket_table(found, "NDCG@10", chosen=found[2], bytes_of={}, as_good=tested, every_metric=True)
    assert {"kept", "as good"} <= set(rows_of(wide)[0])
    assert "every metric and column" in legend(found, "NDCG@10", tested=True)[0]


def test_the_column_fits_a_terminal_in_a_distilled_run() -> None:
    recall = {"popularity": {"k": 10, "popular": 0.25, "unpopular": 0.0625, "popular_users": 3, "unpopular_users": 4}}
    found = [type(one)(**{**vars(one), "method": recall}) for one in tickets()]
    tested = as_good_of(found, values(t1=-0.05, t2=0.01, t3=0.3), "NDCG@10", 0.01)
    sizes = {0: 3_600_004, 1: 900_000}
    arguments: dict[str, Any] = {"chosen": found[1], "bytes_of": sizes, "as_good": tested, "teacher": TEACHER}
    table = ticket_table(found, "NDCG@10", **arguments)
    header, rows = rows_of(table)
    assert header == ["ticket", "sparsity", "valid", "test", "popular", "rare", "bytes", "wins", "as good"]
    assert rows["taught 1*"][-3:] == ["900000", "yes", "yes"] and max(map(len, table.splitlines())) <= 80
    assert "weights: those" not in " ".join(legend(found, "NDCG@10", teacher=TEACHER, tested=True))
    header, _ = rows_of(ticket_table(found, "NDCG@10", every_metric=True, **arguments))
    assert header[:4] == ["ticket", "sparsity", "kept", "weights"] and header[-1] == "as good"
    assert "weights: those" in " ".join(legend(found, "NDCG@10", True, TEACHER, tested=True))
    assert max(map(len, as_good_legend(tested, True))) <= 110


# ---- the sentence ----------------------------------------------------------------------------------------------------

GAINS = "4 times smaller on disk and 1.5 times faster to rank"


@pytest.mark.parametrize(
    ("loss", "begins", "ends"),
    [
        (-0.05, f"Take ticket 1: it is {GAINS}, and test ndcg@10 changes by +", "as the dense model within 1 %."),
        (0.3, f"Keep the dense model if 1 % matters: ticket 1 is {GAINS}, but test ndcg@10 changes by -", " %)."),
        (0.01, f"Ticket 1 is {GAINS}, but whether it is as good as the dense model within 1 % is open: ", " %)."),
    ],
)  # fmt: skip
def test_the_sentence_says_what_to_do(loss: float, begins: str, ends: str) -> None:
    tested = as_good_of(tickets()[:2], values(t1=loss), "NDCG@10", 0.01)
    [sentence] = verdict_sentence(tickets()[1], tested, (1000, 4000), 1.5)
    assert sentence.startswith(begins) and sentence.endswith(ends)
    block = block_of(tested, 1)
    low, high = block["interval_percent"]
    assert f"{block['change_percent']:+.1f} % of dense (95 % interval {low:+.1f} to {high:+.1f} %)" in sentence


def test_the_sentence_says_where_users_are_too_few() -> None:
    few: Arrays = {name: found[:50] for name, found in values(t1=0.01).items()}
    [sentence] = verdict_sentence(tickets()[1], as_good_of(tickets()[:2], few, "NDCG@10", 0.01), (100, 100), None)
    assert sentence.endswith(", and 50 users cannot decide it at this size.")
    assert sentence.startswith("Ticket 1 is no smaller on disk (speed not measured), but")
    [sentence] = verdict_sentence(tickets()[1], AsGood("ndcg@10", 0.01, not_tested="x"), (None, 100), 0.5)
    assert (
        sentence
        == "Ticket 1 is of unknown size on disk and 2 times slower to rank; whether it is as good is not tested: x."
    )
    [sentence] = verdict_sentence(tickets()[1], AsGood("ndcg@10", 0.01, not_tested="x"), (2048, None), None)
    assert sentence.startswith("Ticket 1 is 2,048 bytes on disk (speed not measured); whether")


def test_equal_values_and_a_dense_model_that_finds_nothing_read_well() -> None:
    arrays = values(t1=0.0)
    arrays[name_of("test", 1, "ndcg@10")] = arrays[name_of("test", 0, "ndcg@10")]
    [sentence] = verdict_sentence(tickets()[1], as_good_of(tickets()[:2], arrays, "NDCG@10", 0.01), (50, 100), None)
    assert "every user has the same test ndcg@10: as good as the dense model" in sentence
    nothing = {
        name: np.zeros(9, np.float32) if "/000/" in name else found[:9] for name, found in values(t1=0.0).items()
    }
    [sentence] = verdict_sentence(tickets()[1], as_good_of(tickets()[:2], nothing, "NDCG@10", 0.01), (50, 100), None)
    assert "the dense model has a test ndcg@10 of 0" in sentence


def measured(seconds: float | None = None, latency: float | None = None, **changes: Any) -> dict[str, Any]:
    place = {"users": 9, "threads": 1, "device": "cpu", **changes}
    return {
        "ranking": None if seconds is None else {"seconds": seconds, **place},
        "latency": None if latency is None else {"latency_median_s": latency, **place},
    }


@pytest.mark.parametrize(
    ("dense", "ticket", "factor"),
    [
        (measured(3.0), measured(1.5), 2.0),
        (measured(3.0), measured(6.0), 0.5),
        (measured(0.4), measured(0.2), None),
        (measured(3.0), measured(1.5, threads=4), None),
        (measured(3.0, device="cuda"), measured(1.5), None),
        (measured(0.01, latency=3e-4), measured(0.01, latency=1e-4), 3.0),
        (measured(), measured(3.0), None),
        ({}, {}, None),
        (None, None, None),
    ],
)
def test_speed_is_compared_where_both_were_measured_alike(dense: Any, ticket: Any, factor: float | None) -> None:
    one, other = metric_ticket(0, 0.0, None, None, measured=dense), metric_ticket(1, 0.5, True, True, measured=ticket)
    assert times_faster(other, one) == (None if factor is None else pytest.approx(factor))
    assert times_faster(other, None) is None


# ---- in a run --------------------------------------------------------------------------------------------------------


def run(data: Path, model: str = "BPR", **changes: Any) -> dict[str, Any]:
    settings = {
        **config_for(model, data),
        "epochs": 2,
        "pruner": "imp",
        "prune_rate": 0.5,
        "prune_rounds": 2,
        **changes,
    }
    settings = {name: value for name, value in settings.items() if value is not None}
    return run_recbole_prune(model, DATASET, config_dict=settings)


def test_a_run_ends_with_it_and_keeps_it(tiny_data: Path) -> None:
    result = run(tiny_data)
    folder, words = Path(result["folder"]), " ".join(result["table"].split())
    summary, found = json.loads((folder / "summary.json").read_text()), read_users(folder)
    metric = summary["valid_metric"].lower()
    dense, *pruned = (found.values("test", number, metric) for number in (0, 1, 2))
    expected = verdicts(dense, dict(enumerate(pruned, 1)), 0.01)  # type: ignore[arg-type]
    assert [ticket["as_good"] for ticket in summary["tickets"]] == [None, *(t.to_json() for t in expected.values())]
    assert summary["as_good"] == {"metric": metric, "data": "test", "margin": 0.01, "not_tested": None}
    block = summary["tickets"][summary["chosen"]]["as_good"]
    means = [summary["tickets"][number]["test"][metric] for number in (0, summary["chosen"])]
    assert [block["dense"], block["mean"]] == pytest.approx(means, abs=1e-4)
    assert (
        f"changes by {block['change_percent']:+.1f} % of dense" in words and "as good: tested over test users" in words
    )

    before = (folder / "summary.json").read_bytes()
    assert run(tiny_data)["table"] == result["table"] and (folder / "summary.json").read_bytes() == before
    wide = run(tiny_data, report_margin=0.9)
    assert wide["folder"] == result["folder"] and "within 90 %" in " ".join(wide["table"].split())
    assert json.loads((folder / "summary.json").read_text())["as_good"]["margin"] == 0.9


def test_advice_agrees_with_the_tested_statement(tiny_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recbole_prune.run.journal_line.judge", lambda *_: (False, False, None))
    words = " ".join(run(tiny_data)["table"].split())
    assert "No ticket reaches the dense model's validation score. Try" in words
    words = " ".join(run(tiny_data, report_margin=0.999)["table"].split())
    assert (
        "No ticket reaches the dense model's validation score, but tickets 1, 2 are as good on the test data" in words
    )
    assert "Try" not in words


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "changes", "said"),
    [
        ("BPR", {"eval_args": {"split": {"RS": [0.8, 0.2, 0.0]}}}, "as good: not tested, there is no test data"),
        ("FM", {"metrics": ["AUC"], "valid_metric": "AUC"}, "as good: not tested, auc has no value for each user"),
        ("BPR", {"pruner": "none", "prune_rate": None, "prune_rounds": None}, None),
        ("BPR", {"pruner": "dsl", "prune_rate": None, "prune_rounds": None, "prune_dense": False,
                 "prune_target_sparsity": 0.5, "prune_update_interval": 2},
         "as good: not tested, this run has no dense model"),
    ],
)  # fmt: skip
def test_runs_in_which_nothing_is_tested(
    model: str, changes: dict[str, Any], said: str | None, tiny_data: Path
) -> None:
    text = run(tiny_data, model, **changes)["table"]
    words, header = " ".join(text.split()), text.strip().splitlines()[0]
    assert "as good" not in header
    assert (said in words and "whether it is as good is not tested: " in words) if said else "as good" not in words


@pytest.mark.slow
def test_a_run_beside_this_one_shows_its_own_tests(tiny_data: Path) -> None:
    first = run(tiny_data)
    table = run(tiny_data, pruner="random", prune_rate=None, prune_rounds=None, prune_target_sparsity=0.5)["table"]
    _, rows = rows_of("\n".join(line for line in table.split("\n\n")[0].splitlines() if line))
    summary = json.loads((Path(first["folder"]) / "summary.json").read_text())
    assert rows["imp"][-1] in {ticket["as_good"]["as_good"] for ticket in summary["tickets"] if ticket["ticket"]}


@pytest.mark.parametrize("value", ["0", "1", "1.5", "much"])
def test_a_margin_that_is_no_share_is_refused(value: str, tiny_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from recbole_prune import cli

    words = [
        "--model=BPR",
        f"--dataset={DATASET}",
        f"--data_path={shlex.quote(str(tiny_data))}",
        f"--report_margin={value}",
    ]
    assert cli.main(words) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "report_margin" in line and value in line and "0 < report_margin < 1" in line
    assert not Path("pruned").exists()
