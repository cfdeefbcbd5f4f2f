"""The training losses in the journal: one for each epoch, and what rewinding does to them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from zoo import DATASET, config_for

from recbole_prune import run_recbole_prune
from recbole_prune.training.trainer import MaskAwareTrainer


def losses_of(data: Path, folder: Path, **settings: Any) -> list[list[float]]:
    """Of every ticket."""
    config = {**config_for("BPR", data), "learning_rate": 0.01, "output_dir": str(folder), **settings}
    result = run_recbole_prune("BPR", DATASET, config_dict=config)
    lines = (Path(result["folder"]) / "tickets.jsonl").read_text().splitlines()
    return [json.loads(line)["losses"] for line in lines]


def test_every_epoch_has_its_loss(tiny_data: Path, tmp_path: Path) -> None:
    curves = losses_of(tiny_data, tmp_path, pruner="imp", prune_rounds=1, epochs=4, stopping_step=10)
    assert [len(curve) for curve in curves] == [4, 4]
    assert all(later < earlier for curve in curves for earlier, later in zip(curve, curve[1:]))


@pytest.mark.slow
@pytest.mark.parametrize(("pruner", "jumps"), [("lth_sad", True), ("sp_sad", False)])
def test_the_loss_jumps_where_weights_are_rewound(tiny_data: Path, tmp_path: Path, pruner: str, jumps: bool) -> None:
    """LTH-SAD starts every level from the initial weights, SP-SAD from those that it has (arXiv 2401.10484)."""
    curves = losses_of(
        tiny_data,
        tmp_path,
        pruner=pruner,
        distiller="sad",
        distill_teacher_model="BPR",
        distill_alone=False,
        prune_rounds=3,
        prune_rate=0.1,
        prune_round_epochs=8,
        epochs=8,
        stopping_step=20,
    )
    assert [len(curve) for curve in curves] == [8] * 4
    for before, after in zip(curves, curves[1:]):
        rise = after[0] - before[-1]
        assert rise > 0.8 * (after[0] - after[-1]) if jumps else rise < 0.8 * (curves[0][0] - curves[0][-1])
        assert abs(after[0] - curves[0][0]) < 0.2 * curves[0][0] if jumps else after[0] < curves[0][0]


def test_an_infinite_loss_is_no_number(tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is where half precision overflows and a step is left out; the ticket is written nevertheless."""
    train = MaskAwareTrainer._train_epoch

    def overflowing(self: Any, data: Any, epoch: int, *args: Any, **kwargs: Any) -> Any:
        loss = train(self, data, epoch, *args, **kwargs)
        return float("inf") if epoch == 1 else loss

    monkeypatch.setattr(MaskAwareTrainer, "_train_epoch", overflowing)
    [curve] = losses_of(tiny_data, tmp_path, pruner="none", epochs=3, stopping_step=10)
    assert curve[1] is None and curve[0] and curve[2]
