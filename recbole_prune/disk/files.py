"""Writing a file whole or not at all, and reading nothing but files."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from recbole_prune.errors import StoreError
from recbole_prune.signals import on_abort

WAY_OUT = "restore it from a copy, or start over with --fresh=True (the folder is kept aside)"
_UMASK = os.umask(0)
os.umask(_UMASK)


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Name the file where the disk refuses to take what is written meanwhile."""
    try:
        yield
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror or error}; what was there before is intact") from error


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that a crash leaves the old or the new content, never a mixture.

    Raises:
        StoreError: the folder is not writable or the disk is full; the old file stays.
    """
    with explained(path):
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
            raise StoreError(f"cannot read {path}: it is not a file; {WAY_OUT}")
        return path.read_bytes()
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror}; {WAY_OUT}") from error


def _sync_folder(folder: Path) -> None:
    """Make a rename durable, where the system lets a folder be synced (network file systems may not)."""
    if os.name == "posix":
        with suppress(OSError):
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
