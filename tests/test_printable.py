"""No setting, option or path brings control characters to a terminal: they are shown as text, in every command."""

from __future__ import annotations

import ast
import logging
from pathlib import Path

import pytest
from zoo import DATASET, config_for

import recbole_prune
from recbole_prune import PruneConfig
from recbole_prune.cli import main
from recbole_prune.commands import run as run_command
from recbole_prune.errors import printable_lines
from recbole_prune.run.log_file import PlainFormatter
from recbole_prune.run.opening import run_path

ODD = "o\x1b[2J\ru\nt\u202e"
ESCAPED = r"o\x1b[2J\ru\nt\u202e"


def is_clean(text: str) -> bool:
    return all(line.isprintable() for line in text.split("\n"))


def test_every_line_is_made_printable() -> None:
    assert printable_lines("a\x1b[1mb\nc\td") == "a\\x1b[1mb\nc\\td"


def test_the_log_shows_control_characters_as_text() -> None:
    """But for RecBole's colours, which go."""
    record = logging.makeLogRecord({"msg": "\x1b[1;35mdata\x1b[0m in %s\nsecond", "args": ("x\x1b]0;title\x07",)})
    assert PlainFormatter().format(record) == "data in x\\x1b]0;title\\x07\nsecond"


def test_a_warning_about_a_setting_is_printable(tiny_data: Path) -> None:
    config = PruneConfig("BPR", DATASET, config_dict=config_for("BPR", tiny_data), words=[f"word{ODD}"])
    assert any(ESCAPED in warning for warning in config.warnings) and all(map(str.isprintable, config.warnings))


@pytest.mark.parametrize(
    "words",
    [
        ["export", f"--run={ODD}"],
        ["export", f"--r{ODD}=x"],
        ["recommend", f"--artifact={ODD}", "--users=1"],
        ["recommend", f"--artifact={ODD}", f"--users_file={ODD}"],
        ["recommend", "--artifact=x", "--users=1", f"--format={ODD}"],
        ["compare", f"--pruners={ODD}"],
        ["bench", f"b{ODD}"],
        ["bench", "table", f"{ODD}"],
        ["bench", "generate", f"--to={ODD}", f"--users={ODD}"],
        ["models", f"{ODD}"],
        [f"{ODD}"],
        ["--model=BPR", "--dataset=ml-100k", f"--config_files={ODD.replace(' ', '')}"],
        ["--model=BPR", f"--dataset={ODD}"],
        [f"--model={ODD}", "--dataset=ml-100k"],
        ["--model=BPR", f"--data_path={ODD}", "--dataset=nosuch"],
    ],
)
def test_an_error_shows_what_was_given_in_one_printable_line(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    shown = capsys.readouterr()
    assert not shown.out and len(shown.err.splitlines()) == 1 and is_clean(shown.err)


@pytest.mark.slow
def test_a_run_in_a_folder_of_an_odd_name(
    tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {**config_for("BPR", tiny_data), "pruner": "none", "epochs": 1, "output_dir": ODD}
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])  # pytest's, which the terminal's would leave the showing to
    config = PruneConfig("BPR", DATASET, config_dict=settings)
    result, text = run_command._run(config)
    folder = result.experiment.folder.path
    assert folder.is_relative_to(tmp_path / ODD) and folder.is_dir()
    assert is_clean(text) and f"run folder: {ESCAPED}/" in text
    assert main(["export", f"--run={folder}", f"--to={tmp_path / ODD / 'small'}"]) == 0
    (folder / "config.yaml").write_text("edited")
    assert main(["export", f"--run={folder}"]) == 2
    shown = capsys.readouterr()
    assert ESCAPED in shown.out and is_clean(shown.out) and is_clean(shown.err)
    assert is_clean((folder / "log.txt").read_text())
    assert run_path(config) == folder


def test_what_commands_print_goes_through_printable() -> None:
    """Or is text of ours: usage, a table of RecBole's names, the results of a run."""
    of_ours = {"usage()", "table(*_chosen(words))", "text"}
    for file in (Path(recbole_prune.__file__).parent / "commands").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print":
                code = ast.unparse(node.args[0])
                assert "printable" in code or code in of_ours or file.name in ("recommend.py", "__init__.py"), code
