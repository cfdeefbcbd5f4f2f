"""How RecBole's sequential models score: one entry per class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from recbole_prune.anatomy.scorers import OfPairs, Rows, Scorer, WholeRows
from recbole_prune.anatomy.shared_calls import call
from recbole_prune.anatomy.vector_scorers import Vectors

if TYPE_CHECKING:
    from recbole.model.abstract_recommender import AbstractRecommender


@dataclass(frozen=True)
class _Encoded(Vectors):
    """``forward`` makes a vector of a row's history, which is compared with the rows of an item table.

    Attributes:
        fields: names of the model's attributes that name the fields of a row, in the order of ``forward``.
        items: name of the item table.
    """

    of_rows: bool = True
    fields: tuple[str, ...] = ("ITEM_SEQ", "ITEM_SEQ_LEN")
    items: str = "item_embedding"

    def columns(self, model: AbstractRecommender, rows: Rows) -> list[torch.Tensor]:
        """The fields of rows."""
        return [rows[getattr(model, name)] for name in self.fields]

    def user_vectors(self, model: AbstractRecommender, rows: Rows) -> torch.Tensor:
        vectors: torch.Tensor = call(model, "forward", *self.columns(model, rows))
        return vectors

    def item_vectors(self, model: AbstractRecommender, items: torch.Tensor) -> torch.Tensor:
        vectors: torch.Tensor = getattr(model, self.items)(items)
        return vectors

    def item_table(self, model: AbstractRecommender) -> torch.Tensor:
        table: torch.Tensor = getattr(model, self.items).weight[: self.item_count(model)]  # no mask token
        return table


class _BERT4Rec(_Encoded):
    """The place after the last item is masked and read; items have a bias."""

    def user_vectors(self, model: AbstractRecommender, rows: Rows) -> torch.Tensor:
        sequence, length = self.columns(model, rows)
        encoded = model.forward(model.reconstruct_test_data(sequence, length))
        vectors: torch.Tensor = model.gather_indexes(encoded, length - 1)
        return vectors

    def offset(self, model: AbstractRecommender, rows: Rows, items: torch.Tensor) -> torch.Tensor:
        bias: torch.Tensor = model.output_bias[items]
        return bias


class _S3Rec(_Encoded):
    """It counts its mask token among the items."""

    def item_count(self, model: AbstractRecommender) -> int:
        return int(model.n_items) - 1

    def user_vectors(self, model: AbstractRecommender, rows: Rows) -> torch.Tensor:
        sequence, length = self.columns(model, rows)
        encoded = call(model, "forward", sequence, bidirectional=False)
        vectors: torch.Tensor = model.gather_indexes(encoded, length - 1)
        return vectors


@dataclass(frozen=True)
class _OfItemVectors(_Encoded):
    """The item vectors are made from the rows of the table."""

    def item_table(self, model: AbstractRecommender) -> torch.Tensor:
        return self.item_vectors(model, self.all_items(model))


class _CORE(_OfItemVectors):
    """Cosines over a temperature, but for ``predict``, which leaves the items' lengths in."""

    def item_vectors(self, model: AbstractRecommender, items: torch.Tensor) -> torch.Tensor:
        return functional.normalize(super().item_vectors(model, items), dim=-1)

    def query(self, model: AbstractRecommender, rows: Rows) -> torch.Tensor:
        scaled: torch.Tensor = self.user_vectors(model, rows) / model.temperature
        return scaled


class _NPE(_OfItemVectors):
    def item_vectors(self, model: AbstractRecommender, items: torch.Tensor) -> torch.Tensor:
        return super().item_vectors(model, items).relu()


class _KSR(_OfItemVectors):
    """Items and their entities through a layer."""

    def item_vectors(self, model: AbstractRecommender, items: torch.Tensor) -> torch.Tensor:
        both = torch.cat([model.item_embedding(items), model.entity_embedding(items)], dim=-1)
        vectors: torch.Tensor = model.dense_layer_i(both)
        return vectors


class _FPMC(_OfItemVectors):
    """The user and the last item, each with a table of items of its own: side by side, one product."""

    def user_vectors(self, model: AbstractRecommender, rows: Rows) -> torch.Tensor:
        user, sequence, length = self.columns(model, rows)
        last = sequence.gather(1, (length - 1).unsqueeze(1)).squeeze(1)
        return torch.cat([model.UI_emb(user), model.LI_emb(last)], dim=-1)

    def item_vectors(self, model: AbstractRecommender, items: torch.Tensor) -> torch.Tensor:
        return torch.cat([model.IU_emb(items), model.IL_emb(items)], dim=-1)


class _TransRec(_Encoded):
    """Distances to the translated last item, and a bias of the item."""

    def logits(self, model: AbstractRecommender, rows: Rows, items: torch.Tensor) -> torch.Tensor:
        row, item = self.user_vectors(model, rows).unsqueeze(1), self.item_vectors(model, items)
        logits: torch.Tensor = (model.bias(items) - model._l2_distance(row, item)).squeeze(2)
        return logits

    def all_logits(self, model: AbstractRecommender, rows: Rows) -> torch.Tensor:
        row, table = self.user_vectors(model, rows), self.item_table(model)
        distances = torch.cdist(row, table, compute_mode="donot_use_mm_for_euclid_dist")
        logits: torch.Tensor = model.bias.weight[: len(table), 0] - distances
        return logits


@dataclass(frozen=True)
class _Mixture(WholeRows):
    """Scores are probabilities; their loss takes the logarithm with this summand."""

    def probabilities(self, model: AbstractRecommender, rows: Rows) -> torch.Tensor:
        """Of all items."""
        found: torch.Tensor = call(model, "forward", rows[model.ITEM_SEQ], rows[model.ITEM_SEQ_LEN])
        return found

    def all_logits(self, model: AbstractRecommender, rows: Rows) -> torch.Tensor:
        return (self.probabilities(model, rows) + 1e-8).log()

    def ranked(self, model: AbstractRecommender, logits: torch.Tensor) -> torch.Tensor:
        return logits.exp() - 1e-8


class _CPR(_Mixture):
    def probabilities(self, model: AbstractRecommender, rows: Rows) -> torch.Tensor:
        found: torch.Tensor = model.calculate_loss_prob(rows, only_compute_prob=True)[1]
        if model.post_remove_context:
            found = found.scatter(1, rows[model.ITEM_SEQ], 0)
        return found


class _DIN(OfPairs):
    """``predict`` adds a sigmoid."""

    def of_pairs(self, model: AbstractRecommender, items: torch.Tensor, *fields: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = model.forward(*fields, items)
        return logits

    def predicted(self, model: AbstractRecommender, logits: torch.Tensor) -> torch.Tensor:
        return logits.sigmoid()


class _DIEN(_DIN):
    """Disliked sequences matter to its auxiliary loss only, so any will do."""

    def of_pairs(self, model: AbstractRecommender, items: torch.Tensor, *fields: torch.Tensor) -> torch.Tensor:
        user, sequence, length = fields
        logits: torch.Tensor = model.forward(user, sequence, sequence, length, items)[0]
        return logits


_SEQUENCE_AND_LENGTH = (
    "FDSA FEARec GCSAN GRU4Rec GRU4RecF GRU4RecKG LightSANs NARM SASRec SASRecF SINE SRGNN STAMP".split()
)
_USER_FIRST = ("USER_ID", "ITEM_SEQ", "ITEM_SEQ_LEN")
_FACETS = "mixes several vectors of a row and copies from its sequence, so no single vector scores"
_ATTENTION = "weighs a history anew for every item, so it has no vector of a row"

SEQUENTIAL: dict[str, Scorer] = {
    **{name: _Encoded() for name in _SEQUENCE_AND_LENGTH},
    "NextItNet": _Encoded(fields=("ITEM_SEQ",)),
    "Caser": _Encoded(fields=("USER_ID", "ITEM_SEQ")),
    "HGN": _Encoded(fields=("ITEM_SEQ", "USER_ID"), items="item_embedding_for_prediction"),
    # its loss and predict() read the sequence with the padding in front, full_sort_predict() does not: as it ranks
    "SHAN": _Encoded(fields=("ITEM_SEQ", "USER_ID")),
    "NPE": _NPE(fields=("ITEM_SEQ", "USER_ID")),
    "HRM": _Encoded(fields=("ITEM_SEQ", "USER_ID", "ITEM_SEQ_LEN")),
    "FOSSIL": _Encoded(fields=("ITEM_SEQ", "ITEM_SEQ_LEN", "USER_ID")),
    "FPMC": _FPMC(fields=_USER_FIRST),
    "TransRec": _TransRec(fields=_USER_FIRST, dot=False),
    "KSR": _KSR(),
    "CORE": _CORE(fields=("ITEM_SEQ",), dot=False),
    "BERT4Rec": _BERT4Rec(dot=False),
    "S3Rec": _S3Rec(),
    "RepeatNet": _Mixture(no_vectors="mixes copies from a row's sequence with new items, so no product scores"),
    **{name: _CPR(no_vectors=_FACETS) for name in ("GRU4RecCPR", "SASRecCPR")},
    "DIN": _DIN(fields=_USER_FIRST, no_vectors=_ATTENTION),
    "DIEN": _DIEN(fields=_USER_FIRST, no_vectors=_ATTENTION),
}
