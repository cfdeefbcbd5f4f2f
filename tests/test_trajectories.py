"""Fifty optimizer steps: compact = masked = plain RecBole (at sparsity 0), up to rounding, over the four kinds."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from marks import slow_but
from recbole.utils import get_trainer
from training_bench import Bench

from recbole_prune.data import random_streams
from recbole_prune.masking.masks import MaskSet
from recbole_prune.sparse.compact import CompactEmbedding
from recbole_prune.training.session import Files

STEPS = 50
# steps of other models are in between, and the last ones have amplified the rounding of the first
LOSS_TOLERANCE = 1e-4
WEIGHT_TOLERANCE = 1e-4
MODELS: dict[str, dict[str, Any]] = {
    "BPR": {},
    "LightGCN": {},
    "NGCF": {"node_dropout": 0.0, "message_dropout": 0.0},
    "SGL": {},
    "NeuMF": {},
    "ENMF": {},
    "FISM": {},
    "SASRec": {},
    "GRU4Rec": {},
    "NARM": {},
    "FM": {},
    "DeepFM": {},
    "CKE": {},
    "KTUP": {},
    "KGAT": {},
}


class EnoughStepsError(Exception):
    """Raised after the last step."""


pytestmark = pytest.mark.usefixtures("no_tensorboard")


@pytest.fixture(scope="module", params=slow_but(["BPR", "LightGCN", "DeepFM"], MODELS))
def bench(request: pytest.FixtureRequest, tiny_data: Path) -> Bench:
    return Bench(request.param, tiny_data, train_batch_size=256, learning_rate=0.003, **MODELS[request.param])


def trajectory(bench: Bench, trainer: Any) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses of every step, and the weights after the last."""
    losses: list[float] = []
    optimizer, step = trainer.optimizer, trainer.optimizer.step
    check = trainer._check_nan

    def counted_step(*args: Any, **kwargs: Any) -> Any:
        result = step(*args, **kwargs)
        if len(losses) >= STEPS:
            raise EnoughStepsError
        return result

    def record(loss: torch.Tensor) -> None:
        losses.append(float(loss.detach()))
        check(loss)

    optimizer.step, trainer._check_nan = counted_step, record
    epoch = 0
    with suppress(EnoughStepsError):
        while True:
            trainer._train_epoch(bench.train, epoch, show_progress=False)
            epoch += 1
    return losses, trainer.model.state_dict()


def ours(bench: Bench, masks: MaskSet, storage: str) -> tuple[list[float], dict[str, torch.Tensor]]:
    model = bench.model(masks, storage)
    if storage == "compact" and not masks.is_dense:
        assert any(isinstance(module, CompactEmbedding) for module in model.modules())
    return trajectory(bench, bench.trainer(model, Files()))


def assert_close(
    found: tuple[list[float], dict[str, torch.Tensor]], expected: tuple[list[float], dict[str, torch.Tensor]]
) -> None:
    assert len(found[0]) == len(expected[0]) == STEPS
    assert found[0] == pytest.approx(expected[0], rel=LOSS_TOLERANCE)
    assert list(found[1]) == list(expected[1])
    for name, value in expected[1].items():
        torch.testing.assert_close(found[1][name], value, rtol=WEIGHT_TOLERANCE, atol=WEIGHT_TOLERANCE, msg=name)


@pytest.mark.parametrize("density", slow_but([0.3], [0.6, 0.3]))
def test_compact_equals_masked(bench: Bench, density: float) -> None:
    masks = bench.masks(density)
    compact, masked = ours(bench, masks, "compact"), ours(bench, masks, "masked")
    assert_close(compact, masked)
    for name, mask in masks.items():
        assert not compact[1][name][~mask].any()


def test_dense_equals_plain_recbole(bench: Bench, tmp_path: Path) -> None:
    found = ours(bench, MaskSet.dense(bench.scope()), "compact")
    random_streams.reseed(bench.loaders, bench.config["seed"])
    trainer_class = get_trainer(bench.config["MODEL_TYPE"], bench.name)
    assert_close(found, trajectory(bench, trainer_class(bench.config, bench.plain_model())))
