"""Signals end a command with one line and the status that shells expect, whatever it is doing; nothing is lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from training_bench import without_clocks
from zoo import DATASET

from recbole_prune import signals

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="signals of POSIX")


# ---- without processes


def test_actions_are_called_only_where_the_block_is_cut_short() -> None:
    called: list[str] = []
    with signals.on_abort(lambda: called.append("never")):
        pass
    outer, inner = (signals.on_abort(lambda name=name: called.append(name)) for name in ("outer", "inner"))
    with pytest.raises(KeyboardInterrupt), outer, inner:
        raise KeyboardInterrupt
    assert called == ["inner", "outer"] and signals._actions == []


# ---- every moment in the life of a process

BEGIN = """
import atexit, os, signal, sys, threading, time
from recbole_prune import signals
number = int(sys.argv[1])
signals.end_on_signals()
def hit():
    os.kill(os.getpid(), number)
    sum(range(1000))  # handlers run between two steps of Python
"""
MOMENTS = {
    "plainly": "hit()\ntime.sleep(5)",
    "asleep": "threading.Timer(0.2, hit).start()\ntime.sleep(5)",
    "where every exception is swallowed": "while True:\n    try:\n        hit()\n    except:\n        pass",
    "in a destructor": "class A:\n    def __del__(self):\n        hit()\nA()\ntime.sleep(5)",
    "while importing": "open('hitting.py', 'w').write('import __main__; __main__.hit()')\nimport hitting",
    "in Python's atexit": "atexit.register(hit)",
    "while cleaning up": "with signals.on_abort(lambda: (hit(), time.sleep(5))):\n    hit()",
    "where cleaning up fails": "with signals.on_abort(lambda: 1 / 0):\n    hit()",
}


def as_in_a_terminal() -> None:
    """What starts the tests in the background, or under nohup, has them ignore signals, which children inherit."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        signal.signal(signal.Signals[name], signal.SIG_DFL)


def run(code: str, number: int, folder: Path, **options: Any) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *sys.path])}
    command = [sys.executable, "-c", BEGIN + code, str(int(number))]
    options = {"preexec_fn": as_in_a_terminal, **options}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=60, **options
    )


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_one_line_and_the_status_of_a_shell(name: str, moment: str, tmp_path: Path) -> None:
    number = signal.Signals[name]
    done = run(f"print('before')\n{MOMENTS[moment]}\nprint('after')", number, tmp_path)
    assert (done.returncode, done.stderr) == (128 + number, signals.interruption(name) + "\n")
    assert done.stdout == ("before\nafter\n" if moment == "in Python's atexit" else "before\n")


@pytest.mark.slow
@pytest.mark.multiprocess
def test_what_was_told_to_be_ignored_stays_ignored(tmp_path: Path) -> None:
    """``nohup recbole-prune ...``"""
    ignoring = {"preexec_fn": lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)}
    done = run("hit(); print('goes on')", signal.SIGHUP, tmp_path, **ignoring)
    assert (done.returncode, done.stdout, done.stderr) == (0, "goes on\n", "")


@pytest.mark.slow
@pytest.mark.multiprocess
def test_a_forked_worker_says_nothing(tmp_path: Path) -> None:
    code = "child = os.fork()\nif not child:\n    hit()\nprint(os.waitpid(child, 0)[1] >> 8)"
    done = run(code, signal.SIGINT, tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "130\n", "")


@pytest.mark.slow
@pytest.mark.multiprocess
def test_a_closed_terminal_changes_no_status(tmp_path: Path) -> None:
    assert run("os.close(2); hit()", signal.SIGHUP, tmp_path).returncode == 129


# ---- every step of a run

# one process runs once, so that everything is imported and loaded, and forks a child for each moment, in the order in
# which a run comes to them
RUNS = """
import json, os, signal, sys
from recbole_prune import cli, run_recbole_prune
words, here = sys.argv[1:], os.getcwd()
os.mkdir("warm")
os.chdir("warm")
settings = dict(word[2:].split("=") for word in words)
for name in ("epochs", "prune_rounds", "embedding_size"):
    settings[name] = int(settings[name])
sys.argv[1:] = []
run_recbole_prune(settings.pop("model"), settings.pop("dataset"), config_dict=settings)  # no child loads that again
sys.argv[1:] = words
os.chdir(here)
from recbole.trainer import Trainer
from recbole_prune.artifact import replacing
from recbole_prune.run import workshop
from recbole_prune.run.store import RunFolder

MOMENTS = [
    ("SIGTERM", workshop, "create_dataset", 1, ""),
    ("SIGINT", Trainer, "_train_epoch", 2, ""),
    ("SIGHUP", Trainer, "_valid_epoch", 1, ""),
    ("SIGTERM", os, "replace", 1, "ticket-001.pth"),
    ("SIGINT", Trainer, "evaluate", 2, ""),
    ("SIGHUP", os, "replace", 1, "tickets.jsonl"),
    ("SIGINT", replacing, "_write_synced", 2, ""),
    ("SIGTERM", replacing, "_sync_folder", 1, ""),
    ("SIGTERM", RunFolder, "write_summary", 1, ""),
    (None, None, None, 0, ""),
]

def hit(name, owner, attribute, calls, part):
    original, left = getattr(owner, attribute), [calls]
    def replaced(*args, **kwargs):
        left[0] -= any(part in str(argument) for argument in args)
        if not left[0]:
            os.kill(os.getpid(), getattr(signal, name))
        return original(*args, **kwargs)
    setattr(owner, attribute, replaced)

found = []
for moment in MOMENTS:
    child = os.fork()
    if not child:
        for descriptor, file in ((1, "out"), (2, "err")):
            os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
        if moment[0]:
            hit(*moment)
        sys.exit(cli.main())
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    found.append([moment[0], moment[2], status, open("err").read(), open("out").read()])
json.dump(found, open("found.json", "w"))
"""


@pytest.mark.slow
@pytest.mark.multiprocess
def test_a_run_that_is_interrupted_at_every_step_ends_as_if_it_never_was(tmp_path: Path, tiny_data: Path) -> None:
    settings = f"--model=BPR --dataset={DATASET} --data_path={tiny_data} --pruner=imp --prune_rounds=1 --epochs=3"
    words = [*settings.split(), "--embedding_size=8", "--gpu_id=", "--show_progress=False"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    journals = []
    for code in (RUNS, "import sys; from recbole_prune.cli import main; sys.exit(main())"):
        folder = tmp_path / str(len(journals))
        folder.mkdir()
        command = [sys.executable, "-c", code, *words]
        subprocess.run(command, cwd=folder, env=environment, preexec_fn=as_in_a_terminal, check=True, timeout=600)
        [journal] = folder.glob("pruned/*/*/*/tickets.jsonl")
        lines = map(json.loads, journal.read_text().splitlines())
        journals.append([{k: v for k, v in without_clocks(line).items() if k != "sha256"} for line in lines])
        assert not [file for file in journal.parent.rglob(".*") if file.name != ".lock"]
    *interrupted, last = json.loads((tmp_path / "0" / "found.json").read_text())
    for name, step, status, errors, output in interrupted:
        assert status == 128 + signal.Signals[name], (step, errors)
        assert errors.splitlines()[-1] == signals.interruption(name), step
        assert "Traceback" not in errors and errors.count("interrupted") == 1 and output == "", step
    assert last[2] == 0 and "sparsity" in last[4] and "Traceback" not in last[3]
    assert journals[0] == journals[1]
