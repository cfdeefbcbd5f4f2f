"""The training of one ticket: model and trainer set up as planned, resume points, the line in the journal."""

from __future__ import annotations

from math import isfinite
from typing import TYPE_CHECKING, Any

import torch
from recbole.utils import calculate_valid_score, get_trainer

from recbole_prune.errors import TrainingError
from recbole_prune.masking.masks import MaskSet
from recbole_prune.run.ticket import Plan, Ticket
from recbole_prune.run.verdict import judge
from recbole_prune.training import codec
from recbole_prune.training import state as states
from recbole_prune.training.trainer import Session, mask_aware_trainer

if TYPE_CHECKING:
    from recbole_prune.run.experiment import Experiment

REWIND_FILE = "rewind.safetensors"


def give_weights(model: Any, weights: dict[str, torch.Tensor], masks: MaskSet | None) -> None:
    """Load trained weights into a mask-aware model and put masks on."""
    model.set_masks(None)
    model.load_state_dict(weights)
    model.set_masks(masks)
    if hasattr(model, "update_attentive_A"):
        with torch.no_grad():  # KGAT's graph follows from its weights but is not saved with them
            model.update_attentive_A()


class TicketTraining:
    """One planned ticket.

    Args:
        experiment: data, scope, folder and earlier tickets.
        plan: masks and starting weights.

    Attributes:
        trainer: RecBole's trainer for the model, mask-aware; nothing is trained yet.
        method: fields that the ticket's journal line gets beside the common ones.
        received: targets that have received a gradient (watched for ticket 0 only).
    """

    def __init__(self, experiment: Experiment, plan: Plan) -> None:
        self.experiment = experiment
        self.plan = plan
        self.folder = experiment.folder
        self.settings = experiment.settings
        self.config = experiment.config.with_changes(**plan.changes) if plan.changes else experiment.config
        self.method = dict(plan.method)
        self.checkpoint_file = f"checkpoints/ticket-{plan.ticket:03d}.pth"
        self.checkpoint_sha256 = ""
        self.trainer = self._build_trainer()
        watched = [target.name for target in experiment.scope] if plan.ticket == 0 else []
        self.received = self.trainer.model.watch_gradients(watched)

    @property
    def first_epoch(self) -> int:
        """The epoch at which this training begins."""
        return int(self.settings.prune_rewind_epoch) if self._rewinds_late else 0

    @property
    def _rewinds_late(self) -> bool:
        return self.plan.rewind == "late" and self.plan.ticket > 0

    def run(self) -> Ticket:
        """Train and test, or continue to; write mask, checkpoint and journal line."""
        plan, trainer, experiment = self.plan, self.trainer, self.experiment
        kept = plan.masks.kept if plan.masks is not None else int(plan.kept or 0)
        sparsity = 1 - kept / experiment.scope.prunable
        experiment.logger.info(f"ticket {plan.ticket}: sparsity {sparsity:.4f}, {kept} entries kept")
        experiment.progress.ticket_started(plan.ticket, sparsity)
        valid = None
        if plan.train:
            self._connect_state()
            valid = self.fit()
        if valid is None:  # a pretraining stage, no validation data, or nothing to train
            if not trainer.best_epoch:
                trainer._save_checkpoint(trainer.epochs_done - 1)
            valid = trainer.evaluate(experiment.select_data, load_best_model=True)
        show = self.config["show_progress"]
        test = trainer.evaluate(experiment.test_data, load_best_model=True, show_progress=show)
        return self._finish(self._finite(valid), self._finite(test))

    def fit(self) -> Any:
        """RecBole's training loop; returns its best validation result."""
        experiment = self.experiment
        _, valid = self.trainer.fit(
            experiment.train_data, experiment.select_data, saved=True, show_progress=self.config["show_progress"]
        )
        return valid

    def _build_trainer(self) -> Any:
        plan, settings = self.plan, self.settings
        model = self._build_model()
        session = Session(
            ticket=plan.ticket,
            loaders=self.experiment.loaders,
            watch=states.AttributeWatch(model),
            save_checkpoint=self._save_checkpoint,
            load_checkpoint=lambda: self.folder.read(self.checkpoint_file, self.checkpoint_sha256),
            save_interval=settings.prune_save_interval,
            report=self.experiment.progress.epoch_done,
            learning_rate_schedule=settings.prune_lr_schedule,
            warmup=settings.prune_lr_warmup,
            learning_rate_floor=settings.prune_lr_floor,
            fused=settings.prune_fused,
            dynamics=plan.dynamics,
            fixed_progress=plan.rewind == "none" and plan.ticket > 0,
        )
        trainer_class = mask_aware_trainer(get_trainer(self.config["MODEL_TYPE"], self.config["model"]))
        trainer = trainer_class(self.config, model, session)
        trainer.saved_model_file = str(self.folder.path / self.checkpoint_file)
        return trainer

    def _build_model(self) -> Any:
        """A newly built model with the weights and masks of the plan."""
        plan, experiment = self.plan, self.experiment
        model = experiment.build_model(self.config)
        if plan.prepare is not None:
            plan.prepare(model)
        if plan.weights is not None:
            give_weights(model, plan.weights, plan.masks)
            return model
        if plan.rewind == "reinit":
            states.set_weights(model, experiment.fresh_weights(self.config, 7919 * (plan.ticket + 1)))
        elif self._rewinds_late:
            states.set_weights(model, experiment.rewind_state()["weights"])
        model.set_masks(plan.masks)
        return model

    def _save_checkpoint(self, data: bytes) -> None:
        self.checkpoint_sha256 = self.folder.write(self.checkpoint_file, data)

    def _connect_state(self) -> None:
        """Write resume points, keep the state to rewind to, and take over what is found on disk."""
        session, plan = self.trainer.session, self.plan
        session.save_state = self._save_state
        if plan.ticket == 0 and self.settings.prune_rewind == "late":
            session.keep_state, session.keep_epoch = self._keep_state, self.settings.prune_rewind_epoch
        if self._rewinds_late:
            session.rewind = self.experiment.rewind_state()
            self.trainer.start_epoch = self.first_epoch
        found = self.folder.load_resume(plan.ticket)
        if found is not None:
            point, data = found
            self.experiment.logger.info(f"ticket {plan.ticket} continues at epoch {point['epoch']}")
            session.resume, session.rewind = codec.decode(data), None
            self.trainer.start_epoch = point["epoch"]
            self.checkpoint_sha256 = point["checkpoint_sha256"]
            self.received.update(point["received"])
            self.method.update(point["method"])

    def _save_state(self, epoch: int, state: dict[str, Any]) -> None:
        extra = {
            "checkpoint_sha256": self.checkpoint_sha256,
            "received": sorted(self.received),
            "method": self.method,
        }
        self.folder.save_resume(self.plan.ticket, epoch, codec.encode(state), extra)

    def _keep_state(self, epoch: int, state: dict[str, Any]) -> None:
        self.method["rewind_epoch"] = epoch
        self.method["rewind_sha256"] = self.folder.write(REWIND_FILE, codec.encode(state))

    def _finite(self, metrics: Any) -> dict[str, float]:
        """Metrics as plain floats.

        Raises:
            TrainingError: one is NaN or infinite.
        """
        plain = {name: float(value) for name, value in metrics.items()}
        for name, value in plain.items():
            if not isfinite(value):
                raise TrainingError(
                    f"ticket {self.plan.ticket}: the metric {name} is {value}; check the data, or lower learning_rate"
                )
        return plain

    def _finish(self, valid: dict[str, float], test: dict[str, float]) -> Ticket:
        """Write mask and journal line."""
        plan, trainer, experiment = self.plan, self.trainer, self.experiment
        masks, untrained = plan.masks, []
        if plan.dynamics is not None:
            masks = trainer.best_masks
            self.method.update(plan.dynamics.report(masks))
        if plan.ticket == 0 and masks is not None:
            untrained = [target.name for target in experiment.scope if target.name not in self.received]
            experiment.drop_untrained(untrained)
            masks = masks.restricted_to(experiment.scope)
        kept = masks.kept if masks is not None else int(plan.kept or 0)
        score = float(calculate_valid_score(valid, self.config["valid_metric"].lower()))
        dense = experiment.tickets.get(0)
        wins_metric = wins = relative = None
        if dense is not None:
            wins_metric, wins, relative = judge(score, trainer.best_epoch, trainer.history, dense, experiment.bigger)
        mask_file = mask_sha256 = None
        if masks is not None:
            mask_file = f"masks/ticket-{plan.ticket:03d}.safetensors"
            mask_sha256 = self.folder.write(mask_file, masks.to_bytes())
        ticket = Ticket(
            ticket=plan.ticket,
            sparsity=1 - kept / experiment.scope.prunable,
            kept=kept,
            prunable=experiment.scope.prunable,
            parameters=experiment.scope.parameters,
            epochs=trainer.epochs_done - self.first_epoch if plan.train else 0,
            best_epoch=trainer.best_epoch if plan.train else 0,
            valid=valid,
            test=test,
            valid_score=score,
            wins_metric=wins_metric,
            wins=wins,
            train_seconds=round(trainer.train_seconds, 3),
            eval_seconds=round(trainer.eval_seconds, 3),
            seed=self.config["seed"],
            mask_file=mask_file,
            mask_sha256=mask_sha256,
            checkpoint_file=self.checkpoint_file,
            checkpoint_sha256=self.checkpoint_sha256,
            history=[list(point) for point in trainer.history],
            relative_epochs=relative,
            untrained=untrained,
            method={**self.method, "changes": plan.changes} if plan.changes else self.method,
        )
        self.folder.append_ticket(ticket.to_record())
        self.folder.drop_resume()
        return ticket
