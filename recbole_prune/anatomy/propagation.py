"""Models whose propagation is a mean of layers, which needs no layer to be kept."""

from __future__ import annotations

from typing import Any

import torch

from recbole_prune.sparse.propagation import FixedMatrix


class _LightGCN:
    """LightGCN whose layers are averaged as they come, not stacked first."""

    def forward(self: Any) -> Any:
        ego = self.get_ego_embeddings()
        matrix = self.norm_adj_matrix
        if type(matrix) is not FixedMatrix or not matrix.can_multiply(ego):
            return super().forward()  # type: ignore[misc]
        return torch.split(matrix.mean_of_layers(ego, self.n_layers), [self.n_users, self.n_items])


class _SGL:
    """SGL likewise, for graphs that are the same in every layer (all but its random walks in training)."""

    def forward(self: Any, graph: Any) -> Any:
        ego = torch.cat([self.user_embedding.weight, self.item_embedding.weight])
        if type(graph) is not FixedMatrix or not graph.can_multiply(ego):
            return super().forward(graph)  # type: ignore[misc]
        return torch.split(graph.mean_of_layers(ego, self.n_layers), [self.n_users, self.n_items], dim=0)


_FORWARDS = {
    "recbole.model.general_recommender.lightgcn": _LightGCN,
    "recbole.model.general_recommender.sgl": _SGL,
}


def faster_forward(model_class: type) -> tuple[type, ...]:
    """The class to put before ``model_class`` in a subclass of it, or nothing: a ``forward`` equal up to rounding.

    Only for models whose ``forward`` is RecBole's own, not overridden.
    """
    mixin = _FORWARDS.get(getattr(model_class.forward, "__module__", ""))  # type: ignore[attr-defined]
    return () if mixin is None else (mixin,)
