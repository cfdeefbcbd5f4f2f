"""The unit groups of general models that pass vectors along the graph of users and items.

Source: methods/attention_distillation_pruning.md, 7.1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from recbole_prune.anatomy.units.blocks import equal, inputs, left, one_width, outputs, width
from recbole_prune.anatomy.units.general import USER_ITEM, of_tables
from recbole_prune.anatomy.units.groups import Along, Anatomy, Counts, Finder, UnitGroup

if TYPE_CHECKING:
    from recbole.model.abstract_recommender import AbstractRecommender


def _ngcf(model: AbstractRecommender) -> Anatomy:
    """All layers stand one after another in what is scored, so the last is one of several that can lose units."""
    layers = [f"GNNlayers.{number}" for number in range(len(model.GNNlayers))]
    makes = {layer: [place for part in _parts(layer) for place in outputs(model, part)] for layer in layers}
    reads = {layer: [inputs(part) for part in _parts(layer)] for layer in layers}
    groups = [width("width", model.embedding_size, *(reads[layers[0]] if layers else ()), tables=USER_ITEM)]
    for layer, following in zip(layers, [*layers[1:], ""]):
        count = model.get_submodule(f"{layer}.linear").out_features
        groups.append(UnitGroup(layer, "layer", count, (*makes[layer], *reads.get(following, ()))))

    def smaller(counts: Counts) -> dict[str, object]:
        return {"embedding_size": counts["width"], "hidden_size_list": [counts[layer] for layer in layers]}

    return Anatomy(groups, {}, smaller)


def _parts(layer: str) -> tuple[str, str]:
    return f"{layer}.linear", f"{layer}.interActTransform"


def _dgcf(model: AbstractRecommender) -> Anatomy:
    """Every factor has an equal part of the width (rule R6)."""
    return one_width(model.embedding_size, tables=USER_ITEM, chunks=model.n_factors)


def _gcmc(model: AbstractRecommender) -> Anatomy:
    """Users and items share their weights unless a subclass says otherwise; the decoder's forms are square."""
    encoder, decoder = model.GcEncoder, model.BiDecoder
    sides = ("u", "v") if not encoder.share_weights else ("u",)
    dense = [f"GcEncoder.dense_layer_{side}" for side in sides]
    first = [Along(f"GcEncoder.weights_{side}.0", 1) for side in sides]
    forms = [Along(f"BiDecoder.weights.{number}", axis) for number in range(decoder.num_weights) for axis in (0, 1)]
    rows = [place for layer in dense for place in outputs(model, layer)]
    count = encoder.dense_layer_u.in_features
    groups = [
        UnitGroup("convolution", "layer", count, (*first, *(inputs(layer) for layer in dense))),
        UnitGroup("width", "embedding", encoder.dense_layer_u.out_features, (*rows, *forms)),
    ]

    def smaller(counts: Counts) -> dict[str, object]:
        return {"gcn_output_dim": counts["convolution"], "embedding_size": counts["width"]}

    return Anatomy(groups, {}, smaller)


def _spectralcf(model: AbstractRecommender) -> Anatomy:
    """A layer's unit without weights is sigmoid(0) = 0.5 for users and items, which adds 0.25 to every score."""
    layers = [f"filters.{number}" for number in range(len(model.filters))]
    groups = [width("width", model.emb_dim, *(Along(layer) for layer in layers[:1]), tables=USER_ITEM)]
    for layer, following in zip(layers, [*layers[1:], ""]):
        places = [Along(layer, 1), *([Along(following)] if following else [])]
        groups.append(UnitGroup(layer, "layer", model.emb_dim, tuple(places), constant=True))

    def smaller(counts: Counts) -> dict[str, object] | None:
        size = equal(counts, ["width", *layers])
        return None if size is None else {"embedding_size": size}

    return Anatomy(groups, {"emb_dim": left("width")}, smaller)


GRAPHS: Mapping[str, Finder] = {
    "LightGCN": of_tables(*USER_ITEM, attribute="latent_dim"),
    "NCL": of_tables(*USER_ITEM, attribute="latent_dim"),
    "SGL": of_tables(*USER_ITEM, attribute="embed_dim"),
    "NGCF": _ngcf,
    "DGCF": _dgcf,
    "GCMC": _gcmc,
    "SpectralCF": _spectralcf,
}
