"""The whole way on one page: settings, folder, data, scope, pruner, tickets, chosen ticket, artifact, summary."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from recbole.utils import init_logger

from recbole_prune.config.evaluation import check_selection
from recbole_prune.config.prune_config import PruneConfig
from recbole_prune.pruners import get_pruner
from recbole_prune.run import provenance, siblings
from recbole_prune.run.costs import count_tickets
from recbole_prune.run.experiment import Experiment
from recbole_prune.run.export import choose_ticket, export_chosen
from recbole_prune.run.progress import Progress
from recbole_prune.run.store import ARTIFACT, RunFolder
from recbole_prune.run.summary import RunResult, summary_of
from recbole_prune.run.ticket import method_name
from recbole_prune.run.workshop import Workshop


def run(config: PruneConfig) -> RunResult:
    """Run RecBole with a pruner. Nothing is printed but RecBole's log and progress bars.

    The same settings find the same folder: what is finished there is not trained again, a killed run continues.

    Raises:
        PruneError: nothing to prune, a damaged or busy folder; the message says what to do.
    """
    check_selection(config, config.external_config_dict)
    folder = RunFolder(run_path(config))
    folder.open(fresh=config.settings.fresh)
    try:
        with _log_file(config, folder) as logger:
            return _run(config, folder, logger)
    finally:
        folder.close()


def run_path(config: PruneConfig) -> Path:
    """``<output_dir>/<dataset>/<model>/<pruner>[+<distiller>]-<hash>`` as an absolute path."""
    settings = config.settings
    name = f"{method_name(settings.pruner, settings.distiller)}-{config.run_hash}"
    return Path(settings.output_dir).absolute() / str(config["dataset"]) / str(config["model"]) / name


def notice_of(config: PruneConfig) -> str | None:
    """What the protocol of a run leaks, None if nothing."""
    if config.settings.prune_select == "test" and not config.settings.recipe_notice:
        return "prune_select=test picks epochs and tickets on the test set: the test figures below are optimistic"
    notice: str | None = config.settings.recipe_notice
    return notice


def _run(config: PruneConfig, folder: RunFolder, logger: logging.Logger) -> RunResult:
    notice = notice_of(config)
    if notice:
        logger.warning(notice)
    data = provenance.require_same_data(config, folder)
    workshop = Workshop(config)  # reads and checks the data, before what is written binds the folder to it
    provenance.record(config, folder, data)
    experiment = Experiment(workshop, folder)
    logger.info(f"{config.settings.pruner} on {config['model']}, scope:\n{experiment.scope.describe()}")
    pruner = get_pruner(config.settings.pruner)(experiment)
    pruner.check()
    siblings.adopt_dense(experiment)
    experiment.progress = Progress(len(pruner.counts()), enabled=bool(config["show_progress"]))
    try:
        tickets = list(pruner.tickets())
    finally:
        experiment.progress.close()
    folder.drop_resume()  # a process may have been killed between the last line of the journal and this
    chosen, reason = choose_ticket(experiment, tickets)
    result = RunResult(
        experiment,
        tickets,
        chosen,
        reason,
        notice,
        artifact=str(export_chosen(experiment, tickets, folder.path / ARTIFACT)),
        macs=count_tickets(experiment, tickets),
        siblings=siblings.rows_of_others(folder),
    )
    folder.write_json("summary.json", summary_of(result))
    return result


@contextmanager
def _log_file(config: PruneConfig, folder: RunFolder) -> Iterator[logging.Logger]:
    """RecBole's console and file logging, and ``log.txt`` of the run folder while the run lasts."""
    init_logger(config)
    logger = logging.getLogger()
    handler = logging.FileHandler(folder.path / "log.txt", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    for warning in config.warnings:  # given before this log was open
        handler.handle(logger.makeRecord("root", logging.WARNING, "config", 0, warning, (), None))
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(min(level or logging.INFO, logging.INFO))
    try:
        yield logger
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)
        handler.close()
