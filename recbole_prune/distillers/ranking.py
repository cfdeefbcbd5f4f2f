"""Distillers that copy what the teacher ranks: RD, CD, RRD, IR-RRD, and DE with RRD."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from recbole_prune.anatomy.logits import pair_logits
from recbole_prune.data.membership import UsedIds
from recbole_prune.distillers.base import Distiller, Promises
from recbole_prune.distillers.latent import DistillationExperts
from recbole_prune.distillers.listwise import draw_outside, draw_ranks, plackett_luce
from recbole_prune.distillers.soft_labels import (
    discrepancy_weights,
    draw_by_rank,
    position_weights,
    soft_cross_entropy,
    weighted_positives,
)

if TYPE_CHECKING:
    from recbole.data.interaction import Interaction

    from recbole_prune.distillers.teacher import Teacher
    from recbole_prune.training.model import MaskAware

Terms = Mapping[str, tuple[float, torch.Tensor]]
Lists = tuple[np.ndarray, np.ndarray]


class ListDistiller(Distiller):
    """Reads the student's logits of listed items; users are a closed set."""

    promises = Promises(lists=True, refuses=(r"no list",))

    @classmethod
    def ask(cls, teacher: Teacher) -> None:
        """For its rankings."""
        _ = teacher.items_of_users

    def stream(self, purpose: int) -> np.random.Generator:
        """Random numbers of the epoch in work, the same in a continued run."""
        return np.random.default_rng([self.pupils.seed, self.epoch, purpose])

    def distinct_users(self, batch: Interaction) -> torch.Tensor:
        """The users of a batch, each once."""
        users: torch.Tensor = batch[self.pupils.user_field].unique()
        return users

    def logits(self, model: MaskAware, users: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        """Logits of items ``[b, k]`` for users ``[b]``; NaN where an id is -1."""
        return pair_logits(model, users, items.clamp(min=0)).masked_fill(items < 0, float("nan"))


def rows_of(table: np.ndarray, ids: torch.Tensor) -> torch.Tensor:
    """Rows of an array on the CPU, beside their ids."""
    return torch.from_numpy(table[ids.cpu().numpy()]).to(ids.device, torch.long)


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
    lists: np.ndarray,
    excluded: UsedIds,
    interesting: int,
    uninteresting: int,
    sharpness: float | None,
    stream: np.random.Generator,
) -> Lists:
    """The interesting list and the uninteresting set of every key, -1 where there are fewer.

    Args:
        lists: what the teacher ranks first, best first, ``[keys, P]``, -1 behind the end of a list.
        excluded: what is consumed or listed.
        interesting: how many of a list to take.
        uninteresting: how many others to draw.
        sharpness: of the draw from the list; None takes its head.
        stream: random numbers.
    """
    if sharpness is None:
        head = lists[:, :interesting]
    else:
        ranks = draw_ranks((lists >= 0).sum(1), interesting, sharpness, lists.shape[1], stream)
        head = np.where(ranks >= 0, np.take_along_axis(lists, ranks.clip(min=0), axis=1), -1)
    return head, draw_outside(excluded, uninteresting, 1, stream)


class RelaxedRanking(ListDistiller):
    """RRD of Kang et al., CIKM 2020: the order of interesting items, above uninteresting ones without order.

    Source: methods/distillation_ranking.md, section 4.
    """

    def begin_epoch(self) -> None:
        """Draw the lists of all users."""
        settings, lists = self.settings, self.teacher.items_of_users
        self._lists = draw_lists(
            lists,
            outside_of(self.pupils.consumed, lists),
            settings.distill_interesting,
            settings.distill_uninteresting,
            settings.distill_sharpness if settings.distill_sample_interesting else None,
            self.stream(0),
        )

    def terms(self, model: MaskAware, interaction: Interaction) -> Terms:
        """The listwise losses of the distinct users of the batch."""
        users = self.distinct_users(interaction)
        ranked, below = (rows_of(part, users) for part in self._lists)
        losses = plackett_luce(self.logits(model, users, ranked), self.logits(model, users, below))
        return {"rrd": (self.settings.distill_weight, losses.sum())}


class ItemSideRanking(RelaxedRanking):
    """IR-RRD of Kang et al., Information Sciences 2021: beside RRD, the order of users for every item.

    Source: methods/distillation_ranking.md, section 5.
    """

    @classmethod
    def ask(cls, teacher: Teacher) -> None:
        """For its rankings of items and of users."""
        super().ask(teacher)
        _ = teacher.users_of_items

    def begin_epoch(self) -> None:
        """Draw the lists of all users, and those of all items."""
        super().begin_epoch()
        settings, lists = self.settings, self.teacher.users_of_items
        self._item_lists = draw_lists(
            lists,
            outside_of(self.pupils.consumers, lists),
            settings.distill_item_interesting,
            settings.distill_item_uninteresting,
            settings.distill_sharpness if settings.distill_sample_interesting else None,
            self.stream(1),
        )

    def terms(self, model: MaskAware, interaction: Interaction) -> Terms:
        """Those of RRD, and the listwise losses of every item in the lists of the batch's users."""
        users = self.distinct_users(interaction)
        listed = torch.cat([rows_of(part, users).view(-1) for part in self._lists]).unique()
        items = listed[listed > 0]
        ranked, below = (self._of_items(model, items, rows_of(part, items)) for part in self._item_lists)
        item_side = plackett_luce(ranked, below).sum()
        return {**super().terms(model, interaction), "ir": (self.settings.distill_item_weight, item_side)}

    def _of_items(self, model: MaskAware, items: torch.Tensor, users: torch.Tensor) -> torch.Tensor:
        """Logits of items ``[n]`` for users ``[n, k]``; NaN where an id is -1."""
        repeated = items.repeat_interleave(users.shape[1])[:, None]
        found = pair_logits(model, users.clamp(min=0).view(-1), repeated).view(users.shape)
        return found.masked_fill(users < 0, float("nan"))


class ExpertsAndRanking(RelaxedRanking):
    """DE-RRD of Kang et al., CIKM 2020: vectors and ranking together."""

    promises = Promises(
        vectors=True, lists=True, refuses=(*DistillationExperts.promises.refuses, *RelaxedRanking.promises.refuses)
    )

    @classmethod
    def ask(cls, teacher: Teacher) -> None:
        """For its rankings and its tables."""
        super().ask(teacher)
        DistillationExperts.ask(teacher)

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

    def begin_epoch(self) -> None:
        """Draw the items that tell how far down the student ranks the teacher's."""
        nothing = outside_of(self.pupils.consumed, np.full((self.pupils.user_count, 1), -1))
        self._drawn = draw_outside(nothing, self.settings.distill_uninteresting, 1, self.stream(0))

    def terms(self, model: MaskAware, interaction: Interaction) -> Terms:
        """Weighted log-likelihoods of the teacher's items as positives."""
        settings, users = self.settings, self.distinct_users(interaction)
        official = settings.distill_parity == "official"
        best = rows_of(self.teacher.items_of_users[:, : settings.distill_interesting], users)
        scores = self.logits(model, users, best)
        weights = position_weights(best.shape[1], settings.distill_sharpness).to(scores).expand_as(scores)
        if self.epoch >= settings.distill_warmup:
            drawn = rows_of(self._drawn, users)
            with torch.no_grad():
                others = self.logits(model, users, drawn)
                above = (others[:, None, :] > scores[:, :, None]).sum(2)
            counts = (drawn >= 0).sum(1).clamp(min=1)[:, None]
            distance = discrepancy_weights(
                above, counts, self.pupils.item_count - 1, settings.distill_slope, first=0 if official else 1
            )
            weights = weights * distance
            if not official:
                weights = weights / weights.sum(1, keepdim=True).clamp(min=1e-12)
        return {"rd": (settings.distill_weight, weighted_positives(scores, weights).sum())}


class CollaborativeDistillation(ListDistiller):
    """CD of Lee et al., ICDM 2019: soft labels for items that are drawn by rank, better ones more often.

    Source: methods/distillation_ranking.md, section 3; guided by the teacher's ranking.
    """

    def begin_epoch(self) -> None:
        """Draw ranks of all users."""
        settings, lists = self.settings, self.teacher.items_of_users
        lengths = np.maximum((lists >= 0).sum(1), 1)
        self._ranks = draw_by_rank(
            lengths, settings.distill_interesting, settings.distill_rule, settings.distill_sharpness, self.stream(0)
        )

    def terms(self, model: MaskAware, interaction: Interaction) -> Terms:
        """Cross-entropies with the teacher's probabilities."""
        settings, users = self.settings, self.distinct_users(interaction)
        ranks = self._ranks[users.cpu().numpy()]
        lists, scores = (table[users.cpu().numpy()] for table in (self.teacher.items_of_users, self.teacher.scores))
        items, labels = (torch.from_numpy(np.take_along_axis(table, ranks, axis=1)) for table in (lists, scores))
        student = self.logits(model, users, items.to(users.device, torch.long))
        losses = soft_cross_entropy(
            student, labels.to(student), settings.distill_label_scale, settings.distill_label_shift
        )
        return {"cd": (settings.distill_weight, losses.sum())}
