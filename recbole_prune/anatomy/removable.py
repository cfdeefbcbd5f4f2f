"""Which units of a model can be removed; what is known of a class of RecBole holds for its subclasses."""

from __future__ import annotations

from typing import TYPE_CHECKING

from recbole_prune.anatomy.autoencoder_units import AUTOENCODERS
from recbole_prune.anatomy.context_units import CONTEXT, CONTEXT_WITHOUT_UNITS
from recbole_prune.anatomy.general_units import GENERAL, WITHOUT_UNITS
from recbole_prune.anatomy.graph_units import GRAPHS
from recbole_prune.anatomy.knowledge_units import KNOWLEDGE
from recbole_prune.anatomy.sequential_units import SEQUENTIAL
from recbole_prune.anatomy.units import Anatomy, Finder

if TYPE_CHECKING:
    from recbole.model.abstract_recommender import AbstractRecommender

UNITS: dict[str, Finder] = {**GENERAL, **AUTOENCODERS, **GRAPHS, **KNOWLEDGE, **SEQUENTIAL, **CONTEXT}
WITHOUT: dict[str, str] = {**WITHOUT_UNITS, **CONTEXT_WITHOUT_UNITS}
_MODULES = ("recbole.model.", "recbole_prune.models.")


def anatomy_of(model: AbstractRecommender) -> Anatomy:
    """The unit groups of a model; without groups it says why there are none."""
    for ancestor in type(model).__mro__:
        if ancestor.__module__.startswith(_MODULES):
            if ancestor.__name__ in UNITS:
                return UNITS[ancestor.__name__](model)
            if ancestor.__name__ in WITHOUT:
                return Anatomy(needs=WITHOUT[ancestor.__name__])
    return Anatomy(needs=f"nothing is known of the units of {type(model).__name__}: it is no class of RecBole's")
