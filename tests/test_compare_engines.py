"""Comparisons on a real local Ray and Dask cluster: a worker dies, nothing is lost, nothing runs twice."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from test_compare_command import words_for
from test_compare_processes import ENVIRONMENT, begin, folders, is_alive, results, until, weights

from recbole_prune.cli import main
from recbole_prune.compare.process import Job
from recbole_prune.compare.remote import message, portable

RAY = """
import ray, sys
context = ray.init(num_cpus=2, include_dashboard=False)
print(context.address_info["gcs_address"], flush=True)
sys.stdin.read()
"""
DASK = """
import sys
from distributed import LocalCluster
if __name__ == "__main__":
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        print(cluster.scheduler_address, flush=True)
        sys.stdin.read()
"""
CLUSTERS = {"ray": RAY, "dask": DASK}
MODULES = {"ray": "ray", "dask": "distributed"}


def require(engine: str) -> None:
    """Skip where the engine cannot be imported, with the reason."""
    done = subprocess.run([sys.executable, "-c", f"import {MODULES[engine]}"], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"{engine}: {done.stderr.strip().splitlines()[-1]}")


@contextmanager
def cluster(engine: str, place: Path) -> Iterator[tuple[str, int]]:
    """The address of a cluster of two workers, and the process that has it."""
    script = place / f"{engine}_cluster.py"
    script.write_text(CLUSTERS[engine])
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    holder = subprocess.Popen([sys.executable, str(script)], env=ENVIRONMENT, text=True, **pipes)
    try:
        assert holder.stdout is not None
        yield holder.stdout.readline().strip(), holder.pid
    finally:
        holder.communicate(timeout=60)


def cells_of(place: Path) -> list[psutil.Process]:
    """Processes of cells whose run folders lie below ``place``, and hold the lock of one."""
    found = []
    for process in psutil.process_iter():
        try:
            named = f"--output_dir={place}" in " ".join(process.cmdline()) and "-c" in process.cmdline()[:2]
            if named and any(file.path.endswith("/.lock") for file in process.open_files()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def few_words(data: Path, folder: Path) -> list[str]:
    words = [word for word in words_for(data, folder) if not word.startswith(("--seeds", "--epochs"))]
    return [*words, "--seeds=3", "--epochs=30"]


@pytest.fixture(scope="module")
def local(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same comparison without a cluster."""
    folder = tmp_path_factory.mktemp("local")
    done = begin(few_words(tiny_data, folder), folder)
    out, err = done.communicate(timeout=300)
    assert done.returncode == 0, out + err
    return folder


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.parametrize("engine", ["ray", "dask"])
def test_a_worker_that_dies_costs_nothing(engine: str, tiny_data: Path, tmp_path: Path, local: Path) -> None:
    require(engine)
    with cluster(engine, tmp_path) as (address, holder):
        compared = begin(few_words(tiny_data, tmp_path), tmp_path, f"--engine={engine}", f"--engine_address={address}")
        cell = until(lambda: cells_of(tmp_path))[0]
        worker = cell.parent()
        assert worker is not None and worker.pid not in (compared.pid, holder, os.getpid())
        worker.kill()
        until(lambda: not is_alive(cell), 60)  # it does not live on as an orphan
        _, err = compared.communicate(timeout=400)
    assert compared.returncode == 0, err
    assert results(tmp_path) == results(local) and weights(tmp_path) == weights(local)
    for path in folders(tmp_path):
        lines = (path / "log.txt").read_text().splitlines()
        numbers = [line.split("ticket ")[1].split()[0] for line in lines if " done: " in line]
        assert len(numbers) == len(set(numbers))


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.parametrize("engine", ["ray", "dask"])
def test_without_an_address_a_cluster_is_started_here(
    engine: str, tiny_data: Path, tmp_path: Path, local: Path
) -> None:
    require(engine)
    words = [word for word in few_words(tiny_data, tmp_path) if not word.startswith("--sparsities")]
    compared = begin(words, tmp_path, "--sparsities=0.5", f"--engine={engine}")
    out, err = compared.communicate(timeout=400)
    assert compared.returncode == 0, err
    assert "Traceback" not in err and results(tmp_path) == results(local)[:2]


@pytest.mark.multiprocess
@pytest.mark.parametrize("engine", ["ray", "dask"])
def test_a_cluster_that_is_not_there_is_one_message(
    engine: str, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    require(engine)
    monkeypatch.chdir(tmp_path)
    if engine == "dask":
        monkeypatch.setattr("recbole_prune.compare.dask_engine._SECONDS_TO_CONNECT", 1)
    address = {"ray": "127.0.0.1:9", "dask": "tcp://127.0.0.1:9"}[engine]
    assert main([*few_words(tiny_data, tmp_path), f"--engine={engine}", f"--engine_address={address}"]) == 2
    [message] = capsys.readouterr().err.splitlines()
    assert f"--engine_address={address}" in message and "there is no" in message
    assert not (tmp_path / "pruned").exists()


@pytest.mark.parametrize(("engine", "module"), [("ray", "ray"), ("dask", "distributed")])
def test_a_missing_package_is_one_message(
    engine: str,
    module: str,
    tiny_data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, module, None)
    assert main([*few_words(tiny_data, tmp_path), f"--engine={engine}"]) == 2
    [message] = capsys.readouterr().err.splitlines()
    assert f"--engine={engine} needs" in message and f"'recbole-prune[{engine}]'" in message


WORKER = """
import pickle, sys
{before}
function, arguments = pickle.load(sys.stdin.buffer)
print(*function(*arguments), sep="|")
"""


@pytest.mark.multiprocess
@pytest.mark.parametrize(
    ("before", "place", "version", "said"),
    [
        ("sys.modules['recbole_prune'] = None", ".", None, "cannot import recbole_prune"),
        ("", ".", "9.9", "not 9.9"),
        ("", "/nowhere/at/all", None, "does not see /nowhere/at/all: workers need the same file system"),
    ],
)
@pytest.mark.parametrize("engine", ["ray_engine", "dask_engine"])
def test_a_worker_that_cannot_says_why(engine: str, before: str, place: str, version: str | None, said: str) -> None:
    cloudpickle = pytest.importorskip("cloudpickle")
    job, ours = message(Job((("run",),), place, 1))
    data = cloudpickle.dumps((portable(engine), (job, version or ours)))
    command = [sys.executable, "-c", WORKER.format(before=before)]
    done = subprocess.run(command, input=data, capture_output=True, env=ENVIRONMENT, check=True)
    failure, host = done.stdout.decode().strip().split("|")
    assert failure.startswith(f"the worker on {host} ") and said in failure
