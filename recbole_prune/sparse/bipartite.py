"""The mean of layers on a graph of users and items: the vectors of all of them, or scores of one user without them.

Every layer is the product of ``D^-1/2 A D^-1/2`` with the one before; ``A`` has a 1 for every edge, ``D`` the degrees.
Source: LightGCN (He et al. 2020, arXiv:2002.02126), eq. 3 and eq. 8 with equal weights. The layers are added one by
one: none is kept, and the edges' weights, products of a factor of either end, are never made. Numpy does; numba is
quicker for much.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from recbole_prune.sparse.compiling import available, pays
from recbole_prune.sparse.inverted_lists import in_threads

Array = NDArray[Any]

# RecBole's graph models add it to degrees, so that nobody divides by 0
_EPSILON = 1e-7
_EDGES_AT_ONCE = 1 << 11
_NUMBERS_AT_ONCE = 1 << 20
_MOST_EDGES_OF_LOOPS = 1 << 31
_ROWS_AT_ONCE = 1 << 12  # in each of several threads
# what compiled loops save, by edge and column (measured, width 64)
_SECONDS_SAVED = 2e-9


class Neighbours(NamedTuple):
    """The neighbours of every node of one side, as compressed rows.

    Attributes:
        pointers: edges before each row, int64, shape ``[rows + 1]``.
        columns: nodes of the other side, shape ``[edges]``.
    """

    pointers: Array
    columns: Array

    @property
    def degrees(self) -> Array:
        """Edges of each row."""
        return np.diff(self.pointers)

    def of_columns(self, count: int) -> Neighbours:
        """The same edges by the ``count`` nodes of the other side."""
        order = np.argsort(self.columns, kind="stable")
        owner = np.repeat(np.arange(len(self.pointers) - 1), self.degrees)
        pointers = np.concatenate([[0], np.cumsum(np.bincount(self.columns, minlength=count))])
        return Neighbours(pointers, owner[order])


def factors_of(degrees: Array) -> NDArray[np.float64]:
    """What a node gives to the weight of each of its edges, shape of ``degrees``."""
    return np.asarray((degrees + _EPSILON) ** -0.5)


def mean_of_layers(items_of: Neighbours, users: Array, items: Array, layers: int) -> tuple[Array, Array]:
    """The mean of ``layers`` propagated layers and the tables themselves.

    Args:
        items_of: the items that are neighbours of each user.
        users: table of the users, shape ``[users, width]``.
        items: table of the items, shape ``[items, width]``.
        layers: number of products.

    Returns:
        vectors of users and items, float32, shapes as the tables; values that are too large for it are infinite or NaN.
    """
    sides = items_of, items_of.of_columns(len(items))
    factors = [factors_of(side.degrees)[:, None] for side in sides]
    edges = len(items_of.columns)
    saved = _SECONDS_SAVED * 2 * layers * edges * users.shape[1]
    compiled = edges < _MOST_EDGES_OF_LOOPS and pays(saved) and available()
    with np.errstate(over="ignore", invalid="ignore"):
        layer = [np.asarray(table, np.float32) for table in (users, items)]
        total = [table.astype(np.float64) for table in layer]
        for _ in range(layers):
            scaled = [(factor * table).astype(np.float32) for factor, table in zip(factors, layer)]
            for side, other in ((0, 1), (1, 0)):
                product = (_in_loops if compiled else _in_numpy)(sides[side], scaled[other])
                layer[side] = (factors[side] * product).astype(np.float32)
                total[side] += layer[side]
        vectors = [(table / (layers + 1)).astype(np.float32) for table in total]
    return vectors[0], vectors[1]


class UserScores:
    """What two tables score once they are propagated, a user at a time, in a small part of the time of all vectors.

    The mean of layers is a symmetric matrix ``M``, and the vectors of all nodes are ``M E``. So the scores of a user,
    whose row of ``M`` is ``M e``, are ``M (E (E' (M e)))``: of every product a single column is needed.

    Args:
        items_of: the items that are neighbours of each user.
        users, items, layers: as in :func:`mean_of_layers`.
    """

    def __init__(self, items_of: Neighbours, users: Array, items: Array, layers: int) -> None:
        self._tables, self._layers, degrees = (users, items), layers, items_of.degrees
        self._edges = np.repeat(np.arange(len(users)), degrees), items_of.columns
        self._factors = factors_of(degrees), factors_of(np.bincount(items_of.columns, minlength=len(items)))

    def of(self, user: int) -> NDArray[np.float64]:
        """Dot products of a user's vector with those of all items, shape ``[items]``; not finite where too large.

        They are those of :func:`mean_of_layers`, but that its vectors are rounded to float32.
        """
        users, items = self._tables
        with np.errstate(over="ignore", invalid="ignore"):
            of_users, of_items = self._mean_of_layers([np.arange(len(users)) == user, np.zeros(len(items))])
            # einsum makes no copies in float64
            vector = np.einsum("i,ij->j", of_users, users) + np.einsum("i,ij->j", of_items, items)
            return self._mean_of_layers([np.einsum("ij,j->i", table, vector) for table in self._tables])[1]

    def _mean_of_layers(self, layer: Sequence[Array]) -> list[NDArray[np.float64]]:
        """The mean of layers of a single column: a number for each user, and one for each item."""
        total = [numbers.astype(np.float64) for numbers in layer]
        layer = total
        for _ in range(self._layers):
            given = [factors * numbers for factors, numbers in zip(self._factors, layer)]
            sums = [self._sums(side, given[1 - side]) for side in (0, 1)]
            layer = [factors * numbers for factors, numbers in zip(self._factors, sums)]
            total = [before + numbers for before, numbers in zip(total, layer)]
        return [numbers / (self._layers + 1) for numbers in total]

    def _sums(self, side: int, numbers: Array) -> Array:
        """Of every node of a side, the sum of what its neighbours give."""
        return np.bincount(self._edges[side], numbers[self._edges[1 - side]], len(self._tables[side]))


def _in_numpy(side: Neighbours, table: Array) -> Array:
    """Sums of the rows of ``table`` that are neighbours, float64; some edges and some columns at a time."""
    sums = np.zeros((len(side.pointers) - 1, table.shape[1]))
    step = max(1, _NUMBERS_AT_ONCE // max(_EDGES_AT_ONCE, int(side.degrees.max(initial=0))))
    for start in range(0, table.shape[1], step):
        columns = slice(start, start + step)
        _sum_some_columns(side, table[:, columns].astype(np.float64), sums[:, columns])
    return sums


def _sum_some_columns(side: Neighbours, wide: Array, sums: Array) -> None:
    rows, pointers, first = len(side.pointers) - 1, side.pointers, 0
    while first < rows:
        reach = int(np.searchsorted(pointers, pointers[first] + _EDGES_AT_ONCE, side="right")) - 1
        last = min(max(reach, first + 1), rows)
        begin, end = pointers[first], pointers[last]
        some = first + np.flatnonzero(side.degrees[first:last])
        if len(some):
            sums[some] = np.add.reduceat(wide[side.columns[begin:end]], pointers[some] - begin, axis=0)
        first = last


def _in_loops(side: Neighbours, table: Array) -> Array:
    """The same by the compiled loop of training, float32."""
    from recbole_prune.sparse.graph_kernels import multiply

    rows, width = len(side.pointers) - 1, table.shape[1]
    number: Any = np.float32  # with a Python number all would be computed in double precision
    found, none = np.empty((rows, width), np.float32), np.empty((0, width), np.float32)
    pointers, columns = (part.astype(np.uint32) for part in side)
    weights, table = np.ones(len(columns), np.float32), np.ascontiguousarray(table)

    def work(first: int) -> None:
        last = min(rows, first + _ROWS_AT_ONCE)
        multiply(pointers, columns, weights, none, number(0), table, number(1), found, first, last)

    in_threads(work, range(0, rows, _ROWS_AT_ONCE), 0)
    return found
