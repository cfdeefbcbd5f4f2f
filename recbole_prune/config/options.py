"""The options of the commands, and the two ways to write any option: ``--key=value`` and ``--key value``.

What looks up settings imports them when called: a command that takes none needs the standard library only.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recbole_prune.config.near import did_you_mean, near_names
from recbole_prune.errors import ConfigError

_SHORT = {"-m": "--model", "-d": "--dataset"}
# a negative number is a value, and so is a lone "-"
_BEGINS_OPTION = re.compile(r"-(?!\.?\d|$)")


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


def some_text(text: str) -> str:
    """A text that is not empty."""
    if not text:
        raise ValueError(text)
    return text


def file_to_write(text: str) -> Path:
    """A file that a command writes, there already or not; a link stands for the file it leads to.

    Folders, devices and pipes are refused: the new file would take their place.
    """
    path = Path(text)
    if not text or (path.exists() and not path.is_file()):
        raise ValueError(text)
    return path.resolve() if path.is_symlink() else path


def joined(words: Sequence[str]) -> list[str]:
    """The words of a command line with every option as ``--key=value``.

    ``--key value`` and RecBole's ``-m BPR`` and ``-d ml-100k`` become that; other words stay as they are.
    """
    found: list[str] = []
    rest = list(words)
    while rest:
        name, equals, value = rest.pop(0).partition("=")
        word = f"{_SHORT.get(name, name)}{equals}{value}"
        if re.fullmatch("--[^=]+", word) and rest and not _BEGINS_OPTION.match(rest[0]):
            word = f"{word}={rest.pop(0)}"
        found.append(word)
    return found


Options = Mapping[str, Option]
Check = Callable[[str, Options, Sequence[str]], None]


def split(command: str, known: Options, words: Sequence[str], check: Check) -> tuple[dict[str, Any], list[str]]:
    """The options of a command, and what is none of them.

    Args:
        command: its name, for messages.
        known: its options.
        words: the words after it, as :func:`joined` gives them.
        check: refuses among the other words what cannot be meant: :func:`refuse_all` and those below it.

    Returns:
        the value of every option; the other words in their order.

    Raises:
        ConfigError: a word is refused, a value is not allowed, or an option is missing or given twice with different
            values.
    """
    texts: dict[str, str] = {}
    others = []
    for word in words:
        name, equals, text = word[2:].partition("=")
        if not word.startswith("--") or name not in known:
            others.append(word)
        elif texts.setdefault(name, text) != text:
            raise ConfigError(
                f"{command}: --{name} is given twice, as {texts[name]} and as {text}: which one is meant?"
            )
    check(command, known, others)
    values = {name: option.default for name, option in known.items()}
    for name, text in texts.items():
        try:
            values[name] = known[name].read(text)
        except (ValueError, KeyError):
            shown = f"--{name}={text}" if text else f"--{name} without a value"
            raise ConfigError(f"{command}: {shown} is not allowed: --{name}= takes {known[name].allowed}") from None
    for name, option in known.items():
        if option.required and name not in texts:
            raise ConfigError(f"{command}: --{name}= is missing: {option.meaning}")
    return values, others


def refuse_all(command: str, known: Options, others: Sequence[str]) -> None:
    """Refuse any other word, and suggest an option.

    Raises:
        ConfigError: there is one.
    """
    for word in others:
        near = did_you_mean([f"--{name}" for name in near_names(_name(word), known)[:1]])
        offered = f"; there are {', '.join(f'--{name}=' for name in known)}" if known else ": there is --help only"
        raise ConfigError(f"{command}: {word!r} is no option{near}{offered}")


def refuse_options(command: str, known: Options, others: Sequence[str]) -> None:
    """Refuse what looks like an option; names pass.

    Raises:
        ConfigError: there is one.
    """
    refuse_all(command, known, [word for word in others if word.startswith("-")])


def refuse_near(command: str, known: Options, others: Sequence[str]) -> None:
    """Refuse what is nearly an option of the command and no setting; settings, known or not, pass.

    Raises:
        ConfigError: there is one.
    """
    from recbole_prune.config import host, schema

    for word in others:
        name = _name(word)
        setting = name in schema.known_keys() or host.is_known_setting(name)
        if word.startswith("-") and not setting and near_names(name, known, cutoff=0.7):
            refuse_all(command, known, [word])


def describe(known: Options, indent: int = 4) -> list[str]:
    """A line of help for each option."""
    lines = []
    for name, option in known.items():
        default = option.default
        if isinstance(default, list):
            default = ",".join("none" if one is None else str(one) for one in default)
        shown = "" if option.default is None else f" (default {default})"
        lines.append(f"{' ' * indent}--{name}=  {option.meaning}{shown}")
    return lines


def _name(word: str) -> str:
    return word.lstrip("-").partition("=")[0]
