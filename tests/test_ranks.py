"""Several processes that train one run: equal to each other bit for bit, to one process up to rounding; kills."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import ranks_lab
import torch
from conformance import settings_of
from recbole.data.interaction import Interaction
from training_bench import without_clocks
from zoo import DATASET

from recbole_prune import quick_start
from recbole_prune.config.prune_config import PruneConfig
from recbole_prune.config.words import launch
from recbole_prune.data.own_rows import OwnRows
from recbole_prune.distillers import DISTILLERS, get_distiller
from recbole_prune.errors import ConfigError
from recbole_prune.pruners import PRUNERS, get_pruner
from recbole_prune.ranks import group
from recbole_prune.ranks.launcher import Ranks
from recbole_prune.sparse.compiling import available

# these draw or normalise by the rows of a part, or by its norm, so that only the processes are equal to each other
OWN_DRAWS = ["SASRec", "CKE", "MultiVAE"]
# Adam leaves rows of their tables for later in a dense training
ROWS_WAIT = ["BPR", "FPMC"]
SAD = {"distill_teacher_model": "BPR"}


def cases(data: Path) -> list[dict[str, Any]]:
    """Every pruner on BPR, then models of other kinds, then what only some runs do."""
    found = []
    for method in PRUNERS:
        more = SAD if get_pruner(method).distiller else {}
        found.append({**settings_of(method, "BPR", data), **more, "model": "BPR"})
    for model in ("LightGCN", *OWN_DRAWS):
        found.append({**settings_of("dsl", model, data), "model": model, "epochs": 1})
    found.append({**settings_of("imp", "BPR", data), "model": "BPR", "prune_rewind": "late", "prune_rewind_epoch": 1})
    found.append({**settings_of("imp", "BPR", data), "model": "BPR", "clip_grad_norm": {"max_norm": 0.01}})
    for model in ROWS_WAIT:  # small batches of large tables
        found.append({**settings_of("omp", model, data), "model": model, "train_batch_size": 16, "epochs": 3})
    # rows wait where torch has few threads, and so in one of them only
    found.append({**settings_of("omp", "BPR", data), "model": "BPR", "train_batch_size": 16, "threads": [1, 4]})
    return [{**case, "dataset": DATASET, "measure_latency_users": 0} for case in found]


def environment(rank: int, count: int, port: int, **more: str) -> dict[str, str]:
    """What ``torchrun`` sets."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    own = {name: str(value) for name, value in place.items()} if count > 1 else {}
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1", **own, **more}


@pytest.fixture(scope="module")
def notes(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """What one process noted, and each of two, case by case."""
    wanted, found = cases(tiny_data), {}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for count in (1, 2):
        folder = tmp_path_factory.mktemp(f"of_{count}")
        (folder / "cases.json").write_text(json.dumps(wanted))
        for rank in range(count):
            said = open(folder / f"said.{rank}.txt", "w")  # noqa: SIM115
            command = [sys.executable, ranks_lab.__file__, str(folder / "cases.json")]
            own = environment(rank, count, port, RANKS_LAB_OUT=str(folder / "out"))
            process = subprocess.Popen(command, cwd=folder, env=own, stderr=said, stdout=subprocess.DEVNULL)
            started.append((f"{rank} of {count}", folder / f"out.{rank}.json", process))
    for name, file, process in started:
        assert process.wait(timeout=600) == 0, file.with_name("said.0.txt").read_text()[-2000:]
        found[name] = json.loads(file.read_text())
    return found


def of_case(notes: dict[str, list[Any]], number: int) -> list[dict[str, Any]]:
    return [notes[name][number] for name in ("0 of 1", "0 of 2", "1 of 2")]


def labels() -> list[str]:
    by_rows = [f"{model} by rows" for model in ROWS_WAIT]
    return [*PRUNERS, "LightGCN", *OWN_DRAWS, "late rewinding", "clipping", *by_rows, "other threads"]


@pytest.mark.multiprocess
@pytest.mark.parametrize("label", labels())
def test_processes_are_equal_to_each_other_and_to_one(label: str, notes: dict[str, list[Any]]) -> None:
    """Weights, moments, masks and losses after every epoch, bit for bit; metrics; up to rounding those of one."""
    one, first, second = of_case(notes, labels().index(label))
    assert "error" not in first, first
    if label == "other threads":
        waited = [[epoch.pop("waited") for epoch in found["epochs"]] for found in (first, second)]
        assert waited[0][0] > 0 and not any(waited[1])
    assert first["epochs"] == second["epochs"] and first["tickets"] == second["tickets"]
    assert first["folder"].replace("of_2", "of_1") != one["folder"]  # another hash
    if label in OWN_DRAWS or (label in PRUNERS and get_pruner(label).distiller):  # attention is within a batch
        return  # so that the best epoch may be another
    assert len(one["epochs"]) == len(first["epochs"])
    for alone, shared in zip(one["epochs"], first["epochs"]):
        assert alone["losses"] == pytest.approx(shared["losses"], rel=1e-3)
    assert one["tickets"] == first["tickets"]  # digits and masks


@pytest.mark.multiprocess
def test_sums_of_gradients(notes: dict[str, list[Any]]) -> None:
    """Tables of which much, little and nothing is touched, small tensors, some without a gradient in one process;
    over the wires of one machine, and by gloo."""
    for name in ("0 of 2", "1 of 2"):
        assert notes[name][-1] == {"one machine": [True] * 3, "several": [True] * 2}


@pytest.mark.multiprocess
@pytest.mark.skipif(not available(), reason="the loops need numba")
@pytest.mark.parametrize("model", ROWS_WAIT)
def test_rows_of_tables_wait_in_every_process(model: str, notes: dict[str, list[Any]]) -> None:
    for found in of_case(notes, labels().index(f"{model} by rows")):
        assert found["epochs"][0]["waited"] >= 2, "no table is large enough for its batches"


# ---- the command


def command(words: list[str], folder: Path) -> subprocess.Popen[str]:
    """``recbole-prune``, as a shell starts it."""

    def as_in_a_terminal() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    code = "import sys; from recbole_prune.cli import main; sys.exit(main())"
    return subprocess.Popen(
        [sys.executable, "-c", code, *words],
        cwd=folder,
        env=environment(0, 1, 0),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=as_in_a_terminal,
    )


def children(parent: int) -> list[int]:
    """Processes that a process has started, in the order of their start."""
    found = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = file.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == parent:
            found.append(int(file.parent.name))
    return sorted(found)


def wait_for_epoch(folder: Path, epoch: int, process: subprocess.Popen[str]) -> None:
    """Until there is a resume point of so many epochs of ticket 0."""
    until = time.monotonic() + 400
    while time.monotonic() < until and process.poll() is None:
        points = folder.glob("pruned/*/*/*/resume/ticket-000-*.safetensors")
        if any(int(point.stem[-5:]) >= epoch for point in points):
            return
        time.sleep(0.01)
    raise AssertionError(process.communicate()[1])


def journal(folder: Path) -> list[dict[str, Any]]:
    [file] = folder.glob("pruned/*/*/*/tickets.jsonl")
    lines = [without_clocks(json.loads(line)) for line in file.read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "sha256"} for line in lines]


@pytest.fixture
def words(tiny_data: Path) -> list[str]:
    settings = f"--model=BPR --dataset={DATASET} --data_path={tiny_data} --pruner=imp --prune_rounds=1 --epochs=40"
    return [
        *settings.split(),
        "--embedding_size=8",
        "--train_batch_size=300",
        "--gpu_id=",
        "--stopping_step=40",
        "--nproc=2",
    ]


@pytest.mark.multiprocess
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
def test_killed_and_interrupted_runs_continue_as_if_they_never_were(tmp_path: Path, words: list[str]) -> None:
    plain, cut = tmp_path / "plain", tmp_path / "cut"
    plain.mkdir(), cut.mkdir()
    whole = command(words, plain)
    for number, moment in enumerate(("SIGINT", "second is killed", "first is killed")):
        process = command(words, cut)
        wait_for_epoch(cut, 3 + 6 * number, process)
        two = children(process.pid)
        assert len(two) == 2
        if moment == "SIGINT":
            process.send_signal(signal.SIGINT)
        else:
            os.kill(two[moment == "second is killed"], signal.SIGKILL)
        said = process.communicate(timeout=60)[1].splitlines()
        assert not any(Path(f"/proc/{pid}").exists() for pid in two)
        ours = [line for line in said if line.startswith("recbole-prune: ")]
        assert len(ours) == 1 and "is finished is kept" in ours[0] and "Traceback" not in "\n".join(said)
        assert process.returncode == (130 if moment == "SIGINT" else 137)
        assert (moment == "SIGINT") == ("interrupted by SIGINT" in ours[0])
    done = command(words, cut)
    printed, errors = done.communicate(timeout=120)
    assert done.returncode == 0 and "continues after epoch" in errors
    expected = whole.communicate(timeout=120)[0]
    assert journal(cut) == journal(plain)
    table = [line for line in printed.splitlines() if line.startswith("    ")]
    assert table and table == [line for line in expected.splitlines() if line.startswith("    ")]
    # torchrun finds the finished run
    module = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node=2",
        "-m",
        "recbole_prune.cli",
        *words[:-1],
    ]
    run = subprocess.run(
        module, cwd=cut, env=environment(0, 1, 0), capture_output=True, text=True, timeout=120, check=False
    )
    assert run.returncode == 0, run.stderr
    assert [line for line in run.stdout.splitlines() if line.startswith("    ")] == table


# ---- without processes


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], None),
        (["--nproc=1"], None),
        (["--nproc=2"], Ranks(2, 2, 0, "localhost", 0)),
        (["--nproc", "2", "--port=77"], Ranks(2, 2, 0, "localhost", 77)),
        (["--nproc=2", "--world_size=-1"], Ranks(2, 2, 0, "localhost", 0)),
        (["--nproc=2", "--world_size=4", "--group_offset=2", "--ip=10.0.0.1"], Ranks(2, 4, 2, "10.0.0.1", 5678)),
        (["--world_size=2"], Ranks(1, 2, 0, "localhost", 5678)),
    ],
)
def test_words_of_recboles_launcher(words: list[str], expected: Ranks | None) -> None:
    assert launch(words).ranks == expected


def fake_loader(rows: int) -> Any:
    batch = Interaction({"user": torch.arange(rows), "list": torch.arange(2 * rows).view(rows, 2)})
    return [batch]


@pytest.mark.parametrize("rows", [1, 3, 4, 7, 12])
@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("sums", [False, True])
def test_parts_of_a_batch_are_the_batch(rows: int, count: int, sums: bool) -> None:
    """The gradients of a mean, and of a sum, over the rows are those of the whole batch."""
    loaders = [OwnRows(fake_loader(rows), rank, count, sums=sums) for rank in range(count)]
    total, seen = torch.zeros(2), []
    for loader in loaders:
        for part in loader:
            each = part["list"].float()
            total += loader.share * (each.sum(0) if sums else each.mean(0))
            seen += part["user"].tolist()
    whole = torch.arange(2 * rows).view(rows, 2).float()
    torch.testing.assert_close(total, whole.sum(0) if sums else whole.mean(0))
    assert sorted(seen) == sorted(list(range(rows)) * (count if rows < 2 * count else 1))


def test_one_process_is_the_first_of_one() -> None:
    assert (group.rank(), group.count(), group.is_first(), group.are_several()) == (0, 1, True, False)
    assert group.of_first({"a": b"x"}) == {"a": b"x"} and group.gather(b"y") == [b"y"]
    group.join()
    assert group.count() == 1


@pytest.mark.parametrize(
    "value", [None, 1, 1.5, "a", [1, "b"], {"a": b"xyz", "b": [b"", b"q"]}, b"\0" * 9, Path("/a/b")]
)
def test_what_the_first_process_tells_arrives(value: Any) -> None:
    assert group._unpack(group._pack(value)) == value


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"RANK": "5"}, "RANK=5"),
        ({"RANK": ""}, "RANK="),
        ({"MASTER_PORT": "x"}, "MASTER_PORT=x"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE=two"),
    ],
)
def test_an_environment_that_is_not_whole_is_refused(
    changes: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {**environment(0, 2, 1), **changes}.items():
        if name in group.VARIABLES:
            monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=message):
        group.join()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train_batch_size": 3}, "train_batch_size=3 .* at least 4"),
        ({"save_dataset": True}, "save_dataset=True"),
        ({"save_dataloaders": True}, "save_dataloaders=True"),
        ({"learner": "sparse_adam"}, "learner=sparse_adam"),
        ({"distiller": "rrd", "distill_teacher_model": "BPR"}, "distiller=rrd"),
    ],
)
def test_what_several_processes_cannot_do_is_refused(
    settings: dict[str, Any], message: str, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group, "_place", group._Place(0, 2, 0))
    given = {**settings_of("imp", "BPR", tiny_data), "output_dir": str(tmp_path / "out"), **settings}
    with pytest.raises(ConfigError, match=message):
        quick_start.run(PruneConfig("BPR", DATASET, config_dict=given))
    assert not (tmp_path / "out").exists()


def test_the_distillers_that_several_processes_may_have() -> None:
    assert [name for name in DISTILLERS if get_distiller(name).promises.batch_in_parts] == ["sad"]
