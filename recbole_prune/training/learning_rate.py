"""Learning-rate schedules over the epochs of a training."""

from __future__ import annotations

from math import cos, pi


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
