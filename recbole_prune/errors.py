"""Errors in one line: what a user can act on names the key or file, the value found and what is allowed; what nobody
foresaw says who raised it, what and where.
"""

from __future__ import annotations

import os
import sysconfig
import traceback
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

# control and format characters (colours, cursor moves, writing direction), lone surrogates, line and paragraph ends
_UNPRINTABLE = ("Cc", "Cf", "Cs", "Zl", "Zp")
_LONGEST_MESSAGE = 4000


def printable(text: str) -> str:
    r"""The text in one line that leaves a terminal as it is: ``\x1b`` for an escape character, ``\n`` for a line end.

    Whatever comes from a file or a dataset goes through here before it is printed.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        character.encode("unicode_escape").decode("ascii")
        if unicodedata.category(character) in _UNPRINTABLE
        else character
        for character in text
    )


def printable_lines(text: str) -> str:
    """The text with :func:`printable` applied to each of its lines."""
    return "\n".join(map(printable, text.split("\n")))


class PruneError(Exception):
    """Base of all errors of this package; the command line prints its text, one line, and exits with status 2."""

    def __str__(self) -> str:
        text = printable(super().__str__()[: _LONGEST_MESSAGE + 1])
        return text if len(text) <= _LONGEST_MESSAGE else f"{text[:_LONGEST_MESSAGE]}..."


class ConfigError(PruneError):
    """A setting is unknown, has the wrong type, is out of range or contradicts another one."""


class StoreError(PruneError):
    """The run folder cannot be used: locked, not writable, disk full, or a file in it is corrupt."""


class BusyError(StoreError):
    """Another process works in the run folder."""


class ArtifactError(PruneError):
    """An artifact cannot be written or read: corrupt, of a newer format, or not what the request needs."""


class NothingToPrune(PruneError):
    """The model has no tensor that may be pruned in the requested scope."""


class TrainingError(PruneError):
    """Training cannot go on, for example because the loss became NaN."""


class UnforeseenError(PruneError):
    """What nobody foresaw; ``__cause__`` is what was raised.

    Attributes:
        traceback_in: the log that has the traceback, where there is one.
    """

    traceback_in: str | None = None

    def __str__(self) -> str:
        text = super().__str__()
        return f"{text}; the traceback is in {printable(self.traceback_in)}" if self.traceback_in else text


class RecBoleError(UnforeseenError):
    """RecBole failed, or what it calls, or a class of the user's own."""


class InternalError(UnforeseenError):
    """A fault of this package."""


_OURS, _RECBOLE = "recbole_prune", "recbole"
# functions of ours that hand a call of RecBole's on to a library: what fails there fails without us too
_HANDING_ON = ("step_and_mask",)
_LONGEST_TEXT = 1000


@contextmanager
def in_one_line(doing: str = "") -> Iterator[None]:
    """Turn what nobody foresaw into the PruneError that :func:`explained` makes of it.

    Args:
        doing: what RecBole is asked for, such as ``build BPR``. Without it an OSError stays as it is: it says in one
            line what is wrong with which file.
    """
    try:
        yield
    except PruneError:
        raise
    except (Exception, SystemExit) as error:  # RecBole ends the process where data are wrong
        if isinstance(error, OSError) and not doing:
            raise
        raise explained(error, doing) from error


def explained(error: BaseException, doing: str = "") -> PruneError:
    """An exception as one line: who raised it, what and where.

    Whose code is innermost in the traceback is to blame: this package's, RecBole's, or a class of the user's own.
    Libraries are not: they do what they are told.

    Args:
        error: a PruneError is returned as it is.
        doing: what RecBole was asked for.
    """
    if isinstance(error, PruneError):
        return error
    what = _class_and_text(error)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "allocate memory" in what:
        return TrainingError(f"the memory does not suffice: {what}")
    owner, place = _innermost(error.__traceback__)
    if owner == _RECBOLE:
        return RecBoleError(f"RecBole {f'cannot {doing}:' if doing else 'raised'} {what} ({place})")
    if owner == _OURS:
        return InternalError(f"a fault of recbole_prune, please report it: {what} ({place})")
    return RecBoleError(f"your own code raised {what} ({place})")


def _class_and_text(error: BaseException) -> str:
    try:
        text = " ".join(str(error).split())
    except Exception:
        text = ""
    shown = text if len(text) <= _LONGEST_TEXT else f"{text[:_LONGEST_TEXT]}..."
    return f"{type(error).__name__}: {shown or 'no reason given'}"


def _innermost(trace: TracebackType | None) -> tuple[str, str]:
    """The package of the innermost code that belongs to no library ("" for the user's own), and its place."""
    for frame, line in reversed(list(traceback.walk_tb(trace))):
        module, file, name = frame.f_globals.get("__name__", ""), frame.f_code.co_filename, frame.f_code.co_name
        package = module.partition(".")[0]
        if package == _OURS and name in _HANDING_ON:
            continue
        if package in (_OURS, _RECBOLE):
            return package, f"{module.replace('.', '/')}.py line {line}"
        if not _of_a_library(file):
            return "", f"{file} line {line}"
    return _OURS, "no place known"


def _of_a_library(file: str) -> bool:
    parts = file.replace(os.sep, "/").split("/")
    if file.startswith("<frozen") or "site-packages" in parts or "dist-packages" in parts:
        return True
    return file.startswith(tuple(sysconfig.get_paths()[name] + os.sep for name in ("stdlib", "platstdlib")))
