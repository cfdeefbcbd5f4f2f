"""The unit groups of sequential models (methods/attention_distillation_pruning.md, 7.0 and 7.2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from recbole_prune.anatomy.units.blocks import LAYER_NORM, equal, inputs, left, normalisation, one_width, outputs, width
from recbole_prune.anatomy.units.facets import FACETS
from recbole_prune.anatomy.units.groups import Along, Anatomy, Counts, Finder, UnitGroup
from recbole_prune.anatomy.units.gru import RECURRENT
from recbole_prune.anatomy.units.interests import INTERESTS
from recbole_prune.anatomy.units.session_graphs import SESSION_GRAPHS
from recbole_prune.anatomy.units.transformers import TRANSFORMERS

if TYPE_CHECKING:
    from recbole.model.abstract_recommender import AbstractRecommender


def _one_size(groups: Sequence[UnitGroup]) -> Any:
    """The smaller class, which has one ``embedding_size`` for all groups."""

    def smaller(counts: Counts) -> dict[str, object] | None:
        size = equal(counts, [group.name for group in groups])
        return None if size is None else {"embedding_size": size}

    return smaller


def _found(*groups: UnitGroup) -> Anatomy:
    return Anatomy(groups, {"embedding_size": left(groups[0].name)}, _one_size(groups))


def _tables(*tables: str, more: Sequence[Along] = ()) -> Finder:
    """Vectors that are added up and multiplied with each other, dimension by dimension."""

    def find(model: AbstractRecommender) -> Anatomy:
        return one_width(model.embedding_size, *more, tables=tables)

    return find


def _fpmc(model: AbstractRecommender) -> Anatomy:
    """Two products: of users and items, and of the last item and items."""
    pairs = {"user_width": ("UI_emb", "IU_emb"), "item_width": ("LI_emb", "IL_emb")}
    return _found(*(width(name, model.embedding_size, tables=tables) for name, tables in pairs.items()))


def _hgn(model: AbstractRecommender) -> Anatomy:
    """Gates on every dimension of an item: one width for all."""
    places = [place for layer in ("w1", "w2") for place in (*outputs(model, layer), inputs(layer))]
    places += [Along("b"), inputs("w3"), inputs("w4")]
    tables = ("item_embedding", "user_embedding", "item_embedding_for_prediction")
    return _found(width("width", model.embedding_size, *places, tables=tables))


def _shan(model: AbstractRecommender) -> Anatomy:
    """Items are summed up by their projections' products with the user: two widths."""
    layers = ("long_w", "long_short_w")
    users = [*(place for layer in layers for place in outputs(model, layer)), Along("long_b"), Along("long_short_b")]
    size = model.embedding_size
    return _found(
        width("item_width", size, *(inputs(layer) for layer in layers), tables=("item_embedding",)),
        width("user_width", size, *users, tables=("user_embedding",)),
    )


def _stamp(model: AbstractRecommender) -> Anatomy:
    layers = ("w1", "w2", "w3")
    places = [inputs(layer) for layer in (*layers, "mlp_a", "mlp_b")]
    places += [*outputs(model, "mlp_a"), *outputs(model, "mlp_b")]
    attention = (*(place for layer in layers for place in outputs(model, layer)), Along("b_a"), inputs("w0"))
    return _found(
        width("width", model.embedding_size, *places, tables=("item_embedding",)),
        UnitGroup("attention", "neuron", model.embedding_size, attention),
    )


def _nextitnet(model: AbstractRecommender) -> Anatomy:
    """Blocks of two convolutions, each behind a LayerNorm, around which the vectors of items are handed on."""
    places = [*outputs(model, "final_layer"), inputs("final_layer")]
    inner: list[UnitGroup] = []
    for number in range(len(model.residual_blocks)):
        block = f"residual_blocks.{number}"
        first, second = f"{block}.conv1", f"{block}.conv2"
        places += [inputs(first), *outputs(model, second), *normalisation(model, f"{block}.ln2")]
        own = (*outputs(model, first), *normalisation(model, f"{block}.ln1"), inputs(second))
        count = model.get_submodule(first).out_channels
        inner.append(UnitGroup(first, "channel", count, own, inexact=LAYER_NORM))
    items = width("width", model.embedding_size, *places, tables=("item_embedding",), inexact=LAYER_NORM)
    return Anatomy([items, *inner])


def _caser(model: AbstractRecommender) -> Anatomy:
    """Convolutions over items and over dimensions, one after another in the inputs of the first layer."""
    size, vertical, horizontal = model.embedding_size, model.n_v, model.n_h
    kernels = [f"conv_h.{number}" for number in range(len(model.conv_h))]
    places = [*(Along(f"{kernel}.weight", 3) for kernel in kernels), inputs("fc1", repeats=vertical)]
    groups = [
        width("width", size, *places, *outputs(model, "fc2"), tables=("item_embedding",)),
        width("user_width", size, inputs("fc2", start=size), tables=("user_embedding",)),
        UnitGroup("fc1", "neuron", size, (*outputs(model, "fc1"), inputs("fc2"))),
        UnitGroup("conv_v", "channel", vertical, (*outputs(model, "conv_v"), inputs("fc1", block=size))),
    ]
    for number, kernel in enumerate(kernels):
        reader = inputs("fc1", start=vertical * size + number * horizontal)
        groups.append(UnitGroup(kernel, "channel", horizontal, (*outputs(model, kernel), reader)))

    def smaller(counts: Counts) -> dict[str, object] | None:
        size, filters = equal(counts, ("width", "user_width", "fc1")), equal(counts, kernels)
        return (
            None if size is None or filters is None else {"embedding_size": size, "nv": counts["conv_v"], "nh": filters}
        )

    attributes = {
        "embedding_size": left("width"),
        "fc1_dim_v": lambda counts: counts["conv_v"] * counts["width"],
        "fc1_dim_h": lambda counts: sum(counts[kernel] for kernel in kernels),
    }
    return Anatomy(groups, attributes, smaller)


def _sine(model: AbstractRecommender) -> Anatomy:
    """Interests and prototypes are chosen by a softmax and a sort over them (rule R5): they are no units."""
    places = [Along(name, axis) for name, axis in (("w1", 0), ("w3", 0), ("w3", 1), ("w4", 0), ("w_k_1", 1))]
    places += [place for norm in ("ln2", "ln4") for place in normalisation(model, norm)]
    size = model.embedding_size
    reason = "the class views these weights by the width of items, which cannot get smaller"
    return Anatomy(
        [
            width("width", size, *places, tables=("item_embedding", "C"), inexact=LAYER_NORM),
            UnitGroup("w1", "neuron", size, (Along("w1", 1), Along("w2"))),
            UnitGroup("w_k_1", "neuron", size, (Along("w_k_1", 2), Along("w_k_2", 1)), inexact=reason),
        ]
    )


SEQUENTIAL: Mapping[str, Finder] = {
    **RECURRENT,
    **TRANSFORMERS,
    **FACETS,
    **SESSION_GRAPHS,
    **INTERESTS,
    "FOSSIL": _tables("item_embedding"),
    "HRM": _tables("item_embedding", "user_embedding"),
    "NPE": _tables("item_embedding", "user_embedding", "embedding_seq_item"),
    "TransRec": _tables("item_embedding", "user_embedding", more=[Along("T")]),
    "FPMC": _fpmc,
    "HGN": _hgn,
    "SHAN": _shan,
    "STAMP": _stamp,
    "NextItNet": _nextitnet,
    "Caser": _caser,
    "SINE": _sine,
}
