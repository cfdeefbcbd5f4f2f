"""The unit groups of knowledge-aware models (methods/attention_distillation_pruning.md, 7.4)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from recbole_prune.anatomy.units.blocks import inputs, left, linears, neurons, one_width, outputs, width
from recbole_prune.anatomy.units.general import of_tables
from recbole_prune.anatomy.units.groups import Along, Anatomy, Counts, Finder, UnitGroup

if TYPE_CHECKING:
    from recbole.model.abstract_recommender import AbstractRecommender

_USER_ENTITY = ("user_embedding", "entity_embedding")


def _projected(model: AbstractRecommender, tables: tuple[str, ...], *readers: Along) -> list[UnitGroup]:
    """The dimensions of entities and those of relations, into which a matrix per relation takes the entities."""
    size, into = model.embedding_size, model.kg_embedding_size
    rows, columns = Along("trans_w.weight", 1, block=into), Along("trans_w.weight", 1, repeats=size, period=into)
    return [
        width("width", size, rows, *readers, tables=tables),
        width("relation_width", into, columns, tables=("relation_embedding",)),
    ]


def _widths(counts: Counts) -> dict[str, object]:
    return {"embedding_size": counts["width"], "kg_embedding_size": counts["relation_width"]}


_WIDTHS = {"embedding_size": left("width"), "kg_embedding_size": left("relation_width")}


def _cke(model: AbstractRecommender) -> Anatomy:
    return Anatomy(_projected(model, ("user_embedding", "item_embedding", "entity_embedding")), _WIDTHS, _widths)


def _kgat(model: AbstractRecommender) -> Anatomy:
    """All layers stand one after another in what is scored."""
    layers = [f"aggregator_layers.{number}" for number in range(len(model.aggregator_layers))]
    parts = {layer: linears(model, layer) for layer in layers}
    repeats = 2 if model.aggregator_type == "graphsage" else 1
    reads = {layer: [inputs(part, repeats=repeats) for part in parts[layer]] for layer in layers}
    groups = _projected(model, _USER_ENTITY, *(reads[layers[0]] if layers else ()))
    for layer, following in zip(layers, [*layers[1:], ""]):
        rows = [place for part in parts[layer] for place in outputs(model, part)]
        count = model.get_submodule(layer).output_dim
        groups.append(UnitGroup(layer, "layer", count, (*rows, *reads.get(following, ()))))
    return Anatomy(groups, _WIDTHS, lambda counts: {**_widths(counts), "layers": [counts[layer] for layer in layers]})


def _neighbours(model: AbstractRecommender) -> Anatomy:
    """Layers add an entity and its neighbours; the weight of a neighbour is a mean over the width (rule R4)."""
    layers = linears(model, "linear_layers")
    repeats = 2 if model.aggregator_class == "concat" else 1
    reads = [inputs(layer, repeats=repeats) for layer in layers]
    makes = [place for layer in layers for place in outputs(model, layer)]
    scaled = {"relation_embedding.weight": float}
    tables = (*_USER_ENTITY, "relation_embedding")
    return one_width(model.embedding_size, *makes, *reads, tables=tables, scaled=scaled)


def _mcclk(model: AbstractRecommender) -> Anatomy:
    """The projections of its contrasts are as wide as the tables; they take no part in scores."""
    projections = [layer for name in ("fc1", "fc2", "fc3") for layer in linears(model, name)]
    places = [place for layer in projections for place in (*outputs(model, layer), inputs(layer))]
    return one_width(model.embedding_size, *places, tables=(*_USER_ENTITY, "gcn.relation_embedding"))


def _mkr(model: AbstractRecommender) -> Anatomy:
    """A dimension without weights is sigmoid(0) in a user and the sum of two biases in an item.

    Their product is the same for all pairs after one unit that crosses and compresses; after more it is not. Layers
    that read users and items leave the dimension out.
    """
    size, units = model.embedding_size, [f"cc_unit.cc_unit{number}" for number in range(model.L)]
    names = ("user", "item", "entity", "relation")
    pairs = ("kge_mlp", "kge_pred_mlp"), *([] if model.use_inner_product else [("rs_mlp", "rs_pred_mlp")])
    square = [layer for path in ("user_mlp", "tail_mlp") for layer in linears(model, path)]
    places = [place for layer in square for place in (*outputs(model, layer), inputs(layer))]
    places += [inputs(f"{unit}.{name}") for unit in units for name in ("fc_vv", "fc_ev", "fc_ve", "fc_ee")]
    places += outputs(model, linears(model, "kge_pred_mlp")[0])
    hidden: list[UnitGroup] = []
    for path, last in pairs:
        layers = [*linears(model, path), *linears(model, last)]
        places.append(inputs(layers[0], repeats=2))
        hidden += neurons(model, path, [inputs(layers[-1])])
    summed = model.use_inner_product and model.L > 0
    reason = "a unit that crosses and compresses gives a dimension without weights a value that differs by item"
    dimensions = width(
        "width",
        size,
        *places,
        tables=[f"{name}_embeddings_lookup" for name in names],
        inexact=reason if summed and model.L > 1 else "",
        constant=summed,
    )

    def smaller(counts: Counts) -> dict[str, object] | None:
        doubled = all(counts[group.name] == 2 * counts["width"] for group in hidden)
        return {"embedding_size": counts["width"]} if doubled else None

    attributes = {path: left("width") for path in ("embedding_size", *(f"{unit}.dim" for unit in units))}
    return Anatomy([dimensions, *hidden], attributes, smaller)


def _ripplenet(model: AbstractRecommender) -> Anatomy:
    """A matrix of the width by the width stands for each relation."""
    size, table = model.embedding_size, "relation_embedding.weight"
    matrices = (Along(table, 1, block=size), Along(table, 1, repeats=size, period=size))
    square = (*outputs(model, "transform_matrix"), inputs("transform_matrix"))
    return one_width(size, *matrices, *square, tables=("entity_embedding",))


KNOWLEDGE: Mapping[str, Finder] = {
    "CFKG": of_tables(*_USER_ENTITY, "relation_embedding"),
    "CKE": _cke,
    "KTUP": of_tables(
        *_USER_ENTITY,
        "item_embedding",
        "pref_embedding",
        "pref_norm_embedding",
        "relation_embedding",
        "relation_norm_embedding",
    ),
    "KGAT": _kgat,
    "KGCN": _neighbours,
    "KGNNLS": _neighbours,
    # KGIN's factors are no units: a softmax goes over them, so one at 0 is still a factor (rule R5)
    "KGIN": of_tables(*_USER_ENTITY, "latent_embedding", "gcn.relation_embedding"),
    "MCCLK": _mcclk,
    "MKR": _mkr,
    "RippleNet": _ripplenet,
}
