"""Intermediate values and properties of methods/distillation_*.md, and what ``distill_parity=official`` changes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from marks import slow_but
from teachers import Beginner, checkpoint, student_config

from recbole_prune.distillers import get_distiller
from recbole_prune.distillers.experts import Experts, Personalisation
from recbole_prune.distillers.latent import PersonalisedHints
from recbole_prune.distillers.losses.listwise import plackett_luce
from recbole_prune.distillers.losses.soft_labels import (
    discrepancy_weights,
    position_weights,
    soft_cross_entropy,
    weighted_positives,
)
from recbole_prune.distillers.losses.topology import Topology, cosines, full_topology


def row(*values: float) -> torch.Tensor:
    return torch.tensor([values]).reshape(1, -1)


# ---- the listwise loss -----------------------------------------------------------------------------------------------


def test_the_listwise_loss_is_the_sum_of_its_choices() -> None:
    below = (0.3, -0.2)
    parts = [
        plackett_luce(row(*s), row(*r))
        for s, r in (((2.0,), (1, 0.5, *below)), ((1.0,), (0.5, *below)), ((0.5,), below))
    ]
    assert [part.item() for part in parts] == pytest.approx([0.633661, 0.877263, 0.839546], abs=1e-6)
    assert sum(part.item() for part in parts) == pytest.approx(2.350470, abs=1e-5)
    probabilities = plackett_luce(row(2.0, 1.0, 0.5).sigmoid(), row(*below).sigmoid())
    assert probabilities.item() == pytest.approx(3.673761, abs=1e-5), "of probabilities, which is the wrong use"


def test_who_is_below_has_no_order_and_one_choice_is_softmax() -> None:
    ranked, below = torch.randn(4, 3), torch.randn(4, 6)
    torch.testing.assert_close(plackett_luce(ranked, below[:, torch.randperm(6)]), plackett_luce(ranked, below))
    first, places = ranked[:, :1], torch.zeros(4, dtype=torch.long)
    expected = torch.nn.functional.cross_entropy(torch.cat([first, below], 1), places, reduction="none")
    torch.testing.assert_close(plackett_luce(first, below), expected)


def test_large_scores_stay_finite() -> None:
    ranked = row(100.0, 90.0)
    assert bool(ranked.exp().isinf().any()) and plackett_luce(ranked, row(95.0)).isfinite()


def test_the_first_losses_of_the_logs() -> None:
    """Mean loss of epoch 0 with URRD and without: ``0.001 x 712.8 users x log(80! / 40!)``, within 1 %."""
    added = 0.001 * 712.8 * plackett_luce(torch.zeros(1, 40), torch.zeros(1, 40)).item()
    assert added == pytest.approx(822.526 - 706.212, rel=0.01)


# ---- RD and CD -------------------------------------------------------------------------------------------------------


def test_steps_of_ranking_distillation() -> None:
    student, one = row(1.2, -0.4, 0.3), torch.eye(3)
    losses = [weighted_positives(student, weights).item() for weights in one]
    assert losses == pytest.approx([0.263282, 0.913015, 0.554355], abs=1e-6)
    above = torch.tensor([[0, 3, 1]])
    # a slope so small that tanh is linear: the weights are the estimated ranks 0, 30, 10 less the ranks 0, 1, 2
    distances = discrepancy_weights(above, 100, 1001, 1e-6, first=0) / 1e-6
    assert distances.tolist()[0] == pytest.approx([0, 30 - 1, 10 - 2], rel=1e-4)
    hybrid = position_weights(3, 1.0) * discrepancy_weights(above, 100, 1001, 0.1, first=0)
    assert (hybrid / hybrid.sum()).tolist()[0] == pytest.approx([0, 0.802717, 0.197283], abs=1e-6)


@pytest.mark.parametrize(
    ("scale", "shift", "targets"),
    [
        (1, 0, (0.880797, 0.268941, 0.622459)),
        (2, 0, (0.731059, 0.377541, 0.562177)),
        (2, 1, (0.817574, 0.500000, 0.679179)),
    ],
)
def test_soft_labels(scale: float, shift: float, targets: tuple[float, ...]) -> None:
    """The gradient with respect to a logit is ``p - q``; the loss is least, and not 0, where they are equal."""
    teacher, student = row(2.0, -1.0, 0.5), torch.zeros(1, 3, requires_grad=True)
    soft_cross_entropy(student, teacher, scale, shift).sum().backward()
    assert student.grad is not None
    assert (0.5 - student.grad).tolist()[0] == pytest.approx(targets, abs=1e-6)
    best = soft_cross_entropy((teacher + shift) / scale, teacher, scale, shift).item()
    assert 0 < best == pytest.approx(-sum(q * math.log(q) + (1 - q) * math.log(1 - q) for q in targets), abs=1e-5)
    assert soft_cross_entropy((teacher + shift) / scale + 0.1, teacher, scale, shift).item() > best


# ---- vectors ---------------------------------------------------------------------------------------------------------


def test_shares_of_the_worked_experts() -> None:
    """Logits (0.2, -0.3): without noise the shares at temperature 1 are the softmax."""
    experts = Experts(1, 2, 2)
    assert experts.selection is not None
    with torch.no_grad():
        experts.selection.weight.zero_()
        experts.selection.bias.copy_(torch.tensor([0.2, -0.3]))
    shares = experts.shares(row(1.0, 0.5), 1.0, torch.zeros(1, 2))
    assert shares.tolist()[0] == pytest.approx([0.622459, 0.377541], abs=1e-6)


def test_personal_maps_are_experts_if_they_mix_linear_ones() -> None:
    """``p(v) = sum_m z_m(v) W_m``: the reconstruction is that of linear experts ``W_m`` with the shares ``z``."""
    select, experts = torch.nn.Linear(4, 3), torch.randn(3, 4, 2)
    mix = torch.nn.Linear(3, 8, bias=False)
    personal = Personalisation(2, 4, 1)
    personal.network = torch.nn.Sequential(select, torch.nn.Softmax(1), mix)
    with torch.no_grad():
        mix.weight.copy_(experts.reshape(3, 8).T)
    student, teacher = torch.randn(6, 2), torch.randn(6, 4)
    shares = select(teacher).softmax(1)
    by_experts = sum(shares[:, m, None] * (student @ experts[m].T) for m in range(3))
    torch.testing.assert_close(personal(student, teacher), by_experts)


# ---- topology --------------------------------------------------------------------------------------------------------

TEACHER, STUDENT = torch.tensor([[1.0, 0], [1, 1], [0, 2]]), torch.tensor([[1.0], [2], [-1]])


def test_cosines_and_group_means() -> None:
    assert cosines(TEACHER, TEACHER)[0].tolist() == pytest.approx([1, 0.707107, 0], abs=1e-6)
    assert cosines(TEACHER, TEACHER)[1, 2].item() == pytest.approx(0.707107, abs=1e-6)
    assert cosines(STUDENT, STUDENT)[:, 2].tolist() == pytest.approx([-1, -1, 1])
    means = torch.stack([TEACHER[:2].mean(0), TEACHER[2]])
    assert means.tolist() == [[1, 0.5], [0, 2]]
    found = cosines(means, TEACHER)
    assert found[0].tolist() == pytest.approx([0.894427, 0.948683, 0.447214], abs=1e-6)
    assert found[1].tolist() == pytest.approx([0, 0.707107, 1], abs=1e-6)


def test_one_group_for_each_type_compares_all_within_the_types() -> None:
    student, teacher = torch.randn(9, 2), torch.randn(9, 3)
    groups = torch.tensor([0] * 4 + [1] * 5)  # users, then items
    within = full_topology(student[:4], teacher[:4]) + full_topology(student[4:], teacher[4:])
    torch.testing.assert_close(Topology().entity_level(student, teacher, groups), within, rtol=1e-4, atol=1e-4)
    across = (cosines(teacher[:4], teacher[4:]) - cosines(student[:4], student[4:])).square().sum()
    torch.testing.assert_close(full_topology(student, teacher), within + 2 * across, rtol=1e-4, atol=1e-4)


# ---- methods on a model ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def begin(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Makes a student of width 4 with a teacher of width 16."""
    folder = tmp_path_factory.mktemp("teacher")
    trained, file = checkpoint(tiny_data, folder)

    def make(method: str, **changes: Any) -> Beginner:
        made = Beginner(method, tiny_data, file, folder, **{"embedding_size": 4, **changes})
        made.teacher_model = trained.model  # type: ignore[attr-defined]
        return made

    return make


def terms_of(beginner: Beginner, times: int = 1) -> dict[str, tuple[float, torch.Tensor]]:
    """The terms of a batch in which every row stands so many times, with the same noise each time."""
    torch.manual_seed(0)
    batch = beginner.batch().repeat(times)
    found: dict[str, tuple[float, torch.Tensor]] = beginner.part.terms(beginner.student, batch)
    return found


def test_an_identity_has_no_error_and_the_teacher_no_gradient(begin: Any) -> None:
    """Of equal widths and vectors; padding has no part in it."""
    hint = begin("hint", embedding_size=16, distill_regressor="linear")
    terms_of(hint)["hint"][1].backward()
    tables = [getattr(hint.student, name).weight for name in ("user_embedding", "item_embedding")]
    assert all(bool(table.grad.any()) and not table.grad[0].any() for table in tables)
    with torch.no_grad():
        for side, mine, theirs in zip(("user", "item"), tables, hint.teacher.tables or ()):
            assert theirs.grad is None and not theirs.requires_grad
            mine.copy_(theirs)
            hint.part._helpers[side].weight.copy_(torch.eye(16))
            hint.part._helpers[side].bias.zero_()
    assert terms_of(hint)["hint"][1].item() == pytest.approx(0, abs=1e-9)


def test_one_expert_is_a_hint(begin: Any) -> None:
    hint, expert = (terms_of(begin(name, **more)) for name, more in (("hint", {}), ("de", {"distill_experts": 1})))
    assert hint["hint"][0] == expert["de"][0] and torch.equal(hint["hint"][1], expert["de"][1])


@pytest.mark.parametrize("method", slow_but(["de"], ["hint", "de", "phr", "ftd", "htd", "rrd"]))
def test_who_comes_twice_counts_once(method: str, begin: Any) -> None:
    beginner = begin(method)
    once, twice = terms_of(beginner), terms_of(beginner, times=2)
    for name in once:
        torch.testing.assert_close(once[name][1], twice[name][1])


def test_without_topology_groups_are_learned_as_by_experts(begin: Any) -> None:
    """``gamma = 0`` of HTD: DE with items of weight 1 on positives and negatives together."""
    groups, experts = begin("htd", distill_balance=0.0, distill_groups=3), begin("de", distill_experts=3)
    found = terms_of(groups)
    assert found["htd_topology"][0] == 0 and found["htd_groups"][0] == groups.part.settings.distill_weight
    torch.manual_seed(0)
    there = experts.part.pupils.entities(experts.batch())
    expected = experts.part.error("user", there.users, experts.part.users(experts.student, None, there.users))
    expected = expected + experts.part.error("item", there.items, experts.part.items(experts.student, there.items))
    torch.testing.assert_close(found["htd_groups"][1], expected)


def test_all_items_of_full_topology_are_compared_without_regard_to_lengths(begin: Any) -> None:
    beginner = begin("ftd")
    before = terms_of(beginner)["ftd"][1]
    with torch.no_grad():
        beginner.student.item_embedding.weight.mul_(3 + torch.arange(beginner.student.n_items)[:, None])
    torch.testing.assert_close(terms_of(beginner)["ftd"][1], before, rtol=1e-3, atol=1e-3)


# ---- as the authors' code --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("parity", "lowest"), [("official", 1e-10), ("corrected", 1e-3)])
def test_official_temperatures_and_switches(parity: str, lowest: float, tiny_data: Path) -> None:
    """The temperature of DE falls in 1000 epochs, however long the training, to 1e-10 in place of 1e-3."""

    def part(method: str) -> Any:
        given = {"distiller": method, "distill_teacher_model": "BPR", "distill_parity": parity}
        nobody: Any = None
        return get_distiller(method)(student_config(tiny_data, None, **given).settings, nobody, nobody)

    experts = part("de")
    experts.epochs, courses = 7, {1: 1.0, 101: 0.1, 1001: lowest}
    for experts.epoch, expected in courses.items():
        assert experts.temperature == pytest.approx(expected)
    switches = (False, True, False) if parity == "official" else (True, False, True)
    assert part("htd").topology == Topology(*switches, between_groups=False)


def test_official_personal_maps(begin: Any) -> None:
    """One network of twice the width that reads the teacher's vectors as they are."""
    corrected, official = begin("phr").part, begin("phr", distill_parity="official").part
    assert isinstance(official, PersonalisedHints) and official.official
    sizes = {part: sum(weight.numel() for weight in part.parameters().values()) for part in (corrected, official)}
    hidden = (16 + 16 * 4) // 2
    assert sizes[corrected] == 2 * ((16 + 1) * hidden + (hidden + 1) * 64)
    assert sizes[official] == (16 + 1) * 2 * hidden + (2 * hidden + 1) * 64
    assert official._helpers["user"] is official._helpers["item"] and not official._enriched and corrected._enriched


@pytest.mark.parametrize("parity", slow_but(["corrected"], ["official", "corrected"]))
def test_weights_of_ranking_distillation(parity: str, begin: Any) -> None:
    """By a loop: the code's are not normalised and count ranks from 0."""
    beginner = begin("rd", embedding_size=16, distill_parity=parity, distill_warmup=1, distill_slope=0.002)
    part, student = beginner.part, beginner.student
    batch, users = beginner.batch(), beginner.batch()["user_id"].unique()
    assert terms_of(beginner)["rd"][1].item() > 0
    with torch.no_grad():  # somewhat like the teacher, so that weights differ
        for name in ("user_embedding", "item_embedding"):
            theirs = getattr(beginner.teacher_model, name).weight
            getattr(student, name).weight.copy_(theirs + 0.1 * torch.randn(theirs.shape))
    part.epoch = 1
    listed, expected = part._source.of(batch), 0.0
    table = (student.user_embedding.weight @ student.item_embedding.weight.T).detach().double()
    decay = np.exp(-np.arange(1, 11))
    for user, ranked, others in zip(users.tolist(), listed.interesting.tolist(), listed.uninteresting.tolist()):
        scores, rivals = table[user, ranked].numpy(), table[user, [item for item in others if item > 0]].numpy()
        estimated = [math.floor((len(table[0]) - 2) * (rivals > score).sum() / len(rivals)) for score in scores]
        ranks = np.arange(10) + (parity == "corrected")
        weights = decay / decay.sum() * np.tanh(np.maximum(0.002 * (np.array(estimated) - ranks), 0))
        if parity == "corrected":
            weights = weights / max(weights.sum(), 1e-12)
        expected += float((weights * np.log1p(np.exp(-scores))).sum())
    assert terms_of(beginner)["rd"][1].item() == pytest.approx(expected, rel=1e-4)


def test_ranking_distillation_of_a_student_without_opinion(begin: Any) -> None:
    """Nobody ranks above the teacher's items: before the hybrid weights ``|U_b| log 2``, afterwards 0 and no NaN."""
    beginner = begin("rd", distill_warmup=1)
    for weight in beginner.student.parameters():
        torch.nn.init.zeros_(weight)
    users = beginner.batch()["user_id"].unique()
    assert terms_of(beginner)["rd"][1].item() == pytest.approx(len(users) * math.log(2), rel=1e-5)
    beginner.part.epoch = 1
    assert terms_of(beginner)["rd"][1].item() == 0
