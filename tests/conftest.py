"""Fixtures that every test shares: one core, a quiet command line, a folder of its own, the generated data set."""

from __future__ import annotations

import copy
import functools
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from zoo_data import make_dataset

from recbole_prune import compat
from recbole_prune.models import join_recbole

torch.set_num_threads(1)
_load_yaml = yaml.load


@functools.lru_cache(maxsize=256)
def _parsed(text: str, loader: Any) -> Any:
    return _load_yaml(text, Loader=loader)


def _load_again(stream: Any, Loader: Any) -> Any:
    """``yaml.load`` that parses RecBole's property files once, not for every config that a test builds."""
    return copy.deepcopy(_parsed(stream, Loader)) if isinstance(stream, str) else _load_yaml(stream, Loader=Loader)


yaml.load = _load_again
compat.apply()  # tests import RecBole's modules and those that join them, in any order
join_recbole()


@pytest.fixture(autouse=True)
def _isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """RecBole reads sys.argv, writes ./log and ./log_tensorboard, and sets up the root logger."""
    monkeypatch.setattr(sys, "argv", ["pytest"])
    monkeypatch.chdir(tmp_path)
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    yield
    root.setLevel(level)
    for handler in [handler for handler in root.handlers if handler not in handlers]:
        root.removeHandler(handler)
        handler.close()


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the generated data set ``tiny``."""
    folder = tmp_path_factory.mktemp("data")
    make_dataset(folder)
    return folder
