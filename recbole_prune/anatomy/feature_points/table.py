"""Which feature points a model has; what is known of a class of RecBole holds for its subclasses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from recbole_prune.anatomy.feature_points.context import CONTEXT, WITHOUT
from recbole_prune.anatomy.feature_points.features import Feature, FeaturePoints, Tables
from recbole_prune.anatomy.feature_points.general import GENERAL, Build
from recbole_prune.anatomy.feature_points.knowledge import KNOWLEDGE
from recbole_prune.anatomy.feature_points.sequential import SEQUENTIAL
from recbole_prune.anatomy.shared_calls import Call, call, calls_of, evaluating
from recbole_prune.anatomy.vectors import known_class, reason_unknown, shared_propagation

if TYPE_CHECKING:
    from recbole.data.interaction import Interaction
    from recbole.model.abstract_recommender import AbstractRecommender

POINTS: dict[str, Build] = {**GENERAL, **SEQUENTIAL, **CONTEXT, **KNOWLEDGE}


def reason_without_features(model_class: type) -> str:
    """Why a class has no feature points, one sentence; "" where it has."""
    known = known_class(model_class)
    if known is None:
        return reason_unknown(model_class)
    return f"{model_class.__name__} {WITHOUT[known.__name__]}" if known.__name__ in WITHOUT else ""


def feature_points(model: AbstractRecommender) -> FeaturePoints:
    """The feature points of a model, as its settings have them; they hold no model.

    Only for classes that have some (:func:`reason_without_features`).
    """
    known = known_class(type(model))
    assert known is not None, "a class without feature points is refused before any training"
    return POINTS[known.__name__](model)


@torch.no_grad()
def node_tables(model: AbstractRecommender) -> Mapping[str, Tables]:
    """The tables of a model whose weights do not change, in evaluation mode: of a teacher, for all its batches."""
    points = feature_points(model)
    if points.tables is None:
        return {}
    with evaluating(model), shared_propagation(model, points.of_tables):
        return points.tables(model)


class Drawn(NamedTuple):
    """A call with arguments that a student's loss has drawn.

    Attributes:
        model_class: the class of RecBole that the student is of.
        call: of its method.
    """

    model_class: type | None
    call: Call


def drawn_by(model: AbstractRecommender) -> Drawn | None:
    """What the loss in the open step has drawn (:attr:`FeaturePoints.drawn`); None where that is nothing."""
    path = feature_points(model).drawn
    return Drawn(known_class(type(model)), calls_of(model, path)[0]) if path else None


@torch.no_grad()
def features_of(
    model: AbstractRecommender,
    batch: Interaction,
    tables: Mapping[str, Tables] | None = None,
    drawn: Drawn | None = None,
) -> list[Feature]:
    """What the feature points of a model say of the rows of a batch in evaluation mode, free of gradients.

    Args:
        model: the model; it computes its loss of the batch where points say something only then.
        batch: of ``B`` rows.
        tables: :func:`node_tables` of the model.
        drawn: what the loss of a student has drawn of this batch, for a model of the same class.

    Raises:
        KeyError: a field that the batch does not have.
    """
    points = feature_points(model)
    tables = node_tables(model) if tables is None else tables
    with evaluating(model), shared_propagation(model, points.noted):
        if drawn is not None and drawn.model_class is known_class(type(model)):
            named: dict[str, Any] = dict(drawn.call.named)
            call(model, drawn.call.path, *drawn.call.arguments, **named)
        elif points.needs_a_run:
            points.run(model, batch)
        return points.read(model, batch, tables)
