"""``prune_keep_checkpoints``: which stay when a run is finished, and what is said where one that did not is needed."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from test_bad_input import snapshot
from test_verdict import ticket
from training_bench import Killed, before_training
from zoo import DATASET, config_for
from zoo_plain import reload

from recbole_prune import run_recbole_prune
from recbole_prune.cli import main
from recbole_prune.config.prune_config import PruneConfig
from recbole_prune.errors import StoreError
from recbole_prune.run import checkpoints
from recbole_prune.run.experiment import Experiment
from recbole_prune.run.store import REWIND, RunFolder
from recbole_prune.training.trainer import MaskAwareTrainer


@pytest.fixture(scope="module")
def settings(tiny_data: Path) -> dict[str, Any]:
    # the ticket at the target is the chosen one
    return {
        **config_for("BPR", tiny_data),
        "epochs": 1,
        "pruner": "imp",
        "prune_target_sparsity": 0.5,
        "prune_rounds": 2,
    }


@pytest.fixture(scope="module")
def finished(settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder ``pruned`` with one run of tickets 0, 1 and 2, the last one exported."""
    output = tmp_path_factory.mktemp("finished") / "pruned"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["pytest"])
        patch.chdir(output.parent)
        result = run_recbole_prune(
            "BPR", DATASET, config_dict={**settings, "prune_rounds": 2, "output_dir": str(output)}
        )
    assert result["chosen"]["ticket"] == 2
    return output


@pytest.fixture
def again(finished: Path, settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The same command on a copy of the run, which trains nothing any more."""
    shutil.copytree(finished, tmp_path / "pruned")
    monkeypatch.setattr(MaskAwareTrainer, "_train_epoch", None)

    def run(keep: str, **changes: Any) -> dict[str, Any]:
        given = {**settings, "prune_keep_checkpoints": keep, **changes}
        return run_recbole_prune("BPR", DATASET, config_dict=given)

    return run


def folder_of(output: Path) -> Path:
    [folder] = output.glob(f"{DATASET}/BPR/imp-*")
    return folder


def kept(folder: Path) -> list[int]:
    return sorted(int(file.stem[-3:]) for file in (folder / "checkpoints").iterdir())


def beside_checkpoints(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in snapshot(folder).items() if not name.startswith("checkpoints")}


def test_every_checkpoint_stays_by_default_without_moments_and_loads_in_plain_recbole(finished: Path) -> None:
    folder = folder_of(finished)
    assert kept(folder) == [0, 1, 2]
    for record in RunFolder(folder).tickets():
        file = folder / record["checkpoint_file"]
        assert torch.load(file, weights_only=False)["optimizer"]["state"] == {}
        plain = reload(file)
        found = plain.trainer.evaluate(plain.test_data, load_best_model=True, model_file=str(file))
        assert dict(found) == pytest.approx(record["test"])


def test_moments_are_kept_where_they_are_asked_for(settings: dict[str, Any]) -> None:
    ours = {"pruner": "none", "prune_keep_moments": True}
    result = run_recbole_prune("BPR", DATASET, config_dict={**settings, **ours})
    file = Path(result["folder"]) / result["chosen"]["checkpoint_file"]
    state = torch.load(file, weights_only=False)["optimizer"]["state"]
    assert {name for moments in state.values() for name in moments} == {"step", "exp_avg", "exp_avg_sq"}


@pytest.mark.parametrize(("keep", "stay"), [("all", [0, 1, 2]), ("chosen", [0, 2]), ("none", [])])
def test_what_stays(keep: str, stay: list[int], again: Any, caplog: pytest.LogCaptureFixture) -> None:
    before = beside_checkpoints(folder_of(Path("pruned")))
    folder = Path(again(keep)["folder"])
    assert kept(folder) == stay
    assert beside_checkpoints(folder) == before
    said = [text for text in caplog.messages if f"prune_keep_checkpoints={keep}" in text]
    assert len(said) == (keep != "all") and "\n" not in "".join(said)


def test_what_is_gone_is_named_and_nothing_else_is_lost(again: Any, caplog: pytest.LogCaptureFixture) -> None:
    first = again("none")
    before = snapshot(Path(first["folder"]))
    caplog.clear()
    assert again("all") == first
    assert snapshot(Path(first["folder"])) == before
    [said] = [text for text in caplog.messages if "prune_keep_checkpoints" in text]
    assert "tickets 0, 1, 2 were not kept" in said and "--fresh=True" in said


@pytest.mark.parametrize("keep", ["chosen", "none"])
def test_killed_while_it_removes(keep: str, again: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    remove = RunFolder.remove

    def remove_and_die(self: RunFolder, name: str) -> None:
        remove(self, name)
        if name.startswith("checkpoints"):
            raise Killed

    before = beside_checkpoints(folder_of(Path("pruned")))
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "remove", remove_and_die)
        with pytest.raises(Killed):
            again(keep)
    folder = folder_of(Path("pruned"))
    assert len(kept(folder)) == 2 and beside_checkpoints(folder) == before
    again(keep)
    assert kept(folder) == {"chosen": [0, 2], "none": []}[keep] and beside_checkpoints(folder) == before


def test_exporting_a_ticket_without_checkpoint_says_why_and_what_to_do(
    again: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(again("chosen")["folder"])
    before = snapshot(folder)
    with pytest.raises(StoreError, match=r"ticket-001\.pth is missing: prune_keep_checkpoints=.*--fresh=True"):
        again("none", export_ticket=1)  # where that fails nothing is removed either
    assert main(["export", f"--run={folder}", "--export_ticket=1"]) == 2
    [said] = capsys.readouterr().err.strip().splitlines()[-1:]
    assert "ticket-001.pth is missing: prune_keep_checkpoints=" in said and "--prune_keep_checkpoints=all" in said
    assert snapshot(folder) == before
    assert main(["export", f"--run={folder}", "--export_values=fp16", "--to=small"]) == 0
    again("none")
    assert main(["export", f"--run={folder}", "--export_values=fp16", "--to=smaller"]) == 2
    assert "ticket-002.pth is missing" in capsys.readouterr().err and not Path("smaller").exists()


def adopting(settings: dict[str, Any]) -> Experiment:
    """A run of another pruner beside those in ``pruned``, as it is before its first training."""
    return before_training(PruneConfig("BPR", DATASET, config_dict={**settings, "pruner": "omp"}))


def test_a_dense_model_is_shared_as_long_as_its_checkpoint_is_kept(
    again: Any, settings: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    source = Path(again("chosen")["folder"])
    experiment = adopting(settings)
    dense = experiment.tickets[0]
    assert dense.method["adopted_from"] == source.name and experiment.checkpoint_of(dense)
    # the other run has it: this one, once finished, needs no copy
    checkpoints.keep("chosen", experiment.folder, [dense], ticket(1))
    assert not experiment.folder.has(dense.checkpoint_file) and kept(source) == [0, 2]

    shutil.rmtree(experiment.folder.path)
    again("none")
    caplog.set_level("INFO")
    assert not adopting(settings).tickets
    [said] = [text for text in caplog.messages if source.name in text]
    assert "did not keep its checkpoint of ticket 0" in said


@pytest.mark.parametrize(("keep", "adopted", "stays"), [
    ("all", False, True), ("all", True, True), ("chosen", False, True), ("chosen", True, False), ("none", False, False),
])  # fmt: skip
def test_the_state_to_rewind_to_goes_with_the_dense_model(
    keep: str, adopted: bool, stays: bool, tmp_path: Path
) -> None:
    folder = RunFolder(tmp_path)
    dense = ticket(0, method={"adopted_from": "omp-1"} if adopted else {})
    for name in (dense.checkpoint_file, REWIND):
        folder.write(name, b"weights")
    checkpoints.keep(keep, folder, [dense], ticket(1))
    assert folder.has(dense.checkpoint_file) == folder.has(REWIND) == stays


def test_the_dense_model_stays_where_it_is_the_chosen_one(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    dense = ticket(0, method={"adopted_from": "omp-1"})
    folder.write(dense.checkpoint_file, b"weights")
    checkpoints.keep("chosen", folder, [dense], dense)
    assert folder.has(dense.checkpoint_file)
