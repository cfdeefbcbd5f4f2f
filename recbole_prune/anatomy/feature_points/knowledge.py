"""The feature points of RecBole's knowledge-aware models: one entry per class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Callable

from torch.nn import functional

from recbole_prune.anatomy.feature_points.features import NODES, FeaturePoints, Tables
from recbole_prune.anatomy.feature_points.general import looked_up, side_by_side
from recbole_prune.anatomy.feature_points.places import activations, output, results, rows_of
from recbole_prune.anatomy.shared_calls import call

if TYPE_CHECKING:
    from recbole.model.abstract_recommender import AbstractRecommender

Build = Callable[["AbstractRecommender"], FeaturePoints]


def _with_entities(model: AbstractRecommender) -> FeaturePoints:
    """A table of items and one of their entities."""

    def tables(model: AbstractRecommender) -> Mapping[str, Tables]:
        return {
            "": Tables(model.user_embedding, model.item_embedding),
            "entities of": Tables(None, model.entity_embedding),
        }

    return FeaturePoints(tables=tables, product="")


def _neighbourhoods(model: AbstractRecommender) -> FeaturePoints:
    """Each layer, for the items themselves: it is called for them first, then for neighbours further off."""
    hops = model.n_iter
    layers = (output(f"linear_layers.{layer}", calls=slice(None, None, hops - layer)) for layer in range(hops))
    return FeaturePoints(tuple(layers))


def _kgin(model: AbstractRecommender) -> FeaturePoints:
    """Each hop gives entities, then users."""
    paths = tuple(f"gcn.convs.{hop}.forward" for hop in range(len(model.gcn.convs)))

    def tables(model: AbstractRecommender) -> Mapping[str, Tables]:
        users, items = call(model, "forward", whole=True)[:2]
        found = {"": Tables(rows_of(users), rows_of(items))}
        for hop, path in enumerate(paths):
            of_items, of_users = results(model, path)[0]
            parts = (rows_of(functional.normalize(part)) for part in (of_users, of_items))
            found[f"hop {hop}"] = Tables(*parts)
        return found

    return FeaturePoints(tables=tables, kind=NODES, product="", of_tables=paths)


def _mcclk(model: AbstractRecommender) -> FeaturePoints:
    """Two views of users and three of items."""

    def tables(model: AbstractRecommender) -> Mapping[str, Tables]:
        semantic, users, items, of_graph, entities = call(model, "forward", whole=True)
        return {
            "of the interactions": Tables(rows_of(users), rows_of(items)),
            "of the graph": Tables(rows_of(of_graph), rows_of(entities)),
            "semantic": Tables(None, rows_of(semantic)),
        }

    return FeaturePoints(tables=tables, kind=NODES, product="of the interactions")


def _ripplenet(model: AbstractRecommender) -> FeaturePoints:
    """What the memories of each hop say."""
    hops = range(model.n_hop)
    return FeaturePoints(tuple(output("_key_addressing()", pick=hop, name=f"memories of hop {hop}") for hop in hops))


def _mkr(model: AbstractRecommender) -> FeaturePoints:
    crossed = output("cc_unit", pick=0)
    return FeaturePoints((*activations(model, "user_mlp"), crossed))


KNOWLEDGE: dict[str, Build] = {
    "CFKG": lambda model: looked_up(items="entity_embedding"),
    **dict.fromkeys(("CKE", "KTUP"), _with_entities),
    "KGAT": side_by_side(lambda model: model.layers),
    **dict.fromkeys(("KGCN", "KGNNLS"), _neighbourhoods),
    "KGIN": _kgin,
    "MCCLK": _mcclk,
    "MKR": _mkr,
    "RippleNet": _ripplenet,
}
