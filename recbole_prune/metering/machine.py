"""Which meters this machine has for the parts that a device uses: its own, else those of the daemon."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from recbole_prune.metering import nvml, zeusd
from recbole_prune.metering.energy import EnergyMeter
from recbole_prune.metering.rapl import POWERCAP, Rapl
from recbole_prune.metering.readings import ABSENT, MeterError, Source

if TYPE_CHECKING:
    import torch


def find_sources(
    device: torch.device, environment: Mapping[str, str] = os.environ, powercap: Path = POWERCAP
) -> tuple[list[Source], dict[str, MeterError]]:
    """The meters of this machine for a torch device.

    Returns:
        (meters, for every part of :data:`PARTS` without one the reason).
    """
    sources: list[Source] = []
    missing: dict[str, MeterError] = {}
    daemon = zeusd.Zeusd(environment)
    try:
        sources.append(_of_gpu(device, daemon))
    except MeterError as error:
        missing["gpu"] = error
    try:
        sources.append(_first(lambda: Rapl(powercap), lambda: zeusd.cpu_source(daemon, powercap)))
    except MeterError as error:
        missing["cpu"] = missing["dram"] = error
    measured = {channel.part for source in sources for channel in source.channels}
    if "dram" not in {*measured, *missing}:
        missing["dram"] = MeterError(ABSENT, "the memory has no counter of its own")
    return sources, missing


def _of_gpu(device: torch.device, daemon: zeusd.Zeusd) -> Source:
    if device.type != "cuda":
        raise MeterError(ABSENT, f"the run computes on {device}")
    board = nvml.board_of(device)
    return _first(lambda: nvml.Nvml(nvml.load(), board), lambda: zeusd.gpu_source(daemon, board.pci))


def _first(own: Callable[[], Source], daemon: Callable[[], Source]) -> Source:
    """What this process can read itself, else what the daemon reads.

    Raises:
        MeterError: neither; with the daemon's reason where there is one, and what was found of both.
    """
    try:
        return own()
    except MeterError as error:
        first = error
    try:
        return daemon()
    except MeterError as second:
        reason = first.reason if second.reason == ABSENT else second.reason
        raise MeterError(reason, f"{first.detail}; {second.detail}") from None


def open_meter(device: torch.device, *, idle_seconds: float, list_seconds: float) -> EnergyMeter:
    """The meters of this machine around work on a torch device."""
    sources, missing = find_sources(device)

    def synchronize() -> None:
        if device.type == "cuda":
            import torch

            torch.cuda.synchronize(device)

    return EnergyMeter(
        sources,
        missing,
        str(device),
        synchronize=synchronize,
        idle_seconds=idle_seconds,
        list_seconds=list_seconds,
    )
