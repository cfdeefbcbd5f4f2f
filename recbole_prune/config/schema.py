"""The settings of this package: a table read from ``properties/*.yaml``, checks, suggestions and the help.

Nothing here imports RecBole or torch.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from recbole_prune.config.grammar import Key, parse, read_yaml
from recbole_prune.config.near import did_you_mean, near_names, plain
from recbole_prune.config.paths import properties_dir, property_file, property_names
from recbole_prune.errors import ConfigError

PREFIXES = ("prune_", "distill_", "export_", "measure_", "report_")
METHOD_KINDS = ("pruner", "distiller")


@lru_cache(maxsize=1)
def known_keys() -> Mapping[str, Key]:
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
                found[name] = replace(key, methods={**key.methods, (kind, method): key.check(value)})
    return found


def _read_method(path: Path) -> dict[str, Any]:
    return read_yaml(path.read_text(encoding="utf-8")) or {}


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
    if name not in known_keys():
        raise ConfigError(unknown_key(name))
    return known_keys()[name].check(value)


def in_name_space(name: str) -> bool:
    """Whether the name can only be meant for this package."""
    return name in known_keys() or plain(name).startswith(PREFIXES)


def suggest(name: str) -> list[str]:
    """Keys of this package that a misspelt name may stand for, best first."""
    return near_names(name, known_keys(), cutoff=0.8)


def unknown_key(name: str) -> str:
    """Message for a name in our name space, or near one of our keys, that is not a key."""
    begun = [key for key in known_keys() if len(name) > 7 and key.startswith(plain(name))]
    hint = did_you_mean([f"--{near}" for near in (begun or near_names(name, known_keys(), cutoff=0.75))[:1]])
    return f"{name} is not a setting of recbole_prune{hint or ' (--help lists them)'}"


def help_text() -> str:
    """All keys with default, range and meaning, then each method with the keys that it uses and its defaults."""
    lines = [
        "Settings of recbole_prune, as --key=value, in a dict or in a yaml file; RecBole's own settings work as ever."
    ]
    for section in dict.fromkeys(key.section for key in known_keys().values()):
        members = [key for key in known_keys().values() if key.section == section]
        note = " (only with the methods below that list the key)" if members[0].listed else ""
        lines += ["", f"{section}{note}"]
        for key in members:
            lines += _help_of_key(key)
    for kind in METHOD_KINDS:
        for method in method_names(kind):
            lines += ["", f"--{kind}={method}", *_wrap(describe_method(kind, method), 4)]
            used = [
                f"{key.name}={_show(key.methods[kind, method])}"
                for key in known_keys().values()
                if (kind, method) in key.methods
            ]
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
