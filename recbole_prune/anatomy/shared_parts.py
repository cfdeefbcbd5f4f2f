"""What a model shares with further heads: its user and item vectors, or its tables; and what its own loss asks for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Callable

import torch

from recbole_prune.anatomy.scorers import Rows, user_ids
from recbole_prune.anatomy.shared_calls import call
from recbole_prune.anatomy.vector_scorers import Decoded, LookedUp, Propagated, Vectors
from recbole_prune.anatomy.vectors import known_class, reason_unknown, reason_without_vectors, vectors_of
from recbole_prune.sparse.compact import CompactEmbedding

if TYPE_CHECKING:
    from recbole.model.abstract_recommender import AbstractRecommender

# the five objectives of ConCF (methods/distillation_ranking.md, section 6)
BPR, CML, BCE, MSE, MULTINOMIAL = "bpr", "cml", "bce", "mse", "multinomial"

Tables = tuple[tuple[str, ...], tuple[str, ...]]  # names of tables of users, of items
Sources = tuple["list[torch.Tensor]", "list[torch.Tensor]"]  # of users, of items


def _neumf_tables(model: AbstractRecommender) -> Tables:
    """Of both halves, or of the one that is trained."""
    halves = [half for half in ("mf", "mlp") if getattr(model, f"{half}_train")]
    return tuple(f"user_{half}_embedding" for half in halves), tuple(f"item_{half}_embedding" for half in halves)


# models that score by more than a product of two vectors, or have no vectors, but keep tables
_TABLES: dict[str, Callable[[AbstractRecommender], Tables]] = {
    "NeuMF": _neumf_tables,
    "SimpleX": lambda model: (("user_emb",), ("item_emb",)),
    "MKR": lambda model: (("user_embeddings_lookup",), ("item_embeddings_lookup",)),
    **{name: lambda model: (("user_embedding",), ("entity_embedding",)) for name in ("KGCN", "KGNNLS")},
}
# no table of users; or vectors are made of several results of a call, or not those that every loss of theirs reads
_BY_WEIGHTS = ("FISM", "GCMC", "MCCLK", "RecVAE")

# by the loss in RecBole's source; others go by how RecBole feeds them
_OBJECTIVES = {
    **dict.fromkeys(("MultiDAE", "MultiVAE", "RecVAE", "MacridVAE", "RaCT"), MULTINOMIAL),
    **dict.fromkeys(("GCMC", "LINE", "UltraGCN", "KGCN", "KGNNLS"), BCE),
    **dict.fromkeys(("ENMF", "DiffRec", "LDiffRec"), MSE),
    "SimpleX": "",  # a margin on cosines
}


@dataclass(frozen=True)
class SharedTables(Vectors):
    """Vectors are rows of several tables side by side.

    Attributes:
        users, items: names of the tables.
    """

    users: tuple[str, ...] = ()
    items: tuple[str, ...] = ()

    def user_vectors(self, model: AbstractRecommender, rows: Rows) -> torch.Tensor:
        """Rows of the tables of users."""
        return torch.cat([getattr(model, name)(user_ids(model, rows)) for name in self.users], dim=-1)

    def item_vectors(self, model: AbstractRecommender, items: torch.Tensor) -> torch.Tensor:
        """Rows of the tables of items."""
        return torch.cat([getattr(model, name)(items) for name in self.items], dim=-1)


def shared_parts(model: AbstractRecommender) -> Vectors | None:
    """The accessor of what a model shares, which holds no model: its tables where those are listed, else its vectors.

    None where it has neither (:func:`reason_without_parts`).
    """
    known = known_class(type(model))
    if known is not None and known.__name__ in _TABLES:
        users, items = _TABLES[known.__name__](model)
        return SharedTables(dot=False, users=users, items=items)
    return vectors_of(model)


def reason_without_parts(model_class: type) -> str:
    """Why a class has nothing to share, one sentence; "" where it has."""
    known = known_class(model_class)
    if known is None:
        return reason_unknown(model_class)
    return "" if known.__name__ in _TABLES else reason_without_vectors(model_class)


def sources_of(model: AbstractRecommender, rows: Rows) -> Sources:
    """Tensors through which :func:`shared_parts` of these rows and the model's own loss go, of one training step.

    Tables, propagated tables, or an autoencoder's last layer and its input (if the rows are those of its batch); where
    the loss goes another way than others can, all weights of the model, on either side.
    """
    parts, known = shared_parts(model), known_class(type(model))
    assert parts is not None and known is not None, "a model without parts is refused before any training"
    if known.__name__ in _BY_WEIGHTS:
        return _all_weights(model)
    if isinstance(parts, SharedTables):
        return [_weight(model, name) for name in parts.users], [_weight(model, name) for name in parts.items]
    if isinstance(parts, LookedUp):
        return [_weight(model, parts.users)], [_weight(model, parts.items)]
    if isinstance(parts, Propagated):
        arguments = [getattr(model, parts.argument)] if parts.argument else []
        users, items = call(model, parts.path, *arguments, whole=True)[:2]
        return [users], [items]
    if isinstance(parts, Decoded):
        return [parts.user_vectors(model, rows)], [parts.layer(model).weight]
    return _all_weights(model)


def _all_weights(model: AbstractRecommender) -> Sources:
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    return weights, weights


def _weight(model: AbstractRecommender, name: str) -> torch.Tensor:
    """The parameter of a table: what it holds, or its live entries only."""
    table = getattr(model, name)
    weight: torch.Tensor = table.values if isinstance(table, CompactEmbedding) else table.weight
    return weight


def own_objective(model: AbstractRecommender) -> str:
    """Which of the five objectives is nearest to a model's own loss; "" where none is."""
    known = known_class(type(model))
    assert known is not None, "an unknown class is refused before any training"
    if known.__name__ == "CDAE":
        return str(model.loss_type).lower()
    by_feed = BPR if model.input_type.name == "PAIRWISE" else BCE
    return _OBJECTIVES.get(known.__name__, by_feed)
