"""DCD: the numbers of methods/more_methods.md A3, and which errors the student is corrected by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from teachers import Beginner, checkpoint, refusal, student_config

from recbole_prune.distillers.base import said_of_loss
from recbole_prune.distillers.dual_correction import draw_corrections, error_weights, ranks_among, ranks_within
from recbole_prune.distillers.losses.listwise import plackett_luce

A, B, C, D = 0.5, 1.0, -0.2, 0.6  # the student's scores of the teacher's list
TEN, FLOOR = 10.0, 1e-5


def test_ranks_of_the_check() -> None:
    within = ranks_within(torch.tensor([[-3.0, 0.0, -7.0, -2.0]]))[0]  # as the ranks 3, 0, 7, 2 order them
    assert within.tolist() == [2, 0, 3, 1] and (within - torch.arange(4)).tolist() == [2, -1, 1, -2]
    ties = ranks_within(torch.tensor([[1.0, 2.0, 1.0, float("nan")]]))
    assert ties.tolist() == [[1, 0, 2, 3]], "of equals the first, NaN last"
    everything = torch.tensor([[99.0, 7, 6, 5, 4, 3, 2, 1, 0]])  # padding, then eight items
    assert ranks_among(everything, torch.tensor([[4, 1, 8, 3]])).tolist() == [[3, 0, 7, 2]]


def test_weights_of_the_check() -> None:
    errors = np.array([3, -1, 5, -1])
    under, over = error_weights(errors, TEN), error_weights(-errors, TEN)
    assert under == pytest.approx([0.291313, FLOOR, 0.462117, FLOOR], abs=1e-6)
    assert over == pytest.approx([FLOOR, 0.099668, FLOOR, 0.099668], abs=1e-6)
    assert under / under.sum() == pytest.approx([0.386638, 0.000013, 0.613335, 0.000013], abs=1e-6)


def test_losses_of_the_check() -> None:
    over = torch.tensor([[B, D]])
    assert plackett_luce(torch.tensor([[A, C]]), over).item() == pytest.approx(3.325833, abs=1e-6)
    assert plackett_luce(torch.tensor([[C, A]]), over).item() == pytest.approx(3.469825, abs=1e-6)


def test_draws() -> None:
    """In the order of the draw the first follows the weights; in the teacher's order it stands first."""
    ids, errors = np.tile([10, 11, 12, 13], (200_000, 1)), np.tile([3, -1, 5, -1], (200_000, 1))
    under, over = draw_corrections(ids, errors, 2, TEN, False, np.random.default_rng(0))
    shares = np.bincount(under[:, 0] - 10, minlength=4) / len(ids)
    assert shares == pytest.approx([0.386638, 0.000013, 0.613335, 0.000013], abs=0.004)
    assert (under[:, 0] > under[:, 1]).mean() > 0.5 and set(over.flatten()) >= {11, 13}
    sorted_, again = draw_corrections(ids, errors, 2, TEN, True, np.random.default_rng(0))
    assert (np.sort(under, 1) == sorted_).all() and (np.sort(over, 1) == again).all()


def test_who_has_nothing_too_low_is_left_out() -> None:
    ids = np.array([[10, 11, 12], [10, 11, 12], [10, 11, -1], [-1, -1, -1]])
    errors = np.array([[0, 0, 0], [1, -1, 0], [0, 0, 5], [0, 0, 0]])
    under, over = draw_corrections(ids, errors, 3, TEN, True, np.random.default_rng(0))
    assert under.tolist() == over.tolist() == [[-1] * 3, [10, 11, 12], [-1] * 3, [-1] * 3]
    short = draw_corrections(ids[2:3], np.array([[1, -1, 0]]), 3, TEN, True, np.random.default_rng(0))
    assert short.under.tolist() == short.over.tolist() == [[10, 11, -1]]


# ---- in a training ---------------------------------------------------------------------------------------------------

COUNTS = {"distill_interesting": 6, "distill_item_interesting": 4, "distill_list_length": 20}


@torch.no_grad()
def scores_of(model: Any) -> torch.Tensor:
    found: torch.Tensor = model.user_embedding.weight @ model.item_embedding.weight.t()
    return found


@pytest.fixture
def lesson(tiny_data: Path, tmp_path: Path) -> Any:
    _, file = checkpoint(tiny_data, tmp_path)
    return lambda **changes: Beginner("dcd", tiny_data, file, tmp_path, **COUNTS, **changes)


def errors_by_hand(lists: np.ndarray, scores: torch.Tensor) -> list[list[int]]:
    """Of the listed ids of each row but the first: the place among the row's listed ones less the teacher's."""
    found = []
    for row in range(1, len(lists)):
        listed = [int(one) for one in lists[row] if one >= 0]
        order = sorted(listed, key=lambda one: -float(scores[row, one]))
        found.append([order.index(one) - place for place, one in enumerate(listed)])
    return found


def test_errors_are_within_the_teachers_lists(lesson: Any) -> None:
    beginner = lesson()
    part, student, teacher = beginner.part, beginner.student, beginner.teacher
    batch = beginner.batch()
    terms = part.terms(student, batch)
    assert list(terms) == ["dcd_users", "dcd_items"] and all(total > 0 for _, total in terms.values())
    scores = scores_of(student)
    for side, lists, table in (
        ("users", teacher.items_of_users, scores),
        ("items", teacher.users_of_items, scores.t()),
    ):
        errors = part._errors[side]
        for row, expected in enumerate(errors_by_hand(lists, table), 1):
            assert errors[row, : len(expected)].tolist() == expected
    assert student.training
    expected = 0.0
    users, drawn = batch["user_id"].unique(), part._of_users(batch["user_id"].unique())
    for user, under, over in zip(users.tolist(), *drawn):
        ranked = teacher.items_of_users[user].tolist()
        assert [ranked.index(item) for item in under] == sorted(ranked.index(item) for item in under)
        expected += plackett_luce(scores[user, under][None], scores[user, over][None]).item()
    assert terms["dcd_users"][1].item() == pytest.approx(expected, rel=1e-5)
    part._batch = 1
    assert not np.array_equal(part._of_users(users).under, drawn.under), "drawn anew for every batch"


def test_errors_are_kept_for_some_epochs_and_stand_in_resume_points(lesson: Any) -> None:
    beginner, other = lesson(), lesson()
    part, student, batch = beginner.part, beginner.student, beginner.batch()
    part.terms(student, batch)
    first = part._errors
    with torch.no_grad():
        student.item_embedding.weight.normal_()
    for epoch in (1, 2):
        part.epoch = epoch
        part.begin_epoch()
        assert part._errors is first
    other.part.epoch = 2
    other.part.restore(part.state(), torch.device("cpu"))
    other.part.begin_epoch()
    with torch.no_grad():
        other.student.item_embedding.weight.copy_(student.item_embedding.weight)
    mine, theirs = (one.terms(student, batch)["dcd_users"][1] for one in (part, other.part))
    assert mine.item() == theirs.item()
    part.epoch = 3
    part.begin_epoch()
    assert part.state()["errors"] == {}, "nothing is kept that will be computed anew"
    part.terms(student, batch)
    assert not np.array_equal(part._errors["users"], first["users"])
    late = lesson()
    late.part.epoch = 1
    late.part.begin_epoch()
    assert late.part.terms(late.student, batch)["dcd_users"][1] > 0, "a rewound ticket begins without errors"


def test_as_the_third_party_does(lesson: Any) -> None:
    beginner = lesson(distill_parity="kds")
    part, student = beginner.part, beginner.student
    batch = beginner.batch()
    assert list(part.terms(student, batch)) == ["dcd_users"]
    scores, lists = scores_of(student), beginner.teacher.items_of_users
    for user in range(1, len(lists)):
        above = [int((scores[user, 1:] > scores[user, item]).sum()) - place for place, item in enumerate(lists[user])]
        assert part._errors["users"][user].tolist() == above, "among all items, also those in training"
    users = batch["user_id"].unique()
    drawn = part._of_users(users).under
    part._batch = 5
    assert np.array_equal(part._of_users(users).under, drawn), "once an epoch"
    ranks = [[lists[user].tolist().index(item) for item in row] for user, row in zip(users.tolist(), drawn)]
    assert any(row != sorted(row) for row in ranks), "in the order of the draw"
    part.epoch = 1
    part.begin_epoch()
    assert not part._errors, "every epoch"


def test_parities_belong_to_methods(tiny_data: Path) -> None:
    for method, parity in (("dcd", "official"), ("rd", "kds")):
        changes = {"distiller": method, "distill_teacher_model": "BPR", "distill_parity": parity}
        message = refusal(lambda changes=changes: student_config(tiny_data, None, **changes))
        assert f"distill_parity={parity} is not allowed with --distiller={method}: it must be corrected or" in message


def test_nothing_is_said_of_a_side_that_is_not_there(tiny_data: Path) -> None:
    sides = []
    for parity in ("corrected", "kds"):
        changes = {"distiller": "dcd", "distill_teacher_model": "BPR", "distill_parity": parity}
        said = said_of_loss(student_config(tiny_data, None, **changes).settings, 100)
        sides.append([line.partition("=")[0] for line in said if "_weight=" in line])
    assert sides == [["distill_weight", "distill_item_weight"], ["distill_weight"]]


def test_whose_code_is_followed_is_said(tiny_data: Path) -> None:
    for method, parity in (("dcd", "kds"), ("rd", "official"), ("rd", "corrected")):
        changes = {"distiller": method, "distill_teacher_model": "BPR", "distill_parity": parity}
        said = said_of_loss(student_config(tiny_data, None, **changes).settings, 100)
        about = [line for line in said if line.startswith(f"distill_parity={parity}: ")]
        assert len(about) == (parity != "corrected")


@pytest.mark.parametrize("own", [0, 0.5])
def test_a_loss_that_is_not_there_is_no_measure(tiny_data: Path, own: float) -> None:
    changes = {"distiller": "hetcomp", "distill_teacher_models": ["BPR", "NeuMF"], "distill_own_loss": own}
    said = said_of_loss(student_config(tiny_data, None, **changes).settings, 100)
    weights = [line for line in said if "_weight=" in line]
    assert len(weights) == 2 and all(("beside RecBole's mean" in line) == bool(own) for line in weights)
    assert all(("distill_own_loss=0" in line) == (not own) for line in weights)
