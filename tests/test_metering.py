"""Multiply-accumulates: formulas of methods/dynamic_sparse_learning.md 7 and energy_and_size.md 4 on built models."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from marks import slow_but
from recbole.utils import KGDataLoaderState
from torch import nn
from training_bench import Bench
from zoo import DATASET, config_for

from recbole_prune import run_recbole_prune
from recbole_prune.masking.masks import MaskSet
from recbole_prune.metering.counter import MATRIX, PAIRS, SPARSE, MacsCounter
from recbole_prune.metering.factors import Factors
from recbole_prune.metering.macs import Macs, MacsReport, measure_macs
from recbole_prune.report.costs import macs_line
from recbole_prune.run.costs import with_older_macs
from recbole_prune.run.ticket import Ticket
from recbole_prune.scoring.probe import Probe, undisturbed
from recbole_prune.sparse.compact import compact_modules
from recbole_prune.sparse.propagation import FixedMatrix, plain

# formulas: dense forward MACs


def all_pairs(users: int, items: int, width: int) -> int:
    return users * items * width


def propagation(layers: int, edges: int, width: int) -> int:
    return layers * 2 * edges * width


def mlp(widths: list[int]) -> int:
    return sum(a * b for a, b in zip(widths, widths[1:]))


def neumf_pair(mf: int, layers: list[int]) -> int:
    return mf + mlp(layers) + mf + layers[-1]


def convncf_pair(width: int, channels: list[int], kernels: list[int], strides: list[int]) -> int:
    macs, side = width**2, width
    for c_in, c_out, kernel, stride in zip(channels, channels[1:], kernels, strides):
        side = (side - kernel) // stride + 1
        macs += side**2 * c_out * c_in * kernel**2
    return macs + channels[-1]


def multvae_user(items: int, hidden: int, latent: int) -> int:
    return items * hidden + hidden * 2 * latent + latent * hidden + hidden * items


def sasrec_user(layers: int, length: int, width: int, inner: int, items: int) -> int:
    return layers * (4 * length * width**2 + 2 * length**2 * width + 2 * length * width * inner) + items * width


def gru4rec_user(length: int, width: int, hidden: int, items: int) -> int:
    return length * 3 * hidden * (width + hidden) + length * hidden * width + items * width


def ultragcn_training(negatives: int, neighbours: int, width: int, rows: int) -> tuple[int, int]:
    """(per positive, per batch for the L2 term)."""
    return (1 + negatives + neighbours) * width, rows * width


def test_formulas_give_the_published_figures() -> None:
    yelp_users, yelp_items, yelp_edges = 31_668, 38_048, 1_237_259
    assert all_pairs(yelp_users, yelp_items, 64) == 77_113_860_096
    assert propagation(3, yelp_edges, 64) == 475_107_456
    assert neumf_pair(16, [32, 32, 16, 8]) == 1704
    assert neumf_pair(64, [128, 128, 64]) == 24_768
    assert convncf_pair(64, [1, 32, 32, 32, 32], [4, 4, 2, 2], [4, 4, 2, 2]) == 417_824
    assert multvae_user(3654, 600, 200) == 4_744_800
    assert ultragcn_training(800, 10, 64, yelp_users + yelp_items) == (51_904, 4_461_824)
    assert all_pairs(1, 1654, 64) == 105_856
    assert propagation(2, 93_330 // 2, 64) + all_pairs(1, 1654, 64) == 12_052_096
    assert sasrec_user(2, 20, 64, 256, 1683) == 2_176_192
    assert gru4rec_user(20, 64, 128, 1683) == 1_746_112
    assert 2 * 64 * 128 + 128 * 64 + 128 == 24_704  # the NeuMF pair without its 64 element-wise products


# built models


def measure(bench: Bench, density: float | None = None, storage: str = "masked", **scope: Any) -> MacsReport:
    masks = None if density is None else bench.masks(density, **scope)
    batch = next(iter(bench.train))
    return measure_macs(bench.model(masks, storage), bench.config, bench.train._dataset, batch)


def assert_dense(macs: Macs, dense: float) -> None:
    """Without masks the three accountings agree."""
    assert macs.dense == macs.density_scaled == macs.exact == pytest.approx(dense)


def test_matrix_factorisation(tiny_data: Path) -> None:
    for width in (64, 32):
        bench = Bench("BPR", tiny_data, embedding_size=width)
        report = measure(bench)
        assert_dense(report.inference, all_pairs(1, bench.train._dataset.item_num, width))
        assert_dense(report.preparation, 0)
        assert_dense(report.training.forward, 2 * width * report.training.positives)  # a positive and a negative pair
        assert not report.not_counted


@pytest.mark.parametrize("model", ["LightGCN", "SGL"])
def test_propagation_is_counted_once_for_all_users(model: str, tiny_data: Path) -> None:
    bench = Bench(model, tiny_data, embedding_size=16, n_layers=3)
    report = measure(bench)
    scoring = all_pairs(1, bench.train._dataset.item_num, 16)
    assert_dense(report.inference, scoring)
    assert_dense(report.preparation, propagation(3, len(bench.train._dataset.inter_feat), 16))
    assert_dense(report.inference_cold, scoring + report.preparation.dense)
    if model == "LightGCN":
        assert_dense(report.training.forward, report.preparation.dense + 2 * 16 * report.training.positives)


NEUMF = {"mf_embedding_size": 64, "mlp_embedding_size": 64, "mlp_hidden_size": [128, 64]}
OFFICIAL_NEUMF = {"mf_embedding_size": 16, "mlp_embedding_size": 16, "mlp_hidden_size": [32, 16, 8]}
CONVNCF = {
    "embedding_size": 64,
    "cnn_channels": [1, 32, 32, 32, 32],
    "cnn_kernels": [4, 4, 2, 2],
    "cnn_strides": [4, 4, 2, 2],
}


@pytest.mark.parametrize(
    ("model", "settings", "pair"),
    [("NeuMF", NEUMF, 24_768), ("NeuMF", OFFICIAL_NEUMF, 1704), ("ConvNCF", CONVNCF, 417_824)],
)
def test_models_that_score_pairs(model: str, settings: dict[str, Any], pair: int, tiny_data: Path) -> None:
    bench = Bench(model, tiny_data, **settings, train_batch_size=64)
    report = measure(bench)
    assert_dense(report.inference, pair * bench.train._dataset.item_num)
    assert report.training.forward.dense == 2 * pair * report.training.positives


def test_autoencoders(tiny_data: Path) -> None:
    cdae = Bench("CDAE", tiny_data, embedding_size=64)
    items = cdae.train._dataset.item_num
    assert_dense(measure(cdae).inference, 2 * items * 64)
    multvae = Bench("MultiVAE", tiny_data, mlp_hidden_size=[600], latent_dimension=400)
    assert_dense(measure(multvae).inference, multvae_user(items, 600, 200))


def test_sequential_models(tiny_data: Path) -> None:
    sasrec = Bench("SASRec", tiny_data, n_layers=2, hidden_size=64, inner_size=256, n_heads=2)
    items, length = sasrec.train._dataset.item_num, sasrec.config["MAX_ITEM_LIST_LENGTH"]
    report = measure(sasrec)
    assert_dense(report.inference, sasrec_user(2, length, 64, 256, items))
    assert any("element-wise" in line for line in report.not_counted)  # the activation x * F(x)
    gru = Bench("GRU4Rec", tiny_data, embedding_size=64, hidden_size=128, num_layers=1)
    assert_dense(measure(gru).inference, gru4rec_user(length, 64, 128, items))


# masks


def rows_of_density(bench: Bench, density: float, **scope: Any) -> MaskSet:
    """Every row of every target has exactly ``density`` of its entries live, in places of its own."""
    found = bench.scope(**scope)
    generator = torch.Generator().manual_seed(3)
    masks = {}
    for target in found:
        order = torch.rand(target.shape[0], target.width, generator=generator).argsort(1)
        masks[target.name] = (order < round(density * target.width)).view(target.shape)
        masks[target.name][list(target.padding_rows)] = True
    return MaskSet(found, masks)


def measure_with(bench: Bench, masks: MaskSet, storage: str = "masked") -> MacsReport:
    return measure_macs(bench.model(masks, storage), bench.config, bench.train._dataset, next(iter(bench.train)))


def test_accounting_by_density(tiny_data: Path) -> None:
    """Everything masked to d: inference d, a step d, an update step (2 d + 1) / 3, the mean d + (1 - d) / (3 T)."""
    bench, d = Bench("BPR", tiny_data, embedding_size=64), 0.25
    report = measure_with(bench, rows_of_density(bench, d))
    assert report.inference.density_scaled == d * report.inference.dense  # "saves 75 %"
    dense_step = report.training.step.dense
    assert dense_step == 3 * report.training.forward.dense
    assert report.training.step.density_scaled == d * dense_step
    assert report.training.update_step == pytest.approx((2 * d + 1) / 3 * dense_step)
    for interval in (1, 100, 2000, 3000):
        assert report.training.average_step(interval) == pytest.approx((d + (1 - d) / (3 * interval)) * dense_step)
    assert report.training.average_step(1) == report.training.update_step
    saved = {
        interval: round(100 * (1 - report.training.average_step(interval) / dense_step), 2) for interval in (100, 2000)
    }
    assert saved == {100: 74.75, 2000: 74.99}


def test_exact_accounting_of_scores(tiny_data: Path) -> None:
    """For every user the sum over the factors that are live in its row of the items that have them live too."""
    bench = Bench("BPR", tiny_data, embedding_size=16, eval_batch_size=4096)
    masks = bench.masks(0.25)
    model = bench.model(masks)
    report = measure_macs(model, bench.config, bench.train._dataset, next(iter(bench.train)))
    with undisturbed(model):
        users = Probe(model, bench.config, bench.train._dataset).users
    user_mask, item_mask = masks["user_embedding.weight"][users], masks["item_embedding.weight"]
    slow = sum(int((row & item_mask).sum()) for row in user_mask)
    assert report.users == len(users) and report.inference.exact == pytest.approx(slow / len(users))


@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 6), st.floats(0, 1), st.floats(0, 1), st.integers(0, 2**31))
def test_exact_count_of_all_pairs(m: int, n: int, width: int, users: float, items: float, seed: int) -> None:
    """sum over f of c_f^U c_f^I is the number of pairs of live factors."""
    generator = torch.Generator().manual_seed(seed)
    model = tables(m, n, width)
    masks = {
        "users.weight": torch.rand(m, width, generator=generator) < users,
        "items.weight": torch.rand(n, width, generator=generator) < items,
    }
    counter = count(model, masks, lambda: model.users.weight @ model.items.weight.T)
    user_mask, item_mask = masks.values()
    assert counter.total.dense == all_pairs(m, n, width)
    assert counter.total.exact == int((user_mask[:, None] & item_mask).sum())
    assert counter.total.exact == int((user_mask.sum(0) * item_mask.sum(0)).sum())


def test_independent_masks_cost_the_square_of_the_density() -> None:
    model, d = tables(200, 300, 64), 0.25
    generator = torch.Generator().manual_seed(1)
    masks = {f"{n}.weight": torch.rand(s, 64, generator=generator) < d for n, s in (("users", 200), ("items", 300))}
    macs = count(model, masks, lambda: model.users.weight @ model.items.weight.T).total
    assert macs.exact / macs.dense == pytest.approx(d**2, rel=0.03)  # 6.25 %, better than accounting A
    assert macs.density_scaled / macs.dense == pytest.approx(d, rel=0.03)


def test_sparse_tables_of_a_tower_save_its_first_layer_only(tiny_data: Path) -> None:
    bench = Bench("NeuMF", tiny_data, **OFFICIAL_NEUMF)
    report = measure_with(bench, rows_of_density(bench, 0.25, include=["*mlp_embedding*"]))
    inference, items = report.inference, bench.train._dataset.item_num
    assert inference.dense - inference.density_scaled == pytest.approx(768 * items)
    assert inference.dense - inference.exact == pytest.approx(768 * items)
    assert pytest.approx(0.45, abs=0.001) == 768 / 1704


def test_sparse_tables_save_no_convolution(tiny_data: Path) -> None:
    settings = {"embedding_size": 16, "cnn_channels": [1, 8, 8], "cnn_kernels": [4, 4], "cnn_strides": [4, 4]}
    bench, d, items = Bench("ConvNCF", tiny_data, **settings), 0.25, 241
    pair = convncf_pair(16, *(settings[f"cnn_{name}"] for name in ("channels", "kernels", "strides")))  # type: ignore[arg-type]
    inference = measure_with(bench, rows_of_density(bench, d, scope="embedding")).inference
    assert inference.density_scaled == pytest.approx(items * (pair - (1 - d) * 16**2))
    assert inference.exact == pytest.approx(items * (pair - (1 - d**2) * 16**2))
    convolutions = measure_with(bench, rows_of_density(bench, d, scope="linear")).inference
    assert convolutions.density_scaled == convolutions.exact == pytest.approx(items * (d * (pair - 16**2) + 16**2))


def test_only_the_first_propagation_sees_sparse_tables(tiny_data: Path) -> None:
    bench, d = Bench("LightGCN", tiny_data, embedding_size=16, n_layers=3), 0.25
    masks = rows_of_density(bench, d)
    report = measure_with(bench, masks)
    layer = report.preparation.dense / 3
    matrix = bench.plain_model().norm_adj_matrix.coalesce()
    rows = torch.cat([masks["user_embedding.weight"], masks["item_embedding.weight"]])
    first = int(rows.sum(1)[matrix.indices()[1]].sum())
    assert report.preparation.density_scaled == pytest.approx((d + 2) * layer)
    assert report.preparation.exact == first + 2 * layer
    assert report.inference.exact == report.inference.density_scaled == report.inference.dense


@pytest.mark.parametrize("model", ["MultiVAE", "GRU4Rec", "NARM", "CDAE"])
def test_weight_matrices(model: str, tiny_data: Path) -> None:
    """With every weight at d, products of weights cost d; the inputs that are no tables are dense."""
    bench, d = Bench(model, tiny_data), 0.25
    inference = measure_with(bench, rows_of_density(bench, d, scope="all")).inference
    if model in ("MultiVAE", "CDAE"):
        assert inference.density_scaled == pytest.approx(d * inference.dense, rel=0.01)  # 60 of 241 items are live
        assert inference.exact == pytest.approx(inference.density_scaled)
    else:
        assert d * inference.dense <= inference.density_scaled < 0.5 * inference.dense  # NARM's attention is dense
        assert inference.exact < inference.density_scaled  # rows looked up meet sparse weights


@pytest.mark.parametrize("model", ["BPR", "LightGCN", "NeuMF", "SASRec"])
def test_compact_tables_count_as_masked_ones(model: str, tiny_data: Path) -> None:
    bench = Bench(model, tiny_data)
    masks = bench.masks(0.3)
    bench_model = bench.model(masks, "compact")
    tables_before = {name: module.values for name, module in compact_modules(bench_model)}
    assert tables_before
    batch = next(iter(bench.train))
    compact = measure_macs(bench_model, bench.config, bench.train._dataset, batch)
    assert compact == measure_macs(bench.model(masks), bench.config, bench.train._dataset, batch)
    assert compact.inference.dense == measure(bench).inference.dense
    for name, module in compact_modules(bench_model):
        assert module.values is tables_before.pop(name)
    assert not tables_before


@pytest.mark.parametrize("storage", ["masked", "compact"])
@pytest.mark.parametrize("model", ["LightGCN", "MultiVAE", "SASRec"])
def test_measuring_leaves_everything_as_it_was(model: str, storage: str, tiny_data: Path) -> None:
    bench = Bench(model, tiny_data)
    built = bench.model(bench.masks(0.5), storage).train()
    batch = next(iter(bench.train))
    weights = {name: (parameter, parameter.detach().clone()) for name, parameter in built.named_parameters()}
    attributes, streams = dict(vars(built)), torch.get_rng_state()
    measure_macs(built, bench.config, bench.train._dataset, batch)
    assert torch.equal(streams, torch.get_rng_state())
    assert vars(built).keys() == attributes.keys() and all(vars(built)[k] is v for k, v in attributes.items())
    assert built.training
    for name, parameter in built.named_parameters():
        assert parameter is weights[name][0] and torch.equal(parameter, weights[name][1]) and parameter.grad is None


# the counter


def tables(users: int, items: int, width: int) -> Any:
    model: Any = nn.Module()
    model.users, model.items = nn.Embedding(users, width), nn.Embedding(items, width)
    model.layer = nn.Linear(2 * width, 3)
    return model


def count(model: nn.Module, masks: dict[str, torch.Tensor], work: Any) -> MacsCounter:
    densities = {name: float(mask.double().mean()) for name, mask in masks.items()}
    with torch.no_grad(), MacsCounter(Factors(model, masks, densities)) as counter:
        work()
    return counter


IDS = torch.tensor([3, 0, 3, 5, 1])
PROGRAMS = {
    "look-ups": lambda m: (m.users(IDS), m.items(IDS).t()),
    "rows by index": lambda m: (m.users.weight[IDS], m.items.weight.t()),
    "concatenation": lambda m: (torch.cat([m.users(IDS), m.items(IDS)], 1), m.layer.weight.t()),
    "with a constant": lambda m: (torch.cat([m.users(IDS), torch.ones(5, 4)], 1), m.layer.weight.t()),
    "stacked and reshaped": lambda m: (torch.stack([m.users(IDS), m.items(IDS)]).view(2, 20), m.items(IDS).view(20, 1)),
    "parts": lambda m: (m.users.weight.split(2)[1], m.items.weight.chunk(2)[0].transpose(0, 1)),
    "scaled": lambda m: (torch.relu(m.users(IDS) / 3).clone(), -m.items.weight.permute(1, 0)),
    "selected": lambda m: (m.users.weight.index_select(0, IDS), m.items.weight[:3].t().contiguous()),
    "transposed in place": lambda m: (m.users(IDS), m.items(IDS).transpose_(0, 1)),
    "batches": lambda m: (m.users(IDS.view(5, 1)), m.items(IDS).unsqueeze(2)),
    "repeated": lambda m: (m.users(IDS).unsqueeze(1).expand(5, 2, 4).reshape(10, 4), m.items.weight.T),
    "other strides": lambda m: ((torch.ones(4, 5) * m.users(IDS).t()).view(5, 4), m.items.weight.T),
    "vector": lambda m: (m.users.weight, m.items.weight[2]),
}


@pytest.mark.parametrize("program", PROGRAMS)
def test_live_entries_are_followed_through_views(program: str) -> None:
    """The factors that the counter takes for dead are those that are 0 because of a mask."""
    torch.manual_seed(5)
    model = tables(6, 6, 4)
    masks = {f"{name}.weight": torch.rand(6, 4) < 0.5 for name in ("users", "items")}
    with torch.no_grad():
        for name, mask in masks.items():
            weight = model.get_parameter(name)
            weight.copy_(torch.where(mask, weight.abs() + 0.1, torch.zeros(())))
    with torch.no_grad():
        left, right = PROGRAMS[program](model)
        live = int(torch.matmul((left != 0).float(), (right != 0).float()).sum())
    counter = count(model, masks, lambda: torch.matmul(*PROGRAMS[program](model)))
    assert counter.total.exact == live < counter.total.dense
    for name, mask in masks.items():
        assert bool((model.get_parameter(name) != 0).eq(mask).all())


@pytest.mark.parametrize("layout", ["coo", "csr", "FixedMatrix"])
def test_products_with_sparse_matrices(layout: str) -> None:
    torch.manual_seed(6)
    model, mask = tables(6, 6, 4), torch.rand(6, 4) < 0.5
    matrix = (torch.rand(8, 6) * (torch.rand(8, 6) < 0.4)).to_sparse()
    matrix = {"coo": matrix, "csr": matrix.to_sparse_csr(), "FixedMatrix": FixedMatrix.of(matrix)}[layout]
    counter = count(model, {"users.weight": mask}, lambda: torch.sparse.mm(matrix, model.users.weight))
    stored = plain(matrix).to_dense() != 0
    assert counter.by_kind[SPARSE] == counter.total
    assert counter.total.dense == int(stored.sum()) * 4
    assert counter.total.exact == int((stored[:, :, None] & mask).sum())


def test_element_wise_products_count_if_they_are_summed_or_take_a_table() -> None:
    model = tables(6, 6, 4)
    hidden = lambda: model.layer(torch.ones(5, 8))  # noqa: E731
    cases = {
        "dot products": (lambda: (model.users(IDS) * model.items(IDS)).sum(1), 20, 0),
        "mean": (lambda: (model.users(IDS) * model.items(IDS)).mean(), 20, 0),
        "table without a sum": (lambda: model.users(IDS) * model.items(IDS), 20, 0),
        "constant": (lambda: model.users(IDS) * torch.ones(5, 1), 0, 0),
        "constant, summed": (lambda: (model.users(IDS) * torch.ones(5, 1)).sum(0), 20, 0),
        "gate": (lambda: hidden().sigmoid() * hidden().tanh(), 0, 15),
        "gate, summed": (lambda: (hidden().sigmoid() * hidden().tanh()).sum(1), 15, 0),
        "scaling": (lambda: model.users(IDS) * 2.0, 0, 0),
        "square, summed": (lambda: hidden().pow(2).sum(), 15, 0),
        "overwritten before the sum": (lambda: (hidden().sigmoid() * hidden().tanh()).relu_().sum(), 0, 15),
        "dropout": (lambda: torch.dropout(model.users(IDS), 0.5, True), 0, 0),
    }
    for name, (work, counted, left_out) in cases.items():
        counter = count(model, {}, work)
        assert counter.by_kind[PAIRS].dense == counted, name
        lines = [f"{left_out} element-wise products that are not summed"] if left_out else []
        assert counter.not_counted() == lines, name


def test_what_has_no_rule_is_named() -> None:
    model = tables(6, 6, 4)
    counter = count(model, {}, lambda: torch.fft.rfft(model.users.weight))
    assert counter.not_counted() == ["1 x _fft_r2c"]


def test_fused_layers() -> None:
    """A fused LSTM costs its weight matrices at every step."""
    torch.manual_seed(2)
    layer = nn.LSTM(4, 3, num_layers=2, batch_first=True)
    mask = torch.rand(12, 4) < 0.5
    counter = count(layer, {"weight_ih_l0": mask}, lambda: layer(torch.rand(2, 5, 4)))
    others = 12 * 3 + 12 * 3 + 12 * 3
    assert counter.total.dense == 2 * 5 * (12 * 4 + others)
    assert counter.total.exact == pytest.approx(2 * 5 * (int(mask.sum()) + others))


CROSS_CHECKED = "AutoInt BERT4Rec Caser DCNV2 DeepFM DMF FPMC GRU4Rec MacridVAE NARM NAIS NeuMF RecVAE SASRec".split()


@pytest.mark.parametrize("model", slow_but(["DeepFM", "GRU4Rec", "SASRec"], CROSS_CHECKED))
def test_products_of_matrices_agree_with_torch(model: str, tiny_data: Path) -> None:
    """torch's own counter, two operations for each product, on the scores of a batch."""
    flop_counter = pytest.importorskip("torch.utils.flop_counter")
    bench = Bench(model, tiny_data)
    built = bench.model()
    rows = next(iter(bench.train))
    score = built.eval().predict if bench.config["ITEM_ID_FIELD"] in rows.interaction else built.full_sort_predict
    with flop_counter.FlopCounterMode(display=False) as theirs:
        score(rows)
    with MacsCounter(Factors(built, {}, {})) as ours:
        score(rows)
    assert 2 * ours.by_kind[MATRIX].dense == theirs.get_total_flops() > 0


def test_a_loss_of_another_name(tiny_data: Path) -> None:
    """MKR's loss of recommendations is calculate_rs_loss, and it has a second one on the knowledge graph."""
    bench = Bench("MKR", tiny_data)
    bench.train.set_mode(KGDataLoaderState.RSKG)
    report = measure(bench)
    assert report.training.forward.dense > 0
    assert "training: batches of the knowledge graph (calculate_kg_loss)" in report.not_counted


def test_a_loss_that_needs_its_trainer_leaves_training_out(tiny_data: Path) -> None:
    report = measure(Bench("RecVAE", tiny_data))
    assert report.training is None and report.to_dict()["training"] is None and report.inference.dense > 0
    assert any(line.startswith("training: calculate_loss: TypeError") for line in report.not_counted)


@pytest.mark.parametrize(
    ("model", "idle"),
    [
        ("BPR", ()),
        ("LightGCN", ()),  # propagated tables are made of them
        ("CKE", ("relation_embedding.weight", "trans_w.weight")),  # of the loss on the knowledge graph
        ("SASRec", ()),
    ],
)
def test_parameters_that_ranking_reads(model: str, idle: tuple[str, ...], tiny_data: Path) -> None:
    bench = Bench(model, tiny_data)
    if hasattr(bench.train, "set_mode"):
        bench.train.set_mode(KGDataLoaderState.RSKG)
    built = bench.plain_model()
    sizes = {name: parameter.numel() for name, parameter in built.named_parameters()}
    expected = sum(size for name, size in sizes.items() if name not in idle)
    assert set(idle) <= set(sizes)
    for storage in ("masked", "compact"):
        assert measure(bench, 0.3, storage).parameters == expected


# a run


def run(model: str, tiny_data: Path, **settings: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    config = {**config_for(model, tiny_data), **settings}
    result = run_recbole_prune(model=model, dataset=DATASET, config_dict=config)
    return result, json.loads((Path(result["folder"]) / "summary.json").read_bytes())


def test_a_run_reports_every_ticket(tiny_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"pruner": "imp", "prune_rate": 0.5, "prune_rounds": 2}
    result, summary = run("BPR", tiny_data, **settings)
    counted = [ticket["measured"]["macs"]["inference"] for ticket in summary["tickets"]]
    assert len({macs["dense"] for macs in counted}) == 1
    assert counted[0]["exact"] == counted[0]["density_scaled"] == counted[0]["dense"]
    assert counted[0]["exact"] > counted[1]["exact"] > counted[2]["exact"] > 0
    words = " ".join(result["table"].split())
    assert f"{counted[summary['chosen']]['exact']:,} exact" in words.partition("MACs")[2]
    result, again = run("BPR", tiny_data, **settings)
    assert again == summary
    with monkeypatch.context() as patch:
        patch.setattr("recbole_prune.run.measuring.measure_macs", lambda *_: pytest.fail("counted again"))
        assert run("BPR", tiny_data, **settings)[1] == summary
    (Path(result["folder"]) / "summary.json").write_text("damaged")
    assert run("BPR", tiny_data, **settings)[1] == summary
    for record in result["tickets"]:
        assert record["measured"]["macs"] == summary["tickets"][record["ticket"]]["measured"]["macs"]
        assert record["measured"]["ranking_parameters"] == record["measured"]["parameters"]


HARD_NEGATIVES = {"distribution": "uniform", "sample_num": 1, "dynamic": True, "candidate_num": 5, "alpha": 1.0}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "settings", "trains"),
    [
        ("BPR", {"train_neg_sample_args": HARD_NEGATIVES}, True),
        ("CFKG", {}, True),  # batches with a knowledge graph
        ("MultiVAE", {}, True),  # batches of users
        ("RecVAE", {}, False),
    ],
)
def test_runs_with_other_batches(model: str, settings: dict[str, Any], trains: bool, tiny_data: Path) -> None:
    result, summary = run(model, tiny_data, pruner="random", prune_rounds=1, prune_rate=0.5, **settings)
    dense, pruned = (ticket["measured"]["macs"] for ticket in summary["tickets"])
    assert 0 < pruned["inference"]["exact"] < dense["inference"]["exact"]
    assert (pruned["training"] is not None) == trains
    assert ("a training step" in " ".join(result["table"].split())) == trains


@pytest.mark.slow
def test_mask_updates_cost_dense_gradients(tiny_data: Path) -> None:
    settings = {"prune_dense": False, "prune_target_sparsity": 0.75, "train_batch_size": 256}
    for pruner, interval, changes in (
        ("dsl", 4, {"prune_gradient_window": 1}),
        ("dsl", 2, {"prune_gradient_window": 2}),
        ("dsl", 1, {"prune_gradient_window": 9}),  # a window cannot hold more batches than there are
        ("dsl", 1, {"prune_moments": "dense"}),
        ("set", None, {}),
        ("static", None, {}),
    ):
        changes = changes if pruner == "static" else {"prune_update_interval": 4, **changes}
        _, summary = run("BPR", tiny_data, pruner=pruner, **changes, **settings)
        training = summary["tickets"][0]["measured"]["macs"]["training"]
        step = training["step"]
        assert ("average_step" in training) == (interval is not None)
        if interval is not None:
            assert training["update_step"] == pytest.approx((2 * step["density_scaled"] + step["dense"]) / 3, abs=1)
            dense = (training["update_step"] - step["density_scaled"]) / interval
            assert training["average_step"] == pytest.approx(step["density_scaled"] + dense, abs=1)


def test_macs_of_an_older_run_stay_in_its_summary(tiny_data: Path) -> None:
    """Its journal has none; they stood beside the bytes of a ticket."""
    result, _ = run("BPR", tiny_data, pruner="none")
    ticket = Ticket.from_record(result["tickets"][0])
    counted = ticket.measured["macs"]  # type: ignore[index]
    older = replace(ticket, measured=None)

    class Folder:
        def __init__(self, **fields: Any) -> None:
            self.fields = fields

        def read_summary(self) -> dict[str, Any]:
            return {"values": "fp32", "tickets": [{"ticket": 0, "bytes": 8, **self.fields}]}

    as_written, as_written_again = Folder(macs=counted), Folder(measured={"macs": counted})
    for folder in (as_written, as_written_again):
        [found] = with_older_macs(folder, [older])  # type: ignore[arg-type]
        assert found.measured == {"macs": counted} and "exact" in macs_line(found, None)
        assert with_older_macs(folder, [ticket])[0] is ticket  # type: ignore[arg-type]


def test_a_model_that_cannot_be_counted_does_not_fail_the_run(tiny_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing(Probe):
        def blocks(self) -> Any:
            raise RuntimeError("no rows")

    monkeypatch.setattr("recbole_prune.metering.macs.Probe", Failing)
    result, summary = run("BPR", tiny_data, pruner="imp", prune_rounds=1)
    assert [t["measured"]["macs"] for t in summary["tickets"]] == [{"not_counted": ["RuntimeError: no rows"]}] * 2
    assert "MACs not counted: RuntimeError: no rows" in " ".join(result["table"].split())
