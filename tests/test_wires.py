"""Sockets between the processes of one machine; threads stand for processes."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recbole_prune.ranks import wires
from recbole_prune.ranks.wires import Wires, connect

Gather = Callable[[bytes], "list[bytes]"]


def together(count: int, work: Callable[[int, Gather], Any], change: Callable[[bytes], bytes] = bytes) -> list[Any]:
    """What each of several threads returns, that can gather bytes, each of them changed on its way; or its error."""
    barrier, said, found = threading.Barrier(count), [b""] * count, [None] * count

    def one(rank: int) -> None:
        def gather(data: bytes) -> list[bytes]:
            barrier.wait(30)
            said[rank] = change(data)
            barrier.wait(30)
            return list(said)

        try:
            found[rank] = work(rank, gather)
        except Exception as error:
            found[rank] = error

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "one waits for ever"
    return found


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wires, "_SECONDS_TO_MEET", 5.0)


def connected(count: int) -> list[Wires]:
    found = together(count, lambda rank, gather: connect(rank, count, gather))
    assert all(isinstance(each, Wires) for each in found), found
    return found


@pytest.mark.parametrize("count", [2, 3, 5])
def test_everybody_gets_what_all_send(count: int) -> None:
    """Messages of one number and of megabytes, which no socket holds at once, in turn."""
    ends = connected(count)
    random = np.random.default_rng(count)
    sizes = [[int(size) for size in random.choice([1, 2, 1000, 50_000, 700_000], count)] for _ in range(12)]
    sent = [[random.integers(-(2**31), 2**31, size, np.int32) for size in of_round] for of_round in sizes]

    def work(rank: int, gather: Gather) -> bool:
        same = True
        for messages in sent:
            found = ends[rank].exchange(messages[rank])
            same &= len(found) == count and all(map(np.array_equal, found, messages))
        return same

    assert together(count, work) == [True] * count
    for end in ends:
        end.close()


def test_the_end_of_a_process_is_noticed() -> None:
    first, second = connected(2)

    def work(rank: int, gather: Gather) -> None:
        if rank:
            second.close()
        else:
            first.exchange(np.zeros(1 << 22, np.int32))

    assert isinstance(together(2, work)[0], ConnectionError)
    first.close()


def test_a_process_that_ends_after_its_message_is_noticed_at_the_next() -> None:
    first, second = connected(2)
    assert together(2, lambda rank, gather: len((first, second)[rank].exchange(np.ones(3, np.int32)))) == [2, 2]
    second.close()
    with pytest.raises(ConnectionError):
        first.exchange(np.ones(3, np.int32))
    first.close()


def _elsewhere(data: bytes) -> bytes:
    return data[: wires._TOKEN] + b"/nowhere" if b"rbp-" in data else data


def _mistaken(data: bytes) -> bytes:
    return bytes(wires._TOKEN) + data[wires._TOKEN :] if b"rbp-" in data else data


@pytest.mark.parametrize("change", [_elsewhere, _mistaken])
def test_processes_that_do_not_meet_have_no_wires(change: Callable[[bytes], bytes]) -> None:
    """Such as those of several machines, or one that calls without knowing the token."""
    assert together(3, lambda rank, gather: connect(rank, 3, gather), change) == [None] * 3


def test_a_system_without_such_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(wires.socket, "AF_UNIX")
    assert together(2, lambda rank, gather: connect(rank, 2, gather)) == [None] * 2


def test_a_place_whose_name_is_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / ("n" * 120)
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    assert together(2, lambda rank, gather: connect(rank, 2, gather)) == [None] * 2


def test_a_place_whose_name_is_no_text(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(prefix="rbp", dir="/tmp" if os.path.isdir("/tmp") else None) as folder:
        place = os.path.join(folder, os.fsdecode(b"\xff"))
        try:
            os.mkdir(place)
        except OSError:
            pytest.skip("this file system has no such names")
        monkeypatch.setattr(tempfile, "tempdir", place)
        for end in connected(2):
            end.close()


def test_nothing_is_left_and_nobody_else_may_call(monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[int] = []
    with tempfile.TemporaryDirectory(prefix="rbp", dir="/tmp" if os.path.isdir("/tmp") else None) as place:
        monkeypatch.setattr(tempfile, "tempdir", place)
        call = wires._call
        monkeypatch.setattr(wires, "_call", lambda path: modes.append(os.stat(Path(path).parent).st_mode) or call(path))
        for end in connected(2):
            end.close()
        assert not os.listdir(place)
    assert [mode & 0o077 for mode in modes] == [0]
