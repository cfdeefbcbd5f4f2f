"""Top-k recommendations from an artifact, with numpy and safetensors only."""

from __future__ import annotations

import argparse
import difflib
import json
import operator
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recbole_prune.artifact import Artifact, PathLike, read_artifact
from recbole_prune.artifact.encoding import Array
from recbole_prune.errors import ArtifactError

Recommendation = tuple[str, float]

_USERS_AT_ONCE = 256
_ITEMS_AT_ONCE = 8192
# above this many tokens, only those that begin or end alike are compared for near matches
_MANY_TOKENS = 20_000


def score_users(
    user_vectors: Array, item_vectors: Array, start: int, stop: int, scale: float = 1.0
) -> NDArray[np.float32]:
    """Scores of some users for the items ``start`` to ``stop - 1``.

    Products are added in float64 and rounded once, so that equal rows score equally wherever they stand in a block.

    Args:
        user_vectors: shape ``[users, width]``.
        item_vectors: the whole item table, shape ``[items, width]``.
        scale: constant factor of the scores.

    Returns:
        float32, shape ``[users, stop - start]``.
    """
    block = item_vectors[start:stop].astype(np.float64)
    scores = (scale * user_vectors.astype(np.float64)) @ block.T
    return np.asarray(scores.astype(np.float32))


@dataclass
class _Best:
    """The best items of one user among the blocks so far: score descending, then internal id ascending."""

    size: int
    scores: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    items: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))

    def add(self, scores: NDArray[np.float32], first: int) -> None:
        """Take in the scores of the items from ``first`` on, which must follow all items so far."""
        full = self.items.size == self.size
        # an equal score loses against an earlier item, so "greater" is enough once there are enough
        wanted = np.flatnonzero(scores > (self.scores[-1] if full else np.float32(-np.inf)))
        if wanted.size > self.size:
            least = np.partition(scores[wanted], wanted.size - self.size)[wanted.size - self.size]
            wanted = wanted[scores[wanted] >= least]
        both = np.concatenate([self.scores, scores[wanted]])
        order = np.argsort(-both, kind="stable")[: self.size]
        self.items = np.concatenate([self.items, first + wanted])[order]
        self.scores = both[order]


class Recommender:
    """Ranks all items for users by the dot product of their vectors; make it with :meth:`from_artifact`."""

    def __init__(self, artifact: Artifact) -> None:
        serving = artifact.info.get("serving")
        if not serving:
            reason = artifact.info.get("serving_reason") or "use load_ticket()"
            raise ArtifactError(f"{artifact.folder} cannot recommend without RecBole: {reason}")
        self._artifact = artifact
        self._scale = float(serving["scale"])
        self._user_vectors = artifact.tensor(serving["user"])
        # knowledge graph models keep further entities behind the items
        self._item_vectors = artifact.tensor(serving["item"])[: len(artifact.items)]
        if len(self._user_vectors) != len(artifact.users) or len(self._item_vectors) != len(artifact.items):
            raise ArtifactError(f"{artifact.folder} contradicts itself: tokens and vectors differ in number")

    @classmethod
    def from_artifact(cls, folder: PathLike) -> Recommender:
        """Read an artifact.

        Raises:
            ArtifactError: it is damaged, or its model's scores are not dot products of stored vectors.
        """
        return cls(read_artifact(folder))

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {token: number for number, token in enumerate(self._artifact.users) if number > 0}

    def recommend(self, users: Sequence[str], k: int = 10, exclude_seen: bool = True) -> list[list[Recommendation]]:
        """The k best items of each user.

        Args:
            users: the user's own tokens.
            k: length of a list, from 1 to the number of items.
            exclude_seen: leave out what a user has consumed; a list is shorter where fewer than k items are left.

        Returns:
            for each user, in order, ``(item token, score)`` from the best on; equal scores by internal id.

        Raises:
            ArtifactError: a user is unknown, or k is out of range.
        """
        size = self._check_k(k)
        ids = self._internal_ids(users)
        found: list[list[Recommendation]] = []
        for start in range(0, len(ids), _USERS_AT_ONCE):
            for best in self._rank(ids[start : start + _USERS_AT_ONCE], size, exclude_seen):
                tokens = [self._artifact.items[item] for item in best.items]
                found.append(list(zip(tokens, best.scores.tolist())))
        return found

    def _rank(self, users: Sequence[int], size: int, exclude_seen: bool) -> list[_Best]:
        best = [_Best(size) for _ in users]
        vectors = self._user_vectors[np.asarray(users)]
        seen = [self._artifact.seen.of(user) if exclude_seen else np.zeros(0, np.int64) for user in users]
        for start in range(0, len(self._item_vectors), _ITEMS_AT_ONCE):
            stop = min(start + _ITEMS_AT_ONCE, len(self._item_vectors))
            scores = score_users(vectors, self._item_vectors, start, stop, self._scale)
            if start == 0:
                scores[:, 0] = -np.inf  # padding
            for row, (own, consumed) in enumerate(zip(best, seen)):
                here = consumed[np.searchsorted(consumed, start) : np.searchsorted(consumed, stop)]
                scores[row, here.astype(np.int64) - start] = -np.inf
                own.add(scores[row], start)
        return best

    def _check_k(self, k: int) -> int:
        items = len(self._artifact.items) - 1
        try:
            size = operator.index(k)
        except TypeError:
            size = 0
        if isinstance(k, bool) or not 1 <= size <= items:
            raise ArtifactError(
                f"k={k} is not allowed: it must be a whole number from 1 to {items}, the number of items"
            )
        return size

    def _internal_ids(self, users: Sequence[str]) -> list[int]:
        if isinstance(users, str):
            raise ArtifactError(f"users must be a list of tokens, not the text {users!r}: write [{users!r}]")
        unknown = list(dict.fromkeys(str(user) for user in users if user not in self._ids))
        if unknown:
            shown = "; ".join(self._describe_unknown(user) for user in unknown[:5])
            more = f"; and {len(unknown) - 5} more" if len(unknown) > 5 else ""
            raise ArtifactError(f"unknown user{'s' if len(unknown) > 1 else ''} {shown}{more}")
        return [self._ids[user] for user in users]

    def _describe_unknown(self, user: str) -> str:
        near = self._near(user)
        return repr(user) + (f" (did you mean {', '.join(map(repr, near))}?)" if near else "")

    def _near(self, user: str) -> list[str]:
        known = list(self._ids)
        if len(known) > _MANY_TOKENS:
            half = max(1, len(user) // 2)
            known = [
                token
                for token in known
                if abs(len(token) - len(user)) <= 1 and (token[:half] == user[:half] or token[-half:] == user[-half:])
            ]
        return difflib.get_close_matches(user, known, n=3)


def main(argv: list[str]) -> int:
    """``recbole-prune recommend``: print recommendations as a table or as JSON.

    Raises:
        ArtifactError: as :meth:`Recommender.from_artifact` and :meth:`Recommender.recommend`.
    """
    parser = argparse.ArgumentParser(prog="recbole-prune recommend", allow_abbrev=False)
    parser.add_argument("--artifact", required=True, help="folder that a run or recbole-prune export has written")
    parser.add_argument("--users", required=True, help="user tokens with commas between them")
    parser.add_argument("--k", type=int, default=10, help="items for each user (default 10)")
    parser.add_argument("--exclude_seen", choices=["True", "False"], default="True", help="leave out consumed items")
    parser.add_argument("--format", choices=["table", "json"], default="table")
    options = parser.parse_args(argv)
    users = options.users.split(",")
    lists = Recommender.from_artifact(options.artifact).recommend(users, options.k, options.exclude_seen == "True")
    text = _as_json(users, lists) if options.format == "json" else _as_table(users, lists)
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding))
    return 0


def _as_json(users: Sequence[str], lists: Sequence[Sequence[Recommendation]]) -> str:
    document: list[dict[str, Any]] = [
        {"user": user, "items": [{"item": item, "score": score} for item, score in items]}
        for user, items in zip(users, lists)
    ]
    return json.dumps(document, indent=1)


def _as_table(users: Sequence[str], lists: Sequence[Sequence[Recommendation]]) -> str:
    rows = [("user", "rank", "item", "score")]
    for user, items in zip(users, lists):
        rows += [(user, str(rank), item, f"{score:.6g}") for rank, (item, score) in enumerate(items, 1)]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), row[1].rjust(widths[1]), row[2].ljust(widths[2]), row[3].rjust(widths[3])])
        for row in rows
    )
