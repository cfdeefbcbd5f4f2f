"""Errors that a user can act on: each message names the key or file, the value found and what is allowed."""

from __future__ import annotations

import unicodedata

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


class ArtifactError(PruneError):
    """An artifact cannot be written or read: corrupt, of a newer format, or not what the request needs."""


class NothingToPrune(PruneError):
    """The model has no tensor that may be pruned in the requested scope."""


class TrainingError(PruneError):
    """Training cannot go on, for example because the loss became NaN."""
