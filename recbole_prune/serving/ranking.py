"""Ranks items by the products of stored vectors: sparse ones, dense ones, or such as follow from a graph."""

from __future__ import annotations

from functools import cache, cached_property
from logging import getLogger
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from recbole_prune.artifact import Artifact, ServedTable
from recbole_prune.artifact.encoding import Array
from recbole_prune.artifact.fields import Fields
from recbole_prune.artifact.files import TICKET
from recbole_prune.artifact.graph import scores_without_vectors
from recbole_prune.errors import ArtifactError
from recbole_prune.sparse.bipartite import UserScores
from recbole_prune.sparse.compiling import available, pays
from recbole_prune.sparse.dense_top_k import DenseItems, best_of_scores
from recbole_prune.sparse.inverted_lists import DENSEST_SCAN, InvertedLists, Rows, TopK

# what a scan saves against filling in a sparse table and against a user's matrix product, by entry of the item table
_SECONDS_TO_FILL = 1e-8
_SECONDS_TO_MULTIPLY = 3e-10
# as many users are scored from a graph sooner than all vectors are computed, by coordinate of the vectors
_USERS_WITHOUT_VECTORS = 0.25


class Ranking(Protocol):
    """Finds the best items of users."""

    def top_k(self, users: NDArray[np.int64], k: int, seen_pointers: Array, seen_items: Array, threads: int) -> TopK:
        """The k best items by internal ids.

        Args:
            users: internal ids, shape ``[users]``.
            k: length of a list.
            seen_pointers: shape ``[users + 1]``, into ``seen_items``: ids that are left out, ascending for a user.
            threads: for all but matrix products; 0: all usable cores.
        """


class _SparseTables:
    """Tables of which little is left, compressed as they are.

    For many users they are scanned by inverted lists where numba is installed, and stay compressed in memory; for a few
    the item table is filled in and multiplied, which takes numpy alone. The lists are the same
    (:mod:`recbole_prune.sparse.inverted_lists`).
    """

    def __init__(self, users: Rows, items: Rows, width: int, scale: float) -> None:
        self._users, self._items, self._width, self._scale = users, items, width, scale

    @cached_property
    def _lists(self) -> InvertedLists:
        return InvertedLists(self._items, self._width)

    @cached_property
    def _item_table(self) -> DenseItems:
        return DenseItems(self._items.dense(self._width))

    def _scan_pays(self, users: int) -> bool:
        """Whether scanning takes less time, the loading of compiled loops included."""
        entries = (len(self._items.pointers) - 1) * self._width
        filling = 0.0 if "_item_table" in vars(self) else _SECONDS_TO_FILL * entries
        if not pays(filling + _SECONDS_TO_MULTIPLY * entries * users):
            return False
        if not available():
            _say_slower()
        return available()

    def top_k(self, users: NDArray[np.int64], k: int, seen_pointers: Array, seen_items: Array, threads: int) -> TopK:
        rows = self._users.some(users)
        if self._scan_pays(len(users)):
            vars(self).pop("_item_table", None)  # from now on it would only take memory
            return self._lists.top_k(rows, k, seen_pointers, seen_items, scale=self._scale, threads=threads)
        vectors = rows.dense(self._width)
        return self._item_table.top_k(vectors, k, seen_pointers, seen_items, scale=self._scale, threads=threads)


class _DenseTables:
    """Vectors of all users and items, which are searched (:class:`recbole_prune.sparse.dense_top_k.DenseItems`)."""

    def __init__(self, users: Array, items: Array, scale: float) -> None:
        self._users, self._items, self._scale = users, DenseItems(items), scale

    def top_k(self, users: NDArray[np.int64], k: int, seen_pointers: Array, seen_items: Array, threads: int) -> TopK:
        vectors = self._users[users]
        return self._items.top_k(vectors, k, seen_pointers, seen_items, scale=self._scale, threads=threads)


class _Graph:
    """Vectors that follow from a graph: a few users are ranked without them; for more they are computed, and kept.

    The lists are the same but for scores that the rounding of vectors to float32 brings into another order.
    """

    def __init__(
        self, scores: UserScores, users: ServedTable, items: ServedTable, artifact: Artifact, scale: float
    ) -> None:
        self._scores: UserScores | None = scores
        self._tables, self._artifact, self._scale = (users, items), artifact, scale
        self._ranked = 0

    @cached_property
    def _vectors(self) -> _DenseTables:
        self._scores = None  # from now on it would only take memory
        return _dense(*self._tables, self._artifact, self._scale)

    def top_k(self, users: NDArray[np.int64], k: int, seen_pointers: Array, seen_items: Array, threads: int) -> TopK:
        self._ranked += len(users)
        if self._scores is None or self._ranked > _USERS_WITHOUT_VECTORS * self._tables[0].columns:
            return self._vectors.top_k(users, k, seen_pointers, seen_items, threads)
        found = TopK.empty(len(users), k)
        for row, user in enumerate(users.tolist()):
            with np.errstate(over="ignore", invalid="ignore"):
                scores = self._scale * self._scores.of(user)[: len(self._artifact.items)]
            if not np.abs(scores).max() <= np.finfo(np.float32).max:
                raise _beyond_float32(self._artifact, f"those of user {self._artifact.users[user]!r}")
            best = best_of_scores(scores, k, seen_items[seen_pointers[row] : seen_pointers[row + 1]])
            found.items[row], found.scores[row], found.tied[row] = best.items[0], best.scores[0], best.tied[0]
        return found


def ranking_of(artifact: Artifact) -> Ranking:
    """What ranks the items of an artifact.

    Raises:
        ArtifactError: it holds no vectors whose dot products are the scores, and no graph for them; or scores leave the
            range of float32.
    """
    users, items, scale = _tables_of(artifact)
    if items.kept <= DENSEST_SCAN * items.entries:
        # knowledge graph models keep further entities behind the items
        rows, item_rows = _rows_of(users), _rows_of(items).some(np.arange(len(artifact.items)))
        _refuse_overflow(artifact, rows.values, item_rows.values, items.columns, scale)
        return _SparseTables(rows, item_rows, items.columns, scale)
    scores = scores_without_vectors(users, items)
    return _dense(users, items, artifact, scale) if scores is None else _Graph(scores, users, items, artifact, scale)


def _dense(users: ServedTable, items: ServedTable, artifact: Artifact, scale: float) -> _DenseTables:
    vectors, table = users.decode(), items.decode()[: len(artifact.items)]
    _refuse_overflow(artifact, vectors, table, items.columns, scale)
    return _DenseTables(vectors, table, scale)


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


def _refuse_overflow(artifact: Artifact, users: Array, items: Array, width: int, scale: float) -> None:
    """Refuse values whose products leave the range of float32, where rankings are not defined."""
    largest = [max(float(table.max(initial=0)), -float(table.min(initial=0))) for table in (users, items)]
    if not abs(scale) * width * largest[0] * largest[1] <= float(np.finfo(np.float32).max):
        raise _beyond_float32(
            artifact, f"with vectors up to {largest[0]:g} and {largest[1]:g} and serving.scale {scale:g} scores"
        )


def _beyond_float32(artifact: Artifact, scores: str) -> ArtifactError:
    return ArtifactError(f"{artifact.folder} cannot be ranked: {scores} leave the range of float32")


@cache
def _say_slower() -> None:
    # a warning is what Python shows on stderr where logging is not set up
    getLogger(__name__).warning("numba is not available (extra fast): ranking by matrix products, slower")
