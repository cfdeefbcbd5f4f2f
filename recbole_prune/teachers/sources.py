"""Finds and opens the teachers of a run: checkpoints, run folders, artifacts, or ranked lists."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from recbole_prune.artifact import read_artifact
from recbole_prune.config.prune_config import PruneConfig
from recbole_prune.config.teachers import First, Named, find_teacher, trained_first
from recbole_prune.disk.seals import sha256
from recbole_prune.errors import ConfigError, PruneError, StoreError, in_one_line
from recbole_prune.run.foreign_checkpoint import read_checkpoint
from recbole_prune.run.rebuild import Rebuilt, rebuild, rebuild_checkpoint
from recbole_prune.run.store import RunFolder, recorded_states
from recbole_prune.run.workshop import Workshop
from recbole_prune.scoring.known_scores import contradiction_of_subclass
from recbole_prune.teachers.base import Basics, Teacher
from recbole_prune.teachers.ensemble import Ensemble
from recbole_prune.teachers.list_file import ListTeacher, read_lists
from recbole_prune.teachers.matching import Matching, require_same_data
from recbole_prune.teachers.model import ModelTeacher, UntrainedTeacher
from recbole_prune.teachers.pupils import first_rows
from recbole_prune.teachers.recorded_states import build_state, check_weights, require_states, run_of
from recbole_prune.teachers.store import TEACHER, ListStore, require_unchanged
from recbole_prune.teachers.training import teacher_config

if TYPE_CHECKING:
    from recbole.data.dataset import Dataset

    from recbole_prune.teachers.pupils import Pupils


@dataclass(frozen=True)
class _Opened:
    """A teacher's model, and what the journal says of it; ``line`` is that of its ticket, where it is of a run."""

    rebuilt: Rebuilt
    metrics: Mapping[str, Any]
    facts: Mapping[str, Any]
    line: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class _Source:
    """Where a teacher comes from.

    Attributes:
        said: the setting that names it, which begins every message.
        path: on disk; None before it is trained.
        first: the model that is to be trained, where it is.
        digest: what its content was when the settings were read; None where nobody knew.
    """

    said: str
    path: str | None
    first: First | None = None
    digest: str | None = None


def open_teacher(
    config: PruneConfig,
    pupils: Pupils,
    folder: RunFolder | None = None,
    trained: Sequence[Path | None] = (),
    with_states: bool = False,
) -> Teacher:
    """The teacher of a run, or its teachers as an :class:`Ensemble`, checked against the student's data.

    Args:
        config: the student's settings.
        pupils: the student's data.
        folder: of the student's run, which keeps the rankings; None keeps none.
        trained: the run folders of the teachers that are trained first; None stands for one before that, which opens as
            an untrained teacher and refuses already what it will never be able to say.
        with_states: whether the distiller reads the states of their trainings.

    Raises:
        ConfigError: one cannot be read, was trained on other data, holds NaN, lacks the states that are
            to be read, or is named twice.
        StoreError: one changed since the run began.
    """
    sources = _sources(config, trained)
    on_disk = not any(source.first for source in sources)
    if on_disk and folder is not None and not folder.is_trained() and not config.settings.fresh:
        with _naming(f"distill_teacher={','.join(config.settings.distill_teacher)}"):
            require_unchanged(config, folder)
    opening = _Opening(config, pupils, folder, with_states)
    if len(sources) == 1:
        return opening.open(sources[0], TEACHER)
    members = [opening.open(source, f"{TEACHER}-{number}") for number, source in enumerate(sources, 1)]
    digests = [str(member.identity.get("sha256", number)) for number, member in enumerate(members)]
    for number, digest in enumerate(digests):
        if digest in digests[:number]:
            same = sources[digests.index(digest)].said, sources[number].said
            raise ConfigError(f"{same[1]} is the teacher that {same[0]} is: several teachers must differ")
    return Ensemble(members, ListStore(folder, digests, config.settings.distill_list_length))


def _sources(config: PruneConfig, trained: Sequence[Path | None]) -> list[_Source]:
    firsts, given = trained_first(config.settings), config.settings.distill_teacher
    if not firsts:
        return [
            _Source(f"distill_teacher={path}", path, digest=digest)
            for path, digest in zip(given, config.teacher_digests)
        ]
    return [
        _Source(f"{first.key}={path or first.model}", None if path is None else str(path), first)
        for first, path in zip(firsts, trained or [None] * len(firsts))
    ]


@dataclass(frozen=True)
class _Opening:
    """Opens teachers for one student."""

    config: PruneConfig
    pupils: Pupils
    folder: RunFolder | None
    with_states: bool

    def open(self, source: _Source, name: str) -> Teacher:
        """One of them, whose rankings get a name."""
        with _naming(source.said):
            if source.path is None:
                return self._open_untrained(source)
            named = find_teacher(source.path)
            data = _read(named.file)
            digest = sha256(data)
            if source.digest not in (None, digest):
                raise StoreError(f"it changed while this run began: its sha256 was {source.digest} and is {digest}")
            identity: dict[str, Any] = {"kind": named.kind, "path": str(named.path), "sha256": digest}
            if named.kind == "lists":
                identity.update(model=None, parameters=None, metrics={})
                lines = read_lists(data, named.path.suffix, str(named.path))
                return ListTeacher(lines, self._basics(identity, name))
            return self._open_model(named, data, identity, name)

    def _basics(self, identity: dict[str, Any], name: str, states: Sequence[str] = ()) -> Basics:
        length = self.config.settings.distill_list_length
        store = ListStore(self.folder, [identity["sha256"]], length, name, states)
        return Basics(identity, self.pupils, length, store)

    def _open_model(self, named: Named, data: bytes, identity: dict[str, Any], name: str) -> Teacher:
        opened = _open_model(named, data, self.config)
        rebuilt = opened.rebuilt
        states = recorded_states(opened.line or {}) if self.with_states else []
        if self.with_states:
            require_states(named, rebuilt.config, opened.line)
        basics = self._basics(identity, name, [state["sha256"] for state in states])
        matching = _matched(self.pupils, rebuilt.training, rebuilt.dataset, torch.device(self.config["device"]))
        model = rebuilt.model.to(matching.device)
        changed = contradiction_of_subclass(model, type(model), first_rows(rebuilt.training).to(matching.device))
        if changed:
            raise ConfigError(changed)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        identity.update(opened.facts, model=rebuilt.config["model"], parameters=parameters)
        identity["metrics"] = dict(opened.metrics)
        if states:
            identity["states"] = [state["epoch"] for state in states]
        builds = [partial(build_state, rebuilt, named, state, matching.device) for state in states]
        return ModelTeacher(model, rebuilt.training, matching, basics, builds)

    def _open_untrained(self, source: _Source) -> Teacher:
        """A teacher before its training, on its own data."""
        assert source.first is not None
        name, length = source.first.model, self.config.settings.distill_list_length
        workshop = Workshop(teacher_config(self.config, source.first, self.with_states))
        training = workshop.train_data._dataset
        matching = _matched(self.pupils, training, workshop.dataset, torch.device(self.config["device"]))
        with in_one_line(f"build {name}"):
            model = workshop.build_model()
        identity = {"path": f"{name} ({source.first.key})"}
        return UntrainedTeacher(
            model, training, matching, Basics(identity, self.pupils, length, ListStore(None, [""], length))
        )


def _matched(pupils: Pupils, training: Dataset, whole: Dataset, device: torch.device) -> Matching:
    """The ids of a teacher's dataset, which must hold the student's data."""
    matching = Matching(pupils.dataset, training, device)
    require_same_data(pupils, training, whole, matching)
    return matching


@contextmanager
def _naming(setting: str) -> Iterator[None]:
    """Begin every message with the setting."""
    try:
        yield
    except StoreError as error:
        raise StoreError(f"{setting}: {error}") from error
    except PruneError as error:
        text = str(error)
        raise ConfigError(text if text.startswith("distill_teacher") else f"{setting}: {text}") from error


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror or error}") from error


def _open_model(named: Named, data: bytes, config: PruneConfig) -> _Opened:
    if named.file.suffix != ".pth":
        artifact = read_artifact(named.file.parent)
        changes = _changes(artifact.info.get("model"), artifact.info.get("settings", {}), config)
        info = artifact.info
        check_weights(artifact.state())
        metrics = {part: info.get(part) for part in ("valid", "test") if info.get(part)}
        lines = run_of(named).tickets() if named.kind == "run" else []
        line = next((line for line in lines if line["ticket"] == info.get("ticket")), None)
        return _Opened(rebuild(artifact, changes), metrics, {"ticket": info.get("ticket")}, line)
    line = _line_of(named, sha256(data)) if named.kind == "run" else None
    checkpoint = read_checkpoint(data, str(named.path))
    check_weights({name: tensor.float().numpy() for name, tensor in checkpoint.state.items()})
    changes = _changes(checkpoint.model, checkpoint.settings, config)
    rebuilt = rebuild_checkpoint(checkpoint, str(named.path), changes)
    if line is None:
        return _Opened(rebuilt, {"valid": checkpoint.valid} if checkpoint.valid else {}, {})
    return _Opened(rebuilt, {part: line[part] for part in ("valid", "test")}, {"ticket": line["ticket"]}, line)


def _line_of(named: Named, digest: str) -> dict[str, Any]:
    """The journal's line of a checkpoint in a run folder."""
    file = f"{named.path.parent.name}/{named.path.name}"
    for line in run_of(named).tickets():
        if line["checkpoint_file"] == file:
            if line["checkpoint_sha256"] != digest:
                raise ConfigError(f"it is not the checkpoint of which the journal speaks: its sha256 is {digest}")
            return line
    raise ConfigError("the journal of its run has no such ticket")


def _changes(model: object, settings: Mapping[str, Any], config: PruneConfig) -> dict[str, Any]:
    """What is not taken from the teacher's settings: devices, data that were moved, a class of the user's own."""
    changes = {name: config[name] for name in ("gpu_id", "use_gpu") if name in config}
    dataset = str(settings.get("dataset"))
    if config.own_model and config["model"] == model:
        changes["model"] = config.model_class
    mine = config.plain_settings().get("data_path")
    stored = settings.get("data_path")
    if dataset == config["dataset"] and mine and not (stored and (Path(str(stored)) / dataset).is_dir()):
        changes["data_path"] = mine
    return changes
