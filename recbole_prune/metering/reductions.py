"""By how much one cost is lower than another: energy, power and time apart, since energy is their product.

The papers' "power reduced by 66.67 %" is 75 W for 40 minutes after 75 W for 120: power is as it was, and energy and
time fell.
"""

from __future__ import annotations

from dataclasses import dataclass

JOULES_PER_WATT_HOUR = 3600.0


@dataclass(frozen=True)
class Cost:
    """What some work took; None where it is not known."""

    joules: float | None
    seconds: float | None

    @property
    def watts(self) -> float | None:
        """Mean power."""
        return self.joules / self.seconds if self.joules is not None and self.seconds else None

    def __add__(self, other: Cost) -> Cost:
        return Cost(_added(self.joules, other.joules), _added(self.seconds, other.seconds))


@dataclass(frozen=True)
class Reduction:
    """Shares by which a cost is lower, negative where it is higher: ``1 - energy = (1 - power) * (1 - time)``."""

    energy: float | None
    power: float | None
    time: float | None


def reduction(before: Cost, after: Cost) -> Reduction:
    """What ``after`` saves of ``before``; None where one of them is not known or ``before`` is 0."""
    return Reduction(
        lower_by(before.joules, after.joules),
        lower_by(before.watts, after.watts),
        lower_by(before.seconds, after.seconds),
    )


def lower_by(before: float | None, after: float | None) -> float | None:
    """The share of ``before`` that is gone; None where that says nothing."""
    return None if not before or after is None else 1 - after / before


def _added(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one + other
