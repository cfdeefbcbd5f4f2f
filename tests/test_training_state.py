"""Killed and resumed is the same as never killed, bit for bit; late rewinding repeats the dense run."""

from __future__ import annotations

import copy
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from marks import slow_but
from training_bench import Bench, MemoryFiles, leaks, scramble_random_streams

from recbole_prune.data import random_streams
from recbole_prune.masking.masks import MaskSet
from recbole_prune.training import codec
from recbole_prune.training import state as states

EPOCHS = 4
# why a state needs more than parameters and one optimizer
MODELS: dict[str, dict[str, Any]] = {
    "BPR": {},
    "LightGCN": {"weight_decay": 0.01},  # propagated tables in checkpoints
    "MultiVAE": {"total_anneal_steps": 20},  # a plain counter anneals the KL term; dropout draws
    "RecVAE": {},  # two optimizers, a prior that follows the encoder
    "DiffRec": {},  # importance sampling from a table of past losses
    "LINE": {},  # a shuffled array and a place in it
    "NCL": {"warm_up_step": 1, "m_step": 2},  # clusters from an E-step before the epoch
    "KGAT": {},  # an attention matrix, a second dataloader
    "SASRec": {},
}


def bench_of(model: str, data: Path, **settings: Any) -> Bench:
    return Bench(model, data, **{"epochs": EPOCHS, "learning_rate": 0.01, **MODELS.get(model, {}), **settings})


def everything(trainer: Any) -> dict[str, Any]:
    """All that a training has come to, without times and what only the clock decides."""
    state = trainer.resume_state()
    state["trainer"] = {name: value for name, value in state["trainer"].items() if not name.endswith("_seconds")}
    return copy.deepcopy({**state, "other": trainer.model.other_parameter()})


def assert_equal(a: Any, b: Any, path: str = "") -> None:
    assert type(a) is type(b), path
    if isinstance(a, torch.Tensor):
        a, b = (x.to_dense() if x.layout == torch.sparse_coo else x for x in (a, b))
        assert torch.equal(a, b), path
    elif isinstance(a, np.ndarray):
        assert np.array_equal(a, b), path
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a:
            assert_equal(a[key], b[key], f"{path}/{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), path
        for i, (left, right) in enumerate(zip(a, b)):
            assert_equal(left, right, f"{path}/{i}")
    else:
        assert a == b, path


def resume(bench: Bench, masks: MaskSet, files: MemoryFiles, epoch: int) -> tuple[Any, Any]:
    """A training continued from the state before ``epoch`` as a new process does it."""
    data, checkpoint = files.states[epoch]
    trainer = bench.trainer(bench.model(masks), MemoryFiles(checkpoint), start=codec.decode(data))
    trainer.start_epoch = epoch
    scramble_random_streams()
    return trainer, bench.fit(trainer)


@pytest.mark.parametrize("model", slow_but(["BPR", "MultiVAE", "KGAT"], MODELS))
def test_resumed_equals_uninterrupted(model: str, tiny_data: Path) -> None:
    bench = bench_of(model, tiny_data)
    masks = bench.masks()
    whole = bench.trainer(bench.model(masks))
    outcome = bench.fit(whole)
    expected = everything(whole)
    assert sorted(whole.files.states) == [1, 2, 3]

    bench = bench_of(model, tiny_data)  # new data objects, as in a new process
    for epoch in (1, 3):
        resumed, again = resume(bench, masks, whole.files, epoch)
        assert again == outcome
        assert_equal(everything(resumed), expected, f"resumed at {epoch}")
        assert leaks(resumed.model, masks) == 0
        ours, theirs = (
            torch.load(BytesIO(t.files.checkpoint), weights_only=False)["state_dict"] for t in (resumed, whole)
        )
        assert_equal(dict(ours), dict(theirs), "checkpoint")
        tests = [t.evaluate(bench.test, load_best_model=True) for t in (resumed, whole)]
        assert tests[0] == tests[1]


def test_a_state_is_independent_of_what_trains_on(tiny_data: Path) -> None:
    """The bytes of epoch 1 hold the values of epoch 1, not views of tensors that went on changing."""
    bench = bench_of("BPR", tiny_data)
    masks = bench.masks()
    trainer = bench.trainer(bench.model(masks))
    weights: dict[int, torch.Tensor] = {}
    before_epoch = trainer.files.before_epoch

    def save(epoch: int, trainer: Any) -> None:
        weights[epoch] = trainer.model.item_embedding.weight.detach().clone()
        before_epoch(epoch, trainer)

    trainer.files.before_epoch = save
    bench.fit(trainer)
    for epoch, weight in list(weights.items())[1:]:
        stored = codec.decode(trainer.files.states[epoch][0])
        assert torch.equal(stored["weights"]["item_embedding.weight"], weight)


def test_a_resumed_training_stops_early_where_the_whole_one_does(tiny_data: Path) -> None:
    """The count of validations without improvement goes on."""
    bench = bench_of("BPR", tiny_data, epochs=30, learning_rate=0.0, stopping_step=3)
    # with a learning rate of 0 every score ties, and a tie counts as an improvement: let the first be the best
    scores = iter([0.5] + [0.1] * 30)
    masks = bench.masks()

    def scripted(trainer: Any) -> Any:
        trainer.evaluate = lambda *_, **__: {trainer.valid_metric: next(scores)}
        return trainer

    whole = scripted(bench.trainer(bench.model(masks)))
    bench.fit(whole)
    assert whole.epochs_done == 1 + 3 + 1 and whole.best_epoch == 1
    scores = iter([0.1] * 30)
    data, checkpoint = whole.files.states[3]
    resumed = scripted(bench.trainer(bench.model(masks), MemoryFiles(checkpoint), start=codec.decode(data)))
    resumed.start_epoch = 3
    bench.fit(resumed)
    assert (resumed.epochs_done, resumed.best_epoch) == (whole.epochs_done, whole.best_epoch)
    assert resumed.history == whole.history


# ---- late rewinding


@pytest.mark.parametrize("model", ["BPR", "MultiVAE", "KGAT"])
def test_rewinding_a_dense_ticket_repeats_the_dense_run(model: str, tiny_data: Path) -> None:
    """With an optimizer that has no memory, weights, counters and data order of epoch k give the dense run again."""
    bench = bench_of(model, tiny_data, learner="sgd", learning_rate=0.1)
    dense = bench.trainer(bench.model())
    bench.fit(dense)
    state = codec.decode(dense.files.rewind_states[2])

    rewound_model = bench.model()
    states.copy_into(states.weights_of(rewound_model), state["weights"])
    rewound_model.set_masks(None)
    rewound = bench.trainer(rewound_model, start=state)
    rewound.start_epoch = 2
    scramble_random_streams()
    bench.fit(rewound)
    expected, ours = everything(dense), everything(rewound)
    for part in ("weights", "attributes", "random", "loaders"):
        assert_equal(ours[part], expected[part], part)
    assert rewound.history == dense.history[2:]


def test_what_is_kept_for_rewinding_depends_on_the_training_only(tiny_data: Path) -> None:
    """Its hash stands in the journal, which must not tell a resumed run from an uninterrupted one."""
    bench = bench_of("BPR", tiny_data)
    kept: list[bytes] = []
    for _ in range(2):
        trainer = bench.trainer(bench.model())
        bench.fit(trainer)
        kept.append(trainer.files.rewind_states[2])
    assert len(kept) == 2 and kept[0] == kept[1]


def test_a_rewound_ticket_starts_with_a_fresh_optimizer_and_search(tiny_data: Path) -> None:
    bench = bench_of("BPR", tiny_data)
    dense = bench.trainer(bench.model())
    bench.fit(dense)
    assert codec.decode(dense.files.states[2][0])["optimizers"]["optimizer"]["state"]
    state = codec.decode(dense.files.rewind_states[2])
    trainer = bench.trainer(bench.model(), start=state)
    trainer.start_epoch = 2
    trainer._train_epoch(bench.train, 2)
    steps = {int(entry["step"]) for entry in trainer.optimizer.state.values()}
    assert steps == {len(bench.train)}  # its own steps only
    assert trainer.history == [] and trainer.cur_step == 0 and trainer.best_valid_score == -np.inf


# ---- repeating a round


def test_the_same_seed_gives_the_same_training(tiny_data: Path) -> None:
    bench = bench_of("BPR", tiny_data)
    masks = bench.masks()
    runs = []
    for _ in range(2):
        trainer = bench.trainer(bench.model(masks))
        bench.fit(trainer)
        scramble_random_streams()
        runs.append(everything(trainer))
    assert_equal(runs[0]["weights"], runs[1]["weights"])
    assert runs[0]["trainer"]["history"] == runs[1]["trainer"]["history"]


@pytest.mark.parametrize("model", ["BPR", "KGAT"])
def test_reseeded_loaders_start_over(model: str, tiny_data: Path) -> None:
    """Trap 11: a loader that is used again gives another order, the knowledge graph's too."""
    bench = bench_of(model, tiny_data)
    loaders = list(random_streams.dataloaders(bench.loaders))
    assert len(loaders) == (4 if model == "KGAT" else 3) and len({id(loader) for loader in loaders}) == len(loaders)

    def order() -> list[list[int]]:
        return [torch.randperm(50, generator=loader.generator).tolist() for loader in loaders]

    bench.model()
    first = order()
    assert order() != first
    bench.model()
    assert order() == first


def test_alias_of_an_optimizer_stays_an_alias(tiny_data: Path) -> None:
    bench = bench_of("RecVAE", tiny_data)
    trainer = bench.trainer(bench.model())
    bench.fit(trainer)
    state = codec.decode(codec.encode(states.optimizer_state(trainer)))
    assert trainer.optimizer is trainer.optimizer_decoder and state["optimizer"] == "optimizer_decoder"
    other = bench.trainer(bench.model())
    states.set_optimizer_state(other, state)
    assert other.optimizer is other.optimizer_decoder is not other.optimizer_encoder
    assert_equal(other.optimizer_encoder.state_dict(), trainer.optimizer_encoder.state_dict())
