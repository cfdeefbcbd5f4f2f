"""Distillers that copy what the teacher ranks: RD, RRD, IR-RRD, and DE with RRD."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from recbole_prune.anatomy.logits import product_tables, user_logits
from recbole_prune.data.unused_ids import draw_outside
from recbole_prune.data.used_ids import UsedIds
from recbole_prune.distillers.base import Distiller, Promises
from recbole_prune.distillers.batch_lists import (
    Drawn,
    Listed,
    list_source,
    listed_logits,
    listwise_loss,
    take_ranks,
    where_listed,
)
from recbole_prune.distillers.draws import draw_ranks
from recbole_prune.distillers.latent import DistillationExperts
from recbole_prune.distillers.losses.listwise import plackett_luce_of, sum_of_lists
from recbole_prune.distillers.losses.soft_labels import (
    discrepancy_weights,
    position_weights,
    weighted_positives,
)
from recbole_prune.sparse.distinct import distinct
from recbole_prune.teachers.ranked_lists import Ranked

if TYPE_CHECKING:
    from recbole.data.interaction import Interaction
    from recbole.model.abstract_recommender import AbstractRecommender

    from recbole_prune.teachers.base import Teacher
    from recbole_prune.training.model import MaskAware

Terms = Mapping[str, tuple[float, torch.Tensor]]


class ListDistiller(Distiller):
    """Reads the student's logits of listed items."""

    promises = Promises(lists=True, refuses=(r"no list",))

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._source = list_source(self.teacher, self.draw)

    @classmethod
    def ask(cls, student: AbstractRecommender, teacher: Teacher) -> None:
        """For its rankings; where users are histories, for those of a few rows."""
        pupils = teacher.pupils
        _ = teacher.rank_rows(pupils.first_rows().to(student.device)) if pupils.of_rows else teacher.items_of_users

    def begin_epoch(self) -> None:
        """Draw for the epoch."""
        self._source.begin_epoch(self.epoch)

    @abstractmethod
    def draw(self, ranked: Ranked, consumed: UsedIds, stream: np.random.Generator) -> Drawn:
        """What is learned from, for some users or rows.

        Args:
            ranked: what the teacher ranks first for each, with its scores, ``[n, P]``.
            consumed: the items that each has consumed.
            stream: random numbers.
        """


def outside_of(consumed: UsedIds, lists: np.ndarray) -> UsedIds:
    """What is neither consumed nor listed can be drawn: the pairs that cannot."""
    keys, places = np.nonzero(lists >= 0)
    taken, listed = np.divmod(consumed.codes, consumed.value_count), (keys, lists[keys, places])
    return UsedIds(
        np.concatenate([taken[0], listed[0]]),
        np.concatenate([taken[1], listed[1]]),
        consumed.key_count,
        consumed.value_count,
    )


def draw_lists(
    ranked: Ranked,
    outside: UsedIds,
    interesting: int,
    uninteresting: int,
    sharpness: float | None,
    stream: np.random.Generator,
) -> Drawn:
    """The interesting list and the uninteresting set of every key.

    Args:
        ranked: what the teacher ranks first, best first, ``[keys, P]``, -1 behind the end of a list.
        outside: the pairs of which no other can be drawn (:func:`outside_of`).
        interesting: how many of a list to take.
        uninteresting: how many others to draw.
        sharpness: of the draw from the list; None takes its head.
        stream: random numbers.
    """
    lists, scores = ranked
    if sharpness is None:
        head = lists[:, :interesting], scores[:, :interesting]
    else:
        ranks = draw_ranks((lists >= 0).sum(1), interesting, sharpness, lists.shape[1], stream)
        head = take_ranks(ranked, ranks)
    return Drawn(*head, draw_outside(outside, uninteresting, 1, stream))


class RelaxedRanking(ListDistiller):
    """RRD of Kang et al., CIKM 2020: the order of interesting items, above uninteresting ones without order.

    Source: methods/distillation_ranking.md, section 4.
    """

    @cached_property
    def _outside_users_lists(self) -> UsedIds:
        return outside_of(self.pupils.consumed, self.teacher.ranked_items[0])

    def draw(self, ranked: Ranked, consumed: UsedIds, stream: np.random.Generator) -> Drawn:
        """An ordered list and a set."""
        settings = self.settings
        sharpness = settings.distill_sharpness if settings.distill_sample_interesting else None
        counts = settings.distill_interesting, settings.distill_uninteresting
        outside = outside_of(consumed, ranked[0]) if self.pupils.of_rows else self._outside_users_lists
        return draw_lists(ranked, outside, *counts, sharpness, stream)

    def terms(self, model: MaskAware, interaction: Interaction) -> Terms:
        """The listwise losses of the distinct users or of the rows of the batch."""
        return self.terms_of(model, self._source.of(interaction))

    def terms_of(self, model: MaskAware, listed: Listed) -> Terms:
        """The same of lists that were found already."""
        items = torch.cat([listed.interesting, listed.uninteresting], 1)
        total = listwise_loss(model, listed.rows, items, listed.interesting.shape[1])
        return {"rrd": (self.settings.distill_weight, total)}


class ItemSideRanking(RelaxedRanking):
    """IR-RRD of Kang et al., Information Sciences 2021: beside RRD, the order of users for every item.

    Source: methods/distillation_ranking.md, section 5. Items are those in the lists of a batch's users, or a share of
    all, so that an epoch goes through them once; a share counts as often as an epoch has batches, so that the term is
    as large on average as one of all items in every batch.
    """

    promises = Promises(
        lists=True, closed_users=True, refuses=(*RelaxedRanking.promises.refuses, r"are histories and no closed set")
    )

    @classmethod
    def ask(cls, student: AbstractRecommender, teacher: Teacher) -> None:
        """For its rankings of items and of users."""
        super().ask(student, teacher)
        _ = teacher.users_of_items

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._full_batch = 0  # rows; an epoch begins with such a batch

    @cached_property
    def _outside_items_lists(self) -> UsedIds:
        return outside_of(self.pupils.consumers, self.teacher.users_of_items)

    def begin_epoch(self) -> None:
        """Draw the lists of all users, and those of all items."""
        super().begin_epoch()
        settings, lists = self.settings, self.teacher.users_of_items
        drawn = draw_lists(
            (lists, np.broadcast_to(np.float32(0), lists.shape)),
            self._outside_items_lists,
            settings.distill_item_interesting,
            settings.distill_item_uninteresting,
            settings.distill_sharpness if settings.distill_sample_interesting else None,
            np.random.default_rng([self.pupils.seed, self.epoch, 1]),
        )
        self._item_interesting = drawn.interesting.shape[1]
        lists_of_items = np.concatenate([drawn.interesting, drawn.uninteresting], axis=1, dtype=np.int32)
        self._item_lists = torch.from_numpy(lists_of_items)
        order = np.random.default_rng([self.pupils.seed, self.epoch, 2]).permutation(np.arange(1, len(lists)))
        self._shares = np.array_split(order, self.pupils.batches)

    def terms(self, model: MaskAware, interaction: Interaction) -> Terms:
        """Those of RRD, and the listwise losses of the items of the batch."""
        listed = self._source.of(interaction)
        if self.settings.distill_item_batch == "listed":
            ids = torch.cat([listed.interesting, listed.uninteresting], 1)
            weight, items = 1.0, distinct(ids[ids > 0], self.pupils.item_count)[0]
        else:
            # a last, smaller batch has as large a share as others, which must not count for more
            self._full_batch = max(self._full_batch, len(interaction))
            size = 1.0 if self.pupils.rows_add_up else len(interaction) / self._full_batch
            weight = len(self._shares) * size
            items = self._share(listed.interesting.device)
        item_side = weight * self._sum_over(model, items)
        return {**self.terms_of(model, listed), "ir": (self.settings.distill_item_weight, item_side)}

    def _sum_over(self, model: MaskAware, items: torch.Tensor) -> torch.Tensor:
        """The listwise losses of distinct items, added up."""
        self._item_lists = lists = self._item_lists.to(items.device)
        tables = product_tables(model, len(items) * lists.shape[1])
        if tables is not None:
            return sum_of_lists(tables[1], items, tables[0], lists, self._item_interesting)
        users = lists.index_select(0, items).long()
        logits = where_listed(lambda found: user_logits(model, items, found), users)
        return plackett_luce_of(logits, self._item_interesting).sum()

    def _share(self, device: torch.device) -> torch.Tensor:
        """The batch's share of all items; those of an epoch have each item once."""
        return torch.from_numpy(self._shares[self._batch % len(self._shares)]).to(device)


class ExpertsAndRanking(RelaxedRanking):
    """DE-RRD of Kang et al., CIKM 2020: vectors and ranking together."""

    promises = Promises(
        vectors=True, lists=True, refuses=(*DistillationExperts.promises.refuses, *RelaxedRanking.promises.refuses)
    )

    @classmethod
    def ask(cls, student: AbstractRecommender, teacher: Teacher) -> None:
        """For its rankings and its tables."""
        super().ask(student, teacher)
        DistillationExperts.ask(student, teacher)

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._experts = DistillationExperts(*arguments)

    def attach(self, model: MaskAware) -> None:
        """Build the experts."""
        self._experts.attach(model)
        super().attach(model)

    def parameters(self) -> Mapping[str, torch.nn.Parameter]:
        """Those of the experts."""
        return self._experts.parameters()

    def terms(self, model: MaskAware, interaction: Interaction) -> Terms:
        """Those of both."""
        self._experts.epoch = self.epoch
        error = self._experts.error_of(model, interaction)
        return {**super().terms(model, interaction), "de": (self.settings.distill_vector_weight, error)}


class RankingDistillation(ListDistiller):
    """RD of Tang and Wang, KDD 2018: the teacher's best items as further positives.

    Source: methods/distillation_ranking.md, section 2.
    """

    def draw(self, ranked: Ranked, consumed: UsedIds, stream: np.random.Generator) -> Drawn:
        """The best items, and others that tell how far down the student ranks them."""
        ids, scores = (table[:, : self.settings.distill_interesting] for table in ranked)
        return Drawn(ids, scores, draw_outside(consumed, self.settings.distill_uninteresting, 1, stream))

    def terms(self, model: MaskAware, interaction: Interaction) -> Terms:
        """Weighted log-likelihoods of the teacher's items as positives."""
        settings, listed = self.settings, self._source.of(interaction)
        official = settings.distill_parity == "official"
        scores = listed_logits(model, listed.rows, listed.interesting)
        weights = position_weights(scores.shape[1], settings.distill_sharpness).to(scores).expand_as(scores)
        if self.epoch >= settings.distill_warmup:
            drawn = listed.uninteresting
            with torch.no_grad():
                others = listed_logits(model, listed.rows, drawn)
                above = (others[:, None, :] > scores[:, :, None]).sum(2)
            counts = (drawn >= 0).sum(1).clamp(min=1)[:, None]
            distance = discrepancy_weights(
                above, counts, self.pupils.item_count - 1, settings.distill_slope, first=0 if official else 1
            )
            weights = weights * distance
            if not official:
                weights = weights / weights.sum(1, keepdim=True).clamp(min=1e-12)
        return {"rd": (settings.distill_weight, weighted_positives(scores, weights).sum())}
