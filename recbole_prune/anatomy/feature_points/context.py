"""The feature points of RecBole's context-aware models: one entry per class, or why a class has none."""

from __future__ import annotations

from typing import TYPE_CHECKING, Callable

import torch
from recbole.data.interaction import Interaction

from recbole_prune.anatomy.feature_points.features import FIELDS, VECTOR, Calls, FeaturePoints, Point
from recbole_prune.anatomy.feature_points.places import activations, output, results

if TYPE_CHECKING:
    from recbole.model.abstract_recommender import AbstractRecommender

Build = Callable[["AbstractRecommender"], FeaturePoints]

_EMBEDDINGS = output("concat_embed_input_fields()", FIELDS, name="embeddings of fields")


def _bi_interaction(model: AbstractRecommender, batch: Interaction) -> Calls:
    """The vector that a factorisation machine sums up."""
    [fields] = results(model, "concat_embed_input_fields")
    return [0.5 * (fields.sum(1).square() - fields.square().sum(1))]


def _products(model: AbstractRecommender, batch: Interaction) -> Calls:
    """Products of the vectors of all pairs of fields."""
    return [one * other for one, other in results(model, "build_cross")]


def _network(*more: Point) -> Build:
    return lambda model: FeaturePoints((*activations(model, "mlp_layers"), *more))


def _dcnv2(model: AbstractRecommender) -> FeaturePoints:
    cross = output("cross_network_mix()" if model.mixed else "cross_network()")
    return FeaturePoints((*activations(model, "mlp_layers"), cross))


def _autoint(model: AbstractRecommender) -> FeaturePoints:
    """Its attention has fields first."""

    def fields_behind(values: torch.Tensor) -> torch.Tensor:
        return values.transpose(0, 1)

    layers = range(len(model.self_attns))
    attention = (output(f"self_attns.{number}", FIELDS, pick=0, change=fields_behind) for number in layers)
    return FeaturePoints((output("att_embedding", FIELDS), *attention, *activations(model, "mlp_layers")))


def _fignn(model: AbstractRecommender) -> FeaturePoints:
    """One cell for all steps; it reads fields one below the other."""
    fields, width = model.num_feature_field, model.attention_size

    def by_row(values: torch.Tensor) -> torch.Tensor:
        return values.view(-1, fields, width)

    points = [output("att_embedding", FIELDS)]
    for step in range(model.n_layers - 1):
        one = slice(step, step + 1)
        points.append(output(f"gnn.{step}", FIELDS))
        points.append(output("gru_cell", FIELDS, calls=one, change=by_row, name=f"gru_cell in step {step}"))
    return FeaturePoints(tuple(points))


def _dssm(model: AbstractRecommender) -> FeaturePoints:
    towers = (activations(model, f"{side}_mlp_layers") for side in ("user", "item"))
    return FeaturePoints(tuple(point for tower in towers for point in tower))


def _eulernet(model: AbstractRecommender) -> FeaturePoints:
    """Real parts."""
    count = len(model.Euler_interaction_layers)
    return FeaturePoints(tuple(output(f"Euler_interaction_layers.{number}", FIELDS, pick=0) for number in range(count)))


CONTEXT: dict[str, Build] = {
    "FM": lambda model: FeaturePoints(
        (_EMBEDDINGS, Point("bi-interaction", VECTOR, _bi_interaction, ("concat_embed_input_fields",)))
    ),
    "FwFM": lambda model: FeaturePoints((_EMBEDDINGS, output("dropout_layer", name="weighted bi-interaction"))),
    "FFM": lambda model: FeaturePoints((output("ffm", FIELDS),)),
    "AFM": lambda model: FeaturePoints(
        (Point("products of pairs", FIELDS, _products, ("build_cross",)), output("attlayer.w", FIELDS))
    ),
    "NFM": lambda model: FeaturePoints((output("bn"), *activations(model, "mlp_layers"))),
    **{name: _network() for name in ("DeepFM", "WideDeep", "FNN", "PNN")},
    "DCN": _network(output("cross_network()")),
    "DCNV2": _dcnv2,
    "xDeepFM": _network(output("compressed_interaction_network()")),
    "AutoInt": _autoint,
    "FiGNN": _fignn,
    "DSSM": _dssm,
    "EulerNet": _eulernet,
}
WITHOUT: dict[str, str] = {
    "LR": "is a weighted sum of fields, so it has no hidden layer",
    "KD_DAGFM": "learns from a teacher of its own already, in phases that it brings",
}
