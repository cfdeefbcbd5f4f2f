"""CD: which items get soft labels, and that drawing them leaves no trace in the student."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from teachers import Beginner, checkpoint, open_for

from recbole_prune.anatomy.vectors import shared_propagation
from recbole_prune.data.random_streams import have_moved, random_state

DRAWS = 200
SHORT = 5  # of the lists that other methods keep


class Lesson(Beginner):
    """CD, ready to teach."""

    def __init__(self, data: Path, teacher: Path, folder: Path, model: str = "BPR", **changes: Any) -> None:
        changes = {"distill_list_length": SHORT, "distill_interesting": DRAWS, **changes}
        super().__init__("cd", data, teacher, folder, model, **changes)

    def drawn(self) -> tuple[Any, torch.Tensor, torch.Tensor]:
        """Users or rows of a batch, the items that are drawn for them, their labels before the sigmoid."""
        rows, (items, logits) = self.part.labelled(self.student, self.batch())
        return rows, items, logits


def mean_rank(items: torch.Tensor, scores: torch.Tensor, consumed: Any) -> float:
    """The mean place of drawn items among all that are not consumed, as a share of them; each must be one of these."""
    shares = []
    for row, drawn in enumerate(items.tolist()):
        left = [item for item in range(1, scores.shape[1]) if item not in consumed[row]]
        order = sorted(left, key=lambda item: -scores[row, item])
        places = {item: place / len(left) for place, item in enumerate(order)}
        shares.append(np.mean([places[item] + 0.5 / len(left) for item in drawn]))
    return float(np.mean(shares))


@torch.no_grad()
def scores_of(model: Any, users: torch.Tensor) -> torch.Tensor:
    model.eval()
    return model.full_sort_predict({"user_id": users}).view(len(users), -1)


def test_all_unseen_items_are_drawn_by_the_teachers_ranks(tiny_data: Path, tmp_path: Path) -> None:
    trained, file = checkpoint(tiny_data, tmp_path)
    lesson = Lesson(tiny_data, file, tmp_path, distill_guide="teacher")
    users, items, logits = lesson.drawn()
    scores = scores_of(trained.model, users)
    consumed = lesson.teacher.pupils.consumed_by(users)
    assert mean_rank(items, scores, consumed) == pytest.approx(1 / 3, abs=0.01)
    assert torch.allclose(logits, scores.gather(1, items), atol=1e-6)
    assert len(items[0].unique()) > 4 * SHORT, "not the first of the teacher's list only"
    again, other = lesson.drawn()[1], Lesson(tiny_data, file, tmp_path, distill_guide="teacher")
    assert torch.equal(again, items) and torch.equal(other.drawn()[1], items)
    other.part.epoch = 1
    other.part.begin_epoch()
    assert not torch.equal(other.drawn()[1], items)
    losses = lesson.part.losses(lesson.student, lesson.batch())
    losses["cd"].backward()
    assert losses["cd"] > 0 and bool(lesson.student.item_embedding.weight.grad.any())


@pytest.mark.slow
@pytest.mark.parametrize("model", ["BPR", "LightGCN"])
def test_the_student_ranks_as_it_is_at_the_begin_of_an_epoch(tiny_data: Path, tmp_path: Path, model: str) -> None:
    trained, file = checkpoint(tiny_data, tmp_path)
    lesson = Lesson(tiny_data, file, tmp_path, model)
    torch.manual_seed(2)
    before = random_state()
    with shared_propagation(lesson.student):
        loss = lesson.part.losses(lesson.student, lesson.batch())["cd"]
    loss.backward()
    assert not have_moved(before)
    assert all(module.training for module in lesson.student.modules())
    assert getattr(lesson.student, "restore_user_e", None) is None
    assert bool(lesson.student.item_embedding.weight.grad.any()), "what evaluation computed has no part in the loss"
    users, items, logits = lesson.drawn()
    consumed, scores = lesson.teacher.pupils.consumed_by(users), scores_of(lesson.student, users)
    assert mean_rank(items, scores, consumed) == pytest.approx(1 / 3, abs=0.01)
    assert torch.allclose(logits, scores_of(trained.model, users).gather(1, items), atol=1e-6)
    assert mean_rank(items, scores_of(trained.model, users), consumed) > 0.4, "the teacher ranks otherwise"
    with torch.no_grad():
        lesson.student.item_embedding.weight.normal_()
    assert torch.equal(lesson.drawn()[1], items)
    lesson.part.begin_epoch()
    users, later, _ = lesson.drawn()
    assert mean_rank(later, scores_of(lesson.student, users), consumed) == pytest.approx(1 / 3, abs=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("guide", ["student", "teacher"])
def test_rows_are_ranked_batch_by_batch(tiny_data: Path, tmp_path: Path, guide: str) -> None:
    trained, file = checkpoint(tiny_data, tmp_path, "SASRec")
    lesson = Lesson(tiny_data, file, tmp_path, "GRU4Rec", distill_guide=guide)
    batch, items, logits = lesson.drawn()
    ranked = {"student": lesson.student, "teacher": trained.model}
    with torch.no_grad():
        scores = {name: model.eval().full_sort_predict(batch).view(len(batch), -1) for name, model in ranked.items()}
    consumed = lesson.teacher.pupils.consumed_by(batch)
    assert mean_rank(items, scores[guide], consumed) == pytest.approx(1 / 3, abs=0.01)
    assert torch.allclose(logits, scores["teacher"].gather(1, items), atol=1e-5)
    lesson.student.train()
    assert lesson.part.losses(lesson.student, batch)["cd"] > 0 and lesson.student.training
    assert not torch.equal(lesson.drawn()[1], items)


def test_of_a_file_listed_items_are_drawn(tiny_data: Path, tmp_path: Path) -> None:
    """Four items for each user, with the scores 4, 3, 2 and 1."""
    trained, _ = checkpoint(tiny_data, tmp_path)
    dataset = trained.train_data._dataset
    users, items = (dataset.field2id_token[field][1:].tolist() for field in ("user_id", "item_id"))
    file = tmp_path / "lists.jsonl"
    lines = [
        {"user": user, "items": [items[(place + k) % len(items)] for k in range(4)], "scores": [4, 3, 2, 1]}
        for place, user in enumerate(users[:-1])
    ]
    file.write_text("\n".join(map(json.dumps, lines)))
    lesson = Lesson(tiny_data, file, tmp_path, distill_guide="teacher")
    everyone = torch.arange(1, lesson.teacher.pupils.user_count)
    drawn, logits = lesson.part.label(lesson.student, everyone, np.random.default_rng(0))
    lists = lesson.teacher.items_of_users
    assert (drawn[-1] == -1).all() and logits[-1].isnan().all()
    for user in range(1, len(everyone)):
        listed = lists[user][lists[user] >= 0]
        assert set(drawn[user - 1].tolist()) == (set(listed.tolist()) or {-1})
    full = [user - 1 for user in range(1, len(everyone)) if lists[user, 3] >= 0]
    counts = np.array([(logits[full] == value).sum() for value in (4, 3, 2, 1)])
    assert counts / counts.sum() == pytest.approx(np.array([7, 5, 3, 1]) / 16, abs=0.02)
    assert lesson.part.losses(lesson.student, lesson.batch())["cd"].isfinite()
    by_student, _ = Lesson(tiny_data, file, tmp_path).part.label(lesson.student, everyone, np.random.default_rng(0))
    assert not torch.equal(by_student, drawn)
    assert all(set(mine) == set(theirs) for mine, theirs in zip(by_student.tolist(), drawn.tolist()))


@pytest.mark.slow
@pytest.mark.parametrize("model", ["SASRec", "NeuMF", "EASE", "LightGCN", "MultiVAE"])
def test_logits_of_pairs_are_those_of_rows(tiny_data: Path, tmp_path: Path, model: str) -> None:
    _, file = checkpoint(tiny_data, tmp_path, model)
    for student in ("BPR", "GRU4Rec"):
        teacher = open_for(tiny_data, file, student, of_rows=student == "GRU4Rec")
        batch = teacher.pupils.dataset.inter_feat[np.arange(8)]
        items = torch.from_numpy(np.random.default_rng(0).integers(1, teacher.pupils.item_count, (8, 6)))
        for rows in (batch, batch["user_id"]) if student == "BPR" or model != "SASRec" else (batch,):
            found = teacher.pair_logits(rows, items.masked_fill(items == items[2, 2], -1))
            expected = teacher.row_logits(rows).gather(1, items).masked_fill(items == items[2, 2], torch.nan)
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5, equal_nan=True)
