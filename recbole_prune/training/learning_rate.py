"""Learning-rate schedules over the epochs of a training."""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, pi


@dataclass(frozen=True)
class LearningRate:
    """Factor on the learning rate of every optimizer, epoch by epoch.

    Attributes:
        schedule: ``constant``, ``linear`` or ``cosine``.
        warmup: epochs of linear warm-up.
        floor: fraction of the learning rate that decay ends at.
        at_end: hold the schedule at its end (training that continues after the schedule has run out).
    """

    schedule: str = "constant"
    warmup: int = 0
    floor: float = 0.0
    at_end: bool = False

    @property
    def is_constant(self) -> bool:
        """Whether the factor is 1 in every epoch."""
        return self.schedule == "constant" and not self.warmup

    def factor(self, epoch: int, epochs: int) -> float:
        """The factor in ``epoch`` (from 0) of ``epochs``."""
        return learning_rate_factor(
            self.schedule, epochs - 1 if self.at_end else epoch, epochs, self.warmup, self.floor
        )


def learning_rate_factor(schedule: str, epoch: int, epochs: int, warmup: int, floor: float = 0.0) -> float:
    """Factor on the learning rate in ``epoch`` (from 0) of ``epochs``.

    Linear warm-up over ``warmup`` epochs, then constant, linear or cosine decay towards the fraction ``floor``.
    """
    if epoch < warmup:
        return (epoch + 1) / (warmup + 1)
    progress = min(1.0, (epoch - warmup) / max(1, epochs - warmup))
    if schedule == "cosine":
        return floor + (1 - floor) * 0.5 * (1 + cos(pi * progress))
    return 1.0 - (1 - floor) * progress if schedule == "linear" else 1.0
