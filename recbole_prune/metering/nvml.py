"""Energy of an NVIDIA board through NVML: its counter of all energy, or samples of its power where it has none.

The counter is of the whole board. ``pynvml`` (package ``nvidia-ml-py``) is imported when it is asked for.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from time import perf_counter
from types import ModuleType
from typing import TYPE_CHECKING

from recbole_prune.metering.readings import (
    ABSENT,
    DRIVER_RELOAD,
    NO_PERMISSION,
    READ_ERROR,
    UNSUPPORTED,
    Channel,
    MeterError,
    Reading,
    counted,
    sampled,
)

if TYPE_CHECKING:
    import torch

SAMPLING_PERIOD = 0.1
_LONGEST_GAP = 1.0  # seconds that samples may be apart
_PER_UNIT = 1000.0  # millijoules in a joule, milliwatts in a watt
# the power now, and the mean of the last second; nvmlDeviceGetPowerUsage is one or the other, by generation
_POWER_FIELDS = ("NVML_FI_DEV_POWER_INSTANT", "NVML_FI_DEV_POWER_AVERAGE")


@dataclass(frozen=True)
class Board:
    """How to find the board of a torch device: what torch knows of it, None where an older one does not."""

    index: int
    uuid: str | None = None
    pci: str | None = None


def board_of(device: torch.device) -> Board:
    """The board behind a CUDA device of torch."""
    import torch

    index = torch.cuda.current_device() if device.index is None else device.index
    known = torch.cuda.get_device_properties(index)
    uuid, bus = getattr(known, "uuid", None), getattr(known, "pci_bus_id", None)
    pci = None
    if bus is not None:
        pci = f"{getattr(known, 'pci_domain_id', 0):08x}:{bus:02x}:{getattr(known, 'pci_device_id', 0):02x}.0"
    return Board(index, None if uuid is None else str(uuid), pci)


def load() -> ModuleType:
    """The module ``pynvml``, begun.

    Raises:
        MeterError: it is not installed, or there is no driver.
    """
    try:
        nvml = import_module("pynvml")
    except ImportError:
        raise MeterError(ABSENT, "pynvml is not installed: pip install 'recbole-prune[energy]'") from None
    except Exception as error:  # a broken package may raise anything
        raise MeterError(ABSENT, f"pynvml does not work, {type(error).__name__}: {error}") from None
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        raise MeterError(reason_of(nvml, error), f"NVML does not start: {error}") from None
    return nvml


def reason_of(nvml: ModuleType, error: Exception) -> str:
    """The reason that an error of NVML is."""
    kinds = {
        "NVMLError_NotSupported": UNSUPPORTED,
        "NVMLError_FunctionNotFound": UNSUPPORTED,
        "NVMLError_NoPermission": NO_PERMISSION,
        "NVMLError_LibraryNotFound": ABSENT,
        "NVMLError_DriverNotLoaded": ABSENT,
        "NVMLError_NotFound": ABSENT,
    }
    found = (reason for name, reason in kinds.items() if isinstance(error, getattr(nvml, name, ())))
    return next(found, READ_ERROR)


class Nvml:
    """One board as a :class:`~recbole_prune.metering.readings.Source`: M1, and M2 where its counter is missing.

    Args:
        nvml: the module, begun.
        board: what is known of it.
        clock: seconds.

    Raises:
        MeterError: the board is not found, is divided (MIG), or tells neither energy nor power.
    """

    flags: tuple[str, ...] = ()

    def __init__(self, nvml: ModuleType, board: Board, clock: Callable[[], float] = perf_counter) -> None:
        self._nvml, self._clock = nvml, clock
        try:
            self._handle = find_board(nvml, board)
            self._refuse_divided()
            name = _text(nvml.nvmlDeviceGetName(self._handle))
            self._number, self.method = self._find_number()
        except nvml.NVMLError as error:
            raise MeterError(reason_of(nvml, error), f"NVML: {error}") from None
        if self.method == "nvml_counter":
            rule = partial(counted, per_joule=_PER_UNIT, reset=DRIVER_RELOAD)
        else:
            rule = partial(sampled, per_watt=_PER_UNIT, longest_gap=_LONGEST_GAP)
            self.flags = ("sampled",)
        self.period: float | None = None if self.method == "nvml_counter" else SAMPLING_PERIOD
        self.channels: Sequence[Channel] = [Channel("gpu", name, rule)]
        self.details: dict[str, object] = {"name": name, **self._facts()}

    def read(self) -> list[Reading]:
        """The counter, or the power now; a power of 0 is a reading that failed."""
        nvml = self._nvml
        try:
            raw = int(self._number())
        except nvml.NVMLError as error:
            return [Reading(self._clock(), None, reason_of(nvml, error))]
        failed = raw < 0 or (raw == 0 and self.method == "nvml_sampling")
        return [Reading(self._clock(), None, READ_ERROR) if failed else Reading(self._clock(), raw)]

    def others(self) -> str | None:
        """Other processes that compute on the board; one that is not ours may be us under another number."""
        nvml = self._nvml
        try:
            running = {process.pid for process in nvml.nvmlDeviceGetComputeRunningProcesses(self._handle)}
        except nvml.NVMLError:
            return None
        own = os.getpid()
        # in a container NVML counts processes as the host does
        unknown = len(running - {own}) - (0 if own in running else 1)
        return f"{unknown} other process(es) compute on the board" if unknown > 0 else None

    def _refuse_divided(self) -> None:
        nvml = self._nvml
        with suppress(nvml.NVMLError):  # boards without MIG do not know the word
            if nvml.nvmlDeviceGetMigMode(self._handle)[0]:
                raise MeterError(UNSUPPORTED, "the board is divided (MIG), and its parts have no meter of their own")

    def _find_number(self) -> tuple[Callable[[], int], str]:
        """What is read, and how that is called."""
        nvml, handle = self._nvml, self._handle
        with suppress(nvml.NVMLError):
            nvml.nvmlDeviceGetTotalEnergyConsumption(handle)
            return (lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(handle)), "nvml_counter"
        for field in (getattr(nvml, name, None) for name in _POWER_FIELDS):
            with suppress(nvml.NVMLError, AttributeError):
                if field is not None and _field(nvml, handle, field) > 0:
                    return partial(_field, nvml, handle, field), "nvml_sampling"
        nvml.nvmlDeviceGetPowerUsage(handle)
        return (lambda: nvml.nvmlDeviceGetPowerUsage(handle)), "nvml_sampling"

    def _facts(self) -> dict[str, object]:
        """Driver, power limit in watts and degrees, as far as NVML tells them."""
        nvml, handle = self._nvml, self._handle
        asked: Mapping[str, Callable[[], object]] = {
            "driver": lambda: _text(nvml.nvmlSystemGetDriverVersion()),
            "power_limit_W": lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle) / _PER_UNIT,
            "temperature_C": lambda: nvml.nvmlDeviceGetTemperature(handle, 0),
        }
        facts = {}
        for name, ask in asked.items():
            with suppress(nvml.NVMLError):
                facts[name] = ask()
        return facts


def _field(nvml: ModuleType, handle: object, field: int) -> int:
    [found] = nvml.nvmlDeviceGetFieldValues(handle, [field])
    if found.nvmlReturn:
        raise nvml.NVMLError(found.nvmlReturn)
    return int(found.value.uiVal)


def find_board(nvml: ModuleType, board: Board) -> object:
    """The handle of a board; NVML's numbers are not torch's, which ``CUDA_VISIBLE_DEVICES`` changes.

    Raises:
        MeterError: torch does not say which one it is, and there are several.
    """
    if board.uuid is not None:
        if board.uuid.startswith("MIG-"):
            raise MeterError(UNSUPPORTED, "the device is a part of a board (MIG), which has no meter of its own")
        uuid = board.uuid if board.uuid.startswith("GPU-") else f"GPU-{board.uuid}"
        return nvml.nvmlDeviceGetHandleByUUID(uuid.encode())
    if board.pci is not None:
        return nvml.nvmlDeviceGetHandleByPciBusId(board.pci.encode())
    if nvml.nvmlDeviceGetCount() != 1:
        raise MeterError(UNSUPPORTED, "this torch does not say which of several boards it computes on")
    return nvml.nvmlDeviceGetHandleByIndex(0)


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
