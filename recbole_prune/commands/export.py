"""``recbole-prune export``: write the artifact of any ticket of a run folder."""

from __future__ import annotations

from pathlib import Path

from recbole_prune.config.schema import did_you_mean, near_names
from recbole_prune.errors import ConfigError

_OPTIONS = {
    "run": "folder of a run",
    "to": "where to write the artifact; default: artifact/ in the run folder",
    "export_ticket": "number of the ticket; default: as the run chooses",
    "export_values": "fp32, fp16 or int8",
    "export_vectors": "True also stores propagated vectors, so that recommending needs no RecBole",
}


def main(argv: list[str]) -> int:
    """Parse ``--run=FOLDER`` and the export keys, write the artifact, print where it is."""
    options = _parse(argv)
    named = options.pop("run")
    path = Path(named).absolute()
    if not (path / "config.yaml").is_file():
        raise ConfigError(
            f"export: --run={named} is no folder of a run: there is no {path / 'config.yaml'}; "
            "a run prints its folder, pruned/<dataset>/<model>/<pruner>-<hash>"
        )
    to = options.pop("to", None)
    from recbole_prune.config.prune_config import PruneConfig
    from recbole_prune.run import provenance
    from recbole_prune.run.experiment import Experiment
    from recbole_prune.run.export import export_chosen
    from recbole_prune.run.store import RunFolder
    from recbole_prune.run.workshop import Workshop

    record = provenance.read_record(path)
    if record.get("own_model"):
        raise ConfigError(
            f"--run={path} trained a model class of your own, which only your program has: "
            "call run_recbole_prune again with the same settings and export_ticket=N"
        )
    config = PruneConfig.from_plain_settings({**record["settings"], **options})
    folder = RunFolder(path)
    folder.open()
    try:
        provenance.record(config, folder)
        experiment = Experiment(Workshop(config), folder)
        if not experiment.tickets:
            raise ConfigError(f"--run={path} has no finished ticket yet: continue the run first")
        tickets = [experiment.tickets[number] for number in sorted(experiment.tickets)]
        artifact = export_chosen(experiment, tickets, Path(to).absolute() if to else path / "artifact")
    finally:
        folder.close()
    print(f"artifact: {artifact}")
    return 0


def _parse(argv: list[str]) -> dict[str, str]:
    options = {}
    for word in argv:
        name, equals, value = word.lstrip("-").partition("=")
        if not word.startswith("--") or not equals or name not in _OPTIONS:
            hint = did_you_mean(near_names(name, _OPTIONS))
            raise ConfigError(
                f"export: {word!r} is no option{hint}; there are {', '.join(f'--{o}=' for o in _OPTIONS)}"
            )
        options[name] = value
    if "run" not in options:
        raise ConfigError("export: name the run folder with --run=FOLDER")
    return options


def usage() -> str:
    """What the command takes."""
    lines = ["usage: recbole-prune export --run=FOLDER [--option=value ...]", ""]
    return "\n".join([*lines, *(f"  --{name}=  {meaning}" for name, meaning in _OPTIONS.items())])
