"""What a finished run folder holds beside its result: found and removed, never under the feet of another run."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from recbole_prune.errors import StoreError
from recbole_prune.run import checkpoints
from recbole_prune.run.store import RESUME, RunFolder
from recbole_prune.run.ticket import Ticket


def needless_files(folder: RunFolder, chosen: int, taught_from: Iterable[Path]) -> list[str]:
    """Checkpoints of tickets that are not the chosen one, and resume points.

    What stays: the artifact, masks, journal and log; the checkpoint of the chosen ticket; that of the dense model where
    it was trained here, or where the run that it was taken over from has it no longer, since other runs take it over;
    those that the settings of other runs name as a teacher.

    Args:
        folder: of a finished run, locked.
        chosen: number of the exported ticket.
        taught_from: absolute paths that other runs name as teachers.
    """
    tickets = [Ticket.from_record(record) for record in folder.tickets()]
    exported = next(ticket for ticket in tickets if ticket.ticket == chosen)
    needed = {os.path.realpath(path) for path in taught_from}  # links may lead to one file by several names
    for ticket in tickets:
        origin = folder.path.parent / str(ticket.method.get("adopted_from", "")) / ticket.checkpoint_file
        if "adopted_from" in ticket.method and not origin.is_file():
            needed.add(os.path.realpath(folder.path / ticket.checkpoint_file))
    names = checkpoints.needless("chosen", folder, tickets, exported)
    return [name for name in [*names, *folder.names(RESUME)] if os.path.realpath(folder.path / name) not in needed]


def remove(folder: RunFolder, names: Sequence[str]) -> int:
    """Remove files of a locked folder; how many bytes that were.

    Raises:
        StoreError: one cannot be removed.
    """
    size = 0
    for name in names:
        size += (folder.path / name).stat().st_size
        folder.remove(name)
    return size


def clean(path: Path, chosen: int, taught_from: Iterable[Path], *, really: bool) -> int:
    """Remove what a finished run does not need for its result; the bytes that frees, or would free.

    Raises:
        BusyError: a process works there.
        StoreError: it is damaged, or a file cannot be removed.
    """
    folder = RunFolder(path)
    folder.open()
    try:
        if not folder.is_finished():
            raise StoreError(f"{path} is not finished: nothing of it is removed")
        names = needless_files(folder, chosen, taught_from)
        return remove(folder, names) if really else sum((path / name).stat().st_size for name in names)
    finally:
        folder.close()
