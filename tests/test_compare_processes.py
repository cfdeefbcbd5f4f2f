"""Cells as processes: killed, busy, orphaned, stopped, two comparisons at once: nothing lost, nothing trained twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from test_compare_command import words_for

from recbole_prune.compare import process
from recbole_prune.compare.cells import DENSE, PRUNED, Cell
from recbole_prune.compare.process import Ended, Job, run_job
from recbole_prune.compare.scheduler import run_cells
from recbole_prune.disk.lock import is_locked
from recbole_prune.report.folders import FINISHED, find_runs

ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}


# ---- one job ---------------------------------------------------------------------------------------------------------


def job(place: Path, *steps: str) -> Job:
    return Job(tuple((step,) for step in steps), str(place), 1)


@pytest.mark.multiprocess
@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import os; os.kill(os.getpid(), 9)", "killed by SIGKILL, as the system does where memory runs out"),
        ("import os; os.kill(os.getpid(), 11)", "killed by SIGSEGV"),
        (
            "import sys; print('x\\nrecbole-prune: lr=2 is bad\\ny', file=sys.stderr); sys.exit(2)",
            "lr=2 is bad",
        ),
        ("import sys; print('a\\nTraceback', file=sys.stderr); sys.exit(1)", "Traceback"),
        ("import sys; sys.exit(3)", "it ended with status 3 and said nothing"),
    ],
)
def test_why_a_process_failed(code: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recbole_prune.processes._CODE", code)
    ended = run_job(job(tmp_path, "run", "never"))
    assert ended.failure is not None and ended.failure.startswith(said)


@pytest.mark.multiprocess
def test_a_busy_folder_is_tried_again_and_steps_follow_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = """
import os, sys
open("log", "a").write(f"{sys.argv[1]} {os.environ['OMP_NUM_THREADS']}\\n")
sys.exit(75 if open("log").read().count("first") < 3 else 0)
"""
    monkeypatch.setattr("recbole_prune.processes._CODE", code)
    monkeypatch.setattr(process, "_SECONDS_UNTIL_RETRY", 0.05)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert run_job(job(tmp_path, "first", "second")).failure is None
    assert (tmp_path / "log").read_text() == "first 1\nfirst 1\nfirst 1\nsecond 1\n"


@pytest.mark.multiprocess
def test_a_stopped_job_ends_its_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recbole_prune.processes._CODE", "import time; open('begun', 'w').close(); time.sleep(60)")
    ended = run_job(job(tmp_path, "run"), (tmp_path / "begun").exists)
    assert ended.failure is not None and "stopped" in ended.failure


# ---- which cell is next ----------------------------------------------------------------------------------------------


def cell(tmp_path: Path, name: str, phase: int = PRUNED, group: str = "g", seed: int = 1) -> Cell:
    return Cell("m", "d", seed, name, None, 0.5, None, phase, group, tmp_path / f"{name}-{seed}", (), (), "search")


class Pretended:
    """An engine that says how cells end, the longest running first."""

    def __init__(self, room: int, failing: tuple[str, ...] = ()) -> None:
        self.room, self.failing = room, failing
        self.running: list[tuple[int, Any]] = []
        self.seen: list[list[str]] = []

    def has_room(self) -> bool:
        return len(self.running) < self.room

    def start(self, number: int, job: Any) -> None:
        self.running.append((number, job))
        self.seen.append([name for _, name in self.running])

    def ended(self, seconds: float) -> list[tuple[int, Ended]]:
        number, name = self.running.pop(0)
        return [(number, Ended("it failed" if name in self.failing else None, "here"))]

    def stop(self) -> None:
        self.running.clear()


def name_of(one: Cell) -> Any:
    """Stands for its job."""
    return f"{one.pruner}{one.seed}"


def order(cells: list[Cell], engine: Pretended, done: Callable[[Cell], bool] = lambda _: False) -> list[str]:
    steps = run_cells(cells, engine, name_of, done)
    return [f"{step.ended.pruner}{step.ended.seed}" for step in steps if step.ended is not None]


def test_dense_models_come_first_and_seeds_do_not_wait_for_each_other(tmp_path: Path) -> None:
    cells = [
        *(cell(tmp_path, "none", DENSE, f"g{seed}", seed) for seed in (1, 2)),
        *(cell(tmp_path, name, PRUNED, f"g{seed}", seed) for seed in (1, 2) for name in ("a", "b")),
    ]
    engine = Pretended(2)
    assert sorted(order(cells, engine)) == ["a1", "a2", "b1", "b2", "none1", "none2"]
    assert engine.seen == [["none1"], ["none1", "none2"], ["none2", "a1"], ["a1", "b1"], ["b1", "a2"], ["a2", "b2"]]


def test_a_dense_model_of_their_own_is_trained_by_one_cell_of_a_group(tmp_path: Path) -> None:
    cells = [cell(tmp_path, name, group="late") for name in ("a", "b", "c")] + [cell(tmp_path, "x", group="other")]
    engine = Pretended(3)
    order(cells, engine)
    assert engine.seen == [["a1"], ["a1", "x1"], ["x1", "b1"], ["x1", "b1", "c1"]]
    engine = Pretended(3, failing=("a1",))
    order(cells, engine)
    assert engine.seen == [["a1"], ["a1", "x1"], ["x1", "b1"], ["c1"]]  # c waits for b, which may fail too


def test_what_is_done_is_not_run_and_counts_as_trained(tmp_path: Path) -> None:
    cells = [cell(tmp_path, name) for name in ("a", "b", "c")]
    engine = Pretended(2)
    assert order(cells, engine, lambda one: one.pruner == "b") == ["b1", "a1", "c1"]
    assert engine.seen == [["a1"], ["a1", "c1"]]


def test_a_look_with_nothing_under_way_means_that_others_have_what_is_left(tmp_path: Path) -> None:
    """What the command then says it waits for is there."""
    steps = list(run_cells([cell(tmp_path, "a"), cell(tmp_path, "b")], Pretended(1), name_of, lambda _: False))
    assert [step.ended is not None for step in steps] == [True, True]


def test_whoever_stops_listening_stops_the_engine(tmp_path: Path) -> None:
    engine = Pretended(1)
    steps = run_cells([cell(tmp_path, "a"), cell(tmp_path, "b")], engine, name_of, lambda _: False)
    next(steps)
    engine.running.append((9, "c"))
    steps.close()
    assert engine.running == []


# ---- whole comparisons -----------------------------------------------------------------------------------------------


def begin(words: list[str], folder: Path, *more: str) -> subprocess.Popen[str]:
    """The command, in a process of its own."""
    # a background job may have been started with SIGINT ignored
    start = "import signal, sys; signal.signal(2, signal.default_int_handler); from recbole_prune.cli import main; "
    command = [sys.executable, "-c", f"{start}sys.exit(main())", *words, *more]
    return subprocess.Popen(
        command, cwd=folder, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def until(condition: Callable[[], Any], seconds: float = 120) -> Any:
    """Wait until something is true, and return it."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.02)
    return found


def folders(place: Path) -> Iterator[Path]:
    yield from place.glob("pruned/*/*/*")


def cell_processes(parent: int) -> list[psutil.Process]:
    """Processes of cells that hold the folder of their run."""
    try:
        children = psutil.Process(parent).children()
        return [child for child in children if any(file.path.endswith("/.lock") for file in child.open_files())]
    except psutil.NoSuchProcess:
        return []


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def results(place: Path) -> list[dict[str, Any]]:
    """The records without what takes time and where it is."""
    records = json.loads((place / "records.json").read_bytes())
    return [{k: v for k, v in record.items() if k not in ("train_seconds", "folder")} for record in records]


def weights(place: Path) -> dict[str, bytes]:
    """What was trained, exactly; checkpoints also hold the paths of their run."""
    assert {run.state for run in find_runs([place / "pruned"]).runs} == {FINISHED}
    return {path.name: (path / "artifact" / "ticket.safetensors").read_bytes() for path in folders(place)}


@pytest.fixture(scope="module")
def few(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[list[str], Path]]:
    """Words of a comparison of four cells, long enough to be killed, and its folder."""

    def make(name: str) -> tuple[list[str], Path]:
        folder = tmp_path_factory.mktemp(name)
        words = [word for word in words_for(tiny_data, folder) if not word.startswith(("--sparsities", "--epochs"))]
        return [*words, "--sparsities=0.5", "--epochs=30"], folder

    return make


@pytest.fixture(scope="module")
def unkilled(few: Callable[[str], tuple[list[str], Path]]) -> Path:
    words, folder = few("unkilled")
    done = begin(words, folder)
    out, err = done.communicate(timeout=300)
    assert done.returncode == 0, out + err
    return folder


@pytest.mark.slow
@pytest.mark.multiprocess
def test_killed_twice_is_as_if_never_killed(few: Callable[[str], tuple[list[str], Path]], unkilled: Path) -> None:
    words, folder = few("killed")
    first = begin(words, folder)
    until(lambda: len(cell_processes(first.pid)) == 2)
    children = cell_processes(first.pid)
    first.kill()
    first.communicate()
    until(lambda: not any(map(is_alive, children)), 30)
    until(lambda: not any(map(is_locked, folders(folder))), 30)  # nobody lives on with a lock

    second = begin(words, folder)
    victim = until(lambda: cell_processes(second.pid))[0]
    victim.kill()
    out, err = second.communicate(timeout=300)
    assert second.returncode == 1, err
    assert out.count("FAILED: killed by SIGKILL") == 1 and "not in the table: " in out

    third = begin(words, folder)
    out, err = third.communicate(timeout=300)
    assert third.returncode == 0, err
    assert results(folder) == results(unkilled) and weights(folder) == weights(unkilled)


@pytest.mark.slow
@pytest.mark.multiprocess
def test_ctrl_c_stops_the_cells(few: Callable[[str], tuple[list[str], Path]]) -> None:
    words, folder = few("stopped")
    first = begin(words, folder)
    children = until(lambda: cell_processes(first.pid))
    first.send_signal(signal.SIGINT)
    _, err = first.communicate(timeout=60)
    assert first.returncode == 130 and "interrupted by SIGINT" in err and "Traceback" not in err
    assert not any(map(is_alive, children)) and not any(map(is_locked, folders(folder)))


@pytest.mark.slow
@pytest.mark.multiprocess
def test_two_comparisons_share_one_folder(few: Callable[[str], tuple[list[str], Path]], unkilled: Path) -> None:
    words, folder = few("shared")
    words = [word for word in words if not word.startswith("--seeds")]
    both = [begin(words, folder, "--seeds=3"), begin(words, folder, "--seeds=3")]
    for one in both:
        _, err = one.communicate(timeout=300)
        assert one.returncode == 0, err
    of_all_seeds = ("change_percent", "interval_percent", "change_seeds")
    found, expected = (
        [{key: value for key, value in record.items() if key not in of_all_seeds} for record in results(place)]
        for place in (folder, unkilled)
    )
    assert found == [record for record in expected if record["seed"] == 3]
    assert weights(folder).items() <= weights(unkilled).items() and len(weights(folder)) == 2
    for path in folders(folder):  # whoever came later found it finished
        lines = (path / "log.txt").read_text().splitlines()
        numbers = [line.split("ticket ")[1].split()[0] for line in lines if " done: " in line]
        assert len(numbers) == len(set(numbers))


@pytest.mark.slow
@pytest.mark.multiprocess
def test_a_cell_that_fails_is_a_row_and_stops_nothing(tiny_data: Path, tmp_path: Path) -> None:
    words = [word for word in words_for(tiny_data, tmp_path) if not word.startswith(("--pruners", "--sp", "--seeds"))]
    more = ["--pruners=random,static", "--sparsities=0.5", "--seeds=3", "--prune_min_per_row=8"]
    done = begin(words, tmp_path, *more)
    out, err = done.communicate(timeout=300)
    assert done.returncode == 1, err
    assert "seed 3, sparsity 50 %, random: FAILED: " in out and "static: validation 0." in out
    [failed] = [record for record in json.loads((tmp_path / "records.json").read_bytes()) if record["failure"]]
    assert failed["pruner"] == "random" and "prune_min_per_row" in failed["failure"]
    assert f"not in the table: random 50 %, seed 3: {failed['failure']}"[:60] in out
