"""Settings of somebody else's artifact: none is run, none leads to another file, each is named where it is wrong."""

from __future__ import annotations

import copy
import json
import os
import pickle
import random
import re
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import hostile
import numpy as np
import pytest
import torch
from hostile import clear_line, contents, repair
from marks import slow_but
from test_artifact import reseal
from test_export import Bomb, Built, tiny
from torch import nn
from zoo import DATASET, config_for, gradient_models

from recbole_prune.anatomy.outside import CHECKPOINTS, EVALUATED
from recbole_prune.artifact import read_artifact
from recbole_prune.config import host
from recbole_prune.config.fingerprint import WITHOUT_EFFECT, to_json
from recbole_prune.config.prune_config import PruneConfig
from recbole_prune.config.schema import known_keys
from recbole_prune.errors import ArtifactError, ConfigError, PruneError
from recbole_prune.run.foreign_settings import settings_of
from recbole_prune.run.rebuild import _constructing_from, load_ticket
from recbole_prune.scoring.probe import disagreement


@pytest.fixture(scope="module")
def small(tiny_data: Path) -> Built:
    return tiny("BPR", tiny_data)


@pytest.fixture(scope="module")
def intact(small: Built, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("foreign") / "artifact"
    small.export(folder)
    return contents(folder)


@pytest.fixture
def folder(tmp_path: Path, intact: dict[str, bytes]) -> Path:
    (tmp_path / "artifact").mkdir()
    return repair(tmp_path / "artifact", intact)


def set_to(folder: Path, **changes: Any) -> Path:
    """Change settings of the artifact, with its digest."""
    hostile.forge(folder, lambda document: document["settings"].update(changes))
    return folder


CODE = ("(lambda *_: __import__('os').mkdir('pwned'))", ["CIN"], "CINComp")


@pytest.mark.parametrize("code", CODE)
def test_a_setting_that_recbole_evaluates_has_one_of_its_own_values(folder: Path, code: Any) -> None:
    set_to(folder, model="KD_DAGFM", teacher=code)
    with pytest.raises(ArtifactError, match=r"ticket.json: settings.teacher must be one of CrossNet, CIN, but is"):
        settings_of(read_artifact(folder), {})


@pytest.mark.slow
def test_no_setting_of_an_artifact_is_evaluated(tiny_data: Path, tmp_path: Path) -> None:
    """KD_DAGFM evaluates the name of its teacher's class."""
    built = tiny("KD_DAGFM", tiny_data)
    built.export(tmp_path / "artifact")
    assert disagreement(built.scores(load_ticket(tmp_path / "artifact")), built.scores()) == 0
    for code in CODE:
        set_to(tmp_path / "artifact", teacher=code)
        with pytest.raises(ArtifactError, match="settings.teacher"):
            load_ticket(tmp_path / "artifact")
    assert not (tmp_path / "pwned").exists()


def test_no_array_beside_the_data_is_unpickled(tiny_data: Path, tmp_path: Path) -> None:
    """LDiffRec reads the vectors of items from the folder that data_path names."""
    built = tiny("LDiffRec", tiny_data)
    built.export(tmp_path / "artifact")
    data = tmp_path / "data" / DATASET
    data.mkdir(parents=True)
    for file in (tiny_data / DATASET).iterdir():
        (data / file.name).write_bytes(file.read_bytes())
    (data / "item_emb.npy").write_bytes(pickle.dumps(Bomb(str(tmp_path / "pwned"))))
    set_to(tmp_path / "artifact", n_cate=2, data_path=str(data.parent), out_dims=[8])
    with pytest.raises(ArtifactError, match="settings: RecBole cannot build the model: .*pickle"):
        load_ticket(tmp_path / "artifact")
    assert not (tmp_path / "pwned").exists()


HARMFUL = re.compile(r"(?:(?<![\w.])eval|torch\.load|np\.load|pickle\.loads?)\((?!\))")


def test_all_that_models_of_recbole_evaluate_or_open_is_known() -> None:
    """Where a new RecBole reads a setting into one of these, the tables of anatomy/outside.py must grow."""
    found: dict[str, int] = {}
    for file in (host.recbole_folder() / "model").rglob("*.py"):
        count = len(HARMFUL.findall(file.read_text(encoding="utf-8")))
        if count:
            found[file.stem] = count
            text = file.read_text(encoding="utf-8")
            named = [name for name in (*CHECKPOINTS, *EVALUATED) if f'"{name}"' in text or f"'{name}'" in text]
            assert named or file.stem == "ldiffrec", file
    assert found == {"convncf": 1, "nais": 1, "ract": 2, "ldiffrec": 1, "neumf": 2, "kd_dagfm": 2, "s3rec": 1}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": "os"}, "model os is unknown"),
        ({"model": None}, "settings.model must be text"),
        ({"dataset": "../tiny"}, "settings.dataset must be a part of a file's name"),
        ({"benchmark_filename": ["a", "../b", "c"]}, "settings.benchmark_filename must be a part of a file's name"),
        ({"additional_feat_suffix": "x/y"}, "settings.additional_feat_suffix must be a part of a file's name"),
        ({"data_path": ["data"]}, r"settings.data_path=.* is not allowed: RecBole takes text"),
        ({"field_separator": "(a+)+$"}, "settings.field_separator must be text of at most 3"),
        ({"embedding_size": "8"}, "settings.embedding_size=8 is not allowed: RecBole takes a whole number"),
        ({"embedding_size": [8]}, "settings.embedding_size=.* is not allowed"),
        ({"embedding_size": True}, "settings.embedding_size=True is not allowed"),
        ({"embedding_size": -1}, "settings.embedding_size=-1 is not allowed"),
        ({"embedding_size": 10**9}, "settings.embedding_size must be at most 10000, unless you say otherwise in load_"),
        ({"seed": "x"}, "settings.seed=x is not allowed"),
        ({"seed": 10**19}, "settings.seed=10000000000000000000 is not allowed"),
        ({"LABEL_FIELD": {}}, "settings.LABEL_FIELD={} is not allowed: RecBole takes text"),
        ({"load_col": "x"}, "settings.load_col=x is not allowed: RecBole takes a dict"),
        ({"MAX_ITEM_LIST_LENGTH": 10**6}, "settings.MAX_ITEM_LIST_LENGTH must be a whole number from 0 to 1000"),
    ],
)
def test_settings_of_an_artifact_are_checked_and_named(folder: Path, changes: dict[str, Any], words: str) -> None:
    artifact = read_artifact(set_to(folder, **changes))
    with pytest.raises((ArtifactError, ConfigError), match=words) as caught:
        settings_of(artifact, {})
    assert clear_line(caught.value)
    [name] = changes
    if name not in ("model", "dataset"):  # what the caller says replaces what is wrong
        assert settings_of(artifact, {name: 7})[name] == 7


@pytest.mark.parametrize(
    ("changes", "words"),
    slow_but(
        [({"embedding_size": 10**4}, "settings: .*ask for far more than the")],
        [
            ({"embedding_size": 10**4}, "settings: .*ask for far more than the"),
            ({"data_path": "nowhere\0", "dataset": "ml-1m"}, r"is not in nowhere.x00: name the folder"),
            ({"data_path": "nowhere", "dataset": "ml-1m"}, "dataset ml-1m is not in nowhere: name the folder"),
            ({"metrics": {"a": 1}}, "settings: "),
            ({"eval_args": "x"}, "settings: "),
            ({"topk": "@"}, "settings: "),
            ({"metrics": "Nonsense"}, "settings: .*no metric named 'Nonsense'"),
            ({"eval_args": {"split": {"RS": 7}}}, "settings: "),
            ({"eval_args": {"split": {"\x1b[2J\n": [1]}}}, "settings: "),
            ({"USER_ID_FIELD": "nothing"}, "settings: |is not the one of"),
            ({"load_col": {"inter": ["user_id"]}}, "settings: "),
            ({"train_neg_sample_args": {"distribution": "x"}}, "settings: "),
        ],
    ),
)
def test_settings_that_recbole_fails_on_end_in_one_line(folder: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises((ArtifactError, ConfigError), match=words) as caught:
        load_ticket(set_to(folder, **changes))
    assert clear_line(caught.value)
    assert nn.Parameter.__new__.__qualname__ == "Parameter.__new__"


def test_how_long_a_model_was_trained_is_no_size(folder: Path) -> None:
    artifact = read_artifact(set_to(folder, model="MultiVAE", total_anneal_steps=10**9, latent_dimension=10**9))
    with pytest.raises(ArtifactError, match=r"settings.latent_dimension must be at most 12800"):
        settings_of(artifact, {})
    assert settings_of(artifact, {"latent_dimension": 8})["total_anneal_steps"] == 10**9


@pytest.mark.parametrize(
    "build",
    [
        lambda: copy.deepcopy(nn.Linear(2, 2)),  # as transformers build their layers
        lambda: nn.Linear(2, 2),
        lambda: nn.Parameter(torch.empty(2)),  # before any module has it
        lambda: nn.Embedding(10**6, 10**3),
    ],
)
def test_a_constructor_makes_no_more_weights_than_the_artifact_may_need(build: Any) -> None:
    kept: list[Any] = []
    with pytest.raises(RuntimeError, match="far more than the 3 entries"), _constructing_from({"a": np.zeros(3)}):
        kept.extend(build() for _ in count())
    assert len(kept) <= 1008 and nn.Parameter(torch.ones(1)).numel() == 1


def test_a_pipe_among_the_data_is_not_waited_for(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "data" / DATASET).mkdir(parents=True)
    os.mkfifo(tmp_path / "data" / DATASET / f"{DATASET}.inter")
    with pytest.raises(ArtifactError, match=r"tiny.inter is no regular file"):
        load_ticket(folder, {"data_path": str(tmp_path / "data")})


@pytest.mark.parametrize("model", slow_but(["SASRec"], gradient_models()))
def test_nothing_that_builds_a_model_is_lost_or_refused(folder: Path, tiny_data: Path, model: str) -> None:
    """What reaches RecBole from an artifact is the config of the run, for every model and whatever it needs."""
    settings = {**config_for(model, tiny_data), "pruner": "imp", "prune_rounds": 3, "log_wandb": False}
    config = PruneConfig(model=model, dataset=DATASET, config_dict=settings)
    reseal(folder, lambda document: document.update(settings=json.loads(json.dumps(config.plain_settings()))))
    rebuilt = PruneConfig.from_plain_settings(settings_of(read_artifact(folder), {}))
    without = {*known_keys(), *WITHOUT_EFFECT, "device"} - {"data_path", "use_gpu", "gpu_id"}
    before, after = (
        {name: value for name, value in one.final_config_dict.items() if name not in without}
        for one in (config, rebuilt)
    )
    assert to_json(after) == to_json(before)


@pytest.mark.slow
def test_any_value_of_any_setting_is_a_success_or_one_clear_line(
    small: Built, folder: Path, intact: dict[str, bytes]
) -> None:
    choices = random.Random(0)
    names = [*small.config.internal_config_dict, *small.config.plain_settings(), "teacher", "warm_up", "n_cate"]
    loaded = 0
    for _ in range(150):
        name, value = choices.choice(names), choices.choice(hostile.ODD_VALUES)
        hostile.forge(repair(folder, intact), partial(hostile.change_field, way=("settings", name), value=value))
        try:
            load_ticket(folder)
            loaded += 1
        except PruneError as error:
            if not clear_line(error):
                pytest.fail(f"settings.{name}={value!r}: {error}")
        except BaseException as error:
            raise AssertionError(f"settings.{name}={value!r}") from error
    assert 0 < loaded < 150
