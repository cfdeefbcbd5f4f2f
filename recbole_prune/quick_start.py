"""The whole way on one page: settings, folder, data, scope, pruner, tickets, chosen ticket, artifact, summary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from logging import getLogger
from pathlib import Path
from typing import NamedTuple

from recbole_prune import tuition
from recbole_prune.config.evaluation import check_selection
from recbole_prune.config.prune_config import PruneConfig
from recbole_prune.disk.names import method_name
from recbole_prune.distillers.teaching import Teaching
from recbole_prune.errors import PruneError
from recbole_prune.pruners import get_pruner
from recbole_prune.ranks import group
from recbole_prune.report.as_good import as_good_of
from recbole_prune.report.dry_run import planned
from recbole_prune.run import checkpoints, provenance, siblings, user_values
from recbole_prune.run.costs import count_bytes, with_older_macs
from recbole_prune.run.experiment import Experiment
from recbole_prune.run.export import can_recommend, choose_ticket, export_chosen, stored_metrics
from recbole_prune.run.log import log_of_run
from recbole_prune.run.log_file import LogFile
from recbole_prune.run.measuring import meter_of
from recbole_prune.run.opening import open_folder, run_path
from recbole_prune.run.progress import Progress
from recbole_prune.run.store import ARTIFACT, RunFolder
from recbole_prune.run.summary import AsGood, RunResult, summary_of
from recbole_prune.run.ticket import Ticket
from recbole_prune.run.workshop import Workshop


def run(config: PruneConfig, waits: bool = False) -> RunResult:
    """Run RecBole with a pruner. Nothing is printed; a log and a progress bar go to standard error.

    The same settings find the same folder: what is finished there is not trained again, a killed run continues.

    Args:
        config: of the run.
        waits: until no other process works in the run folder, as runs do that share a teacher or a student alone.

    Returns:
        what was found; its ``failure`` is set where the artifact or the summary could not be written.

    Raises:
        PruneError: nothing to prune, a damaged or busy folder; the message says what to do. Where RecBole failed it
            says so, and the log has the traceback.
    """
    check_selection(config, config.external_config_dict)
    trained = tuition.train_teachers(config, run)
    folder = RunFolder(run_path(config))
    open_folder(folder, waits)
    try:
        with log_of_run(config, folder.path) as log:
            return _run(config, folder, log, trained)
    except OSError:  # of a library that writes there
        folder.check_present()
        raise
    finally:
        folder.close()


def notice_of(config: PruneConfig) -> str | None:
    """What the protocol of a run leaks, None if nothing."""
    if config.settings.prune_select == "test" and not config.settings.recipe_notice:
        return "prune_select=test picks epochs and tickets on the test set: the test figures below are optimistic"
    notice: str | None = config.settings.recipe_notice
    return notice


def _start_over(config: PruneConfig, folder: RunFolder, log: LogFile, trained: Sequence[Path]) -> Workshop:
    """Move an older run aside, once data, model, settings and teacher of the new one are checked."""
    workshop = Workshop(config)
    if not folder.is_empty():
        with planned(workshop):
            pass
        if config.settings.distiller:
            Teaching(workshop, None, trained)
        folder.start_over()
    log.write_held()
    return workshop


def _run(config: PruneConfig, folder: RunFolder, log: LogFile, trained: Sequence[Path]) -> RunResult:
    notice = notice_of(config)
    if notice:
        getLogger().warning(notice)
    workshop = _start_over(config, folder, log, trained) if config.settings.fresh else None
    data = group.first(lambda: _require_same(config, folder))
    # reads and checks the data, before what is written binds the folder to it
    workshop = workshop or Workshop(config)
    group.first(lambda: provenance.record(config, folder, data))
    experiment = Experiment(workshop, folder, meter=meter_of(config) if group.is_first() else None)
    getLogger().info(f"{config.settings.pruner} on {config['model']}, scope:\n{experiment.scope.describe()}")
    pruner = get_pruner(config.settings.pruner)(experiment)
    pruner.check()
    alone = tuition.teach(experiment, trained, log, run)
    group.first(lambda: siblings.adopt_dense(experiment, pruner.dense_is_taught))
    if group.are_several():
        experiment.load_journal()
    count = len(pruner.counts())
    before = f", {len(experiment.tickets)} of them finished before" if experiment.tickets else ""
    experiment.logger.info(
        f"{method_name(config.settings.pruner, config.settings.distiller)} on {config['model']} / {config['dataset']}: "
        f"{experiment.scope.prunable:,} prunable entries, {count} tickets{before}"
    )
    experiment.progress = Progress(count, enabled=bool(config["show_progress"]))
    experiment.progress.begin_after(len(experiment.tickets))
    try:
        tickets = list(pruner.tickets())
    finally:
        experiment.progress.close()
    found = _Found(experiment, tickets, notice, alone)
    return group.kept_by_first(lambda: _conclude(found)) or found.result()


def _require_same(config: PruneConfig, folder: RunFolder) -> str:
    """The digest of the data; a folder of another run or of other data, or with damaged values of users, is refused."""
    provenance.require_same_run(config, folder)
    data = provenance.require_same_data(config, folder)
    user_values.read(folder)  # refused here where it is damaged, not after hours
    return data


class _Found(NamedTuple):
    """What is known of a run when its tickets are finished."""

    experiment: Experiment
    tickets: list[Ticket]
    notice: str | None
    alone: Ticket | None

    def result(self) -> RunResult:
        """As it stands before anything is counted, tested and written."""
        chosen, reason = choose_ticket(self.experiment, self.tickets)
        config = self.experiment.config
        return RunResult(
            self.experiment,
            self.tickets,
            chosen,
            reason,
            self.notice,
            artifact=str(self.experiment.folder.path / ARTIFACT),
            bytes_of={},
            as_good=AsGood(config["valid_metric"], config.settings.report_margin),
            alone=self.alone,
            teacher=next((ticket.method["teacher"] for ticket in self.tickets if "teacher" in ticket.method), None),
        )


def _conclude(found: _Found) -> RunResult:
    """Count, test, export and write the summary."""
    experiment, folder, config = found.experiment, found.experiment.folder, found.experiment.config
    tickets = with_older_macs(folder, found.tickets)
    folder.drop_resume()  # a process may have been killed between the last line of the journal and this
    result = replace(
        found._replace(tickets=tickets).result(),
        bytes_of=count_bytes(experiment, tickets),
        as_good=as_good_of(tickets, user_values.read(folder), config["valid_metric"], config.settings.report_margin),
        siblings=siblings.rows_of_others(folder),
    )
    try:
        artifact = export_chosen(experiment, tickets, folder.path / ARTIFACT)
        result = replace(result, recommends=can_recommend(artifact))
        if config.settings.export_evaluate:
            result = replace(result, stored=stored_metrics(artifact))
        folder.write_summary(summary_of(result))
        checkpoints.keep(config.settings.prune_keep_checkpoints, folder, experiment.tickets.values(), result.chosen)
    except PruneError as error:  # what was trained and found is not lost by that
        return replace(result, failure=error)
    return result
