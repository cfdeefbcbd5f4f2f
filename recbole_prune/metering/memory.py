"""The most memory that this process has held."""

from __future__ import annotations

import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")


def peak_bytes() -> int | None:
    """The largest resident memory of this process so far, or since :func:`reset_peak_bytes`; None: nothing tells."""
    try:
        lines = [line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM")]
    except OSError:
        lines = []
    if lines:
        return 1024 * int(lines[0].split()[1])
    try:
        import resource
    except ImportError:  # Windows
        return None
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else 1024 * largest


def reset_peak_bytes() -> None:
    """Let the peak begin at the present, where the system can."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return
