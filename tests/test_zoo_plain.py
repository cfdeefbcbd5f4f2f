"""Plain RecBole, patched only by ``compat``, trains, evaluates, saves and reloads every one of its models.

Some models stand for the rest in a quick run; all of them: ``pytest tests/test_zoo_plain.py``, without the slow ones:
``pytest tests/test_zoo_plain.py -m "not slow"``.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import recbole.data.dataset
import recbole.model
import torch
from marks import slow_but
from recbole.data.utils import get_dataloader
from recbole.model.abstract_recommender import AbstractRecommender
from recbole.utils import ModelType, get_model, get_trainer
from zoo import (
    DATASET,
    all_models,
    config_for,
    gradient_models,
    input_type_of,
    kind_of,
    missing_package,
    not_prunable_models,
    stages_of,
)
from zoo_data import make_dataset
from zoo_plain import build, evaluate, last_stage_settings, reload

from recbole_prune.models import model_files

KINDS = ("general", "sequential", "context", "knowledge", "traditional", "tree")


def representatives() -> list[str]:
    """The first model of each combination of kind, trainer, dataset, train loader, evaluation and staging."""
    found: dict[tuple[Any, ...], str] = {}
    for model in all_models():
        if missing_package(model) is None:
            model_class = get_model(model)
            path = (
                kind_of(model),
                get_trainer(model_class.type, model),
                getattr(recbole.data.dataset, f"{model}Dataset", None),
                get_dataloader({"model": model, "MODEL_TYPE": model_class.type}, "train"),
                tuple(config_for(model, Path())["metrics"]),
                stages_of(model),
            )
            found.setdefault(path, model)
    return sorted(found.values(), key=str.lower)


def parameters_of_test() -> list[Any]:
    return slow_but(representatives(), all_models())


def assert_sound(metrics: dict[str, float], expected: list[str]) -> None:
    names = {name.lower() for name in expected}
    assert {name.split("@")[0] for name in metrics} == names
    for name, value in metrics.items():
        assert math.isfinite(value), (name, value)
        assert value >= 0 and (value <= 1 or name == "logloss"), (name, value)


@pytest.mark.parametrize("model", parameters_of_test())
def test_plain_recbole_trains_evaluates_and_reloads(model: str, tiny_data: Path, tmp_path: Path) -> None:
    reason = missing_package(model)
    if reason:
        pytest.skip(f"{model}: {reason}")
    settings = last_stage_settings(model, tiny_data, tmp_path)
    run = build(model, settings)
    weights = dict(run.model.named_parameters()) if kind_of(model) != "tree" else {}
    before = {name: weight.detach().clone() for name, weight in weights.items()}

    _, valid_metrics = run.trainer.fit(run.train_data, run.valid_data, verbose=False)
    assert_sound(valid_metrics, settings["metrics"])
    changed = [name for name, weight in weights.items() if not torch.equal(weight, before[name])]
    assert bool(changed) == (model in gradient_models())
    entries = sum(weight.numel() for weight in weights.values() if weight.requires_grad)
    assert (entries > 1) == (model in gradient_models())

    test_metrics = dict(run.trainer.evaluate(run.test_data, load_best_model=True))
    assert_sound(test_metrics, settings["metrics"])

    if kind_of(model) == "tree":  # RecBole keeps the booster in a file of its own, only the trainer reads it
        again = build(model, settings)
        again.trainer.model = again.model
        best = run.trainer.temp_best_file
        assert dict(again.trainer.evaluate(again.test_data, model_file=best)) == test_metrics
    else:
        again = reload(run.trainer.saved_model_file)
        assert evaluate(again) == evaluate(run)


def test_model_list_is_what_recbole_finds() -> None:
    files = [
        file
        for file in Path(recbole.model.__file__).parent.glob("*_recommender/*.py")
        if file.name not in ("__init__.py", "abstract_recommender.py")
    ]
    assert len(all_models()) == len(files) + len(model_files()) and len(files) >= 90
    for model in all_models():
        assert kind_of(model) in KINDS
        if missing_package(model) is None:
            model_class = get_model(model)
            assert model_class.__name__ == model
            assert (kind_of(model) == "tree") == (model_class.type == ModelType.DECISIONTREE)
            assert issubclass(model_class, AbstractRecommender) or kind_of(model) == "tree"


def test_every_model_is_on_one_side() -> None:
    assert sorted(gradient_models() + not_prunable_models()) == sorted(all_models())
    assert {"NCEPLRec", "EASE", "XGBoost", "LightGBM"} <= set(not_prunable_models())
    assert {kind_of(model) for model in gradient_models()} == {"general", "sequential", "context", "knowledge"}


def test_representatives_cover_each_kind_and_trainer() -> None:
    chosen = representatives()
    assert 5 < len(chosen) < 30
    runnable = [model for model in all_models() if missing_package(model) is None]
    assert {kind_of(model) for model in chosen} == {kind_of(model) for model in runnable}


def test_settings_of_two_calls_share_nothing(tmp_path: Path) -> None:
    for model in all_models():
        first, second = config_for(model, tmp_path), config_for(model, tmp_path)
        assert first == second
        for key, value in first.items():
            if isinstance(value, (dict, list)):
                assert value is not second[key], key
                if isinstance(value, dict):
                    value.clear()
        assert config_for(model, tmp_path) == second


def test_cross_entropy_models_get_no_negative_samples(tmp_path: Path) -> None:
    assert input_type_of("SASRec") is None
    assert config_for("SASRec", tmp_path)["train_neg_sample_args"] is None
    assert "train_neg_sample_args" not in config_for("FPMC", tmp_path)


def test_data_set_is_the_same_on_every_call(tiny_data: Path, tmp_path: Path) -> None:
    make_dataset(tmp_path)
    files = sorted((tiny_data / DATASET).iterdir())
    assert {file.suffix for file in files} == {".inter", ".user", ".item", ".kg", ".link", ".ent", ".rel"}
    for file in files:
        assert (tmp_path / DATASET / file.name).read_bytes() == file.read_bytes()
