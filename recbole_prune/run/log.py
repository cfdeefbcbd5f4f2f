"""Where a run's log goes: all of it into the run folder, what a person wants to see onto the terminal too."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from recbole_prune.errors import UnforeseenError, in_one_line
from recbole_prune.ranks import group
from recbole_prune.run.log_file import LogFile, PlainFormatter

if TYPE_CHECKING:
    from recbole_prune.config.prune_config import PruneConfig

# of what RecBole logs as a warning and nobody can act on: the width of a matrix, which follows from the data
_NEEDLESS = ("Max value of ",)


@contextmanager
def log_of_run(config: PruneConfig, folder: Path) -> Iterator[LogFile]:
    """Write ``log.txt`` while the run lasts, and on standard error what this package says and every warning.

    Of a run that starts over the file waits for :meth:`LogFile.write_held`, or its end.

    RecBole's ``state`` is the least level that is shown; ``state=DEBUG`` shows all that the file gets. Where the root
    logger has handlers already, showing is left to them.

    Raises:
        UnforeseenError: what nobody foresaw ended the run; the file has the traceback.
    """
    root, level = logging.getLogger(), _level(config["state"])
    with ExitStack() as undo:
        # of several processes the first has the log
        file = LogFile(folder / "log.txt" if group.is_first() else Path(os.devnull), held=config.settings.fresh)
        undo.callback(file.close)
        for warning in config.warnings:  # given before this log was open
            file.handle(root.makeRecord("root", logging.WARNING, "config", 0, warning, (), None))
        handlers: list[logging.Handler] = [file]
        if not root.handlers and group.is_first():
            handlers.append(_terminal(level))
        for handler in handlers:
            root.addHandler(handler)
            undo.callback(root.removeHandler, handler)
        undo.callback(root.setLevel, root.level)
        root.setLevel(min(root.level or logging.INFO, level, logging.INFO))
        undo.callback(setattr, warnings, "showwarning", warnings.showwarning)
        warnings.showwarning = _log_warning
        try:
            with in_one_line():
                yield file
        except UnforeseenError as error:
            logging.getLogger().info("%s", error, exc_info=error.__cause__)
            error.traceback_in = None if file.given_up else file.baseFilename
            raise


def _level(state: object) -> int:
    """The level that RecBole's ``state`` names, as RecBole reads it."""
    level = getattr(logging, str(state).upper(), None)
    return level if isinstance(level, int) else logging.INFO


class _Terminal(logging.StreamHandler):
    """Standard error, above the progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            tqdm.write(self.format(record), file=self.stream)
        except Exception:
            self.handleError(record)

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return f"{record.levelname.lower()}: {' '.join(text.split())}" if record.levelno >= logging.WARNING else text


def _terminal(level: int) -> logging.Handler:
    terminal = _Terminal(sys.stderr)
    terminal.setLevel(level)
    terminal.setFormatter(PlainFormatter())
    if level > logging.DEBUG:
        terminal.addFilter(_Selection())
    return terminal


class _Selection(logging.Filter):
    """What this package says, and every warning once."""

    def __init__(self) -> None:
        super().__init__()
        self._warned: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING:
            return record.name == "recbole_prune"
        text = record.getMessage()
        if text in self._warned or (record.name == "root" and text.startswith(_NEEDLESS)):
            return False
        self._warned.add(text)
        return True


def _log_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: object, **__: object
) -> None:
    """Python's warnings in one line of the log; as they come they would tear the bar."""
    logging.getLogger("py.warnings").warning("%s: %s (%s:%d)", category.__name__, message, filename, lineno)
