"""RCE-KD: soft labels on what the student ranks first, and on what the teacher does and the student misses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch

from recbole_prune.anatomy.logits import factors_of_pairs
from recbole_prune.distillers.batch_lists import listed_logits, where_listed
from recbole_prune.distillers.draws import draw_weighted
from recbole_prune.distillers.losses.products import loops_take
from recbole_prune.distillers.losses.soft_labels import TwoLists, soft_list_cross_entropy, sum_of_two_lists
from recbole_prune.distillers.ranking import ListDistiller
from recbole_prune.distillers.student_lists import Labelled, StudentGuided, rank_by_student
from recbole_prune.sparse.pair_scores import pair_scores

if TYPE_CHECKING:
    from recbole.data.interaction import Interaction
    from recbole.model.abstract_recommender import AbstractRecommender

    from recbole_prune.teachers.base import Rows, Teacher
    from recbole_prune.training.model import MaskAware

_MOST_COUNTED = 50  # of the teacher's items further down, in the weight of a draw
_ROWS_AT_ONCE = 1 << 10


class RejuvenatedCrossEntropy(StudentGuided):
    """RCE-KD, arXiv 2509.20989: cross-entropy on the student's first items, where it bounds an NDCG, and on others.

    Source: methods/more_methods.md, A2. Every epoch each user has the ``K`` items that the student ranks first, and the
    union of ``L`` items drawn from a longer list of the student's and of the teacher's ``K`` items that are in neither.
    """

    @classmethod
    def ask(cls, student: AbstractRecommender, teacher: Teacher) -> None:
        """For its rankings, and its scores of an item of a few users or rows."""
        teacher.require_scores()
        ListDistiller.ask(student, teacher)
        batch = teacher.pupils.first_rows().to(student.device)
        rows = batch if teacher.pupils.of_rows else batch[teacher.pupils.user_field].unique()
        _ = teacher.pair_logits(rows, torch.ones(len(rows), 1, dtype=torch.long, device=student.device))

    @property
    def pairs_of_user(self) -> float:
        """All items of both lists."""
        return float(2 * self.settings.distill_interesting + self.settings.distill_drawn)

    def before_users(self, model: MaskAware) -> None:
        """Rank for all users."""
        self._lists = self._ranked_by_student(model, None)

    def _ranked_by_student(self, model: MaskAware, rows: Interaction | None) -> np.ndarray:
        unranked = self.pupils.unranked if rows is None else self.pupils.unranked_in(rows)
        return rank_by_student(model, rows, unranked, self.settings.distill_student_length)

    def label(self, model: MaskAware, rows: Rows, stream: np.random.Generator) -> Labelled:
        """The student's first items, then the union: those drawn, and the teacher's that are in neither."""
        settings = self.settings
        if isinstance(rows, torch.Tensor):
            users = rows.cpu().numpy()
            student, teacher = self._lists[users], self.teacher.ranked_items[0][users]
        else:
            student, teacher = self._ranked_by_student(model, rows), self.teacher.rank_rows(rows)[0]
        mine = torch.from_numpy(student).long()
        theirs = torch.from_numpy(teacher[:, : settings.distill_interesting]).long()
        weights = log_weights(mine, theirs, settings.distill_sharpness).numpy()
        places = torch.from_numpy(draw_weighted(weights, settings.distill_drawn, stream))
        drawn = mine.gather(1, places.clamp(min=0)).masked_fill(places < 0, -1)
        first = mine[:, : settings.distill_interesting]
        missed, overlap = missed_items(theirs, drawn, first)
        items = torch.cat([first, drawn, missed], 1).to(model.device)
        return (*self.by_teacher(rows, items), overlap.to(model.device))

    def begin_epoch(self) -> None:
        """Forget what was chosen."""
        super().begin_epoch()
        self._two_lists: TwoLists | None = None

    def terms(self, model: MaskAware, interaction: Interaction) -> Mapping[str, tuple[float, torch.Tensor]]:
        """Cross-entropies, a user's for each of its rows in the batch."""
        total = self._in_one_loop(model, interaction)
        if total is None:
            rows, chosen = self.labelled(model, interaction)
            total = self._by_logits(listed_logits(model, rows, chosen[0]), chosen, interaction)
        return {"rce": (self.settings.distill_weight, total)}

    def _by_logits(self, scores: torch.Tensor, chosen: Labelled, interaction: Interaction) -> torch.Tensor:
        settings = self.settings
        numbers = settings.distill_interesting, settings.distill_overlap_rate, settings.distill_label_scale
        losses = combined_loss(scores, chosen[1], chosen[2], *numbers)
        return losses.sum() if self.pupils.of_rows else (losses * self.pupils.users_in(interaction)[1]).sum()

    def _in_one_loop(self, model: MaskAware, interaction: Interaction) -> torch.Tensor | None:
        """The same of users whose logits are products; None for others, and where no loop is compiled."""
        if self.pupils.of_rows or model.device.type != "cpu":
            return None
        users, counts = self.pupils.users_in(interaction)
        factors = factors_of_pairs(model, users, int(self.pairs_of_user * len(users)))
        if factors is None or not loops_take(*factors):
            return None
        settings = self.settings
        if self._two_lists is None:
            numbers = settings.distill_interesting, settings.distill_overlap_rate, settings.distill_label_scale
            parts = zip(*(table.split(_ROWS_AT_ONCE) for table in self.labelled_users(model)))
            found = [two_lists(items, labels, overlap, *numbers) for items, labels, overlap in parts]
            self._two_lists = TwoLists(*map(torch.cat, zip(*found)))

        def by_torch(vectors: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
            _, chosen = self.labelled(model, interaction)
            scores = where_listed(lambda ids: pair_scores(vectors, table, ids), chosen[0])
            return self._by_logits(scores, chosen, interaction)

        return sum_of_two_lists(*factors, users - 1, counts, self._two_lists, settings.distill_label_scale, by_torch)


def are_listed(items: torch.Tensor, lists: torch.Tensor) -> torch.Tensor:
    """Which of the items ``[n, m]`` stand in the list of the same row ``[n, K]``; -1 never does, ``[n, m]``."""
    ordered = lists.sort(1)[0]
    places = torch.searchsorted(ordered, items.contiguous()).clamp(max=lists.shape[1] - 1)
    return (ordered.gather(1, places) == items) & (items >= 0)


def log_weights(student: torch.Tensor, teacher: torch.Tensor, sharpness: float) -> torch.Tensor:
    """With which weights items are drawn from the student's lists: more where more of the teacher's stand further down.

    ``(min(50, n_j) + 1) / T`` with ``n_j`` of the teacher's items at the place ``j`` or further down.

    Args:
        student, teacher: ids ``[n, M]`` and ``[n, K]``, -1 behind the end of a list.
        sharpness: the ``T`` of the paper.

    Returns:
        logarithms of the weights ``[n, M]``.
    """
    further = are_listed(student, teacher).flip(1).cumsum(1).flip(1).clamp(max=_MOST_COUNTED)
    return ((further + 1).float() / sharpness).masked_fill(student < 0, -torch.inf)


def missed_items(teacher: torch.Tensor, drawn: torch.Tensor, first: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The teacher's items that are neither drawn nor the student's first, and the share of those that are drawn.

    Args:
        teacher, drawn, first: ids ``[n, K]``, ``[n, L]`` and ``[n, K]``; -1 where there are fewer.

    Returns:
        (``teacher`` with -1 for all others, shares ``[n]``).
    """
    among_drawn = are_listed(teacher, drawn)
    missed = teacher.masked_fill(among_drawn | are_listed(teacher, first), -1)
    return missed, among_drawn.sum(1) / (teacher >= 0).sum(1).clamp(min=1)


def combined_loss(
    scores: torch.Tensor, labels: torch.Tensor, overlap: torch.Tensor, first: int, rate: float, temperature: float
) -> torch.Tensor:
    """``(1 - w) L_S + w L_T`` with ``w = exp(-beta o)``, one value per row.

    Args:
        scores, labels: logits of student and teacher: of the ``first`` items of the student, and behind them of the
            union; NaN where there is no item.
        overlap: the share ``o`` of the teacher's items that are drawn ``[n]``.
        first: how many are the student's first.
        rate: the ``beta`` of the paper.
        temperature: of both softmaxes.
    """
    own, union = (
        soft_list_cross_entropy(scores[:, part], labels[:, part], temperature)
        for part in (slice(first), slice(first, None))
    )
    weight = (-rate * overlap).exp()
    return (1 - weight) * own + weight * union


def two_lists(
    items: torch.Tensor, labels: torch.Tensor, overlap: torch.Tensor, first: int, rate: float, temperature: float
) -> TwoLists:
    """What :func:`combined_loss` says of logits as one cross-entropy: an item that is in both lists stands there once.

    Args:
        items: ids of what the student ranks first and of the union ``[n, P]``, -1 where there are fewer.
        labels, overlap, first, rate, temperature: as for :func:`combined_loss`.
    """
    own, union = items[:, :first], items[:, first:]
    in_second = torch.cat([are_listed(own, union), (union >= 0) & ~are_listed(union, own)], 1)
    in_first = torch.zeros_like(in_second)
    in_first[:, :first] = own >= 0
    logits = (labels / temperature).masked_fill(items < 0, -torch.inf)
    shares, targets = 1 - (-rate * overlap).exp(), torch.zeros_like(logits)
    for share, listed, part in ((shares, in_first, slice(first)), (1 - shares, in_second, slice(first, None))):
        logarithms = logits - logits[:, part].logsumexp(1, keepdim=True)
        targets += share[:, None] * torch.where(listed, logarithms, -torch.inf).exp()
    parts = torch.where(in_first, in_second.to(torch.int8), torch.where(in_second, 2, 3).to(torch.int8))
    parts, order = parts.sort(dim=1, stable=True)
    ends = torch.stack([(parts < limit).sum(1) for limit in (1, 2, 3)], 1)
    return TwoLists(items.gather(1, order).int(), targets.gather(1, order), ends.int(), shares.float())
