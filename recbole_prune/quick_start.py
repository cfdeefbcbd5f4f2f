"""The whole way on one page: settings, folder, data, scope, pruner, tickets, chosen ticket, artifact, table."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from recbole.utils import init_logger

from recbole_prune.artifact.export import export_ticket
from recbole_prune.config.prune_config import PruneConfig
from recbole_prune.pruners import get_pruner
from recbole_prune.report.costs import macs_line
from recbole_prune.report.dry_run import describe_plan
from recbole_prune.report.table import ticket_table
from recbole_prune.run import provenance
from recbole_prune.run import siblings as baselines
from recbole_prune.run.costs import count_tickets
from recbole_prune.run.experiment import Experiment
from recbole_prune.run.progress import Progress
from recbole_prune.run.store import RunFolder
from recbole_prune.run.ticket import Ticket
from recbole_prune.run.verdict import choose


def run_recbole_prune(
    model: Any = None,
    dataset: str | None = None,
    config_file_list: list[str] | None = None,
    config_dict: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Run RecBole with a pruner; the arguments are those of RecBole's ``run_recbole``.

    The same settings find the same folder: what is finished there is not trained again, a killed run continues.

    Returns:
        ``folder``, ``tickets`` (list of records), ``chosen`` (record), ``artifact`` (path) and, as in RecBole,
        ``best_valid_score``, ``valid_score_bigger``, ``best_valid_result`` and ``test_result`` of the chosen ticket.
        With ``dry_run`` only ``plan``, the text that was printed.

    Raises:
        PruneError: bad settings, nothing to prune, a damaged or busy folder; the message says what to do.
    """
    config = PruneConfig(model=model, dataset=dataset, config_file_list=config_file_list, config_dict=config_dict)
    if config.settings.dry_run:
        return {"plan": describe_plan(config)}
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
    method = settings.pruner + (f"+{settings.distiller}" if settings.distiller else "")
    output = Path(settings.output_dir).absolute()
    return output / str(config["dataset"]) / str(config["model"]) / f"{method}-{config.run_hash}"


def _run(config: PruneConfig, folder: RunFolder, logger: logging.Logger) -> dict[str, Any]:
    notice = config.settings.recipe_notice
    if config.settings.prune_select == "test" and not notice:
        notice = "prune_select=test picks epochs and tickets on the test set: the test figures below are optimistic"
    if notice:
        logger.warning(notice)
    provenance.record(config, folder)
    experiment = Experiment(config, folder)
    logger.info(f"{config.settings.pruner} on {config['model']}, scope:\n{experiment.scope.describe()}")
    pruner = get_pruner(config.settings.pruner)(experiment)
    pruner.check()
    experiment.load_journal()
    baselines.adopt_dense(experiment)
    experiment.progress = Progress(len(pruner.counts()), enabled=bool(config["show_progress"]))
    try:
        tickets = list(pruner.tickets())
    finally:
        experiment.progress.close()
    chosen, reason = choose_ticket(experiment, tickets)
    artifact = export_chosen(experiment, tickets, folder.path / "artifact")
    macs = count_tickets(experiment, tickets)
    _summarise(config, folder, tickets, chosen, reason, notice, macs)
    rows = baselines.rows_of_others(config, folder)
    print(ticket_table(tickets, config["valid_metric"], chosen=chosen, reason=reason, others=rows, folder=folder.path))
    print(macs_line(chosen, experiment.tickets.get(0), macs[chosen.ticket]))
    if notice:
        print(f"\nNOTE {notice}")
    return {
        "folder": str(folder.path),
        "artifact": str(artifact),
        "tickets": [ticket.to_record() for ticket in tickets],
        "chosen": chosen.to_record(),
        "best_valid_score": chosen.valid_score,
        "valid_score_bigger": experiment.bigger,
        "best_valid_result": chosen.valid,
        "test_result": chosen.test,
    }


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


def choose_ticket(experiment: Experiment, tickets: list[Ticket]) -> tuple[Ticket, str]:
    """The ticket to export and why, by the run's settings."""
    settings = experiment.settings
    return choose(
        tickets,
        bigger=experiment.bigger,
        target=settings.get("prune_target_sparsity"),
        number=settings.export_ticket,
    )


def export_chosen(experiment: Experiment, tickets: list[Ticket], folder: Path) -> Path:
    """Write the artifact of the chosen ticket, unless the folder has just that one."""
    chosen, _ = choose_ticket(experiment, tickets)
    settings = experiment.settings
    wanted = {
        "ticket": chosen.ticket,
        "checkpoint_sha256": chosen.checkpoint_sha256,
        "values": settings.export_values,
        "vectors": settings.export_vectors,
    }
    if provenance.artifact_is(folder, wanted):
        return folder
    changes = chosen.method.get("changes", {})
    config = experiment.config.with_changes(**changes) if changes else experiment.config
    export_ticket(
        folder,
        model=experiment.trained_model(chosen),
        masks={} if chosen.mask_file is None else dict(experiment.masks_of(chosen)),
        config=config,
        dataset=experiment.dataset,
        info=provenance.artifact_info(config, chosen, wanted),
        values=settings.export_values,
        vectors=settings.export_vectors,
    )
    return folder


def _summarise(
    config: PruneConfig,
    folder: RunFolder,
    tickets: list[Ticket],
    chosen: Ticket,
    reason: str,
    notice: str | None,
    macs: dict[int, Any],
) -> None:
    """Write ``summary.json``."""
    dense = next((ticket for ticket in tickets if ticket.ticket == 0), None)
    folder.write_json(
        "summary.json",
        {
            "model": config["model"],
            "dataset": config["dataset"],
            "pruner": config.settings.pruner,
            "base_hash": config.base_hash,
            "valid_metric": config["valid_metric"],
            "selected_on": config.settings.prune_select,
            "notice": notice,
            "dense": dense and {"valid": dense.valid, "test": dense.test, "best_epoch": dense.best_epoch},
            "chosen": chosen.ticket,
            "reason": reason,
            "highest_winning_sparsity": max((t.sparsity for t in tickets if t.wins_metric), default=None),
            "tickets": [
                {
                    "ticket": t.ticket,
                    "sparsity": t.sparsity,
                    "kept": t.kept,
                    "valid": t.valid,
                    "test": t.test,
                    "wins_metric": t.wins_metric,
                    "wins": t.wins,
                    "relative_epochs": t.relative_epochs,
                    "train_seconds": t.train_seconds,
                    "macs": macs[t.ticket],
                }
                for t in tickets
            ],
        },
    )
