"""What trains along: a small part with parameters, a loss and state goes through all that a part must survive."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from marks import slow_but
from recbole.trainer import trainer as recbole_trainer
from torch import nn
from training_bench import Bench, MemoryFiles, experiment_of, leaks, scramble_random_streams, without_clocks
from zoo import DATASET, OF_EVERY_TRAINER, config_for, missing_package
from zoo_plain import build

from recbole_prune import run_recbole_prune
from recbole_prune.run import ticket_training
from recbole_prune.run.workshop import Workshop
from recbole_prune.training import codec
from recbole_prune.training.gradient_record import GradientRecorder
from recbole_prune.training.parts import Part, State, Training
from recbole_prune.training.state import optimizers_of

TRAINERS = slow_but(["BPR", "RecVAE"], OF_EVERY_TRAINER)


pytestmark = pytest.mark.usefixtures("no_tensorboard")


@pytest.fixture(autouse=True)
def _forgiving_log(monkeypatch: pytest.MonkeyPatch) -> None:
    # RaCT's log call has an argument without a placeholder, which pytest's log capture does not forgive
    monkeypatch.setattr(logging.root.manager, "disable", logging.DEBUG)


class Head(Part):
    """A linear head on the rows of a model's first table that learns to give 1, and moves the table with it."""

    name = "head"

    def __init__(self) -> None:
        self.head = nn.Linear(1, 1)
        self.batches = self.epochs = 0
        self.seen: list[str] = []

    def attach(self, model: Any) -> None:
        self.table = next(name for name, _ in model.named_parameters() if name.endswith("weight"))
        self.head = nn.Linear(dict(model.named_parameters())[self.table].shape[1], 1)
        self.seen.append("attach")

    def parameters(self) -> Mapping[str, nn.Parameter]:
        return dict(self.head.named_parameters())

    def begin(self, trainer: Training) -> None:
        self.seen.append("begin")

    def losses(self, model: Any, interaction: Any) -> Mapping[str, torch.Tensor]:
        module = dict(model.named_modules())[self.table.rpartition(".")[0]]
        rows = module(torch.arange(1, 5)) if isinstance(module, nn.Embedding) else module.weight[1:5]
        return {"head": (self.head(rows) - 1).pow(2).mean()}

    def after_step(self, trainer: Training) -> None:
        self.batches += 1

    def end_epoch(self, trainer: Training) -> None:
        self.epochs += 1

    def state(self) -> State:
        return {"batches": self.batches, "epochs": self.epochs}

    def restore(self, state: State, device: torch.device) -> None:
        self.batches, self.epochs = state["batches"], state["epochs"]
        self.seen.append("restore")

    def report(self, masks: Any) -> dict[str, Any]:
        return {"head_batches": self.batches}


def head_trainer(bench: Bench, masks: Any, storage: str, files: MemoryFiles | None = None, **session: Any) -> Any:
    """The trainer of a model with a head, as a ticket's training makes it."""
    model, part = bench.model(None, storage), Head()
    part.attach(model)
    model.set_masks(masks)
    return bench.trainer(model, files, parts=(part,), **session)


def bench_of(model: str, data: Path) -> Bench:
    reason = missing_package(model)
    if reason:
        pytest.skip(reason)
    return Bench(model, data, epochs=4, train_batch_size=160, pretrain_epochs=4, save_step=1, learning_rate=0.01)


@pytest.mark.parametrize("storage", slow_but(["compact"], ["compact", "masked"]))
@pytest.mark.parametrize("model", TRAINERS)
def test_a_part_trains_and_resumes_with_every_trainer(model: str, storage: str, tiny_data: Path) -> None:
    bench = bench_of(model, tiny_data)
    masks = bench.masks(0.4)
    whole = head_trainer(bench, masks, storage)
    before = {name: value.clone() for name, value in whole.session.parts[0].head.state_dict().items()}
    bench.fit(whole)
    part = whole.session.parts[0]
    assert part.seen == ["attach", "begin"] and part.epochs == 4 and part.batches >= 4 * 1
    for name, value in part.head.state_dict().items():
        assert not torch.equal(value, before[name]), f"{name} was not trained"
    assert leaks(whole.model, masks) == 0

    bench = bench_of(model, tiny_data)  # new data objects, as in a new process
    state, checkpoint = whole.files.states[2]
    scramble_random_streams()
    resumed = head_trainer(bench, masks, storage, MemoryFiles(checkpoint), start=codec.decode(state))
    resumed.start_epoch = 2
    scramble_random_streams()
    bench.fit(resumed)
    assert resumed.session.parts[0].seen == ["attach", "restore", "begin"]
    assert codec.encode(comparable(resumed)) == codec.encode(comparable(whole))


def comparable(trainer: Any) -> State:
    """A resume state without clocks."""
    state = trainer.resume_state()
    state["trainer"] = {name: value for name, value in state["trainer"].items() if not name.endswith("seconds")}
    return state


@pytest.mark.parametrize("storage", slow_but(["compact"], ["compact", "masked"]))
@pytest.mark.parametrize("model", slow_but(["BPR"], ["BPR", "RecVAE", "KGAT"]))
def test_a_checkpoint_has_no_trace_of_a_part(model: str, storage: str, tiny_data: Path, tmp_path: Path) -> None:
    """Plain RecBole loads model and optimizer, and trains on."""
    bench = bench_of(model, tiny_data)
    trainer = head_trainer(bench, bench.masks(0.4), storage, keep_moments=True)
    bench.fit(trainer)
    count = sum(len(group["params"]) for group in trainer.optimizer.param_groups)
    (tmp_path / "ticket.pth").write_bytes(trainer.files.checkpoint)
    checkpoint = torch.load(BytesIO(trainer.files.checkpoint), weights_only=False)
    assert not [name for name in checkpoint["state_dict"] if "head" in name]
    groups = checkpoint["optimizer"]["param_groups"]
    assert sum(len(group["params"]) for group in groups) == count - 2
    assert set(checkpoint["optimizer"]["state"]) <= {number for group in groups for number in group["params"]}
    plain = build(model, {**config_for(model, tiny_data), "checkpoint_dir": str(tmp_path), "epochs": 6})
    assert list(checkpoint["state_dict"]) == list(plain.model.state_dict())
    if model == "RecVAE":  # its optimizer of the moment is the decoder's, RecBole's reload expects that of all weights
        return
    plain.trainer.resume_checkpoint(tmp_path / "ticket.pth")
    assert plain.trainer.start_epoch == checkpoint["epoch"] + 1
    plain.trainer.fit(plain.train_data, plain.valid_data, saved=False, show_progress=False)


def test_added_losses_are_added_once_and_logged_by_name(tiny_data: Path, caplog: pytest.LogCaptureFixture) -> None:
    logging.disable(logging.NOTSET)
    caplog.set_level(logging.INFO)
    bench = bench_of("BPR", tiny_data)
    trainer = head_trainer(bench, None, "masked")
    model, part = trainer.model, trainer.session.parts[0]
    batch = next(iter(bench.train))
    own = float(bench.plain_model().calculate_loss(batch))
    assert float(model.calculate_loss(batch)) == pytest.approx(own + float(part.losses(model, batch)["head"]))
    trainer._added, trainer.tensorboard = {}, MagicMock()
    trainer._train_epoch(bench.train, 0)
    [line] = [record.message for record in caplog.records if "added losses" in record.message]
    assert line.startswith("epoch 0 added losses: head ")
    assert trainer.tensorboard.add_scalar.call_args.args[0] == "Loss/head"


def test_several_losses_take_an_added_one_into_the_first(tiny_data: Path) -> None:
    """NCL's trainer drops the last of its losses while it warms up."""
    bench = bench_of("NCL", tiny_data)
    trainer = head_trainer(bench, None, "masked")
    trainer.model.e_step()
    batch = next(iter(bench.train))
    losses = trainer.model.calculate_loss(batch)
    trainer.model.added_losses = None
    own = trainer.model.calculate_loss(batch)
    assert len(losses) == len(own) > 1
    assert float(losses[0]) != float(own[0])
    assert [float(loss) for loss in losses[1:]] == [float(loss) for loss in own[1:]]


@pytest.mark.slow
def test_knowledge_passes_have_no_added_loss(tiny_data: Path) -> None:
    """MKR recommends by a loss of another name, which gets it; its graph's loss does not."""
    bench = bench_of("MKR", tiny_data)
    trainer = head_trainer(bench, None, "masked")
    bench.fit(trainer)
    part, passes = trainer.session.parts[0], len(bench.train.general_dataloader)
    assert part.batches > 4 * passes  # steps of both kinds
    called = []
    trainer.model.added_losses = lambda batch: called.append(batch) or {}
    bench.train.set_mode(recbole_trainer.KGDataLoaderState.RSKG)
    batch = next(iter(bench.train))
    trainer.model.calculate_rs_loss(batch)
    trainer.model.calculate_kg_loss(batch)
    assert len(called) == 1


@pytest.mark.parametrize("storage", slow_but(["compact"], ["compact", "masked"]))
@pytest.mark.parametrize("pruner", slow_but(["imp"], ["imp", "dsl"]))
def test_a_part_beside_pruners(
    pruner: str, storage: str, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in ticket 1 and continued: the same masks, weights and journal, and the head's report in every line."""
    monkeypatch.setattr(Workshop, "parts", lambda self: (Head(),))
    settings = {**config_for("BPR", tiny_data), "epochs": 4, "train_batch_size": 160, "pruner": pruner}
    settings.update(prune_storage=storage, prune_target_sparsity=0.6)
    settings.update({"prune_update_interval": 3} if pruner == "dsl" else {"prune_rounds": 1})
    whole = run_recbole_prune("BPR", DATASET, config_dict={**settings, "output_dir": str(tmp_path / "whole")})
    assert all(ticket["head_batches"] > 0 for ticket in whole["tickets"])
    before_epoch = ticket_training.TicketTraining.before_epoch

    def killed(self: Any, epoch: int, trainer: Any) -> None:
        before_epoch(self, epoch, trainer)
        if self.plan.ticket == 1 and epoch == 2:
            raise KeyboardInterrupt

    killed_settings = {**settings, "output_dir": str(tmp_path / "killed")}
    monkeypatch.setattr(ticket_training.TicketTraining, "before_epoch", killed)
    with pytest.raises(KeyboardInterrupt):
        run_recbole_prune("BPR", DATASET, config_dict=killed_settings)
    monkeypatch.setattr(ticket_training.TicketTraining, "before_epoch", before_epoch)
    again = run_recbole_prune("BPR", DATASET, config_dict=killed_settings)
    for one, other in zip(whole["tickets"], again["tickets"]):
        assert without_clocks(one) == without_clocks(other)
    states = []
    for result in (whole, again):
        experiment = experiment_of(result, "BPR", settings)
        states.append(experiment.checkpoint_of(experiment.tickets[1])["state_dict"])
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_every_optimizer_has_the_group(tiny_data: Path) -> None:
    bench = bench_of("RecVAE", tiny_data)
    trainer = head_trainer(bench, None, "masked")
    wanted = set(map(id, trainer.session.parts[0].parameters().values()))
    for optimizer in optimizers_of(trainer).values():
        assert {id(p) for p in optimizer.param_groups[-1]["params"]} == wanted


def test_names_must_differ(tiny_data: Path) -> None:
    bench = bench_of("BPR", tiny_data)
    with pytest.raises(ValueError, match="differ in name, got head, head"):
        bench.trainer(bench.model(), parts=(Head(), Head()))

    class Other(Head):
        name = "other"

    parts = Head(), Other()
    model = bench.model()
    for part in parts:
        part.attach(model)
    trainer = bench.trainer(model, parts=parts)
    with pytest.raises(ValueError, match="other gives a loss a name that is taken: head"):
        trainer.model.calculate_loss(next(iter(bench.train)))


def test_defaults_do_nothing(tiny_data: Path) -> None:
    """A part that says nothing changes nothing, bit for bit."""

    class Silent(Part):
        name = "silent"

    bench = bench_of("BPR", tiny_data)
    alone = bench.trainer(bench.model(bench.masks()))
    bench.fit(alone)
    accompanied = bench.trainer(bench.model(bench.masks()), parts=(Silent(),))
    bench.fit(accompanied)
    for name, value in alone.model.state_dict().items():
        assert torch.equal(value, accompanied.model.state_dict()[name])
    assert accompanied.history == alone.history


class Weighs(Part):
    """Weighs the model's own loss, which it looks at, and adds a constant."""

    name = "weighs"

    def __init__(self, factor: float | torch.Tensor) -> None:
        self.factor, self.seen = factor, None

    def losses(self, model: Any, interaction: Any) -> Mapping[str, torch.Tensor]:
        self.seen = model.loss_in_work
        self.own_loss = self.factor  # as of this batch
        return {"weighs": torch.tensor(2.0)}


@pytest.mark.parametrize("factor", [0.0, 0.25, torch.tensor(3.0)])
def test_a_part_weighs_the_own_loss(factor: float | torch.Tensor, tiny_data: Path) -> None:
    bench = Bench("BPR", tiny_data)
    part, model = Weighs(factor), bench.model()
    batch = next(iter(bench.train))
    own = model.calculate_loss(batch)
    bench.trainer(model, parts=[part])
    assert model.calculate_loss(batch).item() == pytest.approx(float(factor) * own.item() + 2)
    assert torch.equal(part.seen, own) and part.seen.requires_grad
    assert model.loss_in_work is None and "loss_in_work" not in vars(model)


def test_every_one_of_several_own_losses_is_weighed_and_what_is_left_out_may_be_infinite(tiny_data: Path) -> None:
    model = Bench("BPR", tiny_data).model()
    model.added_losses, model.own_loss = lambda batch: {"one": torch.tensor(1.0)}, lambda: 0.5
    assert model.with_added_losses((torch.tensor(2.0), torch.tensor(4.0)), None) == (2.0, 2.0)
    model.own_loss = lambda: 0.0
    assert model.with_added_losses(torch.tensor(torch.inf), None) == 1.0


def test_gradients_of_an_earlier_backward_pass_are_not_recorded(tiny_data: Path) -> None:
    bench = Bench("BPR", tiny_data)
    batch, sums = next(iter(bench.train)), []
    for storage in ("masked", "compact"):
        for twice in (False, True):
            model, recorder = bench.model(bench.masks(), storage), GradientRecorder()
            model.record_gradients(recorder)
            loss = model.calculate_loss(batch)
            if twice:
                torch.autograd.grad(3 * loss, list(model.parameters()), retain_graph=True)
                model.forget_recorded_gradients()
            loss.backward()
            recorder.end_batch()
            sums.append(recorder.take("item_embedding.weight").values.sum().item())
    assert sums == pytest.approx([sums[0]] * 4) and sums[0] > 0
