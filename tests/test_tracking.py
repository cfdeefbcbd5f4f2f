"""TensorBoard and W&B show every ticket as a series of its own, in the run folder, and nothing stays open."""

from __future__ import annotations

import sys
import threading
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from zoo import DATASET, config_for

from recbole_prune import run_recbole_prune
from recbole_prune.training.trainer import MaskAwareTrainer

SETTINGS = {"pruner": "imp", "prune_rate": 0.5, "prune_rounds": 1, "epochs": 3, "stopping_step": 9}
NAMES = ["ticket-000-sparsity-0.0000", "ticket-001-sparsity-0.5000"]


def run(data: Path, **settings: Any) -> Path:
    """The folder of a finished run."""
    done = run_recbole_prune("BPR", DATASET, config_dict={**config_for("BPR", data), **SETTINGS, **settings})
    return Path(done["folder"])


def threads() -> set[threading.Thread]:
    """Those that run, but for the one with which tqdm watches all bars of a process."""
    return {thread for thread in threading.enumerate() if thread.name != "tqdm_monitor"}


def steps(series: Path, name: str) -> list[int]:
    """The steps of a scalar as TensorBoard shows them."""
    return [event.step for event in EventAccumulator(str(series)).Reload().Scalars(name)]


def test_every_ticket_is_a_series_and_its_thread_ends(tiny_data: Path, tmp_path: Path) -> None:
    before = threads()
    series = sorted((run(tiny_data) / "tensorboard").iterdir())
    assert threads() <= before
    assert [folder.name for folder in series] == NAMES
    for folder in series:
        assert all(file.is_file() for file in folder.iterdir()), "no series within a series"
        assert steps(folder, "Loss/Train") == steps(folder, "Vaild_score") == [0, 1, 2]
        assert len(steps(folder, "hparam/best_valid_result")) == 1
    assert not (tmp_path / "log_tensorboard").exists()


def test_a_continued_training_shows_each_epoch_once(tiny_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train = MaskAwareTrainer._train_epoch

    def die_in_the_last(self: Any, data: Any, epoch: int, *args: Any, **kwargs: Any) -> Any:
        losses = train(self, data, epoch, *args, **kwargs)
        if epoch == 2 and self.session.name == "ticket 0":
            raise KeyboardInterrupt
        return losses

    with monkeypatch.context() as patch:
        patch.setattr(MaskAwareTrainer, "_train_epoch", die_in_the_last)
        before = threads()
        with pytest.raises(KeyboardInterrupt):
            run(tiny_data)
        assert threads() <= before
    assert steps(run(tiny_data) / "tensorboard" / NAMES[0], "Vaild_score") == [0, 1, 2]


class Wandb(SimpleNamespace):
    """What RecBole and this package use of the module, in memory."""

    def __init__(self, run: Any = None) -> None:
        super().__init__(run=run, begun=[], logged=[], waiting={}, rows=[], __spec__=ModuleSpec("wandb", None))

    def init(self, **facts: Any) -> None:
        assert self.run is None, "one at a time"
        self.run = SimpleNamespace(summary={})
        self.begun.append(facts)

    def finish(self) -> None:
        assert "eval/ndcg@10" in self.run.summary, "the test belongs to the series"
        self.run = None

    def define_metric(self, *_: Any, **__: Any) -> None:
        assert self.run is not None

    def log(self, metrics: dict[str, Any], commit: bool) -> None:
        self.waiting.update(metrics)
        if commit:
            self.logged.append((len(self.begun), self.waiting.get("train_step")))
            self.rows.append(self.waiting)
            self.waiting = {}


def test_every_ticket_is_a_run_of_wandb(tiny_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    folder = run(tiny_data, log_wandb=True, wandb_project="mine")
    assert [facts["name"] for facts in wandb.begun] == NAMES and wandb.run is None
    assert {(facts["project"], facts["group"]) for facts in wandb.begun} == {("mine", folder.name)}
    assert all(folder in Path(facts["dir"]).parents for facts in wandb.begun)
    assert [entry for entry in wandb.logged if entry[1] is not None] == [(n, e) for n in (1, 2) for e in range(3)]


@pytest.mark.slow
def test_a_run_of_wandb_that_the_user_began_stays_open(tiny_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = SimpleNamespace(summary={})
    wandb = Wandb(own)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    run(tiny_data, log_wandb=True, pruner="none")
    assert wandb.run is own and not wandb.begun and wandb.logged


@pytest.mark.slow
def test_losses_of_a_distiller_stand_by_name_in_the_series_of_every_ticket(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    rows = [row.split("\t") for row in (tiny_data / DATASET / f"{DATASET}.inter").read_text().splitlines()[1:]]
    users, items = (sorted({row[place] for row in rows}) for place in (0, 1))
    (tmp_path / "lists.tsv").write_text("".join("\t".join([user, *items]) + "\n" for user in users))
    taught = {"distiller": "ir_rrd", "distill_teacher": str(tmp_path / "lists.tsv"), "distill_alone": False}
    folder = run(tiny_data, log_wandb=True, **taught)
    text = (folder / "log.txt").read_text()
    assert "distill_weight=0.001 is for sums over a batch: 0.001/" in text and "distill_item_weight=0.0005 is" in text
    names = {"rrd", "ir"}
    said = [dict(part.split() for part in line.split(": ")[1].split(", "))
            for line in text.splitlines() if "added losses: " in line]  # fmt: skip
    assert [set(sums) for sums in said] == 6 * [names]
    series = [EventAccumulator(str(folder / "tensorboard" / name)).Reload() for name in NAMES]
    for name in names:
        shown = [(event.step, event.value) for one in series for event in one.Scalars(f"Loss/{name}")]
        assert [step for step, _ in shown] == [0, 1, 2, 0, 1, 2]
        assert [value for _, value in shown] == pytest.approx([float(sums[name]) for sums in said], rel=1e-4)
        epochs = [row for row in wandb.rows if "train_step" in row]
        assert [row[f"train/loss_{name}"] for row in epochs] == pytest.approx([v for _, v in shown], rel=1e-4)
