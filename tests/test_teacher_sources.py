"""What teachers are found in, what is refused before any training, and what a run folder keeps of them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import own_models
import pytest
import torch
from teachers import Checkpoints, Trained, open_for, pupils_of, refusal, settings_of, student_config
from zoo import DATASET

from recbole_prune.config.prune_config import PruneConfig
from recbole_prune.disk.files import write_atomic
from recbole_prune.errors import StoreError
from recbole_prune.quick_start import run
from recbole_prune.run.store import RunFolder
from recbole_prune.teachers.model import ModelTeacher
from recbole_prune.teachers.sources import open_teacher

# ---- where a teacher comes from --------------------------------------------------------------------------------------


def test_what_the_journal_says_of_a_checkpoint(
    timed_data: Path, checkpoint_of: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained, _ = checkpoint_of("BPR", timed_data)
    monkeypatch.setattr(trained.trainer, "best_valid_score", 0.25)
    again = trained.save(tmp_path / "scored.pth")
    identity = open_for(timed_data, again).identity
    assert [identity.pop("sha256")] == student_config(timed_data, again).teacher_digests
    parameters = sum(parameter.numel() for parameter in trained.model.parameters())
    assert identity == {
        "kind": "checkpoint", "path": str(again), "model": "BPR", "parameters": parameters,
        "metrics": {"valid": {"ndcg@10": 0.25}},
    }  # fmt: skip


def test_nothing_in_a_checkpoint_is_run(timed_data: Path, tmp_path: Path, checkpoint_of: Checkpoints) -> None:
    class Harmful:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "run"),)

    class Later(Harmful):
        def __reduce__(self) -> Any:
            return print, (Harmful(),)

    trained, _ = checkpoint_of("BPR", timed_data)
    state = {"config": Harmful(), "state_dict": {}, "more": Later()}
    torch.save(state, tmp_path / "harmful.pth")
    assert "is no checkpoint of RecBole" in refusal(lambda: open_for(timed_data, tmp_path / "harmful.pth"))
    whole = {"config": trained.config, "state_dict": trained.model.state_dict(), "more": Later()}
    torch.save({**whole, "other_parameter": {"kept": Harmful()}}, tmp_path / "more.pth", pickle_protocol=4)
    assert open_for(timed_data, tmp_path / "more.pth").widths == (16, 16)
    assert not (tmp_path / "run").exists()
    for content in (b"", b"text", (tmp_path / "more.pth").read_bytes()[:-2000]):
        (tmp_path / "broken.pth").write_bytes(content)
        assert "is no checkpoint of RecBole" in refusal(lambda: open_for(timed_data, tmp_path / "broken.pth"))


@pytest.mark.slow
def test_a_moved_data_folder_and_an_unknown_model(timed_data: Path, tmp_path: Path, checkpoint_of: Checkpoints) -> None:
    trained, _ = checkpoint_of("BPR", timed_data)
    trained.config.external_config_dict["data_path"] = str(tmp_path / "gone")
    try:
        assert open_for(timed_data, trained.save(tmp_path / "moved.pth")).widths == (16, 16)
    finally:
        trained.config.external_config_dict["data_path"] = str(timed_data)
    name, trained.config.model = trained.config.model, "Elsewhere"
    try:
        file = trained.save(tmp_path / "elsewhere.pth")
    finally:
        trained.config.model = name
    assert "model Elsewhere is unknown" in refusal(lambda: open_for(timed_data, file))


@pytest.mark.slow
def test_a_large_model_of_the_users_own_class(timed_data: Path, tmp_path: Path) -> None:
    settings = settings_of("BPR", timed_data, embedding_size=24)
    file = Trained(own_models.Biased, settings, tmp_path).save(tmp_path / "own.pth")
    distilled = {**settings, "embedding_size": 4, "distiller": "rrd", "distill_teacher": str(file)}
    config = PruneConfig(own_models.Biased, DATASET, config_dict=distilled)
    teacher = open_teacher(config, pupils_of(config))
    assert (teacher.items_of_users[1:, 0] > 0).all()
    assert "model Biased is unknown" in refusal(lambda: open_for(timed_data, file))


@pytest.fixture(scope="module")
def finished(timed_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run of one epoch."""
    folder = tmp_path_factory.mktemp("runs")
    here = os.getcwd()
    os.chdir(folder)
    try:
        config = PruneConfig("BPR", DATASET, config_dict={**settings_of("BPR", timed_data), "output_dir": str(folder)})
        return run(config)
    finally:
        os.chdir(here)


@pytest.mark.slow
def test_runs_their_checkpoints_and_artifacts(timed_data: Path, finished: Any) -> None:
    folder, ticket = finished.experiment.folder.path, finished.tickets[0]
    weights = finished.experiment.weights_of(ticket)
    paths = {"run": folder, "artifact": folder / "artifact"}
    found = {kind: open_for(timed_data, path) for kind, path in paths.items()}
    found["ticket"] = open_for(timed_data, folder / ticket.checkpoint_file)
    for name, teacher in found.items():
        assert torch.equal(teacher.tables[1], weights["item_embedding.weight"]), name
        identity = teacher.identity
        assert identity["kind"] == {"ticket": "run"}.get(name, name) and identity["ticket"] == 0
        assert identity["model"] == "BPR" and identity["metrics"] == {"valid": ticket.valid, "test": ticket.test}
    assert student_config(timed_data, folder).run_hash == student_config(timed_data, folder / "artifact").run_hash
    changed = folder.with_name("changed")
    shutil.copytree(folder, changed)
    with open(changed / ticket.checkpoint_file, "ab") as file:
        file.write(b"\0")
    assert "not the checkpoint of which the journal" in refusal(
        lambda: open_for(timed_data, changed / ticket.checkpoint_file)
    )
    shutil.copy(folder / ticket.checkpoint_file, changed / "checkpoints" / "ticket-009.pth")
    assert "no such ticket" in refusal(lambda: open_for(timed_data, changed / "checkpoints" / "ticket-009.pth"))
    with open(changed / "artifact" / "ticket.safetensors", "ab") as file:
        file.write(b"\0")
    assert "is too long" in refusal(lambda: open_for(timed_data, changed))


@pytest.mark.slow
def test_a_teacher_that_was_trained_first(timed_data: Path, finished: Any) -> None:
    config = student_config(timed_data, None, distill_teacher_model="BPR")
    teacher = open_teacher(config, pupils_of(config), trained=[finished.experiment.folder.path])
    assert teacher.identity["kind"] == "run" and teacher.tables is not None


# ---- other data, broken numbers --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"user_inter_num_interval": "[0,30]"}, ["only the student has", "users, first"]),
        ({"eval_args": {"split": {"LS": "valid_only"}, "order": "TO", "mode": "full"}}, ["only the teacher trains on"]),
        ({"eval_args": {"split": {"LS": "valid_and_test"}, "order": "RO", "mode": "full"}},
         ["only the student trains on", "only the teacher trains on"]),
    ],
)  # fmt: skip
@pytest.mark.slow
def test_other_data_are_refused_in_one_message(
    timed_data: Path, checkpoint_of: Checkpoints, changes: dict[str, Any], parts: list[str]
) -> None:
    _, file = checkpoint_of("BPR", timed_data, **changes)
    text = refusal(lambda: open_for(timed_data, file))
    assert text.startswith(f"distill_teacher={file}: it was trained on other data")
    assert all(part in text for part in parts), text


@pytest.mark.slow
def test_interactions_that_differ_are_counted(timed_data: Path, checkpoint_of: Checkpoints) -> None:
    args = {"split": {"LS": "valid_only"}, "order": "TO", "mode": "full"}
    trained, file = checkpoint_of("BPR", timed_data, eval_args=args)
    users = trained.dataset.user_num - 1
    assert f"only the teacher trains on {users} interactions" in refusal(lambda: open_for(timed_data, file))


def broken(trained: Trained, name: str, value: float, file: Path) -> Path:
    weight = getattr(trained.model, name).weight
    kept = weight[3, 2].item()
    with torch.no_grad():
        weight[3, 2] = value
        trained.save(file)
        weight[3, 2] = kept
    return file


@pytest.mark.slow
def test_numbers_that_are_none(timed_data: Path, tmp_path: Path, checkpoint_of: Checkpoints) -> None:
    trained, _ = checkpoint_of("BPR", timed_data)
    nan = broken(trained, "item_embedding", float("nan"), tmp_path / "nan.pth")
    assert "1 of the 3568 weights in item_embedding.weight are NaN" in refusal(lambda: open_for(timed_data, nan))
    infinite = broken(trained, "user_embedding", float("inf"), tmp_path / "inf.pth")
    teacher = open_for(timed_data, infinite)
    assert "NaN or infinite numbers in 1 of its user vectors" in refusal(lambda: teacher.tables)
    trained, _ = checkpoint_of("NeuMF", timed_data)
    infinite = broken(trained, "user_mf_embedding", float("inf"), tmp_path / "inf2.pth")
    teacher = open_for(timed_data, infinite)
    assert "scores are NaN or infinite, the first of internal id 3" in refusal(lambda: teacher.items_of_users)
    batch = teacher.pupils.dataset.inter_feat
    mine = batch[batch["user_id"] == 3]
    assert "logits that are NaN" in refusal(lambda: teacher.batch_logits(mine))


# ---- rankings on disk ------------------------------------------------------------------------------------------------


def folder_at(path: Path) -> RunFolder:
    folder = RunFolder(path)
    folder.open()
    return folder


def test_rankings_are_computed_once(
    timed_data: Path, tmp_path: Path, checkpoint_of: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, file = checkpoint_of("BPR", timed_data)
    folder = folder_at(tmp_path / "run")
    first = open_for(timed_data, file, folder=folder)
    expected = [first.items_of_users, first.scores, first.users_of_items]
    content = {path.name: path.read_bytes() for path in (folder.path / "distillation").iterdir()}
    assert set(content) == {"teacher.json", "items_of_users.safetensors", "users_of_items.safetensors"}
    assert len(content["users_of_items.safetensors"]) < 4 * expected[2].size + 200
    monkeypatch.setattr(ModelTeacher, "rank_items", lambda self: pytest.fail("ranked again"))
    monkeypatch.setattr(ModelTeacher, "rank_users", lambda self: pytest.fail("ranked again"))
    second = open_for(timed_data, file, folder=folder)
    for one, other in zip(expected, [second.items_of_users, second.scores, second.users_of_items]):
        assert np.array_equal(one, other) and one.dtype == other.dtype
    monkeypatch.undo()
    again = folder_at(tmp_path / "again")
    third = open_for(timed_data, file, folder=again)
    assert third.items_of_users is not None and third.users_of_items is not None
    assert {path.name: path.read_bytes() for path in (again.path / "distillation").iterdir()} == content
    write_atomic(folder.path / "distillation" / "items_of_users.safetensors", b"other")
    assert "is corrupt" in refusal(lambda: open_for(timed_data, file, folder=folder).items_of_users, StoreError)
    folder.close()
    again.close()


@pytest.mark.slow
def test_a_teacher_that_changed_since_the_run_began(
    timed_data: Path, tmp_path: Path, checkpoint_of: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, file = checkpoint_of("BPR", timed_data)
    copy = tmp_path / "copy.pth"
    shutil.copy(file, copy)
    folder = folder_at(tmp_path / "run")
    config = student_config(timed_data, copy)
    open_teacher(config, pupils_of(config), folder)
    other = shutil.copy(checkpoint_of("BPR", timed_data, embedding_size=8)[1], copy)
    assert "it changed while this run began" in refusal(
        lambda: open_teacher(config, pupils_of(config), folder), StoreError
    )
    open_for(timed_data, other, folder=folder)  # nothing is trained yet
    monkeypatch.setattr(RunFolder, "is_trained", lambda self: True)
    text = refusal(lambda: open_for(timed_data, file, folder=folder), StoreError)
    assert "the teacher changed since" in text and "--fresh=True" in text
    folder.close()
