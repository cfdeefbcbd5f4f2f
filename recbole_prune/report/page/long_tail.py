"""What happens to rare items: recall of popular and of rare ones, and what lists hold, dense beside ticket."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from recbole_prune.report.page import parts
from recbole_prune.report.page.entries import Entry, Study, number_in
from recbole_prune.report.page.markup import Markup
from recbole_prune.report.page.scales import NOT_MEASURED, digits, percent, three
from recbole_prune.report.popularity import recall_of

_HEADER = (
    "ticket", "k", "recall, popular", "change (%)", "recall, rare", "change (%)",
    "rare in lists", "items covered", "Gini index", "average popularity",
)  # fmt: skip


def long_tail_section(study: Study) -> Markup:
    """Every ticket's measures of popularity (methods/more_methods.md, C4)."""
    records = [_record(entry.line) for entry in study.entries]
    share = next((found for record in records if (found := number_in(record, "share")) is not None), 0.5)
    if not any(records):
        return parts.section(
            "tail", "Popular and rare items", parts.paragraph("Not measured in any run.", class_="none")
        )
    rows = [_row(entry, record) for entry, record in zip(study.entries, records)]
    note = (
        f"Popular are the most popular items that together have {100 * share:g} % of the training interactions, rare "
        "are all others. Recall is the mean over the test users with a test item in the group; the change is beside "
        "the dense model. Covered are the items that are in some list; the Gini index is 0 where all items are listed "
        "alike; average popularity counts training interactions of the listed items."
    )
    caption = "Recall of popular and of rare items, and what the lists of all test users hold"
    return parts.section(
        "tail",
        "Popular and rare items",
        parts.measured_table(caption, _HEADER, rows),
        parts.paragraph(note, class_="note"),
    )


def _record(line: Mapping[str, Any]) -> Mapping[str, Any]:
    found = recall_of(line)
    return found if isinstance(found, Mapping) else {}


def _row(entry: Entry, record: Mapping[str, Any]) -> Sequence[str]:
    dense = {} if entry.is_dense else _record(entry.run.dense or {})
    length = number_in(record, "k")
    at = ("at", "" if length is None else f"{length:g}")
    cells = [entry.name, NOT_MEASURED if length is None else f"{length:g}"]
    for group in ("popular", "unpopular"):
        value, before = number_in(record, group), number_in(dense, group)
        change = "-" if entry.is_dense else NOT_MEASURED
        if value is not None and before:
            change = f"{100 * (value - before) / before:+.1f}"
        cells += [digits(value), change]
    popularity = number_in(record, *at, "average_popularity")
    return [
        *cells,
        percent(number_in(record, *at, "tail_share")),
        percent(number_in(record, *at, "coverage")),
        digits(number_in(record, *at, "gini"), 3),
        NOT_MEASURED if popularity is None else three(popularity),
    ]
