"""Names of settings, models and datasets: what is unknown, and what was probably meant.

Asked on the command line before RecBole is imported, and again when a config is built.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recbole_prune.config import host, schema
from recbole_prune.config.near import did_you_mean, near_names
from recbole_prune.errors import ConfigError


def check_setting(name: str, model: type | str | None, exact: bool = True) -> str | None:
    """A warning about a setting that nobody knows, None where it is known.

    Args:
        name: the key.
        model: name of the model, or a class from elsewhere, whose source file may read further settings.
        exact: whether a name close to one of RecBole's is refused; False only warns.

    Raises:
        ConfigError: the name is one of ours but for its spelling, or close to a setting of RecBole's for this model.
    """
    if name in schema.known_keys() or host.is_known_setting(name, model):
        return None
    if schema.in_name_space(name) or schema.suggest(name):
        raise ConfigError(schema.unknown_key(name))
    model_name = model if isinstance(model, str) else getattr(model, "__name__", "")
    near = near_names(name, host.setting_names(model_name), cutoff=0.8)[:1]
    if near and exact:
        raise ConfigError(f"{name} is not a setting of RecBole{did_you_mean([f'--{near[0]}'])}")
    return f"the setting {name} is known neither to RecBole nor to recbole_prune{did_you_mean(near)}"


def check_model(name: str) -> None:
    """Refuse a name that no model has."""
    if name not in host.model_names():
        near = did_you_mean(near_names(name, host.model_names()))
        raise ConfigError(f"model {name} is unknown: neither RecBole nor recbole_prune has a model of that name{near}")


def check_folder_name(key: str, name: Any) -> None:
    """Refuse a name that is no single folder, or that a terminal would not show as it is.

    Brackets, stars, commas, spaces, leading dashes and letters of any language are fine.

    Args:
        key: the setting that gives the name.
        name: its value.

    Raises:
        ConfigError: it is no text, empty, a path, or has control characters.
    """
    separators = {os.sep, os.altsep, "\0"} - {None}
    if not isinstance(name, str) or not name or name in (os.curdir, os.pardir) or separators & set(name):
        raise ConfigError(f"{key}={name!r} is not allowed: it must be the name of a folder, not a path")
    if not name.isprintable():
        raise ConfigError(f"{key}={name!r} is not allowed: a name may not have control characters")


def check_dataset(name: str, settings: Mapping[str, Any], download: bool = True) -> None:
    """Refuse a dataset that is not there and that RecBole cannot, or may not, download, or that is kept in two ways.

    Args:
        name: of the dataset.
        settings: ``data_path``, ``checkpoint_dir``, ``save_dataset``, ``dataset_save_path`` and ``cache_dataset`` of
            the run, as far as they are set.
        download: whether RecBole may.
    """
    recboles = next((key for key in ("save_dataset", "dataset_save_path") if settings.get(key)), None)
    if settings.get("cache_dataset") and recboles:
        raise ConfigError(
            f"cache_dataset=True is not allowed with {recboles}={settings[recboles]}: both keep the dataset; leave one "
            "out (RecBole's own is a pickle, which can run code)"
        )
    folder = Path(str(settings.get("data_path") or "dataset/"), name)
    known = host.dataset_names() if download else [host.BUNDLED_DATASET]
    if name in known or folder.exists():
        return
    # RecBole takes a saved dataset before it looks for the folder; here only where that is asked for (data/saved.py)
    saved = sorted(Path(str(settings.get("checkpoint_dir") or "saved")).glob(f"{glob.escape(name)}-*Dataset.pth"))
    if settings.get("dataset_save_path") or (saved and settings.get("save_dataset")):
        return
    if saved:
        raise ConfigError(
            f"dataset {name} has no folder {folder}; {saved[0]} is a pickle, which can run code and is opened only if "
            f"it is named: --dataset_save_path={saved[0]}"
        )
    if not download:
        raise ConfigError(f"dataset {name} is not in {folder.parent}: name the folder that it lies in with data_path")
    beside = [path.name for path in folder.parent.iterdir()] if folder.parent.is_dir() else []
    near = did_you_mean(near_names(name, [*beside, *host.dataset_names()]))
    raise ConfigError(
        f"dataset {name} is unknown: there is no folder {folder}, and RecBole has no download of that name{near}"
    )
