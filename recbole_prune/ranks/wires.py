"""Messages between the processes of one machine, over sockets that each of them reads and writes itself.

gloo hands a tensor to a thread of its own. Where every core has a process that trains, the system lets that thread wait
for the next tick, some milliseconds, again and again: longer than the work of a batch. Here nobody but the two
processes takes part, and a message of a few hundred kB takes a tenth of a millisecond.
"""

from __future__ import annotations

import os
import secrets
import select
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.int32]

_SECONDS_TO_MEET = 60.0
_LONGEST_PATH = 100  # of a socket; some systems allow no more
_TOKEN, _RANK, _SIZE = 16, 4, 8
_BUFFER = 1 << 21


class Wires:
    """A socket to each of the other processes; make it with :func:`connect`."""

    def __init__(self, rank: int, sockets: dict[int, socket.socket]) -> None:
        self._rank = rank
        self._ends = {peer: _End(end) for peer, end in sockets.items()}

    def exchange(self, own: Numbers) -> list[Numbers]:
        """Everybody's numbers, in the order of the processes; the next exchange overwrites them.

        Args:
            own: int32, contiguous, at least one.

        Raises:
            ConnectionError: another process has ended.
        """
        for end in self._ends.values():
            end.begin(own)
        open_ends = list(self._ends.values())
        while open_ends:
            if not sum(end.go_on() for end in open_ends):
                _wait_for(open_ends)
            open_ends = [end for end in open_ends if not end.is_done]
        return [own if peer == self._rank else self._ends[peer].received for peer in range(len(self._ends) + 1)]

    def close(self) -> None:
        """Close all sockets."""
        for end in self._ends.values():
            end.socket.close()


class _End:
    """This process's end of one socket, and the message that is on its way either way."""

    def __init__(self, end: socket.socket) -> None:
        self.socket = end
        end.setblocking(False)
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            end.setsockopt(socket.SOL_SOCKET, option, _BUFFER)
        self._outgoing: list[memoryview] = []
        self._head, self._body = bytearray(_SIZE), np.empty(0, np.int32)
        self._incoming: list[memoryview] = []
        self._length = 0
        self.is_done = True

    @property
    def received(self) -> Numbers:
        """What the other process sent last."""
        return self._body[: self._length]

    def begin(self, own: Numbers) -> None:
        """Send a message, and receive one."""
        self._outgoing = [memoryview(len(own).to_bytes(_SIZE, "little")), own.data.cast("B")]
        self._incoming, self._length, self.is_done = [memoryview(self._head)], -1, False

    @property
    def awaited(self) -> int:
        """What the socket has to be ready for, in the words of ``poll``."""
        return select.POLLIN * bool(self._incoming) | select.POLLOUT * bool(self._outgoing)

    def go_on(self) -> bool:
        """Send and receive what can be at once; whether that was anything."""
        sent = self._move(self._outgoing, self.socket.send)
        received = self._move(self._incoming, self._receive)
        if not self._incoming and self._length < 0:
            self._length = int.from_bytes(self._head, "little")
            if len(self._body) < self._length:
                self._body = np.empty(self._length + self._length // 4, np.int32)
            self._incoming = [self.received.data.cast("B")] if self._length else []
            received |= self._move(self._incoming, self._receive)
        self.is_done = not (self._outgoing or self._incoming)
        return sent or received

    def _receive(self, part: memoryview) -> int:
        count = self.socket.recv_into(part)
        if not count:
            raise ConnectionResetError("its end of a socket was closed")
        return count

    @staticmethod
    def _move(parts: list[memoryview], some: Callable[[memoryview], int]) -> bool:
        moved = False
        while parts:
            try:
                count = some(parts[0])
            except BlockingIOError:
                break
            moved = True
            parts[0] = parts[0][count:]
            if not len(parts[0]):
                parts.pop(0)
        return moved


def _wait_for(ends: list[_End]) -> None:
    waiting = select.poll()
    for end in ends:
        waiting.register(end.socket, end.awaited)
    waiting.poll()


# ---- meeting ---------------------------------------------------------------------------------------------------------


def connect(rank: int, count: int, gather: Callable[[bytes], list[bytes]]) -> Wires | None:
    """Sockets between all processes; None, in all of them, where they are not on one machine.

    Args:
        rank, count: which process of how many this is.
        gather: the bytes of every process, in their order, by what connects them already.
    """
    with ExitStack() as opened, _listening() as (listener, path):
        token = secrets.token_bytes(_TOKEN)
        met = [(said[:_TOKEN], os.fsdecode(said[_TOKEN:])) for said in gather(token + os.fsencode(path))]
        sockets: dict[int, socket.socket] = {}
        if all(place for _, place in met):
            with suppress(OSError):
                for peer in range(rank):
                    sockets[peer] = opened.enter_context(_call(met[peer][1]))
                    sockets[peer].sendall(met[peer][0] + rank.to_bytes(_RANK, "little"))
        if min(gather(b"1" if len(sockets) == rank else b"0")) == b"0":
            return None
        with suppress(OSError):
            while len(sockets) < count - 1 and listener is not None:
                end = opened.enter_context(listener.accept()[0])
                sockets.update(_caller(end, token, count))
        if min(gather(b"1" if len(sockets) == count - 1 else b"0")) == b"0":
            return None
        opened.pop_all()
        return Wires(rank, sockets)


@contextmanager
def _listening() -> Iterator[tuple[socket.socket | None, str]]:
    """A socket that others can call, which nobody else's may, and its path; None and "" where there can be none."""
    folder = None
    with ExitStack() as opened:
        listener, path = None, ""
        with suppress(OSError, AttributeError):  # no such sockets here, or no place for them
            folder = tempfile.mkdtemp(prefix="rbp-")
            opened.callback(shutil.rmtree, folder, ignore_errors=True)
            place = os.path.join(folder, "s")
            if len(os.fsencode(place)) <= _LONGEST_PATH:
                listener = opened.enter_context(socket.socket(socket.AF_UNIX))
                listener.bind(place)
                listener.listen(1 << 10)
                listener.settimeout(_SECONDS_TO_MEET)
                path = place
        yield listener, path


def _call(path: str) -> socket.socket:
    end = socket.socket(socket.AF_UNIX)
    end.settimeout(_SECONDS_TO_MEET)
    try:
        end.connect(path)
    except OSError:
        end.close()
        raise
    return end


def _caller(end: socket.socket, token: bytes, count: int) -> dict[int, Any]:
    """The process that called, by its number; nothing where it does not know the token."""
    end.settimeout(_SECONDS_TO_MEET)
    said = b""
    while len(said) < _TOKEN + _RANK:
        more = end.recv(_TOKEN + _RANK - len(said))
        if not more:
            return {}
        said += more
    peer = int.from_bytes(said[_TOKEN:], "little")
    return {peer: end} if secrets.compare_digest(said[:_TOKEN], token) and peer < count else {}
