"""UnKD: the numbers of methods/more_methods.md A4, its groups, and the pairs that it learns from."""

from __future__ import annotations

from math import exp
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from marks import slow_but
from teachers import Beginner, checkpoint

from recbole_prune.distillers.debiased import draw_pairs, geometric_ranks, popularity_groups, preference_loss
from recbole_prune.teachers.ranked_lists import split_by_groups

COUNTS = [10, 8, 6, 4, 3, 3, 2, 2, 1, 1]


def grouped(counts: list[int], wanted: int) -> list[list[int]]:
    """The counts of each group; padding has a count that must not matter."""
    table = np.array([99, *counts])
    groups = popularity_groups(table, wanted)
    assert sorted(np.concatenate(groups).tolist()) == list(range(1, len(table)))
    assert all((np.diff(group) > 0).all() for group in groups)
    return [sorted(table[group].tolist(), reverse=True) for group in groups]


def test_groups_of_the_check() -> None:
    assert grouped(COUNTS, 2) == [[10, 8], [6, 4, 3, 3, 2, 2, 1, 1]]
    assert grouped(COUNTS, 3) == [[10], [8], [6, 4, 3], [3, 2, 2, 1, 1]]
    assert grouped(COUNTS, 4) == [[10], [8], [6, 4], [3, 3, 2, 2, 1, 1]]


def test_groups_at_the_ends() -> None:
    assert grouped(COUNTS, 1) == [COUNTS]
    assert grouped([90, 5, 3, 2], 10) == [[90], [5, 3, 2]], "a lone item is closed with itself"
    assert grouped([90, 1], 2) == [[90, 1]], "the rest joins the last group"
    assert grouped([0, 4, 0, 4], 2) == [[4], [4, 0, 0]], "what nobody consumed stands in the last"
    assert grouped([1, 1, 1], 50) == [[1], [1], [1]]


def test_shares_of_the_check() -> None:
    """What a uniform number stands for follows from the weights; of these the numbers of the check."""
    weights = np.exp(-np.arange(1, 1001) / 20)
    shares = weights / weights.sum()
    ends, few = shares.cumsum()[:200], np.full(200, 1000)
    assert (geometric_ranks(ends - 1e-9, few, 20.0) == np.arange(200)).all()
    assert (geometric_ranks(ends + 1e-9, few, 20.0) == np.arange(1, 201)).all()
    assert (shares**2).sum() == pytest.approx(0.024995, abs=1e-6)
    pairs = np.triu(np.outer(shares, shares), 1)
    better, worse = (pairs.sum(axis) @ np.arange(1000) / pairs.sum() for axis in (1, 0))
    assert (better, worse) == pytest.approx((9.508332, 30.012498), abs=1e-5)


@pytest.mark.parametrize(("length", "sharpness"), [(1000, 20.0), (5, 2.0), (3, 1e9), (2, 0.05)])
def test_pairs_are_two_draws_that_differ(length: int, sharpness: float) -> None:
    pairs = draw_pairs(np.array([length]), 100_000, sharpness, np.random.default_rng(0)).reshape(2, -1)
    assert (pairs[0] >= 0).all() and (pairs[0] < pairs[1]).all() and (pairs[1] < length).all()
    if sharpness == 20:
        assert pairs.mean(1) == pytest.approx([9.508332, 30.012498], abs=0.3)
        return
    weights = np.exp(-np.arange(length) / sharpness)
    expected = np.triu(np.outer(weights, weights), 1)
    found = np.bincount(pairs[0] * length + pairs[1], minlength=length**2).reshape(length, length) / 100_000
    assert found == pytest.approx(expected / expected.sum(), abs=0.006)


def test_short_lists_have_no_pairs() -> None:
    assert draw_pairs(np.array([0, 1, 2]), 2, 20.0, np.random.default_rng(0)).tolist() == [
        [-1] * 4, [-1] * 4, [0, 0, 1, 1],
    ]  # fmt: skip


def test_the_loss_of_the_check() -> None:
    better = torch.tensor([[0.5, 1.3], [0.3, float("nan")], [float("nan")] * 2], requires_grad=True)
    worse = torch.tensor([[0.2, 1.0], [0.0, 1.0], [1.0, 1.0]])
    losses = preference_loss(better, worse)
    assert losses.tolist() == pytest.approx([0.554355, 0.554355, 0.0], abs=1e-6)
    losses.sum().backward()
    assert better.grad is not None and bool(better.grad.isfinite().all())


def test_lists_are_split_in_their_order() -> None:
    lists = np.array([[7, 2, 5, 1, -1], [3, -1, -1, -1, -1]])
    found = split_by_groups(lists, [np.array([1, 2, 3]), np.array([5, 7])])
    assert found.tolist() == [[[2, 1, -1, -1, -1], [7, 5, -1, -1, -1]], [[3, -1, -1, -1, -1], [-1] * 5]]


MODELS = ["BPR", "LightGCN", "SASRec"]


@pytest.mark.parametrize("model", slow_but(["BPR"], MODELS))
def test_pairs_are_the_teachers_within_a_group(tiny_data: Path, tmp_path: Path, model: str) -> None:
    trained, file = checkpoint(tiny_data, tmp_path, model)
    changes: dict[str, Any] = {"distill_groups": 3, "distill_interesting": 9, "distill_list_length": 20}
    lesson = Beginner("unkd", tiny_data, file, tmp_path, "GRU4Rec" if model == "SASRec" else model, **changes)
    part, batch = lesson.part, lesson.batch()
    pupils = lesson.teacher.pupils
    rows = batch if pupils.of_rows else batch["user_id"].unique()
    lists = lesson.teacher.rank_in_groups(rows, part.groups)
    asked = batch if pupils.of_rows else type(batch)({"user_id": rows})
    with torch.no_grad():
        scores = trained.model.full_sort_predict(asked).view(len(rows), -1)
    consumed = pupils.consumed_by(rows)
    for row, own in enumerate(lists.tolist()):
        for group, listed in zip(part.groups, own):
            left = [item for item in group.tolist() if item not in consumed[row]]
            expected = sorted(left, key=lambda item: -float(scores[row, item]))[:20]
            assert [item for item in listed if item >= 0] == expected
    loss = part.losses(lesson.student, batch)["unkd"]
    loss.backward()
    assert loss > 0
    if pupils.of_rows:
        return
    drawn = part._of_users[rows.numpy()]
    for own, pairs in zip(lists, drawn):
        for listed, (better, worse) in zip(own.tolist(), pairs.reshape(len(own), 2, -1)):
            assert all(listed.index(one) < listed.index(two) for one, two in zip(better.tolist(), worse.tolist()))
    assert drawn.shape[2] == 2 * 3
    part.epoch = 1
    part.begin_epoch()
    assert not np.array_equal(part._of_users[rows.numpy()], drawn)


def test_a_file_of_ranked_lists_is_enough(tiny_data: Path, tmp_path: Path) -> None:
    trained, _ = checkpoint(tiny_data, tmp_path)
    dataset = trained.train_data._dataset
    users, items = (dataset.field2id_token[field][1:].tolist() for field in ("user_id", "item_id"))
    file = tmp_path / "lists.tsv"
    file.write_text("".join("\t".join([user, *items]) + "\n" for user in users), encoding="utf-8")
    lesson = Beginner("unkd", tiny_data, file, tmp_path)
    assert lesson.part.losses(lesson.student, lesson.batch())["unkd"] > 0


TWO = [("LightGCN", "BPR"), ("SASRec", "GRU4Rec")]


@pytest.mark.parametrize(("other", "model"), slow_but(TWO[:1], TWO))
def test_several_teachers_agree_within_each_group(tiny_data: Path, tmp_path: Path, other: str, model: str) -> None:
    """However few unpopular items stand among the first of all, pairs of them are taught: the method is for these."""
    together = Path(",".join(str(checkpoint(tiny_data, tmp_path, name)[1]) for name in (other, model)))
    lesson = Beginner("unkd", tiny_data, together, tmp_path, model, distill_groups=3, distill_list_length=20)
    groups, pupils, batch = lesson.part.groups, lesson.teacher.pupils, lesson.batch()
    rows = batch if pupils.of_rows else batch["user_id"].unique()
    found, consumed = lesson.teacher.rank_in_groups(rows, groups), pupils.consumed_by(rows)
    members = [member.rank_in_groups(rows, groups) for member in lesson.teacher.members]
    assert found.shape == (len(rows), len(groups), 20) and len(members) == 2
    for row, group in np.ndindex(found.shape[:2]):
        left = set(groups[group].tolist()) - set(consumed[row])
        listed = [item for item in found[row, group].tolist() if item >= 0]
        assert set(listed) <= left and len(listed) == min(20, len(left))
        sums: dict[int, float] = {}
        for ranks in members:
            for rank, item in enumerate(ranks[row, group].tolist()):
                sums[item] = sums.get(item, 0) + exp(-rank / 10) * (item >= 0)
        sums.pop(-1, None)
        assert listed == sorted(sums, key=lambda item: (-round(sums[item], 12), item))[:20]
