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

from recbole_prune.compare import options
from recbole_prune.config.options import refuse_near, split
from recbole_prune.config.words import launch
from recbole_prune.errors import ConfigError, printable, printable_lines

if TYPE_CHECKING:
    from recbole_prune.compare.cells import Axes, Cell, Plan
    from recbole_prune.compare.scheduler import Engine, Step

FAILED = 1  # exit status where a cell has no result
_NO_LIMIT = 1 << 30
_BAR = "cells {n_fmt}/{total_fmt} |{bar}| {elapsed}<{remaining}{postfix}"


def main(words: Sequence[str]) -> int:
    """Run every cell, each in its own process and run folder, and print the table.

    A run that is finished is read from its folder, so the same command continues where it was interrupted. With
    ``dry_run`` the plans of the first seed are printed and nothing is trained.

    Returns:
        exit status: 0, or 1 where a cell has no result.
    """
    own, rest = split("compare", options.OPTIONS, words, refuse_near)
    options.check(own, rest)
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
    workers, threads = _shares(own)
    failures: dict[Cell, str | None] = {}
    if workers == 0:
        failures = dict.fromkeys(planned.cells)
    else:
        with _engine(own, workers, threads) as engine:
            failures = _run(planned, engine, lambda cell: job_of(cell, Path.cwd(), threads))
    records = records_of(planned.cells, failures)
    from recbole_prune.report.compare import compare_table

    print(printable_lines(f"\n{compare_table(records)}\n"), flush=True)
    if own["to"]:
        write_atomic(own["to"], json.dumps(records, indent=1).encode())
    return FAILED if any(record["failure"] is not None for record in records) else 0


def _run(planned: Plan, engine: Engine, job_of: Callable[..., Any]) -> dict[Cell, str | None]:
    """Run what is not done, with a bar and a line for each cell; the failures by cell."""
    from recbole_prune.compare.results import is_done, read_finished, why_not
    from recbole_prune.compare.scheduler import run_cells
    from recbole_prune.report.runs import from_here

    fresh = planned.configs[0].settings.fresh
    failures: dict[Cell, str | None] = {}
    told = False
    done: Callable[[Cell], bool] = (lambda cell: False) if fresh else is_done
    with _bar(len(planned.cells), bool(planned.configs[0]["show_progress"])) as bar:
        for step in run_cells(planned.cells, engine, job_of, done):
            if step.ended is not None:
                run = None if step.failure else read_finished(step.ended)
                score = None if run is None or run.chosen is None else run.chosen["valid_score"]
                failures[step.ended] = step.failure
                if score is None:
                    outcome = f"FAILED: {step.failure or why_not(step.ended)}"
                else:
                    outcome = f"validation {score:.4f}"
                said = f"{step.ended.name}: {outcome}, in {from_here(step.ended.folder)}"
                tqdm.write(printable(said), file=sys.stdout)
            elif not step.running and not told:
                told = True
                tqdm.write("other processes run the cells that are left: waiting for them", file=sys.stderr)
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


def _shares(own: dict[str, Any]) -> tuple[int, int | None]:
    """How many cells at a time, and how many threads each may have; None leaves that to the environment.

    A cluster elsewhere takes as many cells as it has room for, of one thread each.
    """
    workers: int | None = own["workers"]
    if own["engine_address"]:
        return _NO_LIMIT if workers is None else workers, 1
    if own["engine"] == "local" and workers in (None, 0, 1):
        return 1 if workers is None else workers, None
    workers = _cores() if workers is None else workers
    return workers, max(1, _cores() // max(1, workers))


def _engine(own: dict[str, Any], workers: int, threads: int | None) -> Any:
    """What runs the cells, as a context that lets go of it at the end."""
    if own["engine"] == "ray":
        from recbole_prune.compare.ray_engine import ray_engine

        return ray_engine(own["engine_address"], workers, threads or 1, own["engine_gpus"])
    if own["engine"] == "dask":
        from recbole_prune.compare.dask_engine import dask_engine

        return dask_engine(own["engine_address"], workers, own["engine_gpus"])
    from contextlib import nullcontext

    from recbole_prune.compare.local import LocalEngine

    return nullcontext(LocalEngine(workers))


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
        sparsities=[] if own["budgets"] else own["sparsities"] or options.SPARSITIES,
        budgets=own["budgets"] or [],
        seeds=own["seeds"],
        values=own["values"],
    )


def _shared(words: Sequence[str], own: dict[str, Any]) -> list[str]:
    """The words of every cell: without model and dataset, which each cell names, with the first number format."""
    rest = [word for word in words if not word.startswith(("--model=", "--dataset="))]
    return [*rest, f"--export_values={own['values'][0]}"] if own["values"][0] != "fp32" else rest


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def usage() -> str:
    """What the command takes."""
    return options.usage()
