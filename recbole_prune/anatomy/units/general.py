"""The unit groups of general models that score pairs of users and items.

Source: methods/attention_distillation_pruning.md, 7.1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from recbole_prune.anatomy.units.blocks import (
    channels,
    equal,
    inputs,
    left,
    linears,
    neurons,
    one_width,
    outputs,
    width,
)
from recbole_prune.anatomy.units.groups import Along, Anatomy, Counts, Finder, UnitGroup

if TYPE_CHECKING:
    from recbole.model.abstract_recommender import AbstractRecommender

USER_ITEM = ("user_embedding", "item_embedding")


def of_tables(*tables: str, attribute: str = "embedding_size", readers: tuple[str, ...] = ()) -> Finder:
    """The dimensions of tables that a model multiplies with each other, and of layers that read the product."""

    def find(model: AbstractRecommender) -> Anatomy:
        modules = dict(model.named_modules())
        held = [table for table in tables if table in modules]
        places = [inputs(layer) for layer in readers]
        attributes = (attribute,) if attribute else ()
        return one_width(modules[held[0]].embedding_dim, *places, tables=held, attributes=attributes)

    return find


def _nais(model: AbstractRecommender) -> Anatomy:
    layer = linears(model, "mlp_layers")[0]
    first = inputs(layer, repeats=2 if model.algorithm == "concat" else 1)
    tables = ("item_src_embedding", "item_dst_embedding")
    dimensions = width("width", model.embedding_size, first, tables=tables)
    hidden = list(neurons(model, "mlp_layers", [Along("weight_layer")]))

    def smaller(counts: Counts) -> dict[str, object]:
        # the pretrained checkpoint has the large shapes
        sizes = {"embedding_size": counts["width"], "weight_size": counts[layer]}
        return {**sizes, "pretrain_path": None} if model.pretrain_path else {**sizes}

    return Anatomy([dimensions, *hidden], {"embedding_size": left("width"), "weight_size": left(layer)}, smaller)


def _neumf(model: AbstractRecommender) -> Anatomy:
    groups: list[UnitGroup] = []
    mf = model.mf_embedding_size if model.mf_train else 0
    if model.mf_train:
        halves = ("user_mf_embedding", "item_mf_embedding")
        groups.append(width("mf_width", mf, inputs("predict_layer"), tables=halves))
    layers = linears(model, "mlp_layers")
    if model.mlp_train:
        size = model.mlp_embedding_size
        for place, kind in enumerate(("user", "item")):
            columns = inputs(layers[0], start=place * size)
            groups.append(width(f"{kind}_mlp_width", size, columns, tables=(f"{kind}_mlp_embedding",)))
        groups += neurons(model, "mlp_layers", [inputs("predict_layer", start=mf)])

    def smaller(counts: Counts) -> dict[str, object] | None:
        sizes: dict[str, object] = {"mf_embedding_size": counts["mf_width"]} if model.mf_train else {}
        if model.mlp_train:
            if counts["user_mlp_width"] != counts["item_mlp_width"]:
                return None
            sizes["mlp_embedding_size"] = counts["user_mlp_width"]
            sizes["mlp_hidden_size"] = [counts[layer] for layer in layers]
        return sizes

    return Anatomy(groups, {}, smaller)


def _convncf(model: AbstractRecommender) -> Anatomy:
    """Channels; the dimensions of tables are the two axes of a map that the strides fit."""
    last = linears(model, "predict_layers")[0]
    groups = list(channels(model, "cnn_layers", [inputs(last)]))
    first = model.cnn_channels[0]

    def smaller(counts: Counts) -> dict[str, object]:
        return {"cnn_channels": [first, *(counts[group.name] for group in groups)]}

    return Anatomy(groups, {}, smaller)


def _nncf(model: AbstractRecommender) -> Anatomy:
    """The first layer reads the product of user and item, then the flattened channels of either neighbourhood."""
    size, kernels = model.ui_embedding_size, model.num_conv_kernel
    layers = linears(model, "mlp_layers")
    pooled = (model.get_submodule(layers[0]).in_features - size) // (2 * kernels)
    groups = [width("ui_width", size, inputs(layers[0]), tables=USER_ITEM)]
    sides = ("user", "item")
    for place, side in enumerate(sides):
        convolution = f"{side}_conv.0"
        table = f"{side}_neigh_embedding"
        groups.append(width(f"{side}_neigh_width", model.neigh_embedding_size, inputs(convolution), tables=(table,)))
        columns = inputs(layers[0], start=size + place * kernels * pooled, block=pooled)
        groups += channels(model, f"{side}_conv", [columns])
    groups += neurons(model, "mlp_layers", [inputs("out_layer")])

    def smaller(counts: Counts) -> dict[str, object] | None:
        neighbours = equal(counts, [f"{side}_neigh_width" for side in sides])
        convolved = equal(counts, [f"{side}_conv.0" for side in sides])
        if neighbours is None or convolved is None:
            return None
        sizes = {"ui_embedding_size": counts["ui_width"], "neigh_embedding_size": neighbours}
        return {**sizes, "num_conv_kernel": convolved, "mlp_hidden_size": [counts[layer] for layer in layers]}

    return Anatomy(groups, {}, smaller)


def _dmf(model: AbstractRecommender) -> Anatomy:
    """Two towers over rows and columns of the interactions; their last layers are multiplied with each other."""
    sides = ("user", "item")
    groups: list[UnitGroup] = []
    hidden: dict[str, list[str]] = {}
    ends: list[Along] = []
    for side in sides:
        layers = linears(model, f"{side}_fc_layers")
        bottom = f"{side}_linear"
        places = (*outputs(model, bottom), inputs(layers[0]))
        groups.append(UnitGroup(bottom, "embedding", model.get_submodule(bottom).out_features, places))
        groups += neurons(model, f"{side}_fc_layers")
        hidden[side] = layers[:-1]
        ends += outputs(model, layers[-1])
    groups.append(UnitGroup("last", "neuron", model.user_hidden_size_list[-1], tuple(ends)))

    def smaller(counts: Counts) -> dict[str, object]:
        widths = {f"{side}_embedding_size": counts[f"{side}_linear"] for side in sides}
        lists = {f"{s}_hidden_size_list": [*(counts[layer] for layer in hidden[s]), counts["last"]] for s in sides}
        return {**widths, **lists}

    return Anatomy(groups, {}, smaller)


def _simplex(model: AbstractRecommender) -> Anatomy:
    places = [*outputs(model, "UI_map"), inputs("UI_map")]
    if hasattr(model, "W_k"):
        places += [*outputs(model, "W_k.0"), inputs("W_k.0")]
    if hasattr(model, "W_q"):
        places.append(inputs("W_q"))
    return one_width(model.embedding_size, *places, tables=("user_emb", "item_emb"))


GENERAL: Mapping[str, Finder] = {
    "BPR": of_tables(*USER_ITEM),
    "LINE": of_tables(*USER_ITEM, "user_context_embedding", "item_context_embedding"),
    "UltraGCN": of_tables(*USER_ITEM, attribute=""),
    "ENMF": of_tables(*USER_ITEM, readers=("H_i",)),
    "FISM": of_tables("item_src_embedding", "item_dst_embedding"),
    "NAIS": _nais,
    "NeuMF": _neumf,
    "ConvNCF": _convncf,
    "NNCF": _nncf,
    "DMF": _dmf,
    "SimpleX": _simplex,
}

_ITEM_MATRIX = "its weights are one matrix of items by items, solved when it is built, which has no inner dimension"
_NEIGHBOURS = "it keeps similarities of neighbours, counted when it is built, and nothing with a dimension to remove"
_TREES = "it grows decision trees and is no network"
# why models have no units, by class
WITHOUT_UNITS: Mapping[str, str] = {
    "Pop": "it counts interactions and has no weights",
    "Random": "it draws its scores and has no weights",
    "ItemKNN": _NEIGHBOURS,
    "AsymKNN": _NEIGHBOURS,
    "EASE": _ITEM_MATRIX,
    "ADMMSLIM": _ITEM_MATRIX,
    "SLIMElastic": _ITEM_MATRIX,
    "NCEPLRec": "its vectors come from a decomposition when it is built and are not trained",
    "LightGBM": _TREES,
    "XGBoost": _TREES,
}
