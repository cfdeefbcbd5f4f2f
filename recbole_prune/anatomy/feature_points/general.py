"""The feature points of RecBole's general models, and ours: one entry per class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Callable

import torch
from recbole.data.interaction import Interaction
from torch.nn import functional

from recbole_prune.anatomy.feature_points.features import (
    MAP,
    NODES,
    SEQUENCE,
    VECTOR,
    Calls,
    FeaturePoints,
    Lookup,
    Point,
    Tables,
)
from recbole_prune.anatomy.feature_points.places import activations, output, results, rows_of
from recbole_prune.anatomy.propagation import GRAPHS
from recbole_prune.anatomy.shared_calls import call

if TYPE_CHECKING:
    from recbole.model.abstract_recommender import AbstractRecommender

Build = Callable[["AbstractRecommender"], FeaturePoints]


def mean_of_history(items: Lookup, histories: torch.Tensor, lengths: torch.Tensor) -> Lookup:
    """Vectors of users that are the means of those of the items that they have.

    Args:
        items: vectors of items.
        histories: ids ``[users, longest]``, padded behind.
        lengths: of the histories ``[users]``.
    """

    def read(users: torch.Tensor) -> torch.Tensor:
        length = lengths[users].unsqueeze(1)
        there = torch.arange(histories.shape[1], device=users.device) < length
        return (items(histories[users]) * there.unsqueeze(2)).sum(1) / length.clamp(min=1)

    return read


def looked_up(users: str = "user_embedding", items: str = "item_embedding") -> FeaturePoints:
    """Rows of two tables, and their product."""
    return FeaturePoints(tables=lambda model: {"": Tables(getattr(model, users), getattr(model, items))}, product="")


def _enmf(model: AbstractRecommender) -> FeaturePoints:
    def tables(model: AbstractRecommender) -> Mapping[str, Tables]:
        histories = model.history_item_matrix
        lengths = (histories > 0).sum(1)
        of_histories = mean_of_history(model.item_embedding, histories, lengths)
        return {"": Tables(model.user_embedding, model.item_embedding), "history": Tables(of_histories, None)}

    return FeaturePoints(tables=tables, product="")


def _fism(model: AbstractRecommender) -> FeaturePoints:
    def tables(model: AbstractRecommender) -> Mapping[str, Tables]:
        users = mean_of_history(model.item_src_embedding, model.history_item_matrix, model.history_lens)
        return {"": Tables(users, model.item_dst_embedding)}

    return FeaturePoints(tables=tables, product="")


def _nais(model: AbstractRecommender) -> FeaturePoints:
    def there(model: AbstractRecommender, batch: Interaction) -> Calls:
        return [model.mask_mat[batch[model.USER_ID]] > 0]

    attention = activations(model, "mlp_layers", SEQUENCE, valid=there)
    return FeaturePoints(attention, lambda model: {"": Tables(None, model.item_dst_embedding)})


def _neumf(model: AbstractRecommender) -> FeaturePoints:
    """The product of the matrix factorisation and the layers of the network, as far as they are trained."""
    mf, mlp = model.mf_train, model.mlp_train
    product = Point("user_mf_embedding * item_mf_embedding", VECTOR, _product_of_mf)
    return FeaturePoints((*((product,) if mf else ()), *(activations(model, "mlp_layers") if mlp else ())))


def _product_of_mf(model: AbstractRecommender, batch: Interaction) -> Calls:
    if model.ITEM_ID not in batch:
        return []
    users = model.user_mf_embedding(batch[model.USER_ID])
    ids = [batch[name] for name in (model.ITEM_ID, model.NEG_ITEM_ID) if name in batch]
    return [users * model.item_mf_embedding(items) for items in ids]


def _convncf(model: AbstractRecommender) -> FeaturePoints:
    layers = list(model.cnn_layers.cnn_layers)
    places = [
        place for place in range(len(layers)) if place + 1 == len(layers) or hasattr(layers[place + 1], "kernel_size")
    ]
    maps = tuple(output(f"cnn_layers.cnn_layers.{place}", MAP) for place in places)
    sums = output("cnn_layers", change=lambda values: values.sum((2, 3)), name="sums of channels")
    return FeaturePoints((*maps, sums))


def _nncf(model: AbstractRecommender) -> FeaturePoints:
    convolutions = (output(f"{side}_conv", change=lambda values: values.flatten(1)) for side in ("user", "item"))
    return FeaturePoints((*convolutions, *activations(model, "mlp_layers")))


def _dmf(model: AbstractRecommender) -> FeaturePoints:
    sides = ("user", "item")
    first = (output(f"{side}_linear") for side in sides)
    return FeaturePoints((*first, *(point for side in sides for point in activations(model, f"{side}_fc_layers"))))


def _multidae(model: AbstractRecommender) -> FeaturePoints:
    return FeaturePoints((*activations(model, "encoder"), *_hidden(model, "decoder")))


def _hidden(model: AbstractRecommender, path: str) -> tuple[Point, ...]:
    """The activations of a plain sequence of layers and activations, without its last layer."""
    count = len(model.get_submodule(path))
    return tuple(output(f"{path}.{place}") for place in range(1, count - 1, 2))


def _multivae(model: AbstractRecommender) -> FeaturePoints:
    """Autoencoders whose encoder gives means, then logarithms of variances."""
    means = int(model.lat_dim / 2)
    mean = output("encoder", change=lambda values: values[:, :means], name="mean")
    return FeaturePoints((*_hidden(model, "encoder"), mean, *_hidden(model, "decoder")))


def _recvae(model: AbstractRecommender) -> FeaturePoints:
    layers = (*(f"encoder.ln{number}" for number in range(1, 6)), "encoder.fc_mu")
    return FeaturePoints(tuple(output(path) for path in layers))


def _macridvae(model: AbstractRecommender) -> FeaturePoints:
    """A call of the encoder for each concept."""
    width = model.embedding_size

    def mean(values: torch.Tensor) -> torch.Tensor:
        return functional.normalize(values[:, :width], dim=1)

    points: list[Point] = []
    for concept in range(model.kfac):
        one = slice(concept, concept + 1)
        hidden = (f"encoder.{place}" for place in range(1, len(model.encoder) - 1, 2))
        points += [output(path, calls=one, name=f"{path} of concept {concept}") for path in hidden]
        points.append(output("encoder", calls=one, change=mean, name=f"mean of concept {concept}"))
    return FeaturePoints(tuple(points))


def _diffrec(model: AbstractRecommender) -> FeaturePoints:
    """The last layer gives items. Steps and noise are drawn."""
    return FeaturePoints(activations(model, "mlp.mlp_layers")[:-1], drawn="mlp.forward")


def _ldiffrec(model: AbstractRecommender) -> FeaturePoints:
    """Steps and noise are drawn in a latent space of each model's own, so its layers behind the encoder say different
    things of a row in two models."""
    encoder = model.autoencoder.encoder
    if hasattr(encoder, "mlp_layers"):
        return FeaturePoints(activations(model, "autoencoder.encoder"))
    paths = (f"autoencoder.encoder.{number}" for number in range(len(encoder)))
    return FeaturePoints(tuple(point for path in paths for point in activations(model, path)))


# ---- graphs ----------------------------------------------------------------------------------------------------------


def _split(model: AbstractRecommender, nodes: torch.Tensor) -> Tables:
    return Tables(rows_of(nodes[: model.n_users]), rows_of(nodes[model.n_users :]))


def _mean_of_layers(graph: str, path: str = "forward", given: bool = False) -> Build:
    """Models whose vectors are the mean of layers, each the product of a graph with the one before.

    Args:
        graph: name of the matrix.
        path: of the method that gives users and items.
        given: whether it is given the matrix.
    """

    def tables(model: AbstractRecommender) -> Mapping[str, Tables]:
        matrix = getattr(model, graph)
        users, items = call(model, path, *([matrix] if given else []), whole=True)[:2]
        layer = torch.cat([model.user_embedding.weight, model.item_embedding.weight])
        found = {"layer 0": _split(model, layer)}
        for number in range(model.n_layers):
            layer = torch.sparse.mm(matrix, layer)
            found[f"layer {number + 1}"] = _split(model, layer)
        return {**found, "mean": Tables(rows_of(users), rows_of(items))}

    return lambda model: FeaturePoints(tables=tables, kind=NODES, product="mean")


def side_by_side(widths: Callable[[AbstractRecommender], list[int]]) -> Build:
    """Models whose vectors are those of their layers side by side.

    Args:
        widths: of the layers of a model, the tables first.
    """

    def tables(model: AbstractRecommender) -> Mapping[str, Tables]:
        users, items = call(model, "forward", whole=True)[:2]
        parts = zip(*(vectors.split(widths(model), dim=1) for vectors in (users, items)))
        found = {f"layer {number}": Tables(*map(rows_of, both)) for number, both in enumerate(parts)}
        return {**found, "": Tables(rows_of(users), rows_of(items))}

    return lambda model: FeaturePoints(tables=tables, kind=NODES, product="")


def propagated(path: str = "forward") -> Build:
    """Models of which only the vectors that they score with are known: the first two results of a method."""

    def tables(model: AbstractRecommender) -> Mapping[str, Tables]:
        return {"": Tables(*map(rows_of, call(model, path, whole=True)[:2]))}

    return lambda model: FeaturePoints(tables=tables, kind=NODES, product="")


def _gcmc(model: AbstractRecommender) -> FeaturePoints:
    """What the encoder gives, and what its dense layers read."""
    hidden = "GcEncoder.activate.forward"

    def tables(model: AbstractRecommender) -> Mapping[str, Tables]:
        users, items = call(model, "GcEncoder.forward", model.user_features, model.item_features, whole=True)
        of_users, of_items = results(model, hidden)[:2]
        return {
            "hidden": Tables(rows_of(of_users), rows_of(of_items)),
            "": Tables(rows_of(users), rows_of(items)),
        }

    return FeaturePoints(tables=tables, kind=NODES, product="", of_tables=(hidden,))


def _simplex(model: AbstractRecommender) -> FeaturePoints:
    """The batch of its loss has every positive once for many negatives, so the mixture is computed for every row."""

    def mixture(model: AbstractRecommender, batch: Interaction) -> Calls:
        ids = batch[model.USER_ID]
        history = model.item_emb(model.history_item_id[ids])
        return [model.get_UI_aggregation(model.user_emb(ids), history, model.history_item_len[ids])]

    return FeaturePoints(
        (Point("UI_map", VECTOR, mixture),), lambda model: {"": Tables(model.user_emb, model.item_emb)}
    )


GENERAL: dict[str, Build] = {
    **{name: lambda model: looked_up() for name in ("BPR", "LINE", "UltraGCN")},
    "ENMF": _enmf,
    "FISM": _fism,
    "NAIS": _nais,
    "NeuMF": _neumf,
    "ConvNCF": _convncf,
    "NNCF": _nncf,
    "DMF": _dmf,
    "CDAE": lambda model: FeaturePoints((output("h_act"),)),
    "MultiDAE": _multidae,
    **dict.fromkeys(("MultiVAE", "RaCT"), _multivae),
    "RecVAE": _recvae,
    "MacridVAE": _macridvae,
    "DiffRec": _diffrec,
    "LDiffRec": _ldiffrec,
    **{name: _mean_of_layers(graph, given=name == "SGL") for name, graph in GRAPHS.items()},
    "NGCF": side_by_side(lambda model: model.hidden_size_list),
    "DGCF": propagated(),
    "GCMC": _gcmc,
    "SpectralCF": side_by_side(lambda model: [model.emb_dim] * (model.n_layers + 1)),
    "SimpleX": _simplex,
}
