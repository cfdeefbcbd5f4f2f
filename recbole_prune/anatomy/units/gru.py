"""The unit groups of models with a GRU (methods/attention_distillation_pruning.md, 7.2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from recbole_prune.anatomy.units.blocks import (
    Setting,
    equal,
    field_tables,
    inputs,
    left,
    outputs,
    recurrent_inputs,
    recurrent_units,
    width,
)
from recbole_prune.anatomy.units.groups import Along, Anatomy, Counts, Finder, UnitGroup

if TYPE_CHECKING:
    from recbole.model.abstract_recommender import AbstractRecommender


def _found(
    widths: Sequence[UnitGroup],
    units: Sequence[UnitGroup],
    hidden: Sequence[UnitGroup] = (),
    sizes: Mapping[str, Setting] | None = None,
) -> Anatomy:
    """The class has one ``embedding_size`` and one ``hidden_size``; ``hidden`` has the latter too."""

    def smaller(counts: Counts) -> dict[str, object] | None:
        size = equal(counts, [group.name for group in widths])
        inner = equal(counts, [group.name for group in (*units, *hidden)])
        return None if size is None or inner is None else {"embedding_size": size, "hidden_size": inner}

    own = {"embedding_size": left(widths[0].name), "hidden_size": left(units[0].name)}
    return Anatomy([*widths, *units, *hidden], {**own, **(sizes or {})}, smaller)


def _gru4rec(model: AbstractRecommender) -> Anatomy:
    units = list(recurrent_units(model, "gru_layers", [inputs("dense")]))
    places = (recurrent_inputs("gru_layers"), *outputs(model, "dense"))
    return _found([width("width", model.embedding_size, *places, tables=("item_embedding",))], units)


def _two_grus(model: AbstractRecommender, side: str, side_width: UnitGroup) -> Anatomy:
    """Items and something beside them, each with a GRU; one layer reads the two."""
    size = model.hidden_size
    units = [
        *recurrent_units(model, "item_gru_layers", [inputs("dense_layer")]),
        *recurrent_units(model, side, [inputs("dense_layer", start=size)]),
    ]
    places = (recurrent_inputs("item_gru_layers"), *outputs(model, "dense_layer"))
    items = width("width", model.embedding_size, *places, tables=("item_embedding",))
    return _found([items, side_width], units)


def _gru4recf(model: AbstractRecommender) -> Anatomy:
    path, size = "feature_gru_layers", model.embedding_size
    read = Along(f"{path}.weight_ih_l0", 1, repeats=model.feature_gru_layers.input_size // size)
    return _two_grus(model, path, width("feature_width", size, *field_tables(model, "feature_embed_layer"), read))


def _gru4reckg(model: AbstractRecommender) -> Anatomy:
    """Entities begin with vectors from a file, of the width that the file has."""
    path = "entity_gru_layers"
    entities = width("entity_width", model.embedding_size, recurrent_inputs(path), tables=("entity_embedding",))
    found = _two_grus(model, path, entities)

    def smaller(counts: Counts) -> dict[str, object] | None:
        settings = found.smaller_class(counts) if found.smaller_class else None
        return settings if counts["entity_width"] == entities.count else None

    return Anatomy(found.groups, found.attributes, smaller)


def _narm(model: AbstractRecommender) -> Anatomy:
    """The class spreads a mask of the size of the GRU over its attention: both are as wide as each other (rule R6)."""
    layers = ("a_1", "a_2")
    readers = [*(inputs(layer) for layer in layers), inputs("b", repeats=2)]
    units = list(recurrent_units(model, "gru", readers, alike="hidden"))
    places = (*(place for layer in layers for place in outputs(model, layer)), inputs("v_t"))
    attention = UnitGroup("attention", "recurrent", model.hidden_size, places, alike="hidden")
    items = (recurrent_inputs("gru"), *outputs(model, "b"))
    widths = [width("width", model.embedding_size, *items, tables=("item_embedding",))]
    return _found(widths, units, [attention])


def _repeatnet(model: AbstractRecommender) -> Anatomy:
    """One GRU, and three attentions over it, each of its own width."""
    choice, repeat, explore = (
        "repeat_explore_mechanism",
        "repeat_recommendation_decoder",
        "explore_recommendation_decoder",
    )
    readers = [inputs(f"{choice}.Wcre"), inputs(f"{explore}.matrix_for_explore", repeats=2)]
    attentions = []
    for path, end in ((choice, "re"), (repeat, "r"), (explore, "e")):
        layers = [f"{path}.{name}{end}" for name in "WU"]
        readers += [inputs(layer) for layer in layers]
        places = [place for layer in layers for place in outputs(model, layer)]
        attentions.append(UnitGroup(path, "neuron", model.hidden_size, (*places, inputs(f"{path}.V{end}"))))
    units = list(recurrent_units(model, "gru", readers))
    widths = [width("width", model.embedding_size, recurrent_inputs("gru"), tables=("item_matrix",))]
    sizes = {f"{path}.hidden_size": left(units[0].name) for path in (choice, repeat, explore)}
    return _found(widths, units, attentions, sizes)


def _ksr(model: AbstractRecommender) -> Anatomy:
    """Users and items meet in a width of their own; entities begin with vectors from a file."""
    size, hidden = model.embedding_size, model.hidden_size
    layers = ("dense_layer_u", "dense_layer_i")
    units = list(recurrent_units(model, "gru_layers", [inputs("dense"), inputs("dense_layer_u")]))
    reason = "the vectors of relations are no parameters: all their dimensions go on opening and closing the memory"
    entities = [*outputs(model, "dense"), *(inputs(layer, start=start) for layer, start in zip(layers, (hidden, size)))]
    widths = [
        width("width", size, recurrent_inputs("gru_layers"), inputs("dense_layer_i"), tables=("item_embedding",)),
        width("output_width", size, *(place for layer in layers for place in outputs(model, layer))),
    ]
    found = _found(widths, units)
    graph = width("entity_width", model.kg_embedding_size, *entities, tables=("entity_embedding",), inexact=reason)
    return Anatomy([*found.groups, graph], found.attributes, found.smaller_class)


RECURRENT: Mapping[str, Finder] = {
    "GRU4Rec": _gru4rec,
    "GRU4RecF": _gru4recf,
    "GRU4RecKG": _gru4reckg,
    "NARM": _narm,
    "RepeatNet": _repeatnet,
    "KSR": _ksr,
}
