"""``log.txt`` of a run folder."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from recbole_prune.errors import printable_lines

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


class PlainFormatter(logging.Formatter):
    """Without the colours in RecBole's messages; other control characters, of paths and settings, are shown as text."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as text."""
        return printable_lines(_COLOURS.sub("", super().format(record)))


class LogFile(logging.FileHandler):
    """Takes every record until the disk takes no more: then it says so once, and the run goes on without it.

    Args:
        path: the file.
        held: keep records in memory until :meth:`write_held`, since the folder may become that of another run.

    Attributes:
        given_up: whether the disk takes no more.
    """

    def __init__(self, path: Path, *, held: bool = False) -> None:
        super().__init__(path, encoding="utf-8", delay=True)
        self._held: list[logging.LogRecord] | None = [] if held else None
        self.setFormatter(PlainFormatter("%(asctime)s %(levelname)s %(message)s"))
        self.given_up = False

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record."""
        if self.given_up:
            return
        if self._held is not None:
            self._held.append(record)
            return
        try:
            super().emit(record)
        except OSError:  # the file cannot be opened
            self.handleError(record)

    @contextmanager
    def set_aside(self) -> Iterator[None]:
        """Take no records meanwhile: another run has a log of its own."""
        root = logging.getLogger()
        root.removeHandler(self)
        try:
            yield
        finally:
            root.addHandler(self)

    def write_held(self) -> None:
        """Write what was held, and from now on every record at once."""
        held, self._held = self._held or [], None
        for record in held:
            self.emit(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging calls it
        """Give up on an error of the disk; report others as logging does."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
            return
        self.given_up = True
        logging.getLogger().warning(f"{self.baseFilename} cannot be written: {error.strerror or error}")

    def close(self) -> None:
        """Close the file, whatever of it is on the disk."""
        self.write_held()
        try:
            super().close()
        except OSError:
            self.given_up = True
