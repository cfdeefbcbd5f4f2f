"""UltraGCN: worked numbers of the specification, both ways to score, sparse and dense constraint matrices, pruners."""

from __future__ import annotations

import gzip
import math
import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from marks import slow_but
from recbole.data.interaction import Interaction
from recbole.model.general_recommender import ultragcn
from recbole.utils import get_model
from training_bench import Bench
from zoo import DATASET, config_for

from recbole_prune import load_ticket, run_recbole_prune
from recbole_prune.errors import ConfigError
from recbole_prune.metering.macs import measure_macs
from recbole_prune.sparse import pair_scores as pairs
from recbole_prune.sparse.compact import CompactEmbedding
from recbole_prune.training.trainer import MaskAwareTrainer

TOY = np.array([[1, 1, 0], [0, 1, 1], [1, 1, 1]])
# the training file of the authors' ML-1M split; it is not ours to bring along
ML1M = Path(os.environ.get("RECBOLE_PRUNE_SHARED", "../shared"), "datasets", "ml-1m-ultragcn").resolve()


class Toy:
    """The parts of a RecBole dataset that the model asks for; id 0 is padding, and user 4 and item 4 have no data."""

    def num(self, field: str) -> int:
        return 5

    def __init__(self, *repeated: tuple[int, int, float]) -> None:
        pairs = [(user + 1, item + 1, 1.0) for user, item in zip(*np.nonzero(TOY))] + list(repeated)
        users, items, labels = (np.array(column) for column in zip(*pairs))
        self.inter_feat = Interaction({"user_id": users, "item_id": items, "label": labels})

    def inter_matrix(self, form: str, value_field: str | None = None) -> Any:
        users, items, labels = (self.inter_feat[field].numpy() for field in ("user_id", "item_id", "label"))
        data = labels if value_field else np.ones(len(users))
        return sp.coo_matrix((data, (users, items)), shape=(5, 5)).asformat(form)


def toy_model(data: Toy | None = None, **changes: Any) -> Any:
    config = {
        "LABEL_FIELD": "label", "train_neg_sample_args": {"distribution": "none"},
        "USER_ID_FIELD": "user_id", "ITEM_ID_FIELD": "item_id", "NEG_PREFIX": "neg_", "device": torch.device("cpu"),
        "w1": 0, "w2": 1, "w3": 0, "w4": 1, "negative_num": 3, "negative_weight": 1.0, "reg_weight": 0.0,
        "item_item_weight": 0.0, "similar_item_num": 2, "item_item_weighting": "code", "initial_std": 0.5,
        "embedding_size": 4, **changes,
    }  # fmt: skip
    return ultragcn.UltraGCN(config, data or Toy())


def toy_loss(**changes: Any) -> float:
    """All seven positives in one batch, each item once as negative of each, all embeddings 0."""
    model = toy_model(initial_std=0.0, **changes)
    users, items = (torch.from_numpy(ids + 1) for ids in np.nonzero(TOY))
    return float(model.loss_of(users, items, torch.arange(1, 4).repeat(7, 1)))


def test_beta_of_the_specification() -> None:
    users, items = ultragcn.degree_factors(sp.csr_matrix(TOY, dtype=float))
    expected = [[0.5, 0.4330127, 0.5], [0.5, 0.4330127, 0.5], [0.3849002, 1 / 3, 0.3849002]]
    np.testing.assert_allclose(np.outer(users, items), expected, atol=1e-7)


def test_omega_of_the_specification() -> None:
    ids, omegas = ultragcn.similar_items(sp.csr_matrix(TOY, dtype=float), 3)
    dense = np.zeros((3, 3))
    np.put_along_axis(dense, ids, omegas, axis=1)
    expected = [[0.4, 0.3464102, 0.2], [0.3299144, 0.4285714, 0.3299144], [0.2, 0.3464102, 0.4]]
    np.testing.assert_allclose(dense, expected, atol=1e-7)
    assert ids[1].tolist() == [1, 0, 2]  # equal omegas by id
    ids, omegas = ultragcn.similar_items(sp.csr_matrix(TOY, dtype=float), 2, paper=True)
    assert ids.tolist() == [[1, 2], [0, 2], [1, 0]]  # without the item itself
    np.testing.assert_allclose(omegas, [[0.5634362, 1 / 3], [0.5916080, 0.5916080], [0.5634362, 1 / 3]], atol=1e-7)


def test_loss_terms_of_the_specification() -> None:
    positive = toy_loss(negative_weight=0.0)
    assert positive == pytest.approx(2.0580643, abs=1e-6)
    assert toy_loss() - positive == pytest.approx(2.0890190, abs=1e-6)
    assert toy_loss(negative_weight=0.0, item_item_weight=1.0) - positive == pytest.approx(3.6467154, abs=1e-6)


def test_w1_and_w3_weigh_every_term_alike() -> None:
    """Without beta a positive weighs w1, and its negatives w3 * eta together."""
    assert toy_loss(w1=2, w2=0, w3=0, w4=0) == pytest.approx(7 * 2 * math.log(2), rel=1e-6)
    assert toy_loss(w1=0, w2=0, w3=3, w4=0, negative_weight=5.0) == pytest.approx(7 * 3 * 5 * math.log(2), rel=1e-6)


def test_l2_leaves_padding_out() -> None:
    model = toy_model(reg_weight=0.1, w2=0, w4=0)
    users = torch.tensor([1])
    loss = model.loss_of(users, users, users[:, None])
    tables = [model.user_embedding.weight, model.item_embedding.weight]
    assert float(loss.detach()) == pytest.approx(0.05 * sum(float((t[1:] ** 2).sum()) for t in tables), rel=1e-5)
    loss.backward()
    for table in tables:
        assert not table.grad[0].any()
        torch.testing.assert_close(table.grad[1:], 0.1 * table.detach()[1:])


def test_no_term_is_lost_to_underflow() -> None:
    """log(sigmoid(x)) is -inf for a very negative x; the term is -x."""
    model = toy_model(w1=1, w2=0, w4=0)
    with torch.no_grad():
        model.user_embedding.weight.fill_(10.0)
        model.item_embedding.weight.fill_(-10.0)
    users = torch.tensor([1])
    loss = model.loss_of(users, users, users[:, None])
    loss.backward()
    assert float(loss.detach()) == 400.0 and model.user_embedding.weight.grad[1].abs().sum() > 0


def test_repeated_pairs_and_negatives_in_the_data_change_nothing() -> None:
    """Check-ins repeat pairs; labelled data holds interactions that are no positives."""
    expected = toy_model()
    model = toy_model(Toy((1, 1, 1.0), (1, 1, 1.0), (2, 1, 0.0)))
    for name in ("user_factor", "item_factor", "similar", "similarity"):
        assert torch.equal(getattr(model, name), getattr(expected, name)), name


def test_only_rows_with_a_label_above_0_are_positives(monkeypatch: pytest.MonkeyPatch) -> None:
    model = toy_model()
    seen: list[list[int]] = []
    monkeypatch.setattr(model, "loss_of", lambda users, items, negatives: seen.append([*users, *items]))
    rows = Interaction({"user_id": torch.tensor([1, 2, 3]), "item_id": torch.tensor([3, 2, 1])})
    model.calculate_loss(rows)
    rows.update(Interaction({"label": torch.tensor([1.0, 0.0, 1.0])}))
    model.calculate_loss(rows)
    assert seen == [[1, 2, 3, 3, 2, 1], [1, 3, 3, 1]]


def test_sampled_negatives_are_refused(tiny_data: Path) -> None:
    sampled = {"distribution": "uniform", "sample_num": 1}
    settings = {**config_for("UltraGCN", tiny_data), "pruner": "dsl", "train_neg_sample_args": sampled}
    with pytest.raises(ConfigError, match="train_neg_sample_args=.*uniform.*leave the key out"):
        run_recbole_prune(model="UltraGCN", dataset=DATASET, config_dict=settings)


def test_missing_data_weighs_nothing() -> None:
    users, items = ultragcn.degree_factors(Toy().inter_matrix("csr").astype(float))
    assert users[0] == users[4] == 0 and np.isfinite(items).all()
    ids, omegas = ultragcn.similar_items(Toy().inter_matrix("csr").astype(float), 10)
    assert not omegas[[0, 4]].any() and np.isfinite(omegas).all() and not ids[omegas == 0].any()


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(1, 12), paper=st.booleans(), rows=st.integers(1, 9))
def test_similar_items_row_by_row_are_those_of_the_dense_matrix(seed: int, count: int, paper: bool, rows: int) -> None:
    random = np.random.default_rng(seed)
    matrix = (random.random((random.integers(1, 12), random.integers(1, 12))) < random.random()).astype(float)
    together = matrix.T @ matrix
    sums, own = together.sum(axis=1), np.diag(together)
    with np.errstate(divide="ignore", invalid="ignore"):
        if paper:
            omega = together / (sums - own)[:, None] * np.sqrt(sums[:, None] / sums[None, :])
            np.fill_diagonal(omega, 0)
        else:
            omega = together * (np.sqrt(sums + 1) / sums)[:, None] / np.sqrt(sums + 1)[None, :]
    omega = np.nan_to_num(omega, nan=0, posinf=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ultragcn, "_ROWS_AT_ONCE", rows)
        ids, omegas = ultragcn.similar_items(sp.csr_matrix(matrix), count, paper)
    expected = -np.sort(-omega, axis=1)[:, :count]
    np.testing.assert_allclose(omegas[:, : expected.shape[1]], expected, rtol=1e-12)
    rows_of = np.arange(len(ids))[:, None]
    np.testing.assert_allclose(np.where(omegas > 0, omega[rows_of, ids], 0), omegas, rtol=1e-12)


@pytest.mark.parametrize("storage", ["dense", "masked", "compact"])
def test_every_way_to_score_gives_the_same_gradients(
    storage: str, tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compiled loops, all items at once and look-ups; the whole table and its rows in the batch."""
    bench = Bench("UltraGCN", tiny_data, reg_weight=0.1, item_item_weight=0.5)
    masks = bench.masks() if storage != "dense" else None
    model = bench.model(masks, storage)
    assert isinstance(model.item_embedding, CompactEmbedding) == (storage == "compact")
    batch = next(iter(bench.train))[torch.arange(7)]

    def gradients(most: int) -> list[torch.Tensor]:
        monkeypatch.setattr(pairs, "_ITEMS_PER_DRAW", most)
        torch.manual_seed(3)
        model.zero_grad()
        loss = model.calculate_loss(batch)
        loss.backward()
        return [loss.detach(), *[p.grad.clone() for p in model.parameters()]]

    found = []
    for rows_of_batch in (False, True):
        monkeypatch.setattr(model, "n_items", 10**9 if rows_of_batch else bench.train._dataset.item_num)
        monkeypatch.setattr(torch, "randint", partial(_randint, bench.train._dataset.item_num))
        with monkeypatch.context() as patch:
            found.append(gradients(10**9))
            patch.setattr(pairs, "available", lambda: False)
            found += [gradients(10**9), gradients(0)]
    for other in found[1:]:
        for one, another in zip(found[0], other):
            torch.testing.assert_close(one, another, rtol=1e-4, atol=1e-5)


def _randint(items: int, low: int, high: int, *args: Any, randint: Any = torch.randint, **kwargs: Any) -> torch.Tensor:
    drawn: torch.Tensor = randint(low, min(high, items), *args, **kwargs)
    return drawn


@pytest.mark.parametrize(("batch", "n", "rows", "width"), [(5, 1, 4, 3), (7, 4, 300, 16), (6, 23, 9, 64), (3, 0, 4, 8)])
def test_compiled_loops_equal_gathered_rows(batch: int, n: int, rows: int, width: int) -> None:
    """Numbers of pairs that are no multiple of four, rows that come twice, none at all."""
    pytest.importorskip("numba")
    torch.manual_seed(batch)
    vectors, table, ids = torch.randn(batch, width), torch.randn(rows, width), torch.randint(rows, (batch, n))
    weights = torch.randn(batch, n).double()

    def gathered(vectors: torch.Tensor, table: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        return (table.double()[ids] * vectors.double().unsqueeze(1)).sum(2)

    results = []
    for function in (pairs.pair_scores, pairs.pair_scores_by_torch, gathered):
        leaves = [tensor.clone().requires_grad_() for tensor in (vectors, table)]
        scores = function(*leaves, ids)
        (scores * weights).sum().backward()
        results.append([scores.double(), *(leaf.grad.double() for leaf in leaves)])
    for result in results[:2]:
        torch.testing.assert_close(result, results[2], rtol=1e-5, atol=1e-5)


def test_scores_of_pairs_in_double_precision() -> None:
    ids = torch.randint(5, (3, 4))
    leaves = [torch.randn(rows, 8, dtype=torch.float64, requires_grad=True) for rows in (3, 5)]
    assert torch.autograd.gradcheck(lambda *tables: pairs.pair_scores(*tables, ids), leaves)


def test_the_loss_written_out(tiny_data: Path) -> None:
    settings = {"w1": 0.3, "w2": 0.7, "w3": 0.2, "w4": 0.9, "negative_weight": 3.0, "item_item_weight": 40.0}
    bench = Bench("UltraGCN", tiny_data, reg_weight=0.05, similar_item_num=3, initial_std=1.0, **settings)
    model = bench.plain_model()
    matrix = bench.train._dataset.inter_matrix(form="csr").toarray().astype(float)
    d_user, d_item = matrix.sum(1), matrix.sum(0)
    similar, omega = ultragcn.similar_items(sp.csr_matrix(matrix), 3)
    users, positives = torch.tensor([3, 1, 3, 12]), torch.tensor([2, 5, 2, 9])
    negatives = torch.from_numpy(np.random.default_rng(1).integers(1, model.n_items, (4, 5)))
    user_table, item_table = (t.weight.detach().double().numpy() for t in (model.user_embedding, model.item_embedding))

    def beta(user: int, item: int) -> float:
        return float(math.sqrt(d_user[user] + 1) / d_user[user] / math.sqrt(d_item[item] + 1))

    expected = 0.05 / 2 * ((user_table[1:] ** 2).sum() + (item_table[1:] ** 2).sum())
    for row, (user, item) in enumerate(zip(users.tolist(), positives.tolist())):
        scores = item_table @ user_table[user]
        expected += (0.3 + 0.7 * beta(user, item)) * np.logaddexp(0, -scores[item])
        for negative in negatives[row].tolist():
            expected += 3.0 / 5 * (0.2 + 0.9 * beta(user, negative)) * np.logaddexp(0, scores[negative])
        for other, weight in zip(similar[item], omega[item]):
            expected += 40.0 * weight * np.logaddexp(0, -scores[other])
    assert float(model.loss_of(users, positives, negatives).detach()) == pytest.approx(expected, rel=1e-5)


def test_multiply_accumulates_are_those_of_the_pairs(tiny_data: Path) -> None:
    """(1 + negatives + neighbours) F per positive, 1 for the weight of each pair, and the squares of the tables."""
    bench = Bench("UltraGCN", tiny_data, embedding_size=16, similar_item_num=10)
    batch = next(iter(bench.train))
    dataset = bench.train._dataset
    pair_count, squares = len(batch) * (1 + 20 + 10), 16 * (dataset.user_num + dataset.item_num - 2)
    report = measure_macs(bench.model(), bench.config, dataset, batch)
    assert report.training.forward.dense == pair_count * (16 + 1) + squares
    assert report.inference.dense == dataset.item_num * 16
    for storage in ("masked", "compact"):
        model = bench.model(bench.masks(0.25), storage)
        sparse = measure_macs(model, bench.config, dataset, batch).training.forward
        # a square is live where its one factor is, a product where both are
        assert sparse.exact == pytest.approx(pair_count * (16 / 16 + 1) + squares / 4, rel=0.05)


def test_negatives_are_real_items_and_repeat_with_the_seed(tiny_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench("UltraGCN", tiny_data)
    model = bench.plain_model()
    drawn: list[torch.Tensor] = []
    monkeypatch.setattr(model, "loss_of", lambda users, positives, negatives: drawn.append(negatives))
    batch = next(iter(bench.train))
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        model.calculate_loss(batch)
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    assert drawn[0].shape == (len(batch), 20)
    assert int(drawn[0].min()) >= 1 and int(drawn[0].max()) < model.n_items


@pytest.mark.slow
def test_pruned_exported_and_rebuilt(tiny_data: Path) -> None:
    """Found by its name, with its property file, through the whole run; the artifact rebuilds it and scores alike."""
    settings = {**config_for("UltraGCN", tiny_data), "pruner": "dsl", "prune_update_interval": 2, "prune_dense": False}
    del settings["w1"]  # from our property file
    result = run_recbole_prune(model="UltraGCN", dataset=DATASET, config_dict=settings)
    assert result["chosen"]["ticket"] == 1 and result["chosen"]["sparsity"] == pytest.approx(0.5, abs=0.01)
    model = load_ticket(result["artifact"])
    assert get_model("UltraGCN").__name__ == type(model).__name__ == "UltraGCN"
    assert model.weights[0] == 1e-8


class Stopped(BaseException):
    """Stands for a kill: nothing in the package may catch it."""


@pytest.mark.parametrize("pruner", slow_but(["dsl"], ["none", "dsl"]))
def test_resume_repeats_the_negatives(
    pruner: str, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {**config_for("UltraGCN", tiny_data), "epochs": 3, "train_batch_size": 256, "pruner": pruner}
    if pruner == "dsl":
        settings.update(prune_update_interval=2, prune_dense=False, prune_storage="compact")

    def run(output: str) -> dict[str, Any]:
        config_dict = {**settings, "output_dir": str(tmp_path / output)}
        return run_recbole_prune(model="UltraGCN", dataset=DATASET, config_dict=config_dict)

    whole = run("whole")
    train_epoch = MaskAwareTrainer._train_epoch

    def stop(self: Any, train_data: Any, epoch_idx: int, *args: Any, **kwargs: Any) -> Any:
        if epoch_idx == 2:
            raise Stopped
        return train_epoch(self, train_data, epoch_idx, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(MaskAwareTrainer, "_train_epoch", stop)
        with pytest.raises(Stopped):
            run("stopped")
    resumed = run("stopped")
    assert resumed["test_result"] == whole["test_result"]
    tables = [load_ticket(result["artifact"]).state_dict() for result in (whole, resumed)]
    for name, table in tables[0].items():
        assert torch.equal(table, tables[1][name])


def test_unknown_model_and_its_own_settings(tiny_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from recbole_prune.config.prune_config import PruneConfig

    with pytest.raises(ConfigError, match="UltraGNC.*did you mean UltraGCN"):
        PruneConfig("UltraGNC", DATASET, config_dict={"data_path": str(tiny_data)})
    config = PruneConfig("UltraGCN", DATASET, config_dict={"data_path": str(tiny_data), "similar_item_num": 3})
    assert config["similar_item_num"] == 3 and config["item_item_weight"] == 5e-4 and not config.warnings


@pytest.mark.slow
@pytest.mark.skipif(not ML1M.is_dir(), reason="the authors' ML-1M split is not here (RECBOLE_PRUNE_SHARED)")
def test_figures_of_the_authors_data() -> None:
    pairs = []
    for part in ("train", "valid"):
        with gzip.open(ML1M / f"ml-1m-ultragcn.{part}.inter.gz", "rt") as file:
            pairs.append(np.loadtxt(file, dtype=int, skiprows=1))
    users, items = np.concatenate(pairs).T
    matrix = sp.csr_matrix((np.ones(len(users)), (users, items)), shape=(6022, 3043))
    user_factor, item_factor = ultragcn.degree_factors(matrix)
    assert (matrix[0].sum(), matrix[:, 0].sum()) == (43, 1643)
    assert user_factor[0] * item_factor[0] == pytest.approx(0.0038045822, rel=1e-7)
    assert (user_factor.sum(), item_factor.sum()) == pytest.approx((763.66899, 299.62009), rel=1e-7)
    beta = user_factor[users] * item_factor[items]
    assert (beta.mean(), beta.min(), beta.max()) == pytest.approx((0.00391974, 0.00045695, 0.06239178), rel=1e-4)
    ids, omegas = ultragcn.similar_items(matrix, 10)
    assert ids[0].tolist() == [0, 1843, 223, 1607, 1375, 1144, 1187, 150, 1350, 2219]
    assert omegas[0, :5] == pytest.approx([0.00452272, 0.00230653, 0.00229313, 0.00220446, 0.00218357], abs=1e-8)
    assert omegas.sum() == pytest.approx(33.38087, abs=1e-5)
    assert (ids[:, 0] == np.arange(3043)).all()
    own = [set(row[1:]) for row in ids]
    paper = [set(row[:9]) for row in ultragcn.similar_items(matrix, 10, paper=True)[0]]
    assert own == paper
