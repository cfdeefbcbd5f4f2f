"""``recbole-prune runs``: list run folders, and remove what is not needed to keep their results."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from recbole_prune.config.options import Option, describe, refuse_options, split
from recbole_prune.errors import BusyError, ConfigError, StoreError, printable, printable_lines
from recbole_prune.report.folders import FINISHED, RunRecord, find_runs
from recbole_prune.report.runs import from_here, megabytes, runs_text


def main(words: Sequence[str]) -> int:
    """List the runs in folders, by default ``pruned``; with ``--clean`` remove what their results do not need."""
    own, folders = split("runs", _OPTIONS, words, refuse_options)
    if own["yes"] and not own["clean"]:
        raise ConfigError("runs: --yes goes with --clean")
    found = find_runs(folders or ["pruned"])
    for problem in found.problems:
        print(printable(f"warning: {problem}"), file=sys.stderr)
    if not found.runs:
        return 2
    if own["clean"]:
        return _clean(found.runs, own["yes"])
    print(printable_lines(runs_text(found.runs, own["commands"])))
    return 0


def _clean(runs: Sequence[RunRecord], really: bool) -> int:
    """Say, run by run, what is freed; without ``--yes`` what would be."""
    from recbole_prune.run.cleaning import clean

    total, failed = 0, False
    teachers = list(_teachers(runs))
    for run in runs:
        if run.state != FINISHED or run.chosen is None or run.is_set_aside:
            print(printable(f"{from_here(run.path)}: {run.state}{', moved aside' * run.is_set_aside}, left as it is"))
            continue
        try:
            size = clean(run.path, run.chosen["ticket"], teachers, really=really)
        except BusyError:
            print(printable(f"{from_here(run.path)}: a process works there, left as it is"))
            continue
        except StoreError as error:
            failed = True
            print(printable(f"{from_here(run.path)}: left as it is: {error}"), file=sys.stderr)
            continue
        total += size
        if size:
            print(printable(f"{from_here(run.path)}: {megabytes(size)} MB"))
    print(printable(f"{'freed' if really else 'would free'} {megabytes(total)} MB ({total:,} bytes)"))
    if not really and total:
        text = "checkpoints of tickets that are not chosen come back by training anew only; --clean --yes removes them"
        print(text)
    return 2 if failed else 0


def _teachers(runs: Sequence[RunRecord]) -> list[Path]:
    """What the settings of runs name as teachers."""
    named = [run.settings.get("distill_teacher") or [] for run in runs]
    paths = [path for each in named for path in ([each] if isinstance(each, str) else each)]
    return [Path(path).absolute() for path in paths if isinstance(path, str)]


def _flag(text: str) -> bool:
    """Given alone, or with True or False."""
    return {"": True, "true": True, "false": False}[text.lower()]


_OPTIONS = {
    "clean": Option(_flag, False, "True or False; name folders before it", "remove what results do not need"),
    "yes": Option(_flag, False, "True or False; name folders before it", "really; without it --clean only tells"),
    "commands": Option(_flag, False, "True or False; name folders before it", "also the commands of finished runs"),
}


def usage() -> str:
    """What the command takes."""
    lines = [
        "usage: recbole-prune runs [FOLDER ...] [--commands] [--clean [--yes]]",
        "",
        "Lists the run folders in FOLDER (default pruned): state, chosen ticket, whether it wins, size on disk, and",
        "the command that goes on with an unfinished one. --clean removes the checkpoints of tickets that are not",
        "chosen, and resume points, of finished runs. It leaves artifacts, masks, journals, the chosen ticket's",
        "checkpoint, the dense model's where it was trained, which other runs take over, and what another listed run",
        "has for a teacher.",
        "States for students (distill_record_states) go with: recbole-prune clean --run=FOLDER.",
        "",
    ]
    return "\n".join([*lines, *describe(_OPTIONS, indent=2)])
