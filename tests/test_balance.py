"""Balanced losses against GradNorm written out, with torch's own gradients of gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from recbole_prune.distillers.losses.balance import FLOOR, Balance, Pull, pull_of

HEADS, POWER, RATE = 6, 0.15, 0.01
FACTORS = [(1.0, 0.5)] * 4 + [(1.0, 0.0), (0.0, 0.5)]


def toy(seed: int = 0) -> tuple[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor]]:
    """Tables of users and items, losses of all heads, and what the consensus adds to them."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    tables = [draw(4, 3).requires_grad_(), draw(5, 3).requires_grad_()]
    losses, added = [], []
    for number in range(HEADS):
        scores = (tables[0] * (1 + number)) @ draw(3, 3) @ tables[1].t()
        losses.append(scores.square().mean() + number)
        added.append((scores * draw(4, 5)).sigmoid().sum())
    return tables, losses, added


def pulls_of(tables: list[torch.Tensor], losses: list[torch.Tensor], added: list[Any]) -> list[list[Pull]]:
    found = []
    for loss, more, factors in zip(losses, added, FACTORS):
        sides = [pull_of(loss, more, [table], factor) for table, factor in zip(tables, factors)]
        found.append([side for side in sides if side is not None])
    return found


class Literal:
    """methods/distillation_ranking.md, section 6, step 3, as it stands there."""

    def __init__(self) -> None:
        self.weights = torch.ones(HEADS, dtype=torch.float64, requires_grad=True)
        self.adam = torch.optim.Adam([self.weights], lr=RATE)
        self.reference: torch.Tensor | None = None

    def step(self, tables: list[torch.Tensor], losses: list[Any], added: list[Any], refer: bool) -> None:
        norms = []
        for x, (loss, more, factors) in enumerate(zip(losses, added, FACTORS)):
            total = self.weights[x] * loss + (0 if more is None else more)
            gradients = torch.autograd.grad(total, tables, create_graph=True, allow_unused=True)
            norms.append(sum(f * g.norm() for f, g in zip(factors, gradients) if f))
        found, weighted = torch.stack(norms), (self.weights * torch.stack(losses)).detach()
        if refer:
            self.reference = weighted
        progress = weighted / self.reference
        target = found.mean().detach() * (progress / progress.mean()) ** POWER
        self.weights.grad = torch.autograd.grad((found - target).abs().sum(), self.weights)[0]
        self.adam.step()
        with torch.no_grad():
            self.weights.mul_(HEADS / self.weights.sum()).clamp_(min=FLOOR)


@pytest.mark.parametrize("with_consensus", [False, True])
def test_weights_move_as_written_out(with_consensus: bool) -> None:
    balance, literal = Balance(HEADS, RATE, POWER, torch.device("cpu")), Literal()
    balance._weights.data = balance._weights.data.double()
    for step in range(12):
        tables, losses, added = toy(step)
        more: list[Any] = added if with_consensus else [None] * HEADS
        literal.step(tables, losses, more, step < 4)
        balance.step(torch.stack(losses).detach(), pulls_of(tables, losses, more), step < 4)
        assert balance.weights.tolist() == pytest.approx(literal.weights.tolist(), abs=1e-9)
        assert balance.weights.sum().item() == pytest.approx(HEADS)
        assert all(table.grad is None for table in tables), "nothing is written into the model"
    assert balance.weights.std() > 1e-3


def test_no_weight_falls_below_the_floor() -> None:
    balance = Balance(HEADS, 0.5, POWER, torch.device("cpu"))
    one, nothing = torch.tensor(1.0), torch.tensor(0.0)
    pulls = [[Pull(one * 10 ** (2 * x), nothing, nothing, 1.0)] for x in range(HEADS)]
    for _ in range(20):
        balance.step(torch.ones(HEADS), pulls, False)
        weights = balance.weights
        assert weights.min() >= FLOOR - 1e-9 and weights.isfinite().all()
    floored = weights <= FLOOR + 1e-6
    assert floored.any() and weights.sum() >= HEADS - 1e-3


def test_equal_heads_stay_equal_and_what_is_not_finite_moves_nothing() -> None:
    balance, one = Balance(3, RATE, POWER, torch.device("cpu")), torch.tensor(1.0)
    pull = Pull(one, 0 * one, 0 * one, 1.0)
    balance.step(torch.ones(3), [[pull]] * 3, True)
    assert balance.weights.tolist() == [1, 1, 1]
    balance.step(torch.tensor([1.0, torch.inf, 1.0]), [[pull]] * 3, False)
    balance.step(torch.ones(3), [[pull], [pull], [Pull(one * torch.nan, one, one, 1.0)]], False)
    assert balance.weights.tolist() == [1, 1, 1]


def test_a_head_behind_pulls_more() -> None:
    """``(l_x / mean l) ** power`` of the loss over its reference."""
    balance = Balance(2, RATE, POWER, torch.device("cpu"))
    balance.step(torch.tensor([4.0, 4.0]), [[Pull(torch.tensor(1.0), *torch.zeros(2), 1.0)]] * 2, True)
    target = balance.targets(torch.tensor([3.0, 5.0]), torch.tensor([4.0, 1.0]))
    assert target.tolist() == pytest.approx([4 * (1 / 0.625) ** 0.15, 4 * (0.25 / 0.625) ** 0.15])


def test_a_copy_goes_on_alike() -> None:
    one, other = (Balance(HEADS, RATE, POWER, torch.device("cpu")) for _ in range(2))
    for step in range(6):
        tables, losses, added = toy(step)
        losses, added = [loss.float() for loss in losses], [loss.float() for loss in added]
        for balance in (one, other):
            balance.step(torch.stack(losses).detach(), pulls_of(tables, losses, added), step < 2)
        state, other = other.state(), Balance(HEADS, RATE, POWER, torch.device("cpu"))
        other.restore(state)
    assert torch.equal(one.weights, other.weights) and one.weights.std() > 0
