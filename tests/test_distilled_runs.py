"""A distilled run as a whole: killed, repeated or in other storage it ends equal; once finished it only reads."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from teachers import refusal
from test_resume import outcome
from training_bench import Killed
from zoo import DATASET, config_for

import recbole_prune.run.rebuild
import recbole_prune.run.workshop
from recbole_prune import run_recbole_prune
from recbole_prune.errors import BusyError, StoreError
from recbole_prune.run import opening
from recbole_prune.run.store import RunFolder
from recbole_prune.teachers import sources as teacher_sources
from recbole_prune.training.trainer import MaskAwareTrainer

EPOCHS = 2
IMP = {"pruner": "imp", "prune_rate": 0.5, "prune_rounds": 1}
DSL = {"pruner": "dsl", "prune_target_sparsity": 0.5, "prune_update_interval": 2}


def taught(data: Path, folder: Path, patch: pytest.MonkeyPatch, **changes: Any) -> dict[str, Any]:
    """A run with a teacher that is trained first, in a working directory of its own."""
    folder.mkdir(exist_ok=True)
    patch.chdir(folder)
    patch.setattr(sys, "argv", ["pytest"])
    settings = {
        **config_for("BPR", data),
        "epochs": EPOCHS,
        **IMP,
        "prune_storage": "compact",
        "distiller": "de_rrd",
        "distill_weight": 1.0,
        "distill_vector_weight": 1.0,
        "distill_teacher_model": "BPR",
        "distill_teacher_settings": {"embedding_size": 32, "epochs": EPOCHS},
    }
    settings.update(changes)
    settings = {name: value for name, value in settings.items() if value is not None}
    if changes.get("pruner", "imp") != "imp":
        settings = {name: value for name, value in settings.items() if name in changes or name not in IMP}
    return run_recbole_prune("BPR", DATASET, config_dict=settings)


def outcomes(folder: Path) -> dict[str, Any]:
    """Of every run in a working directory, without where the teacher lies."""
    found = {}
    for run in sorted((folder / "pruned").glob("*/*/*")):
        records, files = outcome(run)
        for record in records:
            record.pop("distill_epoch_seconds", None)
            if "teacher" in record:
                record["teacher"] = {**record["teacher"], "path": Path(record["teacher"]["path"]).name}
        lists = {file.name: file.read_bytes() for file in run.glob("distillation/*")}
        found[run.name] = records, files, lists
    return found


@pytest.fixture(scope="module")
def whole(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """A run that nothing disturbed, and its working directory."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        return taught(tiny_data, folder, patch), folder


def test_a_folder_that_runs_share_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Two students of one teacher that are started together: the second waits until the teacher is trained."""
    first, second = RunFolder(tmp_path / "run"), RunFolder(tmp_path / "run")
    first.open()
    with pytest.raises(BusyError):
        opening.open_folder(second, waits=False)
    looks: list[float] = []
    monkeypatch.setattr(opening, "sleep", lambda seconds: looks.append(seconds) or len(looks) < 3 or first.close())
    opening.open_folder(second, waits=True)
    second.close()
    assert len(looks) == 3 and caplog.text.count("which this run needs too: waiting") == 1


@pytest.mark.slow
def test_killed_in_every_epoch_of_teacher_and_student_ends_equal(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: tuple[dict[str, Any], Path]
) -> None:
    train_epoch, stopped = MaskAwareTrainer._train_epoch, []

    def stop_once_in_every_epoch(self: Any, data: Any, epoch: int, *args: Any, **kwargs: Any) -> Any:
        result = train_epoch(self, data, epoch, *args, **kwargs)
        place = Path(self.saved_model_file).parts[-3], self.session.name, epoch
        if place not in stopped:
            stopped.append(place)
            raise Killed
        return result

    with monkeypatch.context() as patch:
        patch.setattr(MaskAwareTrainer, "_train_epoch", stop_once_in_every_epoch)
        for _ in range(4 * EPOCHS + 1):
            try:
                taught(tiny_data, tmp_path / "killed", monkeypatch)
                break
            except Killed:
                continue
    assert len(stopped) == 4 * EPOCHS, "teacher, student alone, dense ticket, pruned ticket"
    expected, found = outcomes(whole[1]), outcomes(tmp_path / "killed")
    assert len(expected) == 3 and expected.keys() == found.keys()
    for name in expected:
        for one, other in zip(expected[name], found[name]):
            assert one == other, name


@pytest.mark.slow
def test_a_finished_command_reads_the_data_once_and_opens_no_teacher(
    tiny_data: Path, monkeypatch: pytest.MonkeyPatch, whole: tuple[dict[str, Any], Path]
) -> None:
    first, folder = whole
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file() and file.name != "log.txt"}
    reads = []
    for module in (recbole_prune.run.workshop, recbole_prune.run.rebuild):
        read = module.create_dataset
        monkeypatch.setattr(module, "create_dataset", lambda *args, read=read: reads.append(args) or read(*args))
    monkeypatch.setattr(MaskAwareTrainer, "_train_epoch", lambda *_, **__: pytest.fail("trained again"))
    monkeypatch.setattr(teacher_sources, "read_artifact", lambda *_: pytest.fail("opened"))
    assert taught(tiny_data, folder, monkeypatch) == first
    assert len(reads) == 1
    assert {file: file.read_bytes() for file in before} == before
    assert "none on BPR" not in (Path(first["folder"]) / "log.txt").read_text(), "the student alone has its own log"


@pytest.mark.slow
def test_a_finished_run_that_lost_a_line_is_taught_again(
    tiny_data: Path, monkeypatch: pytest.MonkeyPatch, whole: tuple[dict[str, Any], Path]
) -> None:
    result, folder = whole
    expected, journal = outcomes(folder), Path(result["folder"]) / "tickets.jsonl"
    journal.write_bytes(journal.read_bytes().splitlines(keepends=True)[0])
    taught(tiny_data, folder, monkeypatch)
    assert outcomes(folder) == expected


@pytest.mark.slow
def test_a_teacher_that_changed_while_its_student_was_not_finished_is_refused(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [row.split("\t") for row in (tiny_data / DATASET / f"{DATASET}.inter").read_text().splitlines()[1:]]
    users, items = (sorted({row[place] for row in rows}) for place in (0, 1))
    lists = {number: "".join("\t".join([user, *items[number:]]) + "\n" for user in users) for number in (0, 1, 2)}
    file = tmp_path / "lists.tsv"
    file.write_text(lists[0])

    def run(**changes: Any) -> dict[str, Any]:
        given = {
            "distiller": "rrd",
            "distill_teacher": str(file),
            "distill_alone": False,
            "distill_vector_weight": None,
        }
        named = {**given, "distill_teacher_model": None, "distill_teacher_settings": None}
        return taught(tiny_data, tmp_path / "run", monkeypatch, **{**named, **changes})

    train_epoch = MaskAwareTrainer._train_epoch

    def stop_in_the_last(self: Any, data: Any, epoch: int, *args: Any, **kwargs: Any) -> Any:
        if (self.session.name, epoch) == ("ticket 1", 1):
            raise Killed
        return train_epoch(self, data, epoch, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(MaskAwareTrainer, "_train_epoch", stop_in_the_last)
        with pytest.raises(Killed):
            run()
    [begun] = (tmp_path / "run").glob("pruned/*/*/*")
    before = {path: path.read_bytes() for path in begun.rglob("*") if path.is_file()}
    file.write_text(lists[1])
    text = refusal(run, StoreError)
    assert f"{file}: the teacher changed since {begun} was begun" in text and "--fresh=True" in text
    assert before == {path: path.read_bytes() for path in begun.rglob("*") if path.is_file()}
    file.rename(tmp_path / "better.tsv")
    elsewhere = Path(run(distill_teacher=str(tmp_path / "better.tsv"))["folder"])
    assert elsewhere != begun, "a teacher of another place is another one"
    file.write_text(lists[1] + "\n")
    other = Path(run(fresh=True)["folder"])
    assert other != begun and before == {path: path.read_bytes() for path in begun.rglob("*") if path.is_file()}
    file.write_text(lists[0])
    assert Path(run()["folder"]) == begun
    file.write_text(lists[2])
    assert Path(run()["folder"]) not in (begun, other), "a finished run does not bind its teacher's file"


@pytest.mark.slow
@pytest.mark.parametrize("method", [IMP, DSL], ids=["imp", "dsl"])
def test_storage_and_fused_steps_change_nothing_but_rounding(
    method: dict[str, Any], tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for changes in ({}, {"prune_storage": "masked"}, {"prune_fused": False}):
        run = taught(tiny_data, tmp_path, monkeypatch, distill_alone=False, **{**method, **changes})
        folder = RunFolder(Path(run["folder"]))
        files = [folder.path / record["checkpoint_file"] for record in folder.tickets()]
        weights = [torch.load(file, weights_only=False)["state_dict"] for file in files]
        found.append((folder.tickets(), weights))
    (records, weights), *others = found
    assert records[-1]["sparsity"] == 0.5
    for other_records, other_weights in others:
        for mine, theirs in zip(records, other_records):
            assert mine["mask_sha256"] == theirs["mask_sha256"] and mine["kept"] == theirs["kept"]
            assert mine["valid"] == pytest.approx(theirs["valid"], abs=2e-3)
        for one, other in zip(weights, other_weights):
            for name, weight in one.items():
                assert torch.allclose(weight, other[name], atol=1e-4), name
