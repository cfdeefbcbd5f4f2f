"""Product quantization and quotient-remainder hashing: worked examples, sizes, runs."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conformance import Subject, check_forms, check_killed_and_resumed, check_same_twice
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix
from training_bench import experiment_of
from zoo import DATASET, config_for

from recbole_prune import run_recbole_prune
from recbole_prune.artifact.forms import hashed, permutation
from recbole_prune.errors import ConfigError
from recbole_prune.masking.bound import information_bound_bits
from recbole_prune.masking.scope import Scope, Target
from recbole_prune.pruners import get_pruner
from recbole_prune.pruners.k_means import k_means
from recbole_prune.pruners.low_rank import LowRank
from recbole_prune.pruners.product_quantization import quantized, rank_codes, singular_vectors
from recbole_prune.pruners.quotient_remainder import initial_tables, rows_of
from recbole_prune.report.dry_run import describe_plan
from recbole_prune.run.ticket import Ticket
from recbole_prune.serving import Recommender

GOWALLA = Scope((Target("user", "embedding", (29_859, 64), (0,)), Target("item", "embedding", (40_982, 64), (0,))))


def pruner_of(method: str, scope: Scope = GOWALLA, **settings: Any) -> Any:
    """A pruner over tables of some shapes, without data."""
    named = {"pruner": method, "prune_pq_codes": "kmeans", "prune_pq_centroids": 256, "prune_rate_of": "live"}
    schedule = {"prune_rate": 0.2, "prune_rounds": 1, "prune_target_sparsity": None, "explicit": frozenset()}
    every = SimpleNamespace(**{**named, **schedule, **settings})
    return get_pruner(method)(SimpleNamespace(scope=scope, settings=every, config={"model": "BPR"}))  # type: ignore[arg-type]


def run(data: Path, method: str, model: str = "BPR", **changes: Any) -> tuple[dict[str, Any], Any, list[Ticket]]:
    settings = {**config_for(model, data), "epochs": 2, "pruner": method, "prune_target_sparsity": 0.9}
    settings = {**settings, "prune_rounds": 1, "output_dir": str(data / "quantized"), "export_ticket": 1, **changes}
    result = run_recbole_prune(model, DATASET, config_dict=settings)
    return result, experiment_of(result, model, settings), [Ticket.from_record(r) for r in result["tickets"]]


# ---- equal bytes (the table of more_methods.md B0) -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sparsity", "bound", "rank", "pq", "divider"),
    [
        (0.8, 4_036_082, (15, 4_250_340), (56, 4_098_056), (4, 4_536_064)),
        (0.9, 2_079_264, (8, 2_266_848), (28, 2_114_564), (8, 2_271_232)),
        (0.95, 1_069_044, (4, 1_133_424), (14, 1_122_818), (17, 1_075_712)),
        (0.99, 227_134, (1, 283_356), (2, 272_750), (104, 228_096)),
    ],
)
def test_sizes_of_equal_bytes_on_gowalla(
    sparsity: float, bound: int, rank: tuple[int, int], pq: tuple[int, int], divider: tuple[int, int]
) -> None:
    keep = round((1 - sparsity) * GOWALLA.prunable)
    for method, wanted in (("lowrank", rank), ("pq", pq), ("qr", divider)):
        pruner = pruner_of(method)
        if isinstance(pruner, LowRank):
            vars(pruner)["_joint"] = object()  # dot products
        assert pruner.budget(keep) == pytest.approx(bound, abs=4)  # a rounded count of entries
        size = pruner.size_for(keep)
        assert (size, pruner.bytes_of(size)) == wanted
        smaller = [other for other in pruner.sizes() if pruner.bytes_of(other) < pruner.bytes_of(size)]
        assert all(pruner.bytes_of(other) < pruner.budget(keep) for other in smaller)


@pytest.mark.parametrize("method", ["lowrank", "pq", "qr"])
def test_sizes_are_ordered_by_bytes_and_never_above_dense(method: str) -> None:
    tables = (
        Target("a", "embedding", (700, 16), (0,)),
        Target("b", "embedding", (5, 16)),
        Target("c", "embedding", (40, 1)),
    )
    pruner = pruner_of(method, Scope(tables), prune_pq_centroids=8)
    if isinstance(pruner, LowRank):
        vars(pruner)["_joint"] = None
    sizes = [pruner.bytes_of(size) for size in pruner.sizes()]
    assert sizes == sorted(sizes) and sizes[-1] <= 4 * Scope(tables).prunable


def test_known_sizes_of_codes() -> None:
    pruner, items = pruner_of("pq"), pruner_of("pq", Scope(GOWALLA.targets[1:]))
    assert [pruner.bytes_of(m) for m in (4, 8, 16)] == [414_428, 697_784, 1_264_496]
    assert items.bytes_of(8) == 393_384
    small = Scope((Target("user", "embedding", (943, 64)), Target("item", "embedding", (1682, 64))))
    assert pruner_of("pq", small).bytes_of(4) == 141_572


def test_points_without_a_ticket_say_why() -> None:
    pruner = pruner_of("pq", prune_rate=0.5, prune_rounds=4)
    points, left_out = pruner._points()
    assert len(points) == 2 and len(pruner.counts()) == 3
    assert [text.partition(" (")[0] for text in left_out] == ["at sparsity 0.5000", "at sparsity 0.7500"]
    assert all("the largest form of pq has only" in text for text in left_out)
    with pytest.raises(ConfigError, match="no ticket at any of these sparsities.*prune_target_sparsity"):
        pruner_of("pq", prune_target_sparsity=0.5).check()
    with pytest.raises(ConfigError, match="no form of qr is smaller than the dense tables"):
        pruner_of("qr", prune_target_sparsity=0.2).check()
    with pytest.raises(ConfigError, match=r"sparsity 0.0100.*; and at 8 more; at sparsity 0.0956.*change") as info:
        pruner_of("qr", prune_rate=0.01, prune_rounds=10).check()
    assert str(info.value).count("no form of qr") == 2
    small = pruner_of("pq", Scope((Target("a", "embedding", (900, 64)),)), prune_rate=0.9, prune_rounds=3)
    points, left_out = small._points()
    assert len(points) == 1 and "that of the ticket before" in left_out[-1]


def test_a_dry_run_announces_the_forms_and_not_only_masks(tiny_data: Path) -> None:
    changes = {"prune_pq_centroids": 2, "prune_target_sparsity": 0.9, "prune_rounds": 4}
    settings = {**config_for("BPR", tiny_data), "pruner": "pq", "output_dir": str(tiny_data / "announced"), **changes}
    text = run_recbole_prune("BPR", DATASET, config_dict={**settings, "dry_run": True})["plan"]
    result, experiment, tickets = run(tiny_data, "pq", **changes)
    assert "the tickets are no masks: these are what they are compared with" in text
    assert len(tickets) > 1 and len(tickets) < 5
    pruner = get_pruner("pq")(experiment)
    for ticket in tickets[1:]:
        size = pruner.bytes_of(ticket.method["size"])
        assert f"ticket {ticket.ticket}: form codes of size {ticket.method['size']}, {size:,} bytes" in text
    assert text.count("no ticket: at sparsity") == 5 - len(tickets)


# ---- k-means and codes (B2) ------------------------------------------------------------------------------------------


def error_of(table: np.ndarray, clusters: int, seed: int) -> float:
    codes, centroids = k_means(table, clusters, np.random.RandomState(seed))
    return float(np.square(table - centroids[codes]).sum())


def test_worked_examples_of_k_means() -> None:
    first = np.array([0, 1, 2, 3, 10, 11, 12, 13], float)[:, None]
    second = np.array([5, 4, 9, 8, 1, 0, 2, 3], float)[:, None]
    for table, clusters, best in ((first, 2, 10.0), (first, 3, 6.0), (second, 2, 18.0)):
        errors = [error_of(table, clusters, seed) for seed in range(20)]
        assert min(errors) == pytest.approx(best) and all(error >= best - 1e-9 for error in errors)
    codes, centroids = k_means(first, 2, np.random.RandomState(0))
    assert sorted(centroids[:, 0].tolist()) == [1.5, 11.5] and len(set(codes[:4])) == len(set(codes[4:])) == 1


@given(st.integers(0, 2**31), st.integers(1, 40), st.integers(1, 4), st.integers(1, 8))
@settings(max_examples=60, deadline=None)
def test_every_row_has_its_nearest_centroid(seed: int, rows: int, width: int, clusters: int) -> None:
    table = np.random.default_rng(seed).integers(-3, 4, (rows, width)).astype(np.float32)
    clusters = min(clusters, rows)
    codes, centroids = k_means(table, clusters, np.random.RandomState(seed))
    assert centroids.shape == (clusters, width) and codes.shape == (rows,)
    used = centroids[np.unique(codes)]
    distances = np.square(table[:, None] - used).sum(axis=2)
    own = np.square(table - centroids[codes]).sum(axis=1)
    np.testing.assert_allclose(own, distances.min(axis=1), atol=1e-9)
    if clusters >= len(np.unique(table, axis=0)):
        np.testing.assert_allclose(centroids[codes], table, atol=1e-6)


def test_as_good_as_scikit_learn() -> None:
    from sklearn.cluster import KMeans

    table = np.random.default_rng(3).standard_normal((2000, 3))
    ours = [error_of(table, 64, seed) for seed in range(3)]
    theirs = [KMeans(64, n_init=1, max_iter=25, random_state=seed).fit(table).inertia_ for seed in range(3)]
    assert np.mean(ours) <= 1.02 * np.mean(theirs)


def test_so_many_codes_as_columns_give_the_table_back() -> None:
    table = np.random.default_rng(0).standard_normal((200, 7)).astype(np.float32)
    codes, values = quantized(table, 7, 200, 0)
    np.testing.assert_allclose(values[codes, np.arange(7)], table, rtol=0, atol=1e-6)
    again = quantized(table, 7, 200, 0)
    assert np.array_equal(codes, again[0]) and np.array_equal(values, again[1])


def test_codes_by_rank() -> None:
    values = np.array([0.9, 0.1, 0.5, 0.3, 0.7, 0.2, 0.4])[:, None]
    assert rank_codes(values, 3, np.random.RandomState(0))[:, 0].tolist() == [2, 0, 1, 0, 2, 0, 1]
    codes = rank_codes(np.random.default_rng(0).standard_normal((40_981, 2)), 256, np.random.RandomState(0))
    for column in codes.T:
        assert set(np.bincount(column, minlength=256).tolist()) == {160, 161}


def test_singular_vectors_are_those_of_the_matrix() -> None:
    matrix = csr_matrix((np.random.default_rng(1).random((30, 20)) < 0.3).astype(float))
    found = singular_vectors(matrix, 5, np.random.RandomState(0))
    left, values, right = np.linalg.svd(matrix.toarray())
    for number in range(5):
        assert abs(found[:, number] @ left[:, number]) == pytest.approx(1, abs=1e-6)
    assert not singular_vectors(matrix, 25, np.random.RandomState(0))[:, 19:].any()


# ---- hashing (B6) ----------------------------------------------------------------------------------------------------


def test_rows_of_the_two_tables() -> None:
    places = list(itertools.product(range(3), range(3)))
    assert [(p % 3, p // 3) for p in range(9)] == [(r, q) for q, r in places]
    assert (rows_of(9, 3), rows_of(9, 4)) == (6, 7)
    assert [rows_of(40_981, c) for c in (2, 5, 20, 203)] == [20_493, 8_202, 2_070, 405]
    assert min(rows_of(40_981, c) for c in range(1, 40_982)) == 405


@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 2**32 - 1))
def test_all_rows_are_distinct_pairs(rows: int, divider: int, seed: int) -> None:
    divider = min(divider, rows)
    places = permutation(rows, seed)
    assert sorted(places.tolist()) == list(range(rows))
    remainder = np.stack([np.arange(1.0, divider + 1), np.ones(divider)], axis=1)
    quotient = np.stack([np.ones(-(-rows // divider)), np.arange(1.0, 1 - rows // -divider)], axis=1)
    pairs = hashed(remainder, quotient, rows, seed).decode()  # products that tell both rows
    assert pairs.tolist() == [[p % divider + 1, p // divider + 1] for p in places.tolist()]
    assert len(np.unique(pairs, axis=0)) == rows


def test_products_vary_as_the_initial_table() -> None:
    table = (0.03 * np.random.default_rng(0).standard_normal((40_000, 16))).astype(np.float32)
    small = initial_tables(table, 200, np.random.RandomState(0))
    product = hashed(*small, len(table), 0).decode()
    assert product.std() == pytest.approx(table.std(), rel=0.05)


# ---- runs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("lowrank", {"prune_lowrank_form": "table"}),
        ("lowrank", {}),
        ("pq", {"prune_pq_centroids": 4}),
        ("pq", {"prune_pq_centroids": 4, "prune_pq_codes": "svd"}),
        ("pq", {"prune_pq_centroids": 4, "prune_form_tune": True, "learning_rate": 0.01}),
        ("qr", {}),
    ],
)
def test_the_artifact_recommends_what_the_model_does(method: str, changes: dict[str, Any], tiny_data: Path) -> None:
    result, experiment, tickets = run(tiny_data, method, **changes)
    ticket = tickets[1]
    pruner = get_pruner(method)(experiment)
    padding = sum(4 * t.width * len(t.padding_rows) for t in experiment.scope)
    if not ticket.changes:
        assert ticket.method["bytes"] == pruner.bytes_of(ticket.method["size"]) + padding
    budget = information_bound_bits(ticket.prunable, ticket.method["equal_to_kept"], 32) / 8
    assert pruner.bytes_of(ticket.method["size"]) >= budget
    artifact = Path(result["artifact"])
    served = Recommender.from_artifact(artifact).top_k(np.arange(1, 9), 10, exclude_seen=False).items
    model = experiment.trained_model(ticket)
    with torch.no_grad():
        scores = (model.user_embedding.weight[1:9] @ model.item_embedding.weight.T).numpy()
    scores[:, 0] = -np.inf
    assert served.tolist() == np.argsort(-scores, axis=1, kind="stable")[:, :10].tolist()
    facts = json.loads((artifact / "ticket.json").read_text())
    assert facts["format_version"] == (1 if ticket.changes else 2)


@pytest.mark.parametrize("method", ["lowrank", "pq", "qr"])
def test_value_types_round_the_small_tables_and_never_codes(method: str, tiny_data: Path) -> None:
    changes = {"prune_lowrank_form": "table"} if method == "lowrank" else {"prune_pq_centroids": 4}
    changes = {name: value for name, value in changes.items() if method != "qr"}
    sizes = {}
    for values in ("fp32", "fp16", "int8"):
        result, _, tickets = run(tiny_data, method, **changes, export_values=values)
        sizes[values] = json.loads((Path(result["artifact"]) / "ticket.json").read_text())["bytes"]["tables"]
        assert result["tickets"][1]["bytes"] == tickets[1].method["bytes"]
    assert sizes["fp32"] == tickets[1].method["bytes"] and sizes["int8"] < sizes["fp16"] < sizes["fp32"]


def test_items_alone_get_codes(tiny_data: Path) -> None:
    changes = {"prune_pq_codes": "svd", "prune_pq_centroids": 4, "prune_include": ["item*"]}
    _, experiment, tickets = run(tiny_data, "pq", **changes)
    assert list(experiment.forms_of(tickets[1])) == ["item_embedding.weight"]
    _, experiment, tickets = run(tiny_data, "pq", "SASRec", **{**changes, "prune_include": []})
    assert "item_embedding.weight" in experiment.forms_of(tickets[1])


def test_what_cannot_be_is_refused_before_training(tiny_data: Path) -> None:
    with pytest.raises(ConfigError, match="prune_pq_codes=svd: DeepFM has no table of users or of items"):
        run(tiny_data, "pq", "DeepFM", prune_pq_codes="svd")
    with pytest.raises(ConfigError, match="prune_form_tune=True.*prune_pq_codes=svd"):
        run(tiny_data, "pq", prune_pq_codes="svd", prune_form_tune=True, prune_pq_centroids=4)
    for method in ("pq", "qr"):
        with pytest.raises(ConfigError, match="MultiVAE has no embedding table"):
            run(tiny_data, method, "MultiVAE")


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("lowrank", {"prune_lowrank_form": "table"}),
        ("lowrank", {"prune_lowrank_form": "joint"}),
        ("pq", {}),
    ],
)
def test_training_from_a_form_survives_a_kill(
    method: str, changes: dict[str, Any], tiny_data: Path, tmp_path: Path
) -> None:
    subject = Subject(method, "BPR", tiny_data, tmp_path, prune_form_tune=True, epochs=3, learning_rate=0.01, **changes)
    assert any(record["tuned"] for record in subject.pruned)
    check_killed_and_resumed(subject)
    check_same_twice(subject)
    check_forms(subject)


@pytest.mark.parametrize(
    ("method", "changes"), [("qr", {}), ("lowrank", {"prune_form_tune": True}), ("pq", {"prune_pq_centroids": 4})]
)
def test_teachers_teach_forms_that_are_trained(method: str, changes: dict[str, Any], tiny_data: Path) -> None:
    teacher = {"distiller": "rrd", "distill_teacher_model": "BPR", "distill_alone": False}
    _, _, alone = run(tiny_data, method, **changes)
    _, experiment, taught = run(tiny_data, method, **changes, **teacher)
    assert all(ticket.method["teacher"] for ticket in taught)
    trained = method != "pq"
    assert bool(taught[1].epochs) == trained
    if trained:
        assert taught[1].losses != alone[1].losses
    forms = experiment.forms_of(taught[1])
    weights = experiment.checkpoint_of(taught[1])["state_dict"]
    for name, form in forms.items():
        assert form.decode().tobytes() == weights[name].numpy().tobytes()


@pytest.mark.parametrize(
    ("method", "model"), [("lowrank", "BPR"), ("lowrank", "DeepFM"), ("pq", "SASRec"), ("qr", "BPR")]
)
def test_a_dry_run_says_the_bytes_that_come_out(method: str, model: str, tiny_data: Path) -> None:
    changes = {"prune_pq_centroids": 4} if method == "pq" else {}
    result, experiment, _ = run(tiny_data, method, model, **changes)
    summary = json.loads((Path(result["folder"]) / "summary.json").read_text())
    lines = describe_plan(experiment.config).splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("ticket")) + 2
    told = [int(line.split()[-1].replace(",", "")) for line in lines[start : start + 2]]
    assert told == [ticket["bytes"] for ticket in summary["tickets"]]
