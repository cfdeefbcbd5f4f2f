"""Evaluation in blocks of users, and the collector, give RecBole's digits: every metric, ties and empty rows included."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import training_bench
from hypothesis import given
from hypothesis import strategies as st
from training_bench import Bench, scramble_random_streams

from recbole_prune.masks import MaskSet
from recbole_prune.sparse import inverted_lists
from recbole_prune.training import evaluation, ranking
from recbole_prune.training.collector import find_hits
from recbole_prune.training.evaluation import UserBlocks
from recbole_prune.training.ranking import DenseRanker, ScanRanker, top_k
from recbole_prune.training.state import random_state
from recbole_prune.training.trainer import Session, mask_aware_trainer

from recbole.evaluator import Collector  # isort: skip - importing training_bench patches RecBole first
from recbole.evaluator.register import metric_types  # isort: skip
from recbole.trainer import Trainer  # isort: skip
from recbole.utils import EvaluatorType, get_model, get_trainer, init_seed  # isort: skip

RANKING = sorted(name for name, kind in metric_types.items() if kind == EvaluatorType.RANKING)
# GAUC needs the rank of every positive, so RecBole's batches are taken for it
OF_TOP_ITEMS = [name for name in RANKING if name != "gauc"]
TOPK = [1, 5, 10, 20]
USERS, ITEMS = 60, 40  # without padding

WAYS = ["scan", "dense", "groups", "torch"]


@pytest.fixture(scope="module")
def dense_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a data set whose users have had 3 to 39 of 40 items; the first ones all but one."""
    folder = tmp_path_factory.mktemp("dense")
    generator = np.random.default_rng(3)
    rows = []
    for user in range(USERS):
        count = ITEMS - 1 if user < 6 else int(generator.integers(3, ITEMS))
        for item in generator.choice(ITEMS, count, replace=False):
            rows.append((f"u{user}", f"i{item}", int(generator.integers(1, 6)), len(rows)))
    names = ["user_id:token", "item_id:token", "rating:float", "timestamp:float"]
    (folder / training_bench.DATASET).mkdir()
    pd.DataFrame(rows, columns=names).to_csv(
        folder / training_bench.DATASET / f"{training_bench.DATASET}.inter", sep="\t", index=False
    )
    return folder


@pytest.fixture
def take(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], type]:
    """Make evaluations rank in one of the ``WAYS``, in several blocks; the class that ranks then."""

    def choose(way: str) -> type:
        if way in ("scan", "dense") and not inverted_lists.available():
            pytest.skip("numba is not installed: there are no compiled loops to test")
        monkeypatch.setattr(evaluation, "DENSEST_SCAN", 1.0 if way == "scan" else -1.0)
        if way in ("groups", "torch"):
            monkeypatch.setattr(evaluation, "available", lambda: False)
            monkeypatch.setattr(ranking, "available", lambda: False)
        # 40 items are 64 columns: a row is one group, or enough of them to be looked at by groups
        monkeypatch.setattr(ranking, "_GROUP", 2 if way == "groups" else 64)
        monkeypatch.setattr(ranking, "_BLOCK_SCORES", {"cpu": 1, "cuda": 1})
        for module, name in ((ranking, "_LEAST_USERS"), (ranking, "_SCANNED_USERS")):
            monkeypatch.setattr(module, name, 7)
        monkeypatch.setattr(inverted_lists, "_USERS_AT_ONCE", 3)
        return ScanRanker if way == "scan" else DenseRanker

    return choose


def bench(model: str, data: Path, **settings: Any) -> Bench:
    chosen = {
        "metrics": OF_TOP_ITEMS,
        "valid_metric": "mrr@1",
        "topk": TOPK,
        "metric_decimal_place": 10,
        "eval_args": {"split": {"RS": [0.6, 0.2, 0.2]}, "mode": "full"},
        **settings,
    }
    return Bench(model, data, **{name: value for name, value in chosen.items() if value is not None})


def some_masks(base: Bench) -> MaskSet:
    """One entry in six lives; a third of the rows are empty."""
    scope = base.scope()
    generator = torch.Generator().manual_seed(5)
    masks = {}
    for target in scope:
        live = torch.rand(target.shape, generator=generator) < 0.25
        live[torch.rand(len(live), generator=generator) < 0.34] = False
        live[list(target.padding_rows)] = True
        masks[target.name] = live
    return MaskSet(scope, masks)


def weighted(base: Bench, kind: str, storage: str = "masked") -> Any:
    """A mask-aware model with large random embeddings: ``dense``, ``pruned``, ``whole`` numbers or ``twins``."""
    model = base.model(some_masks(base) if kind == "pruned" else None, storage)
    generator = torch.Generator().manual_seed(6)
    state = model.state_dict()
    for name, tensor in state.items():
        if name.endswith("embedding.weight"):
            values = torch.randn(tensor.shape, generator=generator)
            if kind == "whole":
                values = values.round()
            if kind == "twins":  # items 2n and 2n + 1 score alike
                values[1::2] = values[0::2][: len(values[1::2])]
            state[name] = values
    model.load_state_dict(state)
    model.apply_masks()
    return model


class PlainCollector(Collector):
    """RecBole's collector, which ends metrics of coverage and popularity by moving plain numbers to the CPU."""

    def get_data_struct(self) -> Any:
        plain = {k: v for k, v in self.data_struct._data_dict.items() if not isinstance(v, torch.Tensor)}
        for name in plain:
            del self.data_struct[name]
        collected = super().get_data_struct()
        for name, value in plain.items():
            self.data_struct.set(name, value)
            collected.set(name, value)
        return collected


def keep_collected(trainer: Any) -> Any:
    """The trainer; what its metrics are computed from is put into ``trainer.collected``."""
    evaluate = trainer.evaluator.evaluate

    def spy(collected: Any) -> Any:
        trainer.collected = collected
        return evaluate(collected)

    trainer.evaluator.evaluate = spy
    return trainer


def plain_trainer(base: Bench, model: Any) -> Any:
    """RecBole's trainer and model with the same weights."""
    plain = get_model(base.name)(base.config, base.train._dataset)
    plain.load_state_dict(model.state_dict())
    trainer = get_trainer(base.config["MODEL_TYPE"], base.name)(base.config, plain)
    trainer.eval_collector = PlainCollector(base.config)
    trainer.eval_collector.data_collect(base.train)
    return keep_collected(trainer)


def blocks_of(trainer: Any, loader: Any) -> UserBlocks | None:
    found: UserBlocks | None = trainer._block_evaluation.blocks(loader)
    return found


def assert_same(base: Bench, model: Any, ranker: type | None) -> None:
    """Validation and test: results digit by digit, lists item by item, in the way of ``ranker`` (None: RecBole's)."""
    ours, plain = keep_collected(base.trainer(model)), plain_trainer(base, model)
    for loader in (base.valid, base.test):
        blocks = blocks_of(ours, loader)
        assert (type(blocks.ranker) if blocks else None) is ranker
        results = []
        for trainer in (ours, plain):
            init_seed(7, True)
            results.append(trainer.evaluate(loader, load_best_model=False))
        assert list(results[0].items()) == list(results[1].items())
        assert any(0 < value < 1 for value in results[1].values())
        for name, value in plain.collected._data_dict.items():
            same = ours.collected.get(name)
            assert torch.equal(same, value) if isinstance(value, torch.Tensor) else same == value, name


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("weights", ["dense", "pruned", "whole", "twins"])
@pytest.mark.parametrize("model", ["BPR", "LightGCN", "NGCF"])
def test_every_metric_of_the_best_items(
    model: str, weights: str, way: str, dense_data: Path, take: Callable[[str], type]
) -> None:
    ranker = take(way)
    base = bench(model, dense_data)
    assert_same(base, weighted(base, weights), ranker)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("weights", ["pruned", "twins"])
@pytest.mark.parametrize("users", [1, 2, 13])
@pytest.mark.parametrize("width", [5, 64])
def test_whatever_the_size_of_recboles_batches(
    width: int, users: int, weights: str, way: str, dense_data: Path, take: Callable[[str], type]
) -> None:
    """Which of two equal items a matrix product puts first depends on its number of rows."""
    ranker = take(way)
    base = bench("BPR", dense_data, embedding_size=width, eval_batch_size=users * (ITEMS + 1))
    assert base.valid.step == users
    assert_same(base, weighted(base, weights), ranker)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("users", [1, 2, 7, 60])
def test_rounding_that_differs_from_batch_to_batch(
    users: int, way: str, dense_data: Path, take: Callable[[str], type], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A product's last bits depend on its number of rows and on the place of a row: here much more often than so."""
    ranker = take(way)
    base = bench("BPR", dense_data, eval_batch_size=users * (ITEMS + 1))
    predict = get_model("BPR").full_sort_predict

    def rounded_by_place(self: Any, interaction: Any) -> torch.Tensor:
        scores = predict(self, interaction).view(-1, ITEMS + 1)
        rows, items = torch.meshgrid(torch.arange(len(scores)), torch.arange(ITEMS + 1), indexing="ij")
        return (scores * (1 + 1.2e-7 * ((rows * 3 + items * 5 + len(scores)) % 4))).view(-1)

    monkeypatch.setattr(get_model("BPR"), "full_sort_predict", rounded_by_place)
    assert_same(base, weighted(base, "twins"), ranker)
