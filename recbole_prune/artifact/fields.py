"""JSON that may come from anywhere: read within bounds, each field checked where it is used, named where it is wrong.

A document is never trusted to hold what its writer would have written: a field may be missing, of another type,
infinite, a number of 5,000 digits, or nested a thousand times.
"""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recbole_prune.errors import ArtifactError

# numpy's sizes and RecBole's seeds fit; a number of more digits takes long to read
_MOST_DIGITS = 20
_DEEPEST = 32


class _NoNumber(str):
    """What stands where JSON has a number that no field can hold."""


def parse(data: bytes, path: Path) -> Any:
    """The content of a JSON file in ASCII; ``path`` is for the message.

    Raises:
        ArtifactError: it is not JSON, or holds a number that is not finite or too long, or is nested too deeply.
    """
    try:
        document = json.loads(data.decode("ascii"), parse_int=_whole, parse_constant=_NoNumber)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ArtifactError(f"{path} is damaged: it is not valid JSON ({error})") from error
    problem = _find_problem(document, 0)
    if problem is not None:
        place, what = problem
        raise ArtifactError(f"{path}: {place.lstrip('.') or 'the document'} {what}")
    return document


def _whole(digits: str) -> int | _NoNumber:
    return int(digits) if len(digits) <= _MOST_DIGITS else _NoNumber(f"a number of {len(digits)} digits")


def _find_problem(value: object, depth: int) -> tuple[str, str] | None:
    """Where below ``value`` something cannot be used, and what is wrong with it."""
    if isinstance(value, _NoNumber) or (isinstance(value, float) and not math.isfinite(value)):
        return "", f"is {value}: it must be a finite number of at most {_MOST_DIGITS} digits"
    if not isinstance(value, (dict, list)):
        return None
    if depth == _DEEPEST:
        return "", f"is nested more than {_DEEPEST} times"
    for name, child in value.items() if isinstance(value, dict) else enumerate(value):
        problem = _find_problem(child, depth + 1)
        if problem is not None:
            step = f".{shown(name)}" if isinstance(value, dict) else f"[{name}]"
            return step + problem[0], problem[1]
    return None


def shown(value: object) -> str:
    """A value, or the name of a field, as it stands in a message: shortened, names without quotes."""
    return f"{value[:80]}..." if isinstance(value, str) and len(value) > 80 else str(value)


@dataclass(frozen=True)
class Fields:
    """The fields of a JSON object; every method refuses a value of another kind and names file and field.

    Attributes:
        values: the object.
        path: the file that it stands in.
        place: where in the file, empty for the outermost object.
    """

    values: Mapping[str, Any]
    path: Path
    place: str = ""

    def name_of(self, name: str) -> str:
        """The field with the names of those around it."""
        return f"{self.place}.{shown(name)}" if self.place else shown(name)

    def wrong(self, name: str, allowed: str) -> ArtifactError:
        """The error for a field whose value is not what is allowed."""
        found = reprlib.repr(self.values[name]) if name in self.values else "missing"
        return ArtifactError(f"{self.path}: {self.name_of(name)} must be {allowed}, but is {found}")

    def __iter__(self) -> Iterator[str]:
        return iter(self.values)

    def __contains__(self, name: object) -> bool:
        return name in self.values

    def inner(self, name: str) -> Fields:
        """The object in a field."""
        value = self.values.get(name)
        if not isinstance(value, dict):
            raise self.wrong(name, "an object")
        return Fields(value, self.path, self.name_of(name))

    def text(self, name: str, choices: Sequence[str] | None = None) -> str:
        """The text in a field; one of ``choices`` if they are given."""
        value = self.values.get(name)
        if not isinstance(value, str) or (choices is not None and value not in choices):
            raise self.wrong(name, "text" if choices is None else f"one of {', '.join(choices) or 'nothing'}")
        return value

    def whole(self, name: str, most: int) -> int:
        """The whole number from 0 to ``most`` in a field."""
        value = self.values.get(name)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
            raise self.wrong(name, f"a whole number from 0 to {most}")
        return value

    def number(self, name: str) -> float:
        """The finite number in a field."""
        value = self.values.get(name)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self.wrong(name, "a number")
        return float(value)

    def sizes(self, name: str, longest: int, most: int) -> tuple[int, ...]:
        """The list of at most ``longest`` whole numbers from 0 to ``most`` in a field."""
        value = self.values.get(name)
        if (
            not isinstance(value, list)
            or len(value) > longest
            or any(isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= most for size in value)
        ):
            raise self.wrong(name, f"a list of at most {longest} whole numbers from 0 to {most}")
        return tuple(value)
