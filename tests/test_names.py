"""Names are data: whatever datasets, users, items and folders are called works, or is refused in one line."""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recbole_prune import PruneConfig, load_ticket, quick_start, run_recbole_prune
from recbole_prune.artifact import read_artifact
from recbole_prune.cli import main
from recbole_prune.config.names import check_folder_name
from recbole_prune.data.cached import data_digest
from recbole_prune.errors import ArtifactError, ConfigError, StoreError
from recbole_prune.serving import Recommender

DATASET = "-we[i]rd *, {näme} 名前"
ODD = ["a,b", "-c", "*", "[x]", "ü ñ", "名前", "e\x1b[31mred", "back\\slash", "--k=3", "196", "~", "$HOME", "a=b", "{}"]
USERS = [*ODD, *(f"u{number}" for number in range(16))]
ITEMS = [*(f"<{token}>" for token in ODD), *(f"i{number}" for number in range(16))]


def write(folder: Path) -> Path:
    """Every user with every third item."""
    rows = [f"{u}\t{i}" for n, u in enumerate(USERS) for m, i in enumerate(ITEMS) if (n + m) % 3 == 0]
    (folder / DATASET).mkdir(parents=True)
    file = folder / DATASET / f"{DATASET}.inter"
    file.write_text("\n".join(["user_id:token\titem_id:token", *rows]) + "\n", encoding="utf-8")
    return file


def settings_of(folder: Path) -> dict[str, Any]:
    settings = {"data_path": str(folder), "epochs": 1, "embedding_size": 4, "gpu_id": "", "show_progress": False}
    pruned = {"pruner": "omp", "prune_target_sparsity": 0.5, "output_dir": "out, [*] ü"}
    return {**settings, **pruned}


def run(folder: Path) -> dict[str, Any]:
    return run_recbole_prune("BPR", DATASET, config_dict=settings_of(folder))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write(tmp_path / "da [t]a, *")
    return tmp_path / "da [t]a, *"


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of a run in a folder of its own."""
    folder, before = tmp_path_factory.mktemp("run [1]"), Path.cwd()
    write(folder / "data")
    os.chdir(folder)
    try:
        # not the function, which reads the words of pytest here
        return quick_start.run(PruneConfig("BPR", DATASET, config_dict=settings_of(folder / "data"))).artifact
    finally:
        os.chdir(before)


@pytest.mark.slow
def test_a_run_takes_odd_names_from_its_begin_to_its_end(data: Path, tmp_path: Path) -> None:
    result = run(data)
    assert load_ticket(result["artifact"]).n_users == len(USERS) + 1
    # the same command finds the run that is finished, and the data that it was begun on
    assert run(data)["tickets"] == result["tickets"]
    assert main(["export", f"--run={result['folder']}", f"--to={tmp_path / '[a], *'}"]) == 0
    assert list(read_artifact(tmp_path / "[a], *").users) == list(read_artifact(result["artifact"]).users)


def test_tokens_of_a_file_and_of_standard_input(
    artifact: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def output(*words: str) -> Any:
        capsys.readouterr()
        assert main(["recommend", f"--artifact={artifact}", "--k=2", "--format=json", *words]) == 0
        return json.loads(capsys.readouterr().out)

    found = read_artifact(artifact)
    assert set(found.users[1:]) == set(USERS) and set(found.items[1:]) == set(ITEMS)
    lists = Recommender(found).recommend(USERS, k=2)
    expected = [
        {"user": user, "items": [{"item": item, "score": pytest.approx(score)} for item, score in items]}
        for user, items in zip(USERS, lists)
    ]
    wanted = tmp_path / "users, [1].txt"
    wanted.write_text("\n".join(USERS), encoding="utf-8")
    assert output(f"--users_file={wanted}") == expected
    wanted.write_bytes("\r\n".join([*USERS, ""]).encode())
    assert output(f"--users_file={wanted}") == expected
    monkeypatch.setattr(sys, "stdin", io.StringIO("a,b\n-c\n"))
    assert output("--users_file=-") == expected[:2]
    assert output("--users=-c,[x]") == [expected[1], expected[3]]


def test_a_file_of_users_that_cannot_be_read_is_named(
    artifact: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "latin").write_bytes(b"\xfc\n")
    (tmp_path / "empty").write_bytes(b"")
    for name in ("nowhere", "latin", "empty", "."):
        assert main(["recommend", f"--artifact={artifact}", f"--users_file={name}"]) == 2
        assert f"users_file={name}" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [196, np.int64(196), b"196"])
def test_ids_that_are_no_text_are_refused_with_the_way_out(wrong: Any, artifact: str) -> None:
    recommender = Recommender.from_artifact(artifact)
    with pytest.raises(ArtifactError, match=r"ids are text.*196.*str\(id\)"):
        recommender.recommend(["u1", wrong])
    assert recommender.recommend([np.array(["196"])[0]], k=1)


@pytest.mark.slow
def test_a_changed_dataset_is_noticed_whatever_it_is_called(data: Path) -> None:
    run(data)
    file = data / DATASET / f"{DATASET}.inter"
    file.write_text(file.read_text(encoding="utf-8") + f"u1\t{ITEMS[1]}\n", encoding="utf-8")
    with pytest.raises(StoreError, match="changed since"):
        run(data)


def test_the_digest_of_a_dataset_is_that_of_its_own_files(data: Path) -> None:
    before = data_digest(data / DATASET, DATASET)
    (data / DATASET / "other.inter").write_text("x")
    assert data_digest(data / DATASET, DATASET) == before
    (data / DATASET / f"{DATASET}.item").write_text("x")
    assert data_digest(data / DATASET, DATASET) != before


@given(st.text(max_size=4))
def test_a_name_is_a_folder_and_shows_as_it_is_or_is_refused(name: str) -> None:
    if name.isprintable() and name not in ("", ".", "..") and "/" not in name:
        check_folder_name("dataset", name)
        assert Path("data", name).parent == Path("data")
        return
    with pytest.raises(ConfigError, match="dataset=") as caught:
        check_folder_name("dataset", name)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", ["..", ".", "", "a/b", "/tmp", "a\0b", "a\nb", "\x1b[31mred", "‮gnp"])
def test_names_that_are_no_folder_are_refused_before_anything_is_written(name: str, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ConfigError, match="dataset") as caught:
        run_recbole_prune("BPR", name, config_dict={"data_path": str(tmp_path)})
    assert str(caught.value).isprintable() and sorted(tmp_path.rglob("*")) == before
