"""The processes of a cell, one after the other. Standard library only: workers of a cluster load nothing else."""

from __future__ import annotations

import socket
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from time import monotonic, sleep
from typing import IO, NamedTuple

from recbole_prune.processes import command, environment, last_words, name_of_signal, wait_or_kill
from recbole_prune.signals import BUSY

_SECONDS_BETWEEN_LOOKS = 0.1
_SECONDS_UNTIL_RETRY = 0.5
_SECONDS_TO_END = 20.0


class Job(NamedTuple):
    """What a cell runs.

    Attributes:
        steps: the words of each command after ``recbole-prune``, in their order.
        place: working directory.
        threads: of each process, None as the environment says.
    """

    steps: tuple[tuple[str, ...], ...]
    place: str
    threads: int | None


class Ended(NamedTuple):
    """How a job ended.

    Attributes:
        failure: why it failed, in a sentence; None where all of its steps succeeded.
        host: where it ran.
    """

    failure: str | None
    host: str


class JobProcess:
    """A job under way on this machine.

    A command that finds its run folder in use by another process is tried again until it is free.
    """

    def __init__(self, job: Job) -> None:
        self._job, self._steps = job, list(job.steps)
        self._process: subprocess.Popen[bytes] | None = None
        self._said: IO[bytes] | None = None
        self._retry_at = 0.0
        self._stopped = False

    def poll(self) -> Ended | None:
        """Go on with the next step where one has ended; how the job ended, None while it lasts."""
        if self._process is None:
            if monotonic() >= self._retry_at:
                self._start()
            return None
        status = self._process.poll()
        if status is None:
            return None
        said, self._process = self._last_words(), None
        if self._stopped:
            return _ended("it was stopped; its run continues from there")
        if status == BUSY:
            self._retry_at = monotonic() + _SECONDS_UNTIL_RETRY
            return None
        if status != 0:
            return _ended(_why(status, said))
        self._steps.pop(0)
        return None if self._steps else _ended(None)

    def stop(self) -> None:
        """Ask it to end; what is finished is kept."""
        self._stopped = True
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()

    def wait_stopped(self, until: float) -> None:
        """Wait for the end of what was stopped, and kill it where that takes longer than ``until`` (monotonic)."""
        if self._process is None:
            return
        wait_or_kill(self._process, until)

    def _start(self) -> None:
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - closed when it has been read
        self._process = subprocess.Popen(
            command(self._steps[0]),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._said,
            cwd=self._job.place,
            env=environment(self._job.threads),
            start_new_session=True,  # Ctrl-C is for the one who started the jobs, who then stops them
        )

    def _last_words(self) -> str:
        assert self._said is not None
        with self._said as said:
            return last_words(said)


def run_job(job: Job, is_stopped: Callable[[], bool] = lambda: False) -> Ended:
    """Run a job to its end, or until ``is_stopped()``."""
    process = JobProcess(job)
    while True:
        ended = process.poll()
        if ended is not None:
            return ended
        if is_stopped():
            stop_all([process])
            return _ended("it was stopped; its run continues from there")
        sleep(_SECONDS_BETWEEN_LOOKS)


def stop_all(processes: Sequence[JobProcess]) -> None:
    """Stop jobs and wait until they have ended."""
    for process in processes:
        process.stop()
    until = monotonic() + _SECONDS_TO_END
    for process in processes:
        process.wait_stopped(until)


def _ended(failure: str | None) -> Ended:
    return Ended(failure, socket.gethostname())


def _why(status: int, said: str) -> str:
    """A process that failed, in a sentence."""
    name = name_of_signal(status)
    if name is not None:
        hint = ", as the system does where memory runs out (fewer --workers take less)" if name == "SIGKILL" else ""
        return f"killed by {name}{hint}"
    return said or f"it ended with status {status} and said nothing"
