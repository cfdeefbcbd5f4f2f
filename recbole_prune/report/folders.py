"""A run folder as a report reads it: no torch, no RecBole, nothing believed.

Folders may come from anywhere. Every file is opened only where it is one, read only up to a size that no run of ours
comes near, parsed within bounds, checked field by field, and checked against the sha256 that ties the files of a run to
each other. What is wrong with a folder becomes its ``reason``, one sentence, and spoils no other folder.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from recbole_prune.disk.lock import LOCK, is_locked
from recbole_prune.disk.names import CONFIG, JOURNAL, SET_ASIDE, method_name
from recbole_prune.errors import ConfigError, printable
from recbole_prune.report.folder_files import DamagedError, read_contents

FINISHED, UNFINISHED, RUNNING, DAMAGED = "finished", "unfinished", "running", "damaged"
_DEEPEST = 12  # folders between a named one and a run folder


@dataclass(frozen=True)
class RunRecord:
    """One run folder.

    Attributes:
        path: absolute.
        state: ``finished``, ``unfinished`` (can be continued), ``running`` (a process works in it) or ``damaged``.
        reason: what is damaged, None otherwise. Of a damaged folder the fields below hold what could be read before.
        record: ``config.yaml``: ``settings``, ``command``, ``versions``, ``data_sha256``, ``run_hash``, ``base_hash``,
            ``own_model`` and ``scope``.
        scope: ``scope.json``: ``targets`` and more; empty where it is not there yet.
        tickets: the lines of ``tickets.jsonl``, with the fields of DESIGN section 5, in the order of their numbers.
        summary: ``summary.json``, None where the run has not ended.
        bytes_on_disk: by entry of the folder (``checkpoints``, ``artifact``, ``config.yaml``, ...).
    """

    path: Path
    state: str
    reason: str | None
    record: Mapping[str, Any]
    scope: Mapping[str, Any]
    tickets: tuple[Mapping[str, Any], ...]
    summary: Mapping[str, Any] | None
    bytes_on_disk: Mapping[str, int]

    @property
    def settings(self) -> Mapping[str, Any]:
        """What the user and the recipe set; other settings have their defaults."""
        settings: Mapping[str, Any] = self.record.get("settings", {})
        return settings

    @property
    def model(self) -> str:
        """Name of the model; where ``config.yaml`` cannot be read, as the path says."""
        return str(self.settings.get("model", self.path.parent.name))

    @property
    def dataset(self) -> str:
        """Name of the dataset; where ``config.yaml`` cannot be read, as the path says."""
        return str(self.settings.get("dataset", self.path.parent.parent.name))

    @property
    def pruner(self) -> str:
        """Name of the pruner; where ``config.yaml`` cannot be read, as the path says."""
        return str(self.settings.get("pruner", self.path.name.rpartition("-")[0].partition("+")[0] or "none"))

    @property
    def distiller(self) -> str | None:
        """Name of the distiller, None without."""
        name = self.settings.get("distiller")
        return None if name is None else str(name)

    @property
    def method(self) -> str:
        """``pruner`` or ``pruner+distiller``."""
        return method_name(self.pruner, self.distiller)

    @property
    def seed(self) -> int | None:
        """As the tickets say; None where there is no ticket yet and the setting has its default."""
        found = self.tickets[0]["seed"] if self.tickets else self.settings.get("seed")
        return found if isinstance(found, int) else None

    @property
    def valid_metric(self) -> str | None:
        """RecBole's setting, such as ``MRR@10``; None where the run has not ended and the setting has its default."""
        found = (self.summary or self.settings).get("valid_metric")
        return None if found is None else str(found)

    @property
    def dense(self) -> Mapping[str, Any] | None:
        """The line of ticket 0, None where there is none (yet)."""
        return next((line for line in self.tickets if line["ticket"] == 0), None)

    @property
    def chosen(self) -> Mapping[str, Any] | None:
        """The line of the exported ticket, None where the run has not ended."""
        number = None if self.summary is None else self.summary["chosen"]
        return next((line for line in self.tickets if line["ticket"] == number), None)

    @property
    def has_result(self) -> bool:
        """Whether the run has ended with all of its tickets; a process may still work there, to export another one."""
        return self.summary is not None and len(self.summary["tickets"]) == len(self.tickets)

    @property
    def bytes_of(self) -> Mapping[int, int | None]:
        """Bytes of each ticket's weights in an artifact, as the summary counted them."""
        return {} if self.summary is None else {line["ticket"]: line.get("bytes") for line in self.summary["tickets"]}

    @property
    def is_set_aside(self) -> bool:
        """Whether ``--fresh=True`` moved it out of the way of a newer run."""
        return SET_ASIDE in self.path.name

    def command(self) -> str | None:
        """The command that continues it from the present working directory, or prints its table; None without one.

        A model class of the user's own is known to no command, and a folder under another name than its run has would
        not be found.
        """
        expected = (str(self.dataset), str(self.model), f"{self.method}-{self.record.get('run_hash')}")
        if not self.settings or self.record.get("own_model") or self.path.parts[-3:] != expected:
            return None
        place = os.path.relpath(self.path.parents[2])
        given = {**self.settings, "output_dir": str(self.path.parents[2]) if place.startswith("..") else place}
        if place == "pruned":
            del given["output_dir"]
        words = [f"--{name}={_literal(value)}" for name, value in given.items()]
        return shlex.join(["recbole-prune", *words]) if all(word.count("=") == 1 for word in words) else None


def _literal(value: object) -> str:
    """As it is written on a command line: Python, with the quotes that a shell needs not escape."""
    text = str(value)
    return text.replace("'", '"') if not isinstance(value, str) and '"' not in text else text


class Found(NamedTuple):
    """Run folders, and in a sentence each what could not be looked into."""

    runs: list[RunRecord]
    problems: list[str]


def find_runs(folders: Iterable[str | Path]) -> Found:
    """Every run folder that is named or lies below a named folder, in the order of paths, each once.

    Links to folders are followed only where they are named; nothing below a run folder is one.

    Raises:
        ConfigError: a named folder is not there, is no folder, or has no run folder in it.
    """
    found: dict[str, Path] = {}
    problems: list[str] = []
    for given in folders:
        named = Path(given).absolute()
        if not named.is_dir():
            what = "is no folder" if named.exists() else "there is no such folder"
            raise ConfigError(f"{given}: {what}; a run prints its folder, pruned/<dataset>/<model>/<pruner>-<hash>")
        below = list(_walk(named, problems, 0))
        if not below and not problems:
            raise ConfigError(f"{given}: there is no run folder in it; one has {CONFIG} and {JOURNAL}")
        for path in below:
            found.setdefault(os.path.realpath(path), path)
    return Found([read_run(path) for _, path in sorted(found.items())], problems)


def is_run_folder(path: Path) -> bool:
    """Whether a run was begun there."""
    return (path / JOURNAL).is_file() or ((path / CONFIG).is_file() and (path / LOCK).exists())


def _walk(folder: Path, problems: list[str], depth: int) -> Iterator[Path]:
    try:
        if is_run_folder(folder):
            yield folder
            return
        with os.scandir(folder) as entries:
            below = sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
    except OSError as error:
        problems.append(printable(f"{folder} cannot be read: {error.strerror or error}"))
        return
    if below and depth == _DEEPEST:
        problems.append(printable(f"{folder}: what lies deeper was not looked at"))
        return
    for name in below:
        yield from _walk(folder / name, problems, depth + 1)


def read_run(path: Path) -> RunRecord:
    """One run folder; what is wrong with it is its ``reason``."""
    parts: dict[str, Any] = {"record": {}, "scope": {}, "tickets": (), "summary": None}
    reason = None
    try:
        for name, value in read_contents(path):
            parts[name] = value
        state = RUNNING if is_locked(path) else UNFINISHED
    except DamagedError as error:
        state, reason = DAMAGED, str(error)
    run = RunRecord(path.absolute(), state, reason, **parts, bytes_on_disk=_sizes(path))
    return replace(run, state=FINISHED) if state == UNFINISHED and run.has_result else run


def _sizes(folder: Path) -> dict[str, int]:
    """Bytes of every entry of the folder, links not followed."""
    sizes: dict[str, int] = {}
    for root, _, files in os.walk(folder):
        inside = Path(root).relative_to(folder).parts
        for name in files:
            try:
                size = os.lstat(os.path.join(root, name)).st_size
            except OSError:  # another process removed it
                continue
            entry = inside[0] if inside else name
            sizes[entry] = sizes.get(entry, 0) + size
    return sizes
