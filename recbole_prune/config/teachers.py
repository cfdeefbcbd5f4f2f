"""What a path names as a teacher, and the one file whose content stands for it. Only names and bytes are looked at."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from recbole_prune.config.near import did_you_mean, near_names
from recbole_prune.errors import ConfigError

# each lists the sha256 of all that lies beside it
_ARTIFACT_FILE = "ticket.json"
_JOURNAL = "tickets.jsonl"
_LISTS = (".tsv", ".jsonl")
KINDS = "a checkpoint (.pth), a run folder or one of its checkpoints, an artifact, or ranked lists (.tsv, .jsonl)"


class Named(NamedTuple):
    """A teacher on disk.

    Attributes:
        kind: ``checkpoint``, ``run``, ``artifact`` or ``lists``; a checkpoint in a run folder is of kind ``run``.
        path: as an absolute path, with what the user gave.
        file: whose content stands for the teacher.
    """

    kind: str
    path: Path
    file: Path


def find_teacher(given: str) -> Named:
    """What ``distill_teacher`` names.

    Raises:
        ConfigError: nothing is there, or no teacher.
    """
    path = Path(given).absolute()
    if not path.exists():
        beside = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        near = [str(Path(given).parent / name) for name in near_names(path.name, beside)[:1]]
        raise ConfigError(f"distill_teacher={given}: there is no such file or folder{did_you_mean(near)}")
    if path.is_file():
        if path.suffix == ".pth":
            in_run = path.parent.name == "checkpoints" and (path.parent.parent / _JOURNAL).is_file()
            return Named("run" if in_run else "checkpoint", path, path)
        if path.name == _JOURNAL or path.suffix not in _LISTS:
            raise ConfigError(f"distill_teacher={given} is no teacher: it must be {KINDS}")
        return Named("lists", path, path)
    for kind, folder in (("artifact", path), ("run", path / "artifact")):
        if (folder / _ARTIFACT_FILE).is_file():
            return Named(kind, path, folder / _ARTIFACT_FILE)
    if (path / _JOURNAL).is_file():
        raise ConfigError(
            f"distill_teacher={given} is a run that has exported no ticket yet: finish it, or name one of its "
            f"checkpoints, {path / 'checkpoints' / 'ticket-NNN.pth'}"
        )
    raise ConfigError(f"distill_teacher={given} is no teacher: it must be {KINDS}")


def content_digest(given: str) -> str:
    """sha256 of what a teacher holds, wherever it lies.

    Raises:
        ConfigError: as :func:`find_teacher`, or the file cannot be read.
    """
    file = find_teacher(given).file
    try:
        status = file.stat()
        return _digest(file, status.st_mtime_ns, status.st_size, status.st_ino)
    except OSError as error:
        raise ConfigError(f"distill_teacher={given}: {file} cannot be read: {error.strerror or error}") from error


@lru_cache(maxsize=16)
def _digest(file: Path, *version: int) -> str:
    digest = hashlib.sha256()
    with open(file, "rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()
