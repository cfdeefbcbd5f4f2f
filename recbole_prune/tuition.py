"""What a taught run needs beside itself: its teachers trained first, the student alone, a distiller for every ticket.

A teacher and the student alone are runs of their own, which other runs share; ``run`` is how one is started.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

from recbole_prune.anatomy.losses import adds_rows_up
from recbole_prune.config.prune_config import PruneConfig
from recbole_prune.distillers import get_distiller
from recbole_prune.distillers.base import said_of_loss
from recbole_prune.distillers.teaching import Teaching, teacher_configs, untaught
from recbole_prune.errors import ConfigError
from recbole_prune.ranks import group
from recbole_prune.report.dry_run import planned
from recbole_prune.run.experiment import Experiment
from recbole_prune.run.log_file import LogFile
from recbole_prune.run.opening import run_path
from recbole_prune.run.store import RunFolder
from recbole_prune.run.summary import RunResult
from recbole_prune.run.ticket import Ticket
from recbole_prune.run.workshop import Workshop

# runs a config; the second argument waits until no other process works in its folder
Run = Callable[[PruneConfig, bool], RunResult]


def train_teachers(config: PruneConfig, run: Run) -> tuple[Path, ...]:
    """The run folders of teachers that have to be trained first; from those of a finished run nothing is learned.

    Raises:
        PruneError: whatever would stop the student's run after hours that went into its teachers.
    """
    distiller = config.settings.distiller
    if not distiller:
        return ()
    if group.count() > 1 and not get_distiller(distiller).promises.batch_in_parts:
        raise ConfigError(
            f"distiller={distiller} is not allowed with {group.count()} processes: what it draws and weighs is of "
            f"whole batches, and each process has a part of one; train with one process (leave nproc out)"
        )
    teachers = teacher_configs(config)
    folders = [RunFolder(run_path(teacher)) for teacher in teachers]
    if config.settings.fresh or not RunFolder(run_path(config)).is_finished():
        if not all(folder.is_finished() for folder in folders):
            _refuse_before_training(config, [folder.path if folder.is_finished() else None for folder in folders])
        for teacher in teachers:
            run(teacher, True).raise_failure()
    return tuple(folder.path for folder in folders)


def _refuse_before_training(config: PruneConfig, trained: Sequence[Path | None]) -> None:
    workshop = Workshop(config)
    with planned(workshop):
        Teaching(workshop, None, trained)


def teach(experiment: Experiment, trained: Sequence[Path], log: LogFile, run: Run) -> Ticket | None:
    """Have every ticket of a run taught; before any training it is said what cannot be taught.

    Args:
        experiment: of the student.
        trained: what :func:`train_teachers` gave.
        log: of the run.
        run: trains the student alone.

    Returns:
        the dense ticket of the student alone; None without a distiller or without that run.

    Raises:
        PruneError: student or teacher lacks what the distiller copies, or they have other data.
    """
    config, workshop = experiment.config, experiment.workshop
    if not config.settings.distiller:
        return None
    teaching = cache(lambda: Teaching(workshop, experiment.folder, trained))
    experiment.distiller = lambda: teaching().distiller()
    finished = experiment.folder.is_finished()
    alone = _read_alone(config, experiment.folder) if finished else None
    if not finished or (config.settings.distill_alone and alone is None):
        teaching()
        teaching().measure_popularity()
        result = _train_alone(config, log, run)
        alone = None if result is None else result.dense
    rows_add_up = adds_rows_up(config.model_class, config["train_stage"])
    for line in said_of_loss(config.settings, config["train_batch_size"], rows_add_up):
        experiment.logger.info(line)
    return alone


def _train_alone(config: PruneConfig, log: LogFile, run: Run) -> RunResult | None:
    """The dense student without a teacher, in a run and with a log of its own."""
    if not config.settings.distill_alone:
        return None
    with log.set_aside():
        return run(untaught(config), True)


def _read_alone(config: PruneConfig, folder: RunFolder) -> Ticket | None:
    """The dense student without a teacher as a finished run knows it; None where it is not there."""
    known = folder.read_summary()["alone"]
    other = RunFolder(run_path(untaught(config)))
    if not config.settings.distill_alone or known is None or not other.is_finished():
        return None
    dense = Ticket.from_record(other.tickets()[0])
    measured = {name: value for name, value in known.items() if name not in ("valid", "test")}
    return replace(dense, method={**dense.method, **measured})
