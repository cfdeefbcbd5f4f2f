"""``recbole-prune report``: run folders as a page to look at, and as tables for spreadsheets and papers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from recbole_prune.config.options import Option, describe, file_to_write, refuse_options, split
from recbole_prune.disk.files import write_atomic
from recbole_prune.errors import ConfigError, printable
from recbole_prune.report.folders import find_runs, is_run_folder
from recbole_prune.report.page import report_page
from recbole_prune.report.page.comparison import csv_text, latex_text
from recbole_prune.report.page.entries import study_of
from recbole_prune.report.page.quality import Quality

_PAGE = "report.html"


def main(words: Sequence[str]) -> int:
    """Read the folders, write what was asked for, print where it is."""
    options, folders = split("report", _OPTIONS, words, refuse_options)
    if not folders:
        raise ConfigError("report: name a folder: recbole-prune report pruned/<dataset>/<model> --to=report.html")
    files = {kind: path for kind, path in options.items() if path is not None} or {"to": Path(_PAGE)}
    _check(files)
    found = find_runs(folders)
    study = study_of(found.runs, found.problems)
    quality = Quality(study)
    makers = {"to": report_page, "csv": csv_text, "latex": latex_text}
    texts = {kind: makers[kind](study, quality).encode() for kind in files}
    for kind, path in files.items():
        write_atomic(path, texts[kind])
    for kind, path in files.items():
        what = f"{len(study.entries)} tickets of {len(found.runs)} run folder{'s' * (len(found.runs) != 1)}"
        print(f"{printable(str(path))}: {what}, {len(texts[kind]):,} bytes")
    return 0


def _check(files: dict[str, Path]) -> None:
    """Refuse, before any work, files that would take the place of each other or of a run's."""
    for kind, path in files.items():
        if any(path.resolve() == other.resolve() for name, other in files.items() if name != kind):
            raise ConfigError(f"report: --{kind}={path} is named twice: every output is a file of its own")
        if any(is_run_folder(folder) for folder in path.resolve().parents):
            raise ConfigError(
                f"report: --{kind}={path} lies in a run folder, which only its run writes to: name another place"
            )


def usage() -> str:
    """What the command takes."""
    lines = [
        "usage: recbole-prune report FOLDER [FOLDER ...] [--to=report.html] [--csv=FILE] [--latex=FILE]",
        "",
        "Makes one page of run folders, or of all that lie below a folder: verdict, quality against bytes and",
        "latency, every ticket, learning curves, density, costs, settings. The page needs no network. All runs must",
        "be of one dataset and split. Nothing is trained, and no model is loaded.",
        "",
    ]
    return "\n".join([*lines, *describe(_OPTIONS, indent=2)])


_OPTIONS = {
    "to": Option(
        file_to_write,
        None,
        "a file to write, no folder or device",
        f"the page; {_PAGE} where nothing else is asked for",
    ),
    "csv": Option(
        file_to_write, None, "a file to write, no folder or device", "every ticket with all metrics, for spreadsheets"
    ),
    "latex": Option(
        file_to_write, None, "a file to write, no folder or device", "the comparison as a tabular, for papers"
    ),
}
