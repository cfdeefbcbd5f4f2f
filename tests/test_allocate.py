"""Selections keep exactly what they were asked for, the best of it, and never touch what must stay."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from recbole_prune.anatomy import tables
from recbole_prune.errors import ConfigError, TrainingError
from recbole_prune.masking.allocate import select, select_official
from recbole_prune.masking.masks import MaskSet
from recbole_prune.masking.schedule import kept_counts
from recbole_prune.masking.scope import Scope, Target
from recbole_prune.masking.scores import magnitude, uniform
from recbole_prune.pruners.magnitude import IterativeMagnitudePruning, OneShotMagnitudePruning

Scores = dict[str, torch.Tensor]
VECTOR = [0.5, -0.1, 0.3, 0.2, -0.4, 0.05, 0.0, 0.7, -0.6, 0.15]


def scope_of(*shapes: tuple[int, ...], padding: tuple[int, ...] = (0,)) -> Scope:
    """Targets a, b, ... of the given shapes."""
    return Scope(tuple(Target(chr(ord("a") + i), "embedding", shape, padding) for i, shape in enumerate(shapes)))


def two_tables() -> Scope:
    """The tables of BPR on ml-100k: 168 000 prunable entries."""
    return scope_of((944, 64), (1683, 64))


def distinct_scores(scope: Scope, seed: int) -> Scores:
    """A random permutation of the integers over all entries: no ties, padding rows included."""
    sizes = [int(np.prod(target.shape)) for target in scope]
    order = torch.from_numpy(np.random.default_rng(seed).permutation(sum(sizes))).float()
    return {t.name: part.view(t.shape) for t, part in zip(scope, order.split(sizes))}


def bits(mask: torch.Tensor) -> str:
    return "".join(map(str, mask.reshape(-1).int().tolist()))


@st.composite
def populations(draw: st.DrawFn) -> tuple[MaskSet, Scores]:
    """One to three small targets of two or three dimensions with padding rows, pruned entries and many ties."""
    targets, masks, scores = [], {}, {}
    for name in ["a", "b", "c"][: draw(st.integers(1, 3))]:
        rows, width = draw(st.integers(1, 6)), draw(st.integers(1, 6))
        shape = (rows, width) if draw(st.booleans()) else (rows, width, 2)
        padding = tuple(sorted(draw(st.sets(st.integers(0, rows - 1), max_size=rows - 1))))
        targets.append(Target(name, "embedding", shape, padding))
        seed = draw(st.integers(0, 2**32 - 1))
        random = np.random.default_rng(seed)
        mask = torch.from_numpy(random.random(shape) < draw(st.sampled_from([0.4, 0.9, 1.0])))
        mask[list(padding)] = True
        masks[name] = mask
        levels = draw(st.sampled_from([1, 3, 1000]))
        scores[name] = torch.from_numpy(random.integers(0, levels, shape).astype(np.float32)) / levels
    return MaskSet(Scope(tuple(targets)), masks), scores


def slow_reference(scores: Scores, masks: MaskSet, names: list[str], keep: int, minimum: int) -> list[float]:
    """Scores of the ``keep`` entries of one population that must stay, sorted; found with Python's sort."""
    protected: list[float] = []
    others: list[float] = []
    for name in names:
        for row, live in enumerate(masks[name].flatten(1)):
            if row not in masks.scope[name].padding_rows:
                values = sorted(scores[name].flatten(1)[row][live].tolist(), reverse=True)
                protected += values[:minimum]
                others += values[minimum:]
    return sorted(protected + sorted(others, reverse=True)[: keep - len(protected)])


def protected_entries(masks: MaskSet, names: list[str], minimum: int) -> int:
    return sum(int(masks.per_row(name).clamp(max=minimum).sum()) for name in names)


def kept_scores(scores: Scores, masks: MaskSet, names: list[str]) -> list[float]:
    values: list[float] = []
    for name in names:
        counted = masks.scope[name].countable()
        values += scores[name][counted][masks[name][counted]].tolist()
    return sorted(values)


@given(populations(), st.integers(0, 3), st.integers(0, 2**31), st.data())
def test_global_selection_keeps_exactly_the_best(
    population: tuple[MaskSet, Scores], minimum: int, seed: int, data: st.DataObject
) -> None:
    before, scores = population
    names = list(before)
    keep = data.draw(st.integers(protected_entries(before, names, minimum), before.kept))
    originals = {name: mask.clone() for name, mask in before.items()}

    after = select(scores, before, keep, min_per_row=minimum, seed=seed)

    assert after.kept == keep
    assert after.is_nested_in(before)
    for target in before.scope:
        assert after[target.name][list(target.padding_rows)].all()
        assert torch.equal(before[target.name], originals[target.name])  # the input is not changed
        assert bool((after.per_row(target.name) >= before.per_row(target.name).clamp(max=minimum)).all())
    assert kept_scores(scores, after, names) == slow_reference(scores, before, names, keep, minimum)
    assert select(scores, before, keep, min_per_row=minimum, seed=seed).equals(after)


@given(populations(), st.data())
def test_tensor_selection_is_exact_in_total_and_best_in_each_tensor(
    population: tuple[MaskSet, Scores], data: st.DataObject
) -> None:
    before, scores = population
    keep = data.draw(st.integers(0, before.kept))
    after = select(scores, before, keep, allocation="tensor")
    assert after.kept == keep
    assert after.is_nested_in(before)
    for name in before:
        quota = int(after.per_row(name).sum())
        assert kept_scores(scores, after, [name]) == slow_reference(scores, before, [name], quota, 0)


@given(populations(), st.data())
def test_tensor_selection_gives_each_tensor_its_share_by_size(
    population: tuple[MaskSet, Scores], data: st.DataObject
) -> None:
    dense = MaskSet.dense(population[0].scope)
    keep = data.draw(st.integers(0, dense.kept))
    after = select(population[1], dense, keep, allocation="tensor")
    for target in dense.scope:
        share = keep * target.prunable / dense.prunable
        assert abs(int(after.per_row(target.name).sum()) - share) < 1


def test_tensor_selection_keeps_equal_densities_over_rounds() -> None:
    scope = two_tables()
    masks = MaskSet.dense(scope)
    for seed, keep in enumerate(kept_counts(scope.prunable, rate=0.1, rounds=5)[1:]):
        masks = select(distinct_scores(scope, seed), masks, keep, allocation="tensor")
        assert masks.kept == keep
        for target in scope:
            density = int(masks.per_row(target.name).sum()) / target.prunable
            assert density == pytest.approx(keep / scope.prunable, abs=1 / target.prunable)


def test_capped_tensors_pass_their_share_on() -> None:
    """A tensor with fewer live entries than its share keeps them all; the others take the rest, quickly."""
    scope = scope_of((1001, 1000), (1001, 1000))
    masks = MaskSet.dense(scope)
    first = masks["a"].clone()
    first[1:, 1:] = False
    masks = MaskSet(scope, {"a": first, "b": masks["b"]})
    after = select(uniform(scope, 1), masks, 600_000, allocation="tensor")
    assert int(after.per_row("a").sum()) == 1000
    assert int(after.per_row("b").sum()) == 599_000


def test_global_threshold_spans_all_tensors() -> None:
    scope = scope_of((3, 2), (3, 2))
    scores = {"a": torch.tensor([[9.0, 9.0], [1, 2], [3, 4]]), "b": torch.tensor([[9.0, 9.0], [5, 6], [7, 8]])}
    masks = select(scores, MaskSet.dense(scope), 4)
    assert bits(masks["a"]) == "110000" and bits(masks["b"]) == "111111"


def test_kept_magnitudes_are_above_the_threshold_of_a_full_sort() -> None:
    scope = two_tables()
    generator = torch.Generator().manual_seed(3)
    weights = {t.name: torch.randn(t.shape, generator=generator) for t in scope}
    masks = select(magnitude(weights, scope), MaskSet.dense(scope), 58_580)
    flat = np.sort(np.concatenate([np.abs(weights[t.name][1:].numpy()).reshape(-1) for t in scope]))
    threshold = flat[-58_580]
    for target in scope:
        values = weights[target.name][1:].abs()
        assert torch.equal(masks[target.name][1:], values >= float(threshold))


@pytest.mark.parametrize("minimum", [0, 4])
def test_ties_are_drawn_by_the_seed(minimum: int) -> None:
    scope = scope_of((41, 16), (31, 8))
    equal = {t.name: torch.ones(t.shape) for t in scope}
    dense = MaskSet.dense(scope)
    keep = 70 * minimum if minimum else 400
    drawn = [select(equal, dense, keep, min_per_row=minimum, seed=seed) for seed in range(4)]
    for seed, masks in enumerate(drawn):
        assert masks.kept == keep
        assert masks.equals(select(equal, dense, keep, min_per_row=minimum, seed=seed))
        assert not any(masks.equals(other) for other in drawn[:seed])


def test_only_the_ties_at_the_threshold_are_drawn() -> None:
    scope = scope_of((2, 8))
    scores = {"a": torch.tensor([[0.0] * 8, [3.0, 3, 2, 2, 2, 2, 1, 1]])}
    outcomes = {bits(select(scores, MaskSet.dense(scope), 4, seed=seed)["a"][1]) for seed in range(40)}
    assert len(outcomes) == 6  # two of the four ties
    for outcome in outcomes:
        assert outcome[:2] == "11" and outcome[2:6].count("1") == 2 and outcome[6:] == "00"


def test_live_zeros_count_like_any_other_score() -> None:
    scope = scope_of((2, 4))
    before = MaskSet(scope, {"a": torch.tensor([[True] * 4, [True, False, True, True]])})
    scores = {"a": torch.tensor([[0.0] * 4, [0.0, 9.0, 0.0, 1.0]])}
    after = select(scores, before, 2, seed=1)
    assert after.kept == 2 and bits(after["a"][1])[1] == "0" and bits(after["a"][1])[3] == "1"


@pytest.mark.parametrize("allocation", ["global", "tensor"])
def test_more_than_live_is_refused(allocation: str) -> None:
    scope = scope_of((3, 2), (4, 2))
    masks = MaskSet.dense(scope)
    masks = select(uniform(scope, 0), masks, 7)
    with pytest.raises(ConfigError, match="cannot keep 8 entries: only 7 are live"):
        select(uniform(scope, 1), masks, 8, allocation=allocation)


def test_more_protected_entries_than_may_stay_are_refused() -> None:
    scope = scope_of((11, 4))
    with pytest.raises(ConfigError, match="prune_min_per_row=3 protects 30 entries, but only 20 may stay"):
        select(uniform(scope, 0), MaskSet.dense(scope), 20, min_per_row=3)


def test_nan_scores_are_refused_unless_the_entry_is_pruned_or_padding() -> None:
    scope = scope_of((3, 3))
    scores = {"a": torch.ones(3, 3)}
    scores["a"][0, 0] = torch.nan
    before = select(scores, MaskSet.dense(scope), 5, seed=0)
    pruned = ~before["a"]
    scores["a"][pruned] = torch.nan
    assert select(scores, before, 4).kept == 4
    scores["a"][1:][before["a"][1:]] = torch.nan
    with pytest.raises(TrainingError, match="a holds NaN"):
        select(scores, before, 4)


# ---- the rule of the LTH-MRS code


@pytest.mark.parametrize(
    ("values", "rate", "expected"),
    [
        (VECTOR, 0.1, "1111100111"),  # the exact zero goes too
        (VECTOR, 0.3, "1011100110"),
        ([1.0, 1.0, 1.0, 2.0, 3.0], 0.2, "00011"),  # all ties at the threshold go
    ],
)
@pytest.mark.parametrize("allocation", ["global", "tensor"])
def test_official_worked_vectors(values: list[float], rate: float, expected: str, allocation: str) -> None:
    scope = scope_of((1, len(values)), padding=())
    scores = magnitude({"a": torch.tensor([values])}, scope)
    masks = select_official(scores, MaskSet.dense(scope), rate, allocation=allocation)
    assert bits(masks["a"]) == expected


def test_official_population_is_what_is_live_and_counts() -> None:
    """Neither pruned entries nor padding rows move the threshold."""
    scope = scope_of((3, 10))
    weights = torch.zeros(3, 10)
    weights[0] = 0.01  # padding, smaller than everything
    weights[1] = torch.tensor(VECTOR)
    weights[2] = 100.0
    live = torch.ones(3, 10, dtype=torch.bool)
    live[2] = False
    masks = select_official(magnitude({"a": weights}, scope), MaskSet(scope, {"a": live}), 0.1)
    assert bits(masks["a"][1]) == "1111100111"
    assert masks["a"][0].all() and not masks["a"][2].any()


@given(populations(), st.floats(0, 1, exclude_max=True), st.sampled_from(["global", "tensor"]))
def test_official_rule_equals_its_definition(population: tuple[MaskSet, Scores], rate: float, allocation: str) -> None:
    before, scores = population
    groups = [list(before)] if allocation == "global" else [[name] for name in before]
    values = {name: kept_scores(scores, before, [name]) for name in before}
    populated = [[value for name in group for value in values[name] if value > 0] for group in groups]
    if not all(populated):
        with pytest.raises(ConfigError, match="prune_parity=official"):
            select_official(scores, before, rate, allocation=allocation)
        return
    after = select_official(scores, before, rate, allocation=allocation)
    assert after.is_nested_in(before)
    for group, population_values in zip(groups, populated):
        threshold = sorted(population_values)[int(rate * len(population_values))]
        for name in group:
            assert kept_scores(scores, after, [name]) == [value for value in values[name] if value > threshold]
            assert after[name][list(before.scope[name].padding_rows)].all()


def test_official_counts_without_ties_follow_the_schedule() -> None:
    scope = two_tables()
    counts = kept_counts(scope.prunable, rate=0.1, rounds=10, official=True)
    masks = MaskSet.dense(scope)
    for i in range(1, 11):
        scores = {name: score + 1 for name, score in distinct_scores(scope, i).items()}
        masks = select_official(scores, masks, 0.1)
        assert masks.kept == counts[i]
    assert masks.kept == 58_574


# ---- what the pruners make of it


class Config(dict):  # type: ignore[type-arg]
    """Settings of a model that no table names."""

    model_class = object


def magnitude_experiment(**changes: Any) -> Any:
    """What a magnitude pruner asks for, around random dense weights."""
    scope = two_tables()
    generator = torch.Generator().manual_seed(5)
    weights = {t.name: torch.randn(t.shape, generator=generator) for t in scope}
    settings = {
        "prune_rate": 0.1,
        "prune_rounds": 3,
        "prune_target_sparsity": None,
        "prune_parity": "exact",
        "prune_allocation": "global",
        "prune_min_per_row": 0,
        "explicit": frozenset(),
        **changes,
    }
    return SimpleNamespace(
        settings=SimpleNamespace(**settings),
        scope=scope,
        config=Config(seed=2020, model="BPR"),
        weights_of=lambda ticket: weights,
        masks_of=lambda ticket: MaskSet.dense(scope),
    )


@pytest.mark.parametrize("allocation", ["global", "tensor"])
@pytest.mark.parametrize("minimum", [0, 5])
def test_first_iterative_mask_equals_the_one_shot_mask_of_that_sparsity(allocation: str, minimum: int) -> None:
    experiment = magnitude_experiment(prune_allocation=allocation, prune_min_per_row=minimum)
    dense: Any = object()
    iterative, one_shot = IterativeMagnitudePruning(experiment), OneShotMagnitudePruning(experiment)
    assert iterative.counts() == one_shot.counts()
    keep = iterative.counts()[1]
    assert iterative.masks(1, keep, dense, dense).equals(one_shot.masks(1, keep, dense, dense))
    assert one_shot.masks(3, one_shot.counts()[3], dense, dense).kept == 122_472


def test_a_minimum_is_checked_where_it_is_asked_for() -> None:
    """Of all entries, or of each table's share."""
    wide, narrow = Target("a", "embedding", (100, 10)), Target("b", "embedding", (100, 2))
    changes = {"prune_rounds": None, "prune_target_sparsity": 0.4, "prune_rate": 0.4, "prune_min_per_row": 2}
    for allocation, refused in (("global", False), ("tensor", True)):
        experiment = magnitude_experiment(prune_allocation=allocation, **changes)
        experiment.scope = Scope((wide, narrow))
        pruner = OneShotMagnitudePruning(experiment)
        pruner.counts = lambda: [1200, 720]  # type: ignore[method-assign]
        if refused:
            with pytest.raises(ConfigError, match="prune_min_per_row=2 protects 200 entries of b .*keeps only 120:"):
                pruner.check()
        else:
            pruner.check()


def test_tables_that_need_a_value_in_every_row_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """By every pruner that makes masks; the others of the model are free."""
    monkeypatch.setitem(tables._NO_ROW_OF_ZEROS, object.__module__, ("a",))
    scope = scope_of((200, 8), (200, 8))
    experiment = magnitude_experiment()
    experiment.scope = scope
    weights = {t.name: torch.randn(t.shape) * torch.rand(t.shape[0], 1) ** 6 for t in scope}
    experiment.weights_of, experiment.masks_of = lambda _: weights, lambda _: MaskSet.dense(scope)
    masks = OneShotMagnitudePruning(experiment).masks(1, 500, None, None)  # type: ignore[arg-type]
    assert masks.kept == 500
    assert int(masks.per_row("a").min()) == 1 and int(masks.per_row("b").min()) == 0
    pruner = OneShotMagnitudePruning(experiment)
    pruner.counts = lambda: [3184, 198]  # type: ignore[method-assign]
    with pytest.raises(ConfigError, match="BPR needs a live entry in every row, which protects 199 .*only 198"):
        pruner.check()


# ---- the random control


def row_count_p_value(masks: MaskSet, name: str) -> float:
    """p-value of a chi-square test of the row counts against a binomial distribution."""
    counts, width = masks.per_row(name).numpy(), masks.scope[name].width
    expected = len(counts) * stats.binom.pmf(np.arange(width + 1), width, masks.kept / masks.prunable)
    observed = np.bincount(counts, minlength=width + 1).astype(float)
    usual = expected >= 5
    observed = np.append(observed[usual], observed[~usual].sum())
    expected = np.append(expected[usual], expected[~usual].sum())
    return float(stats.chisquare(observed, expected * observed.sum() / expected.sum()).pvalue)


@pytest.mark.parametrize("sparsity", [0.271, 0.6513, 0.9529])
def test_rows_of_a_random_mask_are_binomial(sparsity: float) -> None:
    scope = scope_of((4001, 32), (3001, 32))
    keep = round((1 - sparsity) * scope.prunable)
    masks = select(uniform(scope, 2020), MaskSet.dense(scope), keep)
    assert row_count_p_value(masks, "a") > 0.01
    assert row_count_p_value(masks, "b") > 0.01
    # the test can fail: rows of different scale are not binomial
    scale = {name: score[:, :1] for name, score in uniform(scope, 2).items()}
    scaled = {name: score * scale[name] for name, score in uniform(scope, 1).items()}
    assert row_count_p_value(select(scaled, MaskSet.dense(scope), keep), "a") < 1e-6


def test_random_masks_are_nested_and_repeatable() -> None:
    scope = two_tables()
    dense = MaskSet.dense(scope)
    counts = kept_counts(scope.prunable, rate=0.3, rounds=4)[1:]
    masks = [select(uniform(scope, 1), dense, keep, seed=1) for keep in counts]
    assert all(after.is_nested_in(before) for before, after in zip(masks, masks[1:]))
    assert masks[-1].equals(select(uniform(scope, 1), dense, counts[-1], seed=1))
    assert not masks[-1].equals(select(uniform(scope, 2), dense, counts[-1], seed=2))
