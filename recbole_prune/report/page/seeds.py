"""Runs that differ in their seed alone: user by user averaged over seeds, and every seed for itself."""

from __future__ import annotations

from collections.abc import Sequence

from recbole_prune.report.folders import RunRecord
from recbole_prune.report.page import parts
from recbole_prune.report.page.entries import Entry, Study, is_smaller_better
from recbole_prune.report.page.markup import Markup, joined
from recbole_prune.report.page.quality import Quality
from recbole_prune.report.page.scales import NOT_MEASURED, percent
from recbole_prune.report.statistics import PairedTest, SeedAverage, verdicts
from recbole_prune.report.users import average_users

_HEADER = ("ticket", "seeds", "change (%) [95 %]", "of each seed (%)", "spread (%)", "as good")
_NOTE = (
    "Values of each user are averaged over seeds before they are tested, Holm-corrected over the tickets of a method; "
    "as good is yes only where no seed by itself is worse by the margin. Spread: standard deviation of the changes."
)


def over_seeds(study: Study, quality: Quality) -> Markup | None:
    """A table of all tickets that there are under several seeds; None where there are none."""
    rows = [row for runs in _groups(study) for row in _rows(study, quality, runs)]
    if not rows:
        return None
    caption = "Tickets over seeds: the metric that they are picked by, beside their dense models"
    return joined([parts.table(caption, _HEADER, rows), parts.paragraph(_NOTE, class_="note")])


def _groups(study: Study) -> list[list[RunRecord]]:
    """Runs with the same settings but for the seed, each seed once."""
    found: dict[str, dict[object, RunRecord]] = {}
    for run in study.runs:
        if run.reason is None and run.tickets:
            settings = sorted((str(name), str(value)) for name, value in run.settings.items() if name != "seed")
            found.setdefault(repr((run.model, run.method, settings)), {}).setdefault(run.seed, run)
    return [list(runs.values()) for runs in found.values() if len(runs) > 1]


def _rows(study: Study, quality: Quality, runs: Sequence[RunRecord]) -> list[list[str]]:
    entries = [entry for entry in study.entries if entry.run is runs[0] and not entry.is_dense]
    if not entries or is_smaller_better(metric := quality.picked_by(entries[0])):
        return []
    users = [quality.users_of(run) for run in runs]
    averages = {
        entry.number: average_users([(each, entry.number) for each in users], study.part, metric) for entry in entries
    }
    known = {number: average for number, average in averages.items() if average is not None}
    if not known:
        return []
    margin = max(quality.margin_of(entry) for entry in entries)
    dense = next(iter(known.values())).dense
    tests = verdicts(dense, {number: average.ticket for number, average in known.items()}, margin) if margin else {}
    return [
        _row(entry, runs, known[entry.number], tests.get(entry.number)) for entry in entries if entry.number in known
    ]


def _row(entry: Entry, runs: Sequence[RunRecord], average: SeedAverage, test: PairedTest | None) -> list[str]:
    level = float(average.dense.mean()) or float("nan")
    name = entry.name.replace(f" (seed {runs[0].seed})", "")
    each = ", ".join(f"{run.seed}: {100 * change / level:+.2f}" for run, change in zip(runs, average.changes))
    spread = None if average.spread is None else average.spread / level
    if test is None:
        return [name, str(len(runs)), NOT_MEASURED, each, percent(spread, 2).rstrip(" %"), NOT_MEASURED]
    low, high = test.interval_percent
    interval = f" [{low:+.2f}, {high:+.2f}]" if low is not None and high is not None else ""
    change = NOT_MEASURED if test.change_percent is None else f"{test.change_percent:+.2f}{interval}"
    return [name, str(len(runs)), change, each, percent(spread, 2).rstrip(" %"), average.confirm(test).as_good]
