"""How the vectors are stored whose dot products are a model's scores: as weights, as they are, or as a graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from logging import getLogger
from typing import TYPE_CHECKING, Any, Union

import numpy as np
import torch
from numpy.typing import NDArray

from recbole_prune.anatomy.propagation import FixedGraph, fixed_graph_of
from recbole_prune.artifact import ServedTable
from recbole_prune.artifact.encoding import Array, EncodedTensor, encode
from recbole_prune.artifact.files import Seen
from recbole_prune.artifact.forms import StoredTensor
from recbole_prune.artifact.graph import MOST_LAYERS, PropagatedTable, StoredGraph, store_graph
from recbole_prune.errors import ArtifactError
from recbole_prune.scoring.dot_product import DotProduct, to_numpy
from recbole_prune.scoring.probe import Probe, Scores, disagreement
from recbole_prune.sparse.bipartite import Neighbours, factors_of
from recbole_prune.sparse.dense_top_k import score_users

if TYPE_CHECKING:
    from recbole.model.abstract_recommender import AbstractRecommender

AUTO = "auto"
Wanted = Union[bool, str]  # AUTO is the only text

# what a matrix may differ by from the one that is computed anew: a rounding to float32, and RecBole's of degrees
_ROUNDING = 1e-6


@dataclass(frozen=True)
class ServingForm:
    """What an artifact holds to recommend with.

    Attributes:
        dot: the tables to multiply; None where it holds none.
        reason: why it holds none.
        vectors: encoded vectors by name.
        graph: in place of vectors.
        propagated: what the graph gives, by name.
        exact: the model's own vectors by name, where vectors or a graph are stored.
        choice: what was chosen of vectors and graph, and the bytes of both; None where there was no choice.
    """

    dot: DotProduct | None
    reason: str | None = None
    vectors: Mapping[str, EncodedTensor] = field(default_factory=dict)
    graph: StoredGraph | None = None
    propagated: Mapping[str, PropagatedTable] = field(default_factory=dict)
    exact: Mapping[str, Array] = field(default_factory=dict)
    choice: Mapping[str, Any] | None = None

    @property
    def what(self) -> str:
        """In a word what is stored."""
        return "vectors" if self.graph is None else "graph"


@dataclass(frozen=True)
class Scored:
    """A model that has scored a probe with the weights of an artifact.

    Attributes:
        model: the model, whose caches are those of the scoring.
        weights: encoded, by every name in its ``state_dict``.
        probe: the rows.
        scores: what it scored.
        seen: what users have seen.
    """

    model: AbstractRecommender
    weights: Mapping[str, StoredTensor]
    probe: Probe
    scores: Scores
    seen: Seen | None

    @property
    def items(self) -> int:
        """Number of items, all of which a model scores whose scores are dot products."""
        return len(self.probe.items)


def serving_form(
    scored: Scored, dot: DotProduct | None, reason: str | None, wanted: Wanted, values: str, clip: str
) -> ServingForm:
    """Decide what is stored to recommend with, and make it.

    Args:
        scored: the model.
        dot, reason: what :func:`~recbole_prune.scoring.dot_product.find_dot_product` has found.
        wanted: whether propagated vectors are stored; :data:`AUTO`: they or the graph of a model whose vectors are a
            mean of layers, whichever takes fewer bytes.
        values, clip: how vectors are encoded.
    """
    if dot is None or dot.stored:
        return ServingForm(dot, reason)
    fixed = fixed_graph_of(scored.model)
    if wanted is False or (wanted == AUTO and fixed is None):
        return ServingForm(None, _say_not_stored(dot, True if fixed is None else AUTO))
    exact = _vectors_of(scored.model, dot, scored.items)
    if wanted == AUTO and fixed is not None:
        return _smaller_form(fixed, scored, dot, exact, values, clip)
    return ServingForm(dot, vectors=_encoded(exact, values, clip), exact=exact)


def _smaller_form(
    fixed: FixedGraph, scored: Scored, dot: DotProduct, exact: Mapping[str, Array], values: str, clip: str
) -> ServingForm:
    """The graph or the vectors, whichever takes fewer bytes."""
    choice = {"stored": "vectors", "graph_bytes": None, "vectors_bytes": 0, "reason": None}
    choice["vectors_bytes"] = size = sum(table.nbytes for table in _encoded(exact, values, "none").values())
    form = None
    try:
        graph, propagated = _graph_of(fixed, scored, dot, exact)
        choice["graph_bytes"] = graph.nbytes
        if graph.nbytes <= size:
            choice["stored"] = "graph"
            form = ServingForm(dot, graph=graph, propagated=propagated, exact=exact, choice=choice)
    except ArtifactError as error:
        choice["reason"] = f"no graph is stored: {error}"
    _log(choice)
    return form or ServingForm(dot, vectors=_encoded(exact, values, clip), exact=exact, choice=choice)


def _encoded(tables: Mapping[str, Array], values: str, clip: str) -> dict[str, EncodedTensor]:
    return {name: encode(table, values=values, clip=clip) for name, table in tables.items()}


def _say_not_stored(dot: DotProduct, wanted: Wanted) -> str:
    return (
        f"the scores are dot products of propagated vectors ({dot.user}, {dot.item}) that are not stored: "
        f"export again with --export_vectors={wanted}, or use load_ticket()"
    )


def _log(choice: Mapping[str, Any]) -> None:
    graph = f"the graph takes {choice['graph_bytes']} bytes" if choice["reason"] is None else choice["reason"]
    getLogger("recbole_prune").info(
        f"the artifact holds the {choice['stored']} to recommend with: the propagated vectors take "
        f"{choice['vectors_bytes']} bytes; {graph}"
    )


def _vectors_of(model: AbstractRecommender, dot: DotProduct, items: int) -> dict[str, Array]:
    """Propagated vectors, which are dense, by name; an entity table is cut down to its items."""
    users_table, items_table = (to_numpy(getattr(model, name)) for name in (dot.user, dot.item))
    return {dot.user: users_table, dot.item: items_table[:items]}


def scores_of(tables: Mapping[str, ServedTable], dot: DotProduct, probe: Probe) -> Scores:
    """Scores of the probe from stored tables, by the code that serves them."""
    vectors, table = tables[dot.user].decode()[probe.users], tables[dot.item].decode()
    return score_users(vectors, table, 0, len(probe.items), dot.scale).astype(np.float64)


def is_beyond_rounding(stored: EncodedTensor | PropagatedTable, exact: Array) -> bool:
    """Whether stored vectors are elsewhere than those of the model, by more than they may be rounded."""
    if stored.shape != exact.shape:
        return True
    return bool((np.abs(stored.decode().astype(np.float64) - exact) > stored.rounding_error()).any())


# ---- the graph -------------------------------------------------------------------------------------------------------


def _graph_of(
    fixed: FixedGraph, scored: Scored, dot: DotProduct, exact: Mapping[str, Array]
) -> tuple[StoredGraph, Mapping[str, PropagatedTable]]:
    """The graph in its stored form, and the vectors that are computed with it, which are the model's.

    Raises:
        ArtifactError: they are not, or there is no such form.
    """
    name, seen = type(scored.model).__name__, scored.seen
    if not 1 <= fixed.layers <= MOST_LAYERS:
        raise ArtifactError(f"{name} propagates {fixed.layers} times, and no more than {MOST_LAYERS} are read")
    if seen is None or not set(fixed.tables) <= set(scored.weights):
        raise ArtifactError(f"{name} lacks {' or '.join(fixed.tables)}, or it is not known what users have seen")
    matrix = fixed.matrix.detach().coalesce().cpu()
    pairs = _edges_of(matrix, len(seen.indptr) - 1)
    graph = store_graph(fixed.layers, fixed.tables, (dot.user, dot.item), pairs, seen)
    if graph is None:
        raise ArtifactError(f"an edge in that of {name} is no pair of a user and an item that the user has seen")
    if not _is_matrix_of(graph.neighbours(seen), scored.items, matrix):
        raise ArtifactError(f"the weights in that of {name} do not follow from degrees")
    tables = graph.propagated(scored.weights, seen, scored.items)
    wrong = any(is_beyond_rounding(table, exact[name]) for name, table in tables.items())
    if wrong or disagreement(scores_of(tables, dot, scored.probe), scored.scores):
        raise ArtifactError(f"the vectors of {name} are not means of its layers")
    return graph, tables


def _edges_of(matrix: torch.Tensor, users: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Users and items of the entries in the rows of users; the columns of items come behind those of users."""
    rows, columns = matrix.indices().numpy()
    own = rows < users
    return rows[own], columns[own] - users


def _is_matrix_of(items_of: Neighbours, items: int, matrix: torch.Tensor) -> bool:
    """Whether a matrix, coalesced, is the one that edges stand for, up to rounding."""
    users_of, users = items_of.of_columns(items), len(items_of.pointers) - 1
    if tuple(matrix.shape) != (users + items, users + items) or matrix.indices().shape[1] != 2 * len(items_of.columns):
        return False
    degrees = np.concatenate([items_of.degrees, users_of.degrees])
    rows = np.repeat(np.arange(users + items), degrees)
    columns = np.concatenate([items_of.columns + users, users_of.columns])
    factors = factors_of(degrees)
    same = np.array_equal(matrix.indices().numpy(), np.stack([rows, columns]))
    return same and np.allclose(to_numpy(matrix.values()), factors[rows] * factors[columns], rtol=_ROUNDING, atol=0.0)
