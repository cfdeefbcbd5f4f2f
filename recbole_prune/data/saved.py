"""RecBole's saved datasets and dataloaders are pickles, which run code when they are opened: only those asked for are.

RecBole takes what it finds in ``checkpoint_dir``, ``./saved`` by default, whoever put it there. Here the settings have
to name a file (``dataset_save_path``, ``dataloaders_save_path``), or say that this very run saves its data
(``save_dataset``, ``save_dataloaders``); else the data are built from the atomic files, which gives the same.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from logging import getLogger
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recbole import data as recbole_data

from recbole_prune.data.cached import cached_dataset
from recbole_prune.errors import printable

if TYPE_CHECKING:
    from recbole.config import Config
    from recbole.data.dataset import Dataset

# settings that have RecBole open pickles, and the values with which it opens none
OPENING = {"dataset_save_path": None, "dataloaders_save_path": None, "save_dataset": False, "save_dataloaders": False}
NOWHERE = os.path.join(os.devnull, "none")


def create_dataset(config: Config, cache: Path | None = None) -> Dataset:
    """RecBole's ``create_dataset``, which opens a saved dataset only if the settings ask for it.

    Args:
        config: of the run.
        cache: a folder where the dataset is kept, and taken from, without pickles
            (:mod:`recbole_prune.data.cached`); None keeps nothing.
    """
    if _is_asked_for(config, "dataset"):
        return recbole_data.create_dataset(config)
    with _nothing_saved(config, "dataset_save_path"):
        dataset = recbole_data.create_dataset(config) if cache is None else cached_dataset(config, cache)
    _tell_of(config, f"{config['dataset']}-{type(dataset).__name__}.pth", "dataset_save_path")
    return dataset


def data_preparation(config: Config, dataset: Dataset) -> tuple[Any, ...]:
    """RecBole's ``data_preparation``, which opens saved dataloaders only if the settings ask for them."""
    if _is_asked_for(config, "dataloaders"):
        return tuple(recbole_data.data_preparation(config, dataset))
    with _nothing_saved(config, "dataloaders_save_path"):
        loaders = tuple(recbole_data.data_preparation(config, dataset))
    _tell_of(config, f"{config['dataset']}-for-{config['model']}-dataloader.pth", "dataloaders_save_path")
    return loaders


def _is_asked_for(config: Config, kind: str) -> bool:
    return bool(config[f"{kind}_save_path"] or config[f"save_{kind}"])


@contextmanager
def _nothing_saved(config: Config, name: str) -> Iterator[None]:
    """Let RecBole look for a saved file where there is none."""
    before = config[name]
    config[name] = NOWHERE
    try:
        yield
    finally:
        config[name] = before


def _tell_of(config: Config, name: str, setting: str) -> None:
    file = os.path.join(config["checkpoint_dir"], name)
    if os.path.exists(file):
        shown = printable(file)
        getLogger("recbole_prune").warning(
            f"{shown} is there and was not opened: it is a pickle, which can run code; --{setting}={shown} opens it"
        )
