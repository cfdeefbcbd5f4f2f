"""``export_evaluate``: what an artifact's values score as they are stored, beside the ticket that was trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from marks import slow_but
from recbole.utils import init_seed
from test_artifact import snapshot
from zoo import DATASET, config_for

from recbole_prune import run_recbole_prune
from recbole_prune.artifact import read_artifact
from recbole_prune.bench.plain import PlainData, begin, plain_config
from recbole_prune.cli import main
from recbole_prune.config.prune_config import PruneConfig
from recbole_prune.run.rebuild import load_ticket

SETTINGS = {"pruner": "imp", "prune_target_sparsity": 0.7, "prune_rounds": 1, "export_evaluate": True, "epochs": 3}


def settings_of(model: str, data: Path, **changes: Any) -> dict[str, Any]:
    return {**config_for(model, data), **SETTINGS, "learning_rate": 0.01, **changes}


def run(model: str, data: Path, **changes: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a run returns, and the ticket.json of its artifact."""
    result = run_recbole_prune(model, DATASET, config_dict=settings_of(model, data, **changes))
    return result, dict(read_artifact(result["artifact"]).info)


CASES: list[tuple[str, dict[str, Any]]] = [
    ("BPR", {"metrics": ["Recall", "NDCG", "GiniIndex", "ItemCoverage", "AveragePopularity"]}),
    ("BPR", {"pruner": "none", "prune_target_sparsity": None, "prune_rounds": None}),
    ("LightGCN", {"export_vectors": True}),
    ("BPR", {"pruner": "small_dense"}),
    ("NeuMF", {"pruner": "structured"}),
    ("DeepFM", {}),
    ("SASRec", {"prune_storage": "compact"}),
]


@pytest.mark.parametrize(("model", "changes"), slow_but([CASES[0], CASES[4]], CASES))
def test_exact_values_score_what_the_journal_says(model: str, changes: dict[str, Any], tiny_data: Path) -> None:
    result, info = run(model, tiny_data, **changes)
    assert info["stored_valid"] == info["valid"] == result["chosen"]["valid"]
    assert info["stored_test"] == info["test"] == result["chosen"]["test"] and info["test"]


@pytest.mark.parametrize("values", ["int8", "int4"])
@pytest.mark.parametrize("model", slow_but(["BPR"], ["BPR", "LightGCN", "DeepFM"]))
def test_rounded_values_score_what_recbole_says(model: str, values: str, tiny_data: Path, tmp_path: Path) -> None:
    """Of the decoded weights in a plain model of RecBole's, in its own evaluation."""
    result, info = run(model, tiny_data, export_values=values)
    config = plain_config(PruneConfig(model, DATASET, config_dict=settings_of(model, tiny_data)), tmp_path)
    data = PlainData(config)
    init_seed(config["seed"], config["reproducibility"])
    trainer = data.build_trainer(load_ticket(result["artifact"], {"gpu_id": config["gpu_id"]}))
    begin(trainer, data.train_data)
    for name, loader in (("stored_valid", data.valid_data), ("stored_test", data.test_data)):
        assert info[name] == dict(trainer.evaluate(loader, load_best_model=False))
    assert info["valid"] == result["chosen"]["valid"]
    assert values == "int8" or info["valid"] != info["stored_valid"], "nothing was rounded"
    assert f"({values}): validation" in " ".join(result["table"].split())


def test_nothing_else_changes(tiny_data: Path, tmp_path: Path) -> None:
    """Neither hash nor journal, nor the rest of the artifact; what is evaluated once stays."""
    folders = {}
    for evaluate in (False, True):
        settings = settings_of("BPR", tiny_data, export_evaluate=evaluate, output_dir=str(tmp_path / str(evaluate)))
        folders[evaluate] = Path(run_recbole_prune("BPR", DATASET, config_dict=settings)["folder"])
    assert folders[False].name == folders[True].name
    # and what they are sealed with
    clocks = ("train_seconds", "eval_seconds", "measured", "checkpoint_sha256", "sha256", "run_sha256")
    journals = [(folder / "tickets.jsonl").read_text().splitlines() for folder in folders.values()]
    plain, evaluated = (
        [{key: value for key, value in json.loads(line).items() if key not in clocks} for line in lines]
        for lines in journals
    )
    for line, other in zip(plain, evaluated):
        assert {key for key in line if line[key] != other[key]} == set()
    infos = [dict(read_artifact(folder / "artifact").info) for folder in folders.values()]
    assert set(infos[1]) - set(infos[0]) == {"stored_valid", "stored_test"}
    assert infos[0]["tensors"] == infos[1]["tensors"]
    before = snapshot(folders[True] / "artifact")
    settings = settings_of("BPR", tiny_data, export_evaluate=False, output_dir=str(tmp_path / "True"))
    run_recbole_prune("BPR", DATASET, config_dict=settings)
    assert snapshot(folders[True] / "artifact") == before
    settings = settings_of("BPR", tiny_data, output_dir=str(tmp_path / "False"))
    run_recbole_prune("BPR", DATASET, config_dict=settings)
    assert read_artifact(folders[False] / "artifact").info["stored_test"] == infos[1]["stored_test"]


def test_the_export_command_writes_and_prints_both(
    tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result, _ = run("BPR", tiny_data, export_evaluate=False)
    words = ["export", f"--run={result['folder']}", "--export_values=int4", f"--to={tmp_path / 'small'}"]
    assert main([*words, "--export_evaluate=True"]) == 0
    printed = capsys.readouterr().out
    info = read_artifact(tmp_path / "small").info
    assert info["values"] == "int4" and info["source"]["int4_clip"] == "search"
    assert info["valid"] == result["chosen"]["valid"] and set(info["stored_test"]) == set(info["test"])
    for data, before, after in (("validation", "valid", "stored_valid"), ("test", "test", "stored_test")):
        for name, value in info[after].items():
            assert [*f"{data} {name}".split(), f"{info[before][name]:.4f}", f"{value:.4f}"] in [
                line.split() for line in printed.splitlines()
            ]
    first = snapshot(tmp_path / "small")
    assert main(words) == 0 and snapshot(tmp_path / "small") == first
    assert "stored as" not in capsys.readouterr().out
    assert main([*words, "--export_int4_clip=none"]) == 0
    unclipped = read_artifact(tmp_path / "small")
    assert unclipped.info["source"]["int4_clip"] == "none" and "stored_test" not in unclipped.info
    assert snapshot(tmp_path / "small")["ticket.safetensors"] != first["ticket.safetensors"]
    assert main([*words, "--export_evaluate=True"]) == 0
    assert snapshot(tmp_path / "small") == first, "equal commands give equal bytes"


@pytest.mark.parametrize(("mode", "draws"), [("full", False), ("uni20", True)])
def test_candidates_that_are_drawn_anew_are_said(
    mode: str, draws: bool, tiny_data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever is stored is ranked among the same ones, so that values can be compared with each other."""
    arguments = {"split": {"RS": [0.8, 0.1, 0.1]}, "order": "RO", "group_by": "user", "mode": mode}
    exact, info = (run("BPR", tiny_data, eval_args=arguments, export_values=values)[1] for values in ("fp32", "fp16"))
    # half precision moves a user or two at most
    assert info["stored_test"] == {name: pytest.approx(value, abs=1e-3) for name, value in exact["stored_test"].items()}
    assert any("evaluating BPR draws random numbers here" in text for text in caplog.messages) == draws


def test_a_clip_without_int4_has_no_effect(tiny_data: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = settings_of("BPR", tiny_data, export_int4_clip="none")
    assert PruneConfig("BPR", DATASET, config_dict=settings).settings.export_int4_clip == "search"
    assert any("export_int4_clip has no effect with export_values=fp32" in text for text in caplog.messages)
