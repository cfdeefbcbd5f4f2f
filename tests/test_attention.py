"""SAD on models: which features it compares, rows, logits by the student's loss, what it says."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from recbole.data.interaction import Interaction
from teachers import Beginner, checkpoint, refusal

from recbole_prune.anatomy.feature_points.table import feature_points
from recbole_prune.anatomy.logits import pair_logits
from recbole_prune.anatomy.vectors import shared_propagation
from recbole_prune.distillers.attention import logits_of
from recbole_prune.distillers.losses.attention import MOST_ROWS
from recbole_prune.distillers.losses.divergence import softmax_divergence

OVER_ALL_ITEMS = ("MultiVAE", "CDAE", "SASRec", "GRU4Rec", "STAMP")


def lesson_of(data: Path, folder: Path, teacher: str, student: str, **changes: Any) -> Beginner:
    """An untrained teacher and an untrained student of other weights."""
    file = checkpoint(data, folder, teacher)[1]
    whole = student in OVER_ALL_ITEMS
    return Beginner("sad", data, file, folder, student, whole_rows=whole, distill_label_scale=4.0, **changes)


def in_a_step(lesson: Beginner, batch: Interaction) -> dict[str, torch.Tensor]:
    """What is added to the loss of a batch."""
    student = lesson.student
    with shared_propagation(student, student.noted):
        student.loss_in_work = student.calculate_loss(batch)
        found: dict[str, torch.Tensor] = lesson.part.losses(student, batch)
    return found


def first_batch(lesson: Beginner) -> Interaction:
    found: Interaction = lesson.teacher.pupils.example
    return found


def test_a_lesson(tiny_data: Path, tmp_path: Path) -> None:
    """A graph teaches a factorisation: rows are drawn among all pairs, the list is that of both items."""
    lesson = lesson_of(tiny_data, tmp_path, "LightGCN", "BPR")
    loss, seen = lesson.part._loss, []
    assert len(loss.network.queries) == 9 and len(loss.network.keys) == 3 and loss.network.width == 32
    loss.register_forward_pre_hook(
        lambda _, inputs: seen.append([len(each.values) for side in inputs for each in side])
    )
    batch = first_batch(lesson)
    found = in_a_step(lesson, batch)
    assert seen == [[MOST_ROWS] * 12] and len(batch) > MOST_ROWS
    assert set(found) == {"sad", "sad_logits"} and all(float(value.detach()) > 0 for value in found.values())

    student, teacher = lesson.student, lesson.teacher
    users, items = batch["user_id"], torch.stack([batch["item_id"], batch["neg_item_id"]], dim=1)
    mine, theirs = pair_logits(student, users, items), teacher.pair_logits(users, items)
    expected = 0.9 * softmax_divergence(mine, theirs, 4.0).mean()
    torch.testing.assert_close(found["sad_logits"], expected)

    sum(found.values()).backward()
    for parameter in (*student.parameters(), *lesson.part.parameters().values()):
        assert parameter.grad is not None and parameter.grad.isfinite().all() and bool(parameter.grad.any())
    lesson.part.end_epoch(_epoch(1))
    own = student.loss_in_work.detach()
    told = lesson.part.report(None)["distill_feature_share"]
    assert told == pytest.approx(float(found["sad"].detach() / own), rel=1e-3)
    assert lesson.part.state()["share"] == told


def _epoch(done: int) -> Any:
    class Done:
        epochs_done = done

    return Done()


PAIRS = [
    ("MultiVAE", "BPR", 3, 3),
    ("ConvNCF", "NeuMF", 1, 3),
    ("NeuMF", "BPR", 3, 3),
    ("BPR", "NeuMF", 3, 3),
    ("ConvNCF", "ConvNCF", 2, 3),
    ("SASRec", "GRU4Rec", 2, 2),
    ("NARM", "STAMP", 1, 2),
    ("BPR", "MultiVAE", 1, 3),
]


@pytest.mark.slow
@pytest.mark.parametrize(("teacher", "student", "theirs", "mine"), PAIRS)
@pytest.mark.parametrize("value", ["relation", "project"])
def test_classes_may_differ(
    teacher: str, student: str, theirs: int, mine: int, value: str, tiny_data: Path, tmp_path: Path
) -> None:
    """As many features as go together; all of the student that these reach learns."""
    lesson = lesson_of(tiny_data, tmp_path, teacher, student, distill_value=value)
    network = lesson.part._loss.network
    assert (len(network.queries), len(network.keys)) == (theirs, mine)
    found = in_a_step(lesson, first_batch(lesson))
    assert all(value.isfinite() and float(value.detach()) > 0 for value in found.values())
    found["sad"].backward()
    assert any(each.grad is not None and bool(each.grad.any()) for each in lesson.student.parameters())


@pytest.mark.slow
def test_a_batch_of_one_row_is_left_out(tiny_data: Path, tmp_path: Path) -> None:
    lesson = lesson_of(tiny_data, tmp_path, "NeuMF", "NeuMF")
    found = in_a_step(lesson, first_batch(lesson)[:1])
    assert float(found["sad"]) == 0 and float(found["sad_logits"].detach()) > 0


@pytest.mark.slow
def test_one_feature_is_said_to_learn_from_all(
    tiny_data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "recbole_prune")
    lesson_of(tiny_data, tmp_path, "MultiVAE", "CDAE")
    assert "h_act is all that the student says in vectors: nothing is picked" in caplog.text


@pytest.mark.slow
def test_a_teacher_without_a_kind_in_common_is_refused(tiny_data: Path, tmp_path: Path) -> None:
    message = refusal(lambda: lesson_of(tiny_data, tmp_path, "SASRec", "STAMP"))
    assert "has nothing to compare with the student: its layers say sequences, those of STAMP vectors" in message


@pytest.mark.slow
def test_width_and_parity(tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert lesson_of(tiny_data, tmp_path, "BPR", "BPR", distill_attention_width=7).part._loss.network.width == 7
    monkeypatch.setattr("recbole_prune.distillers.attention._SMALL", 0)
    lesson = lesson_of(tiny_data, tmp_path, "BPR", "BPR", distill_parity="official")
    assert lesson.part._loss.network.width == 128 and lesson.part._loss.official


LOGITS = [("BPR", 2), ("NeuMF", 1), ("MultiVAE", 0), ("SASRec", 0)]


@pytest.mark.slow
@pytest.mark.parametrize(("model", "count"), LOGITS)
def test_logits_are_those_that_the_loss_compares(model: str, count: int, tiny_data: Path, tmp_path: Path) -> None:
    lesson = lesson_of(tiny_data, tmp_path, model, model)
    pupils, batch = lesson.teacher.pupils, first_batch(lesson)
    for source in (lesson.student, lesson.teacher):
        assert logits_of(pupils, source, batch).shape == (len(batch), count or pupils.item_count - 1)


@pytest.mark.slow
def test_points_hold_no_model(tiny_data: Path, tmp_path: Path) -> None:
    """They stay for a training, and a deep copy is read with them too."""
    model = checkpoint(tiny_data, tmp_path, "ConvNCF")[0].model
    points, known = feature_points(model), weakref.ref(model)
    assert points.points
    del model
    gc.collect()
    assert known() is None
