"""The L2 term of the LTH-MRS code, for models that have none of their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import nn

from recbole_prune.anatomy.tables import user_and_item_table
from recbole_prune.errors import ConfigError
from recbole_prune.training.parts import Part

if TYPE_CHECKING:
    from recbole.data.interaction import Interaction

    from recbole_prune.training.model import MaskAware


class BatchL2(Part):
    """``prune_l2_weight`` times the squared norm of the rows that a batch looks up.

    Args:
        weight: factor of the term.
    """

    name = "l2"

    def __init__(self, weight: float) -> None:
        self.weight = weight

    def attach(self, model: MaskAware) -> None:
        """Find the tables.

        Raises:
            ConfigError: the model has no single user table and item table.
        """
        for kind, table in zip(("user", "item"), user_and_item_table(model)):
            if table is None:
                raise ConfigError(
                    f"prune_l2_weight={self.weight} needs a model with the tables user_embedding and item_embedding; "
                    f"{type(model).__name__} has no {kind}_embedding: leave prune_l2_weight out"
                )

    def losses(self, model: MaskAware, interaction: Interaction) -> Mapping[str, torch.Tensor]:
        """The weighted term."""
        return {"l2": self.weight * batch_l2(model, interaction)}


def batch_l2(model: nn.Module, interaction: Interaction) -> torch.Tensor:
    """Half the squared norm of the batch's user, positive and negative rows over the batch size.

    Source: the official LTH-MRS code (methods/lottery_ticket.md, section 1).
    """
    users, items = user_and_item_table(model)
    assert users is not None and items is not None, "BatchL2.attach has found them"
    rows = [users(interaction[model.USER_ID]), items(interaction[model.ITEM_ID])]
    if model.NEG_ITEM_ID in interaction.interaction:
        rows.append(items(interaction[model.NEG_ITEM_ID]))
    squares = torch.stack([row.pow(2).sum() for row in rows])
    return squares.sum() / (2 * len(rows[0]))
