"""The words of a command line that RecBole would skip although they are meant for this package."""

from __future__ import annotations

from recbole_prune.config import host, schema
from recbole_prune.errors import ConfigError


def check_words(argv: list[str]) -> None:
    """Look for our keys in words that are not ``--key=value``, the only form that RecBole reads.

    Args:
        argv: the program's name and its arguments.

    Raises:
        ConfigError: such a word names one of our keys, or nearly so.
    """
    if "ipykernel_launcher" in argv[0]:
        return
    for index, word in enumerate(argv[1:], 1):
        if (word.startswith("--") and word.count("=") == 1) or not (word.startswith("-") or "=" in word):
            continue
        name, _, value = word.lstrip("-").partition("=")
        if name not in schema.known_keys():
            if schema.in_name_space(name) or (schema.suggest(name) and not host.is_known_setting(name)):
                raise ConfigError(schema.unknown_key(name))
            continue
        if "=" in value and word.startswith("--"):
            raise ConfigError(f"{word} cannot be read: RecBole's command line takes no value with '=' in it")
        follower = "".join(argv[index + 1 : index + 2])
        example = "True" if schema.known_keys()[name].type == "bool" else "VALUE"
        value = value or (follower if follower and not follower.startswith("-") else example)
        raise ConfigError(f"{word} cannot be read: write --{name}={value}")
