"""What one training needs from outside of RecBole's trainer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from recbole_prune.metering.windows import Meter
from recbole_prune.training.learning_rate import LearningRate
from recbole_prune.training.parts import Part, State, Training

if TYPE_CHECKING:
    from recbole.data.dataloader import AbstractDataLoader


class Files:
    """Where a training keeps what has to outlive it; here in memory."""

    checkpoint: bytes = b""

    def save_checkpoint(self, data: bytes) -> None:
        """Keep the bytes of RecBole's checkpoint; called at every improvement."""
        self.checkpoint = data

    def load_checkpoint(self) -> bytes:
        """The bytes that were kept last."""
        return self.checkpoint

    def before_epoch(self, epoch: int, trainer: Training) -> None:
        """Called before every epoch but one that starts from a state: the moment for resume points."""


class Watcher:
    """Told how a training goes on; here nobody watches."""

    def epoch_begins(self, trainer: Training) -> None:
        """Before the first batch of ``trainer.epoch``."""

    def batch_done(self) -> None:
        """After a step of an optimizer."""

    def evaluation_begins(self, what: str) -> None:
        """Before a validation or a test, which ``what`` names."""

    def validated(self, trainer: Training) -> None:
        """After a validation; ``trainer.history`` has its score."""


@dataclass
class Session:
    """What one training needs from outside of RecBole's trainer.

    Attributes:
        name: what is trained, for messages.
        loaders: the dataloaders whose generators belong to the state; the first is the training data.
        files: keeps checkpoints and resume points.
        parts: what trains along.
        start: a state to start from: :meth:`Training.resume_state` of a killed training, or the random streams,
            data order and counters of a :meth:`Training.rewind_state`.
        learning_rate: factor on the learning rate, epoch by epoch.
        fused: use the fused form of the optimizer.
        keep_moments: checkpoints hold the optimizer's moments too.
        watcher: told about epochs, batches and validations.
        meter: measures epochs and validations.
    """

    name: str
    loaders: Sequence[AbstractDataLoader]
    files: Files = field(default_factory=Files)
    parts: Sequence[Part] = ()
    start: State | None = None
    learning_rate: LearningRate = field(default_factory=LearningRate)
    fused: bool = True
    keep_moments: bool = False
    watcher: Watcher = field(default_factory=Watcher)
    meter: Meter = field(default_factory=Meter)

    def __post_init__(self) -> None:
        names = [part.name for part in self.parts]
        if len(set(names)) < len(names):
            raise ValueError(f"parts of one training must differ in name, got {', '.join(names)}")
