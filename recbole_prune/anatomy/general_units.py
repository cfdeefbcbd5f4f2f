"""The unit groups of general and knowledge-aware models (methods/attention_distillation_pruning.md, 7.1 and 7.4)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from recbole_prune.anatomy.unit_blocks import channels, inputs, left, linears, neurons, width
from recbole_prune.anatomy.units import Along, Anatomy, Counts, Finder, UnitGroup


def _of_tables(*tables: str, attribute: str = "embedding_size") -> Finder:
    """The dimensions of tables that a model multiplies with each other."""

    def find(model: Any) -> Anatomy:
        count = model.get_submodule(tables[0]).embedding_dim
        return Anatomy(
            [width("width", count, tables=tables)],
            {attribute: left("width")} if attribute else {},
            lambda counts: {"embedding_size": counts["width"]},
        )

    return find


def _neumf(model: Any) -> Anatomy:
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
        if not (model.mf_train and model.mlp_train) or counts["user_mlp_width"] != counts["item_mlp_width"]:
            return None
        return {
            "mf_embedding_size": counts["mf_width"],
            "mlp_embedding_size": counts["user_mlp_width"],
            "mlp_hidden_size": [counts[layer] for layer in layers],
        }

    return Anatomy(groups, {}, smaller)


def _convncf(model: Any) -> Anatomy:
    last = linears(model, "predict_layers")[0]
    groups = list(channels(model, "cnn_layers", [inputs(last)]))
    first = model.cnn_channels[0]

    def smaller(counts: Counts) -> dict[str, object]:
        return {"cnn_channels": [first, *(counts[group.name] for group in groups)]}

    return Anatomy(groups, {}, smaller)


def _vae(model: Any) -> Anatomy:
    """Hidden neurons of encoder and decoder, which are rows and columns of items at their outer ends; the latent."""
    encoder, decoder = linears(model, "encoder"), linears(model, "decoder")
    hidden = [*_inner(model, "encoder", encoder), *_inner(model, "decoder", decoder)]
    half = int(model.lat_dim / 2)
    twice = [Along(f"{encoder[-1]}.{name}", repeats=2) for name in ("weight", "bias")]
    latent = UnitGroup("latent", "latent", half, (*twice, inputs(decoder[0])))

    def smaller(counts: Counts) -> dict[str, object] | None:
        there = [counts[group.name] for group in hidden[: len(encoder) - 1]]
        back = [counts[group.name] for group in hidden[len(encoder) - 1 :]]
        return {"mlp_hidden_size": there, "latent_dimension": 2 * counts["latent"]} if there == back[::-1] else None

    return Anatomy([*hidden, latent], {"lat_dim": lambda counts: 2 * counts["latent"]}, smaller)


def _inner(model: Any, path: str, layers: list[str]) -> list[UnitGroup]:
    return list(neurons(model, path)) if len(layers) > 1 else []


GENERAL: Mapping[str, Finder] = {
    "BPR": _of_tables("user_embedding", "item_embedding"),
    "UltraGCN": _of_tables("user_embedding", "item_embedding", attribute=""),
    "LightGCN": _of_tables("user_embedding", "item_embedding", attribute="latent_dim"),
    "NeuMF": _neumf,
    "ConvNCF": _convncf,
    "MultiVAE": _vae,
}
