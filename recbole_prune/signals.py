"""SIGINT, SIGTERM and SIGHUP end a command at any moment: one line, the exit status that shells expect, nothing lost.

The process ends inside the handler. An exception raised there could be swallowed by any library, or break an import in
progress. The files of runs and artifacts survive a kill at any moment; what is to be put away beside them is registered
with :func:`on_abort`.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

# exit status of a command whose run folder another process works in: later it may succeed (EX_TEMPFAIL of sysexits.h)
BUSY = 75
# in the environment of a process that is to end when the one that started it does: the number of that process
PARENT = "RECBOLE_PRUNE_PARENT"
# in the environment of a process whose parent says for it that it was interrupted
QUIET = "RECBOLE_PRUNE_QUIET"
_SECONDS_BETWEEN_LOOKS, _SECONDS_TO_END = 0.2, 30.0
_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")
_actions: list[Callable[[], object]] = []


def interruption(name: str = "SIGINT") -> str:
    """What is said after a signal."""
    return f"recbole-prune: interrupted by {name}; what is finished is kept, and a run continues from there"


@contextmanager
def on_abort(action: Callable[[], object]) -> Iterator[None]:
    """Call ``action()`` if an exception, or a signal that ends the process, comes before the end of the block.

    Of several actions the newest is called first.
    """
    _actions.append(action)
    try:
        yield
    except BaseException:
        action()
        raise
    finally:
        _actions.remove(action)


def end_on_signals() -> None:
    """From now on the signals end this process with status 128 + number; one that it was told to ignore stays ignored.

    A second signal ends it at once. After the last action of Python's ``atexit`` the work is done: signals are ignored.
    """
    numbers = [number for number in (getattr(signal, name, None) for name in _NAMES) if number is not None]
    numbers = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    process, unsaid, quiet = os.getpid(), [True], os.environ.pop(QUIET, "") != ""

    def end(number: int, frame: FrameType | None) -> None:
        if os.getpid() != process or not unsaid:  # a forked worker, or a second signal
            os._exit(128 + number)
        unsaid.pop()
        if not quiet:
            _say(signal.Signals(number).name)
        for action in reversed(_actions):
            with suppress(BaseException):
                action()
        with suppress(BaseException):
            sys.stdout.flush()
        os._exit(128 + number)

    for number in numbers:
        signal.signal(number, end)
    # registered first, so called last
    atexit.register(lambda: [signal.signal(number, signal.SIG_IGN) for number in numbers])


def end_with_parent() -> None:
    """From now on this process ends, as after SIGTERM, when the one named by ``RECBOLE_PRUNE_PARENT`` does.

    A comparison that is killed so leaves no runs behind that hold their folders. Nothing happens where that variable is
    not set; what this process starts does not inherit it.
    """
    parent = os.environ.pop(PARENT, "")
    if parent.isdecimal():
        threading.Thread(target=_watch, args=(int(parent),), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_SECONDS_TO_END)  # the main thread may be far from its next instruction
    os._exit(128 + signal.SIGTERM)


def _say(name: str) -> None:
    with suppress(OSError):  # SIGHUP comes when the terminal is gone
        begin = "\n" if os.isatty(2) else ""  # a progress bar leaves its line open
        os.write(2, f"{begin}{interruption(name)}\n".encode())
