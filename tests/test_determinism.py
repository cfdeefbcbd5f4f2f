"""A ticket follows from settings and data, whatever the process did before it and whichever process did it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from marks import slow_but
from recbole.utils import get_model, get_trainer
from training_bench import Killed, scramble_random_streams, without_clocks
from zoo import DATASET, OF_EVERY_TRAINER, config_for, gradient_models, missing_package

from recbole_prune import run_recbole_prune
from recbole_prune.run.experiment import Experiment
from recbole_prune.run.export import export_chosen
from recbole_prune.run.store import RESUME, RunFolder
from recbole_prune.run.ticket import Plan, Ticket


def run(model: str, data: Path, pruner: str = "dsl") -> Path:
    """The folder of a run in the working directory, a new process as far as one process can be."""
    scramble_random_streams()
    settings = {**config_for(model, data), "epochs": 4, "eval_step": 4, "pruner": pruner}
    if "pretrain_epochs" in settings:
        settings["pretrain_epochs"] = 4
    if model == "S3Rec":
        settings["user_inter_num_interval"] = "[0,30]"  # the slowest by far: rows are prefixes of histories
        settings["train_batch_size"] = 128
    if model == "RaCT":
        settings["train_batch_size"] = 32  # users, of whom there are few
    if pruner == "dsl":
        settings.update(prune_target_sparsity=0.5, prune_update_interval=6)
    return Path(run_recbole_prune(model=model, dataset=DATASET, config_dict=settings)["folder"])


def killed_after_ticket_0(model: str, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    append = RunFolder.append_ticket

    def append_and_die(self: RunFolder, record: dict[str, Any]) -> None:
        append(self, record)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "append_ticket", append_and_die)
        with pytest.raises(Killed):
            run(model, data)


def disturbed_after_ticket_0(model: str, data: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a run in which much is built, scored, evaluated and exported between its tickets."""
    obtain = Experiment.obtain

    def obtain_and_disturb(self: Experiment, number: int, plan: Callable[[], Plan]) -> Ticket:
        ticket = obtain(self, number, plan)
        if number == 0:
            export_chosen(self, [ticket], Path("elsewhere").absolute())
            self.validate(self.weights_of(ticket), self.masks_of(ticket))
            self.workshop.find_scope()
            scramble_random_streams()
        return ticket

    with monkeypatch.context() as patch:
        patch.setattr(Experiment, "obtain", obtain_and_disturb)
        folder = run(model, data)
    assert Path("elsewhere/ticket.json").is_file()
    return folder


def outcome(folder: Path) -> dict[str, Any]:
    """Journal lines without clocks, bytes of masks and of the last checkpoint (an adopted one has other settings)."""
    records = [without_clocks(record) for record in RunFolder(folder).tickets()]
    for record in records:
        record.pop("adopted_from", None)
    files = [*sorted((folder / "masks").iterdir()), folder / records[-1]["checkpoint_file"]]
    return {"records": records, **{file.name: file.read_bytes() for file in files}}


@pytest.mark.parametrize("model", slow_but(["KGAT"], [*OF_EVERY_TRAINER, "KGIN"]))
def test_who_trained_the_dense_model_does_not_matter(
    model: str, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one go = by a process killed right after it = by a run of another pruner; nor does what follows it.

    KGIN propagates along edges that it draws.
    """
    reason = missing_package(model)
    if reason:
        pytest.skip(reason)
    outcomes = []
    for way in ("whole", "killed", "adopted", "disturbed"):
        (tmp_path / way).mkdir()
        monkeypatch.chdir(tmp_path / way)
        if way == "killed":
            killed_after_ticket_0(model, tiny_data, monkeypatch)
        elif way == "adopted":
            run(model, tiny_data, pruner="none")
        folder = (
            disturbed_after_ticket_0(model, tiny_data, monkeypatch) if way == "disturbed" else run(model, tiny_data)
        )
        outcomes.append(outcome(folder))
        assert not (folder / RESUME).exists()
        adopted = RunFolder(folder).tickets()[0].get("adopted_from")
        assert (adopted is not None) == (way == "adopted")
    whole, killed, adopted, disturbed = outcomes
    assert whole["records"][1]["updates"] >= 1
    assert killed == whole
    assert adopted == whole
    assert disturbed == whole


@pytest.mark.slow
def test_every_trainer_class_is_among_the_models() -> None:
    def trainer_of(model: str) -> type:
        return get_trainer(get_model(model).type, model)

    present = [model for model in gradient_models() if missing_package(model) is None]
    assert {trainer_of(model) for model in OF_EVERY_TRAINER} == {trainer_of(model) for model in present}
