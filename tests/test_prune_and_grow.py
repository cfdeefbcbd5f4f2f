"""Prune-and-grow: the worked vector and schedule of the method file, exact budgets, what grows, the gradient record."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from training_bench import keys

from recbole_prune.masking import grow
from recbole_prune.masking.masks import MaskSet
from recbole_prune.masking.schedule import update_ratio
from recbole_prune.masking.scope import find_scope
from recbole_prune.pruners.prune_and_grow import PruneAndGrow
from recbole_prune.sparse.compact import compact_modules
from recbole_prune.training.gradient_record import GradientRecorder
from recbole_prune.training.model import MaskAware
from recbole_prune.training.session import Session
from recbole_prune.training.trainer import mask_aware_trainer

WEIGHTS = torch.tensor([0.9, -0.2, 0.05, 0, 0, 0.4, -0.7, 0, 0, 0.1])
LIVE = [0, 1, 2, 5, 6, 9]


def vector_mask() -> torch.Tensor:
    mask = torch.zeros(10, dtype=torch.bool)
    mask[LIVE] = True
    return mask


def updated(gradient: list[float], ratio: float = 0.5, seed: int = 0) -> list[int]:
    """Live positions of the worked vector after one update, read as a table of one row."""
    mask, positions = vector_mask(), torch.tensor(LIVE)

    def choose(empty: torch.Tensor, count: int) -> torch.Tensor:
        return grow.grow_by_score(empty, None, torch.tensor([gradient]).abs(), count, seed)

    new = grow.update(mask[None], torch.tensor([True]), positions, WEIGHTS[LIVE].abs(), ratio, choose, seed)
    return new.view(-1).nonzero().view(-1).tolist()


def test_the_worked_vector() -> None:
    """Method file, section 6: W and the gradient give the live set {0, 1, 4, 5, 6, 9}."""
    assert updated([9, 8, 1, 2, 7, 9, 9, 3, 0, 6]) == [0, 1, 4, 5, 6, 9]


def test_the_official_rule_on_the_worked_vector() -> None:
    gradient = torch.tensor([9.0, 8, 1, 2, 7, 9, 9, 3, 0, 6])
    found = grow.update_official(vector_mask(), WEIGHTS, gradient, 0.5)
    assert found.nonzero().view(-1).tolist() == [0, 1, 4, 5, 6, 9]


def test_the_official_rule_leaks_and_ours_does_not() -> None:
    """A gradient at index 3 only: the official growth takes 3 and the live entries 0 and 1 again, 5 stay of 6."""
    gradient = torch.zeros(10)
    gradient[3] = 1.0
    found = grow.update_official(vector_mask(), WEIGHTS, gradient, 0.5)
    assert found.nonzero().view(-1).tolist() == [0, 1, 3, 5, 6]
    for seed in range(20):
        ours = updated(gradient.tolist(), seed=seed)
        assert len(ours) == 6 and {0, 3, 5, 6} <= set(ours)


@pytest.mark.parametrize(
    ("part", "ratio"), [(0, 0.5), (0.25, 0.42751), (0.5, 0.2525), (0.75, 0.07749), (1, 0.005), (1.5, 0.005)]
)
def test_the_cosine_schedule(part: float, ratio: float) -> None:
    assert update_ratio(0.5, 0.005, int(part * 10_000), 10_000) == pytest.approx(ratio, abs=5e-6)


@pytest.mark.parametrize(
    ("steps", "interval", "updates"), [(1_209_000, 3000, 403), (386_000, 2000, 193), (52_400, 100, 524)]
)
def test_update_counts_of_the_official_runs(steps: int, interval: int, updates: int) -> None:
    """Section 1 (6): the official code updates after the last step too; ours never does."""
    official = PruneAndGrow(keys(prune_update_interval=interval, prune_parity="official"), steps, 0)
    ours = PruneAndGrow(keys(prune_update_interval=interval), steps, 0)
    assert sum(map(official.is_update, range(0, steps + 1, interval))) == updates
    assert sum(map(ours.is_update, range(0, steps + 1, interval))) == updates - 1


def test_rigl_ends_at_its_end_fraction() -> None:
    dynamics = PruneAndGrow(keys(pruner="rigl", prune_update_floor=0.0, prune_end_fraction=0.5), 1000, 0)
    assert [step for step in range(1001) if dynamics.is_update(step)] == [100, 200, 300, 400, 500]
    assert dynamics.ratio(500) == 0.0 and dynamics.ratio(0) == 0.5


@settings(max_examples=60)
@given(
    rows=st.integers(1, 12),
    width=st.integers(1, 6),
    density=st.floats(0.0, 1.0),
    ratio=st.floats(0.001, 1.0),
    touched=st.floats(0.0, 1.0),
    seed=st.integers(0, 1000),
)
def test_an_update_keeps_the_budget_and_grows_the_best(
    rows: int, width: int, density: float, ratio: float, touched: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(rows, width, generator=generator) < density
    countable = torch.rand(rows, generator=generator) < 0.9
    mask[~countable] = True
    weights = torch.randn(rows, width, generator=generator).mul_(4).round_() * mask  # many ties
    gradient = torch.randn(rows, width, generator=generator) * (torch.rand(rows, 1, generator=generator) < touched)
    positions = (mask & countable[:, None]).view(-1).nonzero().view(-1)

    def choose(empty: torch.Tensor, count: int) -> torch.Tensor:
        assert not (empty & mask).view(-1)[positions].sum() > count  # only what was just pruned is empty again
        return grow.grow_by_score(empty, None, gradient.abs(), count, seed)

    new = grow.update(mask, countable, positions, weights.view(-1)[positions].abs(), ratio, choose, seed)
    assert int(new.sum()) == int(mask.sum())
    assert bool(new[~countable].all())
    count = grow.pruned_count(ratio, len(positions))
    assert int((mask & ~new).sum()) <= count
    full = grow.update(
        mask, countable, positions, weights.view(-1)[positions].abs(), ratio, choose, seed, keep_rows=True
    )
    assert int(full.sum()) == int(mask.sum()) and bool(full[~countable].all())
    assert bool(full.any(1)[mask.any(1)].all())
    # brute force: what grew has gradients at least as large as every positive one that did not
    grown, left = gradient.abs()[new & ~mask], gradient.abs()[~new & countable[:, None]]
    if len(grown) and len(left) and bool((left > 0).any()) and bool((grown > 0).any()):
        assert grown[grown > 0].min() >= left.max()
    kept, gone = weights.abs()[mask & new & countable[:, None]], weights.abs()[mask & ~new]
    regrown = count - int((mask & ~new).sum())
    if len(kept) and len(gone) and not regrown:
        assert gone.max() <= kept.min()


@pytest.mark.parametrize("many", [grow._MANY, 0])
def test_random_growth_is_uniform_and_without_repetition(many: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grow, "_MANY", many)
    empty = torch.zeros(10, 8, dtype=torch.bool)
    empty[2:8] = True
    hits = torch.zeros(80)
    for seed in range(400):
        drawn = grow.grow_at_random(empty, 6, seed)
        assert len(set(drawn.tolist())) == 6 and bool(empty.view(-1)[drawn].all())
        hits[drawn] += 1
    expected = 400 * 6 / 48
    assert not hits[~empty.view(-1)].any()
    assert abs(hits[empty.view(-1)] - expected).max() < 6 * expected**0.5
    with pytest.raises(ValueError, match="only 48 are empty"):
        grow.grow_at_random(empty, 49, 0)


def test_random_growth_of_a_single_entry_in_a_large_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hardly any draw hits an empty entry."""
    monkeypatch.setattr(grow, "_MANY", 0)
    empty = torch.zeros(1000, 64, dtype=torch.bool)
    empty[5] = True
    for seed in range(50):
        [drawn] = grow.grow_at_random(empty, 1, seed).tolist()
        assert drawn // 64 == 5


def test_the_recorder_adds_what_autograd_would() -> None:
    """Looked up rows, the whole table and both together give the dense gradient's absolute value, batch by batch."""
    table = nn.Embedding(9, 4)
    recorder = GradientRecorder()
    expected = torch.zeros(9, 4)
    for whole in (False, True, False):
        ids = torch.randint(9, (5,))
        weight = torch.randn(5, 4)
        table.zero_grad()
        loss = (table(ids) * weight).sum() + (table.weight.pow(2).sum() if whole else 0)
        loss.backward()
        recorder.of("t")(ids[:3], weight[:3])
        recorder.of("t")(ids[3:], weight[3:])
        if whole:
            recorder.of("t")(None, 2 * table.weight.detach())
        recorder.end_batch()
        expected += table.weight.grad.abs()
    rows, values = recorder.take("t")
    assert rows is None and torch.allclose(values, expected)
    assert recorder.take("t") is None


def test_the_recorder_leaves_out_a_batch_that_is_not_finite() -> None:
    recorder = GradientRecorder()
    recorder.of("t")(torch.tensor([1]), torch.tensor([[float("inf")]]))
    recorder.end_batch()
    assert recorder.take("t") is None


class Toy(MaskAware, nn.Module):
    """A table, a matrix and a convolution."""

    def __init__(self, storage: str) -> None:
        super().__init__()
        self.table = nn.Embedding(30, 6)
        self.linear = nn.Linear(6, 5)
        self.conv = nn.Conv1d(1, 3, 2)
        self.storage = storage

    def loss(self, ids: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(self.linear(self.table(ids)))
        return self.conv(hidden[:, None]).pow(2).mean()


def dense_gradient(weights: dict[str, torch.Tensor], ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Absolute gradients of all entries, by a model without masks."""
    plain = Toy("masked")
    plain.load_state_dict(weights)
    plain.loss(ids).backward()
    return {name: parameter.grad.abs() for name, parameter in plain.named_parameters()}


def dense_moments(model: Toy, optimizer: torch.optim.Optimizer, name: str) -> list[torch.Tensor]:
    """Adam's mean and variance of a tensor in the shape of its weight."""
    compact = dict(compact_modules(model)).get(name)
    kept = optimizer.state[dict(model.named_parameters())[name] if compact is None else compact.values]
    both = [kept["exp_avg"], kept["exp_avg_sq"]]
    return both if compact is None else [compact.rows.expand(moment) for moment in both]


def assert_the_best_grew(
    old: torch.Tensor, new: torch.Tensor, trained: torch.Tensor, scores: torch.Tensor, ratio: float
) -> None:
    """Brute force: of all that is empty once the smallest have gone, none left empty beats one that is live now."""
    live = trained.abs()[old]
    threshold = live.sort().values[grow.pruned_count(ratio, len(live)) - 1]
    certain = ~old | (old & (trained.abs() < threshold))  # entries at the threshold may have gone or not
    chosen, left = scores[certain & new], scores[certain & ~new]
    assert not len(chosen) or not len(left) or float(chosen.min()) >= float(left.max()) * (1 - 1e-4) - 1e-9


@pytest.mark.slow
@pytest.mark.parametrize(
    ("storage", "growth", "window"),
    [
        ("compact", "gradient", 1),
        ("compact", "gradient", 3),
        ("compact", "random", 1),
        ("masked", "gradient", 1),
        ("masked", "gradient", 3),
        ("masked", "random", 1),
        ("masked", "momentum", 1),
    ],
)
def test_two_hundred_updates_of_a_toy(storage: str, growth: str, window: int) -> None:
    """Budgets (untouched rows included), what grows, and weights and moments across every update."""
    torch.manual_seed(3)
    model = Toy(storage)
    model.dense_moments = growth == "momentum"
    scope = find_scope(model, scope="all")
    masks = MaskSet(scope, {t.name: torch.rand(t.shape) < 0.4 for t in scope})
    budgets = {name: int(mask.sum()) for name, mask in masks.items()}
    model.set_masks(masks)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    trainer = SimpleNamespace(model=model, optimizer=optimizer)
    interval = window + 1
    words = {"prune_update_interval": interval, "prune_growth": growth, "prune_gradient_window": window}
    dynamics = PruneAndGrow(keys(**words), interval * 201, seed=5)
    gradients: list[dict[str, torch.Tensor]] = []
    dynamics.begin(trainer)
    rate = dynamics.exploration_rate(model.masks)
    assert rate == pytest.approx(model.masks.kept / model.masks.prunable)
    for step in range(1, interval * 200 + 1):
        before = {name: value.clone() for name, value in model.state_dict().items()}
        ids = torch.randint(10, (4,))  # rows 10 to 29 are never touched
        optimizer.zero_grad()
        model.loss(ids).backward()
        optimizer.step()
        model.apply_masks()
        if (step - 1) % interval >= interval - window:
            gradients.append(dense_gradient(before, ids))
        old, trained = model.masks, {name: value.clone() for name, value in model.state_dict().items()}
        moments = {name: [m.clone() for m in dense_moments(model, optimizer, name)] for name in old}
        dynamics.after_step(trainer)
        after = model.state_dict()
        for name, mask in model.masks.items():
            grown = mask & ~old[name]
            for earlier, later in zip(moments[name], dense_moments(model, optimizer, name)):
                assert torch.equal(later[mask & old[name]], earlier[mask & old[name]])
                assert model.dense_moments or not later[grown].any()
            if step % interval == 0 and growth != "random":
                mean, variance = moments[name]
                scores = mean.abs() / (variance.sqrt() + 1e-8)
                if growth == "gradient":
                    scores = torch.stack([each[name] for each in gradients]).sum(0)
                assert_the_best_grew(old[name], mask, trained[name], scores, dynamics.ratio(step))
            assert int(mask.sum()) == budgets[name]
            assert not after[name][~mask].any()
            stayed = mask & old[name]
            assert torch.equal(after[name][stayed], trained[name][stayed])
            assert not after[name][grown].any()
        if step % interval == 0:
            gradients.clear()
        assert before.keys() == after.keys()
    assert dynamics.updates == 200
    assert rate < dynamics.exploration_rate(model.masks) <= 1


def test_steps_are_those_that_epochs_take() -> None:
    """Knowledge-graph passes are no batches of the data loader: known once an epoch is over."""
    dynamics = PruneAndGrow(keys(), 100, 0)
    dynamics.step = 30
    dynamics.end_epoch(SimpleNamespace(epochs=10, epochs_done=1))
    assert dynamics.steps == 300 and dynamics.is_update(200)
    again = PruneAndGrow(keys(), 100, 0)
    again.restore(dynamics.state(), torch.device("cpu"))
    assert again.steps == 300


class ToyTrainer:
    """The parts of RecBole's trainer that the mask-aware one builds on."""

    def __init__(self, config: Any, model: Any) -> None:
        self.model = model
        self.optimizer = self._build_optimizer()

    def _build_optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.model.parameters(), lr=0.01)


@pytest.mark.parametrize("storage", ["compact", "masked"])
def test_a_step_that_a_loss_scaler_leaves_out_is_not_counted(storage: str) -> None:
    """A scaler calls fused Adam whatever the gradients are, with ``found_inf`` on it."""
    torch.manual_seed(3)
    model = Toy(storage)
    scope = find_scope(model, scope="all")
    model.set_masks(MaskSet(scope, {t.name: torch.rand(t.shape) < 0.4 for t in scope}))
    dynamics = PruneAndGrow(keys(prune_update_interval=2, prune_gradient_window=2), 20, seed=5)
    session = Session("a toy", [], parts=(dynamics,))
    trainer = mask_aware_trainer(ToyTrainer)({}, model, session)
    if not trainer.optimizer.defaults.get("fused"):
        pytest.skip("this torch has no fused Adam on a CPU")
    dynamics.begin(trainer)
    for overflow, steps in ((False, 1), (True, 1), (True, 1), (False, 2)):
        trainer.optimizer.zero_grad()
        (model.loss(torch.arange(4)) * (float("inf") if overflow else 1)).backward()
        trainer.optimizer.found_inf = torch.tensor(float(overflow))
        if steps == 2:  # the batches left out are not in the record of the next
            assert all(bool(record.values.isfinite().all()) for r in dynamics._recorder._batch.values() for record in r)
        trainer.optimizer.step()
        assert dynamics.step == steps
    assert dynamics.updates == 1 and dynamics.grown > 0
