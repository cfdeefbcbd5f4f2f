"""What trains along with a ticket: a part that moves masks, adds losses, brings parameters or watches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch
from torch import nn

if TYPE_CHECKING:
    from recbole.data.interaction import Interaction

    from recbole_prune.masking.masks import MaskSet
    from recbole_prune.training.model import MaskAware

State = dict[str, Any]


class Training(Protocol):
    """What a mask-aware trainer offers to those who look at it from outside.

    Attributes:
        model: the mask-aware model.
        epochs: epochs of the whole training.
        epoch: the one in work, 0 for the first.
        epochs_done: epochs trained.
        history: (epochs trained, validation score) of every validation.
        valid_metric: what the score is, for example ``mrr@10``.
        valid_metric_bigger: whether a higher one is better.
    """

    model: MaskAware
    epochs: int
    epoch: int
    epochs_done: int
    history: list[tuple[int, float]]
    valid_metric: str
    valid_metric_bigger: bool

    def resume_state(self) -> State:
        """Everything that the epochs to come depend on."""

    def rewind_state(self) -> State:
        """What a rewound ticket starts from."""


class Part:
    """One thing that trains along; every method does nothing unless a subclass says otherwise.

    In one training the trainer calls, in this order: :meth:`attach` on the newly built model, :meth:`parameters` for
    every optimizer, :meth:`restore` where a killed training continues, :meth:`begin`; then :meth:`losses` in every
    batch, :meth:`before_step`, :meth:`after_step` or :meth:`step_left_out`, :meth:`end_epoch`,
    :meth:`checkpoint_saved`; :meth:`state` and :meth:`point_saved` for resume points and :meth:`report` for the
    journal. What :meth:`legacy` leaves then, :meth:`inherit` takes over in the next ticket, behind :meth:`attach`.

    Attributes:
        name: unique among the parts of a training; it names the part's state in resume points.
        own_loss: factor on the model's own recommendation loss; 0 leaves it out. Read after :meth:`losses`.
    """

    name: ClassVar[str]
    own_loss: float | torch.Tensor = 1.0

    def attach(self, model: MaskAware) -> None:
        """Change the newly built model, before weights are loaded and masks are worn."""

    def inherit(self, legacy: Mapping[str, torch.Tensor]) -> None:
        """Start from what the same part of the ticket before left; empty where there is none."""

    def legacy(self) -> Mapping[str, torch.Tensor]:
        """What the same part of the next ticket starts from."""
        return {}

    def parameters(self) -> Mapping[str, nn.Parameter]:
        """Parameters to train beside the model's, by name.

        They get a group of their own in every optimizer, stand in resume points and in no checkpoint.
        """
        return {}

    def optimizer_settings(self) -> Mapping[str, float]:
        """What that group has other than the optimizer: ``lr``, ``weight_decay``, ``eps``."""
        return {}

    def begin(self, trainer: Training) -> None:
        """Called before the first epoch that this process trains, after :meth:`restore`."""

    def losses(self, model: MaskAware, interaction: Interaction) -> Mapping[str, torch.Tensor]:
        """Scalars by name that are added to the recommendation loss of a batch, weights included.

        That loss, with its graph, is ``model.loss_in_work`` meanwhile.
        """
        return {}

    def before_step(self, trainer: Training) -> None:
        """Called before every optimizer step, which a loss scaler may still leave out."""

    def after_step(self, trainer: Training) -> None:
        """Called after every optimizer step; pruned entries are 0 again."""

    def step_left_out(self) -> None:
        """Called instead of :meth:`after_step` where a loss scaler left the step out: gradients were not finite."""

    def end_epoch(self, trainer: Training) -> None:
        """Called after every epoch, before its validation."""

    def checkpoint_saved(self, trainer: Training, data: bytes) -> None:
        """Called when a checkpoint was written: after every validation that is the best so far.

        Args:
            trainer: ``trainer.history`` ends with the score, where there was a validation.
            data: RecBole's checkpoint.
        """

    def state(self) -> State:
        """What a resume point needs beside parameters: plain values, arrays and tensors."""
        return {}

    def restore(self, state: State, device: torch.device) -> None:
        """Undo :meth:`state`; masks and parameters are put back by the trainer."""

    def point_saved(self) -> None:
        """Called when the resume point with the present :meth:`state` is on disk, in the place of the one before."""

    def report(self, masks: MaskSet | None) -> dict[str, Any]:
        """Fields for the ticket's journal line.

        Args:
            masks: those of the ticket's checkpoint, None where the ticket has none.
        """
        return {}
