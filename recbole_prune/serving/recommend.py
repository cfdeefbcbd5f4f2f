"""Top-k recommendations from an artifact, with numpy and safetensors only."""

from __future__ import annotations

import difflib
import operator
from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from recbole_prune.artifact import Artifact, PathLike, read_artifact
from recbole_prune.errors import ArtifactError
from recbole_prune.serving.ranking import ranking_of
from recbole_prune.sparse.inverted_lists import TopK

Recommendation = tuple[str, float]

# above this many tokens, only those that begin or end alike are compared for near matches, and at most so many
_MANY_TOKENS = 20_000
# so many users are found in the file of tokens sooner than a table of all tokens is made
_FEW_USERS = 1_000


class Recommender:
    """Ranks all items for users by the dot product of their vectors; make it with :meth:`from_artifact`.

    How depends on what the artifact holds: :mod:`recbole_prune.serving.ranking`.
    """

    def __init__(self, artifact: Artifact) -> None:
        self._artifact = artifact
        self._ranking = ranking_of(artifact)

    @classmethod
    def from_artifact(cls, folder: PathLike) -> Recommender:
        """Read an artifact.

        Raises:
            ArtifactError: it is damaged, or holds no vectors whose dot products are the scores, and no graph for them.
        """
        return cls(read_artifact(folder))

    def _ids(self, users: Sequence[str]) -> dict[str, int]:
        """Internal ids of those users that are known: looked up one by one, or for many users in a table of all."""
        tokens = self._artifact.users
        if len(users) <= _FEW_USERS:
            found = {user: tokens.id_of(user) for user in users}
            return {user: number for user, number in found.items() if number is not None}
        return self._all_ids

    @cached_property
    def _all_ids(self) -> dict[str, int]:
        ids: dict[str, int] = {}
        for number, token in enumerate(self._artifact.users):
            if number > 0:
                ids.setdefault(token, number)
        return ids

    def recommend(
        self, users: Sequence[str], k: int = 10, exclude_seen: bool = True, threads: int = 0
    ) -> list[list[Recommendation]]:
        """The k best items of each user.

        Args:
            users: the user's own tokens.
            k: length of a list, from 1 to the number of items.
            exclude_seen: leave out what a user has consumed; a list is shorter where fewer than k items are left.
            threads: for all but matrix products; 0: all usable cores.

        Returns:
            for each user, in order, ``(item token, score)`` from the best on; equal scores by internal id.

        Raises:
            ArtifactError: a user is unknown, or k is out of range.
        """
        numbers = self._internal_ids(users)
        best = self.top_k(np.asarray(numbers, dtype=np.int64), k, exclude_seen, threads)
        tokens = self._artifact.items
        return [
            [(tokens[item], score) for item, score in zip(row.tolist(), scores.tolist()) if item >= 0]
            for row, scores in zip(best.items, best.scores)
        ]

    def top_k(self, users: NDArray[np.int64], k: int = 10, exclude_seen: bool = True, threads: int = 0) -> TopK:
        """The k best items by internal ids, for many users at once.

        Args:
            users: internal user ids, shape ``[users]``.
            k: length of a list, from 1 to the number of items.
            exclude_seen: leave out what a user has consumed.
            threads: for all but matrix products; 0: all usable cores.

        Raises:
            ArtifactError: a user id, k or threads is out of range.
        """
        size = self._check_k(k)
        if threads < 0:
            raise ArtifactError(f"threads={threads} is not allowed: it must be 0 (all usable cores) or more")
        if users.size and not 0 <= users.min() <= users.max() < len(self._artifact.users):
            raise ArtifactError(f"internal user ids must be from 0 to {len(self._artifact.users) - 1}")
        seen = self._artifact.seen
        starts = seen.indptr[users].astype(np.int64)
        counts = seen.indptr[users + 1].astype(np.int64) - starts if exclude_seen else np.zeros(len(users), np.int64)
        pointers = np.concatenate([[0], np.cumsum(counts)])
        items = seen.indices[np.arange(pointers[-1]) + np.repeat(starts - pointers[:-1], counts)].astype(np.int64)
        return self._ranking.top_k(users, size, pointers, items, threads)

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
        other = next((user for user in users if not isinstance(user, str)), None)
        if other is not None:
            raise ArtifactError(f"user ids are text, found {other!r} of type {type(other).__name__}: pass str(id)")
        ids = self._ids(users)
        unknown = list(dict.fromkeys(user for user in users if user not in ids))
        if unknown:
            shown = "; ".join(self._describe_unknown(user) for user in unknown[:5])
            more = f"; and {len(unknown) - 5} more" if len(unknown) > 5 else ""
            raise ArtifactError(f"unknown user{'s' if len(unknown) > 1 else ''} {shown}{more}")
        return [ids[user] for user in users]

    def _describe_unknown(self, user: str) -> str:
        near = self._near(user)
        return repr(user) + (f" (did you mean {', '.join(map(repr, near))}?)" if near else "")

    def _near(self, user: str) -> list[str]:
        tokens = self._artifact.users
        if len(tokens) <= _MANY_TOKENS:
            return difflib.get_close_matches(user, tokens[1:], n=3)
        half = max(1, len(user) // 2)
        known = tokens.alike(user[:half], user[-half:], _MANY_TOKENS)
        return difflib.get_close_matches(user, [token for token in known if abs(len(token) - len(user)) <= 1], n=3)
