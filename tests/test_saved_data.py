"""Settings under which RecBole writes its data to disk: a fresh folder gives what plain RecBole gives there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from marks import slow_but
from test_plain_equality import plain_recbole
from zoo import DATASET, config_for

from recbole_prune import load_ticket, run_recbole_prune
from recbole_prune.errors import ConfigError
from recbole_prune.training.trainer import MaskAwareTrainer

QUICK = [("save_dataloaders", "BPR")]
MORE = [
    ("save_dataset", "BPR"),
    ("save_dataset", "SASRec"),
    *[("save_dataloaders", model) for model in ("RecVAE", "SASRec", "DIN")],
]


def settings_of(model: str, data: Path, saved: Path, **changes: Any) -> dict[str, Any]:
    return {**config_for(model, data), "epochs": 3, "checkpoint_dir": str(saved), "prune_fused": False, **changes}


@pytest.mark.parametrize(("setting", "model"), slow_but(QUICK, [*QUICK, *MORE]))
def test_a_run_that_saves_its_data_equals_plain_recbole(
    setting: str, model: str, tiny_data: Path, tmp_path: Path
) -> None:
    plain = settings_of(model, tiny_data, tmp_path / "plain", **{setting: True})
    plain.pop("prune_fused")
    valid, test, _ = plain_recbole(model, plain)
    ours = settings_of(model, tiny_data, tmp_path / "ours", **{setting: True}, pruner="none")
    result = run_recbole_prune(model, DATASET, config_dict=ours)
    assert result["best_valid_result"] == {name: float(value) for name, value in valid.items()}
    assert result["test_result"] == {name: float(value) for name, value in test.items()}
    saved = [sorted(path.name for path in (tmp_path / name).glob(f"{DATASET}-*")) for name in ("plain", "ours")]
    assert saved[0] == saved[1] and len(saved[0]) == 1


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["save_dataset", "save_dataloaders"])
def test_a_second_process_that_finds_the_saved_data_goes_on_as_the_first(
    setting: str, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in an epoch of ticket 1, and again before it: the tickets are those of a run in one go."""
    pruned = {setting: True, "pruner": "imp", "prune_rate": 0.3, "prune_rounds": 1}

    def run(name: str, **changes: Any) -> dict[str, Any]:
        settings = settings_of("BPR", tiny_data, tmp_path / name, **pruned, output_dir=str(tmp_path / name))
        return run_recbole_prune("BPR", DATASET, config_dict={**settings, **changes})

    def stop(self: Any, data: Any, epoch: int, *args: Any, **kwargs: Any) -> Any:
        if self.session.name == "ticket 1" and epoch == 2:
            raise KeyboardInterrupt
        return train(self, data, epoch, *args, **kwargs)

    train = MaskAwareTrainer._train_epoch
    whole = run("whole")
    with monkeypatch.context() as patch:
        patch.setattr(MaskAwareTrainer, "_train_epoch", stop)
        with pytest.raises(KeyboardInterrupt):
            run("stopped")
    resumed = run("stopped")
    journal = Path(resumed["folder"], "tickets.jsonl")
    journal.write_bytes(journal.read_bytes().splitlines(keepends=True)[0])
    for result in (resumed, run("stopped")):
        assert len(result["tickets"]) == len(whole["tickets"]) == 2
        for ticket, expected in zip(result["tickets"], whole["tickets"]):
            assert (ticket["valid"], ticket["history"]) == (expected["valid"], expected["history"])
            assert ticket["mask_sha256"] == expected["mask_sha256"]
    assert load_ticket(resumed["artifact"]) is not None


def test_loaders_that_recbole_cannot_save_are_refused_in_one_line(tiny_data: Path, tmp_path: Path) -> None:
    """Those of a knowledge graph."""
    settings = settings_of("CKE", tiny_data, tmp_path / "saved", save_dataloaders=True)
    with pytest.raises(ConfigError, match="RecBole cannot .*KnowledgeBasedDataLoader") as caught:
        run_recbole_prune("CKE", DATASET, config_dict=settings)
    assert "\n" not in str(caught.value)
