"""The unit groups of models that attend to a history with its features (DIN and DIEN in RecBole)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from recbole.model.layers import Dice

from recbole_prune.anatomy.units.blocks import (
    Setting,
    field_tables,
    gates,
    inputs,
    left,
    linears,
    neurons,
    width,
)
from recbole_prune.anatomy.units.groups import Along, Anatomy, Counts, Finder, UnitGroup

if TYPE_CHECKING:
    from recbole.model.abstract_recommender import AbstractRecommender


def _attention_fields(model: AbstractRecommender, path: str) -> int:
    """How many fields an item has: the attention reads the queries and keys, their differences and products."""
    first = model.get_submodule(linears(model, f"{path}.att_mlp_layers")[0])
    return int(first.in_features) // (4 * int(model.embedding_size))


def _attention(
    model: AbstractRecommender, path: str, fields: int
) -> tuple[list[Along], dict[str, Any], list[UnitGroup]]:
    """What belongs to the dimensions of fields, what is scaled with them, and the neurons.

    The attention divides by the root of its width, that of the smaller one (rule R4).
    """
    network = f"{path}.att_mlp_layers"
    places = [inputs(linears(model, network)[0], repeats=4 * fields)]
    scaled = {f"{path}.dense.{name}": math.sqrt for name in ("weight", "bias")}
    return places, scaled, list(neurons(model, network, [inputs(f"{path}.dense")]))


def _slopes(model: AbstractRecommender, path: str) -> dict[str, Setting]:
    """The zeros, one per neuron, that ``Dice`` keeps as a plain attribute."""
    layers = linears(model, path)
    found = [name for name, module in model.get_submodule(path).named_modules(prefix=path) if isinstance(module, Dice)]
    return {f"{name}.alpha": _zeros(layer) for name, layer in zip(found, layers)}


def _zeros(name: str) -> Setting:
    return lambda counts: torch.zeros(counts[name])


def _smaller(counts: Counts, networks: Sequence[Sequence[UnitGroup]]) -> dict[str, object] | None:
    """The class has one ``mlp_hidden_size`` for all its networks."""
    sizes = [[counts[group.name] for group in network] for network in networks]
    equals = all(size == sizes[0] for size in sizes)
    return {"embedding_size": counts["width"], "mlp_hidden_size": sizes[0]} if equals else None


def _din(model: AbstractRecommender) -> Anatomy:
    """The tables of users are looked up and not read."""
    fields, network = _attention_fields(model, "attention"), "dnn_mlp_layers"
    attended, scaled, attention = _attention(model, "attention", fields)
    hidden = list(neurons(model, network, [inputs("dnn_predict_layers")]))
    places = [*field_tables(model, "embedding_layer"), *attended]
    places.append(inputs(linears(model, network)[0], repeats=3 * fields))
    dimensions = width("width", model.embedding_size, *places, scaled=scaled)
    sizes = {"embedding_size": left("width"), "embedding_layer.embedding_size": left("width")}
    attributes = {**sizes, **_slopes(model, network)}
    return Anatomy([dimensions, *attention, *hidden], attributes, lambda counts: _smaller(counts, [hidden, attention]))


def _dien(model: AbstractRecommender) -> Anatomy:
    """Interests, the states of a GRU, are compared with items dimension by dimension: its units are theirs.

    So are those of the GRU behind it where the attention comes last (``gru_type`` GRU).
    """
    extractor, evolution, network = "interset_extractor", "interest_evolution", "dnn_mlp_layers"
    fields = _attention_fields(model, f"{evolution}.attention_layer")
    size = fields * model.embedding_size
    attended, scaled, attention = _attention(model, f"{evolution}.attention_layer", fields)
    auxiliary = list(neurons(model, f"{extractor}.auxiliary_net"))
    hidden = list(neurons(model, network, [inputs("dnn_predict_layer")]))
    first = linears(model, network)[0]
    behind = model.get_submodule(first).in_features - size
    cell = f"{evolution}.dynamic_rnn" + ("" if model.gru in ("GRU", "AIGRU") else ".rnn")
    end = "_l0" if model.gru in ("GRU", "AIGRU") else ""

    places = [*field_tables(model, "embedding_layer"), *attended, *gates(model, f"{extractor}.gru", "_l0", fields)]
    places += [
        Along(f"{path}.weight_ih{part}", 1, repeats=fields) for path, part in ((f"{extractor}.gru", "_l0"), (cell, end))
    ]
    places.append(inputs(linears(model, f"{extractor}.auxiliary_net")[0], repeats=2 * fields))
    places.append(inputs(first, start=size, repeats=behind // model.embedding_size))
    groups: list[UnitGroup] = []
    sizes: dict[str, Setting] = {}
    if model.gru == "GRU":
        places += [*gates(model, cell, end, fields), inputs(first, repeats=fields)]
    else:
        groups.append(UnitGroup(cell, "recurrent", size, (*gates(model, cell, end), inputs(first))))
        sizes = {f"{path}.hidden_size": left(cell) for path in {cell, f"{evolution}.dynamic_rnn"}}
    dimensions = width("width", model.embedding_size, *places, scaled=scaled)

    def smaller(counts: Counts) -> dict[str, object] | None:
        whole = all(counts[group.name] == fields * counts["width"] for group in groups)
        return _smaller(counts, [hidden, attention, auxiliary]) if whole else None

    attributes = {
        "embedding_size": left("width"),
        "embedding_layer.embedding_size": left("width"),
        **sizes,
        **_slopes(model, network),
    }
    return Anatomy([dimensions, *groups, *auxiliary, *attention, *hidden], attributes, smaller)


INTERESTS: Mapping[str, Finder] = {"DIN": _din, "DIEN": _dien}
