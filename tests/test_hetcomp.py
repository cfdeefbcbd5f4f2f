"""HetComp: its losses, whole rows of a student's logits, and what the method makes of them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hetcomp_lab import METHOD, Lab
from marks import slow_but
from teachers import refusal
from torch.nn.functional import logsigmoid
from training_bench import Bench

from recbole_prune.anatomy import whole_rows
from recbole_prune.anatomy.logits import row_logits
from recbole_prune.data.random_streams import have_moved, random_state
from recbole_prune.distillers import get_distiller
from recbole_prune.distillers.heterogeneous import fine_order, overall_relations
from recbole_prune.distillers.losses.listwise import plackett_luce
from recbole_prune.errors import TrainingError

pytestmark = pytest.mark.usefixtures("no_tensorboard")

SCORES = torch.tensor([0.5, -0.2, 1.0, 0.3, 0.0, -0.5])
OBSERVED, UNOBSERVED, REST = SCORES[None, :2], SCORES[None, 2:4], SCORES[None, 4:]
EMPTY = torch.tensor([whole_rows.NOTHING])


# ---- losses ----------------------------------------------------------------------------------------------------------


def test_overall_relations_by_hand() -> None:
    rest = REST.logsumexp(1)
    assert rest.exp().item() == pytest.approx(1.606531, abs=1e-6)
    terms = [overall_relations(SCORES[None, place : place + 1], rest).item() for place in range(4)]
    assert terms == pytest.approx([0.680270, 1.085939, 0.464369, 0.783969], abs=1e-6)
    listed = torch.cat([OBSERVED, UNOBSERVED], 1)
    assert overall_relations(listed, rest).item() == pytest.approx(3.014547, abs=1e-6)
    padded = torch.cat([listed, torch.full((1, 3), torch.nan)], 1)
    assert overall_relations(padded, rest).item() == pytest.approx(3.014547, abs=1e-6)


def test_fine_order_by_hand() -> None:
    rest, nobody = REST.logsumexp(1), torch.full((1, 2), torch.nan)
    assert fine_order(OBSERVED, nobody, 1, rest).item() == pytest.approx(1.990560, abs=1e-6)
    assert 2 * fine_order(nobody, UNOBSERVED, 0, rest).item() == pytest.approx(1.519981, abs=1e-6)
    head = plackett_luce(UNOBSERVED[:, :1], torch.cat([UNOBSERVED[:, 1:], REST], 1))
    expected = 1.990560 + (1.519981 + head.item()) / 2
    assert fine_order(OBSERVED, UNOBSERVED, 1, rest).item() == pytest.approx(expected, abs=1e-6)


def test_nothing_below_is_no_loss_but_an_order() -> None:
    listed = SCORES[None].clone().requires_grad_()
    overall_relations(listed, EMPTY).sum().backward()
    assert overall_relations(listed, EMPTY).item() == 0 and not listed.grad.any()
    no_one = torch.empty(1, 0)
    assert fine_order(no_one, listed, 0, EMPTY).item() == pytest.approx(plackett_luce(listed, no_one).item() / 2)


def test_large_scores_are_finite() -> None:
    listed = torch.tensor([[300.0, -300.0]], requires_grad=True)
    loss = overall_relations(listed, torch.tensor([200.0])) + fine_order(listed, listed, 1, torch.tensor([-200.0]))
    loss.sum().backward()
    assert loss.isfinite() and listed.grad is not None and listed.grad.isfinite().all()


# ---- whole rows ------------------------------------------------------------------------------------------------------


ROWS = [(name, "masked") for name in ("BPR", "LightGCN", "NeuMF", "MultiVAE", "FISM", "MacridVAE", "MKR")]
ROWS += [("BPR", "compact"), ("LightGCN", "compact"), ("NeuMF", "compact")]


@pytest.mark.parametrize("bound", [None, 0.02])
@pytest.mark.parametrize(("model", "storage"), slow_but([("BPR", "compact")], ROWS))
def test_listed_and_rest_are_of_the_whole_row(
    model: str, storage: str, bound: float | None, tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values and gradients are those of all logits at once, however many rows are held together."""
    monkeypatch.setattr(whole_rows, "_LOGITS_AT_ONCE", {"cpu": 600, "cuda": 600})
    monkeypatch.setattr(whole_rows, "_PAIRS_AT_ONCE", 600)
    monkeypatch.setattr(whole_rows, "_NARROW", 64 if bound is None else 0)
    bench = Bench(model, tiny_data)
    masks = bench.masks(0.4) if storage == "compact" else None
    student, random = bench.model(masks, storage).eval(), torch.Generator().manual_seed(3)
    users, count = torch.tensor([5, 2, 9, 7, 30]), bench.train._dataset.item_num
    listed = torch.stack([torch.randperm(count - 1, generator=random)[:6] + 1 for _ in users])
    listed[2, 4:] = -1
    counted = torch.ones(5, count, dtype=torch.bool)
    counted[torch.arange(5)[:, None], listed.clamp(min=0)] = False
    counted[3:] = False  # nothing is left of the last two
    outside = (~counted).flatten().nonzero().flatten().numpy()
    outside, counted[:, 0] = outside[outside % count > 0], False
    weights = torch.randn(5, 7, generator=random)

    def gradients(logits: torch.Tensor, rest: torch.Tensor) -> list[torch.Tensor]:
        loss = (torch.cat([logits.nan_to_num(0.0), rest[:, None] * (rest[:, None] > -1e8)], 1) * weights).sum()
        named = [parameter for parameter in student.parameters() if parameter.requires_grad]
        found = torch.autograd.grad(loss, named, allow_unused=True)
        return [torch.zeros_like(p) if g is None else g for p, g in zip(named, found)]

    scores = row_logits(student, users)
    scores = scores if bound is None else scores.clamp(-bound, bound)
    expected = scores.gather(1, listed.clamp(min=0)).masked_fill(listed < 0, torch.nan)
    rest = torch.stack([row[kept].logsumexp(0) if kept.any() else EMPTY[0] for row, kept in zip(scores, counted)])
    found = whole_rows.listed_and_rest(student, users, listed, outside, bound)
    torch.testing.assert_close(found[0], expected, equal_nan=True)
    torch.testing.assert_close(found[1], rest)
    for own, wanted in zip(gradients(*found), gradients(expected, rest)):
        torch.testing.assert_close(own, wanted, atol=1e-5, rtol=1e-4)


# ---- the method ------------------------------------------------------------------------------------------------------


def begun(lab: Lab) -> tuple[Any, Any]:
    """A student and a part in its first epoch."""
    student, part = lab.bench.model(), lab.part()
    part.begin(SimpleNamespace(model=student, epoch=0, epochs=9))
    return student, part


def plain_losses(student: Any, part: Any, users: torch.Tensor) -> tuple[float, float]:
    """The losses of both phases, by their formulas on the whole rows."""
    settings, pupils = part.settings, part.pupils
    half, tenth = settings.distill_interesting // 2, settings.distill_interesting // 10
    overall = ordered = 0.0
    rows = row_logits(student, users).double()
    rows = rows.clamp(-40, 40) if settings.distill_parity == "official" else rows
    for user, scores in zip(users.tolist(), rows):
        unseen = np.setdiff1d(np.arange(1, pupils.item_count), pupils.consumed.values_of(user))
        observed, listed = (row[row >= 0] for row in (part._observed[user], part._lists[user]))

        def below(count: int, listed: Any = listed, unseen: Any = unseen, scores: Any = scores) -> torch.Tensor:
            return scores[np.setdiff1d(unseen, listed[:count])]

        rest = below(len(listed)).logsumexp(0)
        overall -= sum(logsigmoid(scores[int(i)] - rest).item() for i in [*observed, *listed])
        for weight, ranked, count in ((1.0, observed, half), (0.5, listed[:half], half), (0.5, listed[:tenth], tenth)):
            above = scores[ranked.astype(np.int64)][None]
            ordered += weight * plackett_luce(above, below(count)[None]).item()
    return overall, ordered


@pytest.mark.parametrize("parity", slow_but(["official"], ["corrected", "official"]))
@pytest.mark.parametrize("model", slow_but(["BPR"], ["BPR", "LightGCN", "NeuMF"]))
def test_the_terms_are_those_of_the_formulas(model: str, parity: str, tiny_data: Path) -> None:
    """With logits beyond 40, which the code cuts off."""
    lab = Lab(tiny_data, model, distill_interesting=40, distill_observed=30, distill_parity=parity)
    student, part = begun(lab)
    with torch.no_grad():
        for parameter in student.eval().parameters():
            parameter.mul_(20)
    batch = next(iter(lab.bench.train))
    users = batch["user_id"].unique()
    expected = plain_losses(student, part, users)
    assert (part._observed[users.numpy()] < 0).any(), "some have fewer items in training"
    for at_end, weight, value in ((False, 0.01, expected[0]), (True, 0.005, expected[1])):
        part._levels.at_end = at_end
        [(name, (factor, loss))] = part.terms(student, batch).items()
        assert (name, factor) == (METHOD, weight) and loss.item() == pytest.approx(value, rel=1e-5)


def test_one_teacher_with_one_state_is_rrd_with_what_was_observed(tiny_data: Path) -> None:
    """RRD of the half list (and of the tenth) above all other items that a user has not, without any draw."""
    lab = Lab(tiny_data, states=(1,), distill_interesting=40, distill_list_length=40)
    student, part = begun(lab)
    lists = lab.members[0].told[0]
    assert part._levels.at_end and np.array_equal(part._lists, lists)
    batch = next(iter(lab.bench.train))
    users = batch["user_id"].unique()
    scores, expected = row_logits(student, users), torch.zeros(())
    for user, row in zip(users.tolist(), scores):
        unseen = set(range(1, lab.pupils.item_count)) - set(lab.pupils.consumed.values_of(user).tolist())
        for weight, listed, out in (
            (1.0, part._observed[user], lists[user, :20]),
            (0.5, lists[user, :20], lists[user, :20]),
            (0.5, lists[user, :4], lists[user, :4]),
        ):
            below = row[sorted(unseen - set(out.tolist()))]
            expected = expected + weight * plackett_luce(row[listed.astype(np.int64)][None], below[None]).sum()
    torch.testing.assert_close(part.terms(student, batch)[METHOD][1], expected, rtol=1e-4, atol=1e-3)


def test_users_without_lists_learn_nothing(tiny_data: Path) -> None:
    lab = Lab(tiny_data, distill_observed=3)
    for member in lab.members:
        for state in member.states:
            state[:] = -1
    student, part = begun(lab)
    part._observed[:] = -1
    for at_end in (False, True):
        part._levels.at_end = at_end
        _, loss = part.terms(student, next(iter(lab.bench.train)))[METHOD]
        loss.backward()
        assert loss.item() == 0
    assert not any(parameter.grad.any() for parameter in student.parameters())


def test_the_students_ranking_is_that_of_its_evaluation(tiny_data: Path) -> None:
    """Of the weights as they are, in evaluation mode, and without moving a random stream."""
    lab = Lab(tiny_data, "LightGCN")
    student, part = begun(lab)
    student.train()
    student.full_sort_predict({"user_id": torch.tensor([1])})  # leaves its tables behind
    with torch.no_grad():
        student.item_embedding.weight.mul_(torch.randn(len(student.item_embedding.weight), 1))
    before = random_state()
    found = part._ranked_by_student()
    assert not have_moved(before) and student.training
    student.restore_user_e = None
    with torch.no_grad():
        scores = student.eval().full_sort_predict({"user_id": torch.tensor([7])}).view(-1)
    scores[[0, *lab.pupils.consumed.values_of(7).tolist()]] = -torch.inf
    assert found[7].tolist() == scores.topk(50).indices.tolist() and (found[0] == -1).all()


def test_a_student_that_diverged_is_named_before_it_is_compared(tiny_data: Path) -> None:
    student, part = begun(Lab(tiny_data))
    with torch.no_grad():
        student.item_embedding.weight[3] = torch.nan
    message = refusal(part._ranked_by_student, TrainingError)
    assert "the student" in message and "learning_rate" in message


def test_the_students_own_loss_counts_as_often_as_it_is_told(tiny_data: Path) -> None:
    for factor in (0.0, 0.5, 1.0):
        lab = Lab(tiny_data, distill_own_loss=factor)
        trainer = lab.trainer()
        trainer.session.parts[0].begin(SimpleNamespace(model=trainer.model, epoch=0, epochs=9))
        batch = next(iter(lab.bench.train))
        own = lab.bench.plain_model().calculate_loss(batch).item()
        taught = float(trainer.session.parts[0].losses(trainer.model, batch)[METHOD])
        assert float(trainer.model.calculate_loss(batch)) == pytest.approx(factor * own + taught)


def test_lists_that_leave_nothing_below_them_are_refused(tiny_data: Path) -> None:
    lab = Lab(tiny_data, distill_interesting=39, distill_list_length=40)
    check, student = get_distiller(METHOD).check, lab.bench.model()
    check(lab.settings, lab.pupils, student)
    fewest = min(len(lab.pupils.consumed.values_of(user)) for user in range(1, lab.pupils.user_count))
    most = lab.pupils.item_count - 1 - fewest
    for length, wrong in ((most - 1, False), (most, True)):
        settings = Lab(tiny_data, distill_interesting=length, distill_list_length=300).settings
        if wrong:
            assert f"take less than {most}" in refusal(lambda settings=settings: check(settings, lab.pupils, student))
        else:
            check(settings, lab.pupils, student)
