"""The unit groups of models that pass messages between the items of a session."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from recbole_prune.anatomy.units.blocks import equal, inputs, left, outputs, width
from recbole_prune.anatomy.units.groups import Along, Anatomy, Counts, Finder, UnitGroup

if TYPE_CHECKING:
    from recbole.model.abstract_recommender import AbstractRecommender


def session_graph(model: AbstractRecommender, path: str) -> tuple[list[Along], list[UnitGroup]]:
    """What belongs to the dimensions of nodes, and the groups of messages along edges, in and out.

    The cell updates a node as a GRU does: gates of three parts, with the node for its units.
    """
    edges = []
    size = model.get_submodule(path).embedding_size
    for number, (name, bias) in enumerate((("in", "b_iah"), ("out", "b_ioh"))):
        layer = f"{path}.linear_edge_{name}"
        own = [Along(f"{path}.{bias}")] if hasattr(model.get_submodule(path), bias) else []
        places = (*outputs(model, layer), *own, Along(f"{path}.w_ih", 1, start=number * size))
        edges.append(UnitGroup(layer, "neuron", size, places))
    nodes = [Along(f"{path}.{name}", repeats=3) for name in ("w_ih", "w_hh", "b_ih", "b_hh")]
    nodes += [Along(f"{path}.w_hh", 1), *(inputs(group.name) for group in edges)]
    return nodes, edges


def _srgnn(model: AbstractRecommender) -> Anatomy:
    """The attention over a session is as wide as an item: the class views the one in the shape of the other."""
    nodes, edges = session_graph(model, "gnn")
    layers = ("linear_one", "linear_two")
    places = [*nodes, *(inputs(layer) for layer in layers)]
    places += [*outputs(model, "linear_transform"), inputs("linear_transform", repeats=2)]
    attention = [*(place for layer in layers for place in outputs(model, layer)), inputs("linear_three")]
    groups = [
        width("width", model.embedding_size, *places, tables=("item_embedding",), alike="width"),
        width("attention", model.embedding_size, *attention, alike="width"),
        *edges,
    ]

    def smaller(counts: Counts) -> dict[str, object] | None:
        size = equal(counts, [group.name for group in groups])
        return None if size is None else {"embedding_size": size}

    return Anatomy(groups, {"embedding_size": left("width")}, smaller)


SESSION_GRAPHS: Mapping[str, Finder] = {"SRGNN": _srgnn}
