"""Finds and opens the teacher of a run: a checkpoint, a run folder, an artifact, or ranked lists."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from recbole_prune.artifact import read_artifact
from recbole_prune.config.prune_config import PruneConfig
from recbole_prune.config.teachers import Named, find_teacher
from recbole_prune.distillers.list_store import ListStore, require_unchanged
from recbole_prune.distillers.list_teacher import ListTeacher, read_lists
from recbole_prune.distillers.matching import Matching, require_same_data
from recbole_prune.distillers.model_teacher import ModelTeacher, UntrainedTeacher
from recbole_prune.distillers.pupils import first_rows
from recbole_prune.distillers.teacher import Basics, Teacher
from recbole_prune.distillers.teacher_training import teacher_config
from recbole_prune.errors import ConfigError, PruneError, StoreError, in_one_line
from recbole_prune.run.foreign_checkpoint import read_checkpoint
from recbole_prune.run.rebuild import Rebuilt, rebuild, rebuild_checkpoint
from recbole_prune.run.seals import sha256
from recbole_prune.run.store import RunFolder
from recbole_prune.run.workshop import Workshop
from recbole_prune.scoring.known_scores import contradiction_of_subclass

if TYPE_CHECKING:
    from recbole.data.dataset import Dataset

    from recbole_prune.distillers.pupils import Pupils


@dataclass(frozen=True)
class _Opened:
    """A teacher's model, and what the journal says of it."""

    rebuilt: Rebuilt
    metrics: Mapping[str, Any]
    facts: Mapping[str, Any]


def open_teacher(
    config: PruneConfig, pupils: Pupils, folder: RunFolder | None = None, trained: Path | None = None
) -> Teacher:
    """The teacher of a run, checked against the student's data.

    Args:
        config: the student's settings.
        pupils: the student's data.
        folder: of the student's run, which keeps the rankings; None keeps none.
        trained: the run folder of a teacher that was trained first (``distill_teacher_model``); None before that, for
            an untrained teacher, which refuses already what it will never be able to say.

    Raises:
        ConfigError: it cannot be read, was trained on other data, or holds NaN.
        StoreError: it changed since the run began.
    """
    if trained is None and config.settings.distill_teacher_model:
        return _open_untrained(config, pupils)
    key = "distill_teacher" if trained is None else "distill_teacher_model"
    given = config.settings.distill_teacher if trained is None else str(trained)
    with _naming(f"{key}={given}"):
        named = find_teacher(given)
        data = _read(named.file)
        digest = sha256(data)
        if trained is None and digest != config.teacher_digest:
            raise StoreError(f"it changed while this run began: its sha256 was {config.teacher_digest} and is {digest}")
        if trained is None and folder is not None and not folder.is_trained() and not config.settings.fresh:
            require_unchanged(config, folder)
        identity: dict[str, Any] = {"kind": named.kind, "path": str(named.path), "sha256": digest}
        length = config.settings.distill_list_length
        basics = Basics(identity, pupils, length, ListStore(folder, digest, length))
        if named.kind == "lists":
            identity.update(model=None, parameters=None, metrics={})
            return ListTeacher(read_lists(data, named.path.suffix, str(named.path)), basics)
        opened = _open_model(named, data, config)
        model, training = opened.rebuilt.model, opened.rebuilt.training
        matching = _matched(pupils, training, opened.rebuilt.dataset, torch.device(config["device"]))
        changed = contradiction_of_subclass(
            model.to(matching.device), type(model), first_rows(training).to(matching.device)
        )
        if changed:
            raise ConfigError(changed)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        identity.update(opened.facts, model=opened.rebuilt.config["model"], parameters=parameters)
        identity["metrics"] = dict(opened.metrics)
        return ModelTeacher(model, training, matching, basics)


def _open_untrained(config: PruneConfig, pupils: Pupils) -> Teacher:
    """The teacher of ``distill_teacher_model`` before its training, on its own data."""
    name, length = config.settings.distill_teacher_model, config.settings.distill_list_length
    with _naming(f"distill_teacher_model={name}"):
        workshop = Workshop(teacher_config(config))
        training = workshop.train_data._dataset
        matching = _matched(pupils, training, workshop.dataset, torch.device(config["device"]))
        with in_one_line(f"build {name}"):
            model = workshop.build_model()
        basics = Basics({"path": f"{name} (distill_teacher_model)"}, pupils, length, ListStore(None, "", length))
        return UntrainedTeacher(model, training, matching, basics)


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
        _check_weights(artifact.state())
        metrics = {part: info.get(part) for part in ("valid", "test") if info.get(part)}
        return _Opened(rebuild(artifact, changes), metrics, {"ticket": info.get("ticket")})
    line = _line_of(named, sha256(data)) if named.kind == "run" else None
    checkpoint = read_checkpoint(data, str(named.path))
    _check_weights({name: tensor.float().numpy() for name, tensor in checkpoint.state.items()})
    changes = _changes(checkpoint.model, checkpoint.settings, config)
    rebuilt = rebuild_checkpoint(checkpoint, str(named.path), changes)
    if line is None:
        return _Opened(rebuilt, {"valid": checkpoint.valid} if checkpoint.valid else {}, {})
    return _Opened(rebuilt, {part: line[part] for part in ("valid", "test")}, {"ticket": line["ticket"]})


def _line_of(named: Named, digest: str) -> dict[str, Any]:
    """The journal's line of a checkpoint in a run folder."""
    file = f"{named.path.parent.name}/{named.path.name}"
    for line in RunFolder(named.path.parent.parent).tickets():
        if line["checkpoint_file"] == file:
            if line["checkpoint_sha256"] != digest:
                raise ConfigError(f"it is not the checkpoint of which the journal speaks: its sha256 is {digest}")
            return line
    raise ConfigError("the journal of its run has no such ticket")


def _check_weights(state: Mapping[str, np.ndarray]) -> None:
    for name, array in state.items():
        wrong = int(np.isnan(array).sum()) if array.dtype.kind == "f" else 0
        if wrong:
            raise ConfigError(f"{wrong} of the {array.size} weights in {name} are NaN")


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
