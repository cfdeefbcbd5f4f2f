"""Where a run writes: in its folder and nowhere else, and what happens where it cannot or where the folder is gone."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from marks import slow_but
from zoo import DATASET, config_for

from recbole_prune import cli
from recbole_prune.data.cached import data_digest
from recbole_prune.errors import PruneError
from recbole_prune.run.store import RunFolder
from recbole_prune.training.trainer import MaskAwareTrainer


@pytest.fixture
def words(tiny_data: Path, tmp_path: Path) -> list[str]:
    """A command line; its run folder lies in ``tmp_path / "out"``."""
    settings = {**config_for("BPR", tiny_data), "pruner": "imp", "prune_rounds": 1, "output_dir": tmp_path / "out"}
    return ["--model=BPR", f"--dataset={DATASET}", *[f"--{name}={value}" for name, value in settings.items()]]


# ---- the working directory


def test_a_run_writes_into_its_folder_only(words: list[str], tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    os.chdir(tmp_path / "work")  # undone by the fixture of every test
    assert cli.main(words) == 0
    assert not list(Path().iterdir())
    [folder] = tmp_path.glob(f"out/{DATASET}/BPR/imp-*")
    assert {"log.txt", "tensorboard", "tickets.jsonl"} <= {path.name for path in folder.iterdir()}
    assert len({file.parent for file in folder.glob("tensorboard/*/events.*")}) == 2, "a series for each ticket"
    log = (folder / "log.txt").read_text(encoding="utf-8")
    assert "epoch 0 training" in log and "\x1b" not in log


unwritable = pytest.mark.skipif(not Path("/proc/self").exists(), reason="no folder that root cannot write into")


@unwritable
@pytest.mark.slow
def test_a_working_directory_that_cannot_be_written_does_no_harm(words: list[str]) -> None:
    os.chdir("/proc")
    assert cli.main(words) == 0


@unwritable
def test_asked_to_write_there_it_says_so(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    os.chdir("/proc")
    assert cli.main([word for word in words if not word.startswith("--output_dir")]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("recbole-prune: cannot write /proc/pruned/")


def test_a_working_directory_that_is_gone_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "work").mkdir()
    os.chdir(tmp_path / "work")
    (tmp_path / "work").rmdir()
    assert cli.main(["export", "--run=folder"]) == 2
    assert capsys.readouterr().err == "recbole-prune: the working directory does not exist any more\n"


# ---- a run folder that is gone


@pytest.mark.parametrize("way", ["deleted", "moved", "replaced"])
def test_every_use_of_a_folder_that_is_gone_says_so(way: str, tmp_path: Path) -> None:
    folder, copy = RunFolder(tmp_path / "run"), tmp_path / "copy"
    folder.open()
    digest = folder.write("file", b"data")
    shutil.copytree(folder.path, copy)
    shutil.move(folder.path, tmp_path / "moved") if way == "moved" else shutil.rmtree(folder.path)
    if way == "replaced":
        copy.rename(folder.path)
    uses = [
        lambda: folder.write("file", b"new"),
        lambda: folder.write_summary({}),
        lambda: folder.append_ticket({"ticket": 0}),
        lambda: folder.save_resume(0, 1, b"state", {}),
        lambda: folder.load_resume(0),
        lambda: folder.subfolder("tensorboard"),
        lambda: folder.read("file", digest),
        lambda: folder.read_scope(),
    ]
    for use in uses:
        with pytest.raises(PruneError, match=r"run was deleted or moved while this run was working in it"):
            use()
    folder.close()
    assert folder.path.exists() == (way == "replaced")


@pytest.mark.slow
@pytest.mark.parametrize("session", ["ticket 0", "ticket 1"])
def test_a_folder_deleted_during_a_run(
    session: str, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train_epoch = MaskAwareTrainer._train_epoch

    def deleting(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.session.name == session:
            shutil.rmtree(tmp_path / "out")
        return train_epoch(self, *args, **kwargs)

    monkeypatch.setattr(MaskAwareTrainer, "_train_epoch", deleting)
    late = ["--prune_rewind=late", "--prune_rewind_epoch=1", "--epochs=2"]
    assert cli.main([*(word for word in words if not word.startswith("--epochs")), *late]) == 2
    errors = capsys.readouterr().err
    assert "Traceback" not in errors
    last = errors.splitlines()[-1]
    assert last.startswith("recbole-prune: ") and "was deleted or moved while this run was working in it" in last
    assert not list((tmp_path / "out").rglob("*"))


# ---- a disk that takes no writes


@contextmanager
def full_disk() -> Iterator[None]:
    """Files of this process cannot grow beyond 0 bytes."""
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@contextmanager
def read_only_disk() -> Iterator[None]:
    """No file below the temporary folder can be opened for writing, made or removed."""
    with pytest.MonkeyPatch.context() as patch:
        really_open = open

        def refuse(*_: Any, **__: Any) -> Any:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

        def open_to_read(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            return refuse() if set(mode) & set("wax+") else really_open(file, mode, *args, **kwargs)

        patch.setattr("builtins.open", open_to_read)
        patch.setattr("io.open", open_to_read)
        patch.setattr(tempfile, "mkstemp", refuse)
        for name in ("unlink", "replace", "rename"):
            patch.setattr(os, name, refuse)
        yield


@pytest.mark.slow
def test_a_disk_that_fills_up_during_a_run(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with ExitStack() as filled, monkeypatch.context() as patch:
        train_epoch = MaskAwareTrainer._train_epoch

        def filling(self: Any, *args: Any, **kwargs: Any) -> Any:
            if self.session.name == "ticket 1":
                filled.enter_context(full_disk())
            return train_epoch(self, *args, **kwargs)

        patch.setattr(MaskAwareTrainer, "_train_epoch", filling)
        assert cli.main(words) == 2
    output, errors = capsys.readouterr()
    assert output == "" and errors.splitlines()[-1].startswith("recbole-prune: ")
    assert "File too large" in errors.splitlines()[-1]
    assert "Traceback" not in errors and "Logging error" not in errors
    assert cli.main(words) == 0
    assert len(table(capsys.readouterr().out)) >= 3


def table(output: str) -> list[str]:
    return [line for line in output.splitlines() if "%" in line or line.startswith("* chosen")]


@pytest.mark.parametrize("disk", slow_but([full_disk], [full_disk, read_only_disk]))
def test_a_finished_run_still_prints_its_table(
    disk: Any, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words) == 0
    first = table(capsys.readouterr().out)
    assert len(first) >= 3
    with disk():
        assert cli.main(words) == 0
    output, errors = capsys.readouterr()
    assert table(output) == first
    assert "Traceback" not in errors and "Logging error" not in errors
    [summary] = tmp_path.glob("out/*/*/*/summary.json")
    summary.unlink()
    with disk():
        assert cli.main(words) == 2
    output, errors = capsys.readouterr()
    assert table(output) == first
    assert errors.splitlines()[-1].startswith(f"recbole-prune: cannot write {summary}")
    assert "Traceback" not in errors and "Logging error" not in errors


# ---- what lies beside the atomic files


@pytest.mark.parametrize("name", ["tiny", "a[1]*?"])
def test_what_is_no_file_is_no_data_and_what_is_one_counts(name: str, tmp_path: Path) -> None:
    (tmp_path / f"{name}.inter").write_text("user_id:token\n1\n")
    (tmp_path / f"other.{name}.inter").write_text("2\n")
    before = data_digest(tmp_path, name)
    (tmp_path / f"{name}.folder").mkdir()
    (tmp_path / f"{name}.link").symlink_to("nowhere")
    os.mkfifo(tmp_path / f"{name}.pipe")
    assert data_digest(tmp_path, name) == before
    (tmp_path / f"{name}.inter").write_text("user_id:token\n2\n")
    changed = data_digest(tmp_path, name)
    (tmp_path / f"{name}.user").write_text("user_id:token\n2\n")
    assert len({before, changed, data_digest(tmp_path, name)}) == 3
    assert data_digest(tmp_path / "absent", name) == data_digest(tmp_path, "absent")
