"""Soft targets: on the logits of the batch's own rows, or on whole rows where the loss compares all items."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from recbole_prune.anatomy.logits import batch_logits, row_logits
from recbole_prune.distillers.base import Distiller, Promises
from recbole_prune.distillers.losses.soft_labels import soft_cross_entropy, soft_row_cross_entropy

if TYPE_CHECKING:
    from recbole.data.interaction import Interaction
    from recbole.model.abstract_recommender import AbstractRecommender

    from recbole_prune.teachers.base import Teacher
    from recbole_prune.training.model import MaskAware


class SoftTargets(Distiller):
    """``kd``: the student's probabilities are to be the teacher's (Hinton et al. 2015).

    Those of all items of a row in autoencoders and in sequential models with cross-entropy; else that of each row.
    """

    promises = Promises(refuses=(r"is not known",))

    @classmethod
    def ask(cls, student: AbstractRecommender, teacher: Teacher) -> None:
        """For logits of a few rows."""
        teacher.require_logits()
        rows = teacher.pupils.first_rows().to(student.device)
        _ = teacher.row_logits(rows) if teacher.pupils.whole_rows else teacher.batch_logits(rows)

    def terms(self, model: MaskAware, interaction: Interaction) -> Mapping[str, tuple[float, torch.Tensor]]:
        """Cross-entropies of the rows of the batch."""
        scale = self.settings.distill_label_scale
        if self.pupils.whole_rows:
            rows = row_logits(model, interaction)[:, 1:], self.teacher.row_logits(interaction)[:, 1:]
            return {"kd": (self.settings.distill_weight, soft_row_cross_entropy(*rows, scale).sum())}
        student, teacher = batch_logits(model, interaction), self.teacher.batch_logits(interaction)
        losses = soft_cross_entropy(student[:, None], teacher[:, None], scale)
        return {"kd": (self.settings.distill_weight, losses.sum())}
