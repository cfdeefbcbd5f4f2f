"""Where a model keeps one vector per user and per item, what makes its tables wide, which rows need a value."""

from __future__ import annotations

from torch import nn

# RecBole's settings that say how wide a model's tables are
WIDTH_KEYS = ("embedding_size", "mf_embedding_size", "mlp_embedding_size", "hidden_size")

# tables whose rows may not be all zeros: the loss, or its gradient, divides by their length (MCCLK's graph of similar
# entities, KTUP's orthogonality) or by the length of their differences (TransRec)
_NO_ROW_OF_ZEROS = {
    "recbole.model.knowledge_aware_recommender.mcclk": ("entity_embedding.weight",),
    "recbole.model.knowledge_aware_recommender.ktup": ("pref_embedding.weight", "relation_embedding.weight"),
    "recbole.model.sequential_recommender.transrec": ("item_embedding.weight",),
}


def tables_without_empty_rows(model_class: type) -> tuple[str, ...]:
    """Names of the tables in which every row needs a value other than 0, or a loss of the model is not finite."""
    return tuple(name for each in model_class.__mro__ for name in _NO_ROW_OF_ZEROS.get(each.__module__, ()))


def user_and_item_table(model: nn.Module) -> tuple[nn.Embedding | None, nn.Embedding | None]:
    """The user table and the item table; None where the model has not just one of them."""
    found = [getattr(model, name, None) for name in ("user_embedding", "item_embedding")]
    users, items = (table if isinstance(table, nn.Embedding) else None for table in found)
    return users, items
