"""Axes: where a value lies in pixels, which values get a tick, and how numbers are written."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

NOT_MEASURED = "not measured"
_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)
_TICKS = 5


@dataclass(frozen=True)
class Scale:
    """Values from ``low`` to ``high`` as pixels from ``start`` to ``end``, by their logarithms if ``log``."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> int:
        """The pixel of a value."""
        low, high, at = (math.log(each) if self.log else each for each in (self.low, self.high, value))
        return round(self.start + (self.end - self.start) * (at - low) / (high - low))

    def ticks(self) -> list[float]:
        """Round values within the scale, about five."""
        return _log_ticks(self.low, self.high) if self.log else _linear_ticks(self.low, self.high)


def scale_over(values: Sequence[float], start: float, end: float, *, log: bool = False, room: float = 0.06) -> Scale:
    """A scale that holds all values, with room beside the outermost; some room even where they are all equal.

    Args:
        values: finite, and positive if ``log``; without any the scale is from 0 (``log``: 1) to 1 (10).
        start, end: pixels of the least and the largest value.
        log: whether equal factors are equally long.
        room: as a share of the range.
    """
    if not values:
        return Scale(1.0, 10.0, start, end, True) if log else Scale(0.0, 1.0, start, end)
    low, high = min(values), max(values)
    if log:
        spread = max(math.log(high) - math.log(low), 0.2) * room
        return Scale(
            math.exp(max(math.log(low) - spread, -700)), math.exp(min(math.log(high) + spread, 700)), start, end, True
        )
    spread = (high - low) * room or abs(high) * room or 1.0
    return Scale(low - spread, high + spread, start, end)


def _linear_ticks(low: float, high: float) -> list[float]:
    raw = (high - low) / _TICKS
    if not (math.isfinite(raw) and raw > 0):
        return []
    power = 10.0 ** math.floor(math.log10(raw))
    step = next((power * factor for factor in _STEPS if power * factor >= raw * 0.999), raw)
    first = math.ceil(low / step - 1e-9)
    found = [round(number * step, 12) for number in range(first, first + 2 * _TICKS)]
    return [tick for tick in found if low <= tick <= high]


def _log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten, fewer where the scale is long."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
        found = [factor * 10.0**power for power in powers for factor in factors if low <= factor * 10.0**power <= high]
        if len(found) <= _TICKS + 1:
            return found
    return found[:: 1 + len(found) // _TICKS]


def digits(value: float | None, places: int = 4) -> str:
    """A number with so many places after the point; in powers of ten where it is huge."""
    if value is None:
        return NOT_MEASURED
    return f"{value:.{places}f}" if abs(value) < 1e7 else f"{value:.3e}"


def short(value: float) -> str:
    """A number of a few digits, for ticks."""
    return f"{value:.4g}"


def whole(value: float | None) -> str:
    """A count with commas."""
    if value is None:
        return NOT_MEASURED
    return f"{value:,.0f}" if abs(value) < 1e15 else f"{value:.3e}"


def size(value: float | None) -> str:
    """Bytes with three digits that count."""
    if value is None:
        return NOT_MEASURED
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            break
        value /= 1000
    return f"{value:.3g} {unit}" if value < 1000 else f"{value:,.0f} {unit}"


def milliseconds(value: float | None) -> str:
    """Seconds as milliseconds with three digits that count."""
    return NOT_MEASURED if value is None else f"{three(1000 * value)} ms"


def short_milliseconds(value: float) -> str:
    """Seconds as milliseconds, for ticks."""
    return f"{short(1000 * value)} ms"


def seconds(value: float | None) -> str:
    """Seconds with three digits that count."""
    return NOT_MEASURED if value is None else f"{three(value)} s"


def three(value: float) -> str:
    """Three digits that count, never in powers of ten unless huge."""
    if value == 0 or not 1e-6 < abs(value) < 1e9:
        return f"{value:.3g}"
    places = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{places}f}"


def percent(value: float | None, places: int = 1) -> str:
    """A share as a percentage."""
    return NOT_MEASURED if value is None else f"{digits(100 * value, places)} %"
