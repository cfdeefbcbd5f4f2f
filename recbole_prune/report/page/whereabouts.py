"""Where the live entries are, and what happens to rare items."""

from __future__ import annotations

from collections.abc import Sequence

from recbole_prune.errors import ArtifactError
from recbole_prune.report.folders import RunRecord
from recbole_prune.report.page import densities, parts
from recbole_prune.report.page.entries import Entry, Study
from recbole_prune.report.page.markup import Child, Markup, element

_MOST_LAYERS = 10
_NOTE = (
    "Percent of the entries that are live. Groups hold equally many interactions each, the most popular first; counted "
    "are all interactions of the data set, validation and test among them, as the artifact lists them."
)


def density_section(study: Study) -> Markup:
    """Density by tensor and by popularity of users and items (figure 7 of the lottery-ticket paper)."""
    content: list[Child] = []
    for run in study.runs:
        entries = [entry for entry in study.entries if entry.run is run and not entry.is_dense]
        content += _of_run(entries) if entries else []
    if not content:
        content = [parts.paragraph("No ticket is pruned.", class_="none")]
    return parts.section("density", "Where entries are kept", content, parts.paragraph(_NOTE, class_="note"))


def _of_run(entries: Sequence[Entry]) -> list[Child]:
    run, name = entries[0].run, entries[0].of_run
    masked = [entry for entry in entries if entry.line.get("mask_file")]
    if not masked:
        return [parts.paragraph(f"{name}: no masks: tables of another form, no single entry is pruned.")]
    try:
        targets = densities.targets_of(run.scope)
        counts = {entry.number: densities.live_per_row(run, entry.line, targets) for entry in masked}
    except ArtifactError as error:
        return [parts.paragraph(f"{name}: not recorded: {error}", class_="none")]
    by_popularity = element("div", _by_popularity(run, masked, targets, counts), class_="pair")
    return [element("h3", name), _by_layer(masked, targets, counts), by_popularity]


AllCounts = dict[int, dict[str, densities.Counts]]


def _by_layer(entries: Sequence[Entry], targets: Sequence[densities.Target], counts: AllCounts) -> Markup:
    """The largest tensors; the rest of a deep model together."""
    ordered = sorted(targets, key=lambda target: -target.rows * target.width)
    shown = [target for target in targets if target in ordered[:_MOST_LAYERS]]
    rest = [target for target in targets if target not in shown]
    header = ["ticket", *(target.name for target in shown), *([f"{len(rest)} more"] if rest else [])]
    rows: list[list[Child]] = []
    for entry in entries:
        found = counts[entry.number]
        row: list[Child] = [entry.name, *(parts.heat(densities.density_of(found, [target])) for target in shown)]
        if rest:
            row.append(parts.heat(densities.density_of(found, rest)))
        rows.append(row)
    return parts.table("percent live by tensor", header, rows, class_="heat")


def _by_popularity(
    run: RunRecord, entries: Sequence[Entry], targets: Sequence[densities.Target], counts: AllCounts
) -> list[Child]:
    try:
        found = densities.popularities(run)
    except ArtifactError as error:
        return [parts.paragraph(f"density by popularity is not recorded: {error}", class_="none")]
    tables: list[Child] = []
    for popularity in found:
        of_side = densities.tables_of(popularity, found, targets)
        if not of_side:
            tables.append(parts.paragraph(f"no table has a row for each {popularity.side}.", class_="none"))
            continue
        members = popularity.members()
        header: list[Child] = ["ticket"]
        header += [[str(number), element("small", f"{count:,}")] for number, count in enumerate(members, 1)]
        rows = [
            [entry.name, *map(parts.heat, densities.density_by_group(counts[entry.number], popularity, of_side))]
            for entry in entries
        ]
        what = f"percent live by popularity of {popularity.side}s (group, and {popularity.side}s in it)"
        tables.append(parts.table(what, header, rows, class_="heat"))
    return tables
