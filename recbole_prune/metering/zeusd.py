"""Energy from ``zeusd``, a daemon that reads RAPL and NVML for processes that may not: HTTP over a socket.

It has unwrapped its counters already, so a smaller number is a daemon that was started again, never a wrap.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from time import perf_counter
from typing import Any

from recbole_prune.metering.rapl import POWERCAP, zone_name
from recbole_prune.metering.readings import (
    ABSENT,
    COUNTER_RESET,
    NO_PERMISSION,
    READ_ERROR,
    UNSUPPORTED,
    Channel,
    MeterError,
    Reading,
    counted,
)

SOCKET = "/run/zeusd/zeusd.sock"
_LONGEST_PATH = 107  # bytes of the name of a Unix socket
_SECONDS = 1.0
_REASONS = {400: UNSUPPORTED, 401: NO_PERMISSION, 403: NO_PERMISSION, 404: UNSUPPORTED}
_PATHS = {"cpu": "/cpu/get_cumulative_energy?cpu=true&dram=true&cpu_ids=", "gpu": "/gpu/get_cumulative_energy?gpu_ids="}
# part of the machine -> its field in an answer, and units in a joule
_FIELDS = {"cpu": ("cpu_energy_uj", 1e6), "dram": ("dram_energy_uj", 1e6), "gpu": ("energy_mj", 1e3)}


class _UnixConnection(HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=_SECONDS)
        self._path = path

    def connect(self) -> None:
        """Open the socket."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Zeusd:
    """Where a daemon listens, and how it is asked.

    Args:
        environment: ``ZEUSD_SOCK_PATH``, then ``ZEUSD_HOST_PORT``, then the usual socket; ``ZEUSD_TOKEN``.

    Attributes:
        place: socket or address.
        remote: whether it may run on another host.
    """

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        path, address = environment.get("ZEUSD_SOCK_PATH"), environment.get("ZEUSD_HOST_PORT")
        self.remote = not path and bool(address)
        self.place = str(address) if self.remote else path or SOCKET
        self._token = environment.get("ZEUSD_TOKEN")

    def get(self, path: str) -> dict[str, Any]:
        """The JSON object at a path.

        Raises:
            MeterError: it does not answer, or with something else.
        """
        if not self.remote and len(os.fsencode(self.place)) > _LONGEST_PATH:
            raise MeterError(UNSUPPORTED, f"the socket path has more than {_LONGEST_PATH} bytes: {self.place}")
        headers = {} if self._token is None else {"Authorization": f"Bearer {self._token}"}
        try:
            connection = HTTPConnection(self.place, timeout=_SECONDS) if self.remote else _UnixConnection(self.place)
        except (HTTPException, ValueError) as error:
            raise MeterError(READ_ERROR, f"{self.place} is no address of a zeusd: {type(error).__name__}") from None
        try:
            connection.request("GET", path, headers=headers)
            answer = connection.getresponse()
            text = answer.read()
        except (FileNotFoundError, ConnectionRefusedError):
            raise MeterError(ABSENT, f"no zeusd at {self.place}") from None
        except PermissionError:
            raise MeterError(NO_PERMISSION, f"{self.place} may not be opened") from None
        except (OSError, HTTPException, ValueError) as error:
            raise MeterError(READ_ERROR, f"zeusd at {self.place}: {type(error).__name__}") from None
        finally:
            connection.close()
        if answer.status != 200:
            reason = _REASONS.get(answer.status, READ_ERROR)
            raise MeterError(reason, f"zeusd at {self.place} answered {path.partition('?')[0]} with {answer.status}")
        try:
            found = json.loads(text)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise MeterError(READ_ERROR, f"zeusd at {self.place} answered with something else than a JSON object")
        return found


class ZeusdSource:
    """Counters of a daemon as a :class:`~recbole_prune.metering.readings.Source`; a round trip for each reading.

    Args:
        daemon: where it listens.
        kind: ``cpu`` (packages and their memory) or ``gpu``.
        ids: of what is read.
        clock: seconds.
        flags: what is to be said beside the numbers.
    """

    method = "zeusd"
    period: float | None = None

    def __init__(
        self,
        daemon: Zeusd,
        kind: str,
        ids: Sequence[str],
        clock: Callable[[], float] = perf_counter,
        flags: tuple[str, ...] = (),
    ) -> None:
        self._daemon, self._clock, self.flags = daemon, clock, flags
        self._path = _PATHS[kind] + ",".join(ids)
        found = daemon.get(self._path)
        parts = ("cpu", "dram") if kind == "cpu" else ("gpu",)
        self._keys = [(part, one) for one in ids for part in parts if part != "dram" or _number(found, one, part)]
        self.channels: Sequence[Channel] = [
            Channel(part, f"{part} {one}", partial(counted, per_joule=_FIELDS[part][1], reset=COUNTER_RESET))
            for part, one in self._keys
        ]
        self.details: dict[str, object] = {"zeusd": daemon.place, f"{kind}_ids": list(ids)}

    def read(self) -> list[Reading]:
        """A reading of every counter, from one answer."""
        try:
            found = self._daemon.get(self._path)
        except MeterError as error:
            return [Reading(self._clock(), None, error.reason) for _ in self._keys]
        time = self._clock()
        numbers = [_number(found, one, part) for part, one in self._keys]
        return [Reading(time, number, None if number is not None else READ_ERROR) for number in numbers]

    def others(self) -> str | None:
        """Nothing is known of other processes."""
        return None


def _number(found: Mapping[str, Any], one: str, part: str) -> int | None:
    of_one = found.get(one)
    raw = of_one.get(_FIELDS[part][0]) if isinstance(of_one, dict) else None
    return raw if isinstance(raw, int) and not isinstance(raw, bool) and raw >= 0 else None


def cpu_source(daemon: Zeusd, powercap: Path = POWERCAP, clock: Callable[[], float] = perf_counter) -> ZeusdSource:
    """The packages that a daemon knows; on this host only zones that are packages, which it does not tell apart.

    Raises:
        MeterError: there is no daemon, or it reads no processor.
    """
    ids = [str(cpu["id"]) for cpu in _discover(daemon, "cpu")]
    if not daemon.remote:
        ids = [one for one in ids if zone_name(powercap / f"intel-rapl:{one}").startswith("package")]
    if not ids:
        raise MeterError(UNSUPPORTED, f"zeusd at {daemon.place} knows no processor package")
    return ZeusdSource(daemon, "cpu", ids, clock, flags=("unverified_zone",) if daemon.remote else ())


def gpu_source(daemon: Zeusd, pci: str | None, clock: Callable[[], float] = perf_counter) -> ZeusdSource:
    """The board that a daemon knows under the PCI address of the device in use; without one, its only board.

    Raises:
        MeterError: there is no daemon, or it does not know the board, or not its energy.
    """
    boards = _discover(daemon, "gpu")
    own = [board for board in boards if pci is not None and _same_pci(str(board.get("pci_address")), pci)]
    if pci is None and len(boards) == 1:
        own = boards
    if len(own) != 1 or not own[0].get("cumulative_energy_available", True):
        raise MeterError(UNSUPPORTED, f"zeusd at {daemon.place} has no energy counter for the device in use")
    source = ZeusdSource(daemon, "gpu", [str(own[0]["id"])], clock)
    source.details["name"] = own[0].get("name")
    return source


def _same_pci(one: str, other: str) -> bool:
    """Domains are written with four or with eight digits."""
    return one.lower().lstrip("0") == other.lower().lstrip("0")


def _discover(daemon: Zeusd, kind: str) -> list[dict[str, Any]]:
    found = daemon.get("/discover")
    if f"{kind}-read" not in (found.get("enabled_api_groups") or ()):
        raise MeterError(UNSUPPORTED, f"zeusd at {daemon.place} does not serve {kind}-read")
    listed = found.get(f"{kind}s")
    return [one for one in listed if isinstance(one, dict) and "id" in one] if isinstance(listed, list) else []
