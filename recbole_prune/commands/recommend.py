"""``recbole-prune recommend``: top-k items of an artifact, on a machine without torch and RecBole."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recbole_prune.errors import ConfigError, printable
from recbole_prune.serving.recommend import Recommendation, Recommender


def main(argv: list[str]) -> int:
    """``recbole-prune recommend``: print recommendations as a table or as JSON.

    Raises:
        ConfigError: there is an empty token among the users.
        ArtifactError: as :meth:`Recommender.from_artifact` and :meth:`Recommender.recommend`.
    """
    options = _parser().parse_args(argv)
    users = read_users(options.users_file) if options.users_file else options.users.split(",")
    if "" in users:
        source = f"--users_file={options.users_file}" if options.users_file else f"--users={options.users}"
        raise ConfigError(f"recommend: {source} has an empty token: write --users=196,186, or one token a line")
    recommender = Recommender.from_artifact(options.artifact)
    lists = recommender.recommend(users, options.k, options.exclude_seen == "True", options.threads)
    text = _as_json(users, lists) if options.format == "json" else _as_table(users, lists)
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
        raise ConfigError(f"--users_file={file} cannot be read: {reason}") from error
    users = [line.rstrip("\r") for line in text.split("\n")]
    if not users[-1]:
        users.pop()
    if not users:
        raise ConfigError(f"--users_file={file} has no users: write one token a line")
    return users


def usage() -> str:
    """What the command takes."""
    return _parser().format_help().rstrip()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="recbole-prune recommend", allow_abbrev=False)
    parser.add_argument("--artifact", required=True, help="folder that a run or recbole-prune export has written")
    users = parser.add_mutually_exclusive_group(required=True)
    users.add_argument("--users", help="user tokens with commas between them")
    users.add_argument("--users_file", help="file with a user token in each line; - is standard input")
    parser.add_argument("--k", type=int, default=10, help="items for each user (default 10)")
    parser.add_argument("--exclude_seen", choices=["True", "False"], default="True", help="leave out consumed items")
    parser.add_argument(
        "--threads", type=int, default=0, help="threads for sparse tables (default 0: all usable cores)"
    )
    parser.add_argument("--format", choices=["table", "json"], default="table")
    return parser


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
