"""Top-k recommendations from an artifact, with numpy and safetensors only."""

from __future__ import annotations

import difflib
import operator
from collections.abc import Sequence
from functools import cached_property
from logging import getLogger

import numpy as np
from numpy.typing import NDArray

from recbole_prune.artifact import Artifact, PathLike, read_artifact
from recbole_prune.artifact.encoding import Array, EncodedTensor
from recbole_prune.artifact.fields import Fields
from recbole_prune.artifact.files import TICKET
from recbole_prune.errors import ArtifactError
from recbole_prune.sparse.compiling import available
from recbole_prune.sparse.dense_top_k import dense_top_k
from recbole_prune.sparse.inverted_lists import DENSEST_SCAN, InvertedLists, Rows, TopK

Recommendation = tuple[str, float]

# above this many tokens, only those that begin or end alike are compared for near matches, and at most so many
_MANY_TOKENS = 20_000
# so many users are found in the file of tokens sooner than a table of all tokens is made
_FEW_USERS = 1_000


def _tables_of(artifact: Artifact) -> tuple[EncodedTensor, EncodedTensor, float]:
    """The tables of users and items whose products are the scores, and the factor before them."""
    fields = Fields(artifact.info, artifact.folder / TICKET)
    if fields.values.get("serving") is None or not len(artifact.users):
        reason = artifact.info.get("serving_reason") or "use load_ticket()"
        raise ArtifactError(f"{artifact.folder} cannot recommend without RecBole: {reason}")
    serving = fields.inner("serving")
    known = [*artifact.tensors, *artifact.shared, *artifact.vectors]
    users, items = (artifact.encoded(serving.text(side, known)) for side in ("user", "item"))
    for table, count, kind in ((users, len(artifact.users), "users"), (items, len(artifact.items), "items")):
        if len(table.shape) != 2 or np.dtype(table.dtype).kind != "f":
            raise ArtifactError(f"{table.source} is no table of {kind}: shape {list(table.shape)}, {table.dtype}")
        if table.rows < count or (table is users and table.rows > count):
            raise ArtifactError(f"{table.source} has {table.rows} rows for {count} {kind}")
    if users.columns != items.columns:
        raise ArtifactError(f"{users.source} has {users.columns} columns, {items.source} has {items.columns}")
    return users, items, serving.number("scale")


def _rows_of(table: EncodedTensor) -> Rows:
    pointers, columns, values = table.csr()
    with np.errstate(over="ignore"):  # what becomes infinite is refused
        return Rows(pointers, columns.astype(np.int32), values.astype(np.float32))


class Recommender:
    """Ranks all items for users by the dot product of their vectors; make it with :meth:`from_artifact`."""

    def __init__(self, artifact: Artifact) -> None:
        self._artifact = artifact
        users, items, self._scale = _tables_of(artifact)
        count = len(artifact.items)
        self._scan: tuple[Rows, InvertedLists] | None = None
        self._tables: tuple[Array, Array] | None = None
        sparse = items.kept <= DENSEST_SCAN * items.entries
        if sparse and not available():
            # a warning is what Python shows on stderr where logging is not set up
            getLogger(__name__).warning("numba is not available (extra fast): ranking by matrix products, slower")
        if sparse and available():
            # knowledge graph models keep further entities behind the items
            own = _rows_of(items).some(np.arange(count))
            rows = _rows_of(users)
            self._refuse_overflow(rows.values, own.values, items.columns)
            self._scan = rows, InvertedLists(own, items.columns)
        else:
            self._tables = users.decode(), items.decode()[:count]
            self._refuse_overflow(*self._tables, items.columns)

    def _refuse_overflow(self, users: Array, items: Array, width: int) -> None:
        """Refuse values whose products leave the range of float32, where rankings are not defined."""
        largest = [max(float(table.max(initial=0)), -float(table.min(initial=0))) for table in (users, items)]
        score = abs(self._scale) * width * largest[0] * largest[1]
        if not score <= float(np.finfo(np.float32).max):
            raise ArtifactError(
                f"{self._artifact.folder} cannot be ranked: with vectors up to {largest[0]:g} and {largest[1]:g} and "
                f"serving.scale {self._scale:g} scores leave the range of float32"
            )

    @classmethod
    def from_artifact(cls, folder: PathLike) -> Recommender:
        """Read an artifact.

        Raises:
            ArtifactError: it is damaged, or its model's scores are not dot products of stored vectors.
        """
        return cls(read_artifact(folder))

    def _ids(self, users: Sequence[str]) -> dict[str, int]:
        """Internal ids of those users that are known: looked up one by one, or for many users in a table of all."""
        tokens = self._artifact.users
        if len(users) <= _FEW_USERS:
            found = {user: tokens.id_of(user) for user in users if isinstance(user, str)}
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

        Sparse tables are scanned by inverted lists where numba is installed, and stay compressed in memory; dense ones
        are multiplied. The lists are the same (:mod:`recbole_prune.sparse.inverted_lists`).

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
        if self._scan is not None:
            rows, lists = self._scan
            return lists.top_k(rows.some(users), size, pointers, items, scale=self._scale, threads=threads)
        assert self._tables is not None, "there is a scan or there are tables"
        user_table, item_table = self._tables
        return dense_top_k(user_table[users], item_table, size, pointers, items, scale=self._scale, threads=threads)

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
