"""How RecBole's general and knowledge-aware models, and ours, score: one entry per class."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from recbole_prune.anatomy.scorers import OfPairs, Rows, Scorer, WholeRows, user_ids
from recbole_prune.anatomy.shared_calls import call, watched
from recbole_prune.anatomy.vector_scorers import Decoded, LookedUp, Propagated, Vectors, last_linear

if TYPE_CHECKING:
    from recbole.model.abstract_recommender import AbstractRecommender


class _ENMF(LookedUp):
    """The products are weighted by H."""

    def query(self, model: AbstractRecommender, rows: Rows) -> torch.Tensor:
        weighted: torch.Tensor = self.user_vectors(model, rows) * model.H_i.weight[0]
        return weighted


class _DMF(Vectors):
    """Networks read the rows and columns of the interaction matrix."""

    def user_vectors(self, model: AbstractRecommender, rows: Rows) -> torch.Tensor:
        vectors: torch.Tensor = model.user_fc_layers(model.get_user_embedding(user_ids(model, rows)))
        return vectors

    def item_table(self, model: AbstractRecommender) -> torch.Tensor:
        table: torch.Tensor = call(model, "get_item_embedding", whole=True)
        return table

    def _has_table(self, model: AbstractRecommender, pairs: int) -> bool:
        return True

    def ranked(self, model: AbstractRecommender, logits: torch.Tensor) -> torch.Tensor:
        return logits.sigmoid()


class _SimpleX(LookedUp):
    """Cosines with a mixture of the user and its history, here as in ranking without dropout."""

    def user_vectors(self, model: AbstractRecommender, rows: Rows) -> torch.Tensor:
        ids = user_ids(model, rows)
        history = model.item_emb(model.history_item_id[ids])
        mixed = model.get_UI_aggregation(model.user_emb(ids), history, model.history_item_len[ids])
        return functional.normalize(mixed, dim=1)

    def item_vectors(self, model: AbstractRecommender, items: torch.Tensor) -> torch.Tensor:
        return functional.normalize(model.item_emb(items), dim=-1)

    def item_table(self, model: AbstractRecommender) -> torch.Tensor:
        return functional.normalize(model.item_emb.weight, dim=-1)


class _FISM(LookedUp):
    """The user is the sum of its history. RecBole leaves the target item in it, so it depends on the user alone.

    ``forward`` ends in a sigmoid, ``predict`` adds a second one, ``full_sort_predict`` has none.
    """

    def user_vectors(self, model: AbstractRecommender, rows: Rows) -> torch.Tensor:
        ids = user_ids(model, rows)
        # the model itself divides by 0 where there is no history
        scale = model.history_lens[ids].clamp(min=1).float().pow(-model.alpha)
        shares = model.mask_mat[ids] * scale.unsqueeze(1)
        return functional.embedding_bag(
            model.history_item_matrix[ids], model.item_src_embedding.weight, mode="sum", per_sample_weights=shares
        )

    def offset(self, model: AbstractRecommender, rows: Rows, items: torch.Tensor) -> torch.Tensor:
        biases: torch.Tensor = model.user_bias[user_ids(model, rows)].unsqueeze(1) + model.item_bias[items]
        return biases

    def predicted(self, model: AbstractRecommender, logits: torch.Tensor) -> torch.Tensor:
        return logits.sigmoid().sigmoid()


@dataclass(frozen=True)
class _PairsOfTables(OfPairs, LookedUp):
    """A network reads rows of two tables."""


class _PairsBySigmoid(_PairsOfTables):
    """... and ``predict`` adds a sigmoid."""

    def predicted(self, model: AbstractRecommender, logits: torch.Tensor) -> torch.Tensor:
        return logits.sigmoid()


class _NeuMF(_PairsBySigmoid):
    """The vectors are those of the matrix factorisation, and the others where a model is trained without it."""

    def on(self, model: AbstractRecommender) -> Scorer:
        if model.mf_train:
            return self
        return replace(self, users="user_mlp_embedding", items="item_mlp_embedding", shared_space=False)


class _NAIS(OfPairs):
    """``forward`` gives logits; ``predict`` and ``full_sort_predict`` add a sigmoid."""

    def ranked(self, model: AbstractRecommender, logits: torch.Tensor) -> torch.Tensor:
        return logits.sigmoid()


class _GCMC(Propagated):
    """Bilinear: the score of the second class is a weighted sum of products through basis matrices."""

    def query(self, model: AbstractRecommender, rows: Rows) -> torch.Tensor:
        decoder = model.BiDecoder
        shares = decoder.dense_layer.weight[1]
        matrix: torch.Tensor = sum(share * basis for share, basis in zip(shares, decoder.weights))
        return self.user_vectors(model, rows) @ matrix

    def propagate(self, model: AbstractRecommender) -> tuple[torch.Tensor, torch.Tensor]:
        users, items = call(model, self.path, model.user_features, model.item_features, whole=True)
        return users, items


class _CDAE(Decoded):
    """The hidden layer also has a vector of the user's own; scores go through an activation."""

    def arguments(self, model: AbstractRecommender, users: torch.Tensor) -> Iterator[object]:
        yield from super().arguments(model, users)
        yield users

    def ranked(self, model: AbstractRecommender, logits: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = model.o_act(logits)
        return scores


class _RecVAE(Decoded):
    def arguments(self, model: AbstractRecommender, users: torch.Tensor) -> Iterator[object]:
        yield from super().arguments(model, users)
        yield model.dropout_prob


@dataclass(frozen=True)
class _MacridVAE(WholeRows, Vectors):
    """A user has a vector for each concept; they are given side by side."""

    methods: tuple[str, ...] = ("get_rating_matrix", "forward")

    def _forward(self, model: AbstractRecommender, rows: Rows) -> tuple[torch.Tensor, list[torch.Tensor]]:
        logits, means, _ = call(model, "forward", call(model, "get_rating_matrix", user_ids(model, rows)))
        return logits, means

    def user_vectors(self, model: AbstractRecommender, rows: Rows) -> torch.Tensor:
        return torch.cat(self._forward(model, rows)[1], dim=1)

    def item_vectors(self, model: AbstractRecommender, items: torch.Tensor) -> torch.Tensor:
        return functional.normalize(model.item_embedding(items), dim=-1)

    def all_logits(self, model: AbstractRecommender, rows: Rows) -> torch.Tensor:
        return self._forward(model, rows)[0]


class _Diffusion(WholeRows):
    def all_logits(self, model: AbstractRecommender, rows: Rows) -> torch.Tensor:
        scores: torch.Tensor = model.full_sort_predict({model.USER_ID: user_ids(model, rows)})
        return scores


@dataclass(frozen=True)
class _CFKG(OfPairs, LookedUp):
    """The user is translated; then a product or, by ``loss_function``, a distance."""

    items: str = "entity_embedding"

    def on(self, model: AbstractRecommender) -> Scorer:
        return replace(self, dot=model.loss_function == "inner_product")

    def user_vectors(self, model: AbstractRecommender, rows: Rows) -> torch.Tensor:
        vectors: torch.Tensor = super().user_vectors(model, rows) + model.relation_embedding.weight[-1]
        return vectors

    def logits(self, model: AbstractRecommender, rows: Rows, items: torch.Tensor) -> torch.Tensor:
        return Vectors.logits(self, model, rows, items) if self.dot else super().logits(model, rows, items)


class _CKE(LookedUp):
    def item_vectors(self, model: AbstractRecommender, items: torch.Tensor) -> torch.Tensor:
        vectors: torch.Tensor = model.item_embedding(items) + model.entity_embedding(items)
        return vectors

    def item_table(self, model: AbstractRecommender) -> torch.Tensor:
        table: torch.Tensor = super().item_table(model) + model.entity_embedding.weight[: self.item_count(model)]
        return table


@dataclass(frozen=True)
class _KTUP(OfPairs, _CKE):
    """A distance after a projection that depends on both."""

    def of_pairs(self, model: AbstractRecommender, items: torch.Tensor, *fields: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = model._get_score(*model.forward(*fields, items))
        return logits


class _MCCLK(Propagated):
    """Two views of users and items side by side."""

    def propagate(self, model: AbstractRecommender) -> tuple[torch.Tensor, torch.Tensor]:
        semantic, users, items, of_graph, entities = call(model, self.path, whole=True)
        of_items = torch.cat([entities, semantic + items], dim=-1)
        return torch.cat([of_graph, users], dim=-1), of_items[: self.item_count(model)]

    def ranked(self, model: AbstractRecommender, logits: torch.Tensor) -> torch.Tensor:
        return logits.sigmoid() if model.loss_type.lower() == "bce" else logits


@dataclass(frozen=True)
class _MKR(OfPairs, LookedUp):
    """Items and their entities are crossed; scores are products unless ``use_inner_product`` is off."""

    def on(self, model: AbstractRecommender) -> Scorer:
        return self if model.use_inner_product else replace(self, dot=False, shared_space=False)

    def user_vectors(self, model: AbstractRecommender, rows: Rows) -> torch.Tensor:
        vectors: torch.Tensor = model.user_mlp(model.user_embeddings_lookup(user_ids(model, rows)))
        return vectors

    def item_vectors(self, model: AbstractRecommender, items: torch.Tensor) -> torch.Tensor:
        flat = items.reshape(-1)
        crossed = model.cc_unit([model.item_embeddings_lookup(flat), model.entity_embeddings_lookup(flat)])[0]
        vectors: torch.Tensor = crossed.reshape(*items.shape, crossed.shape[-1])
        return vectors

    def item_table(self, model: AbstractRecommender) -> torch.Tensor:
        return self.item_vectors(model, self.all_items(model))

    def logits(self, model: AbstractRecommender, rows: Rows, items: torch.Tensor) -> torch.Tensor:
        return Vectors.logits(self, model, rows, items) if self.dot else super().logits(model, rows, items)

    def of_pairs(self, model: AbstractRecommender, items: torch.Tensor, *fields: torch.Tensor) -> torch.Tensor:
        with watched(
            last_linear(model.rs_pred_mlp)
        ) as seen:  # its scores, which its loss takes as logits, are sigmoids
            model.forward(*fields, items, items)
        return seen[-1][1]

    def ranked(self, model: AbstractRecommender, logits: torch.Tensor) -> torch.Tensor:
        return logits if self.dot else logits.sigmoid()


class _Attending(OfPairs):
    """The item vector is made for the user."""

    def of_pairs(self, model: AbstractRecommender, items: torch.Tensor, *fields: torch.Tensor) -> torch.Tensor:
        users, vectors = model.forward(*fields, items)
        logits: torch.Tensor = (users * vectors).sum(1)
        return logits


class _RippleNet(OfPairs):
    def of_pairs(self, model: AbstractRecommender, items: torch.Tensor, *fields: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = model.forward({model.USER_ID: fields[0], model.ITEM_ID: items})
        return logits


GENERAL: dict[str, Scorer] = {
    **{name: LookedUp() for name in ("BPR", "LINE", "UltraGCN")},
    **{name: Propagated() for name in ("DGCF", "LightGCN", "NGCF", "SpectralCF", "NCL", "KGAT", "KGIN")},
    "SGL": Propagated(argument="train_graph"),
    "MCCLK": _MCCLK(),
    "GCMC": _GCMC(dot=False, shared_space=False, path="GcEncoder.forward", methods=("GcEncoder.forward",)),
    "ENMF": _ENMF(dot=False),
    "DMF": _DMF(),
    "SimpleX": _SimpleX(),
    "FISM": _FISM(dot=False, items="item_dst_embedding"),
    "ConvNCF": _PairsOfTables(dot=False, shared_space=False),  # a network reads the outer product
    "NNCF": _PairsBySigmoid(dot=False),
    "NeuMF": _NeuMF(dot=False, users="user_mf_embedding", items="item_mf_embedding"),
    "NAIS": _NAIS(no_vectors="weighs a user's history anew for every item, so it has vectors of items only"),
    "CDAE": _CDAE(decoder="out_layer"),
    **{name: Decoded() for name in ("MultiDAE", "MultiVAE", "RaCT")},
    "RecVAE": _RecVAE(),
    "MacridVAE": _MacridVAE(dot=False, shared_space=False),
    **{
        name: _Diffusion(no_vectors="denoises whole rows of interactions in several steps, so it has no vectors")
        for name in ("DiffRec", "LDiffRec")
    },
    "CFKG": _CFKG(),
    "CKE": _CKE(),
    "KTUP": _KTUP(dot=False),
    "MKR": _MKR(),
    **{
        name: _Attending(no_vectors="makes an item's vector anew for every user, so it has vectors of users only")
        for name in ("KGCN", "KGNNLS")
    },
    "RippleNet": _RippleNet(no_vectors="makes a user's vector anew for every item, so it has vectors of items only"),
}
