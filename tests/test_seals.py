"""What is read back from a run folder is what that run wrote: nothing edited, nothing of another run."""

from __future__ import annotations

import atexit
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from marks import slow_but
from zoo import DATASET, config_for

from recbole_prune import PruneConfig, quick_start, run_recbole_prune
from recbole_prune.cli import main
from recbole_prune.disk.seals import seal, unseal
from recbole_prune.errors import StoreError
from recbole_prune.run.siblings import rows_of_others
from recbole_prune.run.store import CONFIG, JOURNAL, RESUME, SCOPE, SUMMARY, RunFolder

LINE = {"ticket": 0, "seed": 2020}
POINT = f"{RESUME}/point.json"


@cache
def original(seed: int, sealed: bool) -> Path:
    """A folder with one finished ticket and a resume point of the next, as versions with and without seals leave it."""
    path = Path(tempfile.mkdtemp(prefix="seals-"))
    atexit.register(shutil.rmtree, path)
    folder = RunFolder(path)
    folder.open()
    if sealed:
        folder.write(CONFIG, f"settings: {{seed: {seed}}}\n".encode())
    folder.write_scope({"targets": ["a", "b"]})
    folder.append_ticket({**LINE, "seed": seed})
    folder.save_resume(1, 3, b"state", {"seed": seed})
    folder.write_summary({"seed": seed})
    folder.write(CONFIG, f"settings: {{seed: {seed}}}\n".encode())
    folder.close()
    return path


def begun(path: Path, seed: int, sealed: bool = True) -> RunFolder:
    """A copy of it."""
    return RunFolder(shutil.copytree(original(seed, sealed), path))


def read_all(folder: RunFolder) -> tuple[Any, ...]:
    return folder.tickets(), folder.load_resume(1), folder.read_summary(), folder.read_scope()


@pytest.mark.parametrize("sealed", [True, False])
def test_a_folder_is_read_as_it_was_written(tmp_path: Path, sealed: bool) -> None:
    folder = begun(tmp_path / "run", 2020, sealed)
    tickets, point, summary, scope = read_all(folder)
    assert tickets == [LINE] and summary == {"seed": 2020} and scope["targets"] == ["a", "b"]
    assert point is not None and point[0]["seed"] == 2020 and point[1] == b"state"
    assert (folder.identity() is not None) == sealed
    folder.append_ticket({**LINE, "ticket": 1})
    assert len(RunFolder(folder.path).tickets()) == 2


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (CONFIG, r"config\.yaml is not as this run was begun with it: .*put the old file back"),
        (SCOPE, r"config\.yaml is not as this run was begun with it: its sha256 is not the one in .*scope\.json"),
        (JOURNAL, r"tickets\.jsonl line 1 is of another run than .*scope\.json"),
        (POINT, r"point\.json is of another run than .*scope\.json"),
        (SUMMARY, r"summary\.json is of another run than .*scope\.json"),
    ],
)
def test_a_file_of_another_run_is_refused_and_named(tmp_path: Path, name: str, said: str) -> None:
    """Its own sha256 fits its content."""
    mine, other = (begun(tmp_path / str(seed), seed) for seed in (2020, 2021))
    shutil.copy(other.path / name, mine.path / name)
    with pytest.raises(StoreError, match=said) as caught:
        read_all(RunFolder(mine.path))
    assert "\n" not in str(caught.value)


def test_a_line_of_another_run_among_those_of_this_one_is_named(tmp_path: Path) -> None:
    mine, other = (begun(tmp_path / str(seed), seed) for seed in (2020, 2021))
    mine.append_ticket({**LINE, "ticket": 1})
    with open(mine.path / JOURNAL, "ab") as journal:
        journal.write((other.path / JOURNAL).read_bytes())
    with pytest.raises(StoreError, match=r"tickets\.jsonl line 3 is of another run"):
        mine.tickets()


@pytest.mark.parametrize("name", [SCOPE, JOURNAL, POINT])
@pytest.mark.parametrize("sealed", [True, False])
def test_folders_with_and_without_seals_do_not_mix(tmp_path: Path, name: str, sealed: bool) -> None:
    mine, other = begun(tmp_path / "mine", 2020, sealed), begun(tmp_path / "other", 2021, not sealed)
    shutil.copy(other.path / name, mine.path / name)
    with pytest.raises(StoreError, match="of another run|not as this run was begun"):
        read_all(RunFolder(mine.path))


def test_a_journal_whose_scope_is_gone_is_refused(tmp_path: Path) -> None:
    folder = begun(tmp_path / "run", 2020)
    (folder.path / SCOPE).unlink()
    with pytest.raises(StoreError, match=r"line 1 is of another run than .*scope\.json, or that is missing"):
        RunFolder(folder.path).tickets()


def test_any_changed_byte_of_the_config_is_noticed(tmp_path: Path) -> None:
    folder = begun(tmp_path / "run", 2020)
    file = folder.path / CONFIG
    data = file.read_bytes()
    for position in range(len(data)):
        file.write_bytes(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])
        with pytest.raises(StoreError, match=r"config\.yaml is not as"):
            RunFolder(folder.path).identity()


def test_a_config_that_is_edited_while_a_run_goes_on_costs_no_ticket(tmp_path: Path) -> None:
    folder = begun(tmp_path / "run", 2020)
    assert folder.tickets()
    data = (folder.path / CONFIG).read_bytes()
    (folder.path / CONFIG).write_bytes(b"edited")
    folder.append_ticket({**LINE, "ticket": 1})
    with pytest.raises(StoreError, match=r"config\.yaml is not as"):
        RunFolder(folder.path).tickets()
    (folder.path / CONFIG).write_bytes(data)
    assert len(RunFolder(folder.path).tickets()) == 2


# ---- whole runs


def settings_of(data: Path, **changes: Any) -> dict[str, Any]:
    pruned = {"pruner": "imp", "prune_rate": 0.3, "prune_rounds": 1, "epochs": 1}
    return {**config_for("BPR", data), **pruned, **changes}


def run(data: Path, **changes: Any) -> dict[str, Any]:
    return run_recbole_prune("BPR", DATASET, config_dict=settings_of(data, **changes))


@pytest.fixture(scope="module")
def finished(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What lies in the output folder after a run of ``imp`` and one of ``omp`` with the same training settings."""
    output = tmp_path_factory.mktemp("finished") / "pruned"
    for pruner in ("imp", "omp"):
        settings = settings_of(tiny_data, output_dir=str(output), pruner=pruner)
        quick_start.run(PruneConfig("BPR", DATASET, config_dict=settings))  # not by pytest's words
    return output


@pytest.fixture
def output(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "pruned")
    return tmp_path / "pruned"


def folder_of(output: Path, pruner: str = "imp") -> Path:
    [folder] = output.glob(f"*/*/{pruner}-*")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    own = ("log.txt", ".lock")
    return {str(f): f.read_bytes() for f in folder.rglob("*") if f.is_file() and f.name not in own}


def test_an_edited_config_is_refused_by_a_run_and_by_export(
    output: Path, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = folder_of(output)
    file = folder / CONFIG
    file.write_text(file.read_text().replace("epochs: 1", "epochs: 2"))
    before = contents(folder)
    with pytest.raises(StoreError, match=r"config\.yaml is not as this run was begun with it"):
        run(tiny_data)
    assert main(["export", f"--run={folder}", f"--to={tmp_path / 'out'}"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert str(file) in line and "put the old file back" in line
    assert contents(folder) == before and not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_folder_with_all_of_another_run_is_refused(output: Path, tiny_data: Path) -> None:
    """Its files fit each other, but not what the command asks for."""
    mine, other = folder_of(output), folder_of(output, "omp")
    shutil.rmtree(mine)
    shutil.copytree(other, mine)
    with pytest.raises(StoreError, match=r"config\.yaml is that of another run than of this command \(pruner"):
        run(tiny_data)
    shutil.rmtree(mine)
    elsewhere = Path(run(tiny_data, seed=7)["folder"])
    shutil.copytree(elsewhere, mine)
    before = contents(mine)
    with pytest.raises(StoreError, match=r"another run than of this command \(run_hash"):
        run(tiny_data)
    assert contents(mine) == before


def without_seals(folder: Path) -> None:
    """The folder as an older version would have left it."""
    for name in (SCOPE, JOURNAL):
        records = [unseal(line) for line in (folder / name).read_bytes().splitlines()]
        for record in records:
            assert record is not None and (record.pop("config_sha256", None) or record.pop("run_sha256", None))
        (folder / name).write_bytes(b"".join(seal(record) + b"\n" for record in records if record))
    summary = json.loads((folder / SUMMARY).read_bytes())
    del summary["sha256"], summary["run_sha256"]
    (folder / SUMMARY).write_text(json.dumps(summary, indent=2))


@pytest.mark.slow
def test_a_run_of_an_older_version_is_shown_continued_exported_and_stands_beside_others(
    output: Path, tiny_data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = run(tiny_data)
    for pruner in ("imp", "omp"):
        without_seals(folder_of(output, pruner))
    caplog.set_level(logging.INFO)
    assert run(tiny_data) == before
    assert "config.yaml has no seal: an older version began this run" in caplog.text
    folder = folder_of(output)
    journal = (folder / JOURNAL).read_bytes().splitlines(keepends=True)
    (folder / JOURNAL).write_bytes(journal[0])
    continued = run(tiny_data)
    assert continued["tickets"][1]["mask_sha256"] == before["tickets"][1]["mask_sha256"]
    assert RunFolder(folder).identity() is None and len(RunFolder(folder).tickets()) == 2
    assert main(["export", f"--run={folder}", f"--to={tmp_path / 'out'}"]) == 0


# ---- damaged runs beside this one

UNREADABLE: dict[str, Callable[[Path], object]] = {
    "no JSON": lambda path: path.write_bytes(b"{"),
    "a list": lambda path: path.write_bytes(b"[1]"),
    "deep": lambda path: path.write_bytes(b"[" * 5_000),
    "a flipped digit": lambda path: path.write_bytes(path.read_bytes().replace(b"0", b"1", 1)),
    "a pipe": lambda path: (path.unlink(), os.mkfifo(path)),
    "no text": lambda path: path.write_bytes(b"\xff\0"),
    "no date": lambda path: path.write_bytes(b"settings: 2020-13-45\n"),
}


@pytest.mark.parametrize("sealed", [True, False])
@pytest.mark.parametrize("damage", slow_but(["a list", "a flipped digit"], list(UNREADABLE)))
def test_a_damaged_run_beside_this_one_costs_its_rows_and_a_warning(
    output: Path, damage: str, sealed: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Whichever of its files is damaged; a damaged summary costs bytes and tests only, which no line has."""
    mine, beside = RunFolder(folder_of(output)), folder_of(output, "omp")
    if not sealed:
        without_seals(beside)
    [whole] = rows_of_others(mine)
    assert whole.method == "omp" and whole.ticket["bytes"] > 0 and not caplog.records
    assert whole.ticket["as_good"]["as_good"] in ("yes", "no", "open")
    for name in (SUMMARY, JOURNAL, SCOPE, CONFIG):
        kept = (beside / name).read_bytes()
        UNREADABLE[damage](beside / name)
        caplog.clear()
        rows = rows_of_others(mine)
        lines = [record.getMessage() for record in caplog.records]
        (beside / name).unlink()
        (beside / name).write_bytes(kept)
        assert rows_of_others(mine) == [whole]
        if damage == "a pipe" and name in (CONFIG, SUMMARY):
            assert rows == []  # it is no folder of a finished run
        elif not sealed and damage == "a flipped digit" and name in (CONFIG, SUMMARY):
            assert len(rows) <= 1  # an older version left nothing to check it by
        else:
            [line] = lines
            assert str(beside / name) in line and "\n" not in line
            untold = whole._replace(ticket={**whole.ticket, "bytes": None, "as_good": None})
            assert rows == ([untold] if name == SUMMARY else [])


@pytest.mark.slow
def test_a_dense_model_is_not_taken_from_a_damaged_run(
    output: Path, tiny_data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dense = json.loads((folder_of(output) / JOURNAL).read_bytes().splitlines()[0])
    for pruner, name in (("imp", JOURNAL), ("omp", CONFIG)):
        file = folder_of(output, pruner) / name
        file.write_bytes(file.read_bytes().replace(b"0", b"1", 1))
    result = run(tiny_data, pruner="random")
    assert "adopted_from" not in result["tickets"][0]
    assert result["tickets"][0]["mask_sha256"] == dense["mask_sha256"]
    warned = "\n".join(record.getMessage() for record in caplog.records if record.levelno == logging.WARNING)
    assert str(folder_of(output) / JOURNAL) in warned and str(folder_of(output, "omp") / CONFIG) in warned
