"""Bad input ends with one message that names the culprit, before any training, and loses nothing on disk."""

from __future__ import annotations

import errno
import os
import shutil
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from marks import slow_but
from training_bench import Killed, kill
from zoo import DATASET, config_for

from recbole_prune import run_recbole_prune
from recbole_prune.cli import main
from recbole_prune.config import host
from recbole_prune.config.evaluation import check_selection
from recbole_prune.config.prune_config import PruneConfig
from recbole_prune.config.values import check_values
from recbole_prune.errors import PruneError
from recbole_prune.masking.allocate import select
from recbole_prune.masking.masks import MaskSet
from recbole_prune.masking.scope import Scope, Target
from recbole_prune.pruners.base import Pruner
from recbole_prune.run.provenance import read_record
from recbole_prune.run.store import RunFolder
from recbole_prune.training.trainer import MaskAwareTrainer


@pytest.fixture
def settings(tiny_data: Path) -> dict[str, Any]:
    return {**config_for("BPR", tiny_data), "pruner": "imp", "prune_rate": 0.3, "prune_rounds": 2}


def run(settings: dict[str, Any], **changes: Any) -> dict[str, Any]:
    chosen = {**settings, **changes}
    return run_recbole_prune(
        model=chosen.pop("model", "BPR"), dataset=chosen.pop("dataset", DATASET), config_dict=chosen
    )


def snapshot(folder: Path) -> dict[str, bytes]:
    return {
        str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file() and f.name != "log.txt"
    }


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": "BRP"}, ["BRP", "BPR"]),
        ({"dataset": "tinny"}, ["tinny", "tiny"]),
        ({"pruner": "ipm"}, ["pruner", "ipm", "imp"]),
        ({"distiller": "rrd"}, ["distiller", "rrd"]),
        ({"prune_rate": 0}, ["prune_rate", "0"]),
        ({"prune_rate": 1.0}, ["prune_rate", "1"]),
        ({"prune_rate": "many"}, ["prune_rate", "many", "float"]),
        ({"prune_rounds": 0}, ["prune_rounds", "0"]),
        ({"prune_target_sparsity": 1.5}, ["prune_target_sparsity", "1.5"]),
        ({"prune_rewind": "late"}, ["prune_rewind_epoch"]),
        ({"prune_rewind": "late", "prune_rewind_epoch": 9}, ["prune_rewind_epoch", "9"]),
        ({"prune_ratee": 0.2}, ["prune_ratee", "prune_rate"]),
        ({"prunner": "imp"}, ["prunner", "pruner"]),
        ({"prune_min_per_row": 16}, ["prune_min_per_row", "16"]),
        ({"prune_exclude": ["*"]}, ["BPR", "nothing to prune"]),
        ({"export_ticket": 7}, ["export_ticket", "7"]),
        ({"epochs": "many"}, ["epochs", "many", "whole number"]),
        ({"train_batch_size": 0}, ["train_batch_size", "0", "at least 1"]),
        ({"learning_rate": "fast"}, ["learning_rate", "fast", "above 0"]),
        ({"learning_rate": float("inf")}, ["learning_rate", "inf", "above 0"]),
        ({"epochs": np.float64(3)}, ["epochs", "3.0", "whole number"]),
        ({"eval_step": 1.5}, ["eval_step", "1.5", "whole number"]),
        ({"pruner": "dsl", "prune_target_sparsity": 0.9999}, ["prune_target_sparsity", "0.9999", "user_embedding"]),
        ({"pruner": "dsl", "prune_growth": "gradients"}, ["prune_growth", "gradients", "momentum"]),
        ({"pruner": "dsl", "prune_growth": "momentum"}, ["prune_growth", "prune_moments", "dense"]),
        (
            {"pruner": "dsl", "prune_growth": "momentum", "prune_moments": "dense", "learner": "sgd"},
            ["learner=sgd", "prune_growth=momentum", "learner=adam"],
        ),
        (
            {"pruner": "dsl", "prune_update_ratio": 0.1, "prune_update_floor": 0.2},
            ["prune_update_ratio=0.1", "prune_update_floor=0.2"],
        ),
        ({"pruner": "dsl", "prune_parity": "official"}, ["prune_parity", "prune_moments=dense"]),
        (
            {"pruner": "dsl", "prune_moments": "dense", "prune_storage": "compact"},
            ["prune_storage", "prune_moments", "masked"],
        ),
        ({"pruner": "dsl", "prune_update_interval": 0}, ["prune_update_interval", "0"]),
        ({"pruner": "set", "export_ticket": 2}, ["export_ticket", "2"]),
        ({"prune_storage": "sparse"}, ["prune_storage", "sparse", "compact"]),
        ({"model": "MultiVAE", "pruner": "small_dense"}, ["small_dense", "MultiVAE", "embedding_size"]),
        ({"model": "MultiVAE", "pruner": "lcm"}, ["lcm", "MultiVAE"]),
        (
            {"model": "ConvNCF", "pruner": "small_dense", "prune_rounds": 1, "embedding_size": 16}
            | {"cnn_channels": [1, 8, 8], "cnn_kernels": [4, 4], "cnn_strides": [4, 4]},
            ["small_dense", "no narrower form of ConvNCF", "Kernel size can't be greater"],
        ),
        ({"prune_rate": None, "prune_rounds": None, "prune_target_sparsity": 1e-9}, ["prune_target_sparsity"]),
        ({"load_col": {"inter": ["user_id", "no_such_field"]}}, ["tiny"]),
        # what evaluation will ask for
        ({"topk": [20], "valid_metric": None}, ["valid_metric=MRR@10 (the default)", "topk=[20]", "Recall@20"]),
        ({"metrics": ["Recall"], "valid_metric": None}, ["valid_metric=MRR@10 (the default)", "Recall@10"]),
        (
            {"valid_metric": "Recall@15"},
            ["valid_metric=Recall@15", "topk=[10]", "did you mean --valid_metric=Recall@10"],
        ),
        ({"valid_metric": "NDCG"}, ["valid_metric=NDCG", "did you mean --valid_metric=NDCG@10"]),
        ({"valid_metric": "Recal@10"}, ["valid_metric=Recal@10", "did you mean Recall?"]),
        ({"valid_metric": 10}, ["valid_metric=10", "Recall"]),
        ({"metrics": ["AUC"], "valid_metric": "AUC"}, ["metrics=['AUC']", "mode=full", "labeled"]),
        ({"eval_args": {"mode": {"valid": "full", "test": "labeled"}}}, ["mode=labeled", "Recall ranks items"]),
        (
            {"model": "DeepFM", "metrics": ["AUC"], "valid_metric": "AUC", "topk": None},
            ["DeepFM learns from labels", "no field label", "threshold"],
        ),
        ({"metrics": ["AUC", "Recall"]}, ["metrics=['AUC', 'Recall']", "AUC, MAE, RMSE, LogLoss"]),
        ({"metrics": []}, ["metrics=[]", "a list such as"]),
        ({"metrics": [3]}, ["metrics=[3]", "a list such as"]),
        ({"topk": []}, ["topk=[]", "whole number"]),
        ({"topk": [0]}, ["topk=[0]", "whole number from 1"]),
        ({"topk": "ten"}, ["topk=ten", "whole number"]),
        ({"topk": [10, 500]}, ["topk=[10, 500]", "items to rank", "at most"]),
        ({"tail_ratio": "few"}, ["tail_ratio=few", "number"]),
        ({"metric_decimal_place": "x"}, ["metric_decimal_place=x", "whole number"]),
        ({"log_wandb": True}, ["log_wandb=True", "wandb", "pip install"]),
        ({"saved": False}, ["saved=False", "tickets"]),
        # settings of RecBole's that it takes as they come
        ({"eval_args": {"split": {"RS": [0.9, 0.2]}}}, ["{'RS': [0.9, 0.2]}", "three numbers"]),
        ({"eval_args": {"split": {"LS": "valid"}}}, ["{'LS': 'valid'}", "valid_and_test"]),
        ({"eval_args": {"mode": "uni"}}, ["mode=uni", "uniN"]),
        ({"eval_args": {"ordre": "TO"}}, ["ordre", "did you mean order?"]),
        ({"eval_args": {"order": "TIME"}}, ["order=TIME", "RO"]),
        ({"eval_args": {"group_by": "item"}}, ["group_by=item", "user"]),
        ({"train_neg_sample_args": {"sampel_num": 3}}, ["sampel_num", "did you mean sample_num?"]),
        ({"load_col": "foo"}, ["load_col=foo", "a dict"]),
        ({"embedding_size": "abc"}, ["embedding_size=abc", "whole number, at least 1"]),
        ({"worker": "abc"}, ["worker=abc", "whole number"]),
        ({"epochs": 0}, ["epochs=0", "at least 1"]),
        ({"epochs": None}, ["epochs=None", "at least 1"]),
        ({"seed": 2**32}, ["seed=4294967296", "at most 4294967295"]),
        ({"use_gpu": "maybe"}, ["use_gpu=maybe", "True or False"]),
        ({"gpu_id": "abc"}, ["gpu_id=abc", "number of a GPU"]),
        ({"weight_decay": "some"}, ["weight_decay=some", "number"]),
        ({"weight_decay": float("nan")}, ["weight_decay=nan", "finite number"]),
        ({"learning_rate": 10**400}, ["learning_rate=1000", "finite number"]),
        ({"clip_grad_norm": 5}, ["clip_grad_norm=5", "a dict"]),
        ({"learner": "adm"}, ["learner=adm", "did you mean adam?"]),
        ({"state": "LOUD"}, ["state=LOUD", "DEBUG"]),
        ({"model": "NeuMF", "mlp_hidden_size": 64}, ["mlp_hidden_size=64", "a list"]),
        ({"model": "LightGCN", "n_layers": 1.5}, ["n_layers=1.5", "whole number"]),
        ({"nproc": 2}, ["nproc=2", "one process"]),
        ({"world_size": 2}, ["world_size=2", "one process"]),
        ({"local_rank": 0}, ["local_rank=0", "one process"]),
        ({"embeding_size": 32}, ["embeding_size", "did you mean --embedding_size?"]),
        ({"epoch": 3}, ["epoch is not a setting", "did you mean --epochs?"]),
    ],
)
def test_refused_before_training(
    settings: dict[str, Any], changes: dict[str, Any], words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def trained(*_: Any, **__: Any) -> None:
        raise AssertionError("training began")

    monkeypatch.setattr(MaskAwareTrainer, "_train_epoch", trained)
    clean = {key: value for key, value in {**settings, **changes}.items() if value is not None or key == "epochs"}
    with pytest.raises(PruneError) as caught:
        run(clean)
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert "\n" not in message


def test_what_recbole_takes_is_taken(settings: dict[str, Any]) -> None:
    """Values near those that are refused; nothing is built from them."""
    for model, change in [
        ("BPR", {"topk": 10, "metrics": "MRR", "valid_metric": "mrr@10"}),
        ("BPR", {"metrics": ["Recall", "GAUC", "ItemCoverage"], "valid_metric": "gauc", "topk": [5, 5]}),
        ("BPR", {"metrics": ["AUC"], "valid_metric": "AUC", "eval_args": {"mode": "labeled"}}),
        ("BPR", {"eval_args": {"split": {"RS": [8, 1, 1]}, "group_by": None, "mode": {"valid": "uni50"}}}),
        ("BPR", {"eval_args": {"split": {"LS": "valid_only"}, "order": "TO"}}),
        ("BPR", {"benchmark_filename": ["train", "valid", "test"], "eval_args": {"split": None}}),
        ("BPR", {"train_neg_sample_args": {"distribution": "popularity", "dynamic": True, "candidate_num": 5}}),
        ("BPR", {"gpu_id": (0, 1)}),
        ("BPR", {"gpu_id": "0, 1", "nproc": 1, "world_size": -1, "saved": True, "log_wandb": False}),
        ("BPR", {"data_path": Path(settings["data_path"]), "use_gpu": 0, "shuffle": "True", "state": None}),
        ("BPR", {"weight_decay": 0, "learning_rate": 1, "learner": "SGD", "clip_grad_norm": {"max_norm": 1}}),
        ("BPR", {"additional_feat_suffix": "ent", "load_col": None, "rm_dup_inter": "first"}),
        ("NeuMF", {"mlp_hidden_size": "[64, 32]", "dropout_prob": 0}),
        ("LightGCN", {"reg_weight": 1, "n_layers": 2}),
        ("DiffRec", {"noise_scale": 0.5, "time-aware": True}),
        ("DCN", {"reg_weight": 0.5, "metrics": ["AUC"], "valid_metric": "AUC"}),
    ]:
        given = {**settings, "topk": [10], **change}
        config = PruneConfig(model, DATASET, config_dict=given)
        check_selection(config, config.external_config_dict)
        assert config.warnings == (), change


def test_every_model_takes_its_own_defaults(tiny_data: Path) -> None:
    """A setting given as RecBole's property file has it is never refused."""
    for model in host.model_names():
        file = host.model_properties(model)
        if file is not None:
            found = yaml.load(file.read_text(encoding="utf-8"), Loader=PruneConfig._build_yaml_loader(None)) or {}
            check_values(found, found, model)
    general = {**config_for("BPR", tiny_data)}
    check_values(general, general, "BPR")


@pytest.mark.slow
def test_numbers_that_recbole_takes_are_taken(settings: dict[str, Any]) -> None:
    """Those of numpy, and every way to ask for no validation: the last epoch is then the best."""
    numbers = {"epochs": np.int64(2), "seed": np.int32(5), "learning_rate": np.float64(0.01), "prune_rounds": 1}
    found = [run(settings, **numbers, eval_step=step)["tickets"] for step in (np.int64(-1), 0)]
    assert [ticket["valid_score"] for ticket in found[0]] == [ticket["valid_score"] for ticket in found[1]]
    for ticket in found[0]:
        assert ticket["epochs"] == ticket["best_epoch"] == 2 and ticket["history"] == []
        assert ticket["valid"] and ticket["seed"] == 5


def test_command_line_prints_one_line_and_fails(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model=BPR", "--dataset=ml-100k", "--prunner=imp"]) == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert errors[-1].startswith("recbole-prune: ") and "pruner" in errors[-1]
    assert main(["exprot"]) == 2
    assert main(["export"]) == 2
    assert main(["export", "--run=nowhere"]) == 2
    assert "--run=nowhere is no folder of a run" in capsys.readouterr().err
    assert main(["recommend", "--artifact=nowhere", "--users=1"]) == 2
    assert main(["recommend", "--artifact=nowhere", "--users=196,"]) == 2
    assert "--users=196, is not allowed" in capsys.readouterr().err


def test_saved_of_recboles_signature_is_answered(settings: dict[str, Any]) -> None:
    with pytest.raises(PruneError, match="saved=False is not allowed: a run keeps its tickets"):
        run_recbole_prune("BPR", DATASET, config_dict=settings, saved=False)
    assert not Path("pruned").exists()


def test_nan_loss_stops_with_the_ticket_and_loses_nothing(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    check = MaskAwareTrainer._check_nan

    def nan_in_ticket_one(self: Any, loss: torch.Tensor) -> None:
        check(self, loss * float("nan") if self.session.name == "ticket 1" else loss)

    with monkeypatch.context() as patch:
        patch.setattr(MaskAwareTrainer, "_check_nan", nan_in_ticket_one)
        with pytest.raises(PruneError, match=r"ticket 1 .*NaN.*learning_rate"):
            run(settings)
    assert len(run(settings)["tickets"]) == 3


def test_a_nan_loss_names_rows_without_entries() -> None:
    scope = Scope((Target("a", "embedding", (5, 2), (0,)), Target("b", "embedding", (4, 2))))
    for keep, words in ((14, ""), (9, "2 rows of b have no live entry")):
        order = {"a": torch.ones(5, 2), "b": torch.tensor([[4.0, 4.0], [3.0, 3.0], [0.0, 0.0], [0.0, 0.0]])}
        masks = select(order, MaskSet.dense(scope), keep, min_per_row={"a": 1, "b": int(keep == 14)})
        trainer: Any = SimpleNamespace(model=SimpleNamespace(masks=masks))
        assert words in MaskAwareTrainer._empty_rows(trainer)
        assert bool(words) == bool(MaskAwareTrainer._empty_rows(trainer))


def test_disk_full_in_the_middle_keeps_what_is_there(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = os.fsync, 0

    def full(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls > 9:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(PruneError, match="No space left on device"):
            run(settings)
    assert not list(tmp_path.rglob("*.tmp"))
    assert len(run(settings)["tickets"]) == 3


def test_folder_that_is_not_writable(settings: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PruneError, match="file"):
        run(settings, output_dir=str(tmp_path / "file"))


@pytest.mark.parametrize(
    ("damage", "name"),
    slow_but(
        [("flip", "checkpoints/ticket-001.pth"), ("truncate", "masks/ticket-001.safetensors")],
        product(
            ["flip", "truncate"],
            ["tickets.jsonl", "masks/ticket-001.safetensors", "checkpoints/ticket-001.pth"],
        ),
    ),
)
def test_damaged_file_is_named_and_left_alone(settings: dict[str, Any], name: str, damage: str) -> None:
    folder = Path(run(settings)["folder"])
    # ticket 2 has to be made again, which needs ticket 1
    journal = folder / "tickets.jsonl"
    journal.write_bytes(b"".join(journal.read_bytes().splitlines(keepends=True)[:2]))
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(bytes(content) if damage == "flip" else bytes(content[: len(content) // 2]))
    before = snapshot(folder)
    with pytest.raises(PruneError, match=Path(name).name):
        run(settings)
    assert snapshot(folder) == before
    assert len(run(settings, fresh=True)["tickets"]) == 3
    assert (folder.parent / f"{folder.name}.old-1" / name).read_bytes() == before[name]


def test_starting_over_moves_nothing_before_data_and_model_are_checked(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "copy"
    shutil.copytree(settings["data_path"], data)
    settings.update(data_path=str(data), pruner="none", epochs=1)
    folder = Path(run(settings)["folder"])
    (folder / "tickets.jsonl").write_bytes(b"damaged")
    before = snapshot(folder)
    inter = data / DATASET / f"{DATASET}.inter"
    good = inter.read_text()

    inter.write_text(good.replace("\t", ","))
    with pytest.raises(PruneError, match="RecBole cannot load the dataset"):
        run(settings, fresh=True)
    inter.write_text(good)
    with monkeypatch.context() as patch:
        patch.setattr(Pruner, "check", kill)
        with pytest.raises(Killed):
            run(settings, fresh=True)
    assert snapshot(folder) == before and list(folder.parent.iterdir()) == [folder]

    old_log = (folder / "log.txt").read_bytes()
    inter.write_text("".join(good.splitlines(keepends=True)[:-1]))  # other data
    assert len(run(settings, fresh=True)["tickets"]) == 1
    aside = folder.parent / f"{folder.name}.old-1"
    assert snapshot(aside) == before and (aside / "log.txt").read_bytes() == old_log
    assert "The number of users" in (folder / "log.txt").read_text()


def test_changed_data_is_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    data = tmp_path / "copy"
    shutil.copytree(settings["data_path"], data)
    run(settings, data_path=str(data))
    inter = data / DATASET / f"{DATASET}.inter"
    lines = inter.read_text().splitlines(keepends=True)
    inter.write_text("".join(lines[:-1]))
    with pytest.raises(PruneError, match="changed since"):
        run(settings, data_path=str(data))


def test_data_in_which_nothing_was_trained_binds_no_folder(settings: dict[str, Any], tmp_path: Path) -> None:
    """Neither data that RecBole refuses, nor data in which a killed process found no more than the scope."""
    data = tmp_path / "copy"
    shutil.copytree(settings["data_path"], data)
    settings.update(data_path=str(data), pruner="none")
    inter = data / DATASET / f"{DATASET}.inter"
    good = inter.read_text()

    inter.write_text(good.replace("\t", ","))
    with pytest.raises(PruneError, match="RecBole cannot load the dataset"):
        run(settings)
    inter.write_text("".join(good.splitlines(keepends=True)[:2000]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MaskAwareTrainer, "_train_epoch", kill)
        with pytest.raises(Killed):
            run(settings)
    [killed] = tmp_path.glob(f"pruned/{DATASET}/BPR/none-*/scope.json")
    scope = killed.read_bytes()
    inter.write_text(good)
    folder = Path(run(settings)["folder"])
    assert folder == killed.parent and killed.read_bytes() != scope
    elsewhere = Path(run(settings, output_dir="elsewhere")["folder"])
    assert (folder / "masks" / "ticket-000.safetensors").read_bytes() == (
        elsewhere / "masks" / "ticket-000.safetensors"
    ).read_bytes()
    assert read_record(RunFolder(folder))["data_sha256"] == read_record(RunFolder(elsewhere))["data_sha256"]
