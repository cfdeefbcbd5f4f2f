"""The unit groups of context-aware models (methods/attention_distillation_pruning.md, 7.0 and 7.3)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from recbole_prune.anatomy.units.blocks import (
    LAYER_NORM,
    equal,
    field_tables,
    inputs,
    left,
    linears,
    network,
    neurons,
    normalisation,
    one_width,
    outputs,
    width,
)
from recbole_prune.anatomy.units.field_attention import FIELD_ATTENTION
from recbole_prune.anatomy.units.groups import Along, Anatomy, Counts, Finder, UnitGroup

if TYPE_CHECKING:
    from recbole.model.abstract_recommender import AbstractRecommender


def _sizes(groups: Sequence[UnitGroup], **settings: str) -> Any:
    """The smaller class: ``mlp_hidden_size`` by the groups of its layers, other settings by the name of a group."""

    def smaller(counts: Counts) -> dict[str, object]:
        layers = {"mlp_hidden_size": [counts[group.name] for group in groups]} if groups else {}
        return {"embedding_size": counts["width"], **layers, **{key: counts[name] for key, name in settings.items()}}

    return smaller


def _tables_only(model: AbstractRecommender) -> Anatomy:
    """Vectors of fields that are multiplied with each other, dimension by dimension."""
    return one_width(model.embedding_size, *field_tables(model))


def _fwfm(model: AbstractRecommender) -> Anatomy:
    """As :func:`_tables_only`; no smaller class, as weights of pairs of fields are drawn and stand in no checkpoint."""
    return dataclasses.replace(_tables_only(model), smaller_class=None)


def _ffm(model: AbstractRecommender) -> Anatomy:
    own = [Along(name, 1) for name, _ in model.named_parameters() if name.startswith("ffm.")]
    return one_width(model.embedding_size, *field_tables(model), *own, attributes=("embedding_size", "ffm.embed_dim"))


def _afm(model: AbstractRecommender) -> Anatomy:
    places = (*field_tables(model), inputs("attlayer.w"), Along("p"))
    attention = UnitGroup(
        "attlayer", "neuron", model.attention_size, (*outputs(model, "attlayer.w"), Along("attlayer.h"))
    )
    groups = [width("width", model.embedding_size, *places), attention]
    return Anatomy(groups, {"embedding_size": left("width")}, _sizes([], attention_size="attlayer"))


def _deep(reader: str) -> Finder:
    """Tables whose vectors, one after another, a network reads; ``reader`` reads the network."""

    def find(model: AbstractRecommender) -> Anatomy:
        return _with_network(model, [], [inputs(reader)])

    return find


def _with_network(model: AbstractRecommender, places: Sequence[Along], after: Sequence[Along]) -> Anatomy:
    """As :func:`_deep`; ``places`` belong to the dimensions too, ``after`` reads the network."""
    first = inputs(linears(model, "mlp_layers")[0], repeats=model.num_feature_field)
    hidden = list(neurons(model, "mlp_layers", after))
    dimensions = width("width", model.embedding_size, *field_tables(model), first, *places)
    return Anatomy([dimensions, *hidden], {"embedding_size": left("width")}, _sizes(hidden))


def _nfm(model: AbstractRecommender) -> Anatomy:
    hidden = list(neurons(model, "mlp_layers", [inputs("predict_layer")]))
    places = (*field_tables(model), *normalisation(model, "bn"), inputs(linears(model, "mlp_layers")[0]))
    dimensions = width("width", model.embedding_size, *places)
    return Anatomy([dimensions, *hidden], {"embedding_size": left("width")}, _sizes(hidden))


def _pnn(model: AbstractRecommender) -> Anatomy:
    """The products of pairs of fields, behind the vectors in the first layer, are no dimensions."""
    kernel = [Along("outer_product.kernel", axis) for axis in (0, 2)] if model.use_outer else []
    return _with_network(model, kernel, [inputs("predict_layer")])


def _dcn(model: AbstractRecommender) -> Anatomy:
    fields = model.num_feature_field
    crossed = [
        Along(f"cross_layer_{name}.{layer}", repeats=fields) for name in "wb" for layer in range(model.cross_layer_num)
    ]
    behind = inputs("predict_layer", start=fields * model.embedding_size)
    return _with_network(model, [*crossed, inputs("predict_layer", repeats=fields)], [behind])


def _dcnv2(model: AbstractRecommender) -> Anatomy:
    fields, layers = model.num_feature_field, range(model.cross_layer_num)
    parallel = model.structure == "parallel"
    places = [Along(f"bias.{layer}", repeats=fields) for layer in layers]
    if parallel:
        places.append(inputs("predict_layer", repeats=fields))
    if model.mixed:
        places += [Along(f"cross_layer_{name}.{layer}", 1, repeats=fields) for name in "uv" for layer in layers]
        places += [inputs(f"gating.{expert}", repeats=fields) for expert in range(model.expert_num)]
    else:
        places += [Along(f"cross_layer_w.{layer}", axis, repeats=fields) for layer in layers for axis in (0, 1)]
    behind = inputs("predict_layer", start=fields * model.embedding_size if parallel else 0)
    found = _with_network(model, places, [behind])
    return _with_low_rank(model, found) if model.mixed else found


def _with_low_rank(model: AbstractRecommender, found: Anatomy) -> Anatomy:
    """The two subspaces of every cross layer, between v and c and between c and u, in all experts alike."""
    groups = []
    for layer in range(model.cross_layer_num):
        for name, axis in (("v", 2), ("u", 1)):
            path = f"cross_layer_{name}.{layer}"
            places = (Along(path, 2), Along(f"cross_layer_c.{layer}", axis))
            groups.append(UnitGroup(path, "neuron", model.low_rank, places))

    def smaller(counts: Counts) -> dict[str, object] | None:
        rank = equal(counts, [group.name for group in groups])
        settings = found.smaller_class(counts) if found.smaller_class else None
        return None if rank is None or settings is None else {**settings, "low_rank": rank}

    return Anatomy([*found.groups, *groups], found.attributes, smaller)


def _xdeepfm(model: AbstractRecommender) -> Anatomy:
    """The maps of the compressed interaction network; one that goes on is read by the next layer with every field."""
    fields, sizes = model.field_nums[0], model.cin_layer_size
    first = inputs(linears(model, "mlp_layers")[0], repeats=fields)
    reason = "every dimension adds what the biases of the convolutions make of it, also one at 0"
    dimensions = width("width", model.embedding_size, *field_tables(model), first, inexact=reason)
    hidden = list(neurons(model, "mlp_layers"))
    maps: list[UnitGroup] = []
    layers: list[list[str]] = []
    offset = 0
    for layer, size in enumerate(sizes):
        path, last = f"conv1d_list.{layer}", layer + 1 == len(sizes)
        whole = model.direct or last
        onward = [] if last else [Along(f"conv1d_list.{layer + 1}.weight", 1, block=fields)]
        half = size if whole else size // 2
        outcome = inputs("cin_linear", start=offset)
        parts = {path: (0, [*onward, outcome] if whole else onward)}
        if not whole:
            parts[f"{path}.output"] = (half, [outcome])
        for name, (start, readers) in parts.items():
            rows = [Along(f"{path}.{part}", start=start) for part in ("weight", "bias")]
            maps.append(UnitGroup(name, "channel", half, (*rows, *readers), alike="" if whole else path))
        layers.append(list(parts))
        offset += half

    def filters(counts: Counts) -> list[int]:
        return [sum(counts[name] for name in names) for names in layers]

    def smaller(counts: Counts) -> dict[str, object] | None:
        if not model.direct and filters(counts)[-1] % 2:
            return None
        return {**_sizes(hidden)(counts), "cin_layer_size": filters(counts)}

    attributes = {
        "embedding_size": left("width"),
        "cin_layer_size": filters,
        "field_nums": lambda counts: [fields, *(size if model.direct else size // 2 for size in filters(counts))],
    }
    return Anatomy([dimensions, *maps, *hidden], attributes, smaller)


def _dssm(model: AbstractRecommender) -> Anatomy:
    """Two towers, of which the last layers are compared, dimension by dimension."""
    sides = ("user_mlp_layers", "item_mlp_layers")
    fields = (model.user_feature_num, model.item_feature_num)
    makers = [network(model, side) for side in sides]
    firsts = [inputs(next(iter(made)), repeats=count) for made, count in zip(makers, fields)]
    dimensions = width("width", model.embedding_size, *field_tables(model), *firsts)
    towers = [list(neurons(model, side)) for side in sides]
    ends = [list(made)[-1] for made in makers]
    places = [place for made, end in zip(makers, ends) for place in made[end]]
    both = UnitGroup("towers", "neuron", model.get_submodule(ends[0]).out_features, tuple(places))

    def smaller(counts: Counts) -> dict[str, object] | None:
        user, item = ([counts[group.name] for group in tower] for tower in towers)
        settings = {"embedding_size": counts["width"], "mlp_hidden_size": [*user, counts["towers"]]}
        return settings if user == item else None

    return Anatomy([dimensions, *towers[0], *towers[1], both], {"embedding_size": left("width")}, smaller)


def _eulernet(model: AbstractRecommender) -> Anatomy:
    """Orders are combinations of fields; each has all dimensions, which never meet in a layer.

    A dimension at 0 is an angle of 0 and goes on as 1; what reads it is at 0.
    """
    path, size = "Euler_interaction_layers", model.embedding_size
    layers = [f"{path}.{number}" for number in range(len(model.get_submodule(path)))]
    places: list[Along] = [*field_tables(model)]
    orders: list[UnitGroup] = []
    normalised = ""
    for number, layer in enumerate(layers):
        module = model.get_submodule(layer)
        before, count = module.inter_orders.shape
        biases = [f"{layer}.bias_lam", f"{layer}.bias_theta"]
        places += [Along(bias, 1) for bias in biases]
        places += [inputs(f"{layer}.im", repeats=before)]
        places += [Along(f"{layer}.im.{part}", repeats=count) for part in ("weight", "bias")]
        places += [place for norm in ("norm_r", "norm_p") for place in normalisation(model, f"{layer}.{norm}")]
        own = [Along(f"{layer}.inter_orders", 1), *(Along(bias, 2) for bias in biases)]
        own += [Along(f"{layer}.im.{part}", block=size) for part in ("weight", "bias")]
        if number + 1 < len(layers):
            after = layers[number + 1]
            readers = [Along(f"{after}.inter_orders"), inputs(f"{after}.im", block=size)]
        else:
            readers = [inputs("reg", block=size)]
            places.append(inputs("reg", repeats=count))
        orders.append(UnitGroup(layer, "neuron", count, (*own, *readers)))
        if module.apply_norm:
            normalised = LAYER_NORM

    def smaller(counts: Counts) -> dict[str, object]:
        return {"embedding_size": counts["width"], "order_list": [counts[group.name] for group in orders]}

    attributes = {f"{layer}.feature_dim": left("width") for layer in layers}
    dimensions = width("width", size, *places, inexact=normalised)
    return Anatomy([dimensions, *orders], {"embedding_size": left("width"), **attributes}, smaller)


CONTEXT: Mapping[str, Finder] = {
    "FM": _tables_only,
    "FwFM": _fwfm,
    "FFM": _ffm,
    "AFM": _afm,
    "NFM": _nfm,
    **{name: _deep("deep_predict_layer") for name in ("DeepFM", "WideDeep")},
    "FNN": _deep("predict_layer"),
    "PNN": _pnn,
    "DCN": _dcn,
    "DCNV2": _dcnv2,
    "xDeepFM": _xdeepfm,
    "DSSM": _dssm,
    "EulerNet": _eulernet,
    **FIELD_ATTENTION,
}

# why a class has none
CONTEXT_WITHOUT_UNITS: Mapping[str, str] = {
    "LR": "it adds up one number per feature and has no vectors and no layers",
    "KD_DAGFM": "it already contains a teacher network and its own distillation",
}
