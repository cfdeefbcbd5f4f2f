"""What RecBole's models keep beside their weights: propagated tables, KGAT's attention graph, what they drew."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from recbole.data.interaction import Interaction
from torch import nn

if TYPE_CHECKING:
    from recbole.model.abstract_recommender import AbstractRecommender

# propagated tables that a model computes from its weights and clears at the next loss
CACHES = ("restore_user_e", "restore_item_e", "restore_entity_e", "i_embedding")


def forget_caches(model: nn.Module) -> None:
    """Drop propagated tables, so that the next evaluation computes them from the current weights."""
    for name in CACHES:
        if getattr(model, name, None) is not None:
            setattr(model, name, None)


@torch.no_grad()
def refresh(model: AbstractRecommender) -> None:
    """Compute anew what a model derives from its weights: KGAT's attention graph, propagated tables."""
    if hasattr(model, "update_attentive_A"):  # KGAT's graph follows from its weights but is not saved with them
        model.update_attentive_A()
    forget_caches(model)


def on_device(value: object, device: torch.device) -> Any:
    """What a checkpoint holds as ``other_parameter``, on the device of the model that takes it.

    It is what a model computed or drew (LightGCN's propagated tables, RippleNet's sets) and whole modules (DIN's
    embedding layer), which are moved in place and remember a device of their own: that of the training.

    Args:
        value: tensors and modules in dicts, lists and tuples; anything else stays as it is.
        device: where they go.
    """
    if isinstance(value, dict):
        return {name: on_device(part, device) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(on_device(part, device) for part in value)
    if isinstance(value, nn.Module):
        for module in value.to(device).modules():
            for name, own in list(vars(module).items()):
                if isinstance(own, (torch.Tensor, Interaction)):
                    setattr(module, name, own.to(device))
                elif isinstance(own, torch.device):
                    setattr(module, name, device)
    return value.to(device) if isinstance(value, (torch.Tensor, Interaction)) else value
