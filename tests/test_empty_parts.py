"""Splits with an empty part, and parts in which a metric is not defined: what plain RecBole trains is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cell_records import cell_record
from zoo import DATASET, config_for

from recbole_prune import run_recbole_prune
from recbole_prune.artifact import read_artifact
from recbole_prune.errors import ConfigError, PruneError
from recbole_prune.report.compare import compare_table
from recbole_prune.training.trainer import MaskAwareTrainer

ONLY_VALID = [{"RS": [0.8, 0.2, 0]}, {"LS": "valid_only"}]
LABELED = {"order": "TO", "group_by": None, "mode": "labeled", "split": {"RS": [0.8, 0.1, 0.1]}}
ONLY_TEST = [{"RS": [0.8, 0, 0.2]}, {"LS": "test_only"}]


def run(model: str, data: Path, split: Any, **changes: Any) -> dict[str, Any]:
    settings = config_for(model, data)
    arguments = {"order": "RO", "group_by": "user", "mode": "full", **settings.get("eval_args", {}), "split": split}
    pruned = {"pruner": "omp", "prune_target_sparsity": 0.5}
    return run_recbole_prune(model, DATASET, config_dict={**settings, **pruned, "eval_args": arguments, **changes})


@pytest.mark.parametrize("split", [ONLY_VALID[0], pytest.param(ONLY_VALID[1], marks=pytest.mark.slow)])
def test_without_test_data_a_run_ends_with_an_artifact_and_says_so(split: Any, tiny_data: Path) -> None:
    result = run("BPR", tiny_data, split)
    assert [ticket["test"] for ticket in result["tickets"]] == [{}, {}]
    assert result["test_result"] == {} and result["best_valid_result"]
    assert read_artifact(result["artifact"]).info["test"] == {}
    assert "no test data" in result["table"]
    again = run("BPR", tiny_data, split)  # read from its folder
    assert again["tickets"] == result["tickets"] and "no test data" in again["table"]


@pytest.mark.parametrize(
    ("split", "select", "named"),
    [*[(split, "valid", "validation") for split in ONLY_TEST], *[(split, "test", "test") for split in ONLY_VALID]],
)
def test_without_data_to_pick_on_a_run_is_refused_before_training(
    split: Any, select: str, named: str, tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MaskAwareTrainer, "_train_epoch", lambda *_, **__: pytest.fail("training began"))
    with pytest.raises(ConfigError, match=f"no {named} data.*prune_select") as caught:
        run("BPR", tiny_data, split, prune_select=select)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_picking_on_the_test_data_needs_no_validation_data(tiny_data: Path) -> None:
    result = run("BPR", tiny_data, ONLY_TEST[0], prune_select="test")
    assert result["best_valid_result"] == result["test_result"]


@pytest.mark.parametrize("shuffle", [True, False])
def test_without_training_data_a_run_is_refused(shuffle: bool, tiny_data: Path, tmp_path: Path) -> None:
    lines = (tiny_data / DATASET / f"{DATASET}.inter").read_text().splitlines(keepends=True)
    (tmp_path / DATASET).mkdir()
    (tmp_path / DATASET / f"{DATASET}.inter").write_text("".join(lines[:1001]))
    arguments = {"group_by": None, "order": "RO", "mode": "full", "split": {"RS": [0, 0.5, 0.5]}}
    with pytest.raises(PruneError, match="training data" if not shuffle else "num_samples=0"):
        run("BPR", tmp_path, None, eval_args=arguments, shuffle=shuffle)


@pytest.fixture
def positives_in_test(tiny_data: Path, tmp_path: Path) -> Path:
    """The generated data whose last tenth in time, which is the test part, has positive labels only."""
    lines = (tiny_data / DATASET / f"{DATASET}.inter").read_text().splitlines()
    header, rows = lines[0], sorted((line.split("\t") for line in lines[1:]), key=lambda row: float(row[3]))
    for row in rows[-len(rows) // 9 :]:
        row[2] = "5"
    folder = tmp_path / "positives" / DATASET
    folder.mkdir(parents=True)
    (folder / f"{DATASET}.inter").write_text("\n".join([header, *map("\t".join, rows)]) + "\n")
    for suffix in ("user", "item"):
        (folder / f"{DATASET}.{suffix}").write_bytes((tiny_data / DATASET / f"{DATASET}.{suffix}").read_bytes())
    return tmp_path / "positives"


def test_a_metric_that_the_test_data_does_not_define_is_none(positives_in_test: Path) -> None:
    """AUC of positives alone; the loss is defined."""
    result = run("FM", positives_in_test, None, eval_args=LABELED)
    for ticket in result["tickets"]:
        assert ticket["test"]["auc"] is None and 0 < ticket["test"]["logloss"] < 2
        assert 0 < ticket["valid"]["auc"] < 1
    assert "undefined" in result["table"] and read_artifact(result["artifact"]).info["test"]["auc"] is None


def test_a_validation_metric_that_is_not_defined_is_refused_before_training(
    positives_in_test: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MaskAwareTrainer, "_train_epoch", lambda *_, **__: pytest.fail("training began"))
    with pytest.raises(ConfigError, match=r"valid_metric=AUC is not defined.*label"):
        run("FM", positives_in_test, None, eval_args=LABELED, prune_select="test")


@pytest.mark.slow
def test_another_validation_metric_that_is_not_defined_is_none(positives_in_test: Path) -> None:
    result = run("FM", positives_in_test, None, eval_args=LABELED, prune_select="test", valid_metric="LogLoss")
    assert {ticket["valid"]["auc"] for ticket in result["tickets"]} == {None}


def test_the_table_over_seeds_goes_without_test_metrics() -> None:
    row = compare_table([cell_record(test={}, valid_score=0.25)]).splitlines()[2].split()
    assert row[-4:-2] == ["0.2500", "-"]
    both = [cell_record(test={"auc": 0.5}), cell_record(seed=2, test={"auc": None})]
    assert "undefined" in compare_table(both).splitlines()[2].split()
