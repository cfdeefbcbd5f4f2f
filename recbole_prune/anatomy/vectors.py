"""Where the user and item vectors of a model are; what is known of a class of RecBole holds for its subclasses."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from recbole_prune.anatomy.context_scorers import CONTEXT
from recbole_prune.anatomy.general_scorers import GENERAL
from recbole_prune.anatomy.scorers import Scorer
from recbole_prune.anatomy.sequential_scorers import SEQUENTIAL
from recbole_prune.anatomy.shared_calls import call, sharing
from recbole_prune.anatomy.vector_scorers import Vectors

if TYPE_CHECKING:
    from recbole.data.interaction import Interaction
    from recbole.model.abstract_recommender import AbstractRecommender

SCORERS: dict[str, Scorer] = {**GENERAL, **SEQUENTIAL, **CONTEXT}
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


def field_vectors(model: AbstractRecommender, batch: Interaction) -> torch.Tensor:
    """The vectors of the fields of a context-aware model's rows side by side, differentiable, ``[b, fields x width]``.

    Only for classes that have them (:func:`reason_without_fields`).
    """
    with shared_propagation(model):
        vectors: torch.Tensor = call(model, "concat_embed_input_fields", batch)
    return vectors.flatten(1)


def reason_without_vectors(model_class: type) -> str:
    """Why a class has no user and item vectors, one sentence; "" where it has."""
    return _reason(model_class, "no_vectors")


def reason_without_lists(model_class: type) -> str:
    """Why the rows of a class have no lists of items to score, one sentence; "" where they have."""
    return _reason(model_class, "no_lists")


def reason_without_fields(model_class: type) -> str:
    """Why :func:`field_vectors` has nothing to say of a class, one sentence; "" where it has."""
    return _reason(model_class, "no_fields")


def _reason(model_class: type, name: str) -> str:
    known = known_class(model_class)
    if known is None:
        return reason_unknown(model_class)
    reason = getattr(SCORERS[known.__name__], name)
    return f"{model_class.__name__} {reason}" if reason else ""


def reason_unknown(model_class: type) -> str:
    """Why nothing is known of a class."""
    return (
        f"{model_class.__name__} is no model of RecBole's that trains by gradient and inherits from none, "
        "so where its vectors and logits are is not known"
    )


@contextmanager
def shared_propagation(model: AbstractRecommender, noted: tuple[str, ...] = ()) -> Iterator[None]:
    """While it is open, vectors and logits come from what the model's own loss has computed, where that is the same.

    For the length of one training step; or, without gradients, of many calls on a model whose weights do not change:
    its propagated tables are then computed once.

    Args:
        model: a RecBole model.
        noted: paths of methods of the model whose calls are kept too (:func:`shared_calls.calls_of`).
    """
    scorer = scorer_of(model)
    with sharing(model, scorer.methods if scorer else (), scorer.layer(model) if scorer else None, noted):
        yield
