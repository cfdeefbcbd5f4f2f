"""The training of one ticket: model and trainer set up as planned, and resume points."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from logging import getLogger
from typing import Any, ClassVar

import torch

from recbole_prune.disk.seals import sha256
from recbole_prune.disk.user_values import Arrays
from recbole_prune.errors import ConfigError
from recbole_prune.masking.scope import Scope
from recbole_prune.metering.windows import Meter
from recbole_prune.ranks import group
from recbole_prune.run import measuring, user_values
from recbole_prune.run.journal_line import finish
from recbole_prune.run.progress import Progress
from recbole_prune.run.states import StateRecorder
from recbole_prune.run.store import REWIND, SERIES, RunFolder
from recbole_prune.run.ticket import Plan, Ticket
from recbole_prune.run.workshop import Workshop
from recbole_prune.training import codec
from recbole_prune.training import state as states
from recbole_prune.training.learning_rate import LearningRate
from recbole_prune.training.model import MaskAware
from recbole_prune.training.parts import Part, State, Training
from recbole_prune.training.replicas import masks_of_first
from recbole_prune.training.session import Files, Session
from recbole_prune.training.tracking import tracked
from recbole_prune.training.trainer import MaskAwareTrainer


class TicketTraining(Files):
    """One planned ticket.

    Args:
        workshop: data and models.
        folder: where mask, checkpoint, resume points and the journal line go.
        plan: masks, starting weights and what trains along.
        scope: the targets.
        dense: ticket 0 once there is one: the verdict compares with it, late rewinding starts from its state.
        progress: shows how the training goes on.
        meter: measures epochs, validations and the test.
        legacy: what the parts of the ticket before left, by their names.

    Attributes:
        stage: which of the trainings of one number it is: resume points are of one stage only.
        trainer: RecBole's trainer for the model, mask-aware; nothing is trained yet.
        method: fields that the ticket's journal line gets beside the common ones.
        measured: memory, latency and energy for it.
        values: of users, in the validation at the best epoch and in the test, by the names of their file.
    """

    stage: ClassVar[str] = "ticket"

    def __init__(
        self,
        workshop: Workshop,
        folder: RunFolder,
        plan: Plan,
        *,
        scope: Scope,
        dense: Ticket | None = None,
        progress: Progress | None = None,
        meter: Meter | None = None,
        legacy: Mapping[str, Mapping[str, torch.Tensor]] | None = None,
    ) -> None:
        self.workshop = workshop
        self.folder = folder
        self.plan = plan if plan.masks is None else replace(plan, masks=masks_of_first(plan.masks))
        self.legacy = legacy or {}
        self.scope = scope
        self.dense = dense
        self.progress = progress or Progress(enabled=False)
        self.meter = meter or Meter()
        self.settings = workshop.config.settings
        self.method = dict(plan.method) if plan.taught else {**plan.method, "taught": False}
        self.checkpoint_file = f"checkpoints/ticket-{plan.ticket:03d}.pth"
        self.checkpoint_sha256 = ""
        self.measured: dict[str, Any] = {}
        self.values: Arrays = {}
        self.parts = (*workshop.parts(), *plan.parts, *self._recorder())
        self._keeps_state = False
        self.trainer = self._build_trainer()

    @property
    def name(self) -> str:
        """What is trained, for messages."""
        return f"ticket {self.plan.ticket}"

    @property
    def first_epoch(self) -> int:
        """The epoch at which this training begins."""
        return int(self.settings.prune_rewind_epoch) if self._rewinds_late else 0

    @property
    def _rewinds_late(self) -> bool:
        return self.plan.rewind == "late" and self.plan.ticket > 0

    def _recorder(self) -> tuple[Part, ...]:
        """What keeps states of the dense model's training, where such are asked for."""
        count = self.settings.distill_record_states
        wanted = count and self.plan.ticket == 0 and self.plan.train
        return (StateRecorder(self.folder, 0, count),) if wanted else ()

    def run(self) -> Ticket:
        """Train and test, or continue to; write mask, checkpoint and journal line."""
        plan, trainer, workshop = self.plan, self.trainer, self.workshop
        kept = plan.masks.kept if plan.masks is not None else int(plan.kept or 0)
        sparsity = 1 - kept / self.scope.prunable
        getLogger().info(f"ticket {plan.ticket}: sparsity {sparsity:.4f}, {kept} entries kept")
        self.progress.ticket_begins(plan.ticket, sparsity, workshop.steps_per_epoch)
        valid = None
        self.meter.begin()
        if plan.train:
            self._connect_state()
        memory = measuring.PeakMemory(trainer.device)
        series = f"ticket-{plan.ticket:03d}-sparsity-{sparsity:.4f}"
        with tracked(trainer, self.folder.subfolder(SERIES) / series, self.folder.path.name):
            if plan.train:
                _, valid = trainer.fit(workshop.train_data, workshop.select_data, saved=True, show_progress=False)
            if valid is None:  # a pretraining stage, no validation data, or nothing to train
                if not trainer.best_epoch:
                    trainer._save_checkpoint(trainer.epochs_done - 1)
                valid = trainer.evaluate(workshop.select_data, load_best_model=True)
                trainer.best_values = dict(trainer.user_values.last)
            memory.note("training")
            self.progress.evaluation_begins("test")
            test, popularity = trainer.evaluate_by_popularity(workshop.test_data, workshop.popularity)
            memory.note("ranking")
        self.measured["peak_memory"] = memory.peaks
        if popularity is not None:
            self.method["popularity"] = popularity
        return Ticket.from_record(group.first(lambda: self._finish(valid, test or {}).to_record()))

    def _finish(self, valid: Mapping[str, float], test: Mapping[str, float]) -> Ticket:
        """Measure, and write what stays."""
        trainer, workshop = self.trainer, self.workshop
        self._keep_values()
        ranking = measuring.ranking(trainer, workshop.test_data)
        lists = workshop.test_data or workshop.select_data
        latency = measuring.recommend(trainer, lists, self.meter, self.settings.measure_latency_users)
        self.measured.update(ranking=ranking, latency=latency, energy=self.meter.record())
        return finish(self, valid, test)

    def _keep_values(self) -> None:
        """Keep what each user scored in the validation at the best epoch, and in the test that was just made."""
        trainer, workshop, number = self.trainer, self.workshop, self.plan.ticket
        on_test = trainer.user_values.last if workshop.test_data else None
        self.values = {
            **user_values.arrays_of(number, "valid", trainer.best_values, workshop.select_data),
            **user_values.arrays_of(number, "test", on_test, workshop.test_data),
        }

    def _build_trainer(self) -> MaskAwareTrainer:
        plan, settings = self.plan, self.settings
        model = self._build_model()
        session = Session(
            name=self.name,
            loaders=self.workshop.loaders,
            files=self,
            parts=self.parts,
            learning_rate=LearningRate(
                settings.prune_lr_schedule,
                settings.prune_lr_warmup,
                settings.prune_lr_floor,
                at_end=plan.rewind == "none" and plan.ticket > 0,
            ),
            fused=settings.prune_fused,
            keep_moments=settings.prune_keep_moments,
            watcher=self.progress,
            meter=self.meter,
        )
        changes = plan.changes if plan.epochs is None else {**plan.changes, "epochs": plan.epochs}
        trainer = self.workshop.trainer(model, session, changes)
        trainer.saved_model_file = str(self.folder.path / self.checkpoint_file)
        return trainer

    def _build_model(self) -> MaskAware:
        """A newly built model with the weights and masks of the plan."""
        plan, workshop = self.plan, self.workshop
        model = workshop.build_model(plan.changes)
        model.whole_units = plan.whole_units
        if plan.whole_units:  # what is attached is as wide as what is left
            self._start(model)
        for part in self.parts:
            part.attach(model)
            part.inherit(self.legacy.get(part.name, {}))
        if not plan.whole_units:
            self._start(model)
        return model

    def _start(self, model: MaskAware) -> None:
        """Give a model the weights that the plan says, and its masks."""
        plan = self.plan
        if plan.weights is not None:
            model.load_trained(plan.weights, plan.masks)
            return
        if plan.rewind == "reinit":
            fresh = self.workshop.fresh_weights(7919 * (plan.ticket + 1), plan.changes)
            states.copy_into(states.weights_of(model), fresh)
        elif self._rewinds_late:
            states.copy_into(states.weights_of(model), self._rewind_state()["weights"])
        model.set_masks(plan.masks)

    def _rewind_state(self) -> State:
        """The dense run's state before epoch ``prune_rewind_epoch``.

        Raises:
            ConfigError: the dense training stopped before that epoch.
        """
        digest = self.dense.method.get("rewind_sha256") if self.dense is not None else None
        if digest is None:
            epochs = self.dense.epochs if self.dense is not None else 0
            raise ConfigError(
                f"prune_rewind_epoch={self.settings.prune_rewind_epoch}: the dense training stopped after "
                f"{epochs} epochs; choose a number below {epochs}"
            )
        state: State = codec.decode(self.folder.read(REWIND, digest))
        return state

    # ---- what the trainer keeps ------------------------------------------------------------------------------------

    def save_checkpoint(self, data: bytes) -> None:
        """Write the ticket's checkpoint."""
        self.checkpoint_sha256 = self.folder.write(self.checkpoint_file, data)

    def load_checkpoint(self) -> bytes:
        """The ticket's checkpoint, hash-checked."""
        return self.folder.read(self.checkpoint_file, self.checkpoint_sha256)

    def before_epoch(self, epoch: int, trainer: Training) -> None:
        """Write the state to rewind to, and resume points."""
        if not self._keeps_state:
            return
        settings = self.settings
        if self.plan.ticket == 0 and settings.prune_rewind == "late" and epoch == settings.prune_rewind_epoch:
            self.method["rewind_epoch"] = epoch
            self.method["rewind_sha256"] = self.folder.write(REWIND, codec.encode(trainer.rewind_state()))
        if epoch and epoch % settings.prune_save_interval == 0:
            meter = self.meter.state()
            extra = {"checkpoint_sha256": self.checkpoint_sha256, "method": self.method, "meter": meter}
            extra.update(masks_sha256=self._digest_of_masks, stage=self.stage)
            self.folder.save_resume(self.plan.ticket, epoch, codec.encode(trainer.resume_state()), extra)
            for part in self.parts:
                part.point_saved()

    @cached_property
    def _digest_of_masks(self) -> str | None:
        """Of those that the plan says."""
        return None if self.plan.masks is None else sha256(self.plan.masks.to_bytes())

    def _connect_state(self) -> None:
        """From now on keep states, and start from what is found on disk."""
        session, plan = self.trainer.session, self.plan
        self._keeps_state = True
        if self._rewinds_late:
            session.start = self._rewind_state()
            self.trainer.start_epoch = self.first_epoch
        found = self.folder.load_resume(plan.ticket)
        if found is not None and found[0].get("stage", TicketTraining.stage) != self.stage:
            found = None
        if found is not None and found[0].get("masks_sha256", self._digest_of_masks) != self._digest_of_masks:
            # scores of units by gradients differ in their last bits from run to run on a GPU
            getLogger("recbole_prune").warning(f"{self.name} begins again: its mask came out otherwise")
            self.folder.drop_resume()
        elif found is not None:
            point, data = found
            getLogger("recbole_prune").info(f"{self.name} continues after epoch {point['epoch']}")
            session.start = codec.decode(data)
            self.trainer.start_epoch = point["epoch"]
            self.checkpoint_sha256 = point["checkpoint_sha256"]
            self.method.update(point["method"])
            self.meter.restore(point.get("meter"))  # older versions measured nothing
