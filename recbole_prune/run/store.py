"""The run folder: atomic writes, the journal of tickets, hashes, the lock, resume points.

What a run continues from is written only here: beside its place, synced and renamed; tickets, masks, checkpoints and
resume points are checked against a sha256 when they are read back. ``log.txt``, the TensorBoard series and the artifact
are written by others.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from recbole_prune.artifact.replacing import remove_leftovers
from recbole_prune.errors import StoreError
from recbole_prune.signals import on_abort

JOURNAL = "tickets.jsonl"
SCOPE = "scope.json"
REWIND = "rewind.safetensors"
RESUME = "resume"
ARTIFACT = "artifact"
SERIES = "tensorboard"
_FILES = (".lock", "config.yaml", SCOPE, JOURNAL, "summary.json", REWIND, "log.txt")
_FOLDERS = ("masks", "checkpoints", RESUME)  # of files only
_UMASK = os.umask(0)
os.umask(_UMASK)


def sha256(data: bytes) -> str:
    """Hex digest of bytes."""
    return hashlib.sha256(data).hexdigest()


def canonical(record: dict[str, Any]) -> bytes:
    """One line of JSON with sorted keys."""
    return json.dumps(record, sort_keys=True, ensure_ascii=False, allow_nan=False).encode()


def _seal(record: dict[str, Any]) -> bytes:
    """One line of JSON that carries the sha256 of its record."""
    sealed = {**record, "sha256": sha256(canonical(record))}
    return json.dumps(sealed, ensure_ascii=False, allow_nan=False).encode()


def _unseal(line: bytes) -> dict[str, Any] | None:
    """The record of a line, or None if it is not byte for byte what :func:`_seal` wrote."""
    try:
        record = json.loads(line)
        record.pop("sha256")
        return record if _seal(record) == line else None
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror or error}; what was there before is intact") from error


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that a crash leaves the old or the new content, never a mixture.

    Raises:
        StoreError: the folder is not writable or the disk is full; the old file stays.
    """
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        with on_abort(partial(Path(temporary).unlink, missing_ok=True)):
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o666 & ~_UMASK)
            os.replace(temporary, path)
        _sync_folder(path.parent)


def read_file(path: Path) -> bytes:
    """Content of a file of a run folder; what is no file is not opened: reading a pipe never ends.

    Raises:
        StoreError: it is missing, no file, or cannot be read.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise StoreError(f"cannot read {path}: it is not a file; {_WAY_OUT}")
        return path.read_bytes()
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror}; {_WAY_OUT}") from error


def _sync_folder(folder: Path) -> None:
    """Make a rename durable, where the system lets a folder be synced (network file systems may not)."""
    if os.name == "posix":
        with suppress(OSError):
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


class RunFolder:
    """One run on disk (DESIGN section 5)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: Any = None

    def open(self) -> None:
        """Create and lock the folder.

        Raises:
            StoreError: it is not writable, another process works in it, or something stands in the place of a file.
        """
        with _explained(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        self._refuse_what_is_in_the_way()
        self._acquire()
        self._sweep()

    def is_empty(self) -> bool:
        """Whether nothing but the lock is in it."""
        return all(child.name == ".lock" for child in self.path.iterdir())

    def start_over(self) -> None:
        """Move what is there aside, to ``<name>.old-N``, and lock a new folder in its place.

        Raises:
            StoreError: it cannot be moved, or another process was faster.
        """
        number = 1
        while (aside := self.path.with_name(f"{self.path.name}.old-{number}")).exists():
            number += 1
        self.check_present()
        self.close()
        with _explained(aside):
            os.rename(self.path, aside)
            self.path.mkdir()
        self._acquire()

    def _acquire(self) -> None:
        handle = self._open_lock()
        if handle is None:
            return
        try:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:  # a system without flock runs without the lock
            pass
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):  # others mean a file system without locks
                handle.close()
                raise StoreError(f"another process is working in {self.path}; wait for it or stop it") from None
        self._lock = handle

    def _open_lock(self) -> Any:
        """The lock's file, to be read only on a disk that takes no writes; None where such a folder has none."""
        path = self.path / ".lock"
        with _explained(path):
            try:
                return open(path, "a+")
            except OSError:
                if not (self.path / JOURNAL).exists():
                    raise
                return open(path) if path.exists() else None

    def check_present(self) -> None:
        """Refuse to go on in a folder that is no longer the one that was opened.

        Raises:
            StoreError: it was deleted, moved or replaced.
        """
        if self._lock is None:
            return
        try:
            present = os.path.samestat(os.stat(self.path / ".lock"), os.fstat(self._lock.fileno()))
        except OSError:
            present = False
        if not present:
            raise StoreError(
                f"{self.path} was deleted or moved while this run was working in it: put it back to continue there; "
                "without it the same command starts anew"
            )

    def close(self) -> None:
        """Release the lock."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

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

    def write(self, name: str, data: bytes) -> str:
        """Write a file of the folder; returns its sha256.

        Raises:
            StoreError: it cannot be written, or the folder is gone.
        """
        self.check_present()
        write_atomic(self.path / name, data)
        return sha256(data)

    def has(self, name: str) -> bool:
        """Whether a file of the folder is there.

        Raises:
            StoreError: the run folder is gone.
        """
        self.check_present()
        return (self.path / name).exists()

    def remove(self, name: str) -> None:
        """Remove a file of the folder, if it is there."""
        path = self.path / name
        if path.exists():
            with _explained(path):
                path.unlink()

    def write_json(self, name: str, record: Any) -> str:
        """Write indented JSON, unless the file holds just that."""
        data = json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False).encode() + b"\n"
        path = self.path / name
        return sha256(data) if path.is_file() and path.read_bytes() == data else self.write(name, data)

    def subfolder(self, name: str) -> Path:
        """A folder in it for files that others write.

        Raises:
            StoreError: it cannot be made, or the run folder is gone.
        """
        self.check_present()
        path = self.path / name
        with _explained(path):
            path.mkdir(parents=True, exist_ok=True)
        return path

    def write_sealed(self, name: str, record: dict[str, Any]) -> None:
        """Write a record as JSON that carries its own sha256."""
        self.write(name, _seal(record) + b"\n")

    def read_sealed(self, name: str) -> dict[str, Any]:
        """Read what :meth:`write_sealed` wrote.

        Raises:
            StoreError: the file is missing or differs from what was written.
        """
        self.check_present()
        path = self.path / name
        record = _unseal(read_file(path).rstrip(b"\n"))
        if record is None:
            raise StoreError(f"{path} is corrupt: its sha256 does not fit its content; {_WAY_OUT}")
        return record

    def read(self, name: str, digest: str) -> bytes:
        """Read a file and check its hash.

        Raises:
            StoreError: the file is missing or differs from what was written.
        """
        self.check_present()
        path = self.path / name
        data = read_file(path)
        if sha256(data) != digest:
            raise StoreError(f"{path} is corrupt: its sha256 is not {digest}; {_WAY_OUT}")
        return data

    def tickets(self) -> list[dict[str, Any]]:
        """The journal, every line checked.

        Raises:
            StoreError: a line is damaged; the message names it and nothing is changed on disk.
        """
        path = self.path / JOURNAL
        if not path.exists():
            return []
        records = []
        for number, line in enumerate(read_file(path).split(b"\n"), 1):
            if not line:
                continue
            record = _unseal(line)
            if record is None:
                raise StoreError(f"{path} line {number} is corrupt; {_WAY_OUT}")
            records.append(record)
        return records

    def append_ticket(self, record: dict[str, Any]) -> None:
        """Add a line to the journal, sealed with its own sha256."""
        self.check_present()
        path = self.path / JOURNAL
        before = read_file(path) if path.exists() else b""
        if before and not before.endswith(b"\n"):
            before += b"\n"
        write_atomic(path, before + _seal(record) + b"\n")

    def is_trained(self) -> bool:
        """Whether a ticket is finished or can be continued, which ties the folder to its data.

        Raises:
            StoreError: the journal is damaged.
        """
        return bool(self.tickets()) or (self.path / RESUME / "point.json").exists()

    def save_resume(self, ticket: int, epoch: int, data: bytes, extra: dict[str, Any]) -> None:
        """Store the resume point of a ticket; the older one goes once the new one is complete."""
        name = f"{RESUME}/ticket-{ticket:03d}-epoch-{epoch:05d}.safetensors"
        digest = self.write(name, data)
        pointer = {"ticket": ticket, "epoch": epoch, "file": name, "digest": digest, **extra}
        self.write_sealed(f"{RESUME}/point.json", pointer)
        for other in (self.path / RESUME).glob("*.safetensors"):
            if other != self.path / name:
                other.unlink()

    def load_resume(self, ticket: int) -> tuple[dict[str, Any], bytes] | None:
        """The resume point of a ticket: (its description, its data), or None.

        Raises:
            StoreError: it is damaged.
        """
        self.check_present()
        path = self.path / RESUME / "point.json"
        if not path.exists():
            return None
        data = read_file(path)
        pointer = _unseal(data[:-1]) if data.endswith(b"\n") else None
        if pointer is None:
            raise StoreError(f"{path} is corrupt; remove the folder {path.parent} to train this ticket from its start")
        if pointer["ticket"] != ticket:
            return None
        return pointer, self.read(pointer["file"], pointer["digest"])

    def drop_resume(self) -> None:
        """Remove the resume point of a finished ticket."""
        folder = self.path / RESUME
        if folder.exists():
            for file in sorted(folder.iterdir(), key=lambda f: f.name != "point.json"):
                file.unlink()
            folder.rmdir()


_WAY_OUT = "restore it from a copy, or start over with --fresh=True (the folder is kept aside)"
