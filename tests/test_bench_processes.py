"""Benchmarks of whole commands, each in processes of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_bench_runs import bench, measures, words_for

from recbole_prune import cli
from recbole_prune.bench import start

pytestmark = pytest.mark.usefixtures("restored_threads")


@pytest.fixture
def words(tiny_data: Path, tmp_path: Path) -> list[str]:
    """Words of the command line for BPR on ``tiny``."""
    return words_for("BPR", tiny_data, tmp_path)


def test_the_lists_of_one_user_and_a_dry_run(words: list[str], tmp_path: Path) -> None:
    document = bench("start", words, tmp_path, "--sparsities=0.5", "--repeats=1")
    plain, ours = (measures(document, *which)["one_user"] for which in (("plain",), ("recommend", 0.5)))
    assert ours["ratio_to"]["plain"] == pytest.approx(plain["median"] / ours["median"])
    for name in ("run", "run cache_dataset"):
        assert measures(document, name)["dry_run"]["median"] > 0


def test_an_epoch_in_two_processes_beside_one(words: list[str], tmp_path: Path) -> None:
    options = ("--sparsities=0,0.5", "--repeats=1", "--processes=2", "--epochs=2")
    document = bench("processes", words, tmp_path, *options)
    for sparsity in (0, 0.5):
        one, two = (measures(document, name, sparsity)["seconds"] for name in ("one process", "2 processes"))
        assert two["ratio_to"]["one process"] == pytest.approx(one["median"] / two["median"])
    assert document["settings"]["epochs"] == 2


@pytest.mark.multiprocess
def test_an_interrupted_process_ends_with_what_it_has_started(tmp_path: Path) -> None:
    child, parent, pid = (tmp_path / name for name in ("child.py", "parent.py", "pid"))
    child.write_text(f"import os, time; open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(120)")
    parent.write_text(
        "import sys\nfrom recbole_prune.processes import run_to_end\nfrom recbole_prune.signals import end_on_signals\n"
        f"end_on_signals()\nrun_to_end([sys.executable, {str(child)!r}])"
    )
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen([sys.executable, str(parent)], env=variables)
    until = time.monotonic() + 60
    while not pid.exists() or not pid.read_text():
        assert time.monotonic() < until
        time.sleep(0.05)
    process.terminate()
    assert process.wait(60) == 128 + signal.SIGTERM
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


def test_a_process_that_fails_is_one_message(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(start, "_PLAIN", "raise SystemExit('recbole-prune: no such thing')")
    assert cli.main(["bench", "start", "--threads=1", "--sparsities=0.5", "--repeats=1", *words]) == 2
    assert "a process ended with status 1: no such thing" in capsys.readouterr().err
