"""The unit groups of models with a transformer (methods/attention_distillation_pruning.md, 7.0 and 7.2).

Heads, head dimensions and feed-forward neurons can be taken out. The width that layers hand on to each other cannot:
every layer ends with a LayerNorm (rule R3).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from recbole_prune.anatomy.units.blocks import (
    LAYER_NORM,
    Setting,
    equal,
    field_tables,
    inputs,
    left,
    normalisation,
    one_width,
    outputs,
    product,
    width,
)
from recbole_prune.anatomy.units.groups import Along, Anatomy, Counts, Finder, UnitGroup
from recbole_prune.anatomy.units.session_graphs import session_graph

if TYPE_CHECKING:
    from recbole.model.abstract_recommender import AbstractRecommender


@dataclass(frozen=True)
class _Parts:
    """How the layers of an encoder call what they consist of.

    Attributes:
        attention: the attention in a layer.
        projections: its linear layers, of which the rows lie in heads.
        pools: its parameters ``[all heads, n]`` that pool over a sequence.
        own_scale: linear layers of queries that are divided by the root of the size of a head as it is (rule R4);
            without, the attention keeps the root of its first size.
        across: why heads and their dimensions cannot be taken out; "" where they can.
    """

    attention: str = "multi_head_attention"
    projections: tuple[str, ...] = ("query", "key", "value")
    pools: tuple[str, ...] = ()
    own_scale: tuple[str, ...] = ()
    across: str = ""


_PLAIN = _Parts()
_LIGHT = _Parts(
    projections=("query", "key", "value", "pos_q_linear", "pos_k_linear"),
    pools=("attpooling_key.theta", "attpooling_value.theta"),
    own_scale=("query", "pos_q_linear"),
)
_FREQUENCIES = _Parts(
    "hybrid_attention",
    ("query_layer", "key_layer", "value_layer"),
    across="its attention weights are means over all heads and their dimensions, those at 0 included",
)


def _transformer(
    model: AbstractRecommender, path: str, parts: _Parts = _PLAIN
) -> tuple[list[UnitGroup], dict[str, Setting]]:
    """Heads, head dimensions and feed-forward neurons of an encoder, and sizes to set."""
    groups: list[UnitGroup] = []
    sizes: dict[str, Setting] = {}
    for layer in _layers(model, path):
        attention, feed = f"{layer}.{parts.attention}", f"{layer}.feed_forward.dense_1"
        module = model.get_submodule(attention)
        heads, size = module.num_attention_heads, module.attention_head_size
        places = [place for name in parts.projections for place in outputs(model, f"{attention}.{name}")]
        places += [*(Along(f"{attention}.{name}") for name in parts.pools), inputs(f"{attention}.dense")]
        whole = [Along(place.tensor, place.axis, block=size) for place in places]
        single = [Along(place.tensor, place.axis, repeats=heads, period=size) for place in places]
        names = f"{attention}.heads", f"{attention}.head_dimensions"
        queries = [place.tensor for name in parts.own_scale for place in outputs(model, f"{attention}.{name}")]
        scaled = dict.fromkeys(queries, math.sqrt)
        groups.append(UnitGroup(names[0], "head", heads, tuple(whole), inexact=parts.across))
        groups.append(UnitGroup(names[1], "head_dimension", size, tuple(single), inexact=parts.across, scaled=scaled))
        sizes[f"{attention}.num_attention_heads"] = left(names[0])
        sizes[f"{attention}.attention_head_size"] = left(names[1])
        sizes[f"{attention}.all_head_size"] = product(*names)
        inner = (*outputs(model, feed), inputs(f"{layer}.feed_forward.dense_2"))
        groups.append(UnitGroup(feed, "neuron", model.get_submodule(feed).out_features, inner))
    return groups, sizes


def _layers(model: AbstractRecommender, path: str) -> list[str]:
    return [f"{path}.layer.{number}" for number in range(len(model.get_submodule(f"{path}.layer")))]


def _stream(model: AbstractRecommender, path: str, parts: _Parts = _PLAIN) -> list[Along]:
    """The width that goes through all layers of an encoder: what reads it, adds to it and normalises it."""
    places: list[Along] = []
    for layer in _layers(model, path):
        attention, feed = f"{layer}.{parts.attention}", f"{layer}.feed_forward"
        places += [inputs(f"{attention}.{name}") for name in parts.projections]
        places += [*outputs(model, f"{attention}.dense"), *normalisation(model, f"{attention}.LayerNorm")]
        if parts is _LIGHT:
            places += normalisation(model, f"{attention}.pos_ln")
        places += [inputs(f"{feed}.dense_1"), *outputs(model, f"{feed}.dense_2")]
        places += normalisation(model, f"{feed}.LayerNorm")
    return places


def _hidden(count: int, places: Sequence[Along]) -> UnitGroup:
    return UnitGroup("hidden", "hidden", count, tuple(places), inexact=LAYER_NORM)


def _columns(*tables: str) -> list[Along]:
    return [Along(f"{table}.weight", 1) for table in tables]


def _found(groups: Sequence[UnitGroup], sizes: Mapping[str, Setting]) -> Anatomy:
    """With the class of fewer feed-forward neurons; its settings tie heads and all else to the width."""
    inner = [group.name for group in groups if group.name.endswith(".feed_forward.dense_1")]

    def smaller(counts: Counts) -> dict[str, object] | None:
        size = equal(counts, inner)
        whole = all(counts[group.name] == group.count for group in groups if group.name not in inner)
        return {"inner_size": size} if whole and size is not None else None

    return Anatomy(groups, sizes, smaller)


def _sequence(path: str = "trm_encoder", parts: _Parts = _PLAIN) -> Finder:
    """Vectors of items and positions, one encoder, and the items again."""

    def find(model: AbstractRecommender) -> Anatomy:
        groups, sizes = _transformer(model, path, parts)
        places = [*_columns("item_embedding", "position_embedding"), *normalisation(model, "LayerNorm")]
        return _found([_hidden(model.hidden_size, [*places, *_stream(model, path, parts)]), *groups], sizes)

    return find


def with_hidden(model: AbstractRecommender, places: Sequence[Along], *groups: UnitGroup) -> Anatomy:
    """As :func:`_sequence`, with more that belongs to the width, and more groups."""
    found = _sequence()(model)
    hidden = _hidden(model.hidden_size, [*found["hidden"].places, *places])
    return _found([hidden, *found.groups[1:], *groups], found.attributes)


def _bert4rec(model: AbstractRecommender) -> Anatomy:
    output = [inputs("output_ffn"), *outputs(model, "output_ffn"), *normalisation(model, "output_ln")]
    return with_hidden(model, output)


def _s3rec(model: AbstractRecommender) -> Anatomy:
    """The vectors of attributes are compared with two projections, in the first stage alone."""
    norms = [inputs(f"{name}_norm") for name in ("aap", "mip", "map", "sp")]
    compared = [place for name in ("mip", "sp") for place in outputs(model, f"{name}_norm")]
    attributes = [place for name in ("aap", "map") for place in outputs(model, f"{name}_norm")]
    features = width("feature_width", model.hidden_size, *attributes, tables=("feature_embedding",))
    return with_hidden(model, [*norms, *compared], features)


def _sasrecf(model: AbstractRecommender) -> Anatomy:
    size = model.hidden_size
    fields = model.concat_layer.in_features // size - 1
    tables = field_tables(model, "feature_embed_layer")
    features = width("feature_width", size, *tables, inputs("concat_layer", start=size, repeats=fields))
    return with_hidden(model, [*outputs(model, "concat_layer"), inputs("concat_layer")], features)


def _fdsa(model: AbstractRecommender) -> Anatomy:
    paths = ("item_trm_encoder", "feature_trm_encoder")
    first = "feature_att_layer.projection.0"
    places = [*_columns("item_embedding", "position_embedding"), *field_tables(model, "feature_embed_layer")]
    places += [*normalisation(model, "LayerNorm"), inputs(first)]
    places += [*outputs(model, "concat_layer"), inputs("concat_layer", repeats=2)]
    groups: list[UnitGroup] = []
    sizes: dict[str, Setting] = {}
    for path in paths:
        own, own_sizes = _transformer(model, path)
        groups += own
        sizes.update(own_sizes)
        places += _stream(model, path)
    attention = (*outputs(model, first), inputs("feature_att_layer.projection.2"))
    groups.append(UnitGroup(first, "neuron", model.get_submodule(first).out_features, attention))
    return _found([_hidden(model.hidden_size, places), *groups], sizes)


def _core(model: AbstractRecommender) -> Anatomy:
    """The vectors of items are summed up with weights: those of an encoder, or equal ones."""
    if model.dnn_type != "trm":
        return one_width(model.embedding_size, tables=("item_embedding",))
    groups, sizes = _transformer(model, "net.trm_encoder")
    places = [*_columns("item_embedding", "net.position_embedding"), *normalisation(model, "net.LayerNorm")]
    places += [*_stream(model, "net.trm_encoder"), inputs("net.fn")]
    return _found([_hidden(model.embedding_size, places), *groups], sizes)


def _gcsan(model: AbstractRecommender) -> Anatomy:
    groups, sizes = _transformer(model, "self_attention")
    nodes, edges = session_graph(model, "gnn")
    places = [*_columns("item_embedding"), *nodes, *_stream(model, "self_attention")]
    return _found([_hidden(model.hidden_size, places), *edges, *groups], sizes)


TRANSFORMERS: Mapping[str, Finder] = {
    "SASRec": _sequence(),
    "BERT4Rec": _bert4rec,
    "S3Rec": _s3rec,
    "SASRecF": _sasrecf,
    "FDSA": _fdsa,
    "FEARec": _sequence("item_encoder", _FREQUENCIES),
    "LightSANs": _sequence(parts=_LIGHT),
    "CORE": _core,
    "GCSAN": _gcsan,
}
