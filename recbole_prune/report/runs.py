"""Run folders as a list: what each is, how far it is, what it takes on disk, and how to go on."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from recbole_prune.report.folders import DAMAGED, FINISHED, UNFINISHED, RunRecord
from recbole_prune.report.rows import format_rows, verdict

_PARTS = ("checkpoints", "resume", "states", "artifact")


def runs_text(runs: Sequence[RunRecord], every_command: bool = False) -> str:
    """One row for each run, then what is damaged and the commands that go on with unfinished runs.

    Args:
        runs: at least one.
        every_command: also of finished runs, which print their table.
    """
    rows = [_row(number, run) for number, run in enumerate(runs, 1)]
    header = ["", "data", "model", "method", "seed", "state", "ticket", "sparsity", "wins", "good", "MB"]
    total = sum(sum(run.bytes_on_disk.values()) for run in runs)
    parts = [f"{name} {megabytes(size)}" for name, size in _by_part(runs)]
    lines = [
        format_rows(header, rows),
        f"{len(runs)} run{'s' * (len(runs) != 1)}, {megabytes(total)} MB: {', '.join(parts)}",
    ]
    lines.append("good: whether the chosen ticket is as good as the dense model, by its test (yes, no, open)")
    for number, run in enumerate(runs, 1):
        lines += [f"{number}: {text}" for text in _remarks(run, every_command)]
    return "\n".join(lines)


def megabytes(size: int) -> str:
    """Bytes as megabytes (10^6)."""
    return f"{size / 1e6:,.1f}"


def from_here(path: Path) -> str:
    """A path as one would type it."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith(os.pardir) else relative


def _row(number: int, run: RunRecord) -> list[str]:
    chosen = run.chosen
    state = f"{run.state}, old" if run.is_set_aside else run.state
    if run.state == UNFINISHED:
        state += f" ({len(run.tickets)})"
    facts = ["-", "-", "-", "-"]
    if chosen is not None:
        facts = [str(chosen["ticket"]), f"{100 * chosen['sparsity']:.2f} %", verdict(chosen), _as_good(run)]
    size = megabytes(sum(run.bytes_on_disk.values()))
    seed = "-" if run.seed is None else str(run.seed)
    return [str(number), run.dataset, run.model, run.method, seed, state, *facts, size]


def _as_good(run: RunRecord) -> str:
    """The tested statement about the chosen ticket; ``-`` of the dense model, and where nothing was tested."""
    chosen = run.chosen
    if run.summary is None or chosen is None:
        return "-"
    block = next((line.get("as_good") for line in run.summary["tickets"] if line["ticket"] == chosen["ticket"]), None)
    found = block.get("as_good") if isinstance(block, dict) else None
    return found if isinstance(found, str) else "-"


def _by_part(runs: Sequence[RunRecord]) -> Iterator[tuple[str, int]]:
    sizes = {name: sum(run.bytes_on_disk.get(name, 0) for run in runs) for name in _PARTS}
    yield from ((name, size) for name, size in sizes.items() if size)
    yield "other", sum(sum(run.bytes_on_disk.values()) for run in runs) - sum(sizes.values())


def _remarks(run: RunRecord, every_command: bool) -> Iterator[str]:
    if run.state == DAMAGED:
        yield str(run.reason)
        return
    yield from_here(run.path)
    if run.is_set_aside:
        yield "an older run that --fresh=True moved aside; nothing uses it"
    elif run.state == UNFINISHED or (every_command and run.state == FINISHED):
        yield run.command() or "no command continues it: the program that began it does"
