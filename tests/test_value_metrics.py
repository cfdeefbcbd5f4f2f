"""MSE and Accuracy by hand, their direction through a run, labels that are refused before training."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from cell_records import cell_record
from hypothesis import given, settings
from hypothesis import strategies as st
from recbole.config import Config
from recbole.evaluator.metrics import RMSE
from recbole.evaluator.register import metric_types, metrics_dict, smaller_metrics
from recbole.model.context_aware_recommender import FM
from recbole.utils import EvaluatorType
from test_table import table_of, tickets
from test_verdict import ticket
from training_bench import Bench
from zoo import DATASET, config_for

from recbole_prune import run_recbole_prune
from recbole_prune.config.evaluation import known_metrics
from recbole_prune.config.prune_config import PruneConfig
from recbole_prune.config.words import launch
from recbole_prune.errors import ConfigError
from recbole_prune.pruners.base import MaskPruner
from recbole_prune.report.compare import compare_table
from recbole_prune.report.table import legend
from recbole_prune.run.workshop import Workshop
from recbole_prune.scoring.value_metrics import MSE, Accuracy, label_values
from recbole_prune.training.trainer import MaskAwareTrainer

METRICS = ["MSE", "Accuracy", "MAE", "RMSE"]
STARS = {"LABEL_FIELD": "rating", "threshold": None, "normalize_field": ["rating"]}
CONFIG = {"metric_decimal_place": 10}


def accuracy(scores: list[float], labels: list[float], values: Any = ()) -> float:
    return Accuracy(CONFIG).metric_info(np.float32(scores), np.float32(labels), np.float32(values))


# ---- by hand


def test_mse_by_hand() -> None:
    """(0.5^2 + 0 + 1^2 + 0.25^2) / 4."""
    scores, labels = np.float32([0.5, 1, 0, 0.75]), np.float32([1, 1, 1, 0.5])
    assert MSE(CONFIG).metric_info(scores, labels) == (0.25 + 0 + 1 + 0.0625) / 4


@settings(max_examples=30)
@given(st.lists(st.tuples(st.floats(0, 1, width=32), st.sampled_from([0.0, 0.25, 1.0])), min_size=1, max_size=9))
def test_mse_is_rmse_squared(rows: list[tuple[float, float]]) -> None:
    scores, labels = np.float32(rows).T
    assert MSE(CONFIG).metric_info(scores, labels) == pytest.approx(RMSE(CONFIG).metric_info(scores, labels) ** 2, 1e-5)


def test_accuracy_of_two_classes_says_1_from_a_half_on() -> None:
    scores = [0.5, 0.4999, 0.9, 0.1, 1.0]
    assert accuracy(scores, [1, 1, 0, 0, 1]) == 3 / 5
    assert accuracy([0.3, 0.6], [1, 1]) == 0.5, "a part with one class still has two"
    assert accuracy([0.3, 0.6], [0, 0]) == 0.5


def test_accuracy_of_marks_takes_the_nearest_mark() -> None:
    """Ratings 1, 2, 4, 5: 3 is halfway and counts as 4; beyond the ends the ends are nearest."""
    scores, labels = [0.2, 1.4, 3.0, 2.9, 4.6, 7.0], [1, 2, 4, 4, 5, 5]
    assert accuracy(scores, labels) == 4 / 6


def test_a_mark_that_only_the_training_has_can_be_said() -> None:
    assert accuracy([0.45, 0.9], [0.25, 1]) == 1.0
    assert accuracy([0.45, 0.9], [0.25, 1], [0.0, 0.25, 0.5, 0.75, 1.0]) == 0.5


@settings(max_examples=30)
@given(
    st.lists(st.floats(-1, 6, width=32), min_size=1, max_size=20),
    st.lists(st.sampled_from([0.5, 1.0, 2.0, 3.5, 5.0]), min_size=20, max_size=20),
)
def test_accuracy_is_that_of_a_search_over_all_values(scores: list[float], labels: list[float]) -> None:
    labels = labels[: len(scores)]
    values = [1.0, 3.0]
    said = [min(sorted({*labels, *values}, reverse=True), key=lambda v: abs(v - score)) for score in scores]
    assert accuracy(scores, labels, values) == pytest.approx(np.mean(np.equal(said, labels)))


def test_scores_that_are_no_numbers_have_no_accuracy() -> None:
    assert np.isnan(accuracy([float("nan"), 1.0], [0, 1]))


def test_label_values() -> None:
    assert label_values([1, 1]).tolist() == label_values([0]).tolist() == [0, 1]
    assert label_values([4, 4], []).tolist() == [4]
    assert label_values([0, 1], [0.5]).tolist() == [0, 0.5, 1]


# ---- among RecBole's


def test_metrics_are_known_by_their_source_as_recbole_registers_them() -> None:
    """What words are checked against, without an import, is what RecBole then computes."""
    PruneConfig("BPR", "ml-100k", config_dict={"gpu_id": ""})
    assert {"mse", "accuracy"} <= metrics_dict.keys()
    assert known_metrics().keys() == metrics_dict.keys()
    for name, metric in known_metrics().items():
        assert metric.name == metrics_dict[name].__name__
        assert metric.of_scores == (metric_types[name] == EvaluatorType.VALUE)
        assert metric.smaller == (name in smaller_metrics)


@pytest.mark.parametrize(("metric", "bigger"), [("MSE", False), ("mae", False), ("Accuracy", True), ("AUC", True)])
def test_recboles_config_knows_the_direction(metric: str, bigger: bool, tiny_data: Path) -> None:
    chosen = {**config_for("FM", tiny_data), "metrics": [*METRICS, "AUC"], "valid_metric": metric}
    assert Config("FM", DATASET, config_dict=chosen)["valid_metric_bigger"] is bigger
    for said in ({}, {"valid_metric_bigger": bigger}):
        assert PruneConfig("FM", DATASET, config_dict={**chosen, **said})["valid_metric_bigger"] is bigger
    with pytest.raises(ConfigError, match=f"valid_metric_bigger={not bigger} is not allowed.*leave"):
        PruneConfig("FM", DATASET, config_dict={**chosen, "valid_metric_bigger": not bigger})


def test_words_name_them() -> None:
    launch(["--model=FM", "--metrics=['MSE','Accuracy','MAE','AUC']", "--valid_metric=mse"])
    with pytest.raises(ConfigError, match="did you mean Accuracy"):
        launch(["--model=FM", "--metrics=['Acuracy']"])
    with pytest.raises(ConfigError, match="MSE, Accuracy and metrics of rankings"):
        launch(["--model=FM", "--metrics=['MSE','Recall']"])


def test_tables_say_that_smaller_is_better() -> None:
    assert "valid, test: mse, smaller is better (" in legend(tickets(), "MSE")[0]
    assert "smaller" not in legend(tickets(), "Accuracy")[0] + table_of()
    text = " ".join(compare_table([cell_record(valid_metric="MSE", test={"mae": 0.2})]).split())
    assert text.endswith("smaller is better: validation, test mae")
    assert "smaller" not in compare_table([cell_record(valid_metric="AUC", test={"auc": 0.5})])


@pytest.mark.parametrize(("bigger", "score", "low"), [(1, 0.41, 0), (1, 0.39, 1), (0, 0.62, 0), (0, 0.63, 1)])
def test_a_search_stops_where_an_error_is_too_high(bigger: bool, score: float, low: bool) -> None:
    """Dense has 0.5; 0.8 of it is 0.4, and an error may be 0.5 / 0.8 = 0.625."""
    settings, experiment = SimpleNamespace(prune_stop_below=0.8), SimpleNamespace(bigger=bool(bigger))
    pruner: Any = SimpleNamespace(settings=settings, experiment=experiment)
    assert MaskPruner.is_too_low(pruner, ticket(1, score=score), ticket(0, score=0.5)) is bool(low)


# ---- in a run


def run(model: str | type, data: Path, **changes: Any) -> dict[str, Any]:
    name = model if isinstance(model, str) else "FM"
    chosen = {**config_for(name, data), "metrics": METRICS, "valid_metric": "MSE", "topk": [10], **changes}
    return run_recbole_prune(model, DATASET, config_dict=chosen)


@pytest.mark.parametrize("labels", [{}, STARS], ids=["clicks", "stars"])
def test_an_evaluation_gives_what_follows_from_the_scores(labels: dict[str, Any], tiny_data: Path) -> None:
    base = Bench("FM", tiny_data, metrics=METRICS, valid_metric="MSE", metric_decimal_place=10, **labels)
    model = base.model()
    found = base.trainer(model).evaluate(base.test, load_best_model=False)
    with torch.no_grad():
        scores = torch.cat([model.predict(batch[0]) for batch in base.test]).double().numpy()
    truth = base.test._dataset.inter_feat[base.config["LABEL_FIELD"]].double().numpy()
    steps = 4 if labels else 1  # stars are 0, 1/4, ... 1
    assert found["accuracy"] == pytest.approx(np.mean(np.floor(scores * steps + 0.5) == truth * steps))
    assert found["mse"] == pytest.approx(np.mean((scores - truth) ** 2))
    assert found["mse"] == pytest.approx(found["rmse"] ** 2, 1e-5) and 0 < found["accuracy"] < 1


TAUGHT = {"distiller": "kd", "distill_teacher_model": "DeepFM"}


@pytest.mark.slow
@pytest.mark.parametrize(("metric", "teacher"), [("MSE", {}), ("Accuracy", TAUGHT)], ids=["alone", "taught"])
def test_a_pruned_run_on_ratings_picks_by_the_direction(metric: str, teacher: dict[str, Any], tiny_data: Path) -> None:
    pruned = {"pruner": "imp", "prune_rounds": 2, "prune_rate": 0.7, "epochs": 3}
    result = run("FM", tiny_data, **STARS, **pruned, **teacher, valid_metric=metric)
    best = min if metric == "MSE" else max
    dense, *others = result["tickets"]
    assert result["valid_score_bigger"] is (metric != "MSE") and len(others) == 2
    for record in result["tickets"]:
        assert record["valid_score"] == record["valid"][metric.lower()] == best(s for _, s in record["history"])
        first = next(epoch for epoch, score in record["history"] if score == record["valid_score"])
        assert record["best_epoch"] >= first
        assert record["test"]["mse"] == pytest.approx(record["test"]["rmse"] ** 2, abs=2e-4)
    for record in others:
        assert record["wins_metric"] == (best(record["valid_score"], dense["valid_score"]) == record["valid_score"])
    winners = [record for record in others if record["wins_metric"]]
    if not winners:
        assert result["chosen"]["valid_score"] == best(record["valid_score"] for record in others)
    assert ("smaller is better" in result["table"]) == (metric == "MSE")


# ---- refused before training


class Squares(FM):  # type: ignore[misc]
    """Regression of raw ratings, as a user would write it."""

    def calculate_loss(self, interaction: Any) -> torch.Tensor:
        """Mean squared error."""
        return (self.forward(interaction).squeeze(-1) - interaction[self.LABEL]).square().mean()

    def predict(self, interaction: Any) -> torch.Tensor:
        """The logit is the rating."""
        return self.forward(interaction).squeeze(-1)


RAW = {"LABEL_FIELD": "rating", "threshold": None}
CLICKS = {"threshold": {"rating": 4}}
LABELED = {"eval_args": {"split": {"RS": [0.8, 0.1, 0.1]}, "mode": "labeled"}}
NO_NEGATIVES = {"train_neg_sample_args": None}
WITH_RATINGS = {"load_col": {"inter": ["user_id", "item_id", "rating"]}}


@pytest.mark.parametrize(
    ("model", "changes", "words"),
    [
        ("BPR", LABELED, ["MSE compares scores with labels", "implicit", "no field label", "threshold", "full"]),
        ("BPR", {**LABELED, "eval_args": {"mode": {"valid": "uni5", "test": "labeled"}}}, ["implicit"]),
        ("BPR", {}, ["MSE compares scores with labels", "mode=full", "labeled"]),
        ("NeuMF", {**LABELED, **NO_NEGATIVES}, ["NeuMF learns from labels", "no field label"]),
        (
            "NeuMF",
            {**LABELED, **NO_NEGATIVES, **RAW, **WITH_RATINGS},
            ["NeuMF learns probabilities", "from 1 to 5", "normalize_field"],
        ),
        ("FM", RAW, ["FM learns probabilities", "LABEL_FIELD=rating", "from 1 to 5", "normalize_field=['rating']"]),
        ("FM", {**STARS, "metrics": ["MSE", "AUC"]}, ["AUC takes 0 and 1", "5 values from 0 to 1", "threshold"]),
        (Squares, {**RAW, "metrics": ["MSE", "LogLoss"]}, ["LogLoss takes 0 to 1", "5 values from 1 to 5"]),
        (
            "FM",
            {**RAW, "LABEL_FIELD": "timestamp", "normalize_field": ["timestamp"]},
            ["Accuracy", "LABEL_FIELD=timestamp", "takes 2 to 101 values"],
        ),
    ],
)
def test_labels_that_nothing_can_be_done_with(
    model: str | type, changes: dict[str, Any], words: list[str], tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MaskAwareTrainer, "_train_epoch", lambda *_, **__: pytest.fail("training began"))
    with pytest.raises(ConfigError) as caught:
        run(model, tiny_data, **changes)
    message = str(caught.value)
    assert all(word in message for word in words) and "\n" not in message, message


@pytest.mark.slow
def test_a_users_own_regression_takes_raw_ratings(tiny_data: Path) -> None:
    result = run(Squares, tiny_data, **RAW, epochs=1)
    assert result["test_result"]["mse"] > 1, "in stars, not in parts of the scale"


def test_scores_that_rank_are_said_to_estimate_nothing(tiny_data: Path, caplog: pytest.LogCaptureFixture) -> None:
    chosen = {**config_for("BPR", tiny_data), **LABELED, **CLICKS, **WITH_RATINGS}
    Workshop(PruneConfig("BPR", DATASET, config_dict={**chosen, "valid_metric": "MSE", "metrics": METRICS}))
    assert "the scores of BPR rank, they do not estimate label: MSE, Accuracy, MAE, RMSE" in caplog.text
