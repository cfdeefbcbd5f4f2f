"""Data without users and items: clicks that are described by features alone, as RecBole's context models take them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recbole_prune import load_ticket, run_recbole_prune
from recbole_prune.artifact import read_artifact
from recbole_prune.errors import ArtifactError, ConfigError, RecBoleError
from recbole_prune.serving import Recommender
from recbole_prune.training.trainer import MaskAwareTrainer

CLICKS = "clicks"


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    """300 clicks with three features."""
    random = np.random.default_rng(4)
    lines = ["label:float\tsite:token\tdevice:token\thour:token"]
    for _ in range(300):
        site, device, hour = random.integers(0, [20, 5, 24])
        lines.append(f"{int(random.random() < site / 20)}\ts{site}\td{device}\t{hour}")
    folder = tmp_path / "data" / CLICKS
    folder.mkdir(parents=True)
    (folder / f"{CLICKS}.inter").write_text("\n".join(lines) + "\n")
    return {
        "data_path": str(tmp_path / "data"),
        "USER_ID_FIELD": None,
        "ITEM_ID_FIELD": None,
        "load_col": {"inter": ["label", "site", "device", "hour"]},
        "embedding_size": 8,
        "mlp_hidden_size": [8],
        "epochs": 2,
        "gpu_id": "",
        "show_progress": False,
    }


def run(settings: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return run_recbole_prune(model="DeepFM", dataset=CLICKS, config_dict={**settings, **changes})


def test_a_run_ends_with_an_artifact_that_scores_like_its_ticket(settings: dict[str, Any]) -> None:
    result = run(settings, pruner="omp", prune_target_sparsity=0.5)
    artifact = read_artifact(result["artifact"])
    assert sorted(path.name for path in Path(result["artifact"]).iterdir()) == ["ticket.json", "ticket.safetensors"]
    assert (list(artifact.users), list(artifact.items), len(artifact.seen.indptr)) == ([], [], 1)
    assert artifact.info["effect"]["mean_top10_overlap"] is None

    checkpoint = torch.load(Path(result["folder"], result["chosen"]["checkpoint_file"]), weights_only=False)
    model = load_ticket(result["artifact"])
    for name, weight in checkpoint["state_dict"].items():
        assert torch.equal(model.state_dict()[name], weight), name
    with pytest.raises(ArtifactError, match="no users and items"):
        Recommender(artifact)


@pytest.mark.slow
def test_what_a_ticket_costs_is_counted(settings: dict[str, Any]) -> None:
    """For one row: 3 fields of width 8 into a layer of 8, and that into 1 score, at least."""
    result = run(settings, pruner="none")
    (ticket,) = json.loads(Path(result["folder"], "summary.json").read_bytes())["tickets"]
    assert ticket["measured"]["macs"]["items"] == 1
    assert ticket["measured"]["macs"]["inference"]["dense"] >= 3 * 8 * 8 + 8


def test_a_dry_run_says_how_it_would_be_served(settings: dict[str, Any]) -> None:
    plan = run(settings, pruner="omp", prune_target_sparsity=0.5, dry_run=True)["plan"]
    assert "no users and items" in plan


def test_uniform_users_are_refused_before_training(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MaskAwareTrainer, "_train_epoch", lambda *_, **__: pytest.fail("training began"))
    with pytest.raises(ConfigError, match="prune_user_uniform=True .*no users"):
        run(settings, prune_user_uniform=True)
    with pytest.raises(RecBoleError, match="USER_ID_FIELD and ITEM_ID_FIELD"):
        run(settings, USER_ID_FIELD="site")
