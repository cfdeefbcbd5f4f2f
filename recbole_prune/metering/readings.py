"""Readings of meters, and the energy between two of them: counters that only grow, that wrap, and sampled power.

A number that cannot be had is None beside its reason, never 0: estimates and repaired values do not enter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

ABSENT, NO_PERMISSION, UNSUPPORTED = "absent", "no_permission", "unsupported"
READ_ERROR, GAP, STUCK, COUNTER_RESET = "read_error", "gap", "stuck", "counter_reset"
TOO_SHORT, DRIVER_RELOAD, CONTAMINATED = "window_too_short", "driver_reload", "contaminated"
# why there is no number
REASONS = (
    ABSENT, NO_PERMISSION, UNSUPPORTED, CONTAMINATED, TOO_SHORT, DRIVER_RELOAD, READ_ERROR, GAP, COUNTER_RESET, STUCK,
)  # fmt: skip
_STUCK_AFTER = 1.0  # seconds in which a counter that works has moved


class MeterError(Exception):
    """A meter that gives no number.

    Attributes:
        reason: one of :data:`REASONS`.
        detail: what was found, for the reader.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True)
class Reading:
    """What a meter showed at a time: the raw number in its own unit, or why there is none."""

    time: float
    raw: int | None
    reason: str | None = None


@dataclass(frozen=True)
class Energy:
    """Joules of a window, or None with the reason; how many readings were good and failed, and wraps among them."""

    joules: float | None
    reason: str | None = None
    good: int = 0
    failed: int = 0
    wraps: int = 0


# the energy between the first and the last of some readings
Rule = Callable[[Sequence[Reading]], Energy]


@dataclass(frozen=True)
class Channel:
    """One number of a meter: the part of the machine that it covers (gpu, cpu, dram), its name, its rule."""

    part: str
    name: str
    energy: Rule


class Source(Protocol):
    """What reads some channels at once.

    Attributes:
        method: ``nvml_counter``, ``nvml_sampling``, ``rapl`` or ``zeusd``.
        channels: what it reads, in the order of :meth:`read`.
        period: seconds between readings inside a window; None: at its edges only.
        flags: what is to be said beside its numbers.
        details: of the device, for the record.
    """

    method: str
    channels: Sequence[Channel]
    period: float | None
    flags: tuple[str, ...]
    details: dict[str, object]

    def read(self) -> list[Reading]:
        """A reading of every channel; nothing is raised."""

    def others(self) -> str | None:
        """Who else uses what is measured, in words; None if nobody is known to."""


def counted(readings: Sequence[Reading], per_joule: float, reset: str) -> Energy:
    """The energy of a counter that only grows between its first and its last reading.

    Args:
        readings: in the order of time; those between first and last say only whether it went back.
        per_joule: counter units in a joule.
        reset: the reason where it went back.
    """

    def step(before: _Good, after: _Good) -> _Step:
        growth = after.raw - before.raw
        return _Step(growth) if growth >= 0 else _Step(None, reset)

    return _summed(readings, step, per_joule)


def unwrapped(readings: Sequence[Reading], most: int | None, highest_power: float, per_joule: float) -> Energy:
    """The energy of a counter that starts again at 0 after ``most``, as RAPL's do.

    A drop is a wrap only where no more than ``highest_power`` watts explain it; what could not be read is not a wrap.

    Args:
        readings: in the order of time.
        most: the highest number that the counter shows; None if that is not known.
        highest_power: watts that the part cannot exceed.
        per_joule: counter units in a joule.
    """
    limit = None if most is None else most / per_joule / (2 * highest_power)

    def step(before: _Good, after: _Good) -> _Step:
        seconds, growth = after.time - before.time, after.raw - before.raw
        if limit is not None and seconds > limit:  # it may have wrapped twice
            return _Step(None, GAP)
        if growth >= 0:
            return _Step(growth)
        if most is None:
            return _Step(None, UNSUPPORTED)
        wrapped = growth + most
        possible = 0 <= wrapped <= highest_power * seconds * per_joule
        return _Step(wrapped, wraps=1) if possible else _Step(None, COUNTER_RESET)

    return _summed(readings, step, per_joule)


def sampled(readings: Sequence[Reading], per_watt: float, longest_gap: float) -> Energy:
    """The energy under samples of power by the trapezoid rule.

    Args:
        readings: samples in the order of time; the first and the last are the edges of the window.
        per_watt: units of a sample in a watt.
        longest_gap: seconds without a good sample that are bridged.
    """
    pairs = _good_pairs(readings)
    reason = _edge_reason(readings)
    if reason is None and any(after.time - before.time > longest_gap for before, after in pairs):
        reason = GAP
    if reason is not None:
        return _failed(readings, reason)
    area = sum((before.raw + after.raw) / 2 * (after.time - before.time) for before, after in pairs)
    return Energy(area / per_watt, None, *_counts(readings))


class _Good(NamedTuple):
    time: float
    raw: int


class _Step(NamedTuple):
    """Units from one good reading to the next, or why they are not known."""

    growth: int | None
    reason: str | None = None
    wraps: int = 0


def _summed(readings: Sequence[Reading], step: Callable[[_Good, _Good], _Step], per_joule: float) -> Energy:
    steps = [step(before, after) for before, after in _good_pairs(readings)]
    reason = _edge_reason(readings) or next((found.reason for found in steps if found.growth is None), None)
    if reason is not None:
        return _failed(readings, reason)
    total = sum(found.growth or 0 for found in steps)
    if not total:  # a counter moves in jumps: that it stands still does not say that nothing was used
        seconds = readings[-1].time - readings[0].time
        return _failed(readings, STUCK if seconds >= _STUCK_AFTER else TOO_SHORT)
    return Energy(total / per_joule, None, *_counts(readings), sum(found.wraps for found in steps))


def _good_pairs(readings: Sequence[Reading]) -> list[tuple[_Good, _Good]]:
    good = [_Good(reading.time, reading.raw) for reading in readings if reading.raw is not None]
    return list(zip(good, good[1:]))


def _edge_reason(readings: Sequence[Reading]) -> str | None:
    """Why a window has no start or no end; None if it has both."""
    if len(readings) < 2:
        return READ_ERROR
    return next((edge.reason or READ_ERROR for edge in (readings[0], readings[-1]) if edge.raw is None), None)


def _counts(readings: Sequence[Reading]) -> tuple[int, int]:
    good = sum(reading.raw is not None for reading in readings)
    return good, len(readings) - good


def _failed(readings: Sequence[Reading], reason: str) -> Energy:
    return Energy(None, reason, *_counts(readings))
