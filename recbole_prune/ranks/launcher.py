"""Starts the processes of a run on this machine, and ends all of them where one ends."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from time import monotonic, sleep
from typing import IO, NamedTuple

from recbole_prune.processes import command, environment, last_words, name_of_signal, wait_or_kill
from recbole_prune.signals import QUIET, on_abort

_SECONDS_BETWEEN_LOOKS = 0.05
# where one has failed, the others fail for the same reason, or have to be ended
_SECONDS_TO_FOLLOW, _SECONDS_TO_END = 1.5, 15.0
_OF_THIS_MACHINE = ("localhost", "127.0.0.1", "::1")


class Ranks(NamedTuple):
    """The processes of a run, in the words of RecBole's launcher.

    Attributes:
        nproc: of this machine.
        world_size: of all machines.
        group_offset: of all, those of machines before this one.
        ip, port: where they meet: on the machine that has the first; port 0 is any that is free.
    """

    nproc: int = 1
    world_size: int = 1
    group_offset: int = 0
    ip: str = "localhost"
    port: int = 0


def run(words: Sequence[str], ranks: Ranks) -> tuple[int, str]:
    """Start the processes of this machine, and wait for their end.

    Standard output and standard error are those of the first; of another one there is a line where it failed alone.

    Args:
        words: of the command line of each.
        ranks: how many.

    Returns:
        exit status: 0 where all succeeded, else that of the one that failed first, 128 + number after a signal; and why
            it failed, in a line, "" where the first process has said so.
    """
    if not ranks.port:
        ranks = ranks._replace(port=_free_port())
    processes = [_Process(words, ranks, number) for number in range(ranks.nproc)]
    with on_abort(lambda: _end(processes)):
        while True:
            statuses = [process.poll() for process in processes]
            failed = next((process for process, status in zip(processes, statuses) if status), None)
            if failed is not None:
                break
            if all(status == 0 for status in statuses):
                return 0, ""
            sleep(_SECONDS_BETWEEN_LOOKS)
        until = monotonic() + _SECONDS_TO_FOLLOW
        while monotonic() < until and any(process.poll() is None for process in processes):
            sleep(_SECONDS_BETWEEN_LOOKS)
        told = any(process.is_first and process.poll() for process in processes) and not failed.was_killed
        _end(processes)
    return failed.status, "" if told else failed.explanation()


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _end(processes: Sequence[_Process]) -> None:
    """End what still runs."""
    for process in processes:
        process.terminate()
    until = monotonic() + _SECONDS_TO_END
    for process in processes:
        process.wait(until)


class _Process:
    """One process of a run."""

    def __init__(self, words: Sequence[str], ranks: Ranks, number: int) -> None:
        self.rank = ranks.group_offset + number
        self._count = ranks.world_size
        self._said: IO[bytes] | None = None if self.is_first else tempfile.TemporaryFile()  # noqa: SIM115
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        place = {
            "RANK": self.rank,
            "LOCAL_RANK": number,
            "WORLD_SIZE": ranks.world_size,
            "MASTER_ADDR": "127.0.0.1" if ranks.ip in _OF_THIS_MACHINE else ranks.ip,
            "MASTER_PORT": ranks.port,
            QUIET: 1,
        }
        own = {name: str(value) for name, value in place.items()}
        if ranks.ip in _OF_THIS_MACHINE and sys.platform == "linux":
            own.setdefault("GLOO_SOCKET_IFNAME", os.environ.get("GLOO_SOCKET_IFNAME", "lo"))
        self._process = subprocess.Popen(
            command(words),
            stdin=subprocess.DEVNULL,
            stdout=None if self.is_first else subprocess.DEVNULL,
            stderr=self._said,
            env={**environment(max(1, cores // ranks.nproc)), **own},
            start_new_session=True,  # Ctrl-C is for the one who started the processes, who then ends them
        )

    @property
    def is_first(self) -> bool:
        """Whether it is the one that prints."""
        return self.rank == 0

    @property
    def was_killed(self) -> bool:
        """Whether a signal ended it."""
        return (self.poll() or 0) < 0

    @property
    def status(self) -> int:
        """Its exit status as a shell has it."""
        found = self.poll() or 0
        return 128 - found if found < 0 else found

    def poll(self) -> int | None:
        """Its exit status, None while it runs."""
        return self._process.poll()

    def terminate(self) -> None:
        """Ask it to end, if it runs."""
        if self.poll() is None:
            self._process.terminate()

    def wait(self, until: float) -> None:
        """Wait for its end, and kill it after ``until`` (monotonic)."""
        wait_or_kill(self._process, until)

    def explanation(self) -> str:
        """Why it failed, in a sentence."""
        who = f"process {self.rank} of {self._count}"
        after = "the others were ended; what is finished is kept, and the same command continues"
        if self.was_killed:
            return f"{who} was killed by {name_of_signal(self.poll() or 0)}; {after}"
        said = "" if self._said is None else last_words(self._said)
        return f"{who}: {said}" if said else f"{who} ended with status {self.status} and said nothing; {after}"
