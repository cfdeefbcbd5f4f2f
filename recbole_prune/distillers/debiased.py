"""UnKD: which of two items of equal popularity the teacher prefers."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn.functional import logsigmoid

from recbole_prune.distillers.base import Distiller
from recbole_prune.distillers.batch_lists import listed_logits
from recbole_prune.distillers.ranking import ListDistiller

if TYPE_CHECKING:
    from recbole.data.interaction import Interaction
    from recbole.model.abstract_recommender import AbstractRecommender

    from recbole_prune.teachers.base import Rows, Teacher
    from recbole_prune.training.model import MaskAware


class UnbiasedDistillation(Distiller):
    """UnKD of Chen et al., WSDM 2023: pairs of items within groups of equal popularity.

    Source: methods/more_methods.md, A4. Pairs are drawn from the teacher's lists, of users once an epoch, of rows batch
    by batch.
    """

    promises = ListDistiller.promises

    @classmethod
    def ask(cls, student: AbstractRecommender, teacher: Teacher) -> None:
        """For its ranking of all items for a few users or rows."""
        pupils = teacher.pupils
        batch = pupils.first_rows().to(student.device)
        rows = batch if pupils.of_rows else batch[pupils.user_field].unique()
        _ = teacher.rank_in_groups(rows, [np.arange(1, pupils.item_count)])

    @cached_property
    def groups(self) -> list[np.ndarray]:
        """Ids of the items of each group."""
        return popularity_groups(self.pupils.consumptions, self.settings.distill_groups)

    @cached_property
    def _lists_of_users(self) -> np.ndarray:
        return self.teacher.items_in_groups(self.groups)

    def begin_epoch(self) -> None:
        """Draw for all users."""
        if not self.pupils.of_rows:
            stream = np.random.default_rng([self.pupils.seed, self.epoch, 5])
            self._of_users = self._draw(self._lists_of_users, stream)

    def _draw(self, lists: np.ndarray, stream: np.random.Generator) -> np.ndarray:
        """Preferred items and others, side by side ``[n, groups, 2 x pairs of a group]``; -1 where there are none."""
        pairs = max(1, round(self.settings.distill_interesting / self.settings.distill_groups))
        lengths = (lists >= 0).sum(2)
        ranks = draw_pairs(lengths.reshape(-1), pairs, self.settings.distill_sharpness, stream)
        ranks = ranks.reshape(*lengths.shape, 2 * pairs)
        return np.where(ranks < 0, -1, np.take_along_axis(lists, ranks.clip(min=0), axis=2))

    def terms(self, model: MaskAware, interaction: Interaction) -> Mapping[str, tuple[float, torch.Tensor]]:
        """The mean of a user's pairs, for each of its rows in the batch."""
        rows: Rows
        if self.pupils.of_rows:
            stream = np.random.default_rng([self.pupils.seed, self.epoch, 5, self._batch])
            drawn = self._draw(self.teacher.rank_in_groups(interaction, self.groups), stream)
            rows, counts = interaction, torch.ones(len(interaction), device=model.device)
        else:
            rows, counts = self.pupils.users_in(interaction)
            drawn = self._of_users[rows.cpu().numpy()]
        both = (half.reshape(len(drawn), -1) for half in np.split(drawn, 2, axis=2))
        items = torch.from_numpy(np.concatenate(list(both), axis=1)).to(model.device, torch.long)
        losses = preference_loss(*listed_logits(model, rows, items).chunk(2, 1))
        return {"unkd": (self.settings.distill_weight, (losses * counts).sum())}


def preference_loss(better: torch.Tensor, worse: torch.Tensor) -> torch.Tensor:
    """The mean of ``-log sigmoid(s+ - s-)`` over the pairs of each row; 0 without any.

    Args:
        better, worse: logits ``[n, pairs]``; NaN where there is no pair.
    """
    there = ~(better.isnan() | worse.isnan())
    losses = -logsigmoid(torch.where(there, better, 0.0) - torch.where(there, worse, 0.0)) * there
    return losses.sum(1) / there.sum(1).clamp(min=1)


def popularity_groups(counts: np.ndarray, wanted: int) -> list[np.ndarray]:
    """Items in groups that are consumed about equally often together, popular ones first.

    A group is full before the item with which it would exceed ``total / wanted``; an item that does so alone is one.
    What is left at the end is a group if it has more than half of that, else it joins the last one. So there may be
    more groups or fewer. Items that nobody consumed stand in the last.

    Args:
        counts: how often each item is consumed ``[N]``; item 0, padding, is in no group.
        wanted: how many groups there should be.

    Returns:
        ids of the items of each group, ascending.
    """
    order = 1 + np.argsort(-counts[1:], kind="stable")
    share, filled = counts[1:].sum() / wanted, 0.0
    groups: list[list[int]] = [[]]
    for item in order[counts[order] > 0].tolist():
        if groups[-1] and filled + counts[item] > share:
            groups.append([])
            filled = 0.0
        groups[-1].append(item)
        filled += counts[item]
    if len(groups) > 1 and filled <= share / 2:
        groups[-2:] = [groups[-2] + groups[-1]]
    groups[-1] += order[counts[order] == 0].tolist()
    return [np.sort(np.array(group, np.int64)) for group in groups]


def draw_pairs(lengths: np.ndarray, count: int, sharpness: float, stream: np.random.Generator) -> np.ndarray:
    """Draw pairs of different ranks, each rank ``k`` with weight ``exp(-k / sharpness)`` and pairs with replacement.

    As two draws of a rank, both repeated while they are equal: such a pair ``a < b`` has the weight
    ``exp(-(2 a + (b - a)) / sharpness)``, so ``a`` and ``b - a`` are drawn each for itself, until ``b`` is in the list.
    At least about half of these are, however sharp the weights.

    Args:
        lengths: of the lists ``[n]``.
        count: pairs to draw for each.
        sharpness: the scale of the weights.
        stream: random numbers.

    Returns:
        ranks ``[n, 2 x count]``, the better ones of all pairs and then the worse ones; -1 where a list has no pair.
    """
    drawn = np.full((2, len(lengths), count), -1, np.int64)
    rows, places = np.nonzero(np.broadcast_to((lengths > 1)[:, None], drawn.shape[1:]))
    while len(rows):
        longest = lengths[rows]
        better = geometric_ranks(stream.random(len(rows)), longest - 1, sharpness / 2)
        worse = better + 1 + geometric_ranks(stream.random(len(rows)), longest - 1, sharpness)
        drawn[:, rows, places] = better, worse
        outside = worse >= longest
        rows, places = rows[outside], places[outside]
    return np.concatenate(list(drawn), axis=1)


def geometric_ranks(uniform: np.ndarray, lengths: np.ndarray, sharpness: float) -> np.ndarray:
    """Ranks below ``lengths`` with weights ``exp(-rank / sharpness)``, of uniform random numbers in ``[0, 1)``."""
    ranks = -sharpness * np.log1p(uniform * np.expm1(-lengths / sharpness))
    found: np.ndarray = np.minimum(ranks.astype(np.int64), lengths - 1)
    return found
