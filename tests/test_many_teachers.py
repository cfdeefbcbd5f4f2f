"""A run with several teachers as a whole: each is trained once, in a folder of its own; killed it ends equal."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from teachers import pupils_of, student_config
from training_bench import Killed, without_clocks
from zoo import DATASET, config_for

from recbole_prune import run_recbole_prune, tuition
from recbole_prune.errors import ConfigError
from recbole_prune.run.foreign_checkpoint import read_checkpoint
from recbole_prune.run.store import RunFolder
from recbole_prune.run.workshop import Workshop
from recbole_prune.teachers.ensemble import consensus
from recbole_prune.teachers.sources import open_teacher
from recbole_prune.training.trainer import MaskAwareTrainer

SETTINGS = {"BPR": {"epochs": 1, "embedding_size": 32}, "LightGCN": {"epochs": 1, "n_layers": 1}}
FIRST = {"distill_teacher_models": ["BPR", "LightGCN"], "distill_teacher_settings": SETTINGS}


class Trainings:
    """Runs in a working directory, and which epochs of which models they train."""

    def __init__(self, data: Path, folder: Path, patch: pytest.MonkeyPatch, kills: tuple[tuple[str, int], ...] = ()):
        self.data, self.folder, self.trained, self.kills = data, folder, [], list(kills)
        train_epoch = MaskAwareTrainer._train_epoch

        def counted(trainer: Any, batches: Any, epoch: int, *arguments: Any, **named: Any) -> Any:
            place = f"{trainer.config['model']}-{trainer.config['embedding_size']}", epoch
            self.trained.append(place)
            loss = train_epoch(trainer, batches, epoch, *arguments, **named)
            if place in self.kills:
                self.kills.remove(place)
                raise Killed
            return loss

        patch.setattr(MaskAwareTrainer, "_train_epoch", counted)
        patch.setattr(sys, "argv", ["pytest"])
        folder.mkdir(exist_ok=True)
        patch.chdir(folder)

    def run(self, **changes: Any) -> dict[str, Any]:
        """A run of two epochs; the epochs that it trained are in ``trained``."""
        self.trained.clear()
        own = {"epochs": 2, "embedding_size": 8, "distiller": "rrd", "distill_weight": 1.0, "distill_alone": False}
        settings = {**config_for("BPR", self.data), **own, **changes}
        return run_recbole_prune("BPR", DATASET, config_dict=settings)


def weights(result: dict[str, Any]) -> dict[str, torch.Tensor]:
    folder, line = RunFolder(Path(result["folder"])), result["tickets"][0]
    return read_checkpoint(folder.read(line["checkpoint_file"], line["checkpoint_sha256"]), "").state


@pytest.fixture(scope="module")
def whole(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A run that nothing disturbed."""
    with pytest.MonkeyPatch.context() as patch:
        room = Trainings(tiny_data, tmp_path_factory.mktemp("whole"), patch)
        result = room.run(**FIRST)
        assert room.trained == [("BPR-32", 0), ("LightGCN-64", 0), ("BPR-8", 0), ("BPR-8", 1)]
        return result


@pytest.mark.slow
def test_killed_in_teacher_and_student_it_ends_equal(
    whole: dict[str, Any], tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = Trainings(tiny_data, tmp_path / "killed", monkeypatch, kills=(("LightGCN-64", 0), ("BPR-8", 1)))
    for expected in ([("BPR-32", 0), ("LightGCN-64", 0)], [("LightGCN-64", 0), ("BPR-8", 0), ("BPR-8", 1)]):
        with pytest.raises(Killed):
            room.run(**FIRST)
        assert room.trained == expected, "a finished teacher is not trained again"
    result = room.run(**FIRST)
    assert room.trained == [("BPR-8", 1)]
    one, other = weights(whole), weights(result)
    assert all(torch.equal(one[name], other[name]) for name in one)
    lists = [Path(folder) / "distillation" for folder in (whole["folder"], result["folder"])]
    names = {file.name for file in lists[0].glob("*.safetensors")}
    assert names == {f"{of}items_of_users.safetensors" for of in ("", "teacher-1-", "teacher-2-")}
    assert all((lists[0] / name).read_bytes() == (lists[1] / name).read_bytes() for name in names)
    assert room.run(**FIRST)["tickets"] == result["tickets"] and not room.trained


@pytest.mark.slow
def test_teachers_that_are_there_are_opened_before_others_are_trained(
    whole: dict[str, Any], tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = Trainings(tiny_data, Path(whole["folder"]).parents[3], monkeypatch)
    seen: list[Any] = []

    def refuse(workshop: Workshop, folder: None, trained: Any) -> None:
        seen.extend(trained)
        raise ConfigError("no")

    monkeypatch.setattr(tuition, "Teaching", refuse)
    with pytest.raises(ConfigError, match="no"):
        room.run(distill_teacher_models=["NeuMF", "BPR"], distill_teacher_settings={"BPR": SETTINGS["BPR"]})
    member = whole["tickets"][0]["teacher"]["members"][0]
    assert seen == [None, Path(member["path"])] and not room.trained


@pytest.mark.slow
def test_trained_teachers_can_be_named_and_stand_in_table_and_journal(
    whole: dict[str, Any], tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = Path(whole["folder"]).parents[2]
    room = Trainings(tiny_data, output.parent, monkeypatch)
    [teacher] = [line["teacher"] for line in whole["tickets"]]
    members = teacher["members"]
    assert [member["model"] for member in members] == ["BPR", "LightGCN"] and teacher["kind"] == "ensemble"
    assert all(member["popularity"]["k"] == 10 and member["metrics"]["test"] for member in members)
    rows = [line[:9].strip() for line in whole["table"].splitlines()[3:6]]
    assert rows == ["teacher 1", "teacher 2", "taught 0*"]
    assert "Teacher 1 has validation" in whole["table"] and "Teacher 2 has validation" in whole["table"]
    paths = ",".join(member["path"] for member in members)
    plan = room.run(distill_teacher=paths, dry_run=True)["plan"]
    assert [line.split("/")[0] for line in plan.splitlines()[1:3]] == [
        f"teacher: ticket 0 of {model}" for model in ("BPR", "LightGCN")
    ]
    named = room.run(distill_teacher=paths)
    assert room.trained == [("BPR-8", 0), ("BPR-8", 1)] and named["folder"] != whole["folder"]
    one, other = weights(whole), weights(named)
    assert all(torch.equal(one[name], other[name]) for name in one), "the same teachers teach the same"
    lines = [without_clocks(each["tickets"][0]) for each in (whole, named)]
    assert lines[0]["teacher"] == lines[1]["teacher"]


@pytest.mark.slow
def test_before_their_training_they_rank_nothing_for_everybody(tiny_data: Path) -> None:
    """Lists have a row for every user or item even then, so that a number of rows that differs is a fault."""
    lengths = {"distill_list_length": 7, "distill_interesting": 7}
    config = student_config(tiny_data, None, distill_teacher_models=["BPR", "NeuMF"], **lengths)
    teacher = open_teacher(config, pupils_of(config))
    pupils = teacher.pupils
    for one, length in ((teacher, 7), *((member, 0) for member in teacher.members)):
        assert one.items_of_users.shape == (pupils.user_count, length) and (one.items_of_users < 0).all()
        assert one.users_of_items.shape == (pupils.item_count, length) and (one.users_of_items < 0).all()
        assert len(one.rank_observed(5)) == pupils.user_count


def test_lists_of_different_keys_have_no_consensus() -> None:
    with pytest.raises(ValueError, match="lists of 4, 3 rows have no consensus"):
        consensus([np.zeros((4, 2), np.int32), np.zeros((3, 2), np.int32)], 2)
