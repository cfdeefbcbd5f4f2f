"""The own options of ``recbole-prune bench``; every other ``--key=value`` is a setting of the runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recbole_prune.config import host, schema
from recbole_prune.errors import ConfigError


@dataclass(frozen=True)
class Option:
    """One option.

    Attributes:
        read: makes the value from its text; ValueError where it is not allowed.
        default: value where it is not given.
        allowed: what values are allowed, in words.
        meaning: one clause for the help.
        required: whether it must be given.
    """

    read: Callable[[str], Any]
    default: Any
    allowed: str
    meaning: str
    required: bool = False


def positive(text: str) -> int:
    """A whole number from 1."""
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def yes_or_no(text: str) -> bool:
    """``True`` or ``False`` in any case."""
    return {"true": True, "false": False}[text.lower()]


def sparsities(text: str) -> list[float]:
    """Numbers from 0 up to, not including, 1, with commas between them."""
    numbers = [float(part) for part in text.strip("[]").split(",")]
    if not all(0 <= number < 1 for number in numbers) or len(set(numbers)) < len(numbers):
        raise ValueError(text)
    return numbers


def positives(text: str) -> list[int]:
    """Whole numbers from 1 with commas between them."""
    return [positive(part) for part in text.strip("[]").split(",")]


def value_types(text: str) -> list[str]:
    """Number formats of an artifact with commas between them."""
    names = text.split(",")
    if not set(names) <= {"fp32", "fp16", "int8"}:
        raise ValueError(text)
    return names


_NUMBER = "a whole number from 1"
SPARSITIES = Option(sparsities, [0.0, 0.9], "numbers from 0 to below 1, such as 0,0.9", "sparsities to measure")
REPEATS = Option(positive, 5, _NUMBER, "samples of each candidate, after one round to warm up")
THREADS = Option(positive, None, _NUMBER, "threads of every library; default: OMP_NUM_THREADS, else all cores")
TO = Option(Path, None, "a file", "write the JSON there")
BATCHES = Option(positive, None, _NUMBER, "only the first so many batches of an epoch")
FOLDER = Option(Path, None, "a folder", "folder to write the dataset's folder into", required=True)


def number(default: int | None, meaning: str, required: bool = False) -> Option:
    """An option that is a whole number from 1."""
    return Option(positive, default, _NUMBER, meaning, required)


def parse(command: str, known: Mapping[str, Option], argv: list[str]) -> tuple[dict[str, Any], list[str]]:
    """Split a command line into own options and what the runs read.

    Args:
        command: name of the subcommand, for messages.
        known: its options.
        argv: the words after it.

    Returns:
        the value of every option; the other words in their order.

    Raises:
        ConfigError: a value is not allowed, an option is missing, or a word is nearly one of the options and no
            setting.
    """
    values = {name: option.default for name, option in known.items()}
    rest = []
    for word in argv:
        name, equals, text = word.lstrip("-").partition("=")
        if not word.startswith("--") or name not in known:
            _check_stranger(command, known, word, name)
            rest.append(word)
            continue
        try:
            if not equals or not text:
                raise ValueError(word)
            values[name] = known[name].read(text)
        except (ValueError, KeyError):
            raise ConfigError(
                f"bench {command}: {word} is not allowed: --{name}= takes {known[name].allowed}"
            ) from None
    for name, option in known.items():
        if option.required and values[name] is None:
            raise ConfigError(f"bench {command}: --{name}= is missing: {option.meaning}")
    return values, rest


def _check_stranger(command: str, known: Mapping[str, Option], word: str, name: str) -> None:
    """Refuse what looks like an option of ours; RecBole's launcher words and settings pass."""
    if not word.startswith("-") or name in schema.known_keys() or host.is_known_setting(name):
        return
    near = schema.near_names(name, known, cutoff=0.7)
    if near:
        raise ConfigError(
            f"bench {command}: {word!r} is no option{schema.did_you_mean([f'--{n}' for n in near[:1]])}; "
            f"there are {', '.join(f'--{own}=' for own in known)}"
        )


def describe(known: Mapping[str, Option]) -> list[str]:
    """A line of help for each option."""
    lines = []
    for name, option in known.items():
        default = ",".join(map(str, option.default)) if isinstance(option.default, list) else option.default
        shown = "" if option.default is None else f" (default {default})"
        lines.append(f"    --{name}=  {option.meaning}{shown}")
    return lines
