"""What the tests of ``recbole_prune.compat`` share."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

from recbole.config import Config

from recbole_prune.bench.plain import PlainData

REPOSITORY = Path(__file__).resolve().parents[1]


def make_config(model: Any, dataset: str, folder: Path, **settings: Any) -> Config:
    base: dict[str, Any] = {
        "data_path": str(folder),
        "gpu_id": "",
        "checkpoint_dir": "saved",
        "show_progress": False,
        "epochs": 1,
        "embedding_size": 8,
        "train_batch_size": 512,
    }
    return Config(model, dataset, config_dict={**base, **settings})


def build(name: str, folder: Path, **settings: Any) -> tuple[Config, Any, Any, Any]:
    """Config, model, training data and test data of a model on the data set ``tiny``."""
    run = PlainData(make_config(name, "tiny", folder, **settings))
    return run.config, run.build_model(), run.train_data, run.test_data


def run_python(code: str, folder: Path) -> str:
    """Output of ``code`` in a fresh interpreter that finds this package; the test fails if the code does."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(REPOSITORY), *sys.path[1:]]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


class Reports(list[tuple[bool, str]]):
    """Takes the place of the reporter of a patch."""

    def __call__(self, active: bool, why: str) -> None:
        self.append((active, why))
