"""Settings under which RecBole writes its data to disk: a fresh folder gives what plain RecBole gives there."""

from __future__ import annotations

import logging
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
from marks import slow_but
from test_plain_equality import our_run, plain_run
from zoo import DATASET, config_for

from recbole_prune import PruneConfig, load_ticket, run_recbole_prune
from recbole_prune.artifact import read_artifact
from recbole_prune.cli import main
from recbole_prune.data.saved import create_dataset
from recbole_prune.errors import ConfigError, PruneError, RecBoleError
from recbole_prune.run.workshop import Workshop
from recbole_prune.training.trainer import MaskAwareTrainer

QUICK = [("save_dataloaders", "BPR")]
MORE = [
    ("save_dataset", "BPR"),
    ("save_dataset", "SASRec"),
    *[("save_dataloaders", model) for model in ("RecVAE", "BERT4Rec", "DIN")],
]


def settings_of(model: str, data: Path, saved: Path, **changes: Any) -> dict[str, Any]:
    return {**config_for(model, data), "epochs": 3, "checkpoint_dir": str(saved), **changes}


@pytest.mark.parametrize(("setting", "model"), slow_but(QUICK, [*QUICK, *MORE]))
def test_a_run_that_saves_its_data_equals_plain_recbole(
    setting: str, model: str, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = plain_run(model, settings_of(model, tiny_data, tmp_path / "plain", **{setting: True}), monkeypatch)
    ours = our_run(model, settings_of(model, tiny_data, tmp_path / "ours", **{setting: True}), monkeypatch)
    assert ours == plain
    saved = [sorted(path.name for path in (tmp_path / name).glob(f"{DATASET}-*")) for name in ("plain", "ours")]
    assert saved[0] == saved[1] and len(saved[0]) == 1


@pytest.mark.slow
@pytest.mark.parametrize(("setting", "model"), [("save_dataset", "BPR"), ("save_dataloaders", "BERT4Rec")])
def test_a_second_process_that_finds_the_saved_data_goes_on_as_the_first(
    setting: str, model: str, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in an epoch of ticket 1, and again before it: the tickets are those of a run in one go.

    BERT4Rec's transform draws random numbers, for RecBole's FLOPs counter too.
    """
    pruned = {setting: True, "pruner": "imp", "prune_rate": 0.3, "prune_rounds": 1, "prune_fused": False}

    def run(name: str, **changes: Any) -> dict[str, Any]:
        settings = settings_of(model, tiny_data, tmp_path / name, **pruned, output_dir=str(tmp_path / name))
        return run_recbole_prune(model, DATASET, config_dict={**settings, **changes})

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
    with pytest.raises(RecBoleError, match="RecBole cannot .*KnowledgeBasedDataLoader") as caught:
        run_recbole_prune("CKE", DATASET, config_dict=settings)
    assert "\n" not in str(caught.value)


# ---- pickles that nobody asked for


class Bomb:
    """Makes a folder when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("pwned",)


NAMES = {"dataset_save_path": f"{DATASET}-Dataset.pth", "dataloaders_save_path": f"{DATASET}-for-BPR-dataloader.pth"}


@pytest.fixture
def bombs() -> Path:
    """What somebody has put into the working directory, where RecBole looks."""
    Path("saved").mkdir()
    for name in NAMES.values():
        Path("saved", name).write_bytes(pickle.dumps(Bomb()))
    return Path("saved")


def bpr(data: Path, **changes: Any) -> dict[str, Any]:
    settings = {**config_for("BPR", data), "epochs": 1, "pruner": "none", **changes}
    settings.pop("checkpoint_dir", None)
    return settings


def test_a_pickle_that_no_setting_names_is_not_opened(
    tiny_data: Path, bombs: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = PruneConfig("BPR", DATASET, config_dict=bpr(tiny_data))
    before = dict(config.final_config_dict)
    workshop = Workshop(config)
    assert len(workshop.train_data) and config.final_config_dict == before and not Path("pwned").exists()
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    for setting, name in NAMES.items():
        [line] = [text for text in said if f"{bombs / name} is there and was not opened" in text]
        assert f"--{setting}={bombs / name}" in line and "\n" not in line


@pytest.mark.parametrize("setting", [*NAMES, "save_dataset", "save_dataloaders"])
def test_the_settings_that_ask_for_a_pickle_open_it(setting: str, tiny_data: Path, bombs: Path) -> None:
    value = str(bombs / NAMES[setting]) if setting in NAMES else True
    with pytest.raises(PruneError):
        Workshop(PruneConfig("BPR", DATASET, config_dict=bpr(tiny_data, **{setting: value})))
    assert Path("pwned").exists()


def test_a_dataset_that_is_a_pickle_only_has_to_be_named(bombs: Path, tmp_path: Path) -> None:
    settings = bpr(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=rf"no folder .* opened only if it is named: --dataset_save_path={bombs}"):
        PruneConfig("BPR", DATASET, config_dict=settings)
    assert not Path("pwned").exists()


@pytest.mark.slow
def test_a_folder_of_a_run_does_not_say_which_pickle_export_opens(
    tiny_data: Path, bombs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """The dataset of the run was smaller than its files: only with it there is an artifact."""
    few = tmp_path / "few" / DATASET
    few.mkdir(parents=True)
    for file in (tiny_data / DATASET).iterdir():
        lines = file.read_text().splitlines(keepends=True)
        (few / file.name).write_text("".join(lines[: len(lines) // 2] if file.suffix == ".inter" else lines))
    small = create_dataset(PruneConfig("BPR", DATASET, config_dict=bpr(tmp_path / "few")))
    (tmp_path / "small.pth").write_bytes(pickle.dumps(small))
    named = str(tmp_path / "small.pth")
    folder = run_recbole_prune("BPR", DATASET, config_dict=bpr(tiny_data, dataset_save_path=named))["folder"]
    (tmp_path / "small.pth").rename(tmp_path / "kept.pth")
    shutil.copy(bombs / NAMES["dataset_save_path"], named)
    assert main(["export", f"--run={folder}", "--to=out"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "does not fit" in line and f"the saved dataset {named} of the run is a pickle" in caplog.text
    assert main(["export", f"--run={folder}", "--to=out", f"--dataset_save_path={tmp_path / 'kept.pth'}"]) == 0
    assert read_artifact("out").info["dataset"] == DATASET and not Path("pwned").exists()
