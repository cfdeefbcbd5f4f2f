"""The run folder under full disks, second processes, kills at the worst moment and flipped bytes."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recbole_prune.disk.files import write_atomic
from recbole_prune.disk.seals import canonical, sha256
from recbole_prune.errors import StoreError
from recbole_prune.run import store
from recbole_prune.run.store import JOURNAL, RESUME, SUMMARY, RunFolder

RECORD = {
    "ticket": 1,
    "sparsity": 0.30000000000000004,
    "kept": 117_600,
    "valid": {"recall@10": 0.2, "mrr@10": 1e-05},
    "wins": None,
    "wins_metric": True,
    "untrained": ["trans_w.weight", "größe\u001f"],
    "history": [[1, 0.1], [2, -0.25]],
}


@pytest.fixture
def folder(tmp_path: Path) -> Any:
    """An open run folder."""
    run = RunFolder(tmp_path / "run")
    run.open()
    yield run
    run.close()


def fail_with(number: int) -> Any:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number))

    return fail


def files_of(path: Path) -> set[str]:
    return {str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()}


# ---- atomic writes


def test_write_creates_folders_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file"
    write_atomic(path, b"old")
    write_atomic(path, b"new")
    assert path.read_bytes() == b"new" and files_of(tmp_path) == {"a/b/file"}


@pytest.mark.parametrize("function", ["replace", "fsync", "chmod"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_a_failed_write_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str, number: int
) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old")
    monkeypatch.setattr(os, function, fail_with(number))
    with pytest.raises(StoreError) as failure:
        write_atomic(path, b"new")
    assert str(path) in str(failure.value) and os.strerror(number) in str(failure.value)
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert files_of(tmp_path) == {"file"}


def test_a_full_disk_while_writing_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old")
    fdopen = os.fdopen

    def full(descriptor: int, *args: Any) -> Any:
        file = fdopen(descriptor, *args)
        file.write(b"ne")
        file.close()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fdopen", full)
    with pytest.raises(StoreError, match="No space left"):
        write_atomic(path, b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old" and files_of(tmp_path) == {"file"}


def test_an_interrupt_while_writing_leaves_no_temporary_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old")

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old" and files_of(tmp_path) == {"file"}


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
def test_file_systems_that_cannot_sync_a_folder_still_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Network and FUSE file systems refuse fsync on a folder; the file is complete and in place by then."""
    fsync = os.fsync

    def only_files(descriptor: int) -> None:
        if os.path.isdir(f"/dev/fd/{descriptor}"):
            raise OSError(number, os.strerror(number))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", only_files)
    write_atomic(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"new"


def test_data_is_synced_before_it_is_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    fsync, replace = os.fsync, os.replace

    def note_fsync(descriptor: int) -> None:
        calls.append("fsync folder" if os.path.isdir(f"/dev/fd/{descriptor}") else "fsync file")
        fsync(descriptor)

    def note_replace(*args: Any) -> None:
        calls.append("replace")
        replace(*args)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "replace", note_replace)
    write_atomic(tmp_path / "file", b"new")
    assert calls == ["fsync file", "replace", "fsync folder"]


def test_new_files_follow_the_umask(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    write_atomic(tmp_path / "file", b"")
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "plain").stat().st_mode


# ---- opening and locking


def test_a_path_that_cannot_be_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError, match=r"cannot write .*file/run: Not a directory"):
        RunFolder(tmp_path / "file" / "run").open()
    with pytest.raises(StoreError, match=r"cannot write .*file"):
        RunFolder(tmp_path / "file").open()


def test_an_unwritable_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "mkdir", fail_with(errno.EACCES))
    with pytest.raises(StoreError, match=r"cannot write .*run: Permission denied"):
        RunFolder(tmp_path / "run").open()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_write_permission_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(StoreError, match=r"cannot write .*run: Permission denied"):
            RunFolder(tmp_path / "run").open()
    finally:
        tmp_path.chmod(0o700)


HOLDER = """
import sys
from pathlib import Path
from recbole_prune.run.store import RunFolder
folder = RunFolder(Path(sys.argv[1]))
folder.open()
print("locked", flush=True)
sys.stdin.read()
"""


@pytest.mark.slow
@pytest.mark.multiprocess
def test_a_second_process_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "run"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        text=True,
    )
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "locked\n"
        with pytest.raises(StoreError, match=r"another process is working in .*run"):
            RunFolder(path).open()
    finally:
        holder.kill()
        holder.communicate()
    folder = RunFolder(path)
    folder.open()  # the lock went with the killed process
    folder.close()


def test_the_lock_is_free_again_after_close(tmp_path: Path) -> None:
    first, second = RunFolder(tmp_path / "run"), RunFolder(tmp_path / "run")
    first.open()
    with pytest.raises(StoreError, match="another process"):
        second.open()
    first.close()
    first.close()
    second.open()
    second.close()


def test_a_file_system_without_locks_does_not_blame_another_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "flock", fail_with(errno.ENOLCK))
    folder = RunFolder(tmp_path / "run")
    folder.open()
    folder.write("file", b"data")
    folder.close()


def test_starting_over_moves_an_older_run_aside(tmp_path: Path) -> None:
    for content in (b"first", b"second", b"third"):
        folder = RunFolder(tmp_path / "run")
        folder.open()
        assert folder.is_empty() == (content == b"first")
        if not folder.is_empty():
            folder.start_over()
        assert files_of(folder.path) == {".lock"}
        folder.write("config.yaml", content)
        folder.close()
    assert (tmp_path / "run" / "config.yaml").read_bytes() == b"third"
    assert (tmp_path / "run.old-1" / "config.yaml").read_bytes() == b"first"
    assert (tmp_path / "run.old-2" / "config.yaml").read_bytes() == b"second"
    assert not (tmp_path / "run.old-3").exists()


def test_starting_over_locks_the_new_folder(tmp_path: Path) -> None:
    RunFolder(tmp_path / "run").path.mkdir()
    (tmp_path / "run" / "config.yaml").write_bytes(b"")
    folder = RunFolder(tmp_path / "run")
    folder.open()
    folder.start_over()
    with pytest.raises(StoreError, match="another process"):
        RunFolder(tmp_path / "run").open()
    folder.close()


def test_opening_sweeps_temporary_files_only(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.open()
    folder.write("masks/ticket-001.safetensors", b"mask")
    folder.close()
    leftovers = [".tickets.jsonl.x7.tmp", "masks/.ticket-002.safetensors.k2.tmp", "resume/.point.json.a.tmp"]
    for name in leftovers:
        (folder.path / name).parent.mkdir(exist_ok=True)
        (folder.path / name).write_bytes(b"half")
    (folder.path / "notes.tmp").write_bytes(b"the user's own")
    folder.open()
    folder.close()
    assert files_of(folder.path) == {".lock", "masks/ticket-001.safetensors", "notes.tmp"}


def test_opening_finishes_what_a_killed_export_began(tmp_path: Path) -> None:
    for name in (".artifact.tmp-0123abcd", ".artifact.old", "artifact"):
        (tmp_path / "run" / name).mkdir(parents=True)
        (tmp_path / "run" / name / "ticket.json").write_text(name)
    for _ in range(2):
        folder = RunFolder(tmp_path / "run")
        folder.open()
        folder.close()
        assert files_of(folder.path) == {".lock", "artifact/ticket.json"}
        (tmp_path / "run" / "artifact").rename(tmp_path / "run" / ".artifact.old")  # as if killed between renames


IN_THE_WAY = [
    *(".lock config.yaml scope.json tickets.jsonl summary.json rewind.safetensors log.txt".split()),
    *("masks/ticket-000.safetensors checkpoints/ticket-000.pth resume/point.json".split()),
]


@pytest.mark.parametrize("kind", ["folder", "pipe"])
@pytest.mark.parametrize("name", IN_THE_WAY)
def test_something_else_in_place_of_a_file_is_named(tmp_path: Path, name: str, kind: str) -> None:
    path = tmp_path / "run" / name
    path.parent.mkdir(parents=True)
    path.mkdir() if kind == "folder" else os.mkfifo(path)
    with pytest.raises(StoreError, match=f"{path.name} is in the way: it is not a file"):
        RunFolder(tmp_path / "run").open()
    path.rmdir() if kind == "folder" else path.unlink()
    folder = RunFolder(tmp_path / "run")
    folder.open()
    folder.close()


@pytest.mark.parametrize("name", ["masks", "checkpoints", "resume", "artifact"])
def test_a_file_in_place_of_a_folder_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).touch()
    with pytest.raises(StoreError, match=f"{name} is in the way: a folder of the run has this name"):
        RunFolder(tmp_path / "run").open()


def test_folders_with_temporary_names_do_no_harm(tmp_path: Path) -> None:
    mine = tmp_path / "run" / ".notes.tmp" / "thesis.tex"
    mine.parent.mkdir(parents=True)
    mine.touch()
    folder = RunFolder(tmp_path / "run")
    folder.open()
    folder.close()
    assert mine.exists()


def test_a_pipe_is_not_read(folder: RunFolder) -> None:
    os.mkfifo(folder.path / "scope.json")
    with pytest.raises(StoreError, match=r"cannot read .*scope\.json: it is not a file"):
        folder.read_scope()


# ---- files and their hashes


def test_read_checks_the_hash(folder: RunFolder) -> None:
    digest = folder.write("checkpoints/ticket-000.pth", b"weights")
    assert digest == sha256(b"weights")
    assert folder.read("checkpoints/ticket-000.pth", digest) == b"weights"
    (folder.path / "checkpoints/ticket-000.pth").write_bytes(b"weightz")
    with pytest.raises(StoreError, match=r"ticket-000\.pth is corrupt.*--fresh=True"):
        folder.read("checkpoints/ticket-000.pth", digest)
    with pytest.raises(StoreError, match=r"cannot read .*other"):
        folder.read("other", digest)


def test_the_summary_is_readable_and_sealed(folder: RunFolder) -> None:
    record = {"b": [1, None], "a": "größe"}
    folder.write_summary(record)
    file = folder.path / SUMMARY
    data = file.read_bytes()
    assert folder.read_summary() == record and "größe" in data.decode() and b"\n" in data.strip()
    with pytest.raises(ValueError, match="JSON"):
        folder.write_summary({"a": float("nan")})
    assert file.read_bytes() == data
    for position in range(len(data.strip())):
        file.write_bytes(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])
        with pytest.raises(StoreError, match=r"summary\.json is damaged"):
            folder.read_summary()
    folder.write_summary(record)
    assert file.read_bytes() == data


# ---- the journal


def test_the_journal_gives_back_what_was_appended(folder: RunFolder) -> None:
    assert folder.tickets() == []
    for number in range(4):
        folder.append_ticket({**RECORD, "ticket": number})
    assert folder.tickets() == [{**RECORD, "ticket": number} for number in range(4)]
    lines = (folder.path / JOURNAL).read_bytes().splitlines()
    assert len(lines) == 4
    assert all(set(json.loads(line)) == {*RECORD, "sha256"} for line in lines)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.lists(st.dictionaries(st.text().filter(lambda key: key != "sha256"), json_values, max_size=4), max_size=3))
def test_any_record_survives_the_journal(tmp_path_factory: pytest.TempPathFactory, records: list[Any]) -> None:
    folder = RunFolder(tmp_path_factory.mktemp("journal"))
    for record in records:
        folder.append_ticket(record)
    again = folder.tickets()
    assert again == records
    assert [canonical(record) for record in again] == [canonical(record) for record in records]


def test_a_record_with_nan_is_refused_and_the_journal_stays(folder: RunFolder) -> None:
    folder.append_ticket(RECORD)
    with pytest.raises(ValueError, match="JSON"):
        folder.append_ticket({"ticket": 2, "valid": float("nan")})
    assert folder.tickets() == [RECORD]


@pytest.mark.parametrize("flip", [0x01, 0x20, 0x80, 0xFF, 0x2A])
def test_every_flipped_byte_of_the_journal_is_caught_and_its_line_named(folder: RunFolder, flip: int) -> None:
    """0x20 turns e into E in a number, 0x2A a line end into a blank: both leave the JSON equal."""
    for number in range(3):
        folder.append_ticket({**RECORD, "ticket": number})
    path = folder.path / JOURNAL
    data = path.read_bytes()
    first = data.index(b"\n") + 1
    second = data.index(b"\n", first) + 1
    for position in range(first, second):
        damaged = bytearray(data)
        damaged[position] ^= flip
        path.write_bytes(damaged)
        with pytest.raises(StoreError, match=r"tickets\.jsonl line 2 is corrupt; .*--fresh=True"):
            folder.tickets()
        assert path.read_bytes() == damaged  # nothing is repaired behind the user's back


def test_a_truncated_last_line_is_caught_and_named(folder: RunFolder) -> None:
    folder.append_ticket(RECORD)
    folder.append_ticket({**RECORD, "ticket": 2})
    path = folder.path / JOURNAL
    data = path.read_bytes()
    first = data.index(b"\n") + 1
    for length in range(first + 1, len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(StoreError, match="line 2 is corrupt"):
            folder.tickets()


def test_a_lost_line_end_does_not_spoil_the_next_line(folder: RunFolder) -> None:
    folder.append_ticket(RECORD)
    path = folder.path / JOURNAL
    path.write_bytes(path.read_bytes()[:-1])
    assert folder.tickets() == [RECORD]
    folder.append_ticket({**RECORD, "ticket": 2})
    assert folder.tickets() == [RECORD, {**RECORD, "ticket": 2}]


@pytest.mark.parametrize("line", [b"[]", b"[1]", b"3", b'"text"', b"null", b"{}", b"\xff", b'{"sha256": ""}'])
def test_lines_of_another_form_are_corrupt(folder: RunFolder, line: bytes) -> None:
    folder.append_ticket(RECORD)
    path = folder.path / JOURNAL
    path.write_bytes(path.read_bytes() + line + b"\n")
    with pytest.raises(StoreError, match="line 2 is corrupt"):
        folder.tickets()


def test_a_failed_append_keeps_the_journal(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.append_ticket(RECORD)
    monkeypatch.setattr(os, "replace", fail_with(errno.ENOSPC))
    with pytest.raises(StoreError, match=r"tickets\.jsonl: No space left on device"):
        folder.append_ticket({**RECORD, "ticket": 2})
    monkeypatch.undo()
    assert folder.tickets() == [RECORD]


# ---- resume points

EXTRA = {"checkpoint": {"sha256": "ab"}, "received": ["user_embedding.weight"], "method": {}}


def test_the_newest_resume_point_of_the_ticket_is_found(folder: RunFolder) -> None:
    assert folder.load_resume(1) is None
    folder.save_resume(1, 1, b"epoch 1", EXTRA)
    folder.save_resume(1, 2, b"epoch 2", EXTRA)
    found = folder.load_resume(1)
    assert found is not None
    point, data = found
    assert data == b"epoch 2" and (point["ticket"], point["epoch"]) == (1, 2)
    assert {key: point[key] for key in EXTRA} == EXTRA
    assert folder.load_resume(2) is None
    assert len(files_of(folder.path / RESUME)) == 2  # one state, one pointer
    folder.save_resume(2, 1, b"next ticket", EXTRA)
    assert folder.load_resume(1) is None and len(files_of(folder.path / RESUME)) == 2


@pytest.mark.parametrize("calls_before", [0, 1])
def test_killed_while_saving_a_resume_point(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch, calls_before: int
) -> None:
    """Before the data is in place, and between the data file and the pointer to it."""
    folder.save_resume(1, 1, b"epoch 1", EXTRA)
    write, calls = store.write_atomic, []

    def killed(path: Path, data: bytes) -> None:
        if len(calls) == calls_before:
            raise KeyboardInterrupt
        calls.append(path)
        write(path, data)

    monkeypatch.setattr(store, "write_atomic", killed)
    with pytest.raises(KeyboardInterrupt):
        folder.save_resume(1, 2, b"epoch 2", EXTRA)
    monkeypatch.undo()
    found = folder.load_resume(1)
    assert found is not None and found[1] == b"epoch 1" and found[0]["epoch"] == 1
    folder.save_resume(1, 2, b"epoch 2", EXTRA)
    assert len(files_of(folder.path / RESUME)) == 2


def test_killed_after_the_pointer_before_the_older_state_is_gone(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.save_resume(1, 1, b"epoch 1", EXTRA)

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "unlink", killed)
    with pytest.raises(KeyboardInterrupt):
        folder.save_resume(1, 2, b"epoch 2", EXTRA)
    monkeypatch.undo()
    found = folder.load_resume(1)
    assert found is not None and found[1] == b"epoch 2"
    folder.save_resume(1, 3, b"epoch 3", EXTRA)
    assert len(files_of(folder.path / RESUME)) == 2


def test_damaged_resume_pointers_are_caught(folder: RunFolder) -> None:
    folder.save_resume(1, 7, b"state", EXTRA)
    path = folder.path / RESUME / "point.json"
    data = path.read_bytes()
    for position in range(len(data)):
        for flip in (0x01, 0x20, 0xFF):
            damaged = bytearray(data)
            damaged[position] ^= flip
            path.write_bytes(damaged)
            with pytest.raises(StoreError, match=r"point\.json is corrupt; remove the folder .*resume"):
                folder.load_resume(1)
    for line in (b"", b"[1]", b"3", b"{}", data[:-10]):
        path.write_bytes(line)
        with pytest.raises(StoreError, match=r"point\.json is corrupt"):
            folder.load_resume(1)


def test_damaged_or_missing_resume_states_are_caught(folder: RunFolder) -> None:
    folder.save_resume(1, 7, b"state", EXTRA)
    (state,) = (folder.path / RESUME).glob("*.safetensors")
    state.write_bytes(b"stale")
    with pytest.raises(StoreError, match=r"epoch-00007\.safetensors is corrupt"):
        folder.load_resume(1)
    state.unlink()
    with pytest.raises(StoreError, match=r"cannot read .*epoch-00007"):
        folder.load_resume(1)


def test_dropping_a_resume_point(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.drop_resume()
    folder.save_resume(1, 1, b"state", EXTRA)
    folder.drop_resume()
    assert folder.load_resume(1) is None and not (folder.path / RESUME).exists()

    folder.save_resume(1, 1, b"state", EXTRA)
    unlink, calls = Path.unlink, []

    def killed(path: Path) -> None:
        if calls:
            raise KeyboardInterrupt
        calls.append(path)
        unlink(path)

    monkeypatch.setattr(Path, "unlink", killed)
    with pytest.raises(KeyboardInterrupt):
        folder.drop_resume()
    monkeypatch.undo()
    assert folder.load_resume(1) is None  # the pointer goes first, so no pointer without its state
    folder.drop_resume()
    assert not (folder.path / RESUME).exists()
