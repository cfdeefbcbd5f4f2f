"""What every command has in common: help at once, a version, one line for a mistake."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from training_bench import experiment_of
from zoo import DATASET, config_for

import recbole_prune
from recbole_prune import cli
from recbole_prune.commands import COMMANDS
from recbole_prune.config.prune_config import PruneConfig
from recbole_prune.metering.windows import WINDOWS, Meter
from recbole_prune.run.experiment import Experiment
from recbole_prune.run.store import RunFolder
from recbole_prune.run.workshop import Workshop


@pytest.mark.parametrize("word", ["-h", "--help"])
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, word: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.main([command, word]) == 0
    assert capsys.readouterr().out.startswith("usage: recbole-prune")
    assert cli.main([command, "--model=BPR", word]) == 0, "wherever it stands"
    assert not list(tmp_path.iterdir())


def test_no_words_print_the_usage_and_train_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.main([]) == 0
    assert capsys.readouterr().out.startswith("usage: recbole-prune [run]")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("word", ["--version", "-V"])
def test_version(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([word]) == 0
    assert capsys.readouterr().out == f"recbole-prune {recbole_prune.__version__}\n"


def test_unknown_commands_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["trian"]) == 2
    assert "unknown command 'trian'" in capsys.readouterr().err


def test_help_and_models_load_neither_torch_nor_recbole() -> None:
    code = (
        "import sys; from recbole_prune.cli import main; [main([c, '-h']) for c in ('run', 'export', 'compare')]; "
        "main(['models', 'BPR']); "
        "print([name for name in ('torch', 'recbole', 'pandas', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_function_reads_the_words_of_the_program(tiny_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As RecBole's run_recbole does: command line, then dict."""
    monkeypatch.setattr(sys, "argv", ["my_script.py", "--epochs=2", "--prune_rate=0.4"])
    settings = {**config_for("BPR", tiny_data), "pruner": "imp", "epochs": 1, "prune_rate": 0.3, "prune_rounds": 1}
    result = recbole_prune.run_recbole_prune("BPR", DATASET, config_dict=settings)
    assert result["tickets"][0]["epochs"] == 2
    assert result["tickets"][1]["sparsity"] == pytest.approx(0.4, abs=1e-3)
    assert "highest winning sparsity" in result["table"]


def test_a_config_does_not_read_them(tiny_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["my_script.py", "--epochs=2"])
    assert PruneConfig("BPR", DATASET, config_dict=config_for("BPR", tiny_data))["epochs"] == 1


def test_windows_of_a_run_reach_a_meter(tiny_data: Path, tmp_path: Path) -> None:
    seen = []

    class Counting(Meter):
        def window(self, name: str) -> Any:
            seen.append(name)
            return super().window(name)

    settings = {**config_for("BPR", tiny_data), "epochs": 3, "eval_step": 2}
    workshop = Workshop(PruneConfig("BPR", DATASET, config_dict=settings))
    Experiment(workshop, RunFolder(tmp_path / "run"), meter=Counting()).dense()
    assert seen == ["train", "train", "validate", "train", "recommend"] and set(seen) == set(WINDOWS)
    with pytest.raises(ValueError, match="nap is not one of train, validate, recommend"):
        Meter().window("nap")


def test_a_run_prints_nothing(tiny_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = {**config_for("BPR", tiny_data), "pruner": "omp", "prune_target_sparsity": 0.5}
    result = recbole_prune.run_recbole_prune("BPR", DATASET, config_dict=settings)
    experiment_of(result, "BPR", settings)
    assert "sparsity" not in capsys.readouterr().out
