"""At sparsity 0 our way gives the metrics of plain RecBole, patched only by ``compat``, with the same seed.

Fused optimizers round differently, and a training is chaotic: metrics are equal digit by digit without them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from marks import slow_but
from zoo import DATASET, config_for, missing_package
from zoo_plain import build

from recbole_prune import run_recbole_prune

# the four kinds, and every trainer class that trains by gradient
MODELS = {
    "BPR": "general, Trainer",
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


def plain_recbole(model: str, settings: dict[str, Any]) -> tuple[Any, Any]:
    """(best validation result, test result) of RecBole's own classes in the order of its ``run_recbole``."""
    run = build(model, settings)
    show = {"show_progress": False}
    _, best = run.trainer.fit(run.train_data, run.valid_data, saved=True, **show)
    if best is None:  # pretraining stages end without validation
        best = run.trainer.evaluate(run.valid_data, load_best_model=True)
    return best, run.trainer.evaluate(run.test_data, load_best_model=True)


@pytest.mark.parametrize("model", slow_but(["BPR", "CKE", "RecVAE"], MODELS))
def test_dense_run_equals_plain_recbole(model: str, tiny_data: Path, tmp_path: Path) -> None:
    reason = missing_package(model)
    if reason:
        pytest.skip(reason)
    settings = {**config_for(model, tiny_data), "epochs": 3, "checkpoint_dir": str(tmp_path / "saved")}
    valid, test = plain_recbole(model, settings)
    result = run_recbole_prune(
        model=model, dataset=DATASET, config_dict={**settings, "pruner": "none", "prune_fused": False}
    )
    assert result["best_valid_result"] == {name: float(value) for name, value in valid.items()}
    assert result["test_result"] == {name: float(value) for name, value in test.items()}
