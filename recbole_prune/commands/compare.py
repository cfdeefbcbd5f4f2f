"""``recbole-prune compare``: several pruners at several sparsities over several seeds, one table of mean and spread."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recbole_prune.config.near import did_you_mean, near_names
from recbole_prune.config.options import Option, describe, refuse_near, split
from recbole_prune.config.schema import method_names
from recbole_prune.config.words import launch
from recbole_prune.errors import ConfigError, printable, printable_lines

if TYPE_CHECKING:
    from recbole_prune.run.ticket import Ticket


_SET_BY = {"pruner": "pruners", "prune_target_sparsity": "sparsities", "seed": "seeds"}


def main(words: Sequence[str]) -> int:
    """Run every combination, each in its own run folder, and print the table.

    A run that is finished is read from its folder, so the same command continues where it was interrupted. With
    ``dry_run`` the plans of the first seed are printed and nothing is trained.
    """
    own, rest = split("compare", _OPTIONS, words, refuse_near)
    for taken, option in _SET_BY.items():
        if any(word.startswith(f"--{taken}=") for word in rest):
            raise ConfigError(f"compare: --{taken} is set for each run, use --{option}=A,B instead")
    _check_pruners(own["pruners"])
    asked = launch(rest)
    from recbole_prune import quick_start
    from recbole_prune.config.prune_config import PruneConfig
    from recbole_prune.disk.files import write_atomic
    from recbole_prune.report.compare import compare_table
    from recbole_prune.report.dry_run import describe_plan

    records: list[dict[str, Any]] = []
    for seed in own["seeds"]:
        for sparsity in own["sparsities"]:
            for pruner in own["pruners"]:
                changes = {"pruner": pruner, "prune_target_sparsity": sparsity, "seed": seed}
                config = PruneConfig(asked.model, asked.dataset, asked.files, changes, asked.words)
                if config.settings.dry_run:
                    print(printable_lines(f"{describe_plan(config)}\n"), flush=True)
                    continue
                result = quick_start.run(config)
                for ticket in [*filter(None, [result.dense]), result.chosen]:
                    name = pruner if ticket.ticket else "dense"
                    folder = str(result.experiment.folder.path)
                    records.append({**changes, "pruner": name, **_facts(ticket), "folder": folder})
                score = f"validation {result.chosen.valid_score:.4f}"
                done = f"seed {seed}, sparsity {100 * sparsity:g} %, {pruner}: {score}, in {folder}"
                print(printable(done), flush=True)
                result.raise_failure()
        if not records:  # a dry run: other seeds have the same plans
            return 0
        print(printable_lines(f"\n{compare_table(records, config['valid_metric'])}\n"), flush=True)
    if own["to"]:
        write_atomic(own["to"], json.dumps(records, indent=1).encode())
    return 0


def _facts(ticket: Ticket) -> dict[str, Any]:
    return {name: getattr(ticket, name) for name in ("sparsity", "valid_score", "test", "train_seconds", "best_epoch")}


def _pruners(text: str) -> list[str]:
    return text.split(",")


def _sparsities(text: str) -> list[float]:
    numbers = [float(part) for part in text.split(",")]
    if not all(0 < number < 1 for number in numbers):
        raise ValueError(text)
    return numbers


def _seeds(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _file(text: str) -> Path:
    if not text or Path(text).is_dir():
        raise ValueError(text)
    return Path(text)


def _check_pruners(pruners: list[str]) -> None:
    known = [name for name in method_names("pruner") if name != "none"]
    for pruner in pruners:
        if pruner not in known:
            raise ConfigError(
                f"compare: --pruners={pruner} is unknown{did_you_mean(near_names(pruner, known))}; there are "
                f"{', '.join(known)} (the dense model comes with each)"
            )


def usage() -> str:
    """What the command takes."""
    lines = [
        "usage: recbole-prune compare [--pruners=A,B] [--sparsities=X,Y] [--seeds=1,2] [--to=FILE.json]",
        "       [--key=value ...]",
        "",
        "Runs every pruner at every sparsity under every seed, each in its own run folder, and prints mean and",
        "spread. Other settings as for a run.",
        "",
    ]
    return "\n".join([*lines, *describe(_OPTIONS, indent=2)])


_OPTIONS = {
    "pruners": Option(_pruners, ["static", "dsl"], "names of pruners with commas", "pruners to run"),
    "sparsities": Option(
        _sparsities, [0.5, 0.75, 0.9], "floats with commas, each between 0 and 1", "target sparsities"
    ),
    "seeds": Option(_seeds, [2020, 2021, 2022], "ints with commas", "seeds"),
    "to": Option(_file, None, "a file to write, no folder", "write what the table is made of as JSON"),
}
