"""Prune-and-grow in real trainings: budgets of the paper's six models, resume in an interval, equality of storages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from marks import slow_but
from training_bench import Bench, MemoryFiles, keys, leaks, scramble_random_streams

from recbole_prune.masking.masks import MaskSet
from recbole_prune.pruners.prune_and_grow import PruneAndGrow
from recbole_prune.training import codec

VARIANTS = {
    "dsl": {},
    "rigl": {"pruner": "rigl", "prune_update_ratio": 0.3, "prune_update_floor": 0.0},
    "set": {"prune_growth": "random", "prune_update_ratio": 0.3, "prune_update_floor": 0.3},
    "momentum": {"prune_growth": "momentum"},
}


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("model", ["NeuMF", "ConvNCF", "CDAE", "MultiVAE", "LightGCN", "UltraGCN"])
def test_many_updates_of_the_six_models(model: str, variant: str, tiny_data: Path) -> None:
    """The sum of every mask is the same before and after each update of a real training, 200 of them in the first."""
    updates = 200 if variant == "dsl" else 50
    bench = Bench(model, tiny_data, train_batch_size=16 if model in ("CDAE", "MultiVAE") else 512, eval_step=1000)
    masks = bench.masks(0.3, scope="all" if model in ("CDAE", "MultiVAE") else "embedding")
    budgets = {name: int(masks.per_row(name).sum()) for name in masks}
    epochs = -(-(updates + 10) // len(bench.train))
    bench.config["epochs"] = epochs
    trained = bench.model(None, "masked" if variant == "momentum" else "auto")
    trained.dense_moments = variant == "momentum"
    trained.set_masks(masks)
    dynamics = PruneAndGrow(keys(prune_update_interval=1, **VARIANTS[variant]), epochs * len(bench.train), 1)
    trainer = bench.trainer(trained, parts=(dynamics,))
    moved = 0
    move_masks = trained.move_masks

    def counted(new: MaskSet, optimizers: Any) -> None:
        nonlocal moved
        assert {name: int(new.per_row(name).sum()) for name in new} == budgets
        moved += not new.equals(trained.masks)
        move_masks(new, optimizers)
        assert {name: int(trained.masks.per_row(name).sum()) for name in new} == budgets
        assert leaks(trained, new) == 0

    trained.move_masks = counted
    bench.fit(trainer)
    assert dynamics.updates >= updates and moved > 0.75 * updates


def test_knowledge_graph_passes_are_steps(tiny_data: Path) -> None:
    bench = Bench("KGAT", tiny_data, epochs=3, train_batch_size=160)
    dynamics = PruneAndGrow(keys(prune_update_interval=5), 3 * len(bench.train), 1)
    trainer = bench.trainer(bench.model(bench.masks(0.3), "compact"), parts=(dynamics,))
    bench.fit(trainer)
    assert dynamics.steps == dynamics.step > 3 * len(bench.train)


def bench_of(model: str, data: Path) -> Bench:
    return Bench(model, data, epochs=4, learning_rate=0.01, train_batch_size=160)


def dynamic_trainer(bench: Bench, storage: str, files: MemoryFiles | None = None, **session: Any) -> Any:
    masks = bench.masks(0.3)
    model = bench.model(masks, storage)
    steps = len(bench.train) * 4
    dynamics = PruneAndGrow(keys(prune_update_interval=5, prune_gradient_window=3, prune_end_fraction=0.8), steps, 1)
    return bench.trainer(model, files, parts=(dynamics,), **session)


@pytest.mark.parametrize("storage", ["compact", "masked"])
@pytest.mark.parametrize("model", slow_but(["BPR"], ["BPR", "LightGCN", "SASRec", "DeepFM", "NeuMF"]))
def test_resumed_in_an_interval_equals_uninterrupted(model: str, storage: str, tiny_data: Path) -> None:
    bench = bench_of(model, tiny_data)
    files = MemoryFiles()
    whole = dynamic_trainer(bench, storage, files)
    bench.fit(whole)
    assert whole.session.parts[0].updates > 2
    epoch = 2
    state, checkpoint = files.states[epoch]
    again = MemoryFiles(checkpoint)
    scramble_random_streams()
    resumed = dynamic_trainer(bench, storage, again, start=codec.decode(state))
    scramble_random_streams()
    resumed.start_epoch = epoch
    bench.fit(resumed)
    assert resumed.model.masks.equals(whole.model.masks)
    assert resumed.best_masks.equals(whole.best_masks)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    report = whole.session.parts[0].report(whole.best_masks)
    assert resumed.session.parts[0].report(resumed.best_masks) == report
    assert leaks(resumed.model, resumed.model.masks) == 0


@pytest.mark.parametrize("model", slow_but(["BPR"], ["BPR", "LightGCN"]))
def test_storages_move_the_same_masks(model: str, tiny_data: Path) -> None:
    bench = bench_of(model, tiny_data)
    compact = dynamic_trainer(bench, "compact")
    bench.fit(compact)
    masked = dynamic_trainer(bench, "masked")
    bench.fit(masked)
    for name, mask in compact.model.masks.items():
        same = (mask == masked.model.masks[name]).float().mean()
        assert same > 0.99  # rounding decides between nearly equal scores


def test_the_best_checkpoint_is_loaded_under_its_own_masks(tiny_data: Path) -> None:
    bench = bench_of("BPR", tiny_data)
    trainer = dynamic_trainer(bench, "compact")
    bench.fit(trainer)
    last = trainer.model.masks
    trainer.best_masks = MaskSet(last.scope, {n: m.clone() for n, m in bench.masks(0.3).items()})
    trainer.load_best()
    assert trainer.model.masks is trainer.best_masks
    assert leaks(trainer.model, trainer.best_masks) == 0
