"""``recbole-prune compare``: methods at several sizes over seeds, models and datasets, one table of mean and spread."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from recbole_prune.config.near import did_you_mean, near_names
from recbole_prune.config.options import Option, describe, refuse_near, some_text, split
from recbole_prune.config.schema import known_keys, method_names
from recbole_prune.config.words import launch
from recbole_prune.errors import ConfigError, printable, printable_lines

if TYPE_CHECKING:
    from recbole_prune.compare.cells import Axes, Cell, Plan
    from recbole_prune.compare.scheduler import Engine, Step

FAILED = 1  # exit status where a cell has no result
_SET_BY = {
    "pruner": "pruners",
    "prune_target_sparsity": "sparsities",
    "seed": "seeds",
    "distiller": "distillers",
    "export_values": "values",
}
_BAR = "cells {n_fmt}/{total_fmt} |{bar}| {elapsed}<{remaining}{postfix}"
_ENGINES = ("local", "ray", "dask")


def main(words: Sequence[str]) -> int:
    """Run every cell, each in its own process and run folder, and print the table.

    A run that is finished is read from its folder, so the same command continues where it was interrupted. With
    ``dry_run`` the plans of the first seed are printed and nothing is trained.

    Returns:
        exit status: 0, or 1 where a cell has no result.
    """
    own, rest = split("compare", _OPTIONS, words, refuse_near)
    _check(own, rest)
    asked = launch(rest)
    from recbole_prune.compare.cells import plan
    from recbole_prune.compare.results import job_of, records_of
    from recbole_prune.disk.files import write_atomic

    planned = plan(_axes(own, asked.model, asked.dataset), _shared(asked.words, own))
    if planned.configs[0].settings.dry_run:
        return _dry_run(planned, own["seeds"][0])
    if own["list_cells"] is not None:
        print(printable_lines("\n".join(_commands(planned.cells, own["list_cells"]))))
        return 0
    for warning in planned.warnings:
        print(f"warning: {printable(warning)}", file=sys.stderr)
    threads = max(1, _cores() // own["workers"]) if own["workers"] else None
    threads = None if own["engine"] == "local" and own["workers"] == 1 else threads
    failures: dict[Cell, str | None] = {}
    if own["workers"] == 0:
        failures = dict.fromkeys(planned.cells)
    else:
        with _engine(own, threads) as engine:
            failures = _run(planned, engine, lambda cell: job_of(cell, Path.cwd(), threads))
    records = [record for cell in planned.cells for record in records_of(cell, failures.get(cell))]
    from recbole_prune.report.compare import compare_table

    print(printable_lines(f"\n{compare_table(records)}\n"), flush=True)
    if own["to"]:
        write_atomic(own["to"], json.dumps(records, indent=1).encode())
    return FAILED if any(record["failure"] is not None for record in records) else 0


def _run(planned: Plan, engine: Engine, job_of: Callable[..., Any]) -> dict[Cell, str | None]:
    """Run what is not done, with a bar and a line for each cell; the failures by cell."""
    from recbole_prune.compare.results import is_done, read_finished
    from recbole_prune.compare.scheduler import run_cells
    from recbole_prune.report.runs import from_here

    fresh = planned.configs[0].settings.fresh
    failures: dict[Cell, str | None] = {}
    done: Callable[[Cell], bool] = (lambda cell: False) if fresh else is_done
    with _bar(len(planned.cells), bool(planned.configs[0]["show_progress"])) as bar:
        for step in run_cells(planned.cells, engine, job_of, done):
            if step.ended is not None:
                run = None if step.failure else read_finished(step.ended)
                score = None if run is None or run.chosen is None else run.chosen["valid_score"]
                failures[step.ended] = step.failure
                outcome = f"FAILED: {step.failure}" if score is None else f"validation {score:.4f}"
                tqdm.write(
                    printable(f"{step.ended.name}: {outcome}, in {from_here(step.ended.folder)}"), file=sys.stdout
                )
            _show(bar, step)
    return failures


def _bar(total: int, enabled: bool) -> tqdm[Any]:
    """A bar on standard error where that is a terminal."""
    return tqdm(
        total=total, bar_format=_BAR, disable=None if enabled else True, dynamic_ncols=True, leave=False, smoothing=0
    )


def _show(bar: tqdm[Any], step: Step) -> None:
    """Move the bar; cells that were there already say nothing about the time that is left."""
    if bar.disable:
        return
    if step.ended is not None and not step.ran:
        bar.initial += 1
    bar.set_postfix_str("; ".join(cell.method for cell in step.running), refresh=False)
    bar.update(1 if step.ended is not None else 0)
    bar.refresh()


def _engine(own: dict[str, Any], threads: int | None) -> Any:
    """What runs the cells, as a context that lets go of it at the end."""
    if own["engine"] == "ray":
        from recbole_prune.compare.ray_engine import ray_engine

        return ray_engine(own["engine_address"], own["workers"], threads or 1, own["engine_gpus"])
    if own["engine"] == "dask":
        from recbole_prune.compare.dask_engine import dask_engine

        return dask_engine(own["engine_address"], own["workers"], own["engine_gpus"])
    from contextlib import nullcontext

    from recbole_prune.compare.local import LocalEngine

    return nullcontext(LocalEngine(own["workers"]))


def _dry_run(planned: Plan, seed: int) -> int:
    """Other seeds have the same plans."""
    from recbole_prune.compare.cells import PRUNED
    from recbole_prune.report.dry_run import describe_plan

    for cell, config in zip(planned.cells, planned.configs):
        if cell.seed == seed and cell.phase == PRUNED:
            print(printable_lines(f"{describe_plan(config)}\n"), flush=True)
    return 0


def _commands(cells: Sequence[Cell], wanted: int) -> Iterator[str]:
    """One command a line; phases under comment lines, or one of them alone."""
    from recbole_prune.compare.cells import PHASES
    from recbole_prune.compare.results import job_of

    phases = sorted({cell.phase for cell in cells})
    if wanted > len(phases):
        raise ConfigError(f"compare: --list_cells={wanted} is not allowed: there are the phases 1 to {len(phases)}")
    for number, phase in enumerate(phases, 1):
        there = [cell for cell in cells if cell.phase == phase]
        if wanted not in (0, number):
            continue
        if not wanted:
            after = f", after all of phase {number - 1}" if number > 1 else ""
            yield f"# phase {number} of {len(phases)}: {len(there)} {PHASES[phase]}{after} (--list_cells={number})"
        for cell in there:
            steps = [shlex.join(["recbole-prune", *step]) for step in job_of(cell, Path.cwd()).steps]
            yield " && ".join(steps)


def _axes(own: dict[str, Any], model: str, dataset: str) -> Axes:
    from recbole_prune.compare.cells import Axes

    return Axes(
        models=own["models"] or [model],
        datasets=own["datasets"] or [dataset],
        pruners=own["pruners"],
        distillers=own["distillers"],
        sparsities=[] if own["budgets"] else own["sparsities"] or _SPARSITIES,
        budgets=own["budgets"] or [],
        seeds=own["seeds"],
        values=own["values"],
    )


def _shared(words: Sequence[str], own: dict[str, Any]) -> list[str]:
    """The words of every cell: without model and dataset, which each cell names, with the first number format."""
    rest = [word for word in words if not word.startswith(("--model=", "--dataset="))]
    return [*rest, f"--export_values={own['values'][0]}"] if own["values"][0] != "fp32" else rest


def _check(own: dict[str, Any], rest: Sequence[str]) -> None:
    """Refuse settings that each cell sets itself, names that are unknown, and what cannot go together."""
    for taken, option in {**_SET_BY, **{name: f"{name}s" for name in ("model", "dataset") if own[f"{name}s"]}}.items():
        if any(word.startswith(f"--{taken}=") for word in rest):
            raise ConfigError(f"compare: --{taken} is set for each run, use --{option}=A,B instead")
    if own["sparsities"] and own["budgets"]:
        raise ConfigError("compare: --sparsities and --budgets are given, which both say how small: keep one of them")
    if own["engine"] == "local" and own["engine_address"]:
        raise ConfigError("compare: --engine_address needs --engine=ray or --engine=dask")
    _check_names("pruner", own["pruners"], " (the dense model comes with each)")
    _check_names("distiller", [name for name in own["distillers"] if name is not None], ", none")
    formats = known_keys()["export_values"]
    for values in own["values"]:
        try:
            formats.check(values)
        except ConfigError:
            raise ConfigError(f"compare: --values={values} is unknown; it must be {formats.allowed}") from None


def _check_names(kind: str, names: Sequence[str], also: str) -> None:
    known = [name for name in method_names(kind) if name != "none"]
    for name in names:
        if name not in known:
            raise ConfigError(
                f"compare: --{kind}s={name} is unknown{did_you_mean(near_names(name, known))}; there are "
                f"{', '.join(known)}{also}"
            )


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# ---- what the options take -------------------------------------------------------------------------------------------


def _names(text: str) -> list[str]:
    return list(dict.fromkeys(text.split(",")))


def _some_names(text: str) -> list[str]:
    names = _names(text)
    if not all(names):
        raise ValueError(text)
    return names


def _distillers(text: str) -> list[str | None]:
    return [None if name == "none" else name for name in _some_names(text)]


def _fractions(text: str) -> list[float]:
    numbers = list(dict.fromkeys(float(part) for part in text.split(",")))
    if not all(0 < number < 1 for number in numbers):
        raise ValueError(text)
    return numbers


def _seeds(text: str) -> list[int]:
    return list(dict.fromkeys(int(part) for part in text.split(",")))


def _file(text: str) -> Path:
    if not text or Path(text).is_dir():
        raise ValueError(text)
    return Path(text)


def _count(text: str) -> int:
    number = int(text)
    if number < 0:
        raise ValueError(text)
    return number


def _phase(text: str) -> int | None:
    if text.lower() in ("true", "false"):
        return 0 if text.lower() == "true" else None
    return _count(text)


def _engine_name(text: str) -> str:
    if text not in _ENGINES:
        raise ValueError(text)
    return text


def _gpus(text: str) -> float:
    number = float(text)
    if not 0 <= number < float("inf"):
        raise ValueError(text)
    return number


def usage() -> str:
    """What the command takes."""
    lines = [
        "usage: recbole-prune compare [--pruners=A,B] [--sparsities=X,Y | --budgets=X,Y] [--seeds=1,2] [--workers=N]",
        "       [--to=FILE.json] [--key=value ...]",
        "",
        "Runs every pruner at every size under every seed, each in a process and a run folder of its own, and prints",
        "mean and spread. The dense model is trained once per seed, first. What fails becomes a line with its reason",
        "and stops nothing else; the same command goes on where it was interrupted. Other settings as for a run.",
        "",
        *describe(_OPTIONS, indent=2),
        "",
        "On a cluster, --engine=ray and --engine=dask hand cells to workers, which need this package and the same",
        "file system. Without either: --list_cells=1 prints the commands of the first phase, one a line, for GNU",
        "parallel or a job array; once they have ended, those of --list_cells=2; and --workers=0 prints the table.",
    ]
    return "\n".join(lines)


_SPARSITIES = [0.5, 0.75, 0.9]
_OPTIONS = {
    "pruners": Option(_names, ["static", "dsl"], "names of pruners with commas", "pruners to run"),
    "distillers": Option(
        _distillers,
        [None],
        "names of distillers with commas, none among them",
        "distillers to teach with; none: without",
    ),
    "sparsities": Option(
        _fractions, None, "floats with commas, each between 0 and 1", "target sparsities (default 0.5,0.75,0.9)"
    ),
    "budgets": Option(
        _fractions,
        None,
        "floats with commas, each between 0 and 1",
        "instead of sparsities: shares of the dense bytes, to which every method is brought",
    ),
    "seeds": Option(_seeds, [2020, 2021, 2022], "ints with commas", "seeds"),
    "models": Option(_some_names, None, "names of models with commas", "models, instead of --model"),
    "datasets": Option(_some_names, None, "names of datasets with commas", "datasets, instead of --dataset"),
    "values": Option(
        _some_names,
        ["fp32"],
        "number formats with commas",
        "number formats; the first is what runs export, the others are exported, and evaluated, from the same runs",
    ),
    "workers": Option(
        _count, 1, "a whole number from 0", "cells at a time, which share the processors; 0 only shows what is there"
    ),
    "engine": Option(_engine_name, "local", f"{', '.join(_ENGINES)}", "who runs them: local, ray or dask"),
    "engine_address": Option(some_text, None, "an address", "of the cluster; without it one is started here"),
    "engine_gpus": Option(_gpus, 0.0, "a number from 0", "GPUs of the cluster that each cell takes, also a fraction"),
    "list_cells": Option(
        _phase,
        None,
        "True, or the number of a phase",
        "print the commands of all cells, or of a phase, and run nothing",
    ),
    "to": Option(_file, None, "a file to write, no folder", "write what the table is made of as JSON"),
}
