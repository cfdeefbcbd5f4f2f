"""Where the user and item vectors of a model are; what is known of a class of RecBole holds for its subclasses."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from recbole_prune.anatomy.general_scorers import GENERAL
from recbole_prune.anatomy.scorers import Rows, Scorer, Vectors
from recbole_prune.anatomy.sequential_scorers import SEQUENTIAL
from recbole_prune.anatomy.shared_calls import sharing

if TYPE_CHECKING:
    from recbole.model.abstract_recommender import AbstractRecommender

__all__ = ["Rows", "Vectors", "known_class", "reason_without_vectors", "scorer_of", "shared_propagation", "vectors_of"]

SCORERS: dict[str, Scorer] = {**GENERAL, **SEQUENTIAL}
_MODULES = ("recbole.model.", "recbole_prune.models.")


def known_class(model_class: type) -> type | None:
    """The class of RecBole (or of ours) that the table has, a class itself or what it inherits from; None without."""
    for ancestor in model_class.__mro__:
        if ancestor.__name__ in SCORERS and ancestor.__module__.startswith(_MODULES):
            return ancestor
    return None


def scorer_of(model: AbstractRecommender) -> Scorer | None:
    """How a model scores; None where the table does not have its class."""
    known = known_class(type(model))
    return None if known is None else SCORERS[known.__name__].on(model)


def vectors_of(model: AbstractRecommender) -> Vectors | None:
    """The accessor of a model's user and item vectors, which holds no model; None where it has none."""
    scorer = scorer_of(model)
    return scorer if isinstance(scorer, Vectors) else None


def reason_without_vectors(model_class: type) -> str:
    """Why a class has no user and item vectors, one sentence; "" where it has."""
    known = known_class(model_class)
    if known is None:
        return reason_unknown(model_class)
    reason = SCORERS[known.__name__].no_vectors
    return f"{model_class.__name__} {reason}" if reason else ""


def reason_unknown(model_class: type) -> str:
    """Why nothing is known of a class."""
    return (
        f"{model_class.__name__} is no model of RecBole's that trains by gradient and inherits from none, "
        "so where its vectors and logits are is not known"
    )


@contextmanager
def shared_propagation(model: AbstractRecommender) -> Iterator[None]:
    """While it is open, vectors and logits come from what the model's own loss has computed, where that is the same.

    For the length of one training step; or, without gradients, of many calls on a model whose weights do not change:
    its propagated tables are then computed once.
    """
    scorer = scorer_of(model)
    with sharing(model, scorer.methods if scorer else (), scorer.layer(model) if scorer else None):
        yield
