"""A folder of files that appears complete or not at all, and what a killed process left of one."""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from recbole_prune.artifact.files import CONTENT, TICKET
from recbole_prune.errors import ArtifactError
from recbole_prune.signals import on_abort


def replace_folder(folder: Path, files: Mapping[str, bytes], check: Callable[[Path], None]) -> None:
    """Write files into a folder that appears complete or not at all; an older artifact stays until then.

    The files go into a temporary folder beside, are synced and checked, then the folders change names.

    Args:
        folder: what to write; its parents are made.
        files: content by file name.
        check: called with the temporary folder; if it raises, nothing appears.

    Raises:
        ArtifactError: the folder holds other things than an artifact, or cannot be written (disk full).
    """
    folder = Path(os.path.realpath(folder))
    temporary = folder.with_name(f".{folder.name}.tmp-{secrets.token_hex(4)}")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _writing_beside(folder):
            _refuse_foreign_content(folder)
            with on_abort(partial(shutil.rmtree, temporary, ignore_errors=True)):
                temporary.mkdir()
                for name, data in files.items():
                    _write_synced(temporary / name, data)
                check(temporary)
                _sync_folder(temporary)
                _exchange(temporary, folder)
    except OSError as error:
        reason = error.strerror or str(error)
        kept = "; the artifact that was there is unchanged" if folder.exists() else ""
        raise ArtifactError(f"artifact {folder} was not written: {reason}{kept}") from error


def remove_leftovers(folder: Path) -> None:
    """Finish what a killed :func:`replace_folder` began; no other process may be writing beside the folder.

    Half-written folders go. An older artifact that was set aside comes back, or goes where its successor is in place.

    Raises:
        OSError: a folder cannot be removed or renamed.
    """
    half_written = re.compile(re.escape(f".{folder.name}.tmp-") + "[0-9a-f]{8}")
    for entry in folder.parent.iterdir():
        if half_written.fullmatch(entry.name) and _is_artifact(entry):
            shutil.rmtree(entry)
    _bring_back(folder)
    if _is_artifact(_set_aside(folder)):
        shutil.rmtree(_set_aside(folder))


def _bring_back(folder: Path) -> None:
    """Put back the artifact that a process which died between two renames set aside."""
    if not folder.exists() and _is_artifact(_set_aside(folder)):
        _set_aside(folder).rename(folder)


@contextmanager
def _writing_beside(folder: Path) -> Iterator[None]:
    """Clean up where no other process is writing into the same parent, and let others know that this one is.

    All writers share a lock on the parent; one who cleans up must have it alone. Without such locks (Windows, some
    network file systems) half-written folders stay.
    """
    try:
        import fcntl

        parent = os.open(folder.parent, os.O_RDONLY)
    except (ImportError, OSError):
        _bring_back(folder)
        yield
        return
    try:
        with suppress(OSError):
            fcntl.flock(parent, fcntl.LOCK_EX | fcntl.LOCK_NB)
            remove_leftovers(folder)
        with suppress(OSError):
            fcntl.flock(parent, fcntl.LOCK_SH)
        yield
    finally:
        os.close(parent)


def _set_aside(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")


def _foreign(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.name not in (TICKET, *CONTENT))


def _is_artifact(path: Path) -> bool:
    """Whether it is a folder that holds, complete or not, an artifact and nothing else."""
    return path.is_dir() and not path.is_symlink() and not _foreign(path)


def _refuse_foreign_content(folder: Path) -> None:
    if folder.is_file():
        raise ArtifactError(f"artifact {folder} was not written: there is a file of that name")
    if folder.is_dir() and (foreign := _foreign(folder)):
        raise ArtifactError(
            f"artifact {folder} was not written: the folder holds {foreign[0]!r}, which is no part of an artifact "
            "and would be lost; name another folder or move it away"
        )


def _write_synced(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":
        return  # Windows has no descriptor for a folder
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _exchange(new: Path, folder: Path) -> None:
    """Put ``new`` in the place of ``folder``, whose former content is deleted last."""
    old = _set_aside(folder)
    with on_abort(partial(_bring_back, folder)):
        if folder.exists():
            if _is_artifact(old):
                shutil.rmtree(old, ignore_errors=True)
            folder.rename(old)
        new.rename(folder)
    try:
        _sync_folder(folder.parent)
    except OSError:
        return  # the new artifact stands; the old one is kept until an exchange is known to be on the disk
    if _is_artifact(old):
        shutil.rmtree(old, ignore_errors=True)
