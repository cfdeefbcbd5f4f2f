"""The grammar of ``properties/overall.yaml``: one documented setting per line.

It is described at the top of that file. Nothing here imports RecBole or torch.
"""

from __future__ import annotations

import ast
import difflib
import json
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import yaml

from recbole_prune.config.paths import property_names
from recbole_prune.errors import ConfigError

_SECTION = re.compile(r"#: (?P<title>[^;]+); used by: (?P<used_by>[^;]+); changes: (?P<changes>[^;]+)")
_KEY = re.compile(r"(?P<name>[a-z][a-z0-9_]*):\s+(?P<default>.*?)\s+# \((?P<type>[a-z ]+)\) (?P<text>.+)")
_CONTINUATION = re.compile(r"\s+#\s+(?P<text>.+)")
_TEXT = re.compile(r"(?P<meaning>[^\[\]]+?)(?: \[(?P<range>[^\[\]]+)\])?")
_BOUNDS = re.compile(r"(?:(?P<low>[-\d.]+) (?P<after>[<>]=?) )?x(?: (?P<before>[<>]=?) (?P<high>[-\d.]+))?")
_FILE = re.compile(r"file in properties/(?P<folder>\w+)")
_USED_BY = {"every run": False, "the methods that list the key": True}
_CHANGES = ("nothing", "every training", "the pruning")
_TYPES = ("int", "float", "bool", "bool or auto", "str", "list of str", "dict", "list of path")
_EMPTY = ("", "~", "none", "null")
_CONTAINERS = {"list of str": list, "dict": dict, "list of path": list}
_IN_WORDS = {
    "bool": "True or False",
    "bool or auto": "auto, True or False",
    "list of str": "a list of words",
    "dict": "a dict such as {'key': value}",
    "list of path": "paths of files or folders, with commas between",
}

Method = tuple[str, str]
"""Kind (``pruner``, ``distiller``) and name of a method; the two kinds may share a name."""


@dataclass(frozen=True)
class Key:
    """One setting.

    Attributes:
        name: the key as the user writes it.
        default: value of ``overall.yaml``; a method's own default is in ``methods``.
        type: ``int``, ``float``, ``bool``, ``bool or auto``, ``str``, ``list of str``, ``dict``, or ``list of path`` of
            files or folders, whose content counts and not their names.
        optional: whether the value may be empty (None).
        range: text between the brackets, or "" where every value of the type is allowed.
        meaning: one sentence for the help.
        section: title of the section in ``overall.yaml``.
        listed: True where only the methods that list the key use it.
        changes: ``nothing``, ``every training`` or ``the pruning``.
        methods: for a listed key, the default of each method that uses it, by (kind, name).
    """

    name: str
    default: Any
    type: str
    optional: bool
    range: str
    meaning: str
    section: str
    listed: bool
    changes: str
    methods: Mapping[Method, Any] = field(default_factory=dict)

    @property
    def choices(self) -> list[str] | None:
        """The allowed words, or None where the range is none of words."""
        folder = _FILE.fullmatch(self.range)
        if folder:
            return property_names(folder["folder"])
        return self.range.split(" | ") if " | " in self.range else None

    @property
    def allowed(self) -> str:
        """What a value must be, to follow "must be"."""
        if self.choices is not None:
            text = f"one of {', '.join(self.choices)}" if self.choices else f"empty, there is no {self.range} yet"
            if self.type == "list of str":
                text = f"{_IN_WORDS[self.type]}, each {text} and none twice"
        else:
            article = "an" if self.type == "int" else "a"
            text = _IN_WORDS.get(self.type, f"{article} {self.type}")
            text += f" with {self.range.replace('x', self.name)}" if self.range else ""
        return f"{text}, or empty" if self.optional and self.choices != [] else text

    @property
    def kinds(self) -> list[str]:
        """For a listed key, the kinds of methods that use it."""
        return list(dict.fromkeys(kind for kind, _ in self.methods))

    def used_by(self, kind: str, name: str | None) -> bool:
        """Whether the method of this kind and name has a use for the key."""
        return not self.listed or (kind, name) in self.methods

    def check(self, value: Any) -> Any:
        """Return the value in the key's type.

        Args:
            value: as it came from yaml, Python or the command line (there always text).

        Raises:
            ConfigError: wrong type or out of range.
        """
        word = value.strip().lower() if isinstance(value, str) else value
        if word is None or word in _EMPTY:
            if self.optional:
                return None
            if self.type in _CONTAINERS:
                return _CONTAINERS[self.type]()
            # "none" is a word of some keys, and yaml or a RecBole user may write it as an empty value
            if word != "" and "none" in (self.choices or []):
                return "none"
            raise ConfigError(self._refusal(value))
        converted = _CONVERT[self.type](value)
        if converted is None or not self._within(converted):
            raise ConfigError(self._refusal(value))
        return converted

    def _within(self, value: Any) -> bool:
        if self.choices is not None:
            words = value if isinstance(value, list) else [value]
            return all(word in self.choices for word in words) and len(set(words)) == len(words)
        bounds = _BOUNDS.fullmatch(self.range)
        return bounds is None or (
            _compare(bounds["low"], bounds["after"], value) and _compare(value, bounds["before"], bounds["high"])
        )

    def _refusal(self, value: object) -> str:
        shown = value if isinstance(value, str) else repr(value)
        near = difflib.get_close_matches(str(value).lower(), self.choices or [], n=1)
        hint = f"; did you mean {self.name}={near[0]}?" if near else ""
        return f"{self.name}={shown} is not allowed: it must be {self.allowed}{hint}"


def _compare(left: Any, sign: str | None, right: Any) -> bool:
    """One side of a bound; a missing side always holds."""
    if sign is None:
        return True
    low, high = float(left), float(right)
    return {"<": low < high, "<=": low <= high, ">": low > high, ">=": low >= high}[sign]


def _to_int(value: object) -> int | None:
    if isinstance(value, str) and re.fullmatch(r"\s*[-+]?\d+\s*", value):
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _to_float(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _to_bool(value: object) -> bool | None:
    if isinstance(value, str):
        return {"true": True, "false": False}.get(value.strip().lower())
    return value if isinstance(value, bool) else None


def _to_bool_or_auto(value: object) -> bool | str | None:
    return "auto" if isinstance(value, str) and value.strip().lower() == "auto" else _to_bool(value)


def _to_str(value: object) -> str | None:
    if isinstance(value, (bool, float)) or not isinstance(value, (str, int)):
        return None
    return str(value).strip() or None


def _to_words(value: object) -> list[str] | None:
    """A list of words from a list, from the text of one, or from words with commas between them."""
    if isinstance(value, str):
        value = _listed(value.strip())
    if not isinstance(value, (list, tuple)):
        return None
    return list(value) if all(isinstance(word, str) and word for word in value) else None


def _listed(text: str) -> object:
    """What a text lists; words in brackets may lack their quotation marks, which a shell takes away."""
    if not text.startswith(("[", "(")):
        return [word.strip() for word in text.split(",")]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        bare = re.fullmatch(r"\[([^][(){}'\"]*)\]", text)
        return [word.strip() for word in bare[1].split(",")] if bare else None


def _to_dict(value: object) -> dict[str, Any] | None:
    """A dict with words as keys from a mapping, or from the text of one in JSON or Python; nothing is evaluated."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            try:
                value = ast.literal_eval(str(value).strip())
            except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
                return None
    if not isinstance(value, Mapping) or not all(isinstance(name, str) and name for name in value):
        return None
    return dict(value)


def _to_paths(value: object) -> list[str] | None:
    """Paths from one, from a list or the text of a list, or with commas between; a list keeps commas in names."""
    if isinstance(value, str) and not (value.strip().startswith("[") and value.strip().endswith("]")):
        value = [path.strip() for path in value.split(",")]
    elif isinstance(value, str):
        value = _to_words(value)
    paths = [value] if isinstance(value, os.PathLike) else value
    if not isinstance(paths, (list, tuple)):
        return None
    texts = [os.fspath(path) for path in paths if isinstance(path, (str, os.PathLike))]
    if len(texts) < len(paths) or not all(isinstance(text, str) and text and text.isprintable() for text in texts):
        return None
    return list(map(os.path.expanduser, texts))


_CONVERT: Mapping[str, Callable[[object], Any]] = {
    "int": _to_int,
    "float": _to_float,
    "bool": _to_bool,
    "bool or auto": _to_bool_or_auto,
    "str": _to_str,
    "list of str": _to_words,
    "dict": _to_dict,
    "list of path": _to_paths,
}


def parse(text: str, source: str) -> dict[str, Key]:
    """Read the text of a documented yaml file.

    Args:
        text: lines in the grammar described in ``properties/overall.yaml``.
        source: name of the file, for messages.

    Raises:
        ConfigError: a line is outside the grammar, or a default breaks its own range.
    """
    section: dict[str, Any] = {}
    found: dict[str, dict[str, Any]] = {}
    current: dict[str, Any] | None = None
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("#:"):
            section, current = _parse_section(line, f"{source} line {number}"), None
        elif not line.strip() or line.startswith("#"):
            current = None
        elif current is not None and _CONTINUATION.fullmatch(line):
            current["text"] += " " + _CONTINUATION.fullmatch(line)["text"].strip()  # type: ignore[index]
        else:
            key = _KEY.fullmatch(line.rstrip())
            if key is None or not section or key["name"] in found:
                raise ConfigError(f"{source} line {number} is not 'key: default  # (type) meaning [range]': {line!r}")
            current = {**key.groupdict(), **section}
            found[key["name"]] = current
    return {name: _build_key(raw, source) for name, raw in found.items()}


def _parse_section(line: str, place: str) -> dict[str, Any]:
    match = _SECTION.fullmatch(line.rstrip())
    if match is None or match["used_by"] not in _USED_BY or match["changes"] not in _CHANGES:
        raise ConfigError(f"{place} is not '#: section; used by: whom; changes: what': {line!r}")
    return {"section": match["title"], "listed": _USED_BY[match["used_by"]], "changes": match["changes"]}


def read_yaml(text: str) -> Any:
    """What a property file of this package says, by the compiled parser where yaml has one: every command waits."""
    return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def _build_key(raw: dict[str, Any], source: str) -> Key:
    name = raw["name"]
    type_name, optional = raw["type"].replace(" or empty", ""), raw["type"].endswith(" or empty")
    text = _TEXT.fullmatch(raw["text"])
    if type_name not in _TYPES or text is None:
        raise ConfigError(f"{source}: type ({raw['type']}) or text of {name} is outside the grammar")
    value_range = text["range"] or ""
    if (
        value_range
        and " | " not in value_range
        and not (_FILE.fullmatch(value_range) or _BOUNDS.fullmatch(value_range))
    ):
        raise ConfigError(f"{source}: the range [{value_range}] of {name} is outside the grammar")
    key = Key(name, None, type_name, optional, value_range, text["meaning"], raw["section"], raw["listed"],
              raw["changes"])  # fmt: skip
    return replace(key, default=key.check(read_yaml(raw["default"])))
