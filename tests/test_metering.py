"""Multiply-accumulates: formulas of methods/dynamic_sparse_learning.md 7 and energy_and_size.md 4 on built models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from training_bench import Bench

from recbole_prune.metering import Macs, MacsReport, measure_macs

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
        assert_dense(report.forward, 2 * width * report.positives)  # a positive and a negative pair
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
        assert_dense(report.forward, report.preparation.dense + 2 * 16 * report.positives)


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
    assert report.forward.dense == 2 * pair * report.positives


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
