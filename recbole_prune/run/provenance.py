"""Where a result comes from: settings, versions, command and data, written into the run folder and the artifact."""

from __future__ import annotations

import platform
import shlex
from collections.abc import Collection
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from recbole_prune.artifact import read_artifact
from recbole_prune.data.cached import data_digest
from recbole_prune.disk.files import WAY_OUT, read_file
from recbole_prune.errors import ArtifactError, StoreError
from recbole_prune.ranks import group
from recbole_prune.run.store import CONFIG, SCOPE, RunFolder
from recbole_prune.run.ticket import Ticket

_LIBRARIES = ("recbole-prune", "recbole", "torch", "numpy", "scipy", "pandas", "safetensors")
# settings that the path of a run folder says, and not the hash in it
_IN_PATH = ("model", "dataset", "pruner", "distiller")


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that matter to a result."""
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        found[name] = _version(name)
    return found


@cache
def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def require_same_data(config: Any, folder: RunFolder) -> str:
    """The digest of the dataset's files, which must be those that the training in the folder was begun on.

    Raises:
        StoreError: the dataset's files changed since.
    """
    data = data_digest(Path(config["data_path"]), config["dataset"])
    if folder.is_trained() and read_record(folder).get("data_sha256") != data:
        raise StoreError(
            f"the files of dataset {config['dataset']} changed since {folder.path} was begun: put the old data back, "
            "name its folder with --data_path, or start over with --fresh=True (this folder is kept aside)"
        )
    return data


def require_same_run(config: Any, folder: RunFolder) -> None:
    """Refuse a folder that holds all of another run, whose files fit each other.

    Raises:
        StoreError: what was trained there was trained with other settings.
    """
    if not folder.is_trained():
        return
    found, wanted = read_record(folder), config.plain_settings()
    differing = [name for name in _IN_PATH if found["settings"].get(name) != wanted.get(name)]
    if differing or found.get("run_hash", config.run_hash) != config.run_hash:
        what = f"{', '.join(differing)} differ" if differing else f"run_hash is {found['run_hash']}"
        raise StoreError(
            f"{folder.path / CONFIG} is that of another run than of this command ({what}): put back what belongs into "
            "the folder, or start over with --fresh=True (it is kept aside)"
        )


def record(config: Any, folder: RunFolder, data: str) -> None:
    """Write ``config.yaml``; where something is trained already, that of its beginning stays.

    Args:
        config: the settings.
        folder: of the run.
        data: what :func:`require_same_data` gave.
    """
    if folder.is_trained():
        return
    folder.remove(SCOPE)  # a process that trained nothing may have found it in other data
    words = list(config.words)
    if group.count() > 1 and not any(word.startswith(("--nproc=", "--world_size=")) for word in words):
        words.append(f"--nproc={group.count()}")  # torchrun has started them
    document = {
        "command": shlex.join(["recbole-prune", *words]),
        "versions": versions(),
        "data_sha256": data,
        "run_hash": config.run_hash,
        "base_hash": config.base_hash,
        "own_model": config.own_model,
        "scope": [config.settings.prune_scope, config.settings.prune_include, config.settings.prune_exclude],
        "settings": config.plain_settings(),
    }
    folder.write(CONFIG, yaml.safe_dump(document, sort_keys=False, allow_unicode=True).encode())


def read_record(folder: RunFolder) -> dict[str, Any]:
    """What :func:`record` wrote.

    Raises:
        StoreError: ``config.yaml`` is missing, damaged, or not the one that the run was begun with.
    """
    folder.identity()
    path = folder.path / CONFIG
    try:
        document = yaml.safe_load(read_file(path).decode())
    except (ValueError, RecursionError, yaml.YAMLError) as error:  # a date that is none is a ValueError
        raise StoreError(f"cannot read {path}: {' '.join(str(error).split())}; {WAY_OUT}") from error
    if not isinstance(document, dict) or not isinstance(document.get("settings"), dict):
        raise StoreError(f"{path} is corrupt: it holds no settings; {WAY_OUT}")
    return document


def artifact_info(config: Any, ticket: Ticket, wanted: dict[str, Any]) -> dict[str, Any]:
    """Facts of a run that its artifact carries."""
    return {
        "model": config["model"],
        "own_model": config.own_model,
        "dataset": config["dataset"],
        "settings": config.plain_settings(),
        "pruner": config.settings.pruner,
        "source": wanted,
        "ticket": ticket.ticket,
        "sparsity": ticket.sparsity,
        "kept": ticket.kept,
        "prunable": ticket.prunable,
        "valid": ticket.valid,
        "test": ticket.test,
        "versions": versions(),
    }


def artifact_is(folder: Path, wanted: dict[str, Any], fields: Collection[str] = ()) -> bool:
    """Whether a complete artifact of just this ticket and form lies there, which has the given ``fields``."""
    try:
        info = read_artifact(folder).info
        return bool(info.get("source") == wanted) and set(fields) <= set(info)
    except ArtifactError:
        return False
