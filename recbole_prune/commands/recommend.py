"""``recbole-prune recommend``: top-k items of an artifact, on a machine without torch and RecBole."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from recbole_prune.config.options import Option, describe, refuse_all, some_text, split, yes_or_no
from recbole_prune.errors import ConfigError, printable
from recbole_prune.serving.recommend import Recommendation, Recommender


def _not_negative(text: str) -> int:
    number = int(text)
    if number < 0:
        raise ValueError(text)
    return number


def _users(text: str) -> list[str]:
    users = text.split(",")
    if "" in users:
        raise ValueError(text)
    return users


def _format(text: str) -> Callable[[Sequence[str], Sequence[Sequence[Recommendation]]], str]:
    return {"table": _as_table, "json": _as_json}[text]


def main(words: Sequence[str]) -> int:
    """``recbole-prune recommend``: print recommendations as a table or as JSON.

    Raises:
        ConfigError: an option is unknown, missing or not allowed.
        ArtifactError: as :meth:`Recommender.from_artifact` and :meth:`Recommender.recommend`.
    """
    options, _ = split("recommend", _OPTIONS, words, refuse_all)
    if (options["users"] is None) == (options["users_file"] is None):
        raise ConfigError("recommend: one of --users=196,186 and --users_file=FILE is needed")
    users = options["users"] or read_users(options["users_file"])
    recommender = Recommender.from_artifact(options["artifact"])
    lists = recommender.recommend(users, options["k"], options["exclude_seen"], options["threads"])
    text = (options["format"] or _as_table)(users, lists)
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding))
    return 0


def read_users(file: str) -> list[str]:
    """User tokens, one a line of a file in UTF-8 or, for ``-``, of standard input.

    Raises:
        ConfigError: the file cannot be read, or has no line.
    """
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_bytes().decode("utf-8-sig")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is not text in UTF-8"
        raise ConfigError(f"recommend: --users_file={file} cannot be read: {reason}") from error
    users = [line.rstrip("\r") for line in text.split("\n")]
    if not users[-1]:
        users.pop()
    if not users or "" in users:
        found = "an empty token" if users else "no users"
        raise ConfigError(f"recommend: --users_file={file} has {found}: write one token a line")
    return users


def usage() -> str:
    """What the command takes."""
    lines = ["usage: recbole-prune recommend --artifact=FOLDER --users=196,186 [--k=10] [--option=value ...]", ""]
    return "\n".join([*lines, *describe(_OPTIONS, indent=2)])


def _as_json(users: Sequence[str], lists: Sequence[Sequence[Recommendation]]) -> str:
    document: list[dict[str, Any]] = [
        {"user": user, "items": [{"item": item, "score": score} for item, score in items]}
        for user, items in zip(users, lists)
    ]
    return json.dumps(document, indent=1).replace("\x7f", "\\u007f")  # JSON leaves this one control character as it is


def _as_table(users: Sequence[str], lists: Sequence[Sequence[Recommendation]]) -> str:
    rows = [("user", "rank", "item", "score")]
    for user, items in zip(users, lists):
        rows += [
            (printable(user), str(rank), printable(item), f"{score:.6g}") for rank, (item, score) in enumerate(items, 1)
        ]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), row[1].rjust(widths[1]), row[2].ljust(widths[2]), row[3].rjust(widths[3])])
        for row in rows
    )


_OPTIONS = {
    "artifact": Option(some_text, None, "a folder", "folder that a run or recbole-prune export has written", True),
    "users": Option(_users, None, "tokens, such as 196,186, none of them empty", "user tokens with commas"),
    "users_file": Option(some_text, None, "a file, or -", "file with a user token in each line; - is standard input"),
    "k": Option(int, 10, "a whole number", "items for each user"),
    "exclude_seen": Option(yes_or_no, True, "True or False", "leave out consumed items"),
    "threads": Option(_not_negative, 0, "a whole number from 0", "threads for sparse tables; 0: all usable cores"),
    "format": Option(_format, None, "table or json", "table or json; default: table"),
}
