"""CD: soft labels for unseen items, those that rank high more often."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch

from recbole_prune.anatomy.shared_calls import evaluating
from recbole_prune.distillers.batch_lists import listed_logits
from recbole_prune.distillers.losses.soft_labels import best_tries, soft_cross_entropy, tries_of_draws
from recbole_prune.distillers.student_lists import Labelled, StudentGuided

if TYPE_CHECKING:
    from recbole.data.interaction import Interaction
    from recbole.model.abstract_recommender import AbstractRecommender

    from recbole_prune.teachers.base import Rows, Teacher
    from recbole_prune.training.model import MaskAware


class CollaborativeDistillation(StudentGuided):
    """CD of Lee et al., ICDM 2019: soft labels for items that are drawn by rank, better ones more often.

    Source: methods/distillation_ranking.md, section 3. Items are drawn among all that are not consumed (of a file of
    ranked lists: among those listed, since no others have scores), by the ranks that the student (CD-SG) or the teacher
    (CD-TG) gives them: of users for a whole epoch, at its first batch; of rows batch by batch.
    """

    @classmethod
    def ask(cls, student: AbstractRecommender, teacher: Teacher) -> None:
        """For its scores of an item of a few users or rows."""
        teacher.require_scores()
        pupils = teacher.pupils
        batch = pupils.first_rows().to(student.device)
        rows = batch if pupils.of_rows else batch[pupils.user_field].unique()
        offered = teacher.offer(rows, 1, np.random.default_rng(pupils.seed))
        _ = teacher.pair_logits(rows, torch.from_numpy(offered).to(student.device, torch.long))

    def terms(self, model: MaskAware, interaction: Interaction) -> Mapping[str, tuple[float, torch.Tensor]]:
        """Cross-entropies with the teacher's probabilities."""
        settings = self.settings
        rows, (items, labels) = self.labelled(model, interaction)
        student = listed_logits(model, rows, items)
        losses = soft_cross_entropy(student, labels, settings.distill_label_scale, settings.distill_label_shift)
        return {"cd": (settings.distill_weight, losses.sum())}

    @property
    def pairs_of_user(self) -> float:
        """The tries of its draws on average."""
        expected = 2 if self.settings.distill_rule == "linear" else 1 + self.settings.distill_sharpness
        return float(expected * self.settings.distill_interesting)

    def label(self, model: MaskAware, rows: Rows, stream: np.random.Generator) -> Labelled:
        """Draw, and ask the teacher."""
        settings = self.settings
        shape = len(rows), settings.distill_interesting
        tries = tries_of_draws(shape, settings.distill_rule, settings.distill_sharpness, stream)
        offered = self.teacher.offer(rows, int(tries.sum(1).max()), stream)
        items = torch.from_numpy(offered).to(model.device, torch.long)
        by_student = settings.distill_guide == "student"
        guide = self._ranked_by_student(model, rows, items) if by_student else self.by_teacher(rows, items)[1]
        return self.by_teacher(rows, items.gather(1, best_tries(guide, torch.from_numpy(tries).to(items.device))))

    @torch.no_grad()
    def _ranked_by_student(self, model: MaskAware, rows: Rows, items: torch.Tensor) -> torch.Tensor:
        """Logits as they are in evaluation; each module's mode is afterwards what it was."""
        with evaluating(model):
            return listed_logits(model, rows, items)
