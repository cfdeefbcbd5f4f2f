"""The formulas of the distillers against the values computed in methods/distillation_*.md, and their properties."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recbole_prune.data.unused_ids import draw_outside, draw_unused
from recbole_prune.data.used_ids import UsedIds
from recbole_prune.distillers import draws
from recbole_prune.distillers.draws import draw_ranks
from recbole_prune.distillers.experts import Experts, Personalisation, squared_error, temperature
from recbole_prune.distillers.latent import enriched
from recbole_prune.distillers.losses.listwise import (
    _running_logsumexp,
    plackett_luce,
    plackett_luce_by_torch,
    plackett_luce_of,
    sum_of_lists,
)
from recbole_prune.distillers.losses.soft_labels import (
    best_tries,
    discrepancy_weights,
    position_weights,
    soft_cross_entropy,
    tries_of_draws,
    weighted_positives,
)
from recbole_prune.distillers.losses.topology import Topology, cosines, full_topology

NAN = math.nan


def row(*values: float) -> torch.Tensor:
    return torch.tensor([values]).reshape(1, -1)


# ---- the listwise loss -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ranked", "below", "value"),
    [
        ((2, 1, 0.5), (0.3, -0.2), 2.350470),
        ((1, 2, 0.5), (0.3, -0.2), 2.889689),
        ((0.5, 1, 2), (0.3, -0.2), 3.898642),
        ((2, 1, 0.5), (), 0.938446),
        ((2,), (0.3, -0.2), 0.257341),
        ((100, 90), (95,), 5.013476),
        ((1, 1, 1), (1, 1), math.log(60)),
        ((0,) * 40, (0,) * 40, 163.352485),
        ((0,) * 20, (0,) * 20, 67.985023),
    ],
)
def test_listwise_loss(ranked: tuple[float, ...], below: tuple[float, ...], value: float) -> None:
    loss = plackett_luce(row(*map(float, ranked)), row(*map(float, below)))
    assert loss.tolist() == pytest.approx([value], rel=1e-5)
    shorter = plackett_luce(row(*ranked, NAN, NAN), row(*below, NAN))
    assert shorter.tolist() == pytest.approx([value], rel=1e-5)


def test_gradient_of_the_listwise_loss() -> None:
    ranked, below = row(2.0, 1.0, 0.5, NAN).requires_grad_(), row(0.3, NAN, -0.2).requires_grad_()
    plackett_luce(ranked, below).sum().backward()
    assert ranked.grad is not None and below.grad is not None
    torch.testing.assert_close(ranked.grad, row(-0.469354, -0.388867, -0.197422, 0.0), rtol=0, atol=1e-6)
    torch.testing.assert_close(below.grad, row(0.657095, 0.0, 0.398548), rtol=0, atol=1e-6)


@pytest.mark.parametrize("below", [0, 1, 4])
def test_the_listwise_loss_has_the_gradient_of_its_value(below: int) -> None:
    """By differences, with rows of different lengths."""
    ranked, rest = torch.randn(5, 4, dtype=torch.float64), torch.randn(5, below, dtype=torch.float64)
    ranked[1, 2:] = rest[2, 1:] = NAN

    def loss(ranked: torch.Tensor, rest: torch.Tensor) -> torch.Tensor:
        return (plackett_luce(ranked, rest) * torch.arange(1, 6)).sum()

    for tensor, of in ((ranked, lambda s: loss(s, rest)), (rest, lambda r: loss(ranked, r))):
        found = torch.autograd.grad(of(tensor.requires_grad_()), tensor)[0] if tensor.numel() else tensor
        tensor.requires_grad_(False)
        for place in zip(*torch.nonzero(~tensor.isnan(), as_tuple=True)):
            step = torch.zeros_like(tensor)
            step[place] = 1e-6
            difference = (of(tensor + step) - of(tensor - step)) / 2e-6
            assert found[place].item() == pytest.approx(difference.item(), abs=1e-6)


@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16])
def test_the_listwise_loss_of_half_precision(precision: torch.dtype) -> None:
    ranked, below = row(2.0, 1.0, 0.5, NAN).to(precision).requires_grad_(), row(0.25, NAN).to(precision)
    loss = plackett_luce(ranked, below)
    assert loss.item() == pytest.approx(plackett_luce(ranked.float(), below.float()).item(), rel=1e-3)
    loss.sum().backward()
    assert ranked.grad is not None and ranked.grad.dtype == precision and bool(ranked.grad.isfinite().all())


@pytest.mark.parametrize("size", [1.0, 30.0, 3000.0])
def test_the_compiled_loop_of_the_listwise_loss_is_that_of_torch(size: float) -> None:
    """Also where scores are too far apart for the loop, which torch takes then."""
    logits = size * (torch.rand(50, 12, generator=torch.Generator().manual_seed(3)) - 0.5) + 100.0
    logits[3:9, 5:7] = logits[4, 10:] = logits[5, :7] = logits[6, 7:] = logits[7] = logits[8, 0] = NAN
    weights = torch.arange(50.0)
    losses, gradients = plackett_luce_by_torch(logits.double(), 7)
    found = plackett_luce_of(logits.requires_grad_(), 7)
    (found * weights).sum().backward()
    assert logits.grad is not None
    torch.testing.assert_close(found.double(), losses, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logits.grad.double(), gradients * weights[:, None], rtol=1e-4, atol=1e-4 * size)


@pytest.mark.parametrize("size", [0.1, 1.0, 4.0])
def test_lists_of_products_in_one_loop_are_those_of_their_logits(size: float) -> None:
    """Also where scores are too far apart for the loop; rows that are not asked for and ids that are not there."""
    draws = torch.Generator().manual_seed(5)
    vectors, table = (size * torch.randn(count, 6, generator=draws) for count in (30, 12))
    vectors.requires_grad_()
    table.requires_grad_()
    lists = torch.stack([torch.randperm(12, generator=draws)[:9] for _ in range(30)]).int()
    lists[3, 7:] = lists[4, 2:4] = lists[5] = lists[6, :4] = lists[7, 4:] = -1
    rows = torch.cat([torch.randperm(30, generator=draws)[:12], torch.arange(3, 8)]).unique()
    logits = (vectors[rows] @ table.T).gather(1, lists[rows].long().clamp(min=0)).masked_fill(lists[rows] < 0, NAN)
    slowly = plackett_luce(logits[:, :4].double(), logits[:, 4:].double()).sum()
    found = sum_of_lists(vectors, rows, table, lists, 4)
    assert found.item() == pytest.approx(slowly.item(), rel=1e-5)
    wanted = torch.autograd.grad(3 * slowly, (vectors, table))
    for mine, theirs in zip(torch.autograd.grad(3 * found, (vectors, table)), wanted):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4 * size)


scores = st.lists(st.floats(-60, 60, width=32), min_size=1, max_size=6)


@given(scores, st.lists(st.floats(-60, 60, width=32), max_size=6), st.floats(-20, 20, width=32))
def test_properties_of_the_listwise_loss(ranked: list[float], below: list[float], shift: float) -> None:
    s, r = torch.tensor([ranked], dtype=torch.float64), torch.tensor([below], dtype=torch.float64)
    s.requires_grad_()
    r.requires_grad_()
    loss = plackett_luce(s, r)
    literal = sum(
        math.log(sum(math.exp(x) for x in ranked[k:]) + sum(math.exp(x) for x in below)) - ranked[k]
        for k in range(len(ranked))
    )
    assert loss.item() == pytest.approx(literal, rel=1e-6, abs=1e-6) and loss.item() >= -1e-9
    assert plackett_luce(s + shift, r + shift).item() == pytest.approx(loss.item(), rel=1e-6, abs=1e-6)
    best = plackett_luce(s.sort(descending=True)[0], r.flip(1))
    assert best.item() <= loss.item() + 1e-6
    loss.sum().backward()
    gradients = [torch.zeros_like(x) if x.grad is None else x.grad for x in (s, r)]
    assert float(torch.cat(gradients, 1).sum()) == pytest.approx(0, abs=1e-6) and bool((gradients[1] >= 0).all())


def test_item_side_is_the_user_side_of_the_transposed_scores() -> None:
    table = torch.randn(5, 7)
    users = torch.tensor([[0, 3], [2, 1]])  # of items 4 and 6: ranked, then below
    by_item = plackett_luce(
        table[users[:, :1], torch.tensor([[4], [6]])], table[users[:, 1:], torch.tensor([[4], [6]])]
    )
    transposed = plackett_luce(table.T[[4, 6]].gather(1, users[:, :1]), table.T[[4, 6]].gather(1, users[:, 1:]))
    assert torch.equal(by_item, transposed)


# ---- who is drawn ----------------------------------------------------------------------------------------------------


def test_ranks_are_drawn_as_the_paper_counts_them() -> None:
    drawn = draw_ranks(np.full(60_000, 500), 40, 10.0, 500, np.random.default_rng(1))
    assert (np.diff(drawn, axis=1) > 0).all()
    counts = np.bincount(drawn.ravel(), minlength=500) / len(drawn)
    expected = {1: 1.0, 10: 1.0, 20: 0.984, 30: 0.802, 40: 0.446, 50: 0.195, 60: 0.075, 80: 0.011, 100: 0.0014}
    for rank, probability in expected.items():
        assert counts[rank - 1] == pytest.approx(probability, abs=0.01)
    assert drawn[:, -1].mean() + 1 == pytest.approx(64, abs=1)


@pytest.mark.parametrize("few_win", [0, 1, 6])
def test_chances_of_sets_of_ranks(few_win: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the chances of drawing one after the other, however many ranks are drawn at once."""
    monkeypatch.setattr(draws, "_FEW_WIN", few_win)
    lengths = np.repeat([5, 2, 4], 20_000)
    drawn = draw_ranks(lengths, 2, 1.5, 7, np.random.default_rng(4))
    assert (drawn[lengths == 2] == [0, 1]).all()
    for length in (4, 5):
        weights = np.exp(-np.arange(length) / 1.5)
        chances = weights / weights.sum()
        once = chances[:, None] * chances / (1 - chances[:, None])  # of one, then another
        expected = 20_000 * (once + once.T)[np.triu_indices(length, 1)]
        codes = drawn[lengths == length] @ [length, 1]
        counts = np.bincount(codes, minlength=length**2).reshape(length, length)[np.triu_indices(length, 1)]
        assert counts.sum() == 20_000
        assert ((counts - expected) ** 2 / expected).sum() < 30  # 99.9 % point of 9 degrees of freedom: 27.9


@given(st.lists(st.integers(0, 9), min_size=1, max_size=5), st.integers(1, 12), st.integers(0, 9))
def test_short_lists_are_drawn_whole(lengths: list[int], count: int, seed: int) -> None:
    drawn = draw_ranks(np.array(lengths), count, 2.0, 9, np.random.default_rng(seed))
    for length, ranks in zip(lengths, drawn):
        real = ranks[ranks >= 0]
        assert len(real) == min(length, count, 9) == len(set(real)) and (np.sort(real) == real).all()
        assert (ranks[len(real) :] == -1).all() and (real < length).all()


@given(st.integers(1, 4), st.integers(3, 14), st.integers(1, 6), st.integers(0, 99))
def test_drawn_outside_of_what_is_used(keys: int, values: int, count: int, seed: int) -> None:
    stream = np.random.default_rng(seed)
    pairs = stream.integers(0, keys, 20), stream.integers(1, values, 20)
    used = UsedIds(*pairs, keys, values)
    drawn = draw_outside(used, count, 1, stream)
    for key, row_of_key in enumerate(drawn):
        free = set(range(1, values)) - used[key]
        real = row_of_key[row_of_key >= 0]
        assert len(real) == len(set(real.tolist())) == min(count, len(free)) and set(real.tolist()) <= free


def test_what_is_drawn_outside_is_uniform() -> None:
    used = UsedIds(np.zeros(3, dtype=int), np.array([2, 3, 5]), 1, 12)
    counts = np.zeros(12)
    for seed in range(3000):
        counts[draw_outside(used, 4, 1, np.random.default_rng(seed))[0]] += 1
    assert counts[[0, 2, 3, 5]].sum() == 0
    assert counts[[1, 4, 6, 7, 8, 9, 10, 11]] == pytest.approx(np.full(8, 1500), abs=120)


def ranks_of_draws(items: int, draws: int, rule: str, sharpness: float, seed: int = 3) -> np.ndarray:
    """0-based ranks of what CD draws for one user who has consumed every third item; item ids are ranks backwards."""
    stream = np.random.default_rng(seed)
    used = UsedIds(np.zeros(items // 3, dtype=int), 3 * np.arange(items // 3) + 1, 1, items + items // 3 + 1)
    tries = tries_of_draws((1, draws), rule, sharpness, stream)
    offered = torch.from_numpy(draw_unused(used, int(tries.sum()), 1, stream))
    drawn = offered.gather(1, best_tries(-offered.double(), torch.from_numpy(tries)))[0].numpy()
    unused = np.setdiff1d(np.arange(1, used.value_count), used.values_of(0))
    assert len(unused) == items and set(drawn) <= set(unused)
    return np.searchsorted(unused, drawn)


def test_soft_labels_are_drawn_over_all_unseen_items() -> None:
    """Expected mean rank over their number: 1/3 of the linear rule, and as integrated of the exponential one."""
    ranks = ranks_of_draws(3000, 60_000, "linear", 0.0)
    assert ranks.mean() / 3000 == pytest.approx(1 / 3, abs=0.005) and ranks.max() > 2900
    ranks = ranks_of_draws(3000, 60_000, "exponential", 5.0)
    assert ranks.mean() / 3000 == pytest.approx(1 / 5 - math.exp(-5) / (1 - math.exp(-5)), abs=0.005)


@pytest.mark.parametrize(("rule", "sharpness"), [("linear", 0.0), ("exponential", 5.0), ("exponential", 0.1)])
def test_chances_of_ranks_of_soft_labels(rule: str, sharpness: float) -> None:
    """The weight of a rank is that of the rule over its share of the list, ``[r / n, (r + 1) / n]``."""
    below = np.arange(13) / 12
    until = 1 - (1 - below) ** 2 if rule == "linear" else np.expm1(-sharpness * below) / np.expm1(-sharpness)
    counts = np.bincount(ranks_of_draws(12, 40_000, rule, sharpness), minlength=12)
    expected = 40_000 * np.diff(until)
    assert ((counts - expected) ** 2 / expected).sum() < 31.3  # 99.9 % point of 11 degrees of freedom


def test_the_best_try_of_each_draw() -> None:
    scores = torch.tensor([[1.0, 3, 2, NAN, 0, 9], [5, 5, 7, 1, 2, 2]])
    tries = torch.tensor([[2, 1, 2], [1, 2, 3]])
    assert best_tries(scores, tries).tolist() == [[1, 2, 4], [0, 2, 4]]


@given(st.integers(1, 4), st.integers(3, 14), st.integers(0, 99))
def test_unused_values_are_drawn(keys: int, values: int, seed: int) -> None:
    stream = np.random.default_rng(seed)
    used = UsedIds(stream.integers(0, keys, 20), stream.integers(1, values, 20), keys, values)
    drawn = draw_unused(used, 200, 1, stream)
    for key, row_of_key in enumerate(drawn):
        free = set(range(1, values)) - used[key]
        assert set(row_of_key.tolist()) == (free or {-1})


def test_unused_values_are_uniform() -> None:
    used = UsedIds(np.array([0, 0, 0, 2]), np.array([1, 3, 6, 4]), 3, 8)
    counts = np.bincount(draw_unused(used, 8000, 1, np.random.default_rng(0))[0], minlength=8)
    assert counts[[0, 1, 3, 6]].sum() == 0
    assert counts[[2, 4, 5, 7]] == pytest.approx(np.full(4, 2000), abs=160)


# ---- RD and CD -------------------------------------------------------------------------------------------------------


def test_ranking_distillation() -> None:
    weights = position_weights(3, 1.0)
    assert weights.tolist() == pytest.approx([0.665241, 0.244728, 0.090031], abs=1e-6)
    student, above = row(1.2, -0.4, 0.3), torch.tensor([[0, 3, 1]])
    assert weighted_positives(student, weights).item() == pytest.approx(0.448496, abs=1e-6)
    discrepancy = discrepancy_weights(above, 100, 1001, 0.1, first=0)
    assert discrepancy.tolist()[0] == pytest.approx([0, 0.993963, 0.664037], abs=1e-6)
    assert weighted_positives(student, weights * discrepancy).item() == pytest.approx(0.255233, abs=1e-6)
    hybrid = weights * discrepancy / (weights * discrepancy).sum()
    assert weighted_positives(student, hybrid).item() == pytest.approx(0.842258, abs=1e-6)
    gentle = weights * discrepancy_weights(above, 100, 1001, 0.01, first=0)
    assert weighted_positives(student, gentle).item() == pytest.approx(0.067025, abs=1e-6)
    assert weighted_positives(student, gentle / gentle.sum()).item() == pytest.approx(0.879202, abs=1e-6)


@pytest.mark.parametrize(("scale", "shift", "loss"), [(1, 0, 1.917628), (2, 0, 2.052780), (2, 1, 1.892520)])
def test_collaborative_distillation(scale: float, shift: float, loss: float) -> None:
    teacher, student = row(2.0, -1.0, 0.5, 0.0), row(0.5, 0.0, 1.0, NAN)
    assert soft_cross_entropy(student, teacher, scale, shift).item() == pytest.approx(loss, abs=1e-6)


# ---- experts ---------------------------------------------------------------------------------------------------------


def worked_experts() -> Experts:
    experts = Experts(1, 2, 2)
    with torch.no_grad():
        experts.weight_in.copy_(torch.tensor([[[1.0]], [[-1.0]]]))
        experts.bias_in.copy_(torch.tensor([[[0.0]], [[0.5]]]))
        experts.weight_out.copy_(torch.tensor([[[1.0, 2.0]], [[3.0, 1.0]]]))
        experts.bias_out.copy_(torch.tensor([[[0.0, 0.0]], [[0.1, -0.1]]]))
        assert experts.selection is not None
        experts.selection.weight.zero_()
        experts.selection.bias.copy_(torch.tensor([0.2, -0.3]))
    return experts


def outputs_of_experts(experts: Experts, student: torch.Tensor) -> torch.Tensor:
    """What each expert makes of student vectors, one after another: ``[M, b, d_T]``."""
    layers = zip(experts.weight_in, experts.bias_in, experts.weight_out, experts.bias_out)
    return torch.stack([(student @ w + b).relu() @ v + c for w, b, v, c in layers])


@pytest.mark.parametrize(
    ("tau", "shares", "loss"),
    [(1, (0.750260, 0.249740), 0.370042), (0.5, (0.900250, 0.099750), 0.408488), (1e-10, (1, 0), 0.450000)],
)
def test_experts(tau: float, shares: tuple[float, float], loss: float) -> None:
    experts, student, teacher = worked_experts(), row(0.4), row(1.0, 0.5)
    each = [one[0] for one in outputs_of_experts(experts, student).tolist()]
    assert each == [pytest.approx([0.4, 0.8]), pytest.approx([0.4, 0.0], abs=1e-7)]
    noise = row(0.5, -0.1)
    assert experts.shares(teacher, tau, noise).tolist()[0] == pytest.approx(shares, abs=1e-6)
    found = experts(student, teacher, tau, noise)
    second = {1: 0.600208, 0.5: 0.720200, 1e-10: 0.800000}[tau]
    assert found[0].tolist() == pytest.approx([0.4, second], abs=1e-6)
    assert squared_error(teacher, found).item() == pytest.approx(loss, abs=1e-6)
    assert experts.groups(teacher).tolist() == [0]


def test_sizes_of_experts() -> None:
    sides = [Experts(20, 200, 30) for _ in range(2)]
    selection = sum(p.numel() for side in sides for name, p in side.named_parameters() if "selection" in name)
    assert selection == 12_060
    assert sum(p.numel() for side in sides for p in side.parameters()) == 1_470_600 + 12_060
    assert Experts(20, 20, 2).weight_in.shape == (2, 20, 10)
    personal = Personalisation(20, 200, 2100)
    assert sum(p.numel() for p in personal.parameters()) == 8_826_100


def test_course_of_the_temperature() -> None:
    assert [temperature(epoch, 1000) for epoch in (0, 1)] == [1, 1]
    course = {101: 0.1, 251: 0.00316228, 501: 1e-5, 1001: 1e-10}
    for epoch, value in course.items():
        assert temperature(epoch, 1000, floor=0.0) == pytest.approx(value, rel=1e-5)
        assert temperature(epoch, 1000) == max(temperature(epoch, 1000, floor=0.0), 1e-3)


def test_properties_of_experts() -> None:
    experts, student, teacher, noise = Experts(3, 5, 4), torch.randn(6, 3), torch.randn(6, 5), torch.randn(6, 4)
    assert torch.allclose(experts.shares(teacher, 0.3, noise).sum(1), torch.ones(6))
    found = experts(student, teacher, 0.3, noise)
    slowly = torch.einsum("bm,mbd->bd", experts.shares(teacher, 0.3, noise), outputs_of_experts(experts, student))
    torch.testing.assert_close(found, slowly)
    order = torch.tensor([2, 0, 3, 1])
    with torch.no_grad():
        for weight in (experts.weight_in, experts.bias_in, experts.weight_out, experts.bias_out):
            weight.copy_(weight[order])
        assert experts.selection is not None
        experts.selection.weight.copy_(experts.selection.weight[order])
        experts.selection.bias.copy_(experts.selection.bias[order])
    torch.testing.assert_close(experts(student, teacher, 0.3, noise[:, order]), found)


@pytest.mark.parametrize("tau", [1.0, 0.1, 0.02, 1e-3, 1e-10])
def test_shares_too_small_to_count_change_neither_result_nor_gradients(tau: float) -> None:
    torch.manual_seed(3)
    experts, student = Experts(4, 9, 7).double(), torch.randn(40, 4, dtype=torch.double, requires_grad=True)
    teacher, above = torch.randn(2, 40, 9, dtype=torch.double)
    noise = torch.distributions.Gumbel(0.0, 1.0).sample((40, 7)).double()
    shares = experts.shares(teacher, tau, noise)
    assert (shares < torch.finfo(shares.dtype).eps).any() == (tau < 1)
    wanted = [student, *experts.parameters()]
    slowly = torch.einsum("bm,mbd->bd", shares, outputs_of_experts(experts, student))
    found = experts(student, teacher, tau, noise)
    torch.testing.assert_close(found, slowly)
    for mine, theirs in zip(torch.autograd.grad(found, wanted, above), torch.autograd.grad(slowly, wanted, above)):
        torch.testing.assert_close(mine, theirs)


def test_least_shares_are_left_out_and_nothing_else() -> None:
    torch.manual_seed(3)
    exact, student, teacher = Experts(4, 9, 7), torch.randn(40, 4), torch.randn(40, 9)
    rough = Experts(4, 9, 7, least_share=1e-2)
    rough.load_state_dict(exact.state_dict())
    noise = torch.distributions.Gumbel(0.0, 1.0).sample((40, 7))
    shares = exact.shares(teacher, 0.3, noise)
    kept = torch.where(shares < 1e-2, 0.0, shares)
    assert 0 < int((kept == 0).sum()) < kept.numel() and kept.count_nonzero() < 0.6 * kept.numel()
    expected = torch.einsum("bm,mbd->bd", kept, outputs_of_experts(exact, student) - exact.bias_out) + shares @ (
        exact.bias_out.squeeze(1)
    )
    torch.testing.assert_close(rough(student, teacher, 0.3, noise), expected)


def test_an_expert_of_nobody_gets_no_gradient_and_autocast_one_product() -> None:
    experts, student, teacher = Experts(3, 5, 4), torch.randn(6, 3), torch.randn(6, 5)
    noise = torch.zeros(6, 4)
    noise[:, 2] = -100.0
    found = experts(student, teacher, 0.1, noise)
    found.sum().backward()
    assert (
        experts.weight_in.grad is not None and not experts.weight_in.grad[2].any() and experts.weight_in.grad[1].any()
    )
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(experts(student, teacher, 0.1, noise).float(), found, rtol=0.05, atol=0.05)


def test_hints() -> None:
    regressor = torch.nn.Linear(2, 3, bias=False)
    with torch.no_grad():
        regressor.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]))
    assert squared_error(row(1.0, 1.0, 2.0), regressor(row(1.0, 2.0))).item() == pytest.approx(2.0)


def test_enriched_vectors() -> None:
    """Row 0 is padding; user 2 and item 3 have no neighbours."""
    users = torch.tensor([[9.0, 9.0], [1.0, -0.5], [3.0, 3.0]])
    items = torch.tensor([[9.0, 9.0], [0.2, 0.4], [0.6, 0.0], [5.0, 5.0]])
    found = enriched(users, items, np.array([1 * 4 + 1, 1 * 4 + 2]))
    torch.testing.assert_close(found[0], torch.tensor([[9.0, 9.0], [0.7, -0.15], [3.0, 3.0]]))
    torch.testing.assert_close(found[1], torch.tensor([[9.0, 9.0], [0.6, -0.05], [0.8, -0.25], [5.0, 5.0]]))


def test_personal_maps() -> None:
    personal = Personalisation(2, 2, 1)
    table = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 0.0], [0.0, -2.0]])
    personal.network = torch.nn.Sequential(torch.nn.Linear(2, 4, bias=False))
    with torch.no_grad():
        personal.network[0].weight.copy_(table)
    found = personal(row(0.5, 1.0), row(0.7, -0.15))
    assert found.tolist()[0] == pytest.approx([0.2, 1.0])
    assert squared_error(row(1.0, -0.5), found).item() == pytest.approx(2.89)


# ---- topology --------------------------------------------------------------------------------------------------------

TEACHER, STUDENT = torch.tensor([[1.0, 0], [1, 1], [0, 2]]), torch.tensor([[1.0], [2], [-1]])
GROUPS = torch.tensor([7, 7, 2])


def test_full_topology() -> None:
    assert full_topology(STUDENT, TEACHER).item() == pytest.approx(8.0)
    rotation = torch.linalg.qr(torch.randn(2, 2))[0]
    assert full_topology(3 * TEACHER @ rotation, TEACHER).item() == pytest.approx(0, abs=1e-6)
    rescaled = STUDENT * torch.tensor([[0.1], [3], [5]])
    assert full_topology(rescaled, TEACHER).item() == pytest.approx(8.0)
    zeros = torch.zeros(3, 1, requires_grad=True)
    full_topology(zeros, TEACHER).backward()
    assert zeros.grad is not None and bool(zeros.grad.isfinite().all())


@pytest.mark.parametrize("closeness", [0.0, 1.0])
def test_full_topology_is_that_of_all_pairs(closeness: float) -> None:
    """Values and gradients, of vectors far from the teacher's and close to them."""
    teacher = torch.randn(60, 7)
    student = (closeness * teacher[:, :3] + torch.randn(60, 3)).requires_grad_()
    pairs = (cosines(teacher, teacher) - cosines(student, student)).square().sum()
    expected = torch.autograd.grad(pairs, student)[0]
    torch.testing.assert_close(full_topology(student, teacher), pairs)
    found = torch.autograd.grad(full_topology(student, teacher), student)[0]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("positive_only", [True, False])
def test_entities_of_groups_are_compared_in_pairs(positive_only: bool) -> None:
    teacher, student, groups = torch.randn(40, 6), torch.randn(40, 3), torch.randint(0, 5, (40,)) * 7
    of_teacher = cosines(teacher, teacher)
    pairs = (groups[:, None] == groups) & (of_teacher > (0 if positive_only else -2))
    expected = ((of_teacher - cosines(student, student)).square() * pairs).sum()
    found = Topology(positive_only=positive_only).entity_level(student, teacher, groups)
    torch.testing.assert_close(found, expected)


def test_hierarchical_topology() -> None:
    paper, code = Topology(), Topology(False, True, False)
    assert paper.entity_level(STUDENT, TEACHER, GROUPS).item() == pytest.approx(0.171573, abs=1e-6)
    assert code.group_level(STUDENT, TEACHER, GROUPS).item() == pytest.approx(6.022420, abs=1e-5)
    assert paper.group_level(STUDENT, TEACHER, GROUPS).item() == pytest.approx(6.008641, abs=1e-5)
    between = Topology(between_groups=True)
    assert between.group_level(STUDENT, TEACHER, GROUPS).item() == pytest.approx(4.188854, abs=1e-5)
    turned = TEACHER.clone()
    turned[1] = torch.tensor([-1.0, 1.0])
    assert paper.entity_level(STUDENT, turned, GROUPS).item() == pytest.approx(5.828427, abs=1e-5)
    assert code.entity_level(STUDENT, turned, GROUPS).item() == pytest.approx(0, abs=1e-6)


def test_properties_of_hierarchical_topology() -> None:
    student, teacher = torch.randn(6, 2), torch.randn(6, 3)
    alone, topology = torch.arange(6), Topology(between_groups=True)
    assert topology.entity_level(student, teacher, alone).item() == pytest.approx(0, abs=1e-5)
    expected = full_topology(student, teacher)
    torch.testing.assert_close(topology.group_level(student, teacher, alone), expected)
    together = torch.zeros(6, dtype=torch.long)
    torch.testing.assert_close(Topology().entity_level(student, teacher, together), expected)


def test_prototypes_without_gradient() -> None:
    student = STUDENT.clone().requires_grad_()
    official = Topology(False, True, False, between_groups=True).group_level(student, TEACHER, GROUPS)
    assert not official.requires_grad
    assert cosines(STUDENT, STUDENT).tolist()[0] == pytest.approx([1, 1, -1])


def test_running_sums_by_one_call_are_those_of_columns() -> None:
    """What a GPU takes is what a CPU takes."""
    columns = torch.randn(12, 5) * 20
    columns[3] = columns[4, 2] = -1e9
    assert torch.allclose(_running_logsumexp(columns), columns.logcumsumexp(0), atol=1e-5)
