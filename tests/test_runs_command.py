"""``recbole-prune runs``: what is listed, how to go on, and that cleaning takes nothing that any run needs."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from zoo import DATASET

from recbole_prune import run_recbole_prune
from recbole_prune.cli import main
from recbole_prune.report.folders import read_run
from recbole_prune.run.store import RunFolder

SETTINGS: dict[str, Any] = {
    "epochs": 1, "embedding_size": 8, "train_batch_size": 512, "metrics": ["Recall", "NDCG"], "topk": [10],
    "valid_metric": "NDCG@10", "gpu_id": "", "show_progress": False,
}  # fmt: skip


def run(data: Path, output: Path, pruner: str, **more: Any) -> Path:
    settings = {**SETTINGS, "data_path": str(data), "output_dir": str(output), "pruner": pruner, **more}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [""])
        return Path(run_recbole_prune("BPR", DATASET, config_dict=settings)["folder"])


@pytest.fixture(scope="module")
def original(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dense run, and two that took its dense model over."""
    output = tmp_path_factory.mktemp("runs") / "pruned"
    run(tiny_data, output, "none")
    run(tiny_data, output, "omp", prune_rounds=2)
    run(tiny_data, output, "random", prune_rounds=1)
    return output


@pytest.fixture
def output(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(original, tmp_path / "pruned"))


def folder_of(output: Path, pruner: str) -> Path:
    [folder] = output.glob(f"*/*/{pruner}-*")
    return folder


def files(folder: Path) -> dict[str, int]:
    return {str(file.relative_to(folder)): file.stat().st_size for file in folder.rglob("*") if file.is_file()}


def test_a_row_for_each_run(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split()[3]: line.split() for line in lines[2:5]}
    assert set(rows) == {"none", "omp", "random"}
    summary = json.loads((folder_of(output, "omp") / "summary.json").read_bytes())
    chosen = next(ticket for ticket in summary["tickets"] if ticket["ticket"] == summary["chosen"])
    size = sum(files(folder_of(output, "omp")).values())
    sparsity = f"{100 * chosen['sparsity']:.2f}"
    assert rows["omp"][1:9] == [DATASET, "BPR", "omp", "2020", "finished", str(summary["chosen"]), sparsity, "%"]
    assert rows["omp"][-1] == f"{size / 1e6:,.1f}" and rows["none"][-3:-1] == ["dense", "-"]
    [tested] = [ticket["as_good"]["as_good"] for ticket in summary["tickets"] if ticket["ticket"] == summary["chosen"]]
    assert rows["omp"][-2] == tested
    assert all(len(line) <= 80 for line in lines[:5])


def test_the_command_of_an_unfinished_run_continues_it(
    output: Path, tiny_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = folder_of(output, "omp")
    lines = (folder / "tickets.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "tickets.jsonl").write_bytes(b"".join(lines[:2]))
    for name in ("summary.json", "checkpoints/ticket-002.pth", "masks/ticket-002.safetensors"):
        (folder / name).unlink()
    assert main(["runs", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert "unfinished (2)" in shown
    command = shlex.split(shown.splitlines()[-1].partition(": ")[2])
    assert command[0] == "recbole-prune" and main(command[1:]) == 0
    assert read_run(folder).state == "finished"
    again = (folder / "tickets.jsonl").read_bytes().splitlines(keepends=True)
    assert again[:2] == lines[:2] and len(again) == 3
    assert json.loads(again[2])["mask_sha256"] == json.loads(lines[2])["mask_sha256"]


def test_damage_is_said_and_hides_no_other_run(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder_of(output, "omp") / "summary.json").write_bytes(b"\x1b[31mno JSON")
    assert main(["runs"]) == 0
    shown = capsys.readouterr().out
    assert "damaged" in shown and "summary.json is damaged" in shown and shown.count("finished") == 2
    assert "\x1b" not in shown


def test_cleaning_tells_first_and_then_frees_what_it_told(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files(output)
    assert main(["runs", "--clean"]) == 0
    told = capsys.readouterr().out
    assert files(output) == before and "would free" in told and "--yes" in told
    assert main(["runs", "pruned", "--clean", "--yes"]) == 0
    freed = capsys.readouterr().out
    gone = before.keys() - files(output).keys()
    size = sum(before[name] for name in gone)
    assert size > 0 and f"({size:,} bytes)" in told and f"({size:,} bytes)" in freed
    assert all("/checkpoints/" in name for name in gone)
    for pruner in ("none", "omp", "random"):
        folder = folder_of(output, pruner)
        kept = {path.name for path in (folder / "checkpoints").iterdir()}
        run = read_run(folder)
        assert run.chosen is not None and run.state == "finished"
        assert kept == {Path(run.chosen["checkpoint_file"]).name}
    assert main(["runs", "pruned", "--clean", "--yes"]) == 0
    assert "freed 0.0 MB (0 bytes)" in capsys.readouterr().out


@pytest.mark.slow
def test_after_cleaning_runs_show_their_table_and_share_their_dense_model(
    output: Path, tiny_data: Path, original: Path
) -> None:
    assert main(["runs", "pruned", "--clean", "--yes"]) == 0
    summary = (folder_of(output, "omp") / "summary.json").read_bytes()
    assert run(tiny_data, output, "omp", prune_rounds=2) == folder_of(output, "omp")
    assert (folder_of(output, "omp") / "summary.json").read_bytes() == summary
    new = run(tiny_data, output, "static", prune_target_sparsity=0.5)
    assert RunFolder(new).tickets()[0]["adopted_from"].startswith("none-")


def test_the_last_copy_of_a_dense_model_stays(output: Path) -> None:
    shutil.rmtree(folder_of(output, "none"))
    assert main(["runs", "pruned", "--clean", "--yes"]) == 0
    assert (folder_of(output, "omp") / "checkpoints" / "ticket-000.pth").is_file()


@pytest.mark.slow
def test_a_teacher_of_another_run_stays(output: Path, tiny_data: Path) -> None:
    teacher = folder_of(output, "omp") / "checkpoints" / "ticket-001.pth"
    student = run(tiny_data, output, "none", distiller="rrd", distill_teacher=str(teacher))
    Path("link").symlink_to("pruned")
    for named in ("pruned", "link"):
        assert main(["runs", named, "--clean", "--yes"]) == 0
        assert teacher.is_file() and read_run(student).state == "finished"


def test_what_goes_on_or_is_busy_is_left_as_it_is(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder_of(output, "omp") / "summary.json").unlink()
    busy = RunFolder(folder_of(output, "random"))
    busy.open()
    before = files(output)
    assert main(["runs", "--clean", "--yes"]) == 0
    busy.close()
    shown = capsys.readouterr().out
    assert files(output) == before and shown.count("left as it is") == 2
    assert "unfinished, left" in shown and "running, left" in shown


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["missing"], "there is no such folder"),
        (["--yes"], "--yes goes with --clean"),
        (["--clean=pruned"], "--clean=pruned is not allowed: --clean= takes True or False; name folders before it"),
        (["--clear"], "--clean"),
    ],
)
def test_bad_words_are_refused(words: list[str], said: str, output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files(output)
    assert main(["runs", *words]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert said in line and files(output) == before
