"""Where a result comes from: settings, versions, command and data, written into the run folder and the artifact."""

from __future__ import annotations

import hashlib
import platform
import shlex
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from recbole_prune.artifact import read_artifact
from recbole_prune.errors import ArtifactError, StoreError
from recbole_prune.run.store import SCOPE, RunFolder, read_file
from recbole_prune.run.ticket import Ticket

_LIBRARIES = ("recbole-prune", "recbole", "torch", "numpy", "scipy", "pandas", "safetensors")


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that matter to a result."""
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def data_digest(folder: Path, dataset: str) -> str:
    """sha256 over the atomic files of a dataset, by name and content. Folders, pipes and dangling links are none."""
    digest = hashlib.sha256()
    entries = folder.iterdir() if folder.is_dir() else ()
    for file in sorted(entry for entry in entries if entry.name.startswith(f"{dataset}.") and entry.is_file()):
        digest.update(file.name.encode() + b"\0")
        with open(file, "rb") as stream:
            for block in iter(lambda: stream.read(1 << 20), b""):
                digest.update(block)
    return digest.hexdigest()


def require_same_data(config: Any, folder: RunFolder) -> str:
    """The digest of the dataset's files, which must be those that the training in the folder was begun on.

    Raises:
        StoreError: the dataset's files changed since.
    """
    data = data_digest(Path(config["data_path"]), config["dataset"])
    if folder.is_trained() and read_record(folder.path).get("data_sha256") != data:
        raise StoreError(
            f"the files of dataset {config['dataset']} changed since {folder.path} was begun: put the old data back, "
            "name its folder with --data_path, or start over with --fresh=True (this folder is kept aside)"
        )
    return data


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
    document = {
        "command": shlex.join(["recbole-prune", *config.words]),
        "versions": versions(),
        "data_sha256": data,
        "run_hash": config.run_hash,
        "base_hash": config.base_hash,
        "own_model": config.own_model,
        "scope": [config.settings.prune_scope, config.settings.prune_include, config.settings.prune_exclude],
        "settings": config.plain_settings(),
    }
    folder.write("config.yaml", yaml.safe_dump(document, sort_keys=False, allow_unicode=True).encode())


def read_record(folder: Path) -> dict[str, Any]:
    """What :func:`record` wrote.

    Raises:
        StoreError: ``config.yaml`` is missing or damaged.
    """
    path = folder / "config.yaml"
    try:
        document = yaml.safe_load(read_file(path).decode())
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise StoreError(f"cannot read {path}: {error}") from error
    if not isinstance(document, dict) or "settings" not in document:
        raise StoreError(f"{path} is corrupt: it holds no settings; restore it or start over with --fresh=True")
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


def artifact_is(folder: Path, wanted: dict[str, Any]) -> bool:
    """Whether a complete artifact of just this ticket and form lies there."""
    try:
        return bool(read_artifact(folder).info.get("source") == wanted)
    except ArtifactError:
        return False
