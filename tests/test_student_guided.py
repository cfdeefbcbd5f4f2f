"""RCE-KD: the numbers of methods/more_methods.md A2, which items it takes, and that ranking leaves no trace."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from marks import slow_but
from teachers import Beginner, checkpoint, refusal, student_config

from recbole_prune.anatomy.vectors import shared_propagation
from recbole_prune.data.random_streams import have_moved, random_state
from recbole_prune.data.used_ids import UsedIds
from recbole_prune.distillers.draws import draw_weighted
from recbole_prune.distillers.losses.soft_labels import soft_list_cross_entropy, soft_lists_by_torch, sum_of_two_lists
from recbole_prune.distillers.rce import are_listed, combined_loss, log_weights, missed_items, two_lists
from recbole_prune.distillers.student_lists import rank_by_student
from recbole_prune.errors import TrainingError
from recbole_prune.sparse.compiling import available

TEACHER = torch.tensor([[2.0, 1.0, 0.5, 0.0, -0.5, -1.0]])
STUDENT = torch.tensor([[0.2, 1.0, -0.4, 0.8, 0.1, 0.5]])
THEIRS, MINE = torch.tensor([[0, 1, 2]]), torch.tensor([[1, 3, 5, 0]])
NAN = math.nan


# ---- the loss --------------------------------------------------------------------------------------------------------


def test_weights_of_the_draw() -> None:
    found = log_weights(MINE, THEIRS, 10.0).exp()[0]
    assert found.tolist() == pytest.approx([1.349859, 1.221403, 1.221403, 1.221403], abs=1e-6)
    assert (found / found.sum()).tolist() == pytest.approx([0.269214, 0.243595, 0.243595, 0.243595], abs=1e-6)
    assert log_weights(torch.tensor([[1, 3, -1, -1]]), THEIRS, 10.0)[0, 2:].tolist() == [-math.inf] * 2
    long = torch.arange(200)[None]
    assert (log_weights(long, long, 1.0)[0, :150] == 51).all(), "at most 50 of them count"


def first_of_draws(log: list[float], draws: int) -> np.ndarray:
    rows = np.tile(np.array(log, np.float32), (draws, 1))
    return draw_weighted(rows, 2, np.random.default_rng(0))


def test_draws_follow_the_weights() -> None:
    log = log_weights(MINE, THEIRS, 10.0)[0].tolist()
    drawn = first_of_draws([*log, -math.inf], 200_000)
    assert (drawn[:, 0] != drawn[:, 1]).all() and drawn.max() == 3
    counts = np.bincount(drawn[:, 0], minlength=4) / len(drawn)
    assert counts == pytest.approx(np.array([0.269214, 0.243595, 0.243595, 0.243595]), abs=0.003)
    second = np.bincount(drawn[drawn[:, 0] == 0, 1], minlength=4)[1:]
    assert second / second.sum() == pytest.approx(np.full(3, 1 / 3), abs=0.01), "without replacement"
    assert first_of_draws([0.0, -math.inf], 1).tolist() == [[0, -1]]


@pytest.mark.parametrize(
    ("drawn", "union", "overlap", "weight", "losses"),
    [
        ((1, 0), (1, 0, 2), 2 / 3, 0.035674, (0.979900, 1.227396, 0.988729)),
        ((3, 5), (3, 5, 0, 2), 0.0, 1.0, (0.979900, 1.578776, 1.578776)),
        ((1, 3), (1, 3, 0, 2), 1 / 3, 0.188876, (0.979900, 1.582172, 1.093655)),
    ],
)
def test_losses_of_three_draws(
    drawn: tuple[int, ...], union: tuple[int, ...], overlap: float, weight: float, losses: tuple[float, ...]
) -> None:
    first, taken = MINE[:, :3], torch.tensor([drawn])
    missed, share = missed_items(THEIRS, taken, first)
    items = torch.cat([taken, missed], 1)
    assert tuple(item for item in items[0].tolist() if item >= 0) == union
    assert share.item() == pytest.approx(overlap, abs=1e-6)
    assert (-5 * share).exp().item() == pytest.approx(weight, abs=1e-6)
    both = torch.cat([first, items], 1)
    scores, labels = (
        logits.gather(1, both.clamp(min=0)).masked_fill(both < 0, NAN).requires_grad_() for logits in (STUDENT, TEACHER)
    )
    for part, expected in zip((slice(3), slice(3, None)), losses):
        found = soft_list_cross_entropy(scores[:, part], labels[:, part], 1.0)
        assert found.item() == pytest.approx(expected, abs=1e-6)
    loss = combined_loss(scores, labels.detach(), share, 3, 5.0, 1.0)
    assert loss.item() == pytest.approx(losses[2], abs=1e-6)
    shifted = combined_loss(scores + 1000, labels.detach() - 7, share, 3, 5.0, 1.0)
    assert shifted.item() == pytest.approx(losses[2], abs=1e-3), "softmaxes know no shift, and none overflows"
    alone = combined_loss(scores, labels.detach(), share, 3, 0.0, 1.0)
    assert alone.item() == pytest.approx(losses[1], abs=1e-6), "beta 0: L_T alone"
    loss.sum().backward()
    assert scores.grad is not None and bool(scores.grad.isfinite().all())
    assert (scores.grad[both < 0] == 0).all()


def test_the_loss_is_that_of_the_known_items_alone() -> None:
    scores = torch.tensor([[0.3, NAN, 1.2, 0.0], [NAN] * 4], requires_grad=True)
    labels = torch.tensor([[1.0, 2.0, NAN, 0.5], [1.0] * 4])
    loss = soft_list_cross_entropy(scores, labels, 2.0)
    known = torch.tensor([[0.15, 0.0]]), torch.tensor([[0.5, 0.25]])
    expected = -(known[1].softmax(1) * known[0].log_softmax(1)).sum()
    assert loss.tolist() == pytest.approx([expected.item(), 0.0], abs=1e-6)
    loss.sum().backward()
    assert scores.grad is not None and bool(scores.grad.isfinite().all())
    half = soft_list_cross_entropy(scores.detach().half(), labels.half(), 2.0)
    assert half.tolist() == pytest.approx(loss.tolist(), abs=1e-2)


@pytest.mark.skipif(not available(), reason="numba is not installed: there is no loop")
def test_the_loop_gives_what_torch_gives() -> None:
    """Losses and gradients, also of lists without a known item and of scores far apart."""
    torch.manual_seed(0)
    scores, labels = 30 * torch.randn(40, 25), 30 * torch.randn(40, 25)
    scores[torch.rand(40, 25) < 0.3], labels[torch.rand(40, 25) < 0.3], labels[3] = NAN, NAN, NAN
    found = []
    for loss in (soft_list_cross_entropy, soft_lists_by_torch):
        mine = scores.clone().requires_grad_()
        losses = loss(mine, labels, 2.0)
        (losses * torch.arange(40)).sum().backward()
        found.append((losses.detach(), mine.grad))
    for one, other in zip(*found):
        assert torch.allclose(one, other, atol=1e-4, rtol=1e-5)


@pytest.mark.skipif(not available(), reason="numba is not installed: there is no loop")
@pytest.mark.parametrize(("size", "temperature"), [(1.0, 1.0), (20.0, 2.0), (300.0, 1.0)])
def test_both_cross_entropies_of_products_in_one_loop(size: float, temperature: float) -> None:
    """Also of lists in which items are missing, of no list at all, and of scores too far apart for the loop."""
    draws = torch.Generator().manual_seed(0)

    def choices(among: int, count: int) -> torch.Tensor:
        return torch.stack([torch.randperm(among, generator=draws)[:count] for _ in range(60)])

    vectors, table = (size**0.5 * torch.randn(count, 8, generator=draws).requires_grad_() for count in (60, 90))
    mine, theirs = choices(40, 20), choices(40, 12)
    first, drawn = mine[:, :12].clone(), mine.gather(1, choices(20, 9))
    first[3, 2:] = first[4] = first[6] = drawn[3, 4:] = drawn[4] = drawn[5] = drawn[6] = -1
    missed, overlap = missed_items(theirs, drawn, first)
    missed[5] = missed[6] = -1
    items = torch.cat([first, drawn, missed], 1)
    labels = torch.randn(60, 90, generator=draws).gather(1, items.clamp(min=0)).masked_fill(items < 0, NAN)
    counts = torch.arange(60) % 4 + 1

    def slowly(vectors: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        scores = (vectors @ table.T).gather(1, items.clamp(min=0)).masked_fill(items < 0, NAN)
        return (combined_loss(scores, labels, overlap, 12, 5.0, temperature) * counts).sum()

    lists = two_lists(items, labels, overlap, 12, 5.0, temperature)
    arguments = torch.arange(60), counts, lists, temperature
    found, expected = sum_of_two_lists(vectors, table, *arguments, slowly), slowly(vectors, table)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    for one, other in zip(*(torch.autograd.grad(3 * loss, (vectors, table)) for loss in (found, expected))):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_membership_is_that_of_sets() -> None:
    stream = np.random.default_rng(1)
    lists = np.array([stream.permutation(40)[:12] for _ in range(30)])
    lists[:9, 7:] = -1
    items = stream.integers(-1, 40, (30, 25))
    expected = [[item >= 0 and item in row.tolist() for item in line] for line, row in zip(items.tolist(), lists)]
    assert are_listed(torch.from_numpy(items), torch.from_numpy(lists)).tolist() == expected


# ---- what it is fed with ---------------------------------------------------------------------------------------------

K, L, M = 8, 5, 12
KINDS = [("BPR", False), ("LightGCN", True), ("MultiVAE", False)]
COUNTS = {"distill_interesting": K, "distill_drawn": L, "distill_student_length": M}


@torch.no_grad()
def order_of(model: Any, rows: Any, consumed: UsedIds | None = None) -> list[list[int]]:
    """Items of users or rows, best first, by RecBole's own scores."""
    model.eval()
    scores = model.full_sort_predict(rows).view(len(rows), -1).clone()
    scores[:, 0] = -torch.inf
    for row in range(len(rows)) if consumed else ():
        scores[row, list(consumed[row])] = -torch.inf
    found: list[list[int]] = scores.argsort(dim=1, descending=True).tolist()
    return found


@pytest.mark.parametrize(("model", "masked"), slow_but([("BPR", False)], KINDS))
def test_lists_and_labels_of_users(tiny_data: Path, tmp_path: Path, model: str, masked: bool) -> None:
    trained, file = checkpoint(tiny_data, tmp_path, model)
    lesson = Beginner("rce_kd", tiny_data, file, tmp_path, model, **COUNTS, distill_mask_observed=masked)
    batch, part = lesson.batch(), lesson.part
    torch.manual_seed(2)
    before = random_state()
    with shared_propagation(lesson.student):
        loss = part.losses(lesson.student, batch)["rce"]
    loss.backward()
    assert not have_moved(before)
    assert all(module.training for module in lesson.student.modules())
    assert getattr(lesson.student, "restore_user_e", None) is None

    users, (items, labels, overlap) = part.labelled(lesson.student, batch)
    rows = type(batch)({"user_id": users})
    consumed = lesson.teacher.pupils.consumed_by(users) if masked else None
    mine, theirs = order_of(lesson.student, rows, consumed), order_of(trained.model, rows, consumed)
    with torch.no_grad():
        logits = trained.model.full_sort_predict(rows).view(len(users), -1)
    for row, listed in enumerate(items.tolist()):
        first, drawn, missed = listed[:K], listed[K : K + L], {item for item in listed[K + L :] if item >= 0}
        assert first == mine[row][:K]
        assert len(set(drawn)) == L and set(drawn) <= set(mine[row][:M])
        assert missed == set(theirs[row][:K]) - set(drawn) - set(first)
        assert overlap[row].item() == pytest.approx(len(set(drawn) & set(theirs[row][:K])) / K)
    known = items >= 0
    assert torch.allclose(labels[known], logits.gather(1, items.clamp(min=0))[known], atol=1e-5)
    assert labels[~known].isnan().all()


def test_choices_last_an_epoch_and_follow_from_seed_and_epoch(tiny_data: Path, tmp_path: Path) -> None:
    _, file = checkpoint(tiny_data, tmp_path)

    def begun(epoch: int) -> Any:
        lesson = Beginner("rce_kd", tiny_data, file, tmp_path, **COUNTS)
        lesson.part.epoch = epoch
        lesson.part.begin_epoch()
        return lesson

    lesson, again, other = begun(0), begun(0), begun(1)
    items = lesson.part.labelled(lesson.student, lesson.batch())[1][0]
    assert torch.equal(items, again.part.labelled(again.student, again.batch())[1][0])
    later = other.part.labelled(other.student, other.batch())[1][0]
    assert torch.equal(later[:, :K], items[:, :K]) and not torch.equal(later, items)
    with torch.no_grad():
        lesson.student.item_embedding.weight.normal_()
    assert torch.equal(lesson.part.labelled(lesson.student, lesson.batch())[1][0], items)
    lesson.part.begin_epoch()
    assert not torch.equal(lesson.part.labelled(lesson.student, lesson.batch())[1][0][:, :K], items[:, :K])


def test_a_user_counts_for_each_of_its_rows(tiny_data: Path, tmp_path: Path) -> None:
    _, file = checkpoint(tiny_data, tmp_path)
    lesson = Beginner("rce_kd", tiny_data, file, tmp_path, **COUNTS)
    batch = lesson.batch()
    weight, total = lesson.part.terms(lesson.student, batch)["rce"]
    one_by_one = [lesson.part.terms(lesson.student, batch[[row]])["rce"][1].item() for row in range(len(batch))]
    assert weight == 10 and total.item() == pytest.approx(sum(one_by_one), rel=1e-4)
    assert len(batch["user_id"].unique()) < len(batch)
    assert lesson.part.losses(lesson.student, batch)["rce"].item() == pytest.approx(10 * total.item() / len(batch))


@pytest.mark.slow
def test_rows_are_ranked_batch_by_batch(tiny_data: Path, tmp_path: Path) -> None:
    trained, file = checkpoint(tiny_data, tmp_path, "SASRec")
    lesson = Beginner("rce_kd", tiny_data, file, tmp_path, "GRU4Rec", **COUNTS)
    batch = lesson.batch()
    loss = lesson.part.losses(lesson.student, batch)["rce"]
    assert loss > 0 and lesson.student.training
    rows, (items, _, _) = lesson.part.labelled(lesson.student, batch)
    mine, theirs = order_of(lesson.student, batch), order_of(trained.model, batch)
    assert rows is batch
    for row, listed in enumerate(items.tolist()):
        assert listed[:K] == mine[row][:K]
        assert {item for item in listed[K + L :] if item >= 0} == set(theirs[row][:K]) - set(listed[: K + L])


def listed(data: Path, folder: Path, scored: bool) -> Path:
    """Four items for each user, with the scores 4, 3, 2 and 1."""
    dataset = checkpoint(data, folder)[0].train_data._dataset
    users, items = (dataset.field2id_token[field][1:].tolist() for field in ("user_id", "item_id"))
    file = folder / "lists.jsonl"
    lines = [
        {"user": user, "items": [items[(place + k) % len(items)] for k in range(4)]} for place, user in enumerate(users)
    ]
    scores = {"scores": [4, 3, 2, 1]} if scored else {}
    file.write_text("\n".join(json.dumps({**line, **scores}) for line in lines), encoding="utf-8")
    return file


def test_of_a_file_listed_items_teach(tiny_data: Path, tmp_path: Path) -> None:
    lesson = Beginner("rce_kd", tiny_data, listed(tiny_data, tmp_path, True), tmp_path, **COUNTS)
    users, (items, labels, _) = lesson.part.labelled(lesson.student, lesson.batch())
    lists = lesson.teacher.items_of_users
    assert (lists[1:, 3] > 0).all(), "training items are among them"
    for user, row, known in zip(users.tolist(), items.tolist(), labels.tolist()):
        found = {item: label for item, label in zip(row, known) if item >= 0}
        expected = dict(zip(lists[user, :4].tolist(), (4.0, 3.0, 2.0, 1.0)))
        assert found == expected, "all of a short list, and nothing else"
    loss = lesson.part.losses(lesson.student, lesson.batch())["rce"]
    loss.backward()
    assert loss > 0 and bool(lesson.student.item_embedding.weight.grad.isfinite().all())


def test_lists_without_scores_are_refused(tiny_data: Path, tmp_path: Path) -> None:
    file = listed(tiny_data, tmp_path, False)
    assert "has lists without scores" in refusal(lambda: Beginner("rce_kd", tiny_data, file, tmp_path, **COUNTS))


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["distill_drawn", "distill_interesting"])
def test_more_than_the_students_list_is_refused(tiny_data: Path, name: str) -> None:
    changes = {"distiller": "rce_kd", "distill_teacher_model": "BPR", **COUNTS, name: M + 1}
    message = refusal(lambda: student_config(tiny_data, None, **changes))
    assert f"{name}={M + 1} is not allowed" in message and f"at most distill_student_length={M}" in message


def test_a_student_that_diverged_is_named(tiny_data: Path, tmp_path: Path) -> None:
    trained, _ = checkpoint(tiny_data, tmp_path)
    with torch.no_grad():
        trained.model.item_embedding.weight[3] = NAN
    nothing = np.empty(0, np.int64)
    unranked = UsedIds(nothing, nothing, trained.dataset.user_num, trained.dataset.item_num)
    message = refusal(lambda: rank_by_student(trained.model, None, unranked, 5), TrainingError)
    assert "the student" in message and "learning_rate" in message
