"""``prune_allocation=row``: every row keeps equally many entries (method file, B4)."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from test_allocate import bits, distinct_scores, populations, scope_of, two_tables
from training_bench import experiment_of
from zoo import DATASET, config_for

from recbole_prune import run_recbole_prune
from recbole_prune.artifact import read_artifact
from recbole_prune.config.prune_config import PruneConfig
from recbole_prune.errors import ConfigError
from recbole_prune.masking.allocate import counts_of_equal_rows, entries_per_row, kept_in_rows, select
from recbole_prune.masking.masks import MaskSet
from recbole_prune.masking.random_masks import equal_rows
from recbole_prune.masking.schedule import kept_counts
from recbole_prune.masking.scope import Scope, Target
from recbole_prune.masking.scores import magnitude, uniform
from recbole_prune.pruners import get_pruner

WEIGHTS = [[0.5, -0.1, 0.3, 0.2], [-0.4, 0.05, 0.0, 0.7], [0.6, -0.6, 0.1, 0.6]]
WIDTHS = Scope((Target("user", "embedding", (50, 8), (0,)), Target("bias", "embedding", (31, 3), (0, 3))))


# ---- which entries ---------------------------------------------------------------------------------------------------


def test_the_oracle_of_rows() -> None:
    scope = scope_of((3, 4), padding=())
    scores = magnitude({"a": torch.tensor(WEIGHTS)}, scope)
    outcomes = set()
    for seed in range(40):
        masks = select(scores, MaskSet.dense(scope), 6, allocation="row", seed=seed)
        assert masks.kept == 6 and [bits(row) for row in masks["a"][:2]] == ["1010", "1001"]
        outcomes.add(bits(masks["a"][2]))
        assert select(scores, MaskSet.dense(scope), 12, allocation="row", seed=seed).is_dense
    assert outcomes == {"1100", "1001", "0101"}, "two of the three largest, by the seed"


def test_a_tenth_of_64_columns_are_seven() -> None:
    scope = two_tables()
    assert entries_per_row(scope, round(0.1 * scope.prunable)) == 7


@given(st.data())
def test_it_is_the_smallest_number_that_keeps_enough(data: st.DataObject) -> None:
    shapes = data.draw(st.lists(st.tuples(st.integers(2, 9), st.integers(1, 9)), min_size=1, max_size=3))
    scope = scope_of(*shapes)
    keep = data.draw(st.integers(1, scope.prunable))
    each = entries_per_row(scope, keep)
    kept = [sum((rows - 1) * min(k, width) for rows, width in shapes) for k in (each - 1, each)]
    assert kept[0] < keep <= kept[1] == sum(kept_in_rows(scope, each).values())


@given(populations(), st.integers(0, 2**31), st.data())
def test_every_row_keeps_its_best(population: tuple[MaskSet, Any], seed: int, data: st.DataObject) -> None:
    scores, scope = population[1], population[0].scope
    dense = MaskSet.dense(scope)
    keep = data.draw(st.integers(1, scope.prunable))
    masks = select(scores, dense, keep, allocation="row", seed=seed)
    each = entries_per_row(scope, keep)
    assert masks.kept == sum(kept_in_rows(scope, each).values())
    for target in scope:
        assert set(masks.per_row(target.name).tolist()) == {min(each, target.width)}
        for row in target.countable().nonzero().view(-1).tolist():
            values, live = scores[target.name].flatten(1)[row], masks[target.name].flatten(1)[row]
            assert sorted(values[live].tolist()) == sorted(values.tolist())[target.width - int(live.sum()) :]
    smaller = select(scores, masks, data.draw(st.integers(1, keep)), allocation="row", seed=seed)
    assert smaller.is_nested_in(masks)
    assert smaller.equals(select(scores, dense, smaller.kept, allocation="row", seed=seed))


def test_rows_that_have_too_few_are_refused() -> None:
    scope = two_tables()
    uneven = select(uniform(scope, 0), MaskSet.dense(scope), scope.prunable // 10)
    with pytest.raises(ConfigError, match="cannot keep .* entries of a in equal rows .*fewer live entries"):
        select(uniform(scope, 1), uneven, scope.prunable // 10, allocation="row")


# ---- how many --------------------------------------------------------------------------------------------------------


def test_rounds_that_change_no_row_are_left_out() -> None:
    scope = scope_of((11, 4), (21, 4))
    counts = kept_counts(scope.prunable, rate=0.2, rounds=6)
    assert counts == [120, 96, 77, 62, 50, 40, 32]
    assert counts_of_equal_rows(scope, counts) == [120, 90, 60]  # 4, 4, 3, 3, 2, 2, 2 of each row


def test_narrow_tables_keep_all_until_it_is_their_turn() -> None:
    assert counts_of_equal_rows(WIDTHS, [479, 400, 200, 100, 50]) == [
        479, 49 * 7 + 29 * 3, 49 * 3 + 29 * 3, 2 * (49 + 29), 49 + 29,
    ]  # fmt: skip


def test_a_schedule_that_reaches_no_whole_column_is_refused() -> None:
    scope = two_tables()
    with pytest.raises(ConfigError, match=r"prune_allocation=row keeps equally many .* 0\.0100 removes none.* 0\.0156"):
        counts_of_equal_rows(scope, [scope.prunable, scope.prunable - scope.prunable // 100])
    assert counts_of_equal_rows(scope, [scope.prunable]) == [scope.prunable]


# ---- random rows -----------------------------------------------------------------------------------------------------


@given(each=st.integers(1, 8), seed=st.integers(0, 50))
def test_random_rows_have_equally_many(each: int, seed: int) -> None:
    masks = equal_rows(WIDTHS, each, seed)
    assert {name: set(masks.per_row(name).tolist()) for name in masks} == {"user": {each}, "bias": {min(each, 3)}}
    assert masks.equals(equal_rows(WIDTHS, each, seed)) and bool(masks["bias"][[0, 3]].all())


def test_random_rows_are_uniform_and_drawn_by_the_seed() -> None:
    scope = scope_of((4001, 8), (4001, 8))
    masks = equal_rows(scope, 3, 1)
    for name in masks:
        sets = masks[name][1:].int() @ (2 ** torch.arange(8, dtype=torch.int32))
        counted = np.unique(sets.numpy(), return_counts=True)[1]
        assert len(counted) == 56 and stats.chisquare(counted).pvalue > 0.001
    assert not masks["a"].equal(masks["b"]) and not masks["a"].equal(equal_rows(scope, 3, 2)["a"])


# ---- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"pruner": "imp", "prune_min_per_row": 2}, "prune_allocation=row and prune_min_per_row=2 cannot go together"),
        ({"pruner": "magprune", "prune_min_per_row": 0}, "prune_min_per_row=0 cannot go together"),
        ({"pruner": "imp", "prune_parity": "official"}, "prune_parity=official and prune_allocation=row cannot"),
        ({"pruner": "random", "prune_parity": "official"}, "prune_parity=official and prune_allocation=row cannot"),
        ({"pruner": "static", "prune_init": "erk"}, "prune_allocation=row and prune_init=erk cannot go together"),
        ({"pruner": "dsl"}, "prune_allocation=row cannot go with --pruner=dsl, whose masks move entries"),
        ({"pruner": "rigl"}, "cannot go with --pruner=rigl"),
        ({"pruner": "set"}, "cannot go with --pruner=set"),
    ],
)
def test_what_cannot_hold_is_refused(tiny_data: Path, settings: dict[str, Any], words: str) -> None:
    changes = {**config_for("BPR", tiny_data), "prune_allocation": "row", **settings}
    if settings["pruner"] in ("static", "dsl", "rigl", "set"):
        changes["prune_target_sparsity"] = 0.5
    with pytest.raises(ConfigError, match=words):
        PruneConfig("BPR", DATASET, config_dict=changes)


def test_the_default_is_in_no_hash(tiny_data: Path) -> None:
    settings = {**config_for("BPR", tiny_data), "prune_target_sparsity": 0.5, "pruner": "static"}
    hashes = [
        PruneConfig("BPR", DATASET, config_dict={**settings, **more}).run_hash
        for more in ({}, {"prune_allocation": "global"}, {"prune_allocation": "row"})
    ]
    assert hashes[0] == hashes[1] != hashes[2]


# ---- runs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pruner", ["imp", "omp", "magprune", "random", "static"])
def test_tickets_keep_what_is_announced(pruner: str, tiny_data: Path) -> None:
    settings = {
        **config_for("BPR", tiny_data), "embedding_size": 32, "pruner": pruner, "prune_allocation": "row",
        "prune_target_sparsity": 0.9, **({} if pruner == "static" else {"prune_rounds": 3}),
    }  # fmt: skip
    plan = run_recbole_prune("BPR", DATASET, config_dict={**settings, "dry_run": True})["plan"]
    result = run_recbole_prune("BPR", DATASET, config_dict=settings)
    experiment = experiment_of(result, "BPR", settings)
    kept = [ticket["kept"] for ticket in result["tickets"]]
    rows = sum(target.rows for target in experiment.scope)
    # geometric rounds to a tenth: 14.9, 6.9 and 3.2 of 32 columns
    assert kept == [rows * each for each in ([32, 4] if pruner == "static" else [32, 15, 7, 4])]
    assert kept == get_pruner(pruner)(experiment).counts()
    announced = re.findall(r"^ *\d+ +\d+\.\d+ % +(\d+) +([\d,]+)$", plan, re.M)
    assert [int(count) for count, _ in announced] == kept
    assert f"from ticket 0 on: {', '.join(str(count // rows) for count in kept)}\n" in plan
    summary = json.loads(Path(result["folder"], "summary.json").read_bytes())
    assert [int(size.replace(",", "")) for _, size in announced] == [ticket["bytes"] for ticket in summary["tickets"]]
    masks = [experiment.masks_of(ticket) for ticket in experiment.tickets.values()]
    for before, after, count in zip(masks, masks[1:], kept[1:]):
        assert after.is_nested_in(before)
        assert all(set(after.per_row(name).tolist()) == {count // rows} for name in after)
    assert result["chosen"]["ticket"] == len(kept) - 1
    assert "at the target sparsity 0.9, as near as equal rows come" in " ".join(result["table"].split())
    tables = read_artifact(result["artifact"]).tensors.values()
    assert {table.encoding for table in tables} == {"fixed"}
    assert [record.get("min_per_row") for record in result["tickets"][1:]] == (
        [15, 7, 4] if pruner == "magprune" else [None] * (len(kept) - 1)
    )


def test_scores_of_one_round_are_those_of_the_trained_model(tiny_data: Path) -> None:
    """The rows of an imp ticket are the largest weights of the dense one's."""
    settings = {
        **config_for("BPR", tiny_data), "embedding_size": 16, "pruner": "imp", "prune_allocation": "row",
        "prune_target_sparsity": 0.5, "prune_rounds": 1,
    }  # fmt: skip
    experiment = experiment_of(run_recbole_prune("BPR", DATASET, config_dict=settings), "BPR", settings)
    weights, masks = experiment.weights_of(experiment.tickets[0]), experiment.masks_of(experiment.tickets[1])
    for target in experiment.scope:
        magnitudes, mask = weights[target.name][1:].abs(), masks[target.name][1:]
        least = magnitudes.masked_fill(~mask, np.inf).min(1).values
        most = magnitudes.masked_fill(mask, -np.inf).max(1).values
        assert bool((least >= most).all()) and set(mask.sum(1).tolist()) == {8}
    scores = distinct_scores(experiment.scope, 1)
    assert select(scores, masks, masks.kept, allocation="row").equals(masks)


def test_a_run_has_no_ticket_for_a_round_that_changes_nothing(tiny_data: Path) -> None:
    """Six rounds of a fifth on rows of four: 3.2, 2.56, 2.05, 1.64, 1.31 and 1.05 columns."""
    settings = {
        **config_for("BPR", tiny_data), "embedding_size": 4, "pruner": "imp", "prune_allocation": "row",
        "prune_rate": 0.2, "prune_rounds": 6,
    }  # fmt: skip
    result = run_recbole_prune("BPR", DATASET, config_dict=settings)
    rows = 120 + 240
    assert [(ticket["ticket"], ticket["kept"]) for ticket in result["tickets"]] == [
        (0, 4 * rows), (1, 3 * rows), (2, 2 * rows),
    ]  # fmt: skip
    assert run_recbole_prune("BPR", DATASET, config_dict=settings)["tickets"] == result["tickets"]
