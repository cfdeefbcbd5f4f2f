"""One process at a time works in a run folder, on this machine or another, and notices where the folder goes."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from time import sleep
from typing import IO

from recbole_prune.disk.claims import PREFIX, SECONDS_UNTIL_FREE, Claim, is_claimed, is_shared
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
        return _lock(handle, shared=True) is False or is_claimed(folder)


def _lock(handle: IO[str], shared: bool) -> bool | None:
    """Lock an open file until it is closed; False where another process has it, None where there are no locks."""
    try:
        import fcntl

        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except ImportError:  # a system without flock runs without the lock
        return None
    except OSError as error:
        return False if error.errno in (errno.EAGAIN, errno.EACCES) else None  # others: a file system without locks
    return True


def is_of_lock(name: str) -> bool:
    """Whether a file of a run folder is there to lock it."""
    return name == LOCK or name.startswith(PREFIX)


class FolderLock:
    """The lock of a folder: an open file in it, which the system unlocks when the process ends, and a claim.

    Args:
        folder: that is locked.
        marker: a file that a folder has in which there is something to read; such a one may be on a disk that takes no
            writes.
    """

    def __init__(self, folder: Path, marker: str) -> None:
        self._folder, self._marker = folder, marker
        self._handle: IO[str] | None = None
        self._claim: Claim | None = None

    def acquire(self) -> None:
        """Lock the folder.

        Raises:
            BusyError: another process works in it.
            StoreError: it is not writable and has nothing to read.
        """
        handle = self._open()
        if handle is None:
            return None
        for look in range(_LOOKS):
            locked = _lock(handle, shared=False)
            if locked is not False:
                self._handle = handle
                return self._claim_folder(handle, locked is True)
            if look < _LOOKS - 1:
                sleep(_SECONDS_OF_A_LOOK)
        handle.close()
        raise BusyError(f"another process is working in {self._folder}; wait for it or stop it")

    def _claim_folder(self, handle: IO[str], locks_work: bool) -> None:
        """Claim a folder that other machines may see, unless it takes no writes."""
        if not handle.writable() or not is_shared(self._folder):
            return
        claim = Claim(self._folder)
        try:
            with explained(self._folder):
                os.utime(handle.fileno())
                claim.acquire(os.fstat(handle.fileno()).st_mtime, locks_work)
        except StoreError:
            self.release()
            raise
        self._claim = claim

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
            StoreError: it was deleted, moved or replaced, or another machine has taken it over.
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
        if self._claim is not None and not self._claim.is_held():
            raise BusyError(
                f"another process has taken {self._folder} over, since this one was not heard of for "
                f"{SECONDS_UNTIL_FREE:.0f} s; the same command goes on once that has ended"
            )

    def release(self) -> None:
        """Unlock the folder."""
        if self._claim is not None:
            self._claim.release()
            self._claim = None
        if self._handle is not None:
            self._handle.close()
            self._handle = None
