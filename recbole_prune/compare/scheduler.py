"""Which cell runs next: dense models first, none twice, none that another process has."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from time import sleep
from typing import NamedTuple, Protocol

from recbole_prune.compare.cells import Cell
from recbole_prune.compare.process import Ended, Job
from recbole_prune.disk.lock import is_locked
from recbole_prune.signals import on_abort

_SECONDS_BETWEEN_LOOKS = 1.0


class Engine(Protocol):
    """Who runs jobs."""

    def has_room(self) -> bool:
        """Whether one more job can begin."""

    def start(self, number: int, job: Job) -> None:
        """Begin a job; ``number`` stands for it."""

    def ended(self, seconds: float) -> list[tuple[int, Ended]]:
        """Jobs that have ended since, as soon as there is one, at the latest after so many seconds."""

    def stop(self) -> None:
        """End every job, and wait for that; what is finished is kept."""


class Step(NamedTuple):
    """What has just happened.

    Attributes:
        ended: the cell that is done with, None for a look at the clock.
        failure: why it failed, None if it did not.
        ran: whether it was run now; else it had been finished before, or by another process.
        running: the cells under way.
    """

    ended: Cell | None
    failure: str | None
    ran: bool
    running: Sequence[Cell]


def run_cells(
    cells: Sequence[Cell], engine: Engine, job_of: Callable[[Cell], Job], is_done: Callable[[Cell], bool]
) -> Iterator[Step]:
    """Run what is not done, and tell of every cell when it is.

    A signal, or the end of the one who listens, stops what runs.

    Args:
        cells: in the order in which they are to begin.
        engine: runs them.
        job_of: the job of a cell.
        is_done: whether there is nothing left to do for a cell.
    """
    schedule = _Schedule(cells)
    with on_abort(engine.stop):
        for cell in cells:
            if is_done(cell):
                schedule.end(cell, True)
                yield Step(cell, None, False, ())
        while schedule.waiting or schedule.running:
            # another comparison may run a cell, or somebody by hand
            free = (cell for cell in schedule.ready() if not is_locked(cell.folder)) if engine.has_room() else iter(())
            found = next(free, None)
            if found is None:
                yield from _wait(schedule, engine)
            elif is_done(found):
                schedule.end(found, True)
                yield Step(found, None, False, tuple(schedule.running.values()))
            else:
                engine.start(schedule.begin(found), job_of(found))


def _wait(schedule: _Schedule, engine: Engine) -> Iterator[Step]:
    if not schedule.running:  # others have what is left
        sleep(_SECONDS_BETWEEN_LOOKS)
    found = engine.ended(_SECONDS_BETWEEN_LOOKS) if schedule.running else []
    for number, ended in found:
        cell = schedule.running[number]
        schedule.end(cell, ended.failure is None)
        yield Step(cell, ended.failure, True, tuple(schedule.running.values()))
    if not found:
        yield Step(None, None, False, tuple(schedule.running.values()))


class _Schedule:
    """Cells that wait, cells under way, and what of each group is there already."""

    def __init__(self, cells: Sequence[Cell]) -> None:
        self.waiting = list(cells)
        self.running: dict[int, Cell] = {}
        self._begun = 0
        self._trained: set[str] = set()

    def ready(self) -> list[Cell]:
        """Cells that may begin now.

        A dense model that nobody has trained yet is trained by one cell of its group, while the others wait: where that
        one fails, the next one tries.
        """
        busy = {cell.group for cell in self.running.values()}
        ready = []
        for cell in self.waiting:
            earlier = any(
                other.before == cell.before and other.phase < cell.phase
                for other in (*self.waiting, *self.running.values())
            )
            if not earlier and (cell.group in self._trained or cell.group not in busy):
                ready.append(cell)
        return ready

    def begin(self, cell: Cell) -> int:
        """Count a cell as under way; its number."""
        self._begun += 1
        self.waiting.remove(cell)
        self.running[self._begun] = cell
        return self._begun

    def end(self, cell: Cell, succeeded: bool) -> None:
        """Count a cell as done with."""
        self.running = {number: other for number, other in self.running.items() if other is not cell}
        self.waiting = [other for other in self.waiting if other is not cell]
        if succeeded:
            self._trained.add(cell.group)
