"""The settings of this package, read from ``properties/*.yaml``: names, defaults, types, ranges, meanings.

The grammar is described at the top of ``properties/overall.yaml``. Nothing here imports RecBole or torch.
"""

from __future__ import annotations

import ast
import difflib
import math
import re
import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from recbole_prune.errors import ConfigError
from recbole_prune.paths import properties_dir, property_file, property_names

PREFIXES = ("prune_", "distill_", "export_", "measure_")
METHOD_KINDS = ("pruner", "distiller")

_SECTION = re.compile(r"#: (?P<title>[^;]+); used by: (?P<used_by>[^;]+); changes: (?P<changes>[^;]+)")
_KEY = re.compile(r"(?P<name>[a-z][a-z0-9_]*):\s+(?P<default>.*?)\s+# \((?P<type>[a-z ]+)\) (?P<text>.+)")
_CONTINUATION = re.compile(r"\s+#\s+(?P<text>.+)")
_TEXT = re.compile(r"(?P<meaning>[^\[\]]+?)(?: \[(?P<range>[^\[\]]+)\])?")
_BOUNDS = re.compile(r"(?:(?P<low>[-\d.]+) (?P<after>[<>]=?) )?x(?: (?P<before>[<>]=?) (?P<high>[-\d.]+))?")
_FILE = re.compile(r"file in properties/(?P<folder>\w+)")
_USED_BY = {"every run": False, "the methods that list the key": True}
_CHANGES = ("nothing", "every training", "the pruning")
_TYPES = ("int", "float", "bool", "str", "list of str")
_EMPTY = ("", "~", "none", "null")


@dataclass(frozen=True)
class Key:
    """One setting.

    Attributes:
        name: the key as the user writes it.
        default: value of ``overall.yaml``; a method's own default is in ``methods``.
        type: ``int``, ``float``, ``bool``, ``str`` or ``list of str``.
        optional: whether the value may be empty (None).
        range: text between the brackets, or "" where every value of the type is allowed.
        meaning: one sentence for the help.
        section: title of the section in ``overall.yaml``.
        listed: True where only the methods that list the key use it.
        changes: ``nothing``, ``every training`` or ``the pruning``.
        methods: for a listed key, the default of each method that uses it.
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
    methods: Mapping[str, Any] = field(default_factory=dict)

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
        else:
            article = "an" if self.type == "int" else "a"
            text = {"bool": "True or False", "list of str": "a list of words"}.get(self.type, f"{article} {self.type}")
            text += f" with {self.range.replace('x', self.name)}" if self.range else ""
        return f"{text}, or empty" if self.optional and self.choices != [] else text

    def used_by(self, method: str | None) -> bool:
        """Whether the method of this name has a use for the key."""
        return not self.listed or method in self.methods

    def check(self, value: Any) -> Any:
        """Return the value in the key's type.

        Args:
            value: as it came from yaml, Python or the command line (there always text).

        Raises:
            ConfigError: wrong type or out of range.
        """
        if value is None or (isinstance(value, str) and value.strip().lower() in _EMPTY):
            if self.optional:
                return None
            # "none" is a word of some keys, and yaml or a RecBole user may write it as an empty value
            value = "none" if value is None or value.strip() else value
        converted = _CONVERT[self.type](value)
        if converted is None or not self._within(converted):
            raise ConfigError(self._refusal(value))
        return converted

    def _within(self, value: Any) -> bool:
        if self.choices is not None:
            return value in self.choices
        bounds = _BOUNDS.fullmatch(self.range)
        return bounds is None or (
            _compare(bounds["low"], bounds["after"], value) and _compare(value, bounds["before"], bounds["high"])
        )

    def _refusal(self, value: Any) -> str:
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


def _to_int(value: Any) -> int | None:
    if isinstance(value, str) and re.fullmatch(r"\s*[-+]?\d+\s*", value):
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _to_float(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _to_bool(value: Any) -> bool | None:
    if isinstance(value, str):
        return {"true": True, "false": False}.get(value.strip().lower())
    return value if isinstance(value, bool) else None


def _to_str(value: Any) -> str | None:
    if isinstance(value, (bool, float)) or not isinstance(value, (str, int)):
        return None
    return str(value).strip() or None


def _to_words(value: Any) -> list[str] | None:
    """A list of words from a list, from the text of one, or from words with commas between them."""
    if isinstance(value, str):
        if value.strip().startswith(("[", "(")):
            try:
                value = ast.literal_eval(value.strip())
            except (ValueError, SyntaxError):
                return None
        else:
            value = [] if value == "none" else [word.strip() for word in value.split(",")]
    if not isinstance(value, (list, tuple)):
        return None
    return list(value) if all(isinstance(word, str) and word for word in value) else None


_CONVERT = {"int": _to_int, "float": _to_float, "bool": _to_bool, "str": _to_str, "list of str": _to_words}


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


def _build_key(raw: dict[str, Any], source: str) -> Key:
    name = raw["name"]
    type_name, optional = raw["type"].replace(" or empty", ""), raw["type"].endswith(" or empty")
    text = _TEXT.fullmatch(raw["text"])
    if type_name not in _TYPES or text is None:
        raise ConfigError(f"{source}: type ({raw['type']}) or text of {name} is outside the grammar")
    value_range = text["range"] or ""
    if value_range and " | " not in value_range and not _FILE.fullmatch(value_range):
        if not _BOUNDS.fullmatch(value_range):
            raise ConfigError(f"{source}: the range [{value_range}] of {name} is outside the grammar")
    key = Key(name, None, type_name, optional, value_range, text["meaning"], raw["section"], raw["listed"],
              raw["changes"])  # fmt: skip
    return _with(key, default=key.check(yaml.safe_load(raw["default"])))


def _with(key: Key, **changes: Any) -> Key:
    return Key(**{**key.__dict__, **changes})


@lru_cache(maxsize=1)
def keys() -> Mapping[str, Key]:
    """Every setting of this package by name, in the order of ``overall.yaml``, with the methods that use it.

    Raises:
        ConfigError: a property file is outside the grammar or lists a key that ``overall.yaml`` lacks.
    """
    path = properties_dir() / "overall.yaml"
    found = parse(path.read_text(encoding="utf-8"), str(path))
    for kind in METHOD_KINDS:
        for method in property_names(kind):
            for name, value in _read_method(property_file(kind, method)).items():
                if name not in found or not found[name].listed:
                    raise ConfigError(f"{property_file(kind, method)} lists {name}, which overall.yaml does not let it")
                key = found[name]
                found[name] = _with(key, methods={**key.methods, method: key.check(value)})
    return found


def _read_method(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8")) or {}


def method_names(kind: str) -> list[str]:
    """Names that ``--pruner`` or ``--distiller`` takes; ``kind`` is one of :data:`METHOD_KINDS`."""
    return property_names(kind)


def describe_method(kind: str, name: str) -> str:
    """First comment line of a method's property file: what the method is, in a sentence."""
    first = property_file(kind, name).read_text(encoding="utf-8").splitlines()[0]
    return first.lstrip("# ").strip()


def check(name: str, value: Any) -> Any:
    """Return a value of one of our keys in the key's type.

    Raises:
        ConfigError: there is no such key, or the value has the wrong type or is out of range.
    """
    if name not in keys():
        raise ConfigError(unknown_key(name))
    return keys()[name].check(value)


def in_name_space(name: str) -> bool:
    """Whether the name can only be meant for this package."""
    return name in keys() or _plain(name).startswith(PREFIXES)


def suggest(name: str) -> list[str]:
    """Keys of this package that a misspelt name may stand for, best first."""
    return near_names(name, keys(), cutoff=0.8)


def near_names(name: str, names: Iterable[str], cutoff: float = 0.6) -> list[str]:
    """Names that look like the given one, best first; case, ``-`` and ``_`` are taken as equal."""
    plain = {_plain(other): other for other in names}
    return [plain[match] for match in difflib.get_close_matches(_plain(name), list(plain), n=3, cutoff=cutoff)]


def did_you_mean(names: list[str]) -> str:
    """Return "; did you mean a or b?", or "" for no names."""
    return f"; did you mean {' or '.join(names)}?" if names else ""


def unknown_key(name: str) -> str:
    """Message for a name in our name space, or near one of our keys, that is not a key."""
    hint = did_you_mean([f"--{near}" for near in near_names(name, keys(), cutoff=0.6)])
    return f"{name} is not a setting of recbole_prune{hint or ' (--help lists them)'}"


def _plain(name: str) -> str:
    return name.lower().replace("-", "_")


def help_text() -> str:
    """All keys with default, range and meaning, then each method with the keys that it uses and its defaults."""
    lines = ["Settings of recbole_prune, as --key=value, in a dict or in a yaml file; RecBole's own settings work as ever."]
    for section in dict.fromkeys(key.section for key in keys().values()):
        members = [key for key in keys().values() if key.section == section]
        note = " (only with the methods below that list the key)" if members[0].listed else ""
        lines += ["", f"{section}{note}"]
        for key in members:
            lines += _help_of_key(key)
    for kind in METHOD_KINDS:
        for method in method_names(kind):
            lines += ["", f"--{kind}={method}", *_wrap(describe_method(kind, method), 4)]
            used = [f"{key.name}={_show(key.methods[method])}" for key in keys().values() if method in key.methods]
            lines += _wrap("  ".join(used), 4)
    return "\n".join(lines)


def _help_of_key(key: Key) -> list[str]:
    text = f"{key.meaning[0].upper()}{key.meaning[1:]}. Must be {key.allowed}."
    return [f"  --{key.name}={_show(key.default)}", *_wrap(text, 6)]


def _show(value: Any) -> str:
    return "" if value is None else str(value)


def _wrap(text: str, indent: int) -> list[str]:
    margin = " " * indent
    return textwrap.wrap(
        text, 110, initial_indent=margin, subsequent_indent=margin, break_long_words=False, break_on_hyphens=False
    )
