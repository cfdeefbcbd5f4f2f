"""What is chosen with the student's own rankings, anew in every epoch; and those rankings."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch

from recbole_prune.anatomy.logits import evaluated_factors, row_logits
from recbole_prune.anatomy.shared_calls import evaluating
from recbole_prune.anatomy.vectors import shared_propagation
from recbole_prune.distillers.base import Distiller
from recbole_prune.distillers.ranking import ListDistiller
from recbole_prune.errors import ConfigError, TrainingError
from recbole_prune.teachers.ranked_lists import Score, best_of_products, best_of_rows

if TYPE_CHECKING:
    from recbole.data.interaction import Interaction

    from recbole_prune.data.used_ids import UsedIds
    from recbole_prune.teachers.base import Rows
    from recbole_prune.training.model import MaskAware

# items that are labelled at once: without compiled loops their vectors are gathered
_PAIRS_AT_ONCE = 1 << 18


# of users or rows: items ``[n, K]``, -1 where there are none; the teacher's logits of them, NaN there; and what a
# method computes beside them
Labelled = tuple[torch.Tensor, ...]


class StudentGuided(Distiller):
    """Learns the teacher's logits of items that the student's rankings choose.

    Of users they are chosen for a whole epoch at its first batch, when the weights are those of a resume point; of rows
    batch by batch.
    """

    promises = ListDistiller.promises

    def begin_epoch(self) -> None:
        """Forget what was chosen."""
        self._of_users: Labelled | None = None

    @property
    @abstractmethod
    def pairs_of_user(self) -> float:
        """How many items of a user are scored on average."""

    def before_users(self, model: MaskAware) -> None:
        """Called before all users are labelled, some at a time."""

    @abstractmethod
    def label(self, model: MaskAware, rows: Rows, stream: np.random.Generator) -> Labelled:
        """What some users, or the rows of a batch, learn from."""

    def labelled(self, model: MaskAware, batch: Interaction) -> tuple[Rows, Labelled]:
        """What is learned from a batch: of its distinct users (ascending) or of its rows."""
        if self.pupils.of_rows:
            return batch, self.label(model, batch, self._stream(self._batch))
        users = batch[self.pupils.user_field].unique()
        return users, tuple(table[users - 1] for table in self.labelled_users(model))

    def labelled_users(self, model: MaskAware) -> Labelled:
        """What all users but padding learn from in this epoch."""
        if self._of_users is None:
            self._of_users = self._label_all(model)
        return self._of_users

    def _label_all(self, model: MaskAware) -> Labelled:
        """Of all users but padding, some at a time: an epoch holds ``[U - 1, K]`` ids and logits."""
        step = max(1, int(_PAIRS_AT_ONCE / self.pairs_of_user))
        users = torch.arange(1, self.pupils.user_count, device=model.device)
        self.before_users(model)
        parts = [self.label(model, some, self._stream(int(some[0]))) for some in users.split(step)]
        return tuple(map(torch.cat, zip(*parts)))

    def _stream(self, place: int) -> np.random.Generator:
        """Random numbers follow from seed, epoch and place."""
        return np.random.default_rng([self.pupils.seed, self.epoch, 0, place])

    def by_teacher(self, rows: Rows, items: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Items with the teacher's logits, without those of which it knows none."""
        logits = self.teacher.pair_logits(rows, items).to(items.device)
        return items.masked_fill(logits.isnan(), -1), logits


@torch.no_grad()
def rank_by_student(model: MaskAware, rows: Interaction | None, unranked: UsedIds, length: int) -> np.ndarray:
    """The items that a student ranks first as it is, in evaluation; each module's mode is afterwards what it was.

    Args:
        model: the student.
        rows: RecBole's rows; None ranks for all user ids but padding.
        unranked: the items of each row or user id that are not ranked.
        length: of the lists.

    Returns:
        ids int32 ``[rows or users, length]``, best first, -1 behind the end of a list and in the row of padding.

    Raises:
        TrainingError: a score is NaN or infinite.
    """
    factors, what = evaluated_factors(model) if rows is None else None, "the student, items of users"
    ids = np.arange(1, unranked.key_count) if rows is None else np.arange(len(rows))
    if factors is not None:
        with _naming_divergence():
            return best_of_products(*factors, unranked, length, what, ids)[0]

    def score(some: torch.Tensor) -> torch.Tensor:
        return row_logits(model, some if rows is None else rows[some.to(rows[model.USER_ID].device)])

    with evaluating(model), shared_propagation(model):
        return best_in_training(score, unranked, length, what, model.device, ids)


def best_in_training(
    score: Score, unranked: UsedIds, length: int, what: str, device: torch.device, ids: np.ndarray
) -> np.ndarray:
    """The ids of :func:`best_of_rows` by scores of what is in training.

    Raises:
        TrainingError: a score is NaN or infinite.
    """
    with _naming_divergence():
        return best_of_rows(score, unranked, length, what, device, ids)[0]


@contextmanager
def _naming_divergence() -> Iterator[None]:
    try:
        yield
    except ConfigError as error:
        raise TrainingError(f"{error}: the training diverged, lower learning_rate or set clip_grad_norm") from error
