"""How this package starts processes of itself, and what it learns from their end.

Standard library only: workers of a cluster load nothing else.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from time import monotonic, sleep
from typing import IO

from recbole_prune.errors import PruneError
from recbole_prune.signals import PARENT, on_abort

_LONGEST_TAIL = 1 << 16
_SECONDS_TO_END, _SECONDS_TO_DIE = 15.0, 5.0
_SECONDS_BETWEEN_LOOKS = 0.005
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
# without the working directory among the places of modules: nothing that lies there is imported by accident
_CODE = "import sys; del sys.path[0]; from recbole_prune.cli import main; sys.exit(main())"


def command(words: Sequence[str]) -> list[str]:
    """What starts ``recbole-prune`` with some words, in this Python."""
    return [sys.executable, "-c", _CODE, *words]


def environment(threads: int | None) -> dict[str, str]:
    """The same package, no more threads than its share, and an end when this process ends.

    Args:
        threads: of the process, where the environment says no number; None leaves it to libraries.
    """
    ours = str(Path(__file__).resolve().parents[1])
    named = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    places = [ours, *map(os.path.abspath, named)]  # a process may have another working directory
    counts = {} if threads is None else {name: str(threads) for name in _THREADS if name not in os.environ}
    return {**os.environ, **counts, "PYTHONPATH": os.pathsep.join(dict.fromkeys(places)), PARENT: str(os.getpid())}


def run_to_end(words: Sequence[str], folder: Path | None = None) -> None:
    """Run a process, whose output nobody sees, to its end.

    Args:
        words: what starts it.
        folder: its working directory; None: that of this process.

    Raises:
        PruneError: it failed; with its last words.
    """
    started: list[subprocess.Popen[bytes]] = []

    def end() -> None:
        for process in started:
            process.terminate()
            wait_or_kill(process, monotonic() + _SECONDS_TO_END)

    with tempfile.TemporaryFile() as said, on_abort(end):
        nothing = subprocess.DEVNULL
        started.append(
            subprocess.Popen(words, stdin=nothing, stdout=nothing, stderr=said, env=environment(None), cwd=folder)
        )
        # not wait(): it holds a lock that a signal's handler, which ends the process, would wait for
        while (status := started[0].poll()) is None:
            sleep(_SECONDS_BETWEEN_LOOKS)
        if status:
            raise PruneError(f"a process ended with status {status}: {last_words(said)}")


def wait_or_kill(process: subprocess.Popen[bytes], until: float) -> None:
    """Wait for the end of a process that was asked to end, and kill it after ``until`` (monotonic)."""
    try:
        process.wait(max(0.0, until - monotonic()))
    except subprocess.TimeoutExpired:
        process.kill()
        with suppress(subprocess.TimeoutExpired):
            process.wait(_SECONDS_TO_DIE)


def last_words(said: IO[bytes]) -> str:
    """The last line of this package on a standard error that was kept, else the last of anybody; "" for none."""
    size = said.seek(0, os.SEEK_END)
    said.seek(max(0, size - _LONGEST_TAIL))
    lines = said.read().decode(errors="replace").splitlines()
    ours = [line for line in lines if line.startswith("recbole-prune: ")]
    return (ours or [line for line in lines if line.strip()] or [""])[-1].replace("recbole-prune: ", "", 1)


def name_of_signal(status: int) -> str | None:
    """The signal that ended a process with this ``returncode``; None where none did."""
    if status >= 0:
        return None
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"
