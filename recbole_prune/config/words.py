"""The words of a command line: what RecBole's launcher reads, its ``--key=value``, and words meant for this package.

What words alone can get wrong is refused here, before RecBole is imported, which takes seconds.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

from recbole_prune.config import evaluation, host, names, schema, values
from recbole_prune.config.files import read_settings
from recbole_prune.errors import ConfigError
from recbole_prune.ranks.launcher import Ranks

_FILES = ("config_files", "config_file_list")
_PROCESSES = ("nproc", "world_size", "ip", "port", "group_offset")
_PORT = 5678  # that of RecBole's launcher
_DEFAULTS = {"model": "BPR", "dataset": "ml-100k"}  # those of RecBole's launcher


class Launch(NamedTuple):
    """What RecBole's own launcher parses, and what it leaves to its Config.

    Attributes:
        model, dataset: names.
        files: config files, None if there are none.
        words: ``--key=value`` for :class:`~recbole_prune.config.prune_config.PruneConfig`.
        ranks: the processes that are asked for; None where it is this one.
    """

    model: str
    dataset: str
    files: list[str] | None
    words: list[str]
    ranks: Ranks | None = None


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)


def launch(words: Sequence[str]) -> Launch:
    """Parse the words as RecBole's ``run_recbole.py`` does, and refuse misspelt ones.

    Unlike there, a model or dataset that only a config file names is taken, and ``--config_file_list`` is another name
    of ``--config_files``.

    Raises:
        ConfigError: a word or a name in a config file is unknown or misspelt, or a value is not allowed.
    """
    parser = _Parser(prog="recbole-prune", add_help=False, allow_abbrev=False)
    parser.add_argument("--model", "-m", action="append")
    parser.add_argument("--dataset", "-d", action="append")
    for name in (*_FILES, *_PROCESSES):
        parser.add_argument(f"--{name}", action="append")
    known, rest = parser.parse_known_args(list(words))
    launcher: dict[str, str] = {}
    for name, given in vars(known).items():
        for value in given or ():
            _keep(launcher, name, value)
    files = _files(launcher)
    in_files: dict[str, Any] = {}
    for file in files:
        in_files.update(read_settings(file))
    for name, default in _DEFAULTS.items():
        launcher.setdefault(name, str(in_files.get(name) or default))
    said, strangers = settings_in(rest)
    for word in strangers:
        _refuse(word, rest[rest.index(word) + 1 :])
    _check({**launcher, **said}, in_files)
    # RecBole's Config knows only --key=value
    named = [f"--{name}={value}" for name, value in launcher.items()]
    return Launch(launcher["model"], launcher["dataset"], files or None, [*named, *rest], _ranks(launcher))


def _ranks(launcher: Mapping[str, str]) -> Ranks | None:
    """The processes that the words ask for, by RecBole's rules.

    Raises:
        ConfigError: there cannot be so many, or not with these numbers.
    """
    given = {name: values.read_word(launcher[name]) for name in _PROCESSES if name in launcher}
    nproc, world_size, offset = given.get("nproc", 1), given.get("world_size", -1), given.get("group_offset", 0)
    if world_size <= 0:
        world_size = nproc
    if world_size == 1:
        return None
    if offset + nproc > world_size:
        raise ConfigError(
            f"world_size={world_size} is not allowed: of all processes this machine has nproc={nproc} from "
            f"group_offset={offset} on, so there are at least {offset + nproc}"
        )
    elsewhere = nproc < world_size  # the others have to know where
    ip, port = str(launcher.get("ip", "localhost")), given.get("port", _PORT if elsewhere else 0)
    return Ranks(nproc, world_size, offset, ip, port)


def _files(launcher: dict[str, str]) -> list[str]:
    """The config files, under the one name that RecBole's launcher has for them."""
    given = {name: launcher.pop(name) for name in _FILES if name in launcher}
    if len(given) > 1:
        raise ConfigError(f"--{' and --'.join(_FILES)} are given, which mean the same: keep one of them")
    for text in given.values():
        listed = values.read_word(text)
        files = [str(file) for file in listed] if isinstance(listed, (list, tuple)) else text.split()
        launcher["config_files"] = " ".join(files)
        return files
    return []


def _check(said: Mapping[str, str], in_files: Mapping[str, Any]) -> None:
    """Refuse what needs neither RecBole nor the data to be seen."""
    for name in {**in_files, **said}:
        names.check_setting(str(name), said["model"])
    names.check_model(said["model"])
    names.check_dataset(said["dataset"], {**in_files, **said})
    for name in said.keys() & schema.known_keys().keys():
        schema.check(name, said[name])
    literal = {name: values.read_word(text) for name, text in said.items() if name not in schema.known_keys()}
    # what is neither a literal nor a name, RecBole will evaluate; what it takes as text, it leaves alone
    clear = {
        name: said[name] if values.is_text(name) and value is not None else value
        for name, value in literal.items()
        if not isinstance(value, str) or value.isidentifier()
    }
    values.check_values(clear, clear, said["model"])
    if "metrics" in clear:
        evaluation.check_metrics(clear["metrics"])
    if "topk" in clear:
        evaluation.check_topk(clear["topk"])
    if "valid_metric" in said:
        evaluation.check_valid_metric(said["valid_metric"])


def settings_in(words: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """The settings among words, by RecBole's rule: ``--key=value`` with one ``=``; and ``--verbose`` alone.

    Returns:
        text by key, and the words that are no settings.

    Raises:
        ConfigError: a key is given twice with different values, or a word that is no setting names a key of ours.
    """
    found: dict[str, str] = {}
    others = []
    for place, text in enumerate(words):
        word = "--verbose=True" if text == "--verbose" else text
        name, _, value = word[2:].partition("=")
        if not word.startswith("--") or word.count("=") != 1:
            if _meant(word) in schema.known_keys():
                _refuse(word, words[place + 1 :])
            _check_spelling(word)
            others.append(word)
        else:
            _keep(found, name, value)
    return found, others


def _keep(found: dict[str, str], name: str, value: str) -> None:
    if found.setdefault(name, value) != value:
        raise ConfigError(f"--{name} is given twice, as {found[name]} and as {value}: which one is meant?")


def _meant(word: str) -> str:
    """The setting that a word names that is no ``--key=value``, "" where it looks like none."""
    return word.lstrip("-").partition("=")[0] if word.startswith("-") or "=" in word else ""


def _check_spelling(word: str) -> None:
    """Refuse a word that RecBole would skip although it nearly names one of our keys."""
    name = _meant(word)
    if name and not host.is_known_setting(name) and (schema.in_name_space(name) or schema.suggest(name)):
        raise ConfigError(schema.unknown_key(name))


def _refuse(word: str, followers: Sequence[str]) -> NoReturn:
    """Refuse a word that RecBole would skip, with the way to write what it was meant for."""
    name = _meant(word)
    value = word.partition("=")[2]
    if name in schema.known_keys() or host.is_known_setting(name):
        if "=" in value and word.startswith("--"):
            raise ConfigError(f"{word} cannot be read: RecBole's command line takes no value with '=' in it")
        key = schema.known_keys().get(name)
        example = "True" if key is not None and key.type == "bool" else "VALUE"
        meant = next((each for each in followers[:1] if not each.startswith("-")), "")
        raise ConfigError(f"{word} cannot be read: write --{name}={value or meant or example}")
    if name:
        names.check_setting(name, None)
    raise ConfigError(f"{word} is no setting: write --key=value")
