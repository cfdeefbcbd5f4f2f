"""What every distiller is: a part that adds a teacher's knowledge to the loss of each batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any, ClassVar, Union

import numpy as np
import torch
from torch import nn

from recbole_prune.config.usage import idle_with, is_used
from recbole_prune.teachers.base import same_draws
from recbole_prune.training.parts import Part, State, Training

if TYPE_CHECKING:
    from recbole.data.interaction import Interaction
    from recbole.model.abstract_recommender import AbstractRecommender

    from recbole_prune.config.settings import Settings
    from recbole_prune.teachers.base import Teacher
    from recbole_prune.teachers.pupils import Pupils
    from recbole_prune.training.model import MaskAware


# what a run says of distill_parity
_PARITIES = {
    "official": "as the authors' code where that departs from the formulas",
    "kds": "as the code of KDs and RCEKD where that departs from the authors'",
}
# weights and sums over a batch, by name
Terms = Mapping[str, tuple[Union[float, torch.Tensor], torch.Tensor]]


@dataclass(frozen=True)
class Promises:
    """What a distiller owes with the defaults of its property file; ``tests/test_distillers.py`` holds each to it.

    Attributes:
        vectors: it copies user and item vectors, so teacher and student must have some.
        one_space: those of users and those of items must be comparable.
        features: it copies what layers say of the rows of a batch, so teacher and student must have feature points.
        lists: it copies what the teacher ranks, so the student must give logits of any items.
        closed_users: it needs the same users in every epoch, not histories.
        many_teachers: it needs two teachers or more.
        states: it reads the states of its teachers' trainings (:attr:`Teacher.states`), which must be recorded.
        parts: it adds heads to what the student shares with them, its vectors or its tables.
        teacher: there is one; else the student learns from itself.
        batch_in_parts: its loss of a part of a batch means what that of the batch does, so that several processes may
            divide one; others draw or weigh over whole batches.
        refuses: patterns of the messages with which a model may be turned down, before anything is trained.
    """

    vectors: bool = False
    one_space: bool = False
    features: bool = False
    lists: bool = False
    closed_users: bool = False
    many_teachers: bool = False
    states: bool = False
    parts: bool = False
    teacher: bool = True
    batch_in_parts: bool = False
    refuses: tuple[str, ...] = ()


class Distiller(Part, ABC):
    """Adds weighted loss terms to those of the student.

    Published losses are sums over the distinct users and items of a batch beside a sum-type recommendation loss;
    most of RecBole's are means. So every term is ``weight / B`` times the sum, with ``B`` rows in the batch, or
    ``weight`` times the sum beside a loss that is one, and published weights keep their meaning
    (methods/distillation_latent.md, section 1.3).

    Args:
        settings: those of the run.
        teacher: what is copied, None for a method without one; no module of it is registered anywhere.
        pupils: the student's data.

    Attributes:
        promises: what the method owes.
    """

    name = "distiller"
    promises: ClassVar[Promises] = Promises()

    teacher: Teacher

    def __init__(self, settings: Settings, teacher: Teacher | None, pupils: Pupils) -> None:
        self.settings, self.pupils = settings, pupils
        if teacher is not None:
            self.teacher = teacher
        self.epoch = 0
        self.epochs = 1
        self.seconds, self._epochs_taught = 0.0, 0
        self._batch = 0
        self._helpers = nn.ModuleDict()

    @classmethod
    def for_student(cls, student: AbstractRecommender) -> type[Distiller]:
        """The class that teaches a kind of student, itself or another one."""
        return cls

    @classmethod
    def check(cls, settings: Settings, pupils: Pupils, student: AbstractRecommender) -> None:
        """Refuse settings that do not go with the data or the student; no teacher is needed for that.

        Raises:
            ConfigError: which, and what would.
        """

    @classmethod
    def ask(cls, student: AbstractRecommender, teacher: Teacher) -> None:
        """Have the teacher say what will be needed of it.

        Args:
            student: a new model of the student's, not trained.
            teacher: with the student's data.

        Raises:
            ConfigError: it cannot, or what it says does not fit the student.
        """

    def attach(self, model: MaskAware) -> None:
        """Build the networks that help to learn; they are no part of the student."""
        with self._draws():
            self._helpers = self.helpers(model).to(model.device)

    def _draws(self, *place: int) -> AbstractContextManager[None]:
        """The same random numbers at a place of the training in every run; the student's own streams stay as they are.

        Initial weights, noise and dropout of what is added would else shift what the student draws, and a taught
        student would differ from one alone in more than the teaching.
        """
        return same_draws(int(np.random.SeedSequence([self.pupils.seed, *place]).generate_state(1)[0]))

    def helpers(self, model: MaskAware) -> nn.ModuleDict:
        """Networks that train along with the student and are dropped afterwards."""
        return nn.ModuleDict()

    def parameters(self) -> Mapping[str, nn.Parameter]:
        """Those of the networks."""
        return dict(self._helpers.named_parameters())

    def begin(self, trainer: Training) -> None:
        """Note how many epochs there are to be."""
        self.epoch, self.epochs = trainer.epoch, trainer.epochs
        self._begin_epoch()

    def begin_epoch(self) -> None:
        """Called before the first batch of :attr:`epoch`."""

    def end_epoch(self, trainer: Training) -> None:
        """Go on to the next epoch."""
        self._epochs_taught += 1
        self.epoch, self._batch = trainer.epochs_done, 0
        self._begin_epoch()

    def _begin_epoch(self) -> None:
        start = perf_counter()
        self.begin_epoch()
        self.seconds += perf_counter() - start

    def losses(self, model: MaskAware, interaction: Interaction) -> Mapping[str, torch.Tensor]:
        """The weighted terms of :meth:`terms`, by name."""
        start = perf_counter()
        share = self.share_of_sum(interaction)
        with self._draws(self.epoch, self._batch):
            terms = self.terms(model, interaction)
        self._batch += 1
        found = {name: weight * share * total for name, (weight, total) in terms.items()}
        self.seconds += perf_counter() - start
        return found

    def share_of_sum(self, interaction: Interaction) -> float:
        """The factor with which a sum over a batch stands beside the student's own loss."""
        return 1.0 if self.pupils.rows_add_up else 1 / len(interaction)

    @abstractmethod
    def terms(self, model: MaskAware, interaction: Interaction) -> Terms:
        """Weights and sums over the distinct users and items of a batch, by name."""

    def state(self) -> State:
        """What a resume point needs beside the networks; draws follow from seed and epoch."""
        return {"seconds": self.seconds, "epochs_taught": self._epochs_taught}

    def restore(self, state: State, device: torch.device) -> None:
        """Undo :meth:`state`."""
        self.seconds, self._epochs_taught = state["seconds"], state["epochs_taught"]

    def report(self, masks: Any) -> dict[str, Any]:
        """The teacher, and the seconds that teaching took in an epoch on average (backward passes not counted)."""
        seconds = round(self.seconds / max(self._epochs_taught, 1), 6)
        told = {"teacher": self.teacher.identity} if self.promises.teacher else {}
        return {**told, "distill_epoch_seconds": seconds}


def said_of_loss(settings: Settings, rows: int, rows_add_up: bool = False) -> list[str]:
    """What a run says of its distillation loss before it trains, a line each.

    Args:
        settings: those of the run.
        rows: of a full batch.
        rows_add_up: whether the model's own loss is a sum over them.
    """
    weights = tuple(
        f"distill_{name}"
        for name in ("weight", "item_weight", "vector_weight", "order_weight", "head_weight", "logit_weight")
    )
    counted = [name for name in weights if is_used(name, settings) and idle_with(name, settings) is None]
    given: dict[str, float] = {name: settings[name] for name in counted}
    beside = "RecBole's mean" if settings.distill_own_loss else "no loss of the student's own (distill_own_loss=0)"
    lines = [
        f"{name}={weight:g} is for sums over a batch, as the model's own loss is one: it is taken as it is"
        if rows_add_up
        else f"{name}={weight:g} is for sums over a batch: {weight:g}/{rows} = {weight / rows:.3g} beside {beside}"
        for name, weight in given.items()
    ]
    if is_used("distill_parity", settings) and settings.distill_parity in _PARITIES:
        lines.append(f"distill_parity={settings.distill_parity}: {_PARITIES[settings.distill_parity]}")
    return lines
