"""Energy of processor packages and their memory from RAPL, as Linux shows it under ``/sys/class/powercap``.

Only zones named ``package-*`` count, and their child ``dram`` apart: ``core`` and ``uncore`` are parts of a package,
``psys`` contains it. It is the whole socket that is measured, not this process.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter

from recbole_prune.metering.readings import (
    ABSENT,
    NO_PERMISSION,
    READ_ERROR,
    Channel,
    MeterError,
    Reading,
    Rule,
    unwrapped,
)

POWERCAP = Path("/sys/class/powercap")
HIGHEST_POWER = 1000.0  # watts of a package
_PER_JOULE = 1e6
_ZONE = re.compile(r"intel-rapl(-mmio)?:\d+")
_PERIOD = 30.0  # seconds between readings, or half of what keeps two wraps apart
_MIRROR = 100_000  # microjoules: dies whose counters are no further apart show that of their socket


@dataclass(frozen=True)
class Zone:
    """One counter: the folder it is in, the part of the machine, the number that it wraps at (None: not known)."""

    folder: Path
    part: str
    name: str
    most: int | None

    def read(self) -> tuple[int | None, str | None]:
        """The counter in microjoules, or None and why."""
        try:
            raw = int((self.folder / "energy_uj").read_text())
        except PermissionError:
            return None, NO_PERMISSION
        except FileNotFoundError:
            return None, ABSENT
        except (OSError, ValueError):
            return None, READ_ERROR
        bad = raw < 0 or (self.most is not None and raw > self.most)
        return (None, READ_ERROR) if bad else (raw, None)


class Rapl:
    """The zones of this machine as a :class:`~recbole_prune.metering.readings.Source`.

    Args:
        folder: where the zones are.
        clock: seconds.

    Raises:
        MeterError: there is no zone, or not one of them can be read.
    """

    method = "rapl"
    flags: tuple[str, ...] = ()

    def __init__(self, folder: Path = POWERCAP, clock: Callable[[], float] = perf_counter) -> None:
        self._clock = clock
        self._zones = find_zones(folder)
        if not self._zones:
            raise MeterError(ABSENT, f"{folder} has no zone of a processor package")
        for zone in self._zones:
            reason = zone.read()[1] if zone.part == "cpu" else None
            if reason is not None:
                raise MeterError(reason, f"{zone.folder / 'energy_uj'} cannot be read")
        self.channels: Sequence[Channel] = [Channel(z.part, z.name, _rule(z)) for z in self._zones]
        limits = [zone.most / _PER_JOULE / (4 * HIGHEST_POWER) for zone in self._zones if zone.most is not None]
        self.period: float | None = min([_PERIOD, *limits])
        self.details: dict[str, object] = {"zones": [zone.name for zone in self._zones]}

    def read(self) -> list[Reading]:
        """A reading of every zone."""
        return [Reading(self._clock(), *zone.read()) for zone in self._zones]

    def others(self) -> str | None:
        """Nothing is known of other processes."""
        return None


def _rule(zone: Zone) -> Rule:
    return partial(unwrapped, most=zone.most, highest_power=HIGHEST_POWER, per_joule=_PER_JOULE)


def find_zones(folder: Path = POWERCAP) -> list[Zone]:
    """The packages, each followed by its memory where that has a counter.

    Linux may list a zone twice, as ``intel-rapl`` and as ``intel-rapl-mmio``, and the counter of a socket once for
    each of its dies; each counts once.
    """
    places = [entry for around in (folder, folder / "intel-rapl") for entry in _entries(around)]
    zones: dict[str, list[Zone]] = {}
    places = [place for place in places if _ZONE.fullmatch(place.name)]
    for place in sorted(places, key=lambda place: ("mmio" in place.name, place.name)):
        name = zone_name(place)
        if not name.startswith("package-") or name in zones:
            continue
        package = Zone(place, "cpu", name, _most(place))
        if any(_mirrors(package, other[0]) for other in zones.values()):
            continue
        children = [child for child in _entries(place) if child.name.startswith(f"{place.name}:")]
        memory = [child for child in sorted(children) if zone_name(child) == "dram"]
        zones[name] = [package, *(Zone(child, "dram", f"{name} dram", _most(child)) for child in memory)]
    return [zone for found in zones.values() for zone in found]


def _mirrors(die: Zone, other: Zone) -> bool:
    """Whether two dies of one socket show one counter."""
    socket, split, _ = die.name.partition("-die-")
    if not split or other.name.partition("-die-")[0] != socket:
        return False
    own, others = die.read()[0], other.read()[0]
    return own is not None and others is not None and abs(own - others) <= _MIRROR


def zone_name(place: Path) -> str:
    """What a zone is called, such as ``package-0``; empty where that cannot be read."""
    try:
        return (place / "name").read_text().strip()
    except OSError:
        return ""


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _most(place: Path) -> int | None:
    try:
        most = int((place / "max_energy_range_uj").read_text())
    except (OSError, ValueError):
        return None
    return most if most > 0 else None
