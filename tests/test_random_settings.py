"""Settings drawn at random, sensible or not: a run ends well, or in one line that does not blame this package."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from zoo import DATASET, config_for

from recbole_prune import run_recbole_prune
from recbole_prune.errors import InternalError, PruneError, RecBoleError
from recbole_prune.pruners import PRUNERS

DRAWS = 14
MODELS = ("BPR", "LightGCN", "NeuMF", "SASRec", "TransRec", "FM", "DeepFM", "MultiVAE", "CKE")
_FEATURES = {"user": ["user_id", "age", "gender"], "item": ["item_id", "release_year", "class"]}
_SAMPLED = {"distribution": "uniform", "sample_num": 1, "alpha": 1.0, "dynamic": False, "candidate_num": 0}

# RecBole's settings, each with values that some model or data cannot take
CHOICES: dict[str, list[Any]] = {
    "loss_type": ["BPR", "CE"],
    "train_neg_sample_args": [None, _SAMPLED, {**_SAMPLED, "dynamic": True, "candidate_num": 3}],
    "learner": ["adam", "sgd", "adagrad", "rmsprop", "sparse_adam"],
    "weight_decay": [0.01],
    "train_batch_size": [1, 7, 4096],
    "eval_batch_size": [1, 5, 100_000],
    "embedding_size": [1, 7, 33],
    "topk": [[1], [10, 20], [239], [500]],
    "MAX_ITEM_LIST_LENGTH": [1, 2, 50],
    "user_inter_num_interval": ["[30,36]", "[1000,inf)"],
    "threshold": [{"rating": 4}, {"rating": 0}, None],
    "eval_step": [0, 2],
    "enable_amp": [True],
    "n_heads": [1, 3],
    "n_layers": [0, 1, 3],
    "mlp_hidden_size": [[], [8, 4]],
    "learning_rate": [10.0, 0.0],
    "transform": ["mask_itemseq", "crop_itemseq"],
    "numerical_features": [["timestamp"], ["rating"]],
    "discretization": [{"timestamp": {"method": "ED", "bucket": 5}}],
    "load_col": [None, {"inter": ["user_id", "item_id"]}, {"inter": ["user_id", "item_id", "rating"], **_FEATURES}],
    "LABEL_FIELD": ["rating"],
    "metrics": [["Recall", "MRR"], ["AUC", "LogLoss"], ["GAUC"], ["RMSE"], ["ItemCoverage", "GiniIndex"]],
    "valid_metric": ["MRR@10", "AUC", "GAUC", "RMSE", "GiniIndex@10"],
    "eval_args": [
        {"split": {"RS": [0.8, 0.1, 0.1]}, "order": "RO", "group_by": "user", "mode": "full"},
        {"split": {"RS": [0.8, 0.1, 0.1]}, "order": "TO", "group_by": None, "mode": "uni20"},
        {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": "labeled"},
        {"split": {"LS": "test_only"}, "order": "TO", "group_by": "user", "mode": "full"},
    ],
}
OF_PRUNERS: dict[str, list[Any]] = {
    "prune_scope": ["linear", "all"],
    "prune_allocation": ["tensor", "row"],
    "prune_min_per_row": [1, 3],
    "prune_storage": ["compact", "masked"],
    "prune_rewind": ["none", "reinit"],
    "prune_select": ["test"],
}
# what the data of every draw have, so that not each of them is refused at once
_KEPT = ("data_path", "epochs", "gpu_id", "show_progress", "train_batch_size", "user_inter_num_interval")


def drawn(seed: int, data: Path) -> tuple[str, dict[str, Any]]:
    """A model and settings for it, most of them those with which it runs."""
    draw = random.Random(seed)
    model, pruner = draw.choice(MODELS), draw.choice(sorted(PRUNERS))
    settings = {**config_for(model, data), "user_inter_num_interval": "[0,36]", "pruner": pruner}
    if draw.random() < 0.2:
        settings = {name: value for name, value in settings.items() if name in (*_KEPT, "pruner")}
    for choices, most in ((CHOICES, 3), (OF_PRUNERS, 1)):
        for name in draw.sample(sorted(choices), draw.randint(0, most)):
            settings[name] = draw.choice(choices[name])
    if pruner != "none":
        settings["prune_target_sparsity"] = draw.choice([0.5, 0.9])
    return model, settings


def check(error: PruneError, folder: Path, said: str) -> None:
    """It is one line; RecBole's has its traceback in the log, and none is ours."""
    assert str(error).isprintable(), said
    assert not isinstance(error, InternalError), said
    if isinstance(error, RecBoleError):
        (log,) = folder.rglob("log.txt")
        assert str(log) in str(error) and "Traceback" in log.read_text(encoding="utf-8"), said


@pytest.mark.slow
def test_a_run_ends_well_or_in_one_line(tiny_data: Path, tmp_path: Path) -> None:
    ends: Counter[str] = Counter()
    for seed in range(DRAWS):
        model, settings = drawn(seed, tiny_data)
        folder = tmp_path / str(seed)
        end = "well"
        try:
            run_recbole_prune(model, DATASET, config_dict={**settings, "output_dir": str(folder)})
        except PruneError as error:
            check(error, folder, f"{model} with {settings}: {error}")
            end = type(error).__name__
        ends[end] += 1
    assert {"well", "ConfigError", "RecBoleError"} <= set(ends)
