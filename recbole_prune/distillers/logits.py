"""Soft targets on the logits of the batch's own rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from recbole_prune.anatomy.logits import batch_logits
from recbole_prune.distillers.base import Distiller
from recbole_prune.distillers.soft_labels import soft_cross_entropy

if TYPE_CHECKING:
    from recbole.data.interaction import Interaction

    from recbole_prune.training.model import MaskAware


class SoftTargets(Distiller):
    """``kd``: the student's probability of a row is to be the teacher's (Hinton et al. 2015, on one logit)."""

    def terms(self, model: MaskAware, interaction: Interaction) -> Mapping[str, tuple[float, torch.Tensor]]:
        """Cross-entropies of the rows of the batch."""
        student, teacher = batch_logits(model, interaction), self.teacher.batch_logits(interaction)
        losses = soft_cross_entropy(student[:, None], teacher[:, None], self.settings.distill_label_scale)
        return {"kd": (self.settings.distill_weight, losses.sum())}
