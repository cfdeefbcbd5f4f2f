"""Cells on this machine, some at a time."""

from __future__ import annotations

from time import monotonic, sleep

from recbole_prune.compare.process import Ended, Job, JobProcess, stop_all

_SECONDS_BETWEEN_LOOKS = 0.1


class LocalEngine:
    """Processes of this machine.

    Args:
        workers: how many at a time; 0 runs none.
    """

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._processes: dict[int, JobProcess] = {}

    def has_room(self) -> bool:
        """Whether one more job can begin."""
        return len(self._processes) < self._workers

    def start(self, number: int, job: Job) -> None:
        """Begin a job."""
        self._processes[number] = JobProcess(job)

    def ended(self, seconds: float) -> list[tuple[int, Ended]]:
        """Jobs that have ended, as soon as there is one."""
        until = monotonic() + seconds
        while True:
            found = [(number, ended) for number, one in self._processes.items() if (ended := one.poll()) is not None]
            if found or monotonic() >= until:
                break
            sleep(_SECONDS_BETWEEN_LOOKS)
        for number, _ in found:
            del self._processes[number]
        return found

    def stop(self) -> None:
        """End every job."""
        stop_all(list(self._processes.values()))
