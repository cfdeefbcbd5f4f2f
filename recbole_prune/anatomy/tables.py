"""Where a model keeps one vector per user and per item, and which settings make its tables wide."""

from __future__ import annotations

from torch import nn

# RecBole's settings that say how wide a model's tables are
WIDTH_KEYS = ("embedding_size", "mf_embedding_size", "mlp_embedding_size", "hidden_size")


def user_and_item_table(model: nn.Module) -> tuple[nn.Embedding | None, nn.Embedding | None]:
    """The user table and the item table; None where the model has not just one of them."""
    found = [getattr(model, name, None) for name in ("user_embedding", "item_embedding")]
    users, items = (table if isinstance(table, nn.Embedding) else None for table in found)
    return users, items
