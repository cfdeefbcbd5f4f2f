"""``recbole-prune export``: write the artifact of any ticket of a run folder."""

from __future__ import annotations

from collections.abc import Sequence
from logging import getLogger
from pathlib import Path

from recbole_prune.config.options import Option, describe, refuse_all, some_text, split
from recbole_prune.errors import ConfigError, printable

# read by the config, which says what is allowed
_OPTIONS = {
    "run": Option(some_text, None, "a folder", "folder of a run", required=True),
    "data_path": Option(some_text, None, "a folder", "what the dataset's folder lies in; default: as in the run"),
    "dataset_save_path": Option(
        some_text, None, "a file", "a saved dataset to take: a pickle, open none you do not trust"
    ),
    "to": Option(some_text, None, "a folder", "where to write the artifact; default: artifact/ in the run folder"),
    "export_ticket": Option(str, None, "", "number of the ticket; default: as the run chooses"),
    "export_values": Option(str, None, "", "fp32, fp16, int8 or int4; default: as in the run"),
    "export_int4_clip": Option(
        str, None, "", "search or none: how int4 finds the range of a row; default: as in the run"
    ),
    "export_evaluate": Option(
        str, None, "", "True also evaluates the values as they are stored, and prints their metrics beside the ticket's"
    ),
    "export_vectors": Option(
        str,
        None,
        "",
        "auto, True or False: what is stored so that recommending needs no RecBole; default: as in the run",
    ),
}


def main(words: Sequence[str]) -> int:
    """Parse ``--run=FOLDER`` and the export keys, write the artifact, print where it is."""
    options, _ = split("export", _OPTIONS, words, refuse_all)
    named, to = options.pop("run"), options.pop("to")
    options = {name: text for name, text in options.items() if text is not None}
    path = Path(named).absolute()
    if not (path / "config.yaml").is_file():
        raise ConfigError(
            f"export: --run={named} is no folder of a run: there is no {path / 'config.yaml'}; "
            "a run prints its folder, pruned/<dataset>/<model>/<pruner>-<hash>"
        )
    from recbole_prune.config.prune_config import PruneConfig
    from recbole_prune.data.saved import OPENING
    from recbole_prune.report.stored import stored_table
    from recbole_prune.run import provenance
    from recbole_prune.run.experiment import Experiment
    from recbole_prune.run.export import export_chosen, stored_metrics
    from recbole_prune.run.progress import Progress
    from recbole_prune.run.store import RunFolder
    from recbole_prune.run.workshop import Workshop

    folder = RunFolder(path)
    record = provenance.read_record(folder)
    if record.get("own_model"):
        raise ConfigError(
            f"export: --run={path} trained a model class of your own, which only your program has: "
            "call run_recbole_prune again with the same settings and export_ticket=N"
        )
    # the folder may come from elsewhere: which pickle is opened is for the user to say, not for its config.yaml
    settings = {name: value for name, value in record["settings"].items() if name not in OPENING}
    if record["settings"].get("dataset_save_path") and "dataset_save_path" not in options:
        getLogger("recbole_prune").warning(
            printable(
                f"the saved dataset {record['settings']['dataset_save_path']} of the run is a pickle, which can run "
                "code, and is not opened: the data are read from their files; --dataset_save_path=FILE opens one"
            )
        )
    config = PruneConfig.from_plain_settings({**settings, **options}, download=False)
    progress = Progress(1, enabled=bool(config["show_progress"]))
    folder.open()
    try:
        provenance.require_same_data(config, folder)
        experiment = Experiment(Workshop(config), folder, progress)
        if not experiment.tickets:
            raise ConfigError(f"export: --run={path} has no finished ticket yet: continue the run first")
        tickets = [experiment.tickets[number] for number in sorted(experiment.tickets)]
        artifact = export_chosen(experiment, tickets, Path(to).absolute() if to else path / "artifact")
    finally:
        folder.close()
        progress.close()
    print(f"artifact: {printable(str(artifact))}")
    if config.settings.export_evaluate:
        for line in stored_table(stored_metrics(artifact)).splitlines():
            print(printable(line))
    return 0


def usage() -> str:
    """What the command takes."""
    lines = ["usage: recbole-prune export --run=FOLDER [--option=value ...]", ""]
    return "\n".join([*lines, *describe(_OPTIONS, indent=2)])
