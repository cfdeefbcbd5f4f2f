"""A dense run is plain RecBole's, of every model, epoch by epoch and bit for bit, with ``prune_fused=False``.

Plain RecBole is its ``run_recbole`` as anybody calls it, FLOPs counter included, patched only by ``compat``. What is
not equal stands in ``DIFFERENT``, and an entry that is no longer true fails.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from marks import slow_but
from recbole.trainer import trainer as recbole_trainer
from training_bench import scramble_random_streams
from zoo import DATASET, NEW_IN_1_2_1, OF_EVERY_TRAINER, config_for, gradient_models, missing_package

from recbole_prune import run_recbole_prune
from recbole_prune.scoring.probe import Probe, undisturbed

QUICK = ["BPR", "KGIN", "BERT4Rec"]

_ENDS = "RecBole's FLOPs counter calls its predict(), which is `assert False`: without the counter all is equal"
_STAGE = "RecBole does not validate a pretraining stage; we do, after its last epoch"
_STALE = "RecBole tests the tables of the last validation, whichever epoch was the best; we those of the best epoch"
# parts of a run that are not RecBole's, and why
DIFFERENT: dict[str, tuple[list[str], str]] = {
    "GRU4RecCPR": (["run_recbole"], _ENDS),
    "SASRecCPR": (["run_recbole"], _ENDS),
    "RaCT": (["best_valid_result"], _STAGE),
    "S3Rec": (["best_valid_result"], _STAGE),
    "KGIN": (["test_result"], _STALE),
    "MCCLK": (["test_result"], _STALE),
}

# by how much metrics may move with the default prune_fused=True: DIN has biases before a batch norm, whose gradients
# are nothing but rounding, of which Adam makes whole steps
FUSED = {"LightGCN": 1e-6, "KGIN": 1e-6, "BERT4Rec": 1e-6, "DeepFM": 1e-6, "DIN": 0.02}

Course = dict[str, Any]


def state_of(model: torch.nn.Module) -> tuple[str, ...]:
    """Digests of the weights and of the random streams of Python, numpy and torch."""
    weights = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        weights.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    _, keys, *place = np.random.get_state()
    streams = (repr(random.getstate()).encode(), keys.tobytes() + repr(place).encode(), bytes(torch.get_rng_state()))
    return weights.hexdigest(), *(hashlib.sha256(stream).hexdigest() for stream in streams)


def probe_other_weights(trainer: Any) -> None:
    """Score a probe with other weights, which must leave weights, propagated tables and random streams as they were."""
    model = trainer.model
    with undisturbed(model), torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1)
        Probe(model, trainer.config, trainer.session.loaders[0]._dataset).scores(model)


def course_of(
    run: Callable[[], dict[str, Any]],
    patch: pytest.MonkeyPatch,
    before_validation: Callable[[Any], None] = lambda trainer: None,
) -> Course:
    """What a run goes through: the state that training starts from, then after every epoch losses and state, after
    every validation metrics and state; and its two results. Validations get worse and worse, so that the test has to
    take weights of an epoch that is not the last.
    """
    course: Course = {"training": [], "validation": []}
    begin, log_loss = recbole_trainer.Trainer.__init__, recbole_trainer.Trainer._add_train_loss_to_tensorboard
    validate, scores = recbole_trainer.Trainer._valid_epoch, itertools.count(0, -1)

    def begin_and_note(self: Any, config: Any, model: Any) -> None:
        course["training"].append(state_of(model))
        begin(self, config, model)

    def note_loss(self: Any, epoch: int, losses: Any, *args: Any, **kwargs: Any) -> None:
        course["training"].append((epoch, losses, state_of(self.model)))
        log_loss(self, epoch, losses, *args, **kwargs)

    def validate_and_note(self: Any, *args: Any, **kwargs: Any) -> Any:
        before_validation(self)
        score, result = validate(self, *args, **kwargs)
        course["validation"].append((dict(result), state_of(self.model)))
        return score, result

    with patch.context() as patched:
        patched.setattr(recbole_trainer.Trainer, "__init__", begin_and_note)
        patched.setattr(recbole_trainer.Trainer, "_add_train_loss_to_tensorboard", note_loss)
        patched.setattr(recbole_trainer.Trainer, "_valid_epoch", validate_and_note)
        patched.setattr(recbole_trainer, "calculate_valid_score", lambda result, metric: float(next(scores)))
        patched.setattr(recbole_trainer, "get_tensorboard", lambda logger: MagicMock())
        scramble_random_streams()
        result = run()
    for part in ("best_valid_result", "test_result"):
        course[part] = result[part] and {name: float(value) for name, value in result[part].items()}
    return course


def plain_run(model: str, settings: dict[str, Any], patch: pytest.MonkeyPatch, count_flops: bool = True) -> Course:
    """The course of RecBole's own ``run_recbole``."""
    from recbole.quick_start import quick_start

    with patch.context() as patched:
        # it measures for a second how busy the machine is
        patched.setattr(quick_start, "get_environment", lambda config: SimpleNamespace(draw=str))
        if not count_flops:
            patched.setattr(quick_start, "get_flops", lambda *_: 0)
        return course_of(lambda: quick_start.run_recbole(model, DATASET, config_dict=dict(settings)), patch)


def our_run(model: str, settings: dict[str, Any], patch: pytest.MonkeyPatch, fused: bool = False) -> Course:
    """The course of a dense run of ours, with a probe before every validation."""
    ours = {**settings, "pruner": "none", "prune_fused": fused}

    def run() -> dict[str, Any]:
        return run_recbole_prune(model=model, dataset=DATASET, config_dict=ours)

    return course_of(run, patch, probe_other_weights)


def settings_of(model: str, data: Path) -> dict[str, Any]:
    """Two epochs of a few batches, and metrics with all their digits."""
    settings = {
        **config_for(model, data),
        "epochs": 2,
        "metric_decimal_place": 10,
        # DGCF draws more users for a batch than those with short histories are
        "user_inter_num_interval": "[0,inf)" if model == "DGCF" else "[0,30]",
        "train_batch_size": 256,
    }
    if "pretrain_epochs" in settings:
        settings["pretrain_epochs"] = 2
    return settings


@pytest.mark.parametrize("model", slow_but(QUICK, gradient_models()))
def test_dense_run_equals_plain_recbole(model: str, tiny_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reason = missing_package(model)
    if reason:
        pytest.skip(reason)
    settings = settings_of(model, tiny_data)
    different = []
    try:
        plain = plain_run(model, settings, monkeypatch)
    except AssertionError:
        different = ["run_recbole"]
        plain = plain_run(model, settings, monkeypatch, count_flops=False)
    ours = our_run(model, settings, monkeypatch)
    assert len(plain["training"]) == 3
    different += [part for part in plain if plain[part] != ours[part]]
    assert different == DIFFERENT.get(model, ([], ""))[0]


@pytest.mark.parametrize("model", slow_but([], FUSED))
def test_fused_run_equals_it_up_to_rounding(model: str, tiny_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses to seven digits and random streams exactly; metrics as far as the weights matter that have a gradient."""
    settings = settings_of(model, tiny_data)
    exact, fused = (our_run(model, settings, monkeypatch, fused) for fused in (False, True))
    assert fused["training"][0] == exact["training"][0]
    for (_, losses, state), (_, expected, expected_state) in zip(fused["training"][1:], exact["training"][1:]):
        assert losses == pytest.approx(expected, rel=1e-6)
        assert state[1:] == expected_state[1:]
    assert fused["training"][1][2][0] != exact["training"][1][2][0]
    for (metrics, _), (expected, _) in zip(fused["validation"], exact["validation"]):
        assert metrics == pytest.approx(expected, abs=FUSED[model])
    assert fused["test_result"] == pytest.approx(exact["test_result"], abs=FUSED[model])


def test_every_model_is_asked() -> None:
    assert (set(DIFFERENT) | set(OF_EVERY_TRAINER)) - NEW_IN_1_2_1 <= set(gradient_models())
