"""The words of a command line: what RecBole's launcher reads, its ``--key=value``, and words meant for this package."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NamedTuple

from recbole_prune.config import host, schema
from recbole_prune.errors import ConfigError


class Launch(NamedTuple):
    """What RecBole's own launcher parses, and what it leaves to its Config.

    Attributes:
        model, dataset: names.
        files: config files, None if there are none.
        words: ``--key=value`` for :class:`~recbole_prune.config.prune_config.PruneConfig`.
    """

    model: str
    dataset: str
    files: list[str] | None
    words: list[str]


def launch(words: Sequence[str]) -> Launch:
    """Parse the words as RecBole's ``run_recbole.py`` does."""
    parser = argparse.ArgumentParser(prog="recbole-prune", add_help=False, allow_abbrev=False)
    parser.add_argument("--model", "-m", default="BPR")
    parser.add_argument("--dataset", "-d", default="ml-100k")
    parser.add_argument("--config_files", default=None)
    known, rest = parser.parse_known_args(list(words))
    # RecBole's Config knows only --key=value
    named = [f"--{name}={value}" for name, value in vars(known).items() if value is not None]
    files = known.config_files.split() if known.config_files else None
    return Launch(known.model, known.dataset, files, [*named, *rest])


def settings_in(words: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """The settings among words, by RecBole's rule: ``--key=value`` with one ``=``.

    Returns:
        text by key, and the words that are no settings.

    Raises:
        ConfigError: a key is given twice with different values, or a word that is no setting names a key of ours.
    """
    found: dict[str, str] = {}
    others = []
    for place, word in enumerate(words):
        name, _, value = word[2:].partition("=")
        if not word.startswith("--") or word.count("=") != 1:
            _check_other(word, words[place + 1 : place + 2])
            others.append(word)
        elif found.setdefault(name, value) != value:
            raise ConfigError(f"--{name} is given twice, as {found[name]} and as {value}: which one is meant?")
    return found, others


def _check_other(word: str, follower: Sequence[str]) -> None:
    """Refuse a word that RecBole would skip although it names one of our keys, or nearly so."""
    if not (word.startswith("-") or "=" in word):
        return
    name, _, value = word.lstrip("-").partition("=")
    if name not in schema.known_keys():
        if schema.in_name_space(name) or (schema.suggest(name) and not host.is_known_setting(name)):
            raise ConfigError(schema.unknown_key(name))
        return
    if "=" in value and word.startswith("--"):
        raise ConfigError(f"{word} cannot be read: RecBole's command line takes no value with '=' in it")
    example = "True" if schema.known_keys()[name].type == "bool" else "VALUE"
    meant = "".join(each for each in follower if not each.startswith("-"))
    raise ConfigError(f"{word} cannot be read: write --{name}={value or meant or example}")
