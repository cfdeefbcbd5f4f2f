"""The subcommands of ``recbole-prune``: parse words, call, print.

The only room that reads ``sys.argv`` and prints; what it prints comes from ``report/``. Each module has
``main(words) -> exit status``, where every option has the form ``--key=value``, and ``usage() -> text`` for ``--help``.
"""

from __future__ import annotations

import os
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from logging import getLogger

import recbole_prune
from recbole_prune.config.near import did_you_mean, near_names
from recbole_prune.config.options import joined
from recbole_prune.errors import BusyError, ConfigError, PruneError, UnforeseenError, in_one_line, printable
from recbole_prune.signals import BUSY, interruption

USAGE = """usage: recbole-prune [run] --model=BPR --dataset=ml-100k --pruner=imp [--key=value ...]
       recbole-prune export --run=FOLDER [--export_ticket=N] [--export_values=fp16] [--to=FOLDER]
       recbole-prune recommend --artifact=FOLDER --users=196,186 [--k=10]
       recbole-prune compare --model=BPR --dataset=ml-100k --pruners=static,dsl --sparsities=0.5,0.9 --seeds=1,2,3
       recbole-prune report FOLDER [FOLDER ...] [--to=report.html] [--csv=FILE] [--latex=FILE]
       recbole-prune bench train --model=BPR --dataset=ml-100k [--sparsities=0,0.9] [--to=FILE]   (bench --help)
       recbole-prune models [NAME ...] [--kind=general]   (what is pruned in each of RecBole's models)
       recbole-prune runs [FOLDER ...]   (lists run folders, how far they are, how to go on; --clean frees disk)
       recbole-prune clean --run=FOLDER   (removes the states that distill_record_states kept)
       recbole-prune doctor

Every RecBole setting works as with run_recbole.py: --model (-m), --dataset (-d), --config_files="a.yaml b.yaml",
and any --key=value. Every option can also be written --key value. --nproc=2 trains a run with two processes of this
machine, which divide every batch (several machines: --world_size, --group_offset, --ip, --port; torchrun works too).
"""

# imported when called, so that recommend loads neither torch nor RecBole
COMMANDS = ("run", "export", "recommend", "compare", "report", "bench", "models", "runs", "clean", "doctor")
_SHOW_TRACEBACK = "RECBOLE_PRUNE_TRACEBACK"
_BROKEN_PIPE = 141  # as if SIGPIPE had ended the process


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; errors that a user can act on are printed in one line.

    Args:
        argv: the words after the program's name, by default those of this process.

    Returns:
        exit status: 0, 2 for an error, 75 where another process works in the run folder, 130 after Ctrl-C, 141 where
            nobody reads the output any more; ``compare`` has 1 where a cell failed.
    """
    try:
        with _disk_errors_of_threads_logged(), in_one_line():
            status = _run(list(sys.argv[1:] if argv is None else argv))
        if sys.stdout is not None:
            sys.stdout.flush()
        return status
    except PruneError as error:
        print(f"recbole-prune: {error}{_traceback_of(error)}", file=sys.stderr)
        return BUSY if isinstance(error, BusyError) else 2
    except OSError as error:
        _close_broken_output()
        if isinstance(error, BrokenPipeError):
            return _BROKEN_PIPE
        print(f"recbole-prune: {printable(_sentence(error))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\n{interruption()}", file=sys.stderr)
        return 130


def _run(words: list[str]) -> int:
    asked = {word.partition("=")[0] for word in words}  # "--help=imp" asks for help, and must not begin a run
    if not words or {"-V", "--version"} & asked:
        print(f"recbole-prune {recbole_prune.__version__}" if words else USAGE.rstrip())
        return 0
    name = "run" if words[0].startswith("-") else words.pop(0)
    if name not in COMMANDS:
        near = did_you_mean(near_names(name, COMMANDS)[:1])
        raise ConfigError(f"unknown command {name!r}{near}; there are {', '.join(COMMANDS)}")
    command = import_module(f"recbole_prune.commands.{name}")
    if {"-h", "--help"} & asked:
        print(command.usage())
        return 0
    return int(command.main(joined(words)))


def _traceback_of(error: PruneError) -> str:
    """The traceback of what nobody foresaw if it is asked for, or how to ask where no log has it."""
    if not isinstance(error, UnforeseenError) or error.__cause__ is None:
        return ""
    if os.environ.get(_SHOW_TRACEBACK):
        cause = error.__cause__
        return "\n" + "".join(traceback.format_exception(type(cause), cause, cause.__traceback__)).rstrip()
    return "" if error.traceback_in else f"; {_SHOW_TRACEBACK}=1 in the environment shows the traceback"


def _sentence(error: OSError) -> str:
    if isinstance(error.filename, (str, bytes)):
        return f"{os.fsdecode(error.filename)}: {error.strerror or error}"
    try:
        os.getcwd()
    except OSError:
        return "the working directory does not exist any more"
    return error.strerror or str(error)


@contextmanager
def _disk_errors_of_threads_logged() -> Iterator[None]:
    """No traceback of a thread (TensorBoard's) that cannot write: who waits for it gets the error too."""
    hook = threading.excepthook

    def log(ended: threading.ExceptHookArgs) -> None:
        if ended.exc_value is None or not isinstance(ended.exc_value, OSError):
            hook(ended)
        else:
            getLogger().debug("a thread ended", exc_info=ended.exc_value)

    threading.excepthook = log
    try:
        yield
    finally:
        threading.excepthook = hook


def _close_broken_output() -> None:
    """Drop what cannot be printed, which Python would try again, and complain about, at its exit."""
    for stream in filter(None, (sys.stdout, sys.stderr)):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
