"""What windows add up to: joules, gross and net of those at rest, mean power, joules per epoch and per 1,000 lists."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import mean, stdev
from typing import Any

from recbole_prune.metering.readings import UNSUPPORTED, Energy

PARTS = ("gpu", "cpu", "dram")
LISTS = 1000  # recommendations that energy is given for
_DRIFT = 0.05
_LONG_ENOUGH = 20.0  # seconds of a window in which a counter's steps of 0.1 s are 1 %


@dataclass(frozen=True)
class Window:
    """The energy of one window by part, and how many lists were made in it."""

    seconds: float
    energy: Mapping[str, Energy]
    lists: int = 0

    def power(self, part: str) -> float | None:
        """Mean watts; None where the energy is not known."""
        energy = self.energy.get(part)
        return None if energy is None or energy.joules is None else energy.joules / self.seconds

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Window:
        """Undo :meth:`to_json`."""
        energy = {part: Energy(**values) for part, values in record["energy"].items()}
        return cls(record["seconds"], energy, record["lists"])


def account(
    windows: Mapping[str, Sequence[Window]],
    idle: Sequence[Window],
    flags: Sequence[str],
    *,
    device: str,
    meters: Mapping[str, Any],
) -> dict[str, Any]:
    """What was measured of a ticket, as JSON.

    Args:
        windows: by kind.
        idle: the rests before and after.
        flags: of the meters; ``drift`` (the rests differ by more than 5 %) and ``short_windows`` (a window is shorter
            than 20 s in the mean, so that the steps of a counter matter) are added.
        device: where it computed.
        meters: method of every part, or why there is none.

    Returns:
        ``device``, ``meters``, ``flags``, ``<part>_idle_W``, and by kind of window what :func:`totals` says.
    """
    reasons = {part: meters[part].get("reason") for part in meters}
    powers = {part: [window.power(part) for window in idle] for part in PARTS}
    rest = {part: _mean(found) for part, found in powers.items()}
    own = [*flags, *(["drift"] if any(map(_drifts, powers.values())) else [])]
    filled = [w for some in windows.values() for w in some]
    measured = any(energy.joules is not None for window in filled for energy in window.energy.values())
    if measured and any(some and mean(w.seconds for w in some) < _LONG_ENOUGH for some in windows.values()):
        own.append("short_windows")
    return {
        "device": device,
        "meters": dict(meters),
        "flags": own,
        **{f"{part}_idle_W": power for part, power in rest.items()},
        **{name: totals(name, some, rest, reasons) for name, some in windows.items()},
    }


def totals(
    kind: str, windows: Sequence[Window], idle: Mapping[str, float | None], reasons: Mapping[str, str | None]
) -> dict[str, Any]:
    """The sum over windows of one kind, for each part ``energy_J``, ``energy_net_J``, ``mean_power_W``, ``reason``.

    Args:
        kind: one of :data:`~recbole_prune.metering.windows.WINDOWS`.
        windows: of that kind.
        idle: watts of every part at rest; None where they are not known.
        reasons: why a part has no meter.

    Returns:
        also ``windows``, ``window_s`` and ``<part>_readings``; of trainings ``<part>_energy_per_epoch_J`` with its
        standard deviation, over all epochs but the first, which allocates and compiles; of recommending ``lists`` and
        ``<part>_energy_per_1000_rec_J``. None where a number is not known.
    """
    seconds, lists = sum(window.seconds for window in windows), sum(window.lists for window in windows)
    found: dict[str, Any] = {"windows": len(windows), "window_s": seconds}
    if kind == "recommend":
        found["lists"] = lists
    for part in PARTS:
        energies = [window.energy.get(part) for window in windows]
        joules = [None if energy is None else energy.joules for energy in energies]
        total, power = _sum(joules), idle.get(part)
        numbers = {
            "energy_J": total,
            "energy_net_J": None if total is None or power is None else total - power * seconds,
            "mean_power_W": None if total is None or not seconds else total / seconds,
            "reason": _reason(kind, energies, reasons.get(part)),
            "readings": _readings(energies),
        }
        if kind == "train":
            later = [value for value in joules[1:] if value is not None]
            numbers["energy_per_epoch_J"] = mean(later) if later else None
            numbers["energy_per_epoch_std_J"] = stdev(later) if len(later) > 1 else None
        if kind == "recommend":
            numbers["energy_per_1000_rec_J"] = None if total is None or not lists else per_thousand(total, lists)
        found.update({f"{part}_{name}": number for name, number in numbers.items()})
    return found


def per_thousand(joules: float, lists: int) -> float:
    """Joules for 1,000 lists."""
    return LISTS * joules / lists


def _sum(values: Sequence[float | None]) -> float | None:
    """None where there is nothing, or something of it is not known."""
    known = [value for value in values if value is not None]
    return sum(known) if known and len(known) == len(values) else None


def _mean(values: Sequence[float | None]) -> float | None:
    total = _sum(values)
    return None if total is None else total / len(values)


def _drifts(powers: Sequence[float | None]) -> bool:
    known = [power for power in powers if power is not None]
    return len(known) > 1 and max(known) - min(known) > _DRIFT * min(known)


def _reason(kind: str, energies: Sequence[Energy | None], without_meter: str | None) -> str | None:
    if kind == "recommend" and not energies and without_meter is None:
        return UNSUPPORTED  # the evaluation ranks something else than all items
    return next((energy.reason for energy in energies if energy is not None and energy.joules is None), without_meter)


def _readings(energies: Sequence[Energy | None]) -> dict[str, int] | None:
    known = [energy for energy in energies if energy is not None]
    if not known:
        return None
    return {name: sum(getattr(energy, name) for energy in known) for name in ("good", "failed", "wraps")}
