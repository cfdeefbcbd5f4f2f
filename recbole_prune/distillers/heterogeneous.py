"""HetComp: an ensemble of different models, taught from easy to hard by the states of their own training."""

from __future__ import annotations

from collections.abc import Mapping
from logging import getLogger
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn.functional import softplus

from recbole_prune.anatomy.whole_rows import listed_and_rest
from recbole_prune.distillers.base import Distiller, Promises
from recbole_prune.distillers.levels import Levels, Pace
from recbole_prune.distillers.losses.listwise import plackett_luce
from recbole_prune.distillers.ranking import ItemSideRanking, outside_of
from recbole_prune.distillers.student_lists import rank_by_student
from recbole_prune.errors import ConfigError
from recbole_prune.teachers.ensemble import Ensemble, consensus
from recbole_prune.training.parts import State, Training

if TYPE_CHECKING:
    from recbole.data.interaction import Interaction
    from recbole.model.abstract_recommender import AbstractRecommender

    from recbole_prune.config.settings import Settings
    from recbole_prune.masking.masks import MaskSet
    from recbole_prune.teachers.base import Teacher
    from recbole_prune.teachers.pupils import Pupils
    from recbole_prune.training.model import MaskAware

_PLACES = 50  # of the student's list that is compared with the teachers'
_BOUND = 40.0  # of logits in the authors' code


def overall_relations(listed: torch.Tensor, rest: torch.Tensor) -> torch.Tensor:
    """Every listed item before the rest, without order among them: ``sum_i [log(exp s_i + exp rest) - s_i]``.

    Args:
        listed: logits ``[b, k]``, NaN where there are fewer.
        rest: the logs of the sums of ``exp`` over the items that must lie below ``[b]``.

    Returns:
        losses ``[b]``.
    """
    present = ~listed.isnan()
    return (softplus(rest[:, None] - torch.where(present, listed, 0.0)) * present).sum(1)


def fine_order(observed: torch.Tensor, unobserved: torch.Tensor, tenth: int, rest: torch.Tensor) -> torch.Tensor:
    """The order of two lists, each above the rest and never one against the other.

    Args:
        observed: logits of the items of training, best first ``[b, p]``, NaN where there are fewer.
        unobserved: those of others, the first half of the ensemble's list, likewise ``[b, k]``.
        tenth: so many of these are ordered once more, above the others.
        rest: the logs of the sums of ``exp`` over the unobserved items that are not listed ``[b]``.

    Returns:
        losses ``[b]``.
    """
    below = rest[:, None]
    head, others = unobserved[:, :tenth], torch.cat([unobserved[:, tenth:], below], 1)
    finer = plackett_luce(unobserved, below) + plackett_luce(head, others)
    return plackett_luce(observed, below) + finer / 2


class HeterogeneousCompression(Distiller):
    """HetComp of Kang et al., WWW 2023: what several different teachers rank together, from easy to hard.

    Source: methods/distillation_ranking.md, section 7. Every user is taught by each teacher from one of the states that
    were recorded of its training, earlier ones first; the student's own ranking tells when to move on. First all listed
    items are to be before the rest; once everybody has arrived at the last states, in their order.
    """

    promises = Promises(
        lists=True, closed_users=True, many_teachers=True, states=True, refuses=ItemSideRanking.promises.refuses
    )

    @classmethod
    def check(cls, settings: Settings, pupils: Pupils, student: AbstractRecommender) -> None:
        """Lists must have something below them."""
        length = settings.distill_interesting
        consumed = np.diff(pupils.consumed.offsets)
        consumed = consumed[consumed > 0]  # others are in no batch
        most = pupils.item_count - 1 - int(consumed.min(initial=pupils.item_count - 1))
        if length >= most:
            raise ConfigError(
                f"distill_interesting={length}: no user has more than {most} items that are not in training, so "
                f"nothing would be left to rank below the lists; take less than {most}"
            )

    @classmethod
    def ask(cls, student: AbstractRecommender, teacher: Teacher) -> None:
        """For what each of several teachers ranked in its states."""
        for member in teacher.members:
            _ = member.states

    def __init__(self, settings: Settings, teacher: Teacher, pupils: Pupils) -> None:
        super().__init__(settings, teacher, pupils)
        assert isinstance(teacher, Ensemble), "several were asked for"
        self.own_loss = settings.distill_own_loss
        self._official = settings.distill_parity == "official"
        self._length = settings.distill_interesting
        self._half, self._tenth = max(1, self._length // 2), max(1, self._length // 10)
        pace = Pace(settings.distill_gain, settings.distill_threshold, _PLACES, self._official)
        self._levels = Levels([member.states for member in teacher.members], pace)
        self._compared = 0  # epochs trained at the last comparison
        self._ordered_from = 0 if self._levels.at_end else None
        self._lists: np.ndarray | None = None
        self._observed = teacher.observed(settings.distill_observed)

    def begin(self, trainer: Training) -> None:
        """Know the student, whose rankings are compared."""
        self._student = trainer.model
        super().begin(trainer)

    def begin_epoch(self) -> None:
        """Compare where that is due: before the first batch, and only once where a killed training continues."""
        due = self.epoch > self._compared and self.epoch % self.settings.distill_refresh == 0
        if due and self.epoch < self.epochs and not self._levels.at_end:
            self._compare()
        if self._lists is None:
            self._lists = consensus(self._levels.lists(), self._length)[0]

    def _compare(self) -> None:
        levels = self._levels
        with self._draws(self.epoch):
            levels.compare(self._ranked_by_student(), self.epoch // self.settings.distill_refresh)
        self._compared, self._lists = self.epoch, None
        if levels.at_end:
            self._ordered_from = self.epoch
        means = ", ".join(f"{mean:.2f}" for mean in levels.means())
        phase = "their order is learned from now on" if levels.at_end else "order is not learned yet"
        getLogger("recbole_prune").info(f"after epoch {self.epoch - 1} the teachers' mean states are {means}; {phase}")

    def _ranked_by_student(self) -> np.ndarray:
        """Its best items of every user, without those of training."""
        return rank_by_student(self._student, None, self.pupils.consumed, _PLACES)

    def terms(self, model: MaskAware, interaction: Interaction) -> Mapping[str, tuple[float, torch.Tensor]]:
        """The losses of the distinct users of the batch."""
        assert self._lists is not None
        users = interaction[self.pupils.user_field]
        if not self.pupils.whole_rows:  # where a row is a user, the model has gone through the very same rows
            users = users.unique()
        places = users.cpu().numpy()
        ordered = self._levels.at_end
        observed = self._observed[places]
        unobserved = self._lists[places, : self._half if ordered else self._length]
        listed = torch.from_numpy(np.concatenate([observed, unobserved], axis=1)).to(users.device, torch.long)
        outside = outside_of(self.pupils.consumed_by(users), unobserved).codes
        logits, rest = listed_and_rest(model, users, listed, outside, _BOUND if self._official else None)
        if not ordered:
            return {"hetcomp": (self.settings.distill_weight, overall_relations(logits, rest).sum())}
        parts = logits.split([observed.shape[1], unobserved.shape[1]], 1)
        losses = fine_order(parts[0], parts[1], self._tenth, rest)
        return {"hetcomp": (self.settings.distill_order_weight, losses.sum())}

    def state(self) -> State:
        """Levels, and what they are compared with."""
        own = {"compared": self._compared, "ordered_from": self._ordered_from, **self._levels.state()}
        return {**super().state(), "hetcomp": own}

    def restore(self, state: State, device: torch.device) -> None:
        """Undo :meth:`state`."""
        super().restore(state, device)
        own = state["hetcomp"]
        self._compared, self._ordered_from, self._lists = own["compared"], own["ordered_from"], None
        self._levels.restore(own)

    def report(self, masks: MaskSet | None) -> dict[str, Any]:
        """How far the teaching came, too."""
        progress = {"mean_states": self._levels.means(), "order_from_epoch": self._ordered_from}
        return {**super().report(masks), "hetcomp": progress}
