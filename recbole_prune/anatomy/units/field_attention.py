"""The unit groups of models in which fields attend to each other through ``nn.MultiheadAttention``.

The module has one width for what comes in, for its heads together and for what goes out, and heads of one size. So
the groups of such a width lose as many units as each other, from the part of every head as many (rules R6 and R7).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from recbole_prune.anatomy.units.blocks import (
    Setting,
    equal,
    field_tables,
    gates,
    inputs,
    left,
    linears,
    neurons,
    outputs,
    width,
)
from recbole_prune.anatomy.units.groups import UNSCALED, Along, Anatomy, Counts, Finder, Scaling, UnitGroup

if TYPE_CHECKING:
    from recbole.model.abstract_recommender import AbstractRecommender

_WIDTH = "attention_size"


def _power(share: float, exponent: float) -> float:
    return float(share**exponent)


def _of_width(model: AbstractRecommender, name: str, *places: Along, scaled: Scaling = UNSCALED) -> UnitGroup:
    """A group of as many units as the attention is wide."""
    return UnitGroup(name, "hidden", model.attention_size, places, alike=_WIDTH, chunks=model.num_heads, scaled=scaled)


def _heads(model: AbstractRecommender, path: str) -> UnitGroup:
    """What is inside the heads: dimensions of queries, keys and values.

    The module divides by the root of the size of a head, that of the smaller one (rule R4). Queries, keys and values
    are one tensor, so each takes a quarter root of the share, and the values' is taken back behind them.
    """
    projections = [Along(f"{path}.in_proj_{part}", repeats=3) for part in ("weight", "bias")]
    inward, outward = functools.partial(_power, exponent=0.25), functools.partial(_power, exponent=-0.25)
    scaled = {f"{path}.in_proj_weight": inward, f"{path}.in_proj_bias": inward, f"{path}.out_proj.weight": outward}
    places = (*projections, inputs(f"{path}.out_proj"))
    return _of_width(model, f"{path}.head_dimensions", *places, scaled=scaled)


def _attention_sizes(model: AbstractRecommender, paths: Sequence[str]) -> dict[str, Setting]:
    """The plain attributes of attention modules."""
    sizes: dict[str, Setting] = {}
    for path in paths:
        count = left(f"{path}.head_dimensions")
        sizes.update({f"{path}.{name}": count for name in ("embed_dim", "kdim", "vdim")})
        sizes[f"{path}.head_dim"] = left(f"{path}.head_dimensions", of=model.num_heads)
    return sizes


def _autoint(model: AbstractRecommender) -> Anatomy:
    fields, layers = model.num_feature_field, linears(model, "mlp_layers")
    attentions = [f"self_attns.{number}" for number in range(model.n_layers)]
    residual = ["v_res_embedding"] if model.has_residual else []
    places = [*field_tables(model), inputs(layers[0], repeats=fields)]
    places += [inputs(layer) for layer in ("att_embedding", *residual)]
    groups = [width("width", model.embedding_size, *places)]
    makers = outputs(model, "att_embedding")
    for path in attentions:
        reader = Along(f"{path}.in_proj_weight", 1)
        groups += [_of_width(model, f"{path}.inputs", *makers, reader), _heads(model, path)]
        makers = outputs(model, f"{path}.out_proj")
    makers = [*makers, *(place for layer in residual for place in outputs(model, layer))]
    groups.append(_of_width(model, "attention", *makers, inputs("attn_fc", repeats=fields)))
    hidden = list(neurons(model, "mlp_layers", [inputs("deep_predict_layer")]))

    def smaller(counts: Counts) -> dict[str, object]:
        sizes = [counts[group.name] for group in hidden]
        return {"embedding_size": counts["width"], _WIDTH: counts["attention"], "mlp_hidden_size": sizes}

    attributes = {
        "embedding_size": left("width"),
        _WIDTH: left("attention"),
        "atten_output_dim": lambda counts: fields * counts["attention"],
        **_attention_sizes(model, attentions),
    }
    return Anatomy([*groups, *hidden], attributes, smaller)


def _fignn(model: AbstractRecommender) -> Anatomy:
    """The states of nodes are what the attention puts out, with the units of the cell that updates them."""
    fields, layers = model.num_feature_field, range(model.n_layers - 1)
    readers = [inputs(layer) for layer in ("att_embedding", "v_res_embedding")]
    groups = [
        width("width", model.embedding_size, *field_tables(model), *readers),
        _of_width(model, "self_attn.inputs", *outputs(model, "att_embedding"), Along("self_attn.in_proj_weight", 1)),
        _heads(model, "self_attn"),
    ]
    states = [*outputs(model, "self_attn.out_proj"), *outputs(model, "v_res_embedding"), *gates(model, "gru_cell")]
    states += [inputs("W_attn", repeats=2), inputs("mlp1"), inputs("mlp2", repeats=fields)]
    states += [Along(f"gnn.{layer}.W_out", 2) for layer in layers]
    received = [Along(f"gnn.{layer}.W_in", 1) for layer in layers] + [Along(f"gnn.{layer}.bias_p") for layer in layers]
    groups.append(_of_width(model, "states", *states))
    groups.append(_of_width(model, "received", *received, Along("gru_cell.weight_ih", 1)))
    sent = []
    for layer in layers:
        places = (Along(f"gnn.{layer}.W_out", 1), Along(f"gnn.{layer}.W_in", 2))
        sent.append(UnitGroup(f"gnn.{layer}", "neuron", model.attention_size, places))

    def smaller(counts: Counts) -> dict[str, object] | None:
        size = equal(counts, ["states", *(group.name for group in sent)])
        return None if size is None else {"embedding_size": counts["width"], _WIDTH: size}

    attributes = {
        "embedding_size": left("width"),
        _WIDTH: left("states"),
        **_attention_sizes(model, ["self_attn"]),
    }
    return Anatomy([*groups, *sent], attributes, smaller)


FIELD_ATTENTION: Mapping[str, Finder] = {"AutoInt": _autoint, "FiGNN": _fignn}
