"""Fixtures that every test shares: one core, a quiet command line, a folder of its own, the generated data set."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from zoo_data import make_dataset

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """RecBole reads sys.argv and writes ./log and ./log_tensorboard."""
    monkeypatch.setattr(sys, "argv", ["pytest"])
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the generated data set ``tiny``."""
    folder = tmp_path_factory.mktemp("data")
    make_dataset(folder)
    return folder
