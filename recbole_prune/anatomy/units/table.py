"""Which units of a model can be removed; what is known of a class of RecBole holds for its subclasses."""

from __future__ import annotations

from typing import TYPE_CHECKING

from recbole_prune.anatomy.units.autoencoders import AUTOENCODERS
from recbole_prune.anatomy.units.context import CONTEXT, CONTEXT_WITHOUT_UNITS
from recbole_prune.anatomy.units.general import GENERAL, WITHOUT_UNITS
from recbole_prune.anatomy.units.graphs import GRAPHS
from recbole_prune.anatomy.units.groups import Anatomy, Finder
from recbole_prune.anatomy.units.knowledge import KNOWLEDGE
from recbole_prune.anatomy.units.sequential import SEQUENTIAL

if TYPE_CHECKING:
    from recbole.model.abstract_recommender import AbstractRecommender

UNITS: dict[str, Finder] = {**GENERAL, **AUTOENCODERS, **GRAPHS, **KNOWLEDGE, **SEQUENTIAL, **CONTEXT}
WITHOUT: dict[str, str] = {**WITHOUT_UNITS, **CONTEXT_WITHOUT_UNITS}
_MODULES = ("recbole.model.", "recbole_prune.models.")


def is_inherited(model_class: type) -> bool:
    """Whether what is known of a class is said of one that it inherits from, to which it may add what it likes."""
    return not model_class.__module__.startswith(_MODULES)


def anatomy_of(model: AbstractRecommender) -> Anatomy:
    """The unit groups of a model; without groups it says why there are none."""
    for ancestor in type(model).__mro__:
        if ancestor.__module__.startswith(_MODULES):
            if ancestor.__name__ in UNITS:
                return UNITS[ancestor.__name__](model)
            if ancestor.__name__ in WITHOUT:
                return Anatomy(needs=WITHOUT[ancestor.__name__])
    return Anatomy(needs=f"nothing is known of the units of {type(model).__name__}: it is no class of RecBole's")
