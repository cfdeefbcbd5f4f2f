"""The unit groups of models that compare several projections of a state with the items."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from recbole_prune.anatomy.units.blocks import equal, inputs, left, outputs, recurrent_inputs, recurrent_units, width
from recbole_prune.anatomy.units.groups import Along, Anatomy, Counts, Finder, UnitGroup
from recbole_prune.anatomy.units.transformers import with_hidden

if TYPE_CHECKING:
    from recbole.model.abstract_recommender import AbstractRecommender


def _states(model: AbstractRecommender, size: int) -> tuple[list[Along], list[UnitGroup]]:
    """What reads the dimensions of states, and the groups that lie behind those.

    The last two projections, if they point at items of the history, are multiplied with each other alone.
    """
    projections = [f"project_arr.{number}" for number in range(model.n_facet_all)]
    readers = [*projections, *(["weight_facet_decoder"] if model.weight_mode else [])]
    states = [inputs(layer) for layer in readers]
    groups: list[UnitGroup] = []
    if model.n_facet_MLP:
        windows = model.n_facet_hidden * (model.n_facet_window + 1)
        states.append(inputs("MLP_linear", repeats=windows))
        places = (*outputs(model, "MLP_linear"), *(inputs(layer, start=size) for layer in readers))
        groups.append(UnitGroup("MLP_linear", "neuron", size * model.n_facet_MLP, places))
    if model.n_facet_emb:
        pointers = [place for layer in projections[-2:] for place in outputs(model, layer)]
        groups.append(UnitGroup("pointers", "neuron", size, tuple(pointers)))
    return states, groups


def _compared(model: AbstractRecommender) -> list[Along]:
    """What makes vectors that are compared with those of items; and a projection that nothing calls."""
    projections = [f"project_arr.{number}" for number in range(model.n_facet_all - model.n_facet_emb)]
    places = [place for layer in (*projections, "project_emb") for place in outputs(model, layer)]
    return [*places, inputs("project_emb")]


def _sasreccpr(model: AbstractRecommender) -> Anatomy:
    states, groups = _states(model, model.hidden_size)
    return with_hidden(model, [*states, *_compared(model)], *groups)


def _gru4reccpr(model: AbstractRecommender) -> Anatomy:
    """The states are no vectors of items: they have a width of their own; so have the items put out, if set so."""
    size = model.embedding_size
    units = list(recurrent_units(model, "gru_layers", [inputs("dense")]))
    states, groups = _states(model, size)
    read, compared = [recurrent_inputs("gru_layers")], _compared(model)
    if model.use_out_emb:
        items = [
            width("width", size, *read, tables=("item_embedding",)),
            width("output_width", size, *compared, tables=("out_item_embedding",)),
        ]
    else:
        items = [width("width", size, *read, *compared, tables=("item_embedding",))]
    inner = UnitGroup("dense", "neuron", size, (*outputs(model, "dense"), *states))
    widths = [*items, inner, *groups]

    def smaller(counts: Counts) -> dict[str, object] | None:
        multiples = {counts[group.name] * size // group.count for group in widths}
        hidden = equal(counts, [group.name for group in units])
        uneven = any(counts[group.name] * size % group.count for group in widths)
        if hidden is None or uneven or len(multiples) > 1:
            return None
        return {"hidden_size": hidden, "embedding_size": counts["width"]}

    sizes = {"embedding_size": left("width"), "hidden_size": left(units[0].name)}
    return Anatomy([*items, *units, inner, *groups], sizes, smaller)


FACETS: Mapping[str, Finder] = {"SASRecCPR": _sasreccpr, "GRU4RecCPR": _gru4reccpr}
