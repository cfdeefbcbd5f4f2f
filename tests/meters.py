"""Fake meters: an NVML with several boards, a powercap folder, a zeusd on a Unix socket, a clock moved by hand."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

from recbole_prune.metering.readings import Channel, Energy, Reading, counted

RANGE = 262_143_328_850


class Clock:
    """Seconds that pass only when :meth:`sleep` is called."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Steady:
    """A counter in millijoules of a part that takes constant power by a clock."""

    method, period = "nvml_counter", None

    def __init__(self, clock: Clock, watts: float, part: str = "gpu", flags: tuple[str, ...] = ()) -> None:
        self.clock, self.watts, self.flags = clock, watts, flags
        self.channels: Sequence[Channel] = [Channel(part, part, self.energy)]
        self.details: dict[str, object] = {}
        self.raw, self._read_at = 0.0, 0.0
        self.company: str | None = None
        self.fails: str | None = None

    def energy(self, readings: Sequence[Reading]) -> Energy:
        return counted(readings, per_joule=1000, reset="driver_reload")

    def read(self) -> list[Reading]:
        self.raw += 1000 * self.watts * (self.clock.now - self._read_at)
        self._read_at = self.clock.now
        return [Reading(self.clock.now, None if self.fails else round(self.raw), self.fails)]

    def others(self) -> str | None:
        return self.company


class FakeNvml:
    """The functions of ``pynvml`` that are called, for boards given by UUID; ``counter`` False: boards before Volta."""

    class NVMLError(Exception): ...

    class NVMLError_NotSupported(NVMLError): ...  # noqa: N801

    class NVMLError_NoPermission(NVMLError): ...  # noqa: N801

    class NVMLError_NotFound(NVMLError): ...  # noqa: N801

    class NVMLError_DriverNotLoaded(NVMLError): ...  # noqa: N801

    NVML_FI_DEV_POWER_INSTANT = 186

    def __init__(self, boards: Sequence[str], counter: bool = True, instant: bool = True) -> None:
        self.boards = {name: SimpleNamespace(name=name, energy=0, power=0, mig=0, pids=[1]) for name in boards}
        self.counter, self.instant = counter, instant
        self.fails: Exception | None = None

    def nvmlInit(self) -> None: ...  # noqa: N802

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return len(self.boards)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Any:  # noqa: N802
        return list(self.boards.values())[index]

    def nvmlDeviceGetHandleByUUID(self, uuid: bytes) -> Any:  # noqa: N802
        if uuid.decode() not in self.boards:
            raise self.NVMLError_NotFound
        return self.boards[uuid.decode()]

    def nvmlDeviceGetName(self, handle: Any) -> str:  # noqa: N802
        return f"board {handle.name}"

    def nvmlDeviceGetMigMode(self, handle: Any) -> list[int]:  # noqa: N802
        return [handle.mig, handle.mig]

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: Any) -> int:  # noqa: N802
        if self.fails is not None:
            raise self.fails
        if not self.counter:
            raise self.NVMLError_NotSupported
        return int(handle.energy)

    def nvmlDeviceGetFieldValues(self, handle: Any, fields: list[int]) -> list[Any]:  # noqa: N802
        status = 0 if self.instant else 3
        return [SimpleNamespace(nvmlReturn=status, value=SimpleNamespace(uiVal=handle.power)) for _ in fields]

    def nvmlDeviceGetPowerUsage(self, handle: Any) -> int:  # noqa: N802
        if self.fails is not None:
            raise self.fails
        return int(handle.power)

    def nvmlDeviceGetComputeRunningProcesses(self, handle: Any) -> list[Any]:  # noqa: N802
        return [SimpleNamespace(pid=pid) for pid in handle.pids]

    def nvmlSystemGetDriverVersion(self) -> str:  # noqa: N802
        return "999.1"

    def nvmlDeviceGetEnforcedPowerLimit(self, handle: Any) -> int:  # noqa: N802
        return 700_000

    def nvmlDeviceGetTemperature(self, handle: Any, sensor: int) -> int:  # noqa: N802
        raise self.NVMLError_NotSupported


def zone(folder: Path, name: str, energy: int | None = 0, most: int | None = RANGE) -> Path:
    """A zone as Linux shows it; None leaves a file out."""
    folder.mkdir(parents=True)
    (folder / "name").write_text(f"{name}\n")
    for file, value in (("energy_uj", energy), ("max_energy_range_uj", most)):
        if value is not None:
            (folder / file).write_text(f"{value}\n")
    return folder


Answer = Callable[[str, dict[str, str]], tuple[int, Any]]


@contextmanager
def zeusd_server(path: Path, answer: Answer) -> Iterator[None]:
    """A daemon on a Unix socket; ``answer`` maps path and headers to status and JSON."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.bind(str(path))
        server.listen()
        thread = Thread(target=_serve, args=(server, answer), daemon=True)
        thread.start()
        try:
            yield
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()


def _serve(server: socket.socket, answer: Answer) -> None:
    while True:
        try:
            connection, _ = server.accept()
        except OSError:
            return
        with connection:
            head, *lines = connection.recv(65536).decode().split("\r\n")
            headers = dict(line.split(": ", 1) for line in lines if ": " in line)
            status, body = answer(head.split()[1], headers)
            text = json.dumps(body).encode()
            connection.sendall(b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%s" % (status, len(text), text))
