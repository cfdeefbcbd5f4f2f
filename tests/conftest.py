"""Fixtures that every test shares: one core, a quiet command line, a folder of its own, the generated data set."""

from __future__ import annotations

import copy
import functools
import logging
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import MagicMock

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from zoo_data import DATASET, make_dataset

from recbole_prune import compat
from recbole_prune.commands.bench import THREAD_VARIABLES
from recbole_prune.models import join_recbole
from recbole_prune.scoring import value_metrics

if TYPE_CHECKING:
    from teachers import Checkpoints

torch.set_num_threads(1)
torch.cuda.is_available()  # looks for devices before a Config of RecBole hides them by CUDA_VISIBLE_DEVICES
_VISIBLE_DEVICES = os.environ.get("CUDA_VISIBLE_DEVICES")
_load_yaml = yaml.load


@functools.lru_cache(maxsize=256)
def _parsed(text: str, loader: Any) -> Any:
    return _load_yaml(text, Loader=loader)


def _load_again(stream: Any, Loader: Any) -> Any:
    """``yaml.load`` that parses RecBole's property files once, not for every config that a test builds."""
    return copy.deepcopy(_parsed(stream, Loader)) if isinstance(stream, str) else _load_yaml(stream, Loader=Loader)


yaml.load = _load_again
_read_csv = pd.read_csv
_frames: dict[tuple[bytes, str], pd.DataFrame] = {}


def _read_again(source: Any, **words: Any) -> pd.DataFrame:
    """``pandas.read_csv`` that parses equal files read in the same way once, not for every run of a test."""
    if not isinstance(source, (str, Path)):
        return _read_csv(source, **words)
    key = Path(source).read_bytes(), repr(words)
    if key not in _frames:
        if len(_frames) >= 64:
            _frames.clear()
        _frames[key] = _read_csv(source, **words)
    return _frames[key].copy()


pd.read_csv = _read_again


def _never_seed_absent_devices() -> None:
    """Without a GPU torch only keeps every seed with a whole traceback, a fifth of the time that a tiny run takes."""
    if not torch.cuda.is_available():
        for module in ("torch.cuda.random", "torch.xpu.random", "torch.mtia"):  # the last two are missing in torch 1.13
            if hasattr(sys.modules.get(module), "_lazy_call"):
                vars(sys.modules[module])["_lazy_call"] = lambda *_, **__: None


_never_seed_absent_devices()
os.fsync = lambda descriptor: None  # what outlives a crash of the machine no test can see; tests put their own in place
compat.apply()  # tests import RecBole's modules and those that join them, in any order
join_recbole()
value_metrics.join_recbole()


@pytest.fixture(autouse=True)
def _devices_in_sight() -> None:
    """RecBole's Config sets CUDA_VISIBLE_DEVICES for good; a test on a CPU hides no device from those after it."""
    os.environ.pop("CUDA_VISIBLE_DEVICES", None)
    if _VISIBLE_DEVICES is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = _VISIBLE_DEVICES


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


@pytest.fixture
def no_tensorboard(monkeypatch: pytest.MonkeyPatch) -> None:
    """RecBole's trainers write nothing for TensorBoard, which takes them longer than a small training."""
    monkeypatch.setattr("recbole.trainer.trainer.get_tensorboard", lambda logger: MagicMock())


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the generated data set ``tiny``."""
    folder = tmp_path_factory.mktemp("data")
    make_dataset(folder)
    return folder


@pytest.fixture(scope="session")
def timed_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``tiny`` with a time of its own for each interaction, so that no split depends on the order of rows."""
    folder = tmp_path_factory.mktemp("timed")
    make_dataset(folder)
    file = folder / DATASET / f"{DATASET}.inter"
    frame = pd.read_csv(file, sep="\t", dtype=str, keep_default_na=False)
    frame["timestamp:float"] = np.random.default_rng(1).permutation(len(frame)).astype(str)
    frame.to_csv(file, sep="\t", index=False)
    return folder


@pytest.fixture(scope="session")
def reordered_data(timed_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``timed_data`` with the rows of every file the other way round: RecBole gives other ids."""
    folder = tmp_path_factory.mktemp("reordered")
    shutil.copytree(timed_data, folder, dirs_exist_ok=True)
    for file in (folder / DATASET).iterdir():
        head, *rows = file.read_text(encoding="utf-8").splitlines()
        file.write_text("\n".join([head, *reversed(rows)]) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def checkpoint_of(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    """A model of plain RecBole and its file, by model and folder of data, made once for all tests."""
    from teachers import Checkpoints  # imports RecBole, which is patched above

    return Checkpoints(tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture
def restored_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """``--threads`` of a benchmark sets variables of the process for good."""
    for name in THREAD_VARIABLES:
        monkeypatch.setenv(name, "1")
