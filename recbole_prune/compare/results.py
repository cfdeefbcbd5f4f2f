"""What a comparison found, from run folders and artifacts alone: whether a cell is done, its job, its records."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from recbole_prune.artifact import Artifact, read_artifact
from recbole_prune.compare.cells import Cell
from recbole_prune.compare.process import Job
from recbole_prune.config.evaluation import smaller_is_better
from recbole_prune.errors import ArtifactError
from recbole_prune.report.folders import DAMAGED, RunRecord, read_run
from recbole_prune.report.statistics import change_of
from recbole_prune.report.users import average_users, read_users

# fields of ticket.json: what the stored values scored on validation and test data (export_evaluate)
_STORED = ("stored_valid", "stored_test")


def read_finished(cell: Cell) -> RunRecord | None:
    """The run of a cell, None where it is not finished."""
    if not cell.folder.is_dir():
        return None
    run = read_run(cell.folder)
    return run if run.has_result and run.state != DAMAGED else None


def is_done(cell: Cell) -> bool:
    """Whether a cell's run is finished and exported in every number format that is compared."""
    run = read_finished(cell)
    return run is not None and all(_stored(cell, run, values) is not None for values in cell.values)


def why_not(cell: Cell) -> str:
    """Why there is nothing to show of a cell that nobody said failed."""
    if not cell.folder.is_dir():
        return "not run yet"
    run = read_run(cell.folder)
    return str(run.reason) if run.state == DAMAGED else f"{run.state}, with {len(run.tickets)} tickets so far"


def job_of(cell: Cell, place: Path, threads: int | None = None) -> Job:
    """The commands of a cell: its run, and an export for each further number format."""
    exports = []
    for values in cell.values:
        clip = [f"--export_int4_clip={cell.int4_clip}"] if values == "int4" else []
        form = (f"--export_values={values}", *clip, "--export_evaluate=True", f"--to={_folder_of(cell, values)}")
        exports.append(("export", f"--run={cell.folder}", *form))
    return Job((("run", *cell.words), *exports), str(place), threads)


def _records_of(cell: Cell, failure: str | None) -> Iterator[dict[str, Any]]:
    """A record for each number format of a cell's result, or one that says why there is none.

    Metrics, bytes and seconds are those of the ticket that the run exported; of the dense model, ticket 0.
    """
    run = read_finished(cell)
    base: dict[str, Any] = {
        "model": cell.model,
        "dataset": cell.dataset,
        "pruner": "dense" if cell.pruner == "none" else cell.pruner,
        "distiller": cell.distiller,
        "prune_target_sparsity": cell.sparsity,
        "budget": cell.budget,
        "seed": cell.seed,
        "folder": str(cell.folder),
    }
    if failure is not None or run is None or run.chosen is None:
        yield {**base, "failure": failure or why_not(cell)}
        return
    chosen = run.chosen
    own = str(run.summary["values"]) if run.summary else "fp32"
    facts = {name: chosen[name] for name in ("sparsity", "valid_score", "test", "train_seconds", "best_epoch")}
    yield {
        **base, "values": own, "valid_metric": run.valid_metric, **facts, "bytes": run.bytes_of[chosen["ticket"]],
        "failure": None,
    }  # fmt: skip
    for values in cell.values:
        stored = _stored(cell, run, values)
        if stored is None:
            yield {**base, "values": values, "failure": f"{_folder_of(cell, values)} is not there"}
            continue
        valid, test = (stored.info[name] for name in _STORED)
        score = valid[str(run.valid_metric).lower()]
        changed = {**facts, "valid_score": score, "test": test, "bytes": _bytes_of(stored)}
        yield {**base, "values": values, "valid_metric": run.valid_metric, **changed, "failure": None}


def records_of(cells: Sequence[Cell], failures: Mapping[Cell, str | None]) -> list[dict[str, Any]]:
    """The records of all cells.

    Those of a run's own number format have ``change_percent`` and ``interval_percent``: by how much the test metric
    that tickets are picked by changes beside the dense model, in percent of it, with its 95 % interval over users,
    whose values are averaged over ``change_seeds`` seeds. None where users have no values.
    """
    records: list[dict[str, Any]] = []
    groups: dict[Cell, list[tuple[Cell, dict[str, Any]]]] = {}
    for cell in cells:
        own, *others = _records_of(cell, failures.get(cell))
        records += [own, *others]
        if own["failure"] is None and cell.pruner != "none":
            method = replace(cell, seed=0, folder=Path(), words=(), group="")
            groups.setdefault(method, []).append((cell, own))
    for group in groups.values():
        change = _change_of([cell for cell, _ in group])
        for _, record in group:
            record.update(change, change_seeds=len(group))
    return records


def _change_of(cells: Sequence[Cell]) -> dict[str, Any]:
    """What cells that differ in their seed change beside their dense models."""
    runs = [run for run in map(read_finished, cells) if run is not None and run.chosen is not None]
    tickets = [(read_users(run), run.chosen["ticket"]) for run in runs if run.chosen is not None]
    metric = str(runs[0].valid_metric).lower()
    average = None if smaller_is_better(metric) else average_users(tickets, "test", metric)
    change, interval = (None, (None, None)) if average is None else change_of(average.dense, average.ticket)
    return {"change_percent": change, "interval_percent": list(interval)}


def _folder_of(cell: Cell, values: str) -> Path:
    return cell.folder.with_name(f"{cell.folder.name}.{values}")


def _bytes_of(artifact: Artifact) -> int:
    """Of all weights, pruned or not and in whatever form, as runs count them."""
    return sum(tensor.nbytes for tensor in artifact.tensors.values())


def _stored(cell: Cell, run: RunRecord, values: str) -> Artifact | None:
    """The artifact of a further number format, None where it is not there, is of another result or not evaluated."""
    folder = _folder_of(cell, values)
    if not folder.is_dir() or run.chosen is None:
        return None
    try:
        artifact = read_artifact(folder)
    except ArtifactError:
        return None
    info = artifact.info
    source = info.get("source")
    wanted = {"checkpoint_sha256": run.chosen.get("checkpoint_sha256"), "values": values}
    wanted.update({"int4_clip": cell.int4_clip} if values == "int4" else {})
    fits = isinstance(source, Mapping) and all(source.get(name) == value for name, value in wanted.items())
    metric = str(run.valid_metric).lower()
    scored = all(isinstance(info.get(name), Mapping) for name in _STORED) and _is_number(info[_STORED[0]].get(metric))
    return artifact if fits and scored else None


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
