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
