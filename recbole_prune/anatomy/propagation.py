"""Models whose propagation is a mean of layers: no layer need be kept, and training asks for few rows of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp
import torch

from recbole_prune.anatomy.shared_calls import is_sharing
from recbole_prune.anatomy.vectors import known_class
from recbole_prune.sparse.compiling import is_shown_to_torch
from recbole_prune.sparse.propagation import FixedMatrix, plain

if TYPE_CHECKING:
    from recbole.model.abstract_recommender import AbstractRecommender

# the matrix of each class of RecBole whose vectors are the mean of its tables and layers, in evaluation
GRAPHS = {"LightGCN": "norm_adj_matrix", "NCL": "norm_adj_mat", "SGL": "train_graph"}
_LIGHTGCN, _NGCF, _SGL = (f"recbole.model.general_recommender.{name}" for name in ("lightgcn", "ngcf", "sgl"))


class _FasterLightGCN:
    """LightGCN whose layers are averaged as they come, not stacked first."""

    def forward(self: Any) -> Any:
        own = type(self).get_ego_embeddings
        ego = None if getattr(own, "__module__", "") == _LIGHTGCN else self.get_ego_embeddings()
        found = _mean_of_layers(self, self.norm_adj_matrix, ego)
        return super().forward() if found is None else found  # type: ignore[misc]


class _FasterSGL:
    """SGL likewise, for graphs that are the same in every layer (all but its random walks in training)."""

    def forward(self: Any, graph: Any) -> Any:
        found = _mean_of_layers(self, graph)
        return super().forward(graph) if found is None else found  # type: ignore[misc]


class _FasterAdjacency:
    """The matrix of LightGCN and NGCF without a dict of tuples, entry by entry: RecBole's, in the same order."""

    def get_norm_adj_mat(self: AbstractRecommender) -> torch.Tensor:
        pairs, users = self.interaction_matrix, self.n_users
        nodes = users + self.n_items
        rows = np.concatenate([pairs.row, pairs.col + users]).astype(np.int64)
        columns = np.concatenate([pairs.col + users, pairs.row]).astype(np.int64)
        _, first = np.unique(rows * nodes + columns, return_index=True)
        first.sort()  # a dict keeps the order in which its keys came first
        places = rows[first].astype(pairs.row.dtype), columns[first].astype(pairs.row.dtype)
        edges = sp.coo_matrix((np.ones(len(first), np.float32), places), (nodes, nodes))
        edges.has_canonical_format = True  # nothing is there twice, so that scipy leaves the order as it is
        edges = edges.tocsr()
        degrees = np.asarray((edges > 0).sum(axis=1)).ravel() + 1e-7
        factors = sp.diags(np.power(degrees, -0.5))
        found = sp.coo_matrix(factors @ edges @ factors)
        indices = torch.from_numpy(np.array([found.row, found.col]).astype(np.int64))
        return torch.sparse_coo_tensor(indices, torch.from_numpy(found.data.astype(np.float32)), found.shape)


# by the module of the method that they stand in for
_FASTER: dict[str, dict[str, type]] = {
    "forward": {_LIGHTGCN: _FasterLightGCN, _SGL: _FasterSGL},
    "get_norm_adj_mat": dict.fromkeys((_LIGHTGCN, _NGCF), _FasterAdjacency),
}


def _mean_of_layers(
    model: AbstractRecommender, graph: object, ego: torch.Tensor | None = None
) -> tuple[torch.Tensor, ...] | None:
    """Vectors of users and items; None where the model has to compute them itself.

    Args:
        model: with ``user_embedding``, ``item_embedding`` and ``n_layers``.
        graph: its matrix.
        ego: layer 0 of a model whose layer 0 is not its tables.
    """
    if type(graph) is not FixedMatrix:
        return None
    sizes, tables = [model.n_users, model.n_items], [model.user_embedding, model.item_embedding]
    if ego is None and _asks_for_rows(model):
        mean = graph.unfinished_mean(tables, sizes, model.n_layers)
        if mean is not None:
            return mean
    ego = torch.cat([table.weight for table in tables]) if ego is None else ego
    return torch.split(graph.mean_of_layers(ego, model.n_layers), sizes) if graph.can_multiply(ego) else None


def _asks_for_rows(model: AbstractRecommender) -> bool:
    """Whether the loss of a batch is being computed and nothing else: what else there is takes whole tables."""
    trains = model.training and torch.is_grad_enabled()
    return trains and not is_sharing(model) and not is_shown_to_torch()


def faster_parts(model_class: type) -> tuple[type, ...]:
    """The classes to put before ``model_class`` in a subclass of it, none for most: methods equal up to rounding.

    Only for methods that are RecBole's own, not overridden.
    """
    own = {name: getattr(getattr(model_class, name, None), "__module__", "") for name in _FASTER}
    return tuple(_FASTER[name][module] for name, module in own.items() if module in _FASTER[name])


@dataclass(frozen=True)
class FixedGraph:
    """What such a model propagates; whether a subclass still does so only its scores can say.

    Attributes:
        tables: names of the weights of users and of items.
        layers: how often they are propagated.
        matrix: sparse COO, users and items in rows and columns.
    """

    tables: tuple[str, str]
    layers: int
    matrix: torch.Tensor


def fixed_graph_of(model: AbstractRecommender) -> FixedGraph | None:
    """The graph of a model whose vectors are a mean of layers; None for all others."""
    known = known_class(type(model))
    matrix = None if known is None else plain(getattr(model, GRAPHS.get(known.__name__, ""), None))
    if not isinstance(matrix, torch.Tensor) or matrix.layout is not torch.sparse_coo:
        return None
    return FixedGraph(("user_embedding.weight", "item_embedding.weight"), int(model.n_layers), matrix)
