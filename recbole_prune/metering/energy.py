"""Measures the energy of windows: readings at both edges of a window, inside it where needed, and what they add up to.

A meter that is missing, or fails in a window, costs a number and its reason is recorded; it never stops a training.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from logging import getLogger
from math import ceil
from threading import Event, Thread
from typing import Any, TypeVar

from recbole_prune.metering.accounts import PARTS, Window, account
from recbole_prune.metering.company import CpuTimes, is_shared, read_cpu_times
from recbole_prune.metering.readings import CONTAMINATED, READ_ERROR, Energy, MeterError, Reading, Source
from recbole_prune.metering.windows import WINDOWS, Meter

_LEAST_LISTS = 3  # passes over the users
Missing = Mapping[str, MeterError]
Answer = TypeVar("Answer")


class EnergyMeter(Meter):
    """Reads meters around windows.

    Args:
        sources: the meters.
        missing: for every part of :data:`PARTS` that none of them covers the reason.
        device: name of the device, for the record.
        synchronize: waits until the device has done its work; without that queued work falls outside of a window.
        idle_seconds: for how long the machine rests to measure what it takes when nothing is done; 0: never.
        list_seconds: how long making lists is repeated in one window.
        clock, sleep: of this process.
        cpu_times: seconds that the processors were busy, and those of them for this process; None if not known.
    """

    measures = True

    def __init__(
        self,
        sources: Sequence[Source],
        missing: Missing,
        device: str,
        *,
        synchronize: Callable[[], object] = lambda: None,
        idle_seconds: float = 10.0,
        list_seconds: float = 20.0,
        clock: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], object] = time.sleep,
        cpu_times: Callable[[], CpuTimes | None] = read_cpu_times,
    ) -> None:
        self.sources, self.missing, self.device = list(sources), dict(missing), device
        self._synchronize, self._clock, self._sleep = synchronize, clock, sleep
        self._idle_seconds, self._list_seconds = idle_seconds, list_seconds
        self._windows: dict[str, list[Window]] = {name: [] for name in WINDOWS}
        self._idle: list[Window] = []
        self._lists = 0
        self._cpu_times = cpu_times if "cpu" in _parts_of(self.sources) else lambda: None
        self._shared = False

    @property
    def has_meters(self) -> bool:
        """Whether there is any; without one only seconds are measured."""
        return bool(self.sources)

    def begin(self) -> None:
        """Forget the windows of the ticket before; its last rest is the first one of the next."""
        self._windows = {name: [] for name in WINDOWS}
        self._idle, self._shared = self._idle[-1:], False
        if not self._idle:
            self._rest()

    @contextmanager
    def window(self, name: str) -> Iterator[None]:
        """Measure what is inside; a window that an exception ends is forgotten."""
        super().window(name)
        self._synchronize()
        before = self._cpu_times()
        others = [_others(source) for source in self.sources]
        start, first = self._clock(), [_read(source) for source in self.sources]
        traces = [[readings] for readings in first]
        with self._polled(traces):
            yield
            self._synchronize()
        for source, trace in zip(self.sources, traces):
            trace.append(_read(source))
        seconds = self._clock() - start
        self._shared |= is_shared(before, self._cpu_times())
        self._windows[name].append(Window(seconds, self._energies(traces, others), self._lists))
        self._lists = 0

    @contextmanager
    def _polled(self, traces: list[list[list[Reading]]]) -> Iterator[None]:
        """Meters that must be read inside a window too are read by a thread."""
        pairs = [(source, trace) for source, trace in zip(self.sources, traces) if source.period is not None]
        if not pairs:
            yield
            return
        done = Event()
        thread = Thread(target=_poll, args=(pairs, done), name="recbole_prune meters", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def _energies(self, traces: list[list[list[Reading]]], others: list[bool]) -> dict[str, Energy]:
        """The energy of every part that has a meter, its counters added up; ``others``: at the start of the window."""
        found: dict[str, list[Energy]] = {}
        for source, trace, before in zip(self.sources, traces, others):
            shared = before or _others(source)
            for number, channel in enumerate(source.channels):
                energy = channel.energy([readings[number] for readings in trace])
                if shared and energy.joules is not None:
                    energy = Energy(None, CONTAMINATED, energy.good, energy.failed)
                found.setdefault(channel.part, []).append(energy)
        return {part: _added(energies) for part, energies in found.items()}

    def _rest(self) -> None:
        if not (self.has_meters and self._idle_seconds):
            return
        kept, shared = self._windows, self._shared
        self._windows = {name: [] for name in WINDOWS}
        with self.window("train"):
            self._sleep(self._idle_seconds)
        self._idle += self._windows["train"]
        self._windows, self._shared = kept, shared  # at rest, whatever works is another process

    def recommend(self, work: Callable[[], int]) -> None:
        """Make lists once to warm up and to see how long that takes, then as often as fills one window."""
        self._synchronize()
        start = self._clock()
        lists = work()
        self._synchronize()
        if not lists:
            return
        wanted = self._list_seconds / max(self._clock() - start, 1e-6) if self.has_meters else 0
        times = max(_LEAST_LISTS, ceil(wanted))
        self._lists = times * lists
        with self.window("recommend"):
            for _ in range(times):
                work()

    def state(self) -> dict[str, Any]:
        """The windows so far."""
        return {
            "windows": {name: [window.to_json() for window in windows] for name, windows in self._windows.items()},
            "shared": self._shared,
        }

    def restore(self, state: dict[str, Any] | None) -> None:
        """Take over the windows of a training that was killed; None where it measured nothing."""
        if state is not None:
            self._shared |= state["shared"]
            for name, windows in state["windows"].items():
                self._windows[name] = [Window.from_json(window) for window in windows]

    def record(self) -> dict[str, Any]:
        """Rest once more, and add up."""
        self._rest()
        flags = sorted({flag for source in self.sources for flag in source.flags})
        flags += ["shared_cpu"] if self._shared else []
        return account(self._windows, self._idle, flags, device=self.device, meters=self.describe())

    def describe(self) -> dict[str, Any]:
        """Method and details of the meter of every part; of a part without one the reason."""
        found: dict[str, Any] = {}
        for source in self.sources:
            for part in _parts_of([source]):
                found[part] = {"method": source.method, **source.details}
        for part, error in self.missing.items():
            found[part] = {"method": None, "reason": error.reason, "detail": error.detail}
        return {part: found[part] for part in PARTS if part in found}


def _parts_of(sources: Sequence[Source]) -> set[str]:
    return {channel.part for source in sources for channel in source.channels}


def _asked(ask: Callable[[], Answer], otherwise: Answer) -> Answer:
    """What a meter says. Drivers fail in ways of their own, and that costs a number, not the training."""
    try:
        return ask()
    except Exception:
        getLogger("recbole_prune").debug("cause", exc_info=True)
        return otherwise


def _others(source: Source) -> bool:
    """Whether another process computes on what a meter measures, or it cannot tell."""
    return _asked(lambda: source.others() is not None, True)


def _read(source: Source) -> list[Reading]:
    """A reading of every channel."""
    return _asked(source.read, [Reading(time.perf_counter(), None, READ_ERROR) for _ in source.channels])


def _poll(pairs: list[tuple[Source, list[list[Reading]]]], done: Event) -> None:
    """Read each meter whenever its period is over."""
    due = {index: time.monotonic() + (source.period or 0) for index, (source, _) in enumerate(pairs)}
    while not done.wait(max(0.0, min(due.values()) - time.monotonic())):
        for index, (source, trace) in enumerate(pairs):
            if due[index] <= time.monotonic():
                trace.append(_read(source))
                due[index] = time.monotonic() + (source.period or 0)


def _added(energies: Sequence[Energy]) -> Energy:
    """The sum over the counters of a part; None where one of them has no number."""
    reason = next((energy.reason for energy in energies if energy.joules is None), None)
    good, failed, wraps = (sum(getattr(energy, name) for energy in energies) for name in ("good", "failed", "wraps"))
    joules = None if reason is not None else sum(energy.joules or 0.0 for energy in energies)
    return Energy(joules, reason, good, failed, wraps)
