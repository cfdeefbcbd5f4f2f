"""The graph of a model whose vectors are means of layers: one bit for each pair of a user and an item that was seen.

The edges are pairs that the model was trained on, so what users have seen says where they can be, and a bit whether one
is there. Their weights follow from the degrees. The vectors are computed when they are first asked for
(:mod:`recbole_prune.sparse.bipartite`), from the tables as they are stored; a few users are ranked without them. Only
numpy is needed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recbole_prune.artifact.bit_packing import bytes_of
from recbole_prune.artifact.encoding import Array, encode
from recbole_prune.artifact.fields import Fields
from recbole_prune.artifact.files import Seen
from recbole_prune.artifact.forms import StoredTensor, WholeTable
from recbole_prune.errors import ArtifactError
from recbole_prune.sparse.bipartite import Neighbours, UserScores, mean_of_layers

GRAPH = "graph"
MOST_LAYERS = 64  # every layer takes as long as the first
_SIDES = ("users", "items")

_EDGES = "edges"
_ARITHMETIC = 1e-5  # as scores of a probe may differ, too


@dataclass(frozen=True)
class StoredGraph:
    """A graph as it is stored; make it with :func:`store_graph`.

    Attributes:
        layers: how often the tables are propagated, from 1 to :data:`MOST_LAYERS`.
        tables: names of the weights of users and items that are propagated.
        vectors: names of the user and item vectors that come of it.
        edges: whether each pair of what users have seen, in its order, is an edge: uint8, bits.
        source: file and field that it was read from, for messages.
    """

    layers: int
    tables: tuple[str, str]
    vectors: tuple[str, str]
    edges: NDArray[np.uint8]
    source: str = field(default="the graph", compare=False)

    @property
    def parts(self) -> dict[str, Array]:
        """All arrays."""
        return {_EDGES: self.edges}

    @property
    def nbytes(self) -> int:
        """Bytes of all parts."""
        return self.edges.nbytes

    @property
    def format_version(self) -> int:
        """The first version of the artifact's format that has a graph."""
        return 3

    def describe(self) -> dict[str, Any]:
        """All that :meth:`from_description` needs beside the parts, as JSON; with sizes for a reader."""
        named = {side: {"table": t, "vectors": v} for side, t, v in zip(_SIDES, self.tables, self.vectors)}
        return {"layers": self.layers, **named, "edges": int(np.unpackbits(self.edges).sum()), "bytes": self.nbytes}

    @classmethod
    def from_description(
        cls,
        description: Fields,
        parts: Mapping[str, Array],
        weights: Collection[str],
        vectors: Collection[str],
        seen: Seen,
    ) -> StoredGraph:
        """Put a graph together again; nothing is computed from it yet.

        Args:
            description: what :meth:`describe` gave.
            parts: the arrays.
            weights: names of the weights of the artifact.
            vectors: names of the vectors that it stores.
            seen: what users have seen.

        Raises:
            ArtifactError: a field is malformed, or description, parts and ``seen`` contradict each other.
        """
        layers = description.whole("layers", MOST_LAYERS)
        if not layers:
            raise description.wrong("layers", f"a whole number from 1 to {MOST_LAYERS}")
        sides = [description.inner(side) for side in _SIDES]
        tables = [side.text("table", list(weights)) for side in sides]
        names = [side.text("vectors") for side in sides]
        for side, name in zip(sides, names):
            if names.count(name) > 1 or name in weights or name in vectors:
                raise side.wrong("vectors", "a name that nothing else has")
        source = f"{description.path}: {description.place}"
        edges, needed = parts.get(_EDGES), bytes_of(len(seen.indices))
        if edges is None or set(parts) != {_EDGES}:
            raise ArtifactError(f"{source} needs {_EDGES}, found {', '.join(sorted(parts)) or 'nothing'}")
        if edges.dtype != np.uint8 or edges.shape != (needed,):
            raise ArtifactError(
                f"{source}: {_EDGES} must be {needed} uint8, a bit for each of {len(seen.indices)} pairs of a user and "
                f"what was seen, but are {edges.dtype} of shape {list(edges.shape)}"
            )
        found = int(np.unpackbits(edges, count=len(seen.indices), bitorder="little").sum())
        if description.whole("edges", len(seen.indices)) != found:
            raise description.wrong("edges", f"the {found} edges that the bits say")
        if int(np.unpackbits(edges).sum()) != found:
            raise ArtifactError(f"{source}: {_EDGES} has bits behind that of the last pair")
        return cls(layers, (tables[0], tables[1]), (names[0], names[1]), edges, source)

    def propagated(self, tables: Mapping[str, StoredTensor], seen: Seen, items: int) -> dict[str, PropagatedTable]:
        """The vectors by name.

        Args:
            tables: weights by name.
            seen: what users have seen.
            items: number of items.

        Raises:
            ArtifactError: the tables are no tables of the users and items, or differ in width.
        """
        counts = len(seen.indptr) - 1, items
        users, item_table = (tables[name] for name in self.tables)
        for name, table, count, side in zip(self.tables, (users, item_table), counts, _SIDES):
            if len(table.shape) != 2 or table.rows != count or np.dtype(table.dtype).kind != "f":
                raise ArtifactError(
                    f"{self.source}.{side}.table: {name} is no table of {count} {side}: shape {list(table.shape)}, "
                    f"{table.dtype}"
                )
        if users.columns != item_table.columns:
            raise ArtifactError(
                f"{self.source}: {self.tables[0]} has {users.columns} columns, {self.tables[1]} {item_table.columns}"
            )
        propagation = _Propagation(self, users, item_table, seen)
        shapes = users.shape, item_table.shape
        return {name: PropagatedTable(shapes[side], propagation, side) for side, name in enumerate(self.vectors)}

    def neighbours(self, seen: Seen) -> Neighbours:
        """The items that are neighbours of each user."""
        there = np.unpackbits(self.edges, count=len(seen.indices), bitorder="little").astype(bool)
        before = np.concatenate([[0], np.cumsum(there)])
        return Neighbours(before[seen.indptr.astype(np.int64)], seen.indices[there].astype(np.int64))


@dataclass(frozen=True)
class _Propagation:
    """The vectors of both sides, which are computed together.

    Attributes:
        graph: the edges and how often.
        users: table of the users.
        items: table of the items.
        seen: what users have seen.
    """

    graph: StoredGraph
    users: StoredTensor
    items: StoredTensor
    seen: Seen

    @cached_property
    def vectors(self) -> tuple[Array, Array]:
        """Of users and items."""
        found = mean_of_layers(*self._parts)
        for side, table in zip(_SIDES, found):
            if not np.isfinite(table).all():
                raise ArtifactError(f"{self.graph.source}: a propagated value of the {side} is not finite")
            table.flags.writeable = False  # whoever asks gets the same
        return found

    def user_scores(self) -> UserScores:
        """What a user's vector and those of all items score, without any of them."""
        return UserScores(*self._parts)

    @property
    def _parts(self) -> tuple[Neighbours, Array, Array, int]:
        return self.graph.neighbours(self.seen), self.users.decode(), self.items.decode(), self.graph.layers


@dataclass(frozen=True)
class PropagatedTable(WholeTable):
    """The vectors of users or of items, asked for as a table that is stored.

    Attributes:
        shape: rows and columns.
        propagation: what computes them.
        side: 0 for users, 1 for items.
    """

    shape: tuple[int, ...]
    propagation: _Propagation
    side: int

    @property
    def source(self) -> str:
        """File and field of the graph, for messages."""
        return self.propagation.graph.source

    @property
    def dtype(self) -> str:
        """Numpy name of the dtype."""
        return "float32"

    @property
    def products(self) -> int:
        """Multiplications that computing both sides takes."""
        graph = self.propagation.graph
        return 2 * graph.layers * int(np.unpackbits(graph.edges).sum()) * self.columns

    @property
    def working_nbytes(self) -> int:
        """The most that computing them allocates: sums and copies in float64 of this side, and the edges."""
        return 40 * self.entries + 32 * (self.rows + len(self.propagation.seen.indices))

    def decode(self) -> Array:
        """The table."""
        return self.propagation.vectors[self.side]

    def rounding_error(self) -> Array:
        """How far another order of float32 sums moves an entry, in the table's shape: next to nothing."""
        largest = np.abs(self.decode()).max(initial=0.0)
        return np.full(self.shape, _ARITHMETIC * float(largest))

    def csr(self) -> tuple[NDArray[np.int64], NDArray[np.int64], Array]:
        """The table as compressed sparse rows, as :meth:`EncodedTensor.csr` gives others."""
        return encode(self.decode()).csr()


def scores_without_vectors(users: object, items: object) -> UserScores | None:
    """What scores a user at a time, where the vectors of users and items come of one graph; None for other tables."""
    if not (isinstance(users, PropagatedTable) and isinstance(items, PropagatedTable)):
        return None
    of_one_graph = users.propagation is items.propagation and (users.side, items.side) == (0, 1)
    return users.propagation.user_scores() if of_one_graph else None


def read_propagated(
    fields: Fields,
    arrays: dict[str, Array],
    weights: Mapping[str, StoredTensor],
    vectors: Collection[str],
    seen: Seen,
    items: int,
) -> dict[str, PropagatedTable]:
    """The vectors of an artifact that follow from a graph, by name; none where it has no graph.

    Args:
        fields: of ticket.json.
        arrays: all arrays that are stored; those of the graph are taken out.
        weights, vectors, seen: as for :meth:`StoredGraph.from_description`.
        items: number of items.

    Raises:
        ArtifactError: a field or an array is not what it must be.
    """
    if GRAPH not in fields:
        return {}
    own = [key for key in arrays if key.partition("/")[0] == GRAPH]
    parts = {key.partition("/")[2]: arrays.pop(key) for key in own}
    graph = StoredGraph.from_description(fields.inner(GRAPH), parts, weights, vectors, seen)
    return graph.propagated(weights, seen, items)


def store_graph(
    layers: int, tables: tuple[str, str], vectors: tuple[str, str], pairs: tuple[Array, Array], seen: Seen
) -> StoredGraph | None:
    """The smallest form of a graph; None where an edge is no pair that was seen.

    Args:
        layers, tables, vectors: as in :class:`StoredGraph`.
        pairs: user and item ids of the edges, each once, in any order.
        seen: what users have seen.
    """
    users, items = (np.asarray(ids, np.int64) for ids in pairs)
    if min(users.min(initial=0), items.min(initial=0)) < 0:
        return None
    step = 1 + max(int(items.max(initial=0)), int(seen.indices.max(initial=0)))
    pointers = seen.indptr.astype(np.int64)
    owner = np.repeat(np.arange(len(pointers) - 1), pointers[1:] - pointers[:-1])
    known, wanted = owner * step + seen.indices.astype(np.int64), users * step + items
    there = np.isin(known, wanted)
    if int(there.sum()) != len(wanted):
        return None
    return StoredGraph(layers, tables, vectors, np.packbits(there, bitorder="little"))
