"""What a teacher finds of popular and of unpopular items: it is tested on the student's test data, as tickets are."""

from __future__ import annotations

from logging import getLogger
from typing import TYPE_CHECKING, ClassVar

import torch

from recbole_prune.errors import ConfigError, StoreError
from recbole_prune.teachers.base import same_draws
from recbole_prune.teachers.model import ModelTeacher
from recbole_prune.training.session import Session

if TYPE_CHECKING:
    from recbole.data.interaction import Interaction

    from recbole_prune.run.workshop import Workshop
    from recbole_prune.scoring.popularity import PopularityRecord
    from recbole_prune.teachers.base import Teacher
    from recbole_prune.training.model import MaskAware


def popularity_of_teacher(workshop: Workshop, teacher: Teacher) -> PopularityRecord | None:
    """How popular what a teacher finds in the student's test data is; None where it cannot score them, as lists cannot.

    It is measured once for a run folder, by the evaluation that tests tickets.

    Args:
        workshop: the student's data and models.
        teacher: opened for them.
    """
    if not isinstance(teacher, ModelTeacher):
        return None
    digest, share = teacher.identity["sha256"], workshop.config.settings.report_tail_share

    def measure() -> PopularityRecord | None:
        getLogger().info(f"popular and unpopular items: testing the teacher with sha256 {digest}")
        try:
            trainer = workshop.trainer(
                _answering(workshop.build_model(), teacher),
                Session("a test by popularity", workshop.loaders, fused=False),
            )
            with same_draws(teacher.pupils.seed):
                found: PopularityRecord | None
                _, found = trainer.evaluate_by_popularity(
                    workshop.test_data, workshop.popularity, load_best_model=False
                )
            return found
        except (ConfigError, StoreError) as error:
            getLogger().info(f"what the teacher finds of popular and unpopular items is not known: {error}")
            return None

    record: PopularityRecord | None = teacher.noted(f"popularity of {digest} by {share:g}", measure)
    return record


class _Answering:
    """What is mixed into the class of a student that gives its teacher's scores instead of its own."""

    teacher: ClassVar[ModelTeacher]

    def full_sort_predict(self, interaction: Interaction) -> torch.Tensor:
        """The teacher's logits of all items."""
        logits = self.teacher.row_logits(interaction)
        if logits[:, 1:].isnan().any():
            raise self.teacher.refuse("has no history of some users of the test data")
        return logits.clone()  # RecBole writes into it

    def predict(self, interaction: Interaction) -> torch.Tensor:
        """The teacher's logits of pairs."""
        return self.teacher.batch_logits(interaction)


def _answering(student: MaskAware, teacher: ModelTeacher) -> MaskAware:
    """A student that nobody trains, with the scores of a teacher, which becomes no module of it."""
    kind = type(student)
    student.__class__ = type(type(teacher.model).__name__, (_Answering, kind), {"teacher": teacher})
    if teacher.products is not None:  # blocks of users are ranked by tables
        student.users_of_teacher, student.items_of_teacher = teacher.products
    return student
