"""The unit groups of models that rebuild a user's row (methods/attention_distillation_pruning.md, 7.1).

The outer columns and rows of such models belong to items and are no units.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from recbole_prune.anatomy.units.blocks import (
    LAYER_NORM,
    inputs,
    left,
    linears,
    neurons,
    normalisation,
    one_width,
    outputs,
    width,
)
from recbole_prune.anatomy.units.groups import Along, Anatomy, Counts, Finder, UnitGroup

if TYPE_CHECKING:
    from recbole.model.abstract_recommender import AbstractRecommender


def _cdae(model: AbstractRecommender) -> Anatomy:
    places = (*outputs(model, "h_item"), inputs("out_layer"))
    return one_width(model.embedding_size, *places, tables=("h_user",))


def _latent(model: AbstractRecommender, layer: str, count: int, *readers: Along, halves: int = 2) -> UnitGroup:
    """What an encoder puts out: means and, behind them, logarithms of variances (rule R7)."""
    rows = [Along(f"{layer}.{name}", repeats=halves) for name in ("weight", "bias")]
    return UnitGroup("latent", "latent", count, (*rows, *readers))


def _autoencoder(halves: int) -> Finder:
    """Encoder and decoder; ``halves`` is 2 where the encoder puts out means and variances."""

    def find(model: AbstractRecommender) -> Anatomy:
        last, first = linears(model, "encoder")[-1], linears(model, "decoder")[0]
        there, back = list(neurons(model, "encoder")), list(neurons(model, "decoder"))
        latent = _latent(model, last, int(model.lat_dim / halves), inputs(first), halves=halves)

        def smaller(counts: Counts) -> dict[str, object] | None:
            sizes = [counts[group.name] for group in there]
            if sizes != [counts[group.name] for group in back][::-1] or not _built_from_settings(model):
                return None
            return {"mlp_hidden_size": sizes, "latent_dimension": halves * counts["latent"]}

        attributes = {"lat_dim": lambda counts: halves * counts["latent"]}
        return Anatomy([*there, *back, latent], attributes, smaller)

    return find


def _built_from_settings(model: AbstractRecommender) -> bool:
    """Not from the checkpoint of an earlier stage, which has its shapes."""
    return bool(getattr(model, "train_stage", "actor_pretrain") == "actor_pretrain")


def _recvae(model: AbstractRecommender) -> Anatomy:
    """The prior has a copy of the encoder, into which the trainer loads the encoder's weights after every epoch."""
    encoders = ("encoder", "prior.encoder_old")
    tops = [f"{encoder}.{name}" for encoder in encoders for name in ("fc_mu", "fc_logvar")]
    made = [place for top in tops for place in outputs(model, top)]
    priors = [Along(f"prior.{name}", 1) for name in ("mu_prior", "logvar_prior", "logvar_uniform_prior")]
    latent = UnitGroup("latent", "latent", model.latent_dim, (*made, *priors, inputs("decoder")))
    hidden = [inputs(top) for top in tops]
    for encoder in encoders:
        for layer in range(1, 6):
            hidden += [*outputs(model, f"{encoder}.fc{layer}"), *normalisation(model, f"{encoder}.ln{layer}")]
            hidden += [inputs(f"{encoder}.fc{layer}")] if layer > 1 else []
    layers = UnitGroup("hidden", "hidden", model.hidden_dim, tuple(hidden), inexact=LAYER_NORM)
    return Anatomy(
        [layers, latent],
        {"latent_dim": left("latent")},
        lambda counts: {"hidden_dimension": counts["hidden"], "latent_dimension": counts["latent"]},
    )


def _macridvae(model: AbstractRecommender) -> Anatomy:
    """Its factors are no units: a softmax goes over them, so one at 0 is still a factor (rule R5)."""
    last = linears(model, "encoder")[-1]
    hidden = list(neurons(model, "encoder"))
    twice = [Along(f"{last}.{name}", repeats=2) for name in ("weight", "bias")]
    dimensions = width("width", model.embedding_size, *twice, tables=("item_embedding", "k_embedding"))

    def smaller(counts: Counts) -> dict[str, object]:
        sizes = [counts[group.name] for group in hidden]
        return {"encoder_hidden_size": sizes, "embedding_size": counts["width"]}

    return Anatomy([*hidden, dimensions], {"embedding_size": left("width")}, smaller)


def _diffrec(model: AbstractRecommender) -> Anatomy:
    hidden = list(neurons(model, "mlp.mlp_layers"))
    return Anatomy(hidden, {}, lambda counts: {"dims_dnn": [counts[group.name] for group in hidden]})


def _ldiffrec(model: AbstractRecommender) -> Anatomy:
    """Diffusion between an encoder and a decoder; of those that are split by categories of items no units are known.

    The setting ``in_dims`` counts from the latent outwards.
    """
    network = _diffrec(model)
    if model.n_cate > 1:
        return network
    there, back = list(neurons(model, "autoencoder.encoder")), list(neurons(model, "autoencoder.decoder"))
    layers = linears(model, "mlp.mlp_layers")
    readers = [inputs(linears(model, "autoencoder.decoder")[0]), inputs(layers[0]), *outputs(model, layers[-1])]
    latent = _latent(model, linears(model, "autoencoder.encoder")[-1], model.latent_size, *readers)

    def encoder_sizes(counts: Counts) -> list[int]:
        return [*(counts[group.name] for group in there), counts["latent"]]

    def smaller(counts: Counts) -> dict[str, object]:
        dims = {"in_dims": encoder_sizes(counts)[::-1], "out_dims": [counts[group.name] for group in back]}
        return {**dims, "dims_dnn": [counts[group.name] for group in network]}

    attributes = {"autoencoder.in_dims": encoder_sizes, "latent_size": left("latent")}
    return Anatomy([*network, *there, *back, latent], attributes, smaller)


AUTOENCODERS: Mapping[str, Finder] = {
    "CDAE": _cdae,
    "MultiDAE": _autoencoder(1),
    "MultiVAE": _autoencoder(2),
    "RaCT": _autoencoder(2),
    "RecVAE": _recvae,
    "MacridVAE": _macridvae,
    "DiffRec": _diffrec,
    "LDiffRec": _ldiffrec,
}
