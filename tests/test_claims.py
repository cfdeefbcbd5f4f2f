"""Claims to run folders that machines share: one owner, whoever looks at the same time, and none after a crash."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path

import pytest

from recbole_prune.disk import claims, lock
from recbole_prune.disk.claims import PREFIX, SECONDS_UNTIL_FREE, Claim, highest, is_claimed, is_shared
from recbole_prune.errors import BusyError
from recbole_prune.run.store import RunFolder


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every folder may be seen by other machines."""
    monkeypatch.setattr(lock, "is_shared", lambda folder: True)


def foreign(folder: Path, number: int, seconds_ago: float) -> Path:
    """A claim of another machine that was moved on so long ago."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{PREFIX}{number}"
    path.write_text(json.dumps({"machine": "node7 1234", "host": "node7", "pid": 1}))
    os.utime(path, (time.time() - seconds_ago,) * 2)
    return path


def test_a_folder_of_another_machine_is_busy_until_it_falls_silent(shared: None, tmp_path: Path) -> None:
    path = tmp_path / "run"
    foreign(path, 3, SECONDS_UNTIL_FREE / 2)
    with pytest.raises(BusyError, match=r"another machine \(node7\) is working in .*run"):
        RunFolder(path).open()
    assert is_claimed(path) and highest(path) == 3
    foreign(path, 3, SECONDS_UNTIL_FREE + 1)
    assert not is_claimed(path)
    folder = RunFolder(path)
    folder.open()
    assert highest(path) == 4 and folder.is_empty()
    assert [file.name for file in path.glob(f"{PREFIX}*")] == [f"{PREFIX}4"]
    folder.close()


def test_a_claim_that_was_given_back_is_free_at_once(shared: None, tmp_path: Path) -> None:
    for number in (1, 2, 3):
        folder = RunFolder(tmp_path / "run")
        folder.open()
        folder.write("file", b"data")
        assert highest(folder.path) == number
        folder.close()
        foreign_view = (folder.path / f"{PREFIX}{number}").stat()
        assert foreign_view.st_mtime == 0  # free for any machine


def test_a_process_killed_on_this_machine_leaves_it_free(shared: None, tmp_path: Path) -> None:
    path = tmp_path / "run"
    killed = foreign(path, 1, 0)
    killed.write_text(json.dumps({"machine": claims._machine(), "host": "here", "pid": 1}))
    folder = RunFolder(path)
    folder.open()  # its lock is gone, so it is dead
    folder.close()
    killed = foreign(path, 9, 0)
    killed.write_text(json.dumps({"machine": claims._machine(), "host": "here", "pid": 1}))
    with pytest.raises(BusyError):  # without locks nobody knows
        Claim(path).acquire(time.time(), locks_work=False)


def test_an_owner_that_slept_writes_nothing_more(shared: None, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.open()
    folder.write("file", b"mine")
    foreign(folder.path, 2, 0)
    with pytest.raises(BusyError, match="has taken .* over"):
        folder.write("file", b"late")
    assert (folder.path / "file").read_bytes() == b"mine"
    folder.close()


def test_an_owner_says_that_it_lives(shared: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "_SECONDS_BETWEEN_BEATS", 0.01)
    folder = RunFolder(tmp_path / "run")
    folder.open()
    path = folder.path / f"{PREFIX}1"
    os.utime(path, (1000, 1000))
    end = time.monotonic() + 10
    while path.stat().st_mtime == 1000:
        assert time.monotonic() < end
        time.sleep(0.01)
    folder.close()
    time.sleep(0.05)
    assert path.stat().st_mtime == 0


def test_of_many_that_see_the_same_dead_claim_one_wins(tmp_path: Path) -> None:
    """Each of several rounds; nobody holds a lock, as on machines whose locks do not reach each other."""
    path = tmp_path / "run"
    for round_number in range(1, 6):
        foreign(path, highest(path) or 1, SECONDS_UNTIL_FREE + 1)
        barrier, won, lost = threading.Barrier(12), [], []

        def compete(barrier: threading.Barrier = barrier, won: list[Claim] = won, lost: list[str] = lost) -> None:
            claim = Claim(path)
            barrier.wait()
            try:
                claim.acquire(time.time(), locks_work=False)
                won.append(claim)
            except BusyError as error:
                lost.append(str(error))

        threads = [threading.Thread(target=compete) for _ in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1 and len(lost) == 11 and won[0].is_held(), round_number
        won[0].release()


@pytest.mark.parametrize(
    ("kind", "expected"), [("ext4", False), ("overlay", False), ("nfs4", True), ("lustre", True), ("fuse.sshfs", True)]
)
def test_which_file_systems_are_shared(
    kind: str, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "a b"
    place.mkdir()
    escaped = str(place).replace(" ", "\\040")
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        f"1 0 8:1 / / rw - ext4 /dev/sda1 rw\n2 1 0:5 / {escaped} rw shared:1 - {kind} server:/x rw\nnonsense\n"
    )
    monkeypatch.setattr(claims, "_MOUNTS", mounts)
    assert is_shared(place / "run") is expected
    assert is_shared(tmp_path / "a bc") is False
    monkeypatch.setattr(claims, "_MOUNTS", tmp_path / "missing")
    assert is_shared(place) is False


def test_a_local_folder_has_no_claims(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "is_shared", lambda folder: False)
    folder = RunFolder(tmp_path / "run")
    folder.open()
    assert highest(folder.path) == 0
    folder.close()


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b"[" * 3000, b'{"host": 1}'])
def test_a_claim_that_cannot_be_read_counts_by_its_time(shared: None, tmp_path: Path, content: bytes) -> None:
    path = foreign(tmp_path / "run", 1, 0)
    path.write_bytes(content)
    with pytest.raises(BusyError, match="another machine is working in"):
        RunFolder(path.parent).open()
    os.utime(path, (time.time() - 2 * SECONDS_UNTIL_FREE,) * 2)
    RunFolder(path.parent).open()
