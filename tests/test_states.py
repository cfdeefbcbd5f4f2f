"""States of a training: which are kept, also of a killed one, and how they go again."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from marks import slow_but
from recbole.utils import ModelType
from teachers import Trained, pupils_of, refusal
from training_bench import Killed, before_training
from zoo import DATASET, config_for

from recbole_prune import run_recbole_prune
from recbole_prune.cli import main
from recbole_prune.config.prune_config import PruneConfig
from recbole_prune.config.teachers import Named
from recbole_prune.distillers.base import Promises
from recbole_prune.distillers.ranking import RelaxedRanking
from recbole_prune.distillers.teaching import require_teachers, teacher_configs
from recbole_prune.errors import StoreError
from recbole_prune.run.experiment import Experiment
from recbole_prune.run.foreign_checkpoint import read_checkpoint
from recbole_prune.run.states import StateRecorder, fractions
from recbole_prune.run.store import STATES, RunFolder
from recbole_prune.signals import BUSY
from recbole_prune.teachers.base import Teacher
from recbole_prune.teachers.model import ModelTeacher
from recbole_prune.teachers.recorded_states import require_states
from recbole_prune.teachers.sources import open_teacher
from recbole_prune.teachers.store import ListStore
from recbole_prune.training.trainer import MaskAwareTrainer

SCORES = [0.1, 0.45, 0.44, 0.8, 0.95, 1.0]


@pytest.fixture(autouse=True)
def _written_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def course(folder: Path, scores: list[float], count: int = 4, bigger: bool = True) -> tuple[RunFolder, StateRecorder]:
    """A recorder that saw a training with one validation after every epoch."""
    run = RunFolder(folder)
    recorder = StateRecorder(run, 0, count)
    go_on(recorder, scores, bigger)
    return run, recorder


def go_on(recorder: StateRecorder, scores: list[float], bigger: bool = True, begin: int = 0, points: int = 0) -> int:
    """Epochs from ``begin``; a resume point after every ``points`` of them. Returns the most files there ever were."""
    sign, most = (1 if bigger else -1), 0
    history = [(epoch + 1, score) for epoch, score in enumerate(scores[:begin])]
    trainer: Any = SimpleNamespace(history=history)
    recorder.begin(trainer)
    for epoch in range(begin, len(scores)):
        history.append((epoch + 1, scores[epoch]))
        trainer.epochs_done = epoch + 1
        if sign * scores[epoch] >= max(sign * score for _, score in history):  # as RecBole decides
            recorder.checkpoint_saved(trainer, f"epoch {epoch + 1}".encode())
        if points and (epoch + 1) % points == 0:
            recorder.point_saved()
        most = max(most, len(recorder._folder.names(STATES)))
    return most


def kept(recorder: StateRecorder) -> list[tuple[int, int]]:
    """Epochs that stay, and the epochs of the rule."""
    return [(state["epoch"], state["passed"]) for state in recorder.report(None)["states"]["kept"]]


def rule(scores: list[float], count: int) -> list[int]:
    """The first epochs past each fraction of the best score, by a loop over all of them."""
    best = max(scores)
    found = [next(e for e, score in enumerate(scores, 1) if score / best >= f) for f in fractions(count)]
    return [epoch for epoch in dict.fromkeys(found) if scores[epoch - 1] < best]


def test_the_fractions_are_those_of_the_method() -> None:
    assert fractions(4) == pytest.approx([0.4, 0.7, 0.9])
    assert fractions(2) == pytest.approx([2 / 3]) and fractions(3) == pytest.approx([1 / 2, 5 / 6])
    for count in range(2, 12):
        places = [0, *fractions(count), 1]
        steps = [after - before for before, after in zip(places, places[1:])]
        assert steps == sorted(steps, reverse=True) and len(fractions(count)) == count - 1


def test_the_first_epochs_past_each_fraction_stay(tmp_path: Path) -> None:
    scores = [0.1, 0.45, 0.41, 0.5, 0.75, 0.85, 0.8, 0.95, 1.0, 0.99]
    run, recorder = course(tmp_path, scores)
    assert kept(recorder) == [(2, 2), (5, 5), (8, 8)]
    states = recorder.report(None)["states"]["kept"]
    assert [state["score"] for state in states] == [0.45, 0.75, 0.95]
    assert [state["fraction"] for state in states] == [0.4, 0.7, 0.9]
    assert [run.read(state["file"], state["sha256"]) for state in states] == [b"epoch 2", b"epoch 5", b"epoch 8"]


def test_an_epoch_past_several_fractions_is_one_state(tmp_path: Path) -> None:
    assert kept(course(tmp_path / "a", [0.1, 0.8, 1.0])[1]) == [(2, 2)]
    assert kept(course(tmp_path / "b", [0.5, 0.4])[1]) == [], "the best is the first"
    assert kept(course(tmp_path / "c", [0.0, 0.0, 0.2, 0.2])[1]) == [], "equally good is no state before the best"
    assert kept(course(tmp_path / "d", [])[1]) == []


def test_where_a_lower_score_is_better_the_way_from_the_first_one_counts(tmp_path: Path) -> None:
    scores = [2.0, 1.7, 1.55, 1.2, 1.25, 1.08, 1.0, 1.3]
    assert kept(course(tmp_path, scores, bigger=False)[1]) == [(3, 3), (4, 4), (6, 6)]
    # as it does where all scores are negative
    assert kept(course(tmp_path / "b", [-2.0, -1.55, -1.2, -1.05, -1.0])[1]) == [(2, 2), (3, 3), (4, 4)]


@pytest.mark.parametrize("count", slow_but([4], [2, 4, 7]))
def test_few_candidates_lie_on_disk_and_the_rule_comes_out(tmp_path: Path, count: int) -> None:
    """Many improvements; what is kept is as near in score as the bound allows, and never before its fraction."""
    scores = [1 - 0.98 ** (epoch + 1) for epoch in range(250)]
    recorder = StateRecorder(RunFolder(tmp_path), 0, count)
    most = go_on(recorder, scores, points=3)
    assert most <= 2 * 4 * count + 1
    best, wanted = scores[-1], rule(scores, count)
    assert [passed for _, passed in kept(recorder)] == wanted
    for (epoch, _), fraction in zip(kept(recorder), fractions(count)):
        assert 0 <= scores[epoch - 1] / best - fraction < 2 / (4 * count - 1)
    few = [0.3, 0.35, 0.5, 0.6, 0.7, 0.8, 0.85, 0.92, 0.95, 1.0]
    assert [epoch for epoch, _ in kept(course(tmp_path / "few", few, count)[1])] == rule(few, count), "exactly"


def test_killed_at_any_epoch_the_same_states_stay(tmp_path: Path) -> None:
    scores = [1 - 0.9 ** (epoch + 1) + 0.05 * (epoch % 3 == 0) for epoch in range(40)]
    whole, recorder = course(tmp_path / "whole", scores, 2)
    expected = recorder.report(None)
    for killed in (1, 3, 4, 6, 11, 18, 25, 31, 39):
        point = killed - killed % 4
        run = RunFolder(tmp_path / str(killed))
        first = StateRecorder(run, 0, 2)
        go_on(first, scores[:point], points=1)
        state = first.state()
        go_on(first, scores[:killed], begin=point)  # nobody tells of a point here: what that needs must stay
        second = StateRecorder(run, 0, 2)
        second.restore(state, torch.device("cpu"))
        go_on(second, scores, begin=point, points=4)
        assert second.report(None) == expected
        assert run.names(STATES) >= [one["file"] for one in expected["states"]["kept"]]


def config_of(data: Path, **changes: Any) -> PruneConfig:
    settings = {**config_for("BPR", data), "epochs": len(SCORES), "distill_record_states": 4, **changes}
    return PruneConfig("BPR", DATASET, config_dict=settings)


@pytest.mark.parametrize(("count", "said"), [(1, "0, or 2 or more"), (-1, "distill_record_states >= 0"), (2.5, "int")])
def test_numbers_of_states_that_are_none(count: Any, said: str, tiny_data: Path) -> None:
    text = refusal(lambda: config_of(tiny_data, distill_record_states=count))
    assert text.startswith(f"distill_record_states={count} is not allowed") and said in text


def test_no_states_without_a_dense_training(tiny_data: Path) -> None:
    sparse = {"pruner": "static", "prune_target_sparsity": 0.5}
    assert config_of(tiny_data, **sparse).settings.distill_record_states == 4
    config = config_of(tiny_data, **sparse, prune_dense=False)
    assert config.settings.distill_record_states == 0
    assert "distill_record_states has no effect with prune_dense=False" in config.warnings


def test_states_change_the_run_and_not_the_training(tiny_data: Path) -> None:
    plain, recording, more = (config_of(tiny_data, distill_record_states=count) for count in (0, 4, 5))
    assert len({plain.run_hash, recording.run_hash, more.run_hash}) == 3
    assert plain.base_hash == recording.base_hash, "they can share the dense model"


# ---- whole runs ------------------------------------------------------------------------------------------------------


def train(data: Path, folder: Path, patch: pytest.MonkeyPatch, kills: bool = False) -> RunFolder:
    """A run in a working directory, whose validations score as listed; it is killed once in every epoch, or never."""
    validate, train_epoch, killed = MaskAwareTrainer._valid_epoch, MaskAwareTrainer._train_epoch, set()

    def score(self: Any, *arguments: Any, **named: Any) -> Any:
        _, result = validate(self, *arguments, **named)
        self.history[-1] = self.epochs_done, SCORES[self.epochs_done - 1]
        return SCORES[self.epochs_done - 1], result

    def die_once(self: Any, data: Any, epoch: int, *arguments: Any, **named: Any) -> Any:
        loss = train_epoch(self, data, epoch, *arguments, **named)
        if kills and epoch not in killed:
            killed.add(epoch)
            raise Killed
        return loss

    patch.setattr(MaskAwareTrainer, "_valid_epoch", score)
    patch.setattr(MaskAwareTrainer, "_train_epoch", die_once)
    patch.setattr(sys, "argv", ["pytest"])
    folder.mkdir(exist_ok=True)
    patch.chdir(folder)
    settings = {**config_for("BPR", data), "epochs": len(SCORES), "distill_record_states": 4, "prune_save_interval": 2}
    while True:
        try:
            return RunFolder(Path(run_recbole_prune("BPR", DATASET, config_dict=settings)["folder"]))
        except Killed:
            assert kills


@pytest.fixture(scope="module")
def recorded(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run that nothing disturbed."""
    with pytest.MonkeyPatch.context() as patch:
        return train(tiny_data, tmp_path_factory.mktemp("recorded"), patch)


@pytest.fixture
def copied(recorded: RunFolder, tmp_path: Path) -> RunFolder:
    """A copy of it below the working directory."""
    output = recorded.path.parents[2]
    shutil.copytree(output, tmp_path / output.name)
    return RunFolder(tmp_path / recorded.path.relative_to(output.parent))


def states_of(run: RunFolder) -> list[tuple[int, dict[str, torch.Tensor]]]:
    """Epochs and weights of a run's states, which are checkpoints with the journal's sha256; nothing else is left."""
    states, found = run.tickets()[0]["states"]["kept"], []
    for state in states:
        checkpoint = read_checkpoint(run.read(state["file"], state["sha256"]), state["file"])
        assert checkpoint.valid == {"ndcg@10": state["score"]} and checkpoint.model == "BPR"
        found.append((state["epoch"], checkpoint.state))
    assert run.names(STATES) == [state["file"] for state in states]
    return found


@pytest.mark.slow
def test_a_run_keeps_states_and_a_killed_one_the_same(
    recorded: RunFolder, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, other = states_of(recorded), states_of(train(tiny_data, tmp_path / "killed", monkeypatch, kills=True))
    assert [epoch for epoch, _ in whole] == [epoch for epoch, _ in other] == [2, 4, 5]
    for (_, one), (_, two) in zip(whole, other):
        assert all(torch.equal(one[name], two[name]) for name in one)
    tables = [state["item_embedding.weight"] for _, state in whole]
    assert not torch.equal(tables[0], tables[1]) and not torch.equal(tables[1], tables[2])
    assert not (recorded.path / "resume").exists()


def adopting(data: Path, **changes: Any) -> Experiment:
    """A run of another pruner beside those below the working directory, as it is before its first training."""
    return before_training(config_of(data, pruner="omp", **changes))


@pytest.mark.slow
def test_a_dense_model_is_shared_with_the_states_that_are_asked_for(copied: RunFolder, tiny_data: Path) -> None:
    experiment = adopting(tiny_data)
    assert experiment.tickets[0].method["adopted_from"] == copied.path.name
    assert len(states_of(experiment.folder)) == 3
    plain = adopting(tiny_data, distill_record_states=0)
    assert "states" not in plain.tickets[0].method and not plain.folder.names(STATES)
    # neither has what this one wants
    assert not adopting(tiny_data, distill_record_states=3).tickets


@pytest.mark.slow
def test_states_are_removed_by_a_command(copied: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    others = {
        file: file.read_bytes() for file in copied.path.rglob("*") if file.is_file() and file.parent.name != STATES
    }
    assert main(["clean", f"--run={copied.path}"]) == 0
    assert capsys.readouterr().out.startswith("removed 3 states, ")
    assert not copied.names(STATES)
    assert {file: file.read_bytes() for file in copied.path.rglob("*") if file.is_file()} == others
    assert main(["clean", f"--run={copied.path}"]) == 0 and "removed 0 states, 0 bytes" in capsys.readouterr().out


def test_what_cannot_be_cleaned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunFolder(tmp_path / "run")
    assert main(["clean", f"--run={run.path}"]) == 2
    assert "is no folder of a run" in capsys.readouterr().err
    run.open()
    run.write("config.yaml", b"")
    run.write(f"{STATES}/ticket-000-epoch-00001.pth", b"state")
    assert main(["clean", f"--run={run.path}"]) == BUSY
    assert "another process is working" in capsys.readouterr().err
    run.close()
    assert main(["clean", f"--run={run.path}"]) == 2
    assert "has no finished ticket yet" in capsys.readouterr().err
    assert len(run.names(STATES)) == 1


def test_states_that_no_line_names_go_at_the_end_of_a_run(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    for epoch in (1, 2):
        run.write(f"{STATES}/ticket-000-epoch-0000{epoch}.pth", b"state")
    run.append_ticket({"states": {"count": 2, "kept": [{"file": f"{STATES}/ticket-000-epoch-00002.pth"}]}})
    run.drop_resume()
    assert run.names(STATES) == [f"{STATES}/ticket-000-epoch-00002.pth"]


# ---- states as what a teacher says --------------------------------------------------------------------------------


@pytest.fixture
def reads_states(monkeypatch: pytest.MonkeyPatch) -> None:
    """A distiller that reads the states of its teachers."""
    monkeypatch.setattr(RelaxedRanking, "promises", replace(RelaxedRanking.promises, states=True))


def student_of(data: Path, *teachers: Path, **changes: Any) -> PruneConfig:
    lengths = {"distill_list_length": 30, "distill_interesting": 30}
    named = {"distiller": "rrd", "distill_teacher": [str(path) for path in teachers], **lengths}
    return PruneConfig("BPR", DATASET, config_dict={**config_for("BPR", data), **named, **changes})


def opened(data: Path, *teachers: Path, folder: RunFolder | None = None) -> Teacher:
    config = student_of(data, *teachers)
    return open_teacher(config, pupils_of(config), folder, with_states=RelaxedRanking.promises.states)


@pytest.mark.slow
def test_a_teacher_says_what_it_ranked_in_its_states(
    recorded: RunFolder, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each state ranks as the teacher does whose checkpoint it is."""
    expected = [opened(tiny_data, recorded.path / name).items_of_users for name in recorded.names(STATES)]
    assert len(opened(tiny_data, recorded.path).states) == 1, "nobody reads them"
    monkeypatch.setattr(RelaxedRanking, "promises", replace(RelaxedRanking.promises, states=True))
    folder = RunFolder(tmp_path / "student")
    folder.open()
    teacher = opened(tiny_data, recorded.path, folder=folder)
    assert teacher.identity["states"] == [2, 4, 5]
    assert len(teacher.states) == 4 and np.array_equal(teacher.states[-1], teacher.items_of_users)
    for found, own in zip(teacher.states, expected):
        assert np.array_equal(found, own) and found.dtype == np.int32
    assert not np.array_equal(expected[0], expected[1])
    by_checkpoint = opened(tiny_data, recorded.path / "checkpoints" / "ticket-000.pth")
    assert all(map(np.array_equal, by_checkpoint.states, teacher.states))
    monkeypatch.setattr(ModelTeacher, "rank_items", lambda self: pytest.fail("ranked again"))
    again = opened(tiny_data, recorded.path, folder=folder)
    assert all(map(np.array_equal, again.states, teacher.states)), "once for a run folder"
    folder.close()


@pytest.mark.slow
def test_states_that_are_missed_are_refused_with_the_way_to_have_them(
    copied: RunFolder, tiny_data: Path, tmp_path: Path, reads_states: None
) -> None:
    plain = Trained("BPR", config_for("BPR", tiny_data), tmp_path).save(tmp_path / "plain.pth")
    state = copied.path / copied.names(STATES)[0]
    for path in (plain, copied.path / "artifact", state):
        text = refusal(lambda path=path: opened(tiny_data, copied.path, path))
        assert text.startswith(f"distill_teacher={path}: it has no states") and "--distill_record_states=4" in text
    popular = Trained("Pop", config_for("Pop", tiny_data), tmp_path, epochs=1).save(tmp_path / "popular.pth")
    assert len(opened(tiny_data, popular).states) == 1, "it is not trained in epochs"
    tokens = opened(tiny_data, popular).pupils.dataset.field2id_token
    lists = tmp_path / "lists.tsv"
    lists.write_text(
        f"{tokens['user_id'][1]}\t{tokens['item_id'][1]}\t{tokens['item_id'][2]}\t{tokens['item_id'][3]}\n"
    )
    assert [len(member.states) for member in opened(tiny_data, lists, copied.path).members] == [1, 4]
    teacher = opened(tiny_data, copied.path)
    state.write_bytes(state.read_bytes() + b"more")
    assert f"{state} is corrupt" in refusal(lambda: teacher.states, StoreError)
    assert main(["clean", f"--run={copied.path}"]) == 0
    text = refusal(lambda: opened(tiny_data, copied.path))
    assert f"{state} is missing, as after recbole-prune clean" in text and "--distill_record_states=4" in text


def test_a_ticket_without_states_is_refused_with_the_one_that_has_them(tmp_path: Path) -> None:
    """Whoever names a run folder names the ticket that it exported, which need not be the dense model."""
    config: Any = {"MODEL_TYPE": ModelType.GENERAL}
    lines = [{"ticket": number, "checkpoint_file": f"checkpoints/ticket-00{number}.pth"} for number in (0, 1)]
    for states in ({}, {"states": {"count": 4, "kept": []}}):
        run = RunFolder(tmp_path / str(len(states)))
        run.append_ticket({**lines[0], **states})
        run.append_ticket(lines[1])
        for path in (run.path, run.path / lines[1]["checkpoint_file"]):
            text = refusal(lambda path=path: require_states(Named("run", path, path), config, lines[1]))
            assert text.startswith("it has no states of its training") and "name the run folder" not in text
            dense = f"name {run.path / 'checkpoints' / 'ticket-000.pth'}"
            assert (dense in text, "--distill_record_states=4" in text) == (bool(states), not states)


def test_other_states_are_another_teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RunFolder(tmp_path)
    ListStore(folder, ["a"], 5, "teacher-1", ["x", "y"]).note("known", lambda: 1)
    assert ListStore(folder, ["a"], 5, "teacher-1", ["x", "y"]).note("known", lambda: 2) == 1
    assert ListStore(folder, ["a"], 5, "teacher-2", ["x"]).note("known", lambda: 2) == 2, "each has its own"
    monkeypatch.setattr(RunFolder, "is_trained", lambda self: True)
    text = refusal(lambda: ListStore(folder, ["a"], 5, "teacher-1", ["x"]), StoreError)
    assert "the teacher changed since" in text and "its sha256 was a, x, y and is a, x;" in text
    text = refusal(lambda: ListStore(folder, ["b"], 5, "teacher-1", ["x", "y"]), StoreError)
    assert "its sha256 was a and is b;" in text


def test_teachers_that_are_trained_first_record_what_is_read(tiny_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"LightGCN": {"distill_record_states": 6, "n_layers": 1}}
    student = student_of(tiny_data, distill_teacher_models="BPR,LightGCN", distill_teacher_settings=settings)
    plain = [teacher.settings.distill_record_states for teacher in teacher_configs(student)]
    monkeypatch.setattr(RelaxedRanking, "promises", replace(RelaxedRanking.promises, states=True))
    reading = [teacher.settings.distill_record_states for teacher in teacher_configs(student)]
    assert (plain, reading) == ([0, 6], [4, 6])
    none = {"LightGCN": {"distill_record_states": 0}}
    student = student_of(tiny_data, distill_teacher_models="BPR,LightGCN", distill_teacher_settings=none)
    text = refusal(lambda: teacher_configs(student))
    assert "distill_teacher_models=LightGCN" in text and "distill_record_states must be 2 or more" in text


def test_one_teacher_is_too_few_for_some(tiny_data: Path, tmp_path: Path) -> None:
    lists = tmp_path / "lists.tsv"
    lists.write_text("1\t2\n")
    method: Any = SimpleNamespace(promises=Promises(many_teachers=True))
    one, first = student_of(tiny_data, lists), student_of(tiny_data, distill_teacher_models=["BPR"])
    for config, named in ((one, str(lists)), (first, "BPR")):
        text = refusal(lambda config=config: require_teachers(method, config))
        assert f"there is one, {named}:" in text and "the method for one is --distiller=rrd" in text
    require_teachers(method, student_of(tiny_data, distill_teacher_models=["BPR", "LightGCN"]))
