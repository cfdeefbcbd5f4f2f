"""What RecBole's models compute from their weights and keep: propagated tables, KGAT's attention graph."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
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
