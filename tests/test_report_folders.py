"""Run folders as reports read them: what a run wrote, one sentence for what is damaged, nothing heavy is loaded."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from zoo import DATASET

from recbole_prune import run_recbole_prune
from recbole_prune.disk.seals import seal, unseal
from recbole_prune.errors import ConfigError
from recbole_prune.report.folder_files import _LONGEST
from recbole_prune.report.folders import DAMAGED, FINISHED, RUNNING, UNFINISHED, find_runs, read_run

SETTINGS: dict[str, Any] = {
    "epochs": 1, "embedding_size": 8, "train_batch_size": 512, "metrics": ["Recall", "NDCG"], "topk": [10],
    "valid_metric": "NDCG@10", "gpu_id": "", "show_progress": False, "pruner": "omp", "prune_rounds": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def finished(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a run returns."""
    output = tmp_path_factory.mktemp("reports") / "pruned"
    settings = {**SETTINGS, "data_path": str(tiny_data), "output_dir": str(output)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [""])
        return run_recbole_prune("BPR", DATASET, config_dict=settings)


@pytest.fixture
def folder(finished: dict[str, Any], tmp_path: Path) -> Path:
    """A copy of the folder, as deep as it was."""
    original = Path(finished["folder"])
    return Path(shutil.copytree(original, tmp_path.joinpath("pruned", *original.parts[-3:])))


def test_a_finished_run_is_read_as_it_was_returned(finished: dict[str, Any], folder: Path) -> None:
    run = read_run(folder)
    assert (run.state, run.reason) == (FINISHED, None)
    assert (run.model, run.dataset, run.method, run.seed) == ("BPR", DATASET, "omp", 2020)
    assert list(run.tickets) == finished["tickets"] and run.chosen == finished["chosen"]
    assert run.dense == finished["tickets"][0] and run.valid_metric == "NDCG@10"
    for line in run.tickets:
        assert run.bytes_of[line["ticket"]] is not None
    on_disk = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    assert sum(run.bytes_on_disk.values()) == on_disk
    checkpoints = sum(file.stat().st_size for file in (folder / "checkpoints").iterdir())
    assert run.bytes_on_disk["checkpoints"] == checkpoints > 0


def test_the_command_finds_the_same_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shlex

    from recbole_prune.config.prune_config import PruneConfig
    from recbole_prune.config.words import launch
    from recbole_prune.run.opening import run_path

    for place in (folder.parents[3], Path("/")):
        monkeypatch.chdir(place)
        command = read_run(folder).command()
        assert command is not None and ("--output_dir" in command) == (place == Path("/"))
        program, *words = shlex.split(command)
        asked = launch(words)
        assert program == "recbole-prune"
        assert run_path(PruneConfig(asked.model, asked.dataset, asked.files, words=asked.words)) == folder


def test_a_folder_under_another_name_has_no_command(folder: Path) -> None:
    aside = folder.rename(folder.with_name(f"{folder.name}.old-1"))
    run = read_run(aside)
    assert run.state == FINISHED and run.is_set_aside and run.command() is None


def test_states(folder: Path) -> None:
    with open(folder / ".lock") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        assert read_run(folder).state == RUNNING
    assert read_run(folder).state == FINISHED
    journal = folder / "tickets.jsonl"
    journal.write_bytes(b"".join(journal.read_bytes().splitlines(keepends=True)[:2]))
    summary = json.loads((folder / "summary.json").read_bytes())
    if summary["chosen"] == 2:  # the ticket is gone
        assert read_run(folder).state == DAMAGED
    (folder / "summary.json").unlink()
    run = read_run(folder)
    assert (run.state, len(run.tickets), run.chosen, run.summary) == (UNFINISHED, 2, None, None)
    journal.unlink()
    run = read_run(folder)
    assert (run.state, run.tickets, run.dense, run.seed) == (UNFINISHED, (), None, None)


def edit_line(folder: Path, number: int, **changes: Any) -> None:
    """Change fields of a line, sealed anew as a forger would."""
    lines = (folder / "tickets.jsonl").read_bytes().splitlines()
    record = unseal(lines[number])
    assert record is not None
    lines[number] = seal({**record, **changes})
    (folder / "tickets.jsonl").write_bytes(b"\n".join(lines) + b"\n")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sparsity": "<script>"}, "line 2 is damaged: sparsity is not a finite number"),
        ({"kept": -1}, "line 2 is damaged: kept is not a whole number from 0"),
        ({"kept": True}, "line 2 is damaged: kept is not a whole number from 0"),
        ({"valid": {"ndcg@10": [1]}}, "line 2 is damaged: valid is not metrics by name"),
        ({"test": None}, "line 2 is damaged: test is not metrics by name"),
        ({"history": [[1, 2, 3]]}, "line 2 is damaged: history is not pairs of numbers"),
        ({"measured": [1]}, "line 2 is damaged: measured is not an object or null"),
        ({"wins": "yes"}, "line 2 is damaged: wins is not true, false or null"),
        ({"ticket": 0}, "line 2 is damaged: ticket 0 is there twice"),
        ({"run_sha256": "0" * 64}, "line 2 is of another run than scope.json"),
    ],
)
def test_a_forged_line_is_named(folder: Path, changes: dict[str, Any], said: str) -> None:
    edit_line(folder, 1, **changes)
    run = read_run(folder)
    assert run.state == DAMAGED and run.reason is not None and said in run.reason
    assert run.model == "BPR" and run.tickets == () and run.summary is None


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("config.yaml", b"", "holds no settings"),
        ("config.yaml", b"\xff\xfe", "not valid YAML"),
        ("config.yaml", b"settings: {a: [}", "not valid YAML (line 1)"),
        ("config.yaml", b"settings: !!python/object/apply:os.system [exit]", "not valid YAML"),
        ("config.yaml", b"[" * 1500, "not valid YAML"),
        ("config.yaml", b"settings: 2020-13-45", "not valid YAML"),
        ("config.yaml", b"settings: {model: 1, dataset: x}", "does not say which model"),
        ("config.yaml", b"settings: &a {model: m, dataset: d, self: *a}", "holds too much"),
        (
            "config.yaml",
            b"a: &a [x,x,x,x,x,x,x,x,x]\n"
            + b"".join(b"%c: &%c [%s]\n" % (c + 1, c + 1, b",".join([b"*%c" % c] * 9)) for c in range(97, 106))
            + b"settings: {model: m, dataset: d}",
            "holds too much",
        ),
        ("scope.json", b"{}", "sha256 does not fit"),
        ("scope.json", seal({"targets": 1}), "no list of targets"),
        ("tickets.jsonl", b"{", "line 1 is damaged: its sha256"),
        ("tickets.jsonl", b'{"sha256": ' + b"9" * 200_000 + b"}", "line 1 is damaged: its sha256"),
        ("tickets.jsonl", b'{"sha256": ' + b"[" * 200_000, "line 1 is damaged: its sha256"),
        ("summary.json", b"[]", "sha256 does not fit"),
    ],
)
def test_a_damaged_file_is_named(folder: Path, name: str, content: bytes, said: str) -> None:
    (folder / name).write_bytes(content)
    run = read_run(folder)
    assert run.state == DAMAGED and run.reason is not None
    assert said in run.reason and str(folder / name) in run.reason and len(run.reason.splitlines()) == 1


@pytest.mark.parametrize("name", list(_LONGEST))
def test_what_is_no_file_or_too_long_is_not_read(folder: Path, name: str) -> None:
    path = folder / name
    path.unlink()
    os.mkfifo(path)
    run = read_run(folder)
    assert run.state == DAMAGED and f"{path} is not a file" in str(run.reason)
    path.unlink()
    with open(path, "wb") as file:
        file.truncate(_LONGEST[name] + 1)  # sparse: takes no disk
    assert f"{path} is no file of a run: it has more than" in str(read_run(folder).reason)


def test_folders_are_found_once_whatever_is_named(folder: Path, tmp_path: Path) -> None:
    twin = shutil.copytree(folder, folder.with_name("imp-0123456789"))
    (tmp_path / "pruned" / "loop").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.yaml").write_text("settings: {}\n")  # of some other program
    (twin / "config.yaml").unlink()
    found = find_runs([tmp_path, folder, tmp_path / "pruned" / DATASET])
    assert [run.path for run in found.runs] == sorted([folder, twin]) and found.problems == []
    assert {run.path: run.state for run in found.runs} == {folder: FINISHED, twin: DAMAGED}
    linked = tmp_path / "link"
    linked.symlink_to(folder, target_is_directory=True)
    assert [run.state for run in find_runs([linked, folder]).runs] == [FINISHED]


@pytest.mark.parametrize(
    ("name", "said"),
    [("missing", "there is no such folder"), ("file", "is no folder"), ("empty", "no run folder in it")],
)
def test_a_place_without_run_folders_is_refused(tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=said):
        find_runs([tmp_path / name])


def test_nothing_heavy_is_loaded(folder: Path) -> None:
    code = (
        "import sys; from recbole_prune.report.folders import find_runs; "
        "found = find_runs(sys.argv[1:]); print(len(found.runs), found.runs[0].state, "
        "[name for name in ('torch', 'recbole', 'pandas', 'scipy', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True)
    assert done.stdout.split(maxsplit=2) == ["1", "finished", "[]\n"]
