"""``prune_eval_mask``: what a test ranks, by hand and through the trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from teachers import refusal
from zoo import DATASET, config_for

from recbole_prune.config.prune_config import PruneConfig
from recbole_prune.distillers.teaching import teacher_configs
from recbole_prune.run.workshop import Workshop
from recbole_prune.training.session import Session

TOP = 50


def workshop_of(data: Path, model: str = "BPR", **changes: Any) -> Workshop:
    settings = {**config_for(model, data), "topk": [TOP], "metrics": ["Recall"], "valid_metric": f"Recall@{TOP}"}
    return Workshop(PruneConfig(model, DATASET, config_dict={**settings, **changes}))


def pairs(loader: Any) -> dict[int, set[int]]:
    """The items of each user in a part of the split."""
    rows = loader._dataset.inter_feat
    found: dict[int, set[int]] = {}
    for user, item in zip(rows["user_id"].tolist(), rows["item_id"].tolist()):
        found.setdefault(user, set()).add(item)
    return found


@torch.no_grad()
def recall_by_hand(model: Any, test: dict[int, set[int]], masked: list[dict[int, set[int]]]) -> float:
    scores = model.user_embedding.weight @ model.item_embedding.weight.t()
    scores[:, 0] = -torch.inf
    shares = []
    for user, targets in test.items():
        for part in masked:
            scores[user, list(part.get(user, set()) - targets)] = -torch.inf
        shares.append(len(targets & set(scores[user].topk(TOP)[1].tolist())) / len(targets))
    return sum(shares) / len(shares)


@pytest.mark.parametrize("mask", ["all", "train"])
def test_what_a_test_leaves_out(tiny_data: Path, mask: str) -> None:
    workshop = workshop_of(tiny_data, prune_eval_mask=mask)
    train, valid, test = map(pairs, workshop.loaders)
    model = workshop.build_model()
    trainer = workshop.trainer(model, Session("a test", workshop.loaders, fused=False))
    found = trainer.evaluate(workshop.test_data, load_best_model=False)[f"recall@{TOP}"]
    parts = {"all": [train, valid], "train": [train]}
    expected = {name: recall_by_hand(model, test, masked) for name, masked in parts.items()}
    assert found == pytest.approx(expected[mask], abs=1e-4) and abs(expected["all"] - expected["train"]) > 1e-3
    validated = trainer.evaluate(workshop.select_data, load_best_model=False)[f"recall@{TOP}"]
    assert validated == pytest.approx(recall_by_hand(model, valid, [train]), abs=1e-4), "a validation is the same"


@pytest.mark.parametrize(
    ("model", "changes"),
    [("SASRec", {}), ("BPR", {"eval_args": {"split": {"RS": [0.8, 0.1, 0.1]}, "order": "RO", "mode": "uni5"}})],
)
def test_it_is_for_rankings_of_all_items(tiny_data: Path, model: str, changes: dict[str, Any]) -> None:
    message = refusal(lambda: workshop_of(tiny_data, model, prune_eval_mask="train", **changes))
    assert "prune_eval_mask=train is not allowed" in message


def test_a_teacher_that_is_trained_first_is_tested_alike(tiny_data: Path) -> None:
    lesson = {"distiller": "rrd", "distill_teacher_model": "BPR", "prune_eval_mask": "train"}
    config = PruneConfig("BPR", DATASET, config_dict={**config_for("BPR", tiny_data), **lesson})
    assert [teacher.settings.prune_eval_mask for teacher in teacher_configs(config)] == ["train"]
