"""The teaching of a run: its teacher, what is refused before any training, a distiller for every ticket."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recbole.data.dataloader.user_dataloader import UserDataLoader
from recbole.utils import ModelType

from recbole_prune.anatomy.feature_points.table import reason_without_features
from recbole_prune.anatomy.logits import reason_without_lists
from recbole_prune.anatomy.losses import adds_rows_up
from recbole_prune.anatomy.shared_parts import reason_without_parts
from recbole_prune.anatomy.vectors import known_class, reason_unknown, reason_without_vectors, vectors_of
from recbole_prune.config.prune_config import PruneConfig
from recbole_prune.config.schema import known_keys
from recbole_prune.config.teachers import trained_first
from recbole_prune.data.batches import first_batch
from recbole_prune.data.random_streams import preserved_random_streams
from recbole_prune.distillers import get_distiller
from recbole_prune.distillers.base import Distiller
from recbole_prune.errors import ConfigError
from recbole_prune.scoring.known_scores import contradiction_of_subclass
from recbole_prune.teachers.popularity import popularity_of_teacher
from recbole_prune.teachers.pupils import Pupils
from recbole_prune.teachers.sources import open_teacher
from recbole_prune.teachers.training import teacher_config

if TYPE_CHECKING:
    from recbole.data.interaction import Interaction

    from recbole_prune.run.store import RunFolder
    from recbole_prune.run.workshop import Workshop
    from recbole_prune.teachers.base import Teacher


class Teaching:
    """What a run needs of its teacher.

    Args:
        workshop: the student's data and models.
        folder: the run folder, which keeps what the teacher ranks; None keeps nothing.
        trained: the run folders of the teachers that are trained first, None in the place of one that is not trained
            yet, to be refused in time; empty where none is, or there are none.

    Attributes:
        teacher: the teacher, or the teachers together; None where the method has none.

    Raises:
        ConfigError: student or teacher lacks what the distiller copies, or they have other data.
    """

    def __init__(
        self, workshop: Workshop, folder: RunFolder | None = None, trained: Sequence[Path | None] = ()
    ) -> None:
        self._workshop, self._config = workshop, workshop.config
        student = workshop.build_model()
        self._class = get_distiller(workshop.config.settings.distiller).for_student(student)
        require_student(self._class, workshop.config, student)
        require_teachers(self._class, workshop.config)
        of_rows = workshop.config["MODEL_TYPE"] == ModelType.SEQUENTIAL
        over_all_items = of_rows and workshop.config["loss_type"] == "CE"
        whole_rows = isinstance(workshop.train_data, UserDataLoader) or over_all_items
        data = workshop.train_data
        masked = workshop.config.settings.distill_mask_observed
        self._pupils = Pupils(
            data._dataset,
            of_rows,
            whole_rows,
            adds_rows_up(workshop.config.model_class, workshop.config["train_stage"]),
            len(data),
            masked,
            example=partial(first_batch_of, workshop),
        )
        self._class.check(workshop.config.settings, self._pupils, student)
        changed = contradiction_of_subclass(
            student, workshop.config.model_class, self._pupils.first_rows().to(student.device)
        )
        if changed:
            raise _cannot(workshop.config, changed)
        self.teacher: Teacher | None = None
        if self._class.promises.teacher:
            self.teacher = open_teacher(workshop.config, self._pupils, folder, trained, self._class.promises.states)
            self._class.ask(student, self.teacher)

    def measure_popularity(self) -> None:
        """Have every teacher tested as tickets are, for how popular what it finds is."""
        if self._workshop.popularity is None:
            return
        for teacher in self.teacher.members if self.teacher is not None else ():
            teacher.identity["popularity"] = popularity_of_teacher(self._workshop, teacher)

    def distiller(self) -> Distiller:
        """The part that teaches one ticket."""
        return self._class(self._config.settings, self.teacher, self._pupils)


def first_batch_of(workshop: Workshop) -> Interaction:
    """The first training batch of a run; streams and data order stay where they are."""
    with preserved_random_streams(workshop.loaders):
        return first_batch(workshop.train_data, workshop.build_model())


def require_student(distiller: type[Distiller], config: PruneConfig, student: Any) -> None:
    """Refuse a student without what the distiller copies.

    Raises:
        ConfigError: the reason, in one sentence.
    """
    promises, kind = distiller.for_student(student).promises, type(student)
    reason = "" if known_class(kind) else reason_unknown(kind)
    if not reason and promises.vectors:
        reason = reason_without_vectors(kind)
    accessor = vectors_of(student)
    if not reason and promises.vectors and accessor is None:
        reason = f"{kind.__name__} has no user and item vectors with these settings"
    if not reason and promises.one_space and accessor is not None and not accessor.shared_space:
        reason = f"the user and item vectors of {kind.__name__} are not in one space, so their cosines say nothing"
    if not reason and promises.features:
        reason = reason_without_features(kind)
    if not reason and promises.lists:
        reason = reason_without_lists(kind)
    if not reason and promises.parts:
        reason = reason_without_parts(kind)
    if not reason and promises.closed_users and student.type == ModelType.SEQUENTIAL:
        reason = f"the users of {kind.__name__} are histories and no closed set, so no item has users of its own"
    if reason:
        raise _cannot(config, reason)


def require_teachers(distiller: type[Distiller], config: PruneConfig) -> None:
    """Refuse one teacher where there must be several.

    Raises:
        ConfigError: there is only one.
    """
    names = [*config.settings.distill_teacher, *(first.model for first in trained_first(config.settings))]
    if distiller.promises.many_teachers and len(names) < 2:
        raise ConfigError(
            f"--distiller={config.settings.distiller} learns from two teachers or more, but there is one, {names[0]}: "
            "name several with distill_teacher=A,B or distill_teacher_models=A,B; the method for one is --distiller=rrd"
        )


def _cannot(config: PruneConfig, reason: str) -> ConfigError:
    return ConfigError(f"distiller={config.settings.distiller} cannot teach {config['model']}: {reason}")


def teacher_configs(config: PruneConfig) -> list[PruneConfig]:
    """The runs that train the teachers of a student; none where it has none or they are there already.

    Args:
        config: the student's settings.

    Raises:
        ConfigError: the settings do not fit a model, or it is not trained by gradient.
    """
    with_states = get_distiller(config.settings.distiller).promises.states
    return [teacher_config(config, first, with_states) for first in trained_first(config.settings)]


def untaught(config: PruneConfig) -> PruneConfig:
    """The run that trains the student alone, dense."""
    kept = {name: value for name, value in config.plain_settings().items() if name not in _of_methods()}
    return PruneConfig.from_plain_settings({**kept, "pruner": "none"}, config.model_class if config.own_model else None)


def _of_methods() -> set[str]:
    return {name for name, key in known_keys().items() if key.listed} | {
        "pruner", "distiller", "export_ticket", "distill_record_states",
    }  # fmt: skip
