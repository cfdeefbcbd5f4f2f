"""What is written when the training of a ticket has ended: its mask, what parts leave, and its line in the journal."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import Any, Protocol

from recbole.utils import calculate_valid_score

from recbole_prune.disk.user_values import Arrays
from recbole_prune.masking.masks import MaskSet
from recbole_prune.masking.scope import Scope
from recbole_prune.run import measuring, user_values
from recbole_prune.run.smaller_class import write_smaller
from recbole_prune.run.store import DISTILLATION, RunFolder
from recbole_prune.run.ticket import Plan, Ticket, defined_metrics
from recbole_prune.run.verdict import judge
from recbole_prune.run.workshop import Workshop
from recbole_prune.training import codec
from recbole_prune.training.parts import Part
from recbole_prune.training.state import optimizers_of
from recbole_prune.training.trainer import MaskAwareTrainer


class EndedTraining(Protocol):
    """What is asked of the training of a ticket; :class:`~recbole_prune.run.ticket_training.TicketTraining` is one."""

    workshop: Workshop
    folder: RunFolder
    plan: Plan
    scope: Scope
    dense: Ticket | None
    trainer: MaskAwareTrainer
    parts: tuple[Part, ...]
    method: dict[str, Any]
    measured: dict[str, Any]
    values: Arrays
    checkpoint_file: str
    checkpoint_sha256: str

    @property
    def first_epoch(self) -> int:
        """The epoch at which it began."""


def finish(training: EndedTraining, valid: Mapping[str, float], test: Mapping[str, float]) -> Ticket:
    """Write mask and journal line of a ticket whose training has ended.

    Args:
        training: the ticket's.
        valid, test: its metrics, NaN where the data do not define one.

    Raises:
        TrainingError: the metric that tickets are picked by is NaN or infinite.
    """
    plan, trainer, config = training.plan, training.trainer, training.workshop.config
    picked_by, name = config["valid_metric"].lower(), f"ticket {plan.ticket}"
    on_valid = defined_metrics(valid, f"{name}, validation data", picked_by)
    on_test = defined_metrics(test, f"{name}, test data")
    masks = plan.masks if trainer.best_masks is None else trainer.best_masks
    for part in training.parts:
        training.method.update(part.report(masks))
    kept = masks.kept if masks is not None else int(plan.kept or 0)
    score = float(calculate_valid_score(on_valid, picked_by))
    wins_metric = wins = relative = None
    if training.dense is not None:
        bigger = bool(config["valid_metric_bigger"])
        wins_metric, wins, relative = judge(score, trainer.best_epoch, trainer.history, training.dense, bigger)
    mask_file, mask_sha256 = _write_masks(training, masks)
    _write_legacy(training)
    if plan.whole_units and masks is not None:
        training.method.update(write_smaller(training.workshop, training.folder, plan.ticket, trainer, masks))
    checkpoint = training.folder.path / training.checkpoint_file
    small = None if trainer.model.shrunk is None else measuring.entries_of(trainer.model)
    weights = measuring.weights(training.scope, masks, kept, checkpoint, small=small)
    for optimizer in optimizers_of(trainer).values():
        optimizer.state.clear()  # room for the model that is built to be counted
    trainer.model.zero_grad(set_to_none=True)
    moved = bool(training.method.get("updates"))
    counted = measuring.macs(training.workshop, masks, plan.changes, plan.whole_units, moved)
    ticket = Ticket(
        ticket=plan.ticket,
        sparsity=1 - kept / training.scope.prunable,
        kept=kept,
        prunable=training.scope.prunable,
        parameters=training.scope.parameters,
        epochs=trainer.epochs_done - training.first_epoch if plan.train else 0,
        best_epoch=trainer.best_epoch if plan.train else 0,
        valid=on_valid,
        test=on_test,
        valid_score=score,
        wins_metric=wins_metric,
        wins=wins,
        train_seconds=round(trainer.train_seconds, 3),
        eval_seconds=round(trainer.eval_seconds, 3),
        seed=config["seed"],
        mask_file=mask_file,
        mask_sha256=mask_sha256,
        checkpoint_file=training.checkpoint_file,
        checkpoint_sha256=training.checkpoint_sha256,
        users_sha256=user_values.keep(training.folder, plan.ticket, training.values),
        history=[list(point) for point in trainer.history],
        relative_epochs=relative,
        measured={**weights, **counted, **training.measured},
        losses=[_finite(trainer.train_loss_dict[epoch]) for epoch in sorted(trainer.train_loss_dict)],
        method={**training.method, "changes": plan.changes} if plan.changes else training.method,
    )
    training.folder.append_ticket(ticket.to_record())
    training.folder.drop_resume()
    return ticket


def _finite(loss: float) -> float | None:
    """A loss that overflows in half precision leaves a step out and ends no training."""
    return float(loss) if isfinite(loss) else None


def _write_legacy(training: EndedTraining) -> None:
    """What parts leave to those of the next ticket, in a file that the journal line names."""
    left = {part.name: dict(part.legacy()) for part in training.parts if training.plan.train}
    if any(left.values()):
        file = f"{DISTILLATION}/ticket-{training.plan.ticket:03d}.safetensors"
        training.method["legacy"] = {"file": file, "sha256": training.folder.write(file, codec.encode(left))}


def _write_masks(training: EndedTraining, masks: MaskSet | None) -> tuple[str | None, str | None]:
    """Name and sha256 of the mask file; (None, None) where the ticket has no masks."""
    if masks is None:
        return None, None
    name = f"masks/ticket-{training.plan.ticket:03d}.safetensors"
    return name, training.folder.write(name, masks.to_bytes())
