"""One process at a time works in a run folder, and notices where the folder goes."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from time import sleep
from typing import IO

from recbole_prune.disk.files import explained
from recbole_prune.errors import BusyError, StoreError

LOCK = ".lock"
# who only looks whether a folder is locked holds its lock for less than that
_SECONDS_OF_A_LOOK, _LOOKS = 0.05, 5


def is_locked(folder: Path) -> bool:
    """Whether a process works in a run folder. Nothing is written, and nobody is kept from working there."""
    try:
        descriptor = os.open(folder / LOCK, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except OSError:
        return False
    with os.fdopen(descriptor) as handle:
        return not _lock(handle, shared=True)


def _lock(handle: IO[str], shared: bool) -> bool:
    """Lock an open file until it is closed; False where another process has locked it."""
    try:
        import fcntl

        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except ImportError:  # a system without flock runs without the lock
        pass
    except OSError as error:
        return error.errno not in (errno.EAGAIN, errno.EACCES)  # others mean a file system without locks
    return True


class FolderLock:
    """The lock of a folder: an open file in it, which the system unlocks when the process ends.

    Args:
        folder: that is locked.
        marker: a file that a folder has in which there is something to read; such a one may be on a disk that takes no
            writes.
    """

    def __init__(self, folder: Path, marker: str) -> None:
        self._folder, self._marker = folder, marker
        self._handle: IO[str] | None = None

    def acquire(self) -> None:
        """Lock the folder.

        Raises:
            BusyError: another process works in it.
            StoreError: it is not writable and has nothing to read.
        """
        handle = self._open()
        if handle is None:
            return
        for look in range(_LOOKS):
            if _lock(handle, shared=False):
                self._handle = handle
                return
            if look < _LOOKS - 1:
                sleep(_SECONDS_OF_A_LOOK)
        handle.close()
        raise BusyError(f"another process is working in {self._folder}; wait for it or stop it")

    def _open(self) -> IO[str] | None:
        """The lock's file, to be read only on a disk that takes no writes; None where such a folder has none."""
        path = self._folder / LOCK
        with explained(path):
            try:
                return open(path, "a+")
            except OSError:
                if not (self._folder / self._marker).exists():
                    raise
                return open(path) if path.exists() else None

    def check_present(self) -> None:
        """Refuse to go on in a folder that is no longer the one that was locked; nothing where none is.

        Raises:
            StoreError: it was deleted, moved or replaced.
        """
        if self._handle is None:
            return
        try:
            present = os.path.samestat(os.stat(self._folder / LOCK), os.fstat(self._handle.fileno()))
        except OSError:
            present = False
        if not present:
            raise StoreError(
                f"{self._folder} was deleted or moved while this run was working in it: put it back to continue there; "
                "without it the same command starts anew"
            )

    def release(self) -> None:
        """Unlock the folder."""
        if self._handle is not None:
            self._handle.close()
            self._handle = None
