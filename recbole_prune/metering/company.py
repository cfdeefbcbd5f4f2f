"""Whether other processes used the processors, whose meters are of whole sockets."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

_STAT = Path("/proc/stat")
_MOST = 0.1  # share of others that is let pass
_LEAST_SECONDS = 0.2  # of work, below which the steps of the clocks are too large


class CpuTimes(NamedTuple):
    """Seconds of all processors together since they were started."""

    busy: float
    own: float


def read_cpu_times() -> CpuTimes | None:
    """How long the processors were busy, and for this process and its children; None where the system does not say."""
    try:
        user, nice, system, _, _, interrupts, soft = map(int, _STAT.read_text().split("\n", 1)[0].split()[1:8])
        tick = os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, AttributeError):
        return None
    return CpuTimes((user + nice + system + interrupts + soft) / tick, sum(os.times()[:4]))


def is_shared(before: CpuTimes | None, after: CpuTimes | None) -> bool:
    """Whether others had more than a tenth of the time that the processors were busy."""
    if before is None or after is None:
        return False
    busy, own = after.busy - before.busy, after.own - before.own
    return busy >= _LEAST_SECONDS and own < (1 - _MOST) * busy
