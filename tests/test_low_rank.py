"""Low rank: worked examples, optimality, and which models become narrower ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from training_bench import experiment_of, scores
from zoo import DATASET, config_for

from recbole_prune import run_recbole_prune
from recbole_prune.errors import ConfigError
from recbole_prune.masking.bound import information_bound_bits
from recbole_prune.pruners.low_rank import LowRank, joint_factors, projected, table_factors
from recbole_prune.run.ticket import Ticket

USERS = np.array([(1, 0, 2), (0, 1, 1), (2, 1, 0)], dtype=np.float64)
ITEMS = np.array([(1, 1, 0), (0, 2, 1), (1, 0, 1), (2, 1, 1)], dtype=np.float64)
PRODUCTS = USERS @ ITEMS.T


def run(data: Path, model: str = "BPR", **changes: Any) -> tuple[dict[str, Any], Any, list[Ticket]]:
    settings = {**config_for(model, data), "epochs": 2, "pruner": "lowrank", "prune_target_sparsity": 0.6}
    settings = {**settings, "prune_rounds": 2, "output_dir": str(data / "low_rank"), **changes}
    result = run_recbole_prune(model, DATASET, config_dict=settings)
    return result, experiment_of(result, model, settings), [Ticket.from_record(r) for r in result["tickets"]]


# ---- worked by hand (more_methods.md B1) -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rank", "joint", "table", "common"), [(1, 2.426768, 3.018018, 2.540917), (2, 1.534297, 2.508960, 1.936492)]
)
def test_errors_of_the_worked_example(rank: int, joint: float, table: float, common: float) -> None:
    left, right = joint_factors(USERS, ITEMS, rank)
    assert np.linalg.norm(PRODUCTS - left @ right.T) == pytest.approx(joint, abs=1e-6)
    users, items = (np.matmul(*table_factors(each, rank)) for each in (USERS, ITEMS))
    assert np.linalg.norm(PRODUCTS - users @ items.T) == pytest.approx(table, abs=1e-6)
    left, right = projected(USERS, ITEMS, rank)
    assert np.linalg.norm(PRODUCTS - left @ right.T) == pytest.approx(common, abs=1e-6)


def test_scores_and_singular_values_of_the_worked_example() -> None:
    left, right = joint_factors(USERS, ITEMS, 2)
    np.testing.assert_allclose((left @ right.T)[0], [1.840859, 2.212781, 2.120367, 3.961225], atol=1e-6)
    left, right = joint_factors(USERS, ITEMS, 3)
    np.testing.assert_allclose(np.square(left).sum(axis=0), [9.006153, 1.880196, 1.534297], atol=1e-6)
    np.testing.assert_allclose(np.square(right).sum(axis=0), [9.006153, 1.880196, 1.534297], atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(table_factors(USERS, 3)[0], axis=0), [2.791288, 1.791288, 1], atol=1e-6)


@given(st.integers(0, 2**31), st.integers(2, 12), st.integers(2, 12), st.integers(1, 6))
@settings(max_examples=40, deadline=None)
def test_the_joint_form_is_the_best_score_matrix_of_its_rank(seed: int, users: int, items: int, width: int) -> None:
    draw = np.random.default_rng(seed)
    left, right = draw.standard_normal((users, width)), draw.standard_normal((items, width))
    scores = left @ right.T
    values = np.linalg.svd(scores, compute_uv=False)
    for rank in range(1, width + 1):
        narrow = joint_factors(left, right, rank)
        assert [part.shape for part in narrow] == [(users, rank), (items, rank)]
        error = np.linalg.norm(scores - narrow[0] @ narrow[1].T)
        assert error == pytest.approx(np.sqrt(np.square(values[rank:]).sum()), abs=1e-9)


# ---- on models -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "form"),
    [("BPR", "narrow"), ("LightGCN", "narrow"), ("NGCF", "factors"), ("DeepFM", "factors"), ("SASRec", "factors")],
)
def test_dot_products_of_tables_and_linear_propagation_become_narrower_models(
    model: str, form: str, tiny_data: Path
) -> None:
    _, experiment, tickets = run(tiny_data, model)
    assert [ticket.method["form"] for ticket in tickets[1:]] == [form, form]
    assert all(bool(ticket.changes) == (form == "narrow") for ticket in tickets[1:])
    pruner = LowRank(experiment)
    for ticket in tickets[1:]:
        budget = information_bound_bits(ticket.prunable, ticket.method["equal_to_kept"], 32) / 8
        size = ticket.method["size"]
        assert pruner.bytes_of(size) >= budget > (pruner.bytes_of(size - 1) if size > 1 else 0)
        forms = experiment.forms_of(ticket)
        assert bool(forms) == (form == "factors")
        padding = sum(4 * len(t.padding_rows) * (size if form == "narrow" else t.width) for t in experiment.scope)
        assert ticket.method["bytes"] == pruner.bytes_of(size) + padding
        weights, dense = (
            experiment.checkpoint_of(ticket)["state_dict"],
            experiment.checkpoint_of(tickets[0])["state_dict"],
        )
        for target in experiment.scope:
            rows = list(target.padding_rows)
            if form == "narrow":
                assert not weights[target.name][rows].any()
                continue
            assert torch.equal(weights[target.name][rows], dense[target.name][rows])
            if target.name in forms:
                assert forms[target.name].decode().tobytes() == weights[target.name].numpy().tobytes()
        others = set(weights) - {name for t in experiment.scope for name in (t.name, *t.tied_to)}
        assert all(torch.equal(weights[name], dense[name]) for name in others)


def test_a_narrower_propagating_model_scores_as_the_projected_vectors(tiny_data: Path) -> None:
    _, experiment, tickets = run(tiny_data, "LightGCN")
    dense, narrow = (experiment.trained_model(ticket) for ticket in (tickets[0], tickets[1]))
    users, items = (table.detach().double().numpy()[1:] for table in dense.forward())
    left, right = projected(users, items, tickets[1].method["size"])
    found = [table.detach().double().numpy()[1:] for table in narrow.forward()]
    np.testing.assert_allclose(found[0] @ found[1].T, left @ right.T, atol=1e-6 * np.abs(left @ right.T).max())


@pytest.mark.parametrize("model", ["BPR", "LightGCN"])
def test_the_whole_width_scores_as_the_dense_model(model: str, tiny_data: Path) -> None:
    _, experiment, tickets = run(tiny_data, model)
    pruner = LowRank(experiment)
    dense, width = experiment.trained_model(tickets[0]), experiment.scope.targets[0].width
    plan = pruner.plan(1, tickets[0].kept, width, tickets[0])
    whole = experiment.workshop.build_model(plan.changes)
    whole.load_trained(plan.weights, None)
    found = [scores(each.eval(), experiment.workshop.test_data, experiment.workshop.dataset) for each in (dense, whole)]
    wide, same = (each.reshape(-1, experiment.workshop.dataset.item_num)[:, 1:] for each in found)  # padding is 0 here
    torch.testing.assert_close(same, wide, rtol=1e-5, atol=1e-5)


def test_training_from_there_is_kept_only_where_it_is_better(tiny_data: Path) -> None:
    for form in ("joint", "table"):
        before = run(tiny_data, prune_lowrank_form=form)[2]
        after = run(tiny_data, prune_lowrank_form=form, prune_form_tune=True, learning_rate=0.01)[2]
        same = run(tiny_data, prune_lowrank_form=form, learning_rate=0.01)[2]
        for untrained, tuned in zip(same[1:], after[1:]):
            assert tuned.history[0] == [0, pytest.approx(untrained.valid_score)]
            assert tuned.valid_score == max(score for _, score in tuned.history)
            assert tuned.method["tuned"] == (tuned.best_epoch > 0)
            assert tuned.method["bytes"] == untrained.method["bytes"]
        assert all(ticket.epochs == 0 for ticket in before[1:])


def test_a_joint_form_that_does_not_exist_is_refused(tiny_data: Path) -> None:
    with pytest.raises(ConfigError, match="prune_lowrank_form=joint.*NeuMF"):
        run(tiny_data, "NeuMF", prune_lowrank_form="joint")
    with pytest.raises(ConfigError, match=r"no dot products of the tables in scope \(user_embedding.weight\) alone"):
        run(tiny_data, prune_lowrank_form="joint", prune_include=["user_embedding.weight"])
    with pytest.raises(ConfigError, match="MultiVAE has no embedding table"):
        run(tiny_data, "MultiVAE")
