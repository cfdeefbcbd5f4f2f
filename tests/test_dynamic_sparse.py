"""The sparse-from-scratch pruners as runs: initial masks, variants, parity with the official code, resume, report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conformance import used_keys
from hypothesis import given
from hypothesis import strategies as st
from marks import slow_but
from training_bench import experiment_of
from zoo import DATASET, config_for

from recbole_prune import run_recbole_prune
from recbole_prune.masking import random_masks as random_masks_module
from recbole_prune.masking.random_masks import INITS, kept_by_target, random_masks
from recbole_prune.masking.scope import Scope, Target
from recbole_prune.pruners import PRUNERS
from recbole_prune.run.experiment import Experiment
from recbole_prune.run.ticket_training import TicketTraining
from recbole_prune.sparse.compact import CompactEmbedding


def run(data: Path, model: str = "BPR", **changes: Any) -> tuple[dict[str, Any], Experiment]:
    settings = {
        **config_for(model, data),
        "epochs": 3,
        "train_batch_size": 256,
        "prune_update_interval": 5,
        "prune_target_sparsity": 0.8,
        **changes,
    }
    if settings["pruner"] == "static":
        del settings["prune_update_interval"]
    result = run_recbole_prune(model=model, dataset=DATASET, config_dict=settings)
    return result, experiment_of(result, model, settings)


SCOPE = Scope(
    (Target("a", "embedding", (50, 8), (0,)), Target("b", "embedding", (7, 3)), Target("c", "conv", (4, 2, 3, 3)))
)


@given(density=st.floats(0.05, 0.95), init=st.sampled_from(INITS), seed=st.integers(0, 50))
def test_initial_masks_have_their_budget(density: float, init: str, seed: int) -> None:
    kept = kept_by_target(SCOPE, density, init)
    masks = random_masks(SCOPE, kept, init, seed)
    for target in SCOPE:
        live = int(masks.per_row(target.name).sum())
        if init == "bernoulli":
            deviation = (target.prunable * density * (1 - density)) ** 0.5
            assert abs(live - density * target.prunable) < 6 * deviation + 1
        else:
            assert live == kept[target.name]
            if init in ("exact", "aligned"):
                assert abs(live - density * target.prunable) <= 0.5
    if init == "erk":
        assert abs(sum(kept.values()) - density * SCOPE.prunable) <= len(SCOPE.targets)
        sparse = [t for t in SCOPE if kept[t.name] < t.prunable - 1]
        shares = [kept[t.name] / (t.rows + sum(t.shape[1:])) for t in sparse]
        if shares:
            assert max(shares) - min(shares) <= 0.2
    assert random_masks(SCOPE, kept, init, seed).equals(masks)


@given(more=st.integers(0, 30), seed=st.integers(0, 50))
def test_initial_masks_without_empty_rows(more: int, seed: int) -> None:
    kept = {"a": 49 + more, "b": 3, "c": 20}
    masks = random_masks(SCOPE, kept, "exact", seed, without_empty_rows=["a"])
    assert int(masks.per_row("a").min()) >= 1 and bool(masks["a"][0].all())
    assert {name: int(masks.per_row(name).sum()) for name in kept} == kept
    usual = random_masks(SCOPE, kept, "exact", seed)
    assert all(masks[name].equal(usual[name]) for name in "bc")


TABLES = Scope(
    (
        Target("user", "embedding", (50, 8), (0,)),
        Target("item", "embedding", (31, 8), (0, 3)),
        Target("narrow", "embedding", (20, 3)),
        Target("matrix", "linear", (20, 8)),
    )
)


@given(density=st.floats(0.13, 0.99), seed=st.integers(0, 50))
def test_aligned_rows_share_their_columns(density: float, seed: int) -> None:
    """Two rows of tables of one width share all columns of the row that has fewer, and rows differ by one column."""
    kept = kept_by_target(TABLES, density, "aligned")
    masks = random_masks(TABLES, kept, "aligned", seed)
    rows = [masks[name][TABLES[name].countable()] for name in ("user", "item")]
    for mask in rows:
        per_row = mask.sum(dim=1)
        assert int(per_row.max() - per_row.min()) <= 1
    every = torch.cat(rows)
    shared = every.float() @ every.float().T
    fewer = torch.minimum(every.sum(dim=1)[:, None], every.sum(dim=1)[None, :])
    assert shared.equal(fewer.float())
    assert bool(masks["item"][[0, 3]].all()) and bool(masks["user"][0].all())
    assert masks["matrix"].equal(random_masks(TABLES, kept, "exact", seed)["matrix"])


def test_aligned_rows_are_drawn_by_the_seed() -> None:
    kept = kept_by_target(TABLES, 0.3, "aligned")
    first, other = (random_masks(TABLES, kept, "aligned", seed) for seed in (1, 2))
    assert not first["user"].equal(other["user"]) and not first["matrix"].equal(other["matrix"])


def test_masks_drawn_block_by_block_are_uniform(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random_masks_module, "_BLOCK", 40)
    hits = torch.zeros(50, 8)
    for seed in range(300):
        masks = random_masks(SCOPE, {"a": 100, "b": 5, "c": 20}, "exact", seed)
        assert int(masks.per_row("a").sum()) == 100
        hits += masks["a"]
    expected = 300 * 100 / 392
    assert (hits[1:] - expected).abs().max() < 6 * expected**0.5


@pytest.mark.parametrize("init", slow_but(["exact"], ["exact", "aligned"]))
def test_static_masks_never_move(init: str, tiny_data: Path) -> None:
    result, experiment = run(tiny_data, pruner="static", prune_init=init)
    ticket = experiment.tickets[1]
    scope = experiment.scope
    expected = random_masks(scope, kept_by_target(scope, 0.2, init), init, experiment.config["seed"])
    assert experiment.masks_of(ticket).equals(expected)
    assert [record["ticket"] for record in result["tickets"]] == [0, 1]
    assert result["chosen"]["ticket"] == 1 and "updates" not in ticket.method


@pytest.mark.parametrize("pruner", [name for name in PRUNERS if "prune_update_interval" in used_keys(name)])
def test_budget_of_every_target_is_kept(pruner: str, tiny_data: Path) -> None:
    _, experiment = run(tiny_data, pruner=pruner)
    ticket = experiment.tickets[1]
    masks = experiment.masks_of(ticket)
    kept = kept_by_target(experiment.scope, 0.2, "exact")
    assert {name: int(masks.per_row(name).sum()) for name in masks} == kept
    assert ticket.kept == sum(kept.values()) and ticket.method["updates"] > 2
    start = random_masks(experiment.scope, kept, "exact", experiment.config["seed"])
    assert not masks.equals(start)
    assert ticket.method["exploration_rate"] > ticket.kept / ticket.prunable


@pytest.mark.slow
def test_the_official_rule_leaks_where_a_batch_touches_few_rows(tiny_data: Path) -> None:
    """Trap 1 of the method file; Bernoulli masks and moments of pruned entries as in that code."""
    settings = {
        "prune_parity": "official",
        "prune_moments": "dense",
        "prune_init": "bernoulli",
        "prune_gradient_window": 1,
    }
    settings.update({"train_batch_size": 8, "prune_update_interval": 20, "prune_end_fraction": 1.0})
    _, experiment = run(tiny_data, pruner="dsl", prune_target_sparsity=0.5, **settings)
    ticket = experiment.tickets[1]
    assert ticket.sparsity > 0.55


@pytest.mark.parametrize("growth", slow_but(["momentum"], ["momentum", "gradient"]))
def test_dense_moments(growth: str, tiny_data: Path) -> None:
    _, experiment = run(tiny_data, pruner="dsl", prune_moments="dense", prune_growth=growth)
    assert experiment.tickets[1].method["updates"] > 2


def test_without_a_dense_model_nothing_dense_is_trained(tiny_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train = TicketTraining.run

    def spy(self: TicketTraining) -> Any:
        assert self.plan.ticket == 1
        assert isinstance(self.trainer.model.item_embedding, CompactEmbedding)
        result = train(self)
        for state in self.trainer.optimizer.state.values():
            for moment in state.values():
                assert moment.numel() <= len(self.trainer.model.item_embedding.values)
        return result

    monkeypatch.setattr(TicketTraining, "run", spy)
    result, experiment = run(tiny_data, pruner="dsl", prune_dense=False)
    assert [record["ticket"] for record in result["tickets"]] == [1]
    assert result["chosen"]["wins"] is None and (Path(result["artifact"]) / "ticket.json").exists()
    again = run_recbole_prune(model="BPR", dataset=DATASET, config_dict=dict(_settings(tiny_data, prune_dense=False)))
    assert again["tickets"] == result["tickets"]  # finished: nothing is trained


def _settings(data: Path, **changes: Any) -> dict[str, Any]:
    base = {**config_for("BPR", data), "epochs": 3, "train_batch_size": 256, "pruner": "dsl"}
    return {**base, "prune_update_interval": 5, "prune_target_sparsity": 0.8, **changes}


@pytest.mark.parametrize("values", ["fp16", "int8", "int4"])
def test_exported_in_few_bits(values: str, tiny_data: Path) -> None:
    """Sparse from scratch and few bits per value together: smaller, and the lists are compared with the exact ones."""
    exact, few = (
        json.loads(
            Path(
                run_recbole_prune(
                    model="BPR", dataset=DATASET, config_dict=_settings(tiny_data, prune_dense=False, **changes)
                )["artifact"],
                "ticket.json",
            ).read_text(encoding="utf-8")
        )
        for changes in ({}, {"export_values": values})
    )
    assert few["kept"] == exact["kept"] and few["values"] == values
    assert few["bytes"]["tables"] < exact["bytes"]["tables"] < 0.4 * exact["bytes"]["tables_dense"]
    assert 0.5 < few["effect"]["mean_top10_overlap"] <= exact["effect"]["mean_top10_overlap"] == 1


def test_density_one_updates_nothing(tiny_data: Path) -> None:
    """d = 1 is dense training: there is no empty entry to grow into, so what is pruned grows again."""
    _, experiment = run(tiny_data, pruner="dsl", prune_target_sparsity=1e-6)
    dense, sparse = experiment.tickets[0], experiment.tickets[1]
    assert sparse.kept == sparse.prunable and sparse.method["grown"] == 0
    assert sparse.valid == dense.valid


@pytest.mark.slow
def test_weight_matrices_convolutions_and_recurrent_weights(tiny_data: Path) -> None:
    kinds = set()
    for model in ("ConvNCF", "MultiVAE", "GRU4Rec"):
        batch = {"train_batch_size": 16} if model == "MultiVAE" else {}
        _, experiment = run(tiny_data, model, pruner="dsl", prune_scope="all", prune_dense=False, **batch)
        ticket = experiment.tickets[1]
        masks = experiment.masks_of(ticket)
        kinds |= {target.kind for target in experiment.scope}
        assert {n: int(masks.per_row(n).sum()) for n in masks} == kept_by_target(experiment.scope, 0.2, "exact")
        assert not any("bias" in target.name or "norm" in target.name.lower() for target in experiment.scope)
    assert kinds == {"embedding", "linear", "conv", "recurrent"}
