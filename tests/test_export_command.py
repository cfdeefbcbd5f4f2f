"""``recbole-prune export`` of a run whose data, or which itself, lies elsewhere by now."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from test_artifact import snapshot
from zoo import DATASET, config_for

from recbole_prune import run_recbole_prune
from recbole_prune.artifact import read_artifact
from recbole_prune.cli import main


@pytest.mark.slow
def test_from_another_folder_and_with_moved_data(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    work = tmp_path / "work"
    shutil.copytree(tiny_data, work / "data")
    monkeypatch.chdir(work)
    settings = {**config_for("BPR", tiny_data), "data_path": "data", "pruner": "none", "epochs": 1}
    first = Path(run_recbole_prune(model="BPR", dataset=DATASET, config_dict=settings)["artifact"])

    monkeypatch.chdir(tmp_path)
    assert main(["export", f"--run={first.parent}", "--to=again"]) == 0
    assert snapshot(tmp_path / "again") == snapshot(first)

    work.rename(tmp_path / "elsewhere")
    run = tmp_path / "elsewhere" / first.parent.relative_to(work)
    capsys.readouterr()
    assert main(["export", f"--run={run}", "--to=moved"]) == 2
    assert (
        capsys.readouterr()
        .err.strip()
        .endswith(f"dataset {DATASET} is not in {work / 'data'}: name the folder that it lies in with data_path")
    )
    assert main(["export", f"--run={run}", "--to=moved", "--data_path=elsewhere/data"]) == 0
    moved, old = read_artifact("moved"), read_artifact("again")
    assert moved.info["settings"]["data_path"] == str(tmp_path / "elsewhere" / "data")
    assert moved.info["files"] == old.info["files"] and moved.info["test"] == old.info["test"]

    shutil.copytree(tmp_path / "elsewhere" / "data", tmp_path / "other")
    with open(tmp_path / "other" / DATASET / f"{DATASET}.inter", "a", encoding="utf-8") as file:
        file.write("196\t242\t3\t881250949\n")
    assert main(["export", f"--run={run}", "--to=wrong", "--data_path=other"]) == 2
    assert "changed since" in capsys.readouterr().err and not Path("wrong").exists()
