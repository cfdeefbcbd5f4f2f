"""CD: soft labels for unseen items, those that rank high more often."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from recbole_prune.anatomy.shared_calls import evaluating
from recbole_prune.distillers.base import Distiller
from recbole_prune.distillers.list_sources import listed_logits
from recbole_prune.distillers.ranking import ListDistiller
from recbole_prune.distillers.soft_labels import best_tries, soft_cross_entropy, tries_of_draws

if TYPE_CHECKING:
    from recbole.data.interaction import Interaction
    from recbole.model.abstract_recommender import AbstractRecommender

    from recbole_prune.distillers.teacher import Rows, Teacher
    from recbole_prune.training.model import MaskAware

# items that are drawn and scored at once: without compiled loops their vectors are gathered
_TRIES_AT_ONCE = 1 << 18


class Labelled(NamedTuple):
    """Items of users or rows, and the teacher's logits of them: ids ``[n, K]``, -1 where there are none, NaN there."""

    items: torch.Tensor
    logits: torch.Tensor


class CollaborativeDistillation(Distiller):
    """CD of Lee et al., ICDM 2019: soft labels for items that are drawn by rank, better ones more often.

    Source: methods/distillation_ranking.md, section 3. Items are drawn among all that are not consumed (of a file of
    ranked lists: among those listed, since no others have scores), by the ranks that the student (CD-SG) or the teacher
    (CD-TG) gives them: of users for a whole epoch, at its first batch; of rows batch by batch.
    """

    promises = ListDistiller.promises

    @classmethod
    def ask(cls, student: AbstractRecommender, teacher: Teacher) -> None:
        """For its scores of an item of a few users or rows."""
        teacher.require_scores()
        pupils = teacher.pupils
        batch = pupils.first_rows().to(student.device)
        rows = batch if pupils.of_rows else batch[pupils.user_field].unique()
        offered = teacher.offer(rows, 1, np.random.default_rng(pupils.seed))
        _ = teacher.pair_logits(rows, torch.from_numpy(offered).to(student.device, torch.long))

    def begin_epoch(self) -> None:
        """Forget what was drawn."""
        self._of_users: Labelled | None = None

    def terms(self, model: MaskAware, interaction: Interaction) -> Mapping[str, tuple[float, torch.Tensor]]:
        """Cross-entropies with the teacher's probabilities."""
        settings = self.settings
        rows, (items, labels) = self._labelled(model, interaction)
        student = listed_logits(model, rows, items)
        losses = soft_cross_entropy(student, labels, settings.distill_label_scale, settings.distill_label_shift)
        return {"cd": (settings.distill_weight, losses.sum())}

    def _labelled(self, model: MaskAware, batch: Interaction) -> tuple[Rows, Labelled]:
        """What is learned from a batch: of its distinct users or of its rows."""
        if self.pupils.of_rows:
            return batch, self._draw(model, batch, self._batch)
        if self._of_users is None:
            self._of_users = self._draw_for_all(model)
        users = batch[self.pupils.user_field].unique()
        return users, Labelled(*(table[users - 1] for table in self._of_users))

    def _draw_for_all(self, model: MaskAware) -> Labelled:
        """Of all users but padding, some at a time: an epoch holds ``[U - 1, K]`` ids and logits."""
        expected = 2 if self.settings.distill_rule == "linear" else 1 + self.settings.distill_sharpness
        step = max(1, int(_TRIES_AT_ONCE / (expected * self.settings.distill_interesting)))
        users = torch.arange(1, self.pupils.user_count, device=model.device)
        parts = [self._draw(model, some, int(some[0])) for some in users.split(step)]
        return Labelled(*map(torch.cat, zip(*parts)))

    def _draw(self, model: MaskAware, rows: Rows, place: int) -> Labelled:
        """Of some users, or of the rows of a batch; random numbers follow from seed, epoch and place."""
        settings, stream = self.settings, np.random.default_rng([self.pupils.seed, self.epoch, 0, place])
        shape = len(rows), settings.distill_interesting
        tries = tries_of_draws(shape, settings.distill_rule, settings.distill_sharpness, stream)
        offered = self.teacher.offer(rows, int(tries.sum(1).max()), stream)
        items = torch.from_numpy(offered).to(model.device, torch.long)
        by_student = settings.distill_guide == "student"
        guide = self._ranked_by_student(model, rows, items) if by_student else self._labels(rows, items)
        items = items.gather(1, best_tries(guide, torch.from_numpy(tries).to(items.device)))
        logits = self._labels(rows, items)
        return Labelled(items.masked_fill(logits.isnan(), -1), logits)

    def _labels(self, rows: Rows, items: torch.Tensor) -> torch.Tensor:
        return self.teacher.pair_logits(rows, items).to(items.device)

    @torch.no_grad()
    def _ranked_by_student(self, model: MaskAware, rows: Rows, items: torch.Tensor) -> torch.Tensor:
        """Logits as they are in evaluation; each module's mode is afterwards what it was."""
        with evaluating(model):
            return listed_logits(model, rows, items)
