"""Which losses RecBole's trainers compute from a model, and what they do before."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from recbole.data.interaction import Interaction
    from recbole.model.abstract_recommender import AbstractRecommender

Loss = Callable[..., Any]

LOSSES = ("calculate_loss", "calculate_rs_loss")
# the loss of a batch is a sum over its rows, where that of others is a mean; S3Rec's is while it pretrains
_SUMS = {"CDAE", "ConvNCF", "ENMF", "SGL", "UltraGCN"}
_MODULES = ("recbole.", "recbole_prune.")


def owner(model_class: type, methods: tuple[str, ...]) -> str | None:
    """Name of the class that defines the first of the methods that there is; None where that is a user's own."""
    for ancestor in model_class.__mro__:
        if vars(ancestor).keys() & set(methods):
            return ancestor.__name__ if ancestor.__module__.startswith(_MODULES) else None
    return None


def adds_rows_up(model_class: type, train_stage: str | None = None) -> bool:
    """Whether the loss of a batch grows with its rows; what a class of a user's own does is taken for a mean.

    Args:
        model_class: a RecBole model's.
        train_stage: its setting of this name, of those that have stages.
    """
    found = owner(model_class, LOSSES)
    return found in _SUMS or (found == "S3Rec" and train_stage == "pretrain")


def recommendation_loss(model_class: type) -> str:
    """Name of the method whose loss trains recommending; MKR has one of its own for it."""
    return "calculate_rs_loss" if hasattr(model_class, "calculate_rs_loss") else "calculate_loss"


def has_graph_loss(model: nn.Module) -> bool:
    """Whether the trainer also goes through the triples of a knowledge graph (KGAT, KTUP, MKR)."""
    return hasattr(model, "calculate_kg_loss")


def batch_losses(model: AbstractRecommender, interaction: Interaction) -> Iterator[torch.Tensor]:
    """Every loss that the model's trainer makes a step on, for one batch that holds what all of them need.

    Args:
        model: a RecBole model in training mode.
        interaction: a batch; of knowledge models one with interactions and triples.
    """
    if hasattr(model, "e_step"):  # NCL's trainer clusters the tables before the first epoch
        model.e_step()
    own: Loss = getattr(model, recommendation_loss(type(model)))
    if "encoder_flag" in inspect.signature(own).parameters:  # RecVAE's trains encoder and decoder in turn
        yield from (_total(own(interaction, encoder_flag=flag)) for flag in (True, False))
    else:
        yield _total(own(interaction))
    if has_graph_loss(model):
        yield _total(model.calculate_kg_loss(interaction))


def _total(losses: torch.Tensor | tuple[torch.Tensor, ...]) -> torch.Tensor:
    return torch.stack([loss.reshape(()) for loss in losses]).sum() if isinstance(losses, tuple) else losses
