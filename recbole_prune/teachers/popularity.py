"""Recall of popular and of unpopular items of those who are no ticket of the run: the teacher and the student alone.

Each is ranked once for a run folder, by RecBole's evaluation of the student's test data, as tickets are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from logging import getLogger
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from recbole_prune.errors import ConfigError, StoreError
from recbole_prune.teachers.base import same_draws
from recbole_prune.teachers.model import ModelTeacher
from recbole_prune.training.session import Session

if TYPE_CHECKING:
    from recbole.data.interaction import Interaction

    from recbole_prune.run.experiment import Experiment
    from recbole_prune.run.ticket import Ticket
    from recbole_prune.run.workshop import Workshop
    from recbole_prune.scoring.popularity import RecallByPopularity
    from recbole_prune.teachers.base import Teacher
    from recbole_prune.teachers.pupils import Pupils
    from recbole_prune.training.model import MaskAware


# gives a value of JSON by its name, computed once
Note = Callable[[str, Callable[[], Any]], Any]


def recall_of_teacher(workshop: Workshop, teacher: Teacher) -> RecallByPopularity | None:
    """The teacher's recall on the student's test data; None where it cannot score them, as ranked lists cannot.

    Args:
        workshop: the student's data and models.
        teacher: opened for them.
    """
    if not isinstance(teacher, ModelTeacher):
        return None
    digest = teacher.identity["sha256"]
    return _noted(workshop, teacher.pupils, teacher.noted, digest, lambda: _answering(workshop.build_model(), teacher))


def with_recall(alone: Ticket, experiment: Experiment, workshop: Workshop, pupils: Pupils, note: Note) -> Ticket:
    """The student alone with its recall in ``method``; None there where its checkpoint was not kept.

    Args:
        alone: its dense model.
        experiment: its run.
        workshop: the data of the taught student, which are the same.
        pupils: these data as distillers read them.
        note: keeps values for the run folder of the taught student.
    """
    found = _noted(workshop, pupils, note, alone.checkpoint_sha256, lambda: experiment.trained_model(alone))
    return replace(alone, method={**alone.method, "recall_by_popularity": found})


def _noted(
    workshop: Workshop, pupils: Pupils, note: Note, sha256: str, model: Callable[[], MaskAware]
) -> RecallByPopularity | None:
    """The recall of the model in a file, measured unless it is noted in the run folder (each ticket reseeds)."""

    def measure() -> RecallByPopularity | None:
        getLogger().info(f"recall of popular and unpopular items: testing the model with sha256 {sha256}")
        try:
            trainer = workshop.trainer(model(), Session("a test by popularity", workshop.loaders, fused=False))
            with same_draws(pupils.seed):
                popular = pupils.popular
                found: RecallByPopularity | None
                _, found = trainer.evaluate_by_popularity(workshop.test_data, popular, load_best_model=False)
            return found
        except (ConfigError, StoreError) as error:
            getLogger().info(f"recall of popular and unpopular items is not known: {error}")
            return None

    recall: RecallByPopularity | None = note(f"recall by popularity of {sha256}", measure)
    return recall


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
