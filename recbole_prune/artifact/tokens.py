r"""The user's own tokens of internal ids: one a line in UTF-8, the line number from 0 being RecBole's id.

``\\``, ``\n`` and ``\r`` in a token are written as two characters. The tokens of a file stay the bytes that they are,
and are decoded when asked for: fifty million of them take no more memory than their file and a number for each line.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from recbole_prune.errors import ArtifactError

_ESCAPES = {"\\": "\\\\", "\n": "\\n", "\r": "\\r"}
_ORIGINALS = {escaped: token for token, escaped in _ESCAPES.items()}
# a backslash, itself not escaped, before anything that is never escaped
_WRONG_ESCAPE = re.compile(rb"(?<!\\)(?:\\\\)*\\(?![\\nr])")
_BLOCK = 1 << 20


def tokens_to_bytes(tokens: Iterable[str]) -> bytes:
    """The file of tokens."""
    return b"".join(_line(token) + b"\n" for token in tokens)


def _line(token: str) -> bytes:
    escaped = re.sub(r"[\\\n\r]", lambda match: _ESCAPES[match[0]], token)
    # tokens read from broken files may hold lone surrogates, which plain UTF-8 refuses
    return escaped.encode("utf-8", "surrogatepass")


def _token(line: bytes) -> str:
    return re.sub(r"\\.", lambda match: _ORIGINALS[match[0]], line.decode("utf-8", "surrogatepass"))


class Tokens(Sequence[str]):
    """The tokens of a file, by internal id.

    Args:
        data: what :func:`tokens_to_bytes` wrote.
        path: the file, for the message.

    Raises:
        ArtifactError: the bytes are not such a file.
    """

    def __init__(self, data: bytes, path: Path) -> None:
        if not data.endswith(b"\n"):
            raise ArtifactError(f"{path} must hold at least one token, and a line end after each")
        if not data.isascii():
            try:
                data.decode("utf-8", "surrogatepass")
            except UnicodeDecodeError as error:
                line = data.count(b"\n", 0, error.start)
                raise ArtifactError(f"{path}: token {line} is not valid UTF-8: {error.reason}") from error
        wrong = _WRONG_ESCAPE.search(data)
        if wrong is not None:
            line = data.count(b"\n", 0, wrong.end() - 1)
            raise ArtifactError(f"{path}: token {line} has a backslash that escapes nothing")
        self._data = data
        self._count = data.count(b"\n")

    @classmethod
    def none(cls) -> Tokens:
        """Those of data without users or without items."""
        tokens = cls.__new__(cls)
        tokens._data, tokens._count = b"", 0
        return tokens

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, number: int) -> str: ...
    @overload
    def __getitem__(self, number: slice) -> list[str]: ...
    def __getitem__(self, number: int | slice) -> str | list[str]:
        if isinstance(number, slice):
            return [self[one] for one in range(*number.indices(len(self)))]
        at = number + len(self) if number < 0 else number
        if not 0 <= at < len(self):
            raise IndexError(f"token {number} of {len(self)}")
        return _token(self._data[int(self._ends[at - 1]) + 1 if at else 0 : int(self._ends[at])])

    def __iter__(self) -> Iterator[str]:
        start = 0
        while start < len(self._data):
            end = self._data.index(b"\n", start)
            yield _token(self._data[start:end])
            start = end + 1

    @cached_property
    def _ends(self) -> NDArray[Any]:
        """Where the line of every token ends."""
        ends = np.empty(self._count, np.min_scalar_type(len(self._data)))
        filled = 0
        for start in range(0, len(self._data), _BLOCK):
            block = np.frombuffer(self._data, np.uint8, min(_BLOCK, len(self._data) - start), start)
            found = np.flatnonzero(block == ord("\n")) + start
            ends[filled : filled + len(found)] = found
            filled += len(found)
        return ends

    def id_of(self, token: str) -> int | None:
        """The id of a token, or None; id 0, padding, is nobody's."""
        at = self._data.find(b"\n" + _line(token) + b"\n")
        return None if at < 0 else self._data.count(b"\n", 0, at) + 1

    def alike(self, start: str, end: str, most: int) -> list[str]:
        """Tokens that begin with ``start`` or end with ``end``, at most ``most`` of each, without id 0."""
        parts = (b"\n" + _line(start), _line(end) + b"\n")
        return list(dict.fromkeys(token for part in parts for token in islice(self._with_part(part), most)))

    def _with_part(self, part: bytes) -> Iterator[str]:
        """Tokens whose line has the bytes at its begin, which then start with a line end, or at its end."""
        begins = part.startswith(b"\n")
        at = self._data.find(part, self._data.index(b"\n") + (not begins))
        while at >= 0:
            first = at + 1 if begins else self._data.rfind(b"\n", 0, at) + 1
            last = self._data.find(b"\n", first)
            if last < 0:
                return  # the line end of the last token begins no other
            yield _token(self._data[first:last])
            at = self._data.find(part, last + (not begins))
