"""At sparsity 0 our way gives weights and metrics of plain RecBole, patched only by ``compat``, with the same seed.

Fused optimizers and our products of graphs round differently, and a training is chaotic: bit for bit without them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from marks import slow_but
from zoo import DATASET, OF_EVERY_TRAINER, config_for, missing_package
from zoo_plain import build

from recbole_prune import run_recbole_prune

# the four kinds, and every trainer class that trains by gradient
MODELS = {
    "BPR": "general, Trainer",
    "LightGCN": "general, a graph",
    "NGCF": "general, a graph that loses nodes in every batch",
    "SGL": "general, graphs drawn in every epoch",
    "SASRec": "sequential, Trainer",
    "DeepFM": "context, Trainer",
    "CKE": "knowledge, KGTrainer",
    "KGAT": "knowledge, KGATTrainer",
    "MKR": "knowledge, MKRTrainer",
    "RecVAE": "general, RecVAETrainer",
    "NCL": "general, NCLTrainer",
    "S3Rec": "sequential, S3RecTrainer (PretrainTrainer)",
    "RaCT": "general, RaCTTrainer (PretrainTrainer)",
    "BERT4Rec": "sequential, random transform",
    "DIN": "sequential, sampled evaluation",
    "KTUP": "knowledge, alternating epochs, random scores",
}


Weights = dict[str, torch.Tensor]


def plain_recbole(model: str, settings: dict[str, Any]) -> tuple[Any, Any, Weights]:
    """(best validation result, test result, best weights) of RecBole's own classes in the order of ``run_recbole``."""
    run = build(model, settings)
    show = {"show_progress": False}
    _, best = run.trainer.fit(run.train_data, run.valid_data, saved=True, **show)
    if best is None:  # pretraining stages end without validation
        best = run.trainer.evaluate(run.valid_data, load_best_model=True)
    test = run.trainer.evaluate(run.test_data, load_best_model=True)
    return best, test, weights_in(Path(run.trainer.saved_model_file))


def weights_in(checkpoint: Path) -> Weights:
    """The ``state_dict`` of a checkpoint."""
    weights: Weights = torch.load(checkpoint, weights_only=False)["state_dict"]
    return weights


def test_every_trainer_class_is_among_the_models() -> None:
    assert set(OF_EVERY_TRAINER) <= set(MODELS)


@pytest.mark.parametrize("model", slow_but(["BPR", "LightGCN", "RecVAE"], MODELS))
def test_dense_run_equals_plain_recbole(model: str, tiny_data: Path, tmp_path: Path) -> None:
    reason = missing_package(model)
    if reason:
        pytest.skip(reason)
    settings = {**config_for(model, tiny_data), "epochs": 3, "checkpoint_dir": str(tmp_path / "saved")}
    valid, test, weights = plain_recbole(model, settings)
    result = run_recbole_prune(
        model=model, dataset=DATASET, config_dict={**settings, "pruner": "none", "prune_fused": False}
    )
    assert result["best_valid_result"] == {name: float(value) for name, value in valid.items()}
    assert result["test_result"] == {name: float(value) for name, value in test.items()}
    ours = weights_in(Path(result["folder"], result["chosen"]["checkpoint_file"]))
    assert ours.keys() == weights.keys()
    assert [name for name, value in weights.items() if not torch.equal(ours[name], value)] == []
