"""``recbole-prune compare``: several pruners at several sparsities over several seeds, one table of mean and spread."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recbole_prune.config.schema import did_you_mean, method_names, near_names
from recbole_prune.config.words import launch
from recbole_prune.errors import ConfigError

if TYPE_CHECKING:
    from recbole_prune.run.ticket import Ticket


_OPTIONS = {"pruners": "static,dsl", "sparsities": "0.5,0.75,0.9", "seeds": "2020,2021,2022", "to": ""}
_SET_BY = {"pruner": "pruners", "prune_target_sparsity": "sparsities", "seed": "seeds"}


def main(argv: list[str]) -> int:
    """Run every combination, each in its own run folder, and print the table.

    A run that is finished is read from its folder, so the same command continues where it was interrupted. With
    ``dry_run`` the plans of the first seed are printed and nothing is trained.
    """
    own, rest = _split(argv)
    pruners = own["pruners"].split(",")
    sparsities = [_number("sparsities", word, float) for word in own["sparsities"].split(",")]
    seeds = [_number("seeds", word, int) for word in own["seeds"].split(",")]
    _check(pruners, sparsities)
    if own["to"] and Path(own["to"]).is_dir():
        raise ConfigError(f"compare: --to={own['to']} is a folder, it must be a file to write")
    asked = launch(rest)
    from recbole_prune import quick_start
    from recbole_prune.config.prune_config import PruneConfig
    from recbole_prune.report.compare import compare_table
    from recbole_prune.report.dry_run import describe_plan
    from recbole_prune.run.store import write_atomic

    records: list[dict[str, Any]] = []
    for seed in seeds:
        for sparsity in sparsities:
            for pruner in pruners:
                changes = {"pruner": pruner, "prune_target_sparsity": sparsity, "seed": seed}
                config = PruneConfig(asked.model, asked.dataset, asked.files, changes, asked.words)
                if config.settings.dry_run:
                    print(f"{describe_plan(config)}\n", flush=True)
                    continue
                result = quick_start.run(config)
                for ticket in [*filter(None, [result.dense]), result.chosen]:
                    name = pruner if ticket.ticket else "dense"
                    folder = str(result.experiment.folder.path)
                    records.append({**changes, "pruner": name, **_facts(ticket), "folder": folder})
                score = f"validation {result.chosen.valid_score:.4f}"
                print(f"seed {seed}, sparsity {100 * sparsity:g} %, {pruner}: {score}, in {folder}", flush=True)
        if not records:  # a dry run: other seeds have the same plans
            return 0
        print(f"\n{compare_table(records)}\n", flush=True)
    if own["to"]:
        write_atomic(Path(own["to"]), json.dumps(records, indent=1).encode())
    return 0


def _facts(ticket: Ticket) -> dict[str, Any]:
    return {name: getattr(ticket, name) for name in ("sparsity", "valid_score", "test", "train_seconds", "best_epoch")}


def _split(argv: list[str]) -> tuple[dict[str, str], list[str]]:
    """Own options, and those that go to RecBole."""
    own, rest = dict(_OPTIONS), []
    for word in argv:
        name, equals, value = word.lstrip("-").partition("=")
        if word.startswith("--") and equals and name in own:
            own[name] = value
        else:
            rest.append(word)
    for taken in _SET_BY:
        if any(word.startswith(f"--{taken}=") for word in rest):
            raise ConfigError(f"compare: --{taken} is set for each run, use --{_SET_BY[taken]}=A,B instead")
    return own, rest


def _number(option: str, word: str, kind: type) -> Any:
    try:
        return kind(word)
    except ValueError:
        raise ConfigError(
            f"compare: --{option}={word} is not allowed, it must be {kind.__name__}s with commas"
        ) from None


def _check(pruners: list[str], sparsities: list[float]) -> None:
    known = [name for name in method_names("pruner") if name != "none"]
    for pruner in pruners:
        if pruner not in known:
            raise ConfigError(
                f"compare: --pruners={pruner} is unknown{did_you_mean(near_names(pruner, known))}; there are "
                f"{', '.join(known)} (the dense model comes with each)"
            )
    for sparsity in sparsities:
        if not 0 < sparsity < 1:
            raise ConfigError(f"compare: --sparsities={sparsity} is not allowed, each must be between 0 and 1")


def usage() -> str:
    """What the command takes."""
    shown = " ".join(f"--{name}={value or 'FILE'}" for name, value in _OPTIONS.items())
    return (
        "usage: recbole-prune compare [--pruners=A,B] [--sparsities=X,Y] [--seeds=1,2] [--to=FILE.json]\n"
        "       [--key=value ...]\n\n"
        "Runs every pruner at every sparsity under every seed, each in its own run folder, and prints mean and\n"
        f"spread. Other settings as for a run. Defaults: {shown}"
    )
