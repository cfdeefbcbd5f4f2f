"""What every command has in common: help at once, a version, one line for a mistake."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from training_bench import experiment_of
from zoo import DATASET, config_for

import recbole_prune
from recbole_prune import cli
from recbole_prune.commands import COMMANDS
from recbole_prune.config.options import joined
from recbole_prune.config.prune_config import PruneConfig
from recbole_prune.metering.windows import WINDOWS, Meter
from recbole_prune.run.experiment import Experiment
from recbole_prune.run.store import RunFolder
from recbole_prune.run.workshop import Workshop


@pytest.mark.parametrize("word", ["-h", "--help", "--help=imp"])
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


@pytest.mark.parametrize("words", ["--version", "-V", "run --version", "recommend -V"])
def test_version(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words.split()) == 0
    assert capsys.readouterr().out == f"recbole-prune {recbole_prune.__version__}\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("exprot", "unknown command 'exprot'; did you mean export?; there are run, export"),
        ("run --model=BPR foo", "foo is no setting: write --key=value"),
        ("--model=BPR --epochs", "--epochs cannot be read: write --epochs=VALUE"),
        ("--model=BPR epochs=3", "epochs=3 cannot be read: write --epochs=3"),
        ("--model=BPR -learning_rate 0.1", "-learning_rate cannot be read: write --learning_rate=0.1"),
        ("--model=BPR --fresh", "--fresh cannot be read: write --fresh=True"),
        ("--model BPR --model NeuMF", "--model is given twice, as BPR and as NeuMF"),
        ("--data_path=a=b", "--data_path=a=b cannot be read"),
        ("export --rnu=folder", "export: '--rnu=folder' is no option; did you mean --run?"),
        ("export --run", "export: --run without a value is not allowed: --run= takes a folder"),
        ("export folder", "export: 'folder' is no option"),
        ("export", "export: --run= is missing: folder of a run"),
        ("recommend --artifact=a", "recommend: one of --users=196,186 and --users_file=FILE is needed"),
        ("recommend --artifact=a --user=1", "recommend: '--user=1' is no option; did you mean --users?"),
        ("recommend --artifact a --users 1 --top=3", "recommend: '--top=3' is no option"),
        ("recommend --artifact a --users 1 --k=many", "recommend: --k=many is not allowed: --k= takes a whole number"),
        ("recommend --artifact a --users 1 --format=xml", "--format=xml is not allowed: --format= takes table or json"),
        ("recommend --artifact a --users 1 --thread=2", "did you mean --threads?"),
        ("compare --seds=1", "compare: '--seds=1' is no option; did you mean --seeds?"),
        ("compare --seeds=1 --seeds=2", "compare: --seeds is given twice, as 1 and as 2"),
        ("compare dsl", "dsl is no setting"),
        ("models --knd=tree", "models: '--knd=tree' is no option; did you mean --kind?"),
        ("doctor --verbose", "doctor: '--verbose' is no option: there is --help only"),
        ("bench train --repeat=3", "bench train: '--repeat=3' is no option; did you mean --repeats?"),
        ("bench train dsl", "dsl is no setting"),
        ("bench generate --user=3", "bench generate: '--user=3' is no option; did you mean --users?"),
        ("bench generate --items=3", "bench generate: --users= is missing"),
        ("bench table --to=x.json", "bench table: '--to=x.json' is no option"),
    ],
)
def test_unknown_words_are_refused(words: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words.split()) == 2
    output = capsys.readouterr()
    assert output.out == "" and output.err.count("\n") == 1
    assert output.err.startswith("recbole-prune: ") and message in output.err


def test_two_ways_to_write_an_option() -> None:
    words = "models --kind tree -m BPR -d=tiny --l2 -0.5 --rate -.5 --users - --to= --fresh --k=3 a --last".split()
    joined_words = "models --kind=tree --model=BPR --dataset=tiny --l2=-0.5 --rate=-.5 --users=- --to= --fresh --k=3 a"
    assert joined(words) == [*joined_words.split(), "--last"]
    assert joined(joined(words)) == joined(words)
    assert joined(["--gpu_id", "", "--x"]) == ["--gpu_id=", "--x"]


@pytest.mark.parametrize(
    "words",
    [
        "models --kind=tree",
        pytest.param(
            "--model=BPR --dataset=tiny --data_path=DATA --pruner=imp --prune_rounds=2 --gpu_id= --dry_run=True",
            marks=pytest.mark.slow,
        ),
        "run --data_path=DATA --dataset=tiny --model=nosuch",
        "compare --data_path=DATA --dataset=tiny --pruners=ipm",
        "bench train --data_path=DATA --dataset=tiny --model=nosuch --repeats=2",
        "bench table --no=x",
        "export --run=nosuch --to=x",
        "recommend --artifact=nosuch --users=1",
        "doctor --loud=True",
    ],
)
def test_both_are_the_same(words: str, tiny_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = words.replace("DATA", str(tiny_data)).split()
    two = [part for word in one for part in (word.split("=") if word.startswith("--") else [word])]
    assert len(two) > len(one)
    assert cli.main(one) == cli.main(two)
    output, errors = capsys.readouterr()
    for text in (output, errors):
        assert text[: len(text) // 2] == text[len(text) // 2 :]
    assert output or errors


def unread_pipe() -> Any:
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, "w")


@pytest.mark.parametrize("words", [["models"], ["--version"], ["--help"]])
def test_output_that_nobody_reads_is_no_error(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """``recbole-prune models | head``: as other programs that SIGPIPE ends."""
    with unread_pipe() as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        assert cli.main(words) == 141
    assert capsys.readouterr().err == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_output_that_cannot_be_written_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert cli.main(["models"]) == 2
    assert capsys.readouterr().err == "recbole-prune: No space left on device\n"


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
        measures = True

        def recommend(self, work: Callable[[], int]) -> None:
            with self.window("recommend"):
                seen.append(work())

        def window(self, name: str) -> Any:
            seen.append(name)
            return super().window(name)

    settings = {**config_for("BPR", tiny_data), "epochs": 3, "eval_step": 2}
    workshop = Workshop(PruneConfig("BPR", DATASET, config_dict=settings))
    Experiment(workshop, RunFolder(tmp_path / "run"), meter=Counting()).dense()
    *windows, lists = seen
    assert windows == ["train", "train", "validate", "train", "recommend"] and set(windows) == set(WINDOWS)
    assert lists == len(workshop.test_data.uid_list), "a list for every user of the test"
    with pytest.raises(ValueError, match="nap is not one of train, validate, recommend"):
        Meter().window("nap")


def test_a_run_prints_nothing(tiny_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = {**config_for("BPR", tiny_data), "pruner": "omp", "prune_target_sparsity": 0.5}
    result = recbole_prune.run_recbole_prune("BPR", DATASET, config_dict=settings)
    experiment_of(result, "BPR", settings)
    assert "sparsity" not in capsys.readouterr().out
