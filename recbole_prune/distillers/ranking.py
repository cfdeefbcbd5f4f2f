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

    from recbole_prune.training.model import MaskAware

Terms = Mapping[str, tuple[float, torch.Tensor]]


class ListDistiller(Distiller):
    """Reads the student's logits of listed items."""

    promises = Promises(lists=True, refuses=(r"no list",))

    def stream(self, purpose: int) -> np.random.Generator:
        """Random numbers of the epoch in work, the same in a continued run."""
        return np.random.default_rng([self.pupils.seed, self.epoch, purpose])

    def logits(self, model: MaskAware, rows: Any, ids: torch.Tensor) -> torch.Tensor:
        """Logits of items ``[b, k]`` for users or rows, NaN where an id is -1."""
        found = pair_logits(model, rows, ids.clamp(min=0))
        return found.masked_fill(ids < 0, float("nan"))


class RelaxedRanking(ListDistiller):
    """RRD of Kang et al., CIKM 2020: the order of interesting items, above uninteresting ones without order.

    Source: methods/distillation_ranking.md, section 4.
    """

    def begin_epoch(self) -> None:
        """Draw the lists of all users."""
        self.interesting, self.uninteresting = self.draw("user", self.settings, 0)
'''.replace('''        self.interesting, self.uninteresting = self.draw("user", self.settings, 0)
''','''        settings, lists = self.settings, self.teacher.lists
        self.lists = draw_lists(
            lists.items,
            outside(self.pupils.consumed, lists.items),
            interesting=settings.distill_interesting,
            uninteresting=settings.distill_uninteresting,
            sharpness=settings.distill_sharpness if settings.distill_sample_interesting else None,
            stream=self.stream(0),
        )

    def terms(self, model: MaskAware, interaction: Interaction) -> Terms:
        """The listwise loss of the distinct users of the batch."""
        users = interaction[self.pupils.user_field].unique()
        ranked, below = (torch.from_numpy(part)[users.cpu()].to(users.device) for part in self.lists)
        loss = plackett_luce(self.logits(model, users, ranked), self.logits(model, users, below))
        return {"rrd": (self.settings.distill_weight, loss.sum())}
'''))
