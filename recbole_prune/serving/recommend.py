"""Top-k recommendations from an artifact, with numpy and safetensors only."""

from __future__ import annotations

import difflib
import operator
from collections.abc import Sequence
from functools import cache, cached_property
from logging import getLogger

import numpy as np
from numpy.typing import NDArray

from recbole_prune.artifact import Artifact, PathLike, ServedTable, read_artifact
from recbole_prune.artifact.encoding import Array
from recbole_prune.artifact.fields import Fields
from recbole_prune.artifact.files import TICKET
from recbole_prune.errors import ArtifactError
from recbole_prune.sparse.compiling import available, pays
from recbole_prune.sparse.dense_top_k import DenseItems
from recbole_prune.sparse.inverted_lists import DENSEST_SCAN, InvertedLists, Rows, TopK

Recommendation = tuple[str, float]

# above this many tokens, only those that begin or end alike are compared for near matches, and at most so many
_MANY_TOKENS = 20_000
# so many users are found in the file of tokens sooner than a table of all tokens is made
_FEW_USERS = 1_000
# what a scan saves against filling in a sparse table and against a user's matrix product, by entry of the item table
_SECONDS_TO_FILL = 1e-8
_SECONDS_TO_MULTIPLY = 3e-10


def _tables_of(artifact: Artifact) -> tuple[ServedTable, ServedTable, float]:
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


def _rows_of(table: ServedTable) -> Rows:
    pointers, columns, values = table.csr()
    with np.errstate(over="ignore"):  # what becomes infinite is refused
        return Rows(pointers, columns.astype(np.int32), values.astype(np.float32))


@cache
def _say_slower() -> None:
    # a warning is what Python shows on stderr where logging is not set up
    getLogger(__name__).warning("numba is not available (extra fast): ranking by matrix products, slower")


class Recommender:
    """Ranks all items for users by the dot product of their vectors; make it with :meth:`from_artifact`.

    Where an artifact holds a graph in place of vectors, they are computed once, when it is made.
    """

    def __init__(self, artifact: Artifact) -> None:
        self._artifact = artifact
        users, items, self._scale = _tables_of(artifact)
        count = len(artifact.items)
        self._width = items.columns
        self._rows: tuple[Rows, Rows] | None = None
        self._tables: tuple[Array, DenseItems] | None = None
        if items.kept <= DENSEST_SCAN * items.entries:
            # knowledge graph models keep further entities behind the items
            self._rows = _rows_of(users), _rows_of(items).some(np.arange(count))
            self._refuse_overflow(*(rows.values for rows in self._rows))
        else:
            vectors, table = users.decode(), items.decode()[:count]
            self._refuse_overflow(vectors, table)
            self._tables = vectors, DenseItems(table)

    def _refuse_overflow(self, users: Array, items: Array) -> None:
        """Refuse values whose products leave the range of float32, where rankings are not defined."""
        largest = [max(float(table.max(initial=0)), -float(table.min(initial=0))) for table in (users, items)]
        score = abs(self._scale) * self._width * largest[0] * largest[1]
        if not score <= float(np.finfo(np.float32).max):
            raise ArtifactError(
                f"{self._artifact.folder} cannot be ranked: with vectors up to {largest[0]:g} and {largest[1]:g} and "
                f"serving.scale {self._scale:g} scores leave the range of float32"
            )

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

    @cached_property
    def _lists(self) -> InvertedLists:
        assert self._rows is not None, "only sparse tables are scanned"
        return InvertedLists(self._rows[1], self._width)

    @cached_property
    def _item_table(self) -> DenseItems:
        assert self._rows is not None, "other tables are dense"
        return DenseItems(self._rows[1].dense(self._width))

    def _scan_pays(self, users: int) -> bool:
        """Whether scanning sparse tables takes less time, the loading of compiled loops included."""
        entries = len(self._artifact.items) * self._width
        filling = 0.0 if "_item_table" in vars(self) else _SECONDS_TO_FILL * entries
        if not pays(filling + _SECONDS_TO_MULTIPLY * entries * users):
            return False
        if not available():
            _say_slower()
        return available()

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

        For many users sparse tables are scanned by inverted lists where numba is installed, and stay compressed in
        memory; dense ones are searched (:class:`recbole_prune.sparse.dense_top_k.DenseItems`). For a few, vectors are
        multiplied, which takes numpy alone. The lists are the same (:mod:`recbole_prune.sparse.inverted_lists`).

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
        if self._tables is not None:
            vectors, table = self._tables[0][users], self._tables[1]
        else:
            assert self._rows is not None, "tables are sparse or dense"
            rows = self._rows[0].some(users)
            if self._scan_pays(len(users)):
                vars(self).pop("_item_table", None)  # from now on it would only take memory
                return self._lists.top_k(rows, size, pointers, items, scale=self._scale, threads=threads)
            vectors, table = rows.dense(self._width), self._item_table
        return table.top_k(vectors, size, pointers, items, scale=self._scale, threads=threads)

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
