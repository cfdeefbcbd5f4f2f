"""HetComp in a training and in a run: killed in any phase both end equal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distilling import Classroom, require_equal
from hetcomp_lab import METHOD, Lab
from teachers import refusal
from training_bench import MemoryFiles, scramble_random_streams

from recbole_prune.teachers.ensemble import consensus
from recbole_prune.training import codec

pytestmark = pytest.mark.usefixtures("no_tensorboard")


KILLED: list[tuple[str, dict[str, Any]]] = [
    ("BPR", {"distill_parity": "official", "distill_own_loss": 0.5}),
    ("MultiVAE", {"embedding_size": 8}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("model", "changes"), KILLED)
def test_a_training_that_is_killed_in_any_phase_ends_equal(
    model: str, changes: dict[str, Any], tiny_data: Path
) -> None:
    lab = Lab(tiny_data, model, **changes)
    whole = lab.trainer()
    lab.bench.fit(whole)
    part = whole.session.parts[0]
    report = part.report(None)[METHOD]
    assert report["mean_states"] == [2, 0, 1] and 2 <= report["order_from_epoch"] <= 6
    teachers = [member.states[-1] for member in lab.members]
    assert changes or np.array_equal(part._lists, consensus(teachers, 100)[0])
    states = [codec.decode(whole.files.states[epoch][0]) for epoch in sorted(whole.files.states)]
    levels = [state["parts"]["distiller"]["state"][METHOD]["levels"].sum() for state in states]
    assert levels[0] == 0 < levels[1] < levels[-1] and levels == sorted(levels)
    for epoch, (state, checkpoint) in whole.files.states.items():
        if epoch not in (1, 2, report["order_from_epoch"], 7):
            continue
        lab = Lab(tiny_data, model, **changes)
        scramble_random_streams()
        resumed = lab.trainer(MemoryFiles(checkpoint), start=codec.decode(state))
        resumed.start_epoch = epoch
        lab.bench.fit(resumed)
        assert codec.encode(without_clocks(resumed)) == codec.encode(without_clocks(whole)), f"from epoch {epoch}"


def without_clocks(trainer: Any) -> Any:
    """A resume state without clocks."""
    state = trainer.resume_state()
    state["trainer"] = {name: value for name, value in state["trainer"].items() if not name.endswith("seconds")}
    del state["parts"]["distiller"]["state"]["seconds"]
    return state


@pytest.mark.slow
def test_a_run_with_recorded_states_is_killed_and_ends_equal(tiny_data: Path, tmp_path: Path) -> None:
    """In the course of its levels, and when order is learned; what teachers rank is computed once."""
    room = Classroom("BPR", tiny_data, tmp_path)
    lesson = {**room.lesson(METHOD), "epochs": 7, "distill_refresh": 1, "distill_threshold": 1.0, "learning_rate": 0.01}
    lesson["distill_teacher_settings"] = {
        name: {**settings, "epochs": 8} for name, settings in lesson["distill_teacher_settings"].items()
    }
    whole = room.run(**lesson).read()
    members = whole.spy.taught[0].part.teacher.members
    final = [len(member.states) - 1 for member in members]
    assert sum(final) >= 2, "states were recorded"
    assert all(np.array_equal(member.states[-1], member.items_of_users) for member in members)
    [record] = whole.records
    assert record[METHOD]["mean_states"] == final and 2 <= record[METHOD]["order_from_epoch"] <= 5
    lists = consensus([member.items_of_users for member in members], 100)[0]
    assert np.array_equal(whole.spy.taught[0].part._lists, lists), "in the end what the teachers rank together"
    for epoch in (record[METHOD]["order_from_epoch"] - 1, 6):
        room.kill(lesson, epoch)
        again = room.run(**lesson)
        assert f"continues after epoch {epoch}" in again.log
        require_equal(whole, again)


@pytest.mark.slow
def test_one_teacher_is_refused_before_it_is_trained(tiny_data: Path, tmp_path: Path) -> None:
    room = Classroom("BPR", tiny_data, tmp_path)
    one = {**room.lesson(METHOD), "distill_teacher_models": ["BPR"], "distill_teacher_settings": {}}
    assert "--distiller=rrd" in refusal(lambda: room.run(**one))
    assert not list(tmp_path.rglob("tickets.jsonl"))
