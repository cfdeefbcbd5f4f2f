"""Who teaches by the settings: what a path names, and the one file whose content stands for it; models to be trained.

Only names and bytes are looked at.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from recbole_prune.config import names
from recbole_prune.config.near import did_you_mean, near_names
from recbole_prune.disk.names import JOURNAL
from recbole_prune.errors import ConfigError

# each lists the sha256 of all that lies beside it
_ARTIFACT_FILE = "ticket.json"
_LISTS = (".tsv", ".jsonl")
_NOT_A_TEACHERS = ("model", "dataset", "output_dir", "pruner", "distiller")
KINDS = "a checkpoint (.pth), a run folder or one of its checkpoints, an artifact, or ranked lists (.tsv, .jsonl)"


class First(NamedTuple):
    """A model that is trained first as a teacher.

    Attributes:
        key: the setting that names it.
        model: its name.
        settings: of RecBole's, its own.
    """

    key: str
    model: str
    settings: Mapping[str, Any]


def trained_first(values: Mapping[str, Any]) -> list[First]:
    """The models that are trained first as teachers, in the order of the settings."""
    models, given = values["distill_teacher_models"], values["distill_teacher_settings"]
    if models:
        return [First("distill_teacher_models", model, given.get(model, {})) for model in models]
    model = values["distill_teacher_model"]
    return [First("distill_teacher_model", model, given)] if model else []


def check_teachers(values: Mapping[str, Any]) -> None:
    """Refuse settings that name no teachers: they lie on disk, or are trained first.

    Raises:
        ConfigError: none is named, or both kinds are; a model is none or named twice; settings are no teacher's own.
    """
    parts = ("", "_model", "_models", "_settings")
    given, model, models, settings = (values[f"distill_teacher{part}"] for part in parts)
    said = {
        "distill_teacher": ",".join(given),
        "distill_teacher_model": model,
        "distill_teacher_models": ",".join(models),
        "distill_teacher_settings": settings,
    }
    named = [f"{name}={value}" for name, value in said.items() if value]
    if (given and len(named) > 1) or (model and models):
        raise ConfigError(
            f"{named[0]} and {named[1]} cannot go together: distill_teacher names teachers that are there, "
            "distill_teacher_model trains one first, distill_teacher_models several"
        )
    if not given and not model and not models:
        also = f" beside distill_teacher_settings={settings}" if settings else ""
        raise ConfigError(
            f"--distiller={values['distiller']} needs a teacher{also}: set distill_teacher to a checkpoint (.pth), run "
            "folder, artifact or file of ranked lists, or distill_teacher_model to a model that is trained first"
        )
    if models:
        _check_several(models, settings)
    for first in trained_first(values):
        try:
            names.check_model(first.model)
        except ConfigError as error:
            raise ConfigError(f"{first.key}={first.model} is not allowed: {error}") from error
        for name in first.settings:
            if name in _NOT_A_TEACHERS or (name.startswith("distill_") and name != "distill_record_states"):
                raise ConfigError(
                    f"distill_teacher_settings={settings} is not allowed: {name} is none of the teacher's own settings"
                )


def _check_several(models: Sequence[str], settings: Mapping[str, Any]) -> None:
    """Of several models every one stands there once, and has settings of its own."""
    twice = [name for place, name in enumerate(models) if name in models[:place]]
    if twice:
        raise ConfigError(
            f"distill_teacher_models={','.join(models)} is not allowed: it names {twice[0]} twice; train them first "
            "and name the run folders with distill_teacher"
        )
    for name, value in settings.items():
        if name not in models:
            raise ConfigError(
                f"distill_teacher_settings={settings} is not allowed: {name} is none of distill_teacher_models="
                f"{','.join(models)}; the settings of several models go by their names, such as "
                f"{{'{models[0]}': {{'embedding_size': 200}}}}"
            )
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            raise ConfigError(
                f"distill_teacher_settings={settings} is not allowed: that of {name} must be a dict such as "
                "{'embedding_size': 200}"
            )


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
            in_run = path.parent.name == "checkpoints" and (path.parent.parent / JOURNAL).is_file()
            return Named("run" if in_run else "checkpoint", path, path)
        if path.name == JOURNAL or path.suffix not in _LISTS:
            raise ConfigError(f"distill_teacher={given} is no teacher: it must be {KINDS}")
        return Named("lists", path, path)
    for kind, folder in (("artifact", path), ("run", path / "artifact")):
        if (folder / _ARTIFACT_FILE).is_file():
            return Named(kind, path, folder / _ARTIFACT_FILE)
    if (path / JOURNAL).is_file():
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
