"""The run folder: atomic writes, the journal of tickets, hashes, resume points.

What a run continues from is written only here: beside its place, synced and renamed. All of it is checked when it is
read back. ``scope.json`` holds the sha256 of ``config.yaml``; every line of the journal, the resume point, the search
and the summary hold that of ``scope.json``; lines, point and search hold those of masks, forms, checkpoints, values of
users and states. So nothing of another run is taken for this one's. In folders of older versions ``scope.json``, lines
and point hold no sha256 of another file; they are read, continued and exported without. ``log.txt``, the TensorBoard
series and the artifact are written by others.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from recbole_prune.artifact.replacing import remove_leftovers
from recbole_prune.disk.files import WAY_OUT, explained, read_file, write_atomic
from recbole_prune.disk.lock import LOCK, FolderLock, is_of_lock
from recbole_prune.disk.names import (
    ARTIFACT,
    CHECKPOINTS,
    CONFIG,
    DISTILLATION,
    FORMS,
    JOURNAL,
    LOG,
    MASKS,
    RESUME,
    REWIND,
    SCOPE,
    SEAL_OF_CONFIG,
    SEAL_OF_RUN,
    SEARCH,
    SERIES,
    SET_ASIDE,
    STATES,
    SUMMARY,
    USERS,
)
from recbole_prune.disk.seals import digest_of, seal, sha256, unseal
from recbole_prune.errors import StoreError
from recbole_prune.ranks.group import on_first, only_first

_FILES = (LOCK, CONFIG, SCOPE, JOURNAL, SUMMARY, SEARCH, REWIND, USERS, LOG)
_FOLDERS = (MASKS, FORMS, CHECKPOINTS, RESUME, DISTILLATION, STATES)  # of files only


class RunFolder:
    """One run on disk (DESIGN section 5); of several processes of the run only the first opens files."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = FolderLock(path, marker=JOURNAL)
        self._identity: str | None = None

    @on_first
    def open(self) -> None:
        """Create and lock the folder.

        Raises:
            BusyError: another process works in it.
            StoreError: it is not writable, or something stands in the place of a file.
        """
        with explained(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        self._refuse_what_is_in_the_way()
        self._lock.acquire()
        self._sweep()

    @on_first
    def is_empty(self) -> bool:
        """Whether nothing but the lock is in it."""
        return all(is_of_lock(child.name) for child in self.path.iterdir())

    @on_first
    def start_over(self) -> None:
        """Move what is there aside, to ``<name>.old-N``, and lock a new folder in its place.

        Raises:
            StoreError: it cannot be moved, or another process was faster.
        """
        number = 1
        while (aside := self.path.with_name(f"{self.path.name}{SET_ASIDE}{number}")).exists():
            number += 1
        self.check_present()
        self.close()
        with explained(aside):
            os.rename(self.path, aside)
            self.path.mkdir()
        self._identity = None
        self._lock.acquire()

    @only_first
    def check_present(self) -> None:
        """Refuse to go on in a folder that is no longer the one that was opened.

        Raises:
            StoreError: it was deleted, moved or replaced.
        """
        self._lock.check_present()

    @only_first
    def close(self) -> None:
        """Release the lock."""
        self._lock.release()

    def _refuse_what_is_in_the_way(self) -> None:
        """Find, before any work, what stands where a file or a folder of the run has to be.

        Raises:
            StoreError: a folder or something else in place of a file, or a file in place of a folder.
        """
        folders = [self.path / name for name in (*_FOLDERS, ARTIFACT, SERIES)]
        for folder in folders:
            if folder.exists() and not folder.is_dir():
                raise StoreError(f"{folder} is in the way: a folder of the run has this name; move it away")
        for file in [
            *(self.path / name for name in _FILES),
            *(entry for name in _FOLDERS for entry in (self.path / name).glob("*")),
        ]:
            if file.exists() and not file.is_file():
                raise StoreError(f"{file} is in the way: it is not a file, as the run needs there; move it away")

    def _sweep(self) -> None:
        """Remove temporary files, and what is left of artifacts, that a killed process left."""
        for leftover in self.path.rglob(".*.tmp"):
            if leftover.is_file() or leftover.is_symlink():  # nothing of ours has such a name and is something else
                with suppress(OSError):  # a disk that takes no writes still shows a finished run
                    leftover.unlink()
        with suppress(OSError):
            remove_leftovers(self.path / ARTIFACT)

    @on_first
    def write(self, name: str, data: bytes) -> str:
        """Write a file of the folder; returns its sha256.

        Raises:
            StoreError: it cannot be written, or the folder is gone.
        """
        self.check_present()
        write_atomic(self.path / name, data)
        return sha256(data)

    @on_first
    def has(self, name: str) -> bool:
        """Whether a file of the folder is there.

        Raises:
            StoreError: the run folder is gone.
        """
        self.check_present()
        return (self.path / name).exists()

    @on_first
    def remove(self, name: str) -> None:
        """Remove a file of the folder, if it is there."""
        path = self.path / name
        if name == SCOPE:
            self._identity = None
        if path.exists():
            with explained(path):
                path.unlink()

    @on_first
    def names(self, folder: str) -> list[str]:
        """The files in one of its folders, as :meth:`remove` takes them."""
        return sorted(f"{folder}/{file.name}" for file in (self.path / folder).glob("*"))

    @on_first
    def subfolder(self, name: str) -> Path:
        """A folder in it for files that others write.

        Raises:
            StoreError: it cannot be made, or the run folder is gone.
        """
        self.check_present()
        path = self.path / name
        with explained(path):
            path.mkdir(parents=True, exist_ok=True)
        return path

    # ---- what ties the files of a run to each other ------------------------------------------------------------------

    @on_first
    def identity(self) -> str | None:
        """What lines, resume point and summary of this run hold: the sha256 of ``scope.json``, and so of its config.

        None where ``scope.json`` is not there yet, or was written by a version without these seals.

        Raises:
            StoreError: ``scope.json`` is damaged, or ``config.yaml`` is not the one that it was written with.
        """
        if self._identity is None and (self.path / SCOPE).exists():
            record = self.read_scope()
            if record.get(SEAL_OF_CONFIG) is not None:
                self._identity = digest_of(record)
        return self._identity

    @on_first
    def write_scope(self, record: dict[str, Any]) -> None:
        """Write ``scope.json`` with the seal of ``config.yaml``, but for a run that was begun without seals."""
        if (self.path / CONFIG).exists() and not self.is_trained():
            record = {**record, SEAL_OF_CONFIG: sha256(read_file(self.path / CONFIG))}
        self.write(SCOPE, seal(record) + b"\n")
        self._identity = None
        self.identity()  # kept from now on: who edits a file meanwhile does not cost a trained ticket its line

    @on_first
    def read_scope(self) -> dict[str, Any]:
        """What :meth:`write_scope` wrote.

        Raises:
            StoreError: it is missing or differs from what was written, or ``config.yaml`` does.
        """
        self.check_present()
        path = self.path / SCOPE
        record = unseal(read_file(path).rstrip(b"\n"))
        if record is None:
            raise StoreError(f"{path} is corrupt: its sha256 does not fit its content; {WAY_OUT}")
        digest = record.get(SEAL_OF_CONFIG)
        if digest is not None and sha256(read_file(self.path / CONFIG)) != digest:
            raise StoreError(
                f"{self.path / CONFIG} is not as this run was begun with it: its sha256 is not the one in {path}; put "
                "the old file back (settings are changed on the command line, which begins a run of its own), or start "
                "over with --fresh=True (the folder is kept aside)"
            )
        return record

    def _bound(self, record: dict[str, Any]) -> dict[str, Any]:
        identity = self.identity()
        return record if identity is None else {**record, SEAL_OF_RUN: identity}

    def _own(self, record: dict[str, Any], place: str) -> dict[str, Any]:
        """Undo :meth:`_bound`; ``place`` is for the message."""
        if record.pop(SEAL_OF_RUN, None) != self.identity():
            raise StoreError(f"{place} is of another run than {self.path / SCOPE}, or that is missing; {WAY_OUT}")
        return record

    @on_first
    def write_summary(self, record: dict[str, Any]) -> None:
        """Write ``summary.json``, unless the file holds just that.

        Raises:
            StoreError: it cannot be written.
            ValueError: the record holds a number that JSON lacks.
        """
        data = seal(self._bound(record), indent=2) + b"\n"
        path = self.path / SUMMARY
        if not path.is_file() or path.read_bytes() != data:
            self.write(SUMMARY, data)

    @on_first
    def read_summary(self) -> dict[str, Any]:
        """What :meth:`write_summary` wrote.

        Raises:
            StoreError: it is missing, damaged, of another run, or has no seal.
        """
        return self._read_sealed(SUMMARY)

    def _read_sealed(self, name: str) -> dict[str, Any]:
        path = self.path / name
        record = unseal(read_file(path).rstrip(b"\n"), indent=2)
        if record is None:
            raise StoreError(f"{path} is damaged: its sha256 does not fit its content; {WAY_OUT}")
        return self._own(record, str(path))

    @on_first
    def write_search(self, record: dict[str, Any]) -> None:
        """Write ``search.json``: what a training before the tickets found."""
        self.write(SEARCH, seal(self._bound(record), indent=2) + b"\n")

    @on_first
    def read_search(self) -> dict[str, Any] | None:
        """What :meth:`write_search` wrote; None where it is not there.

        Raises:
            StoreError: it is damaged or of another run.
        """
        return self._read_sealed(SEARCH) if self.has(SEARCH) else None

    @on_first
    def is_finished(self) -> bool:
        """Whether the journal has every ticket of ``summary.json``; not where one of them is missing or damaged."""
        try:
            return len(self.read_summary()["tickets"]) == len(self.tickets())
        except StoreError:
            return False

    # ---- files with a known sha256, the journal, resume points -------------------------------------------------------

    @on_first
    def read(self, name: str, digest: str) -> bytes:
        """Read a file and check its hash.

        Raises:
            StoreError: the file is missing or differs from what was written.
        """
        self.check_present()
        path = self.path / name
        data = read_file(path)
        if sha256(data) != digest:
            raise StoreError(f"{path} is corrupt: its sha256 is not {digest}; {WAY_OUT}")
        return data

    @on_first
    def tickets(self) -> list[dict[str, Any]]:
        """The journal, every line checked.

        Raises:
            StoreError: a line is damaged or of another run; the message names it and nothing is changed on disk.
        """
        path = self.path / JOURNAL
        if not path.exists():
            return []
        records = []
        for number, line in enumerate(read_file(path).split(b"\n"), 1):
            if not line:
                continue
            record = unseal(line)
            if record is None:
                raise StoreError(f"{path} line {number} is corrupt; {WAY_OUT}")
            records.append(self._own(record, f"{path} line {number}"))
        return records

    @on_first
    def append_ticket(self, record: dict[str, Any]) -> None:
        """Add a line to the journal, sealed with its own sha256."""
        self.check_present()
        path = self.path / JOURNAL
        before = read_file(path) if path.exists() else b""
        if before and not before.endswith(b"\n"):
            before += b"\n"
        write_atomic(path, before + seal(self._bound(record)) + b"\n")

    @on_first
    def is_trained(self) -> bool:
        """Whether a ticket is finished or can be continued, which ties the folder to its data.

        Raises:
            StoreError: the journal is damaged.
        """
        return bool(self.tickets()) or (self.path / RESUME / "point.json").exists()

    @on_first
    def save_resume(self, ticket: int, epoch: int, data: bytes, extra: dict[str, Any]) -> None:
        """Store the resume point of a ticket; the older one goes once the new one is complete."""
        name = f"{RESUME}/ticket-{ticket:03d}-epoch-{epoch:05d}.safetensors"
        digest = self.write(name, data)
        pointer = {"ticket": ticket, "epoch": epoch, "file": name, "digest": digest, **extra}
        self.write(f"{RESUME}/point.json", seal(self._bound(pointer)) + b"\n")
        for other in (self.path / RESUME).glob("*.safetensors"):
            if other != self.path / name:
                other.unlink()

    @on_first
    def load_resume(self, ticket: int) -> tuple[dict[str, Any], bytes] | None:
        """The resume point of a ticket: (its description, its data), or None.

        Raises:
            StoreError: it is damaged or of another run.
        """
        self.check_present()
        path = self.path / RESUME / "point.json"
        if not path.exists():
            return None
        data = read_file(path)
        pointer = unseal(data[:-1]) if data.endswith(b"\n") else None
        if pointer is None:
            raise StoreError(f"{path} is corrupt; remove the folder {path.parent} to train this ticket from its start")
        pointer = self._own(pointer, str(path))
        if pointer["ticket"] != ticket:
            return None
        return pointer, self.read(pointer["file"], pointer["digest"])

    @on_first
    def drop_resume(self) -> None:
        """Remove the resume point of a finished ticket, and the states that no line of the journal names."""
        folder = self.path / RESUME
        if folder.exists():
            for file in sorted(folder.iterdir(), key=lambda f: f.name != "point.json"):
                file.unlink()
            folder.rmdir()
        states = self.names(STATES)
        named = {state["file"] for line in self.tickets() for state in recorded_states(line)} if states else set()
        for name in states:
            if name not in named:
                self.remove(name)


def recorded_states(line: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The states that a line of the journal names, earliest first, without its own checkpoint, the last of them."""
    kept: list[dict[str, Any]] = line.get("states", {}).get("kept", [])
    return kept
