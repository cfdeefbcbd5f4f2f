"""How tickets were trained: learning curves, relative epochs, costs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from recbole_prune.report.folders import RunRecord
from recbole_prune.report.page import charts, parts
from recbole_prune.report.page.entries import Entry, Study, number_in, within_reason
from recbole_prune.report.page.markup import Child, Markup, element
from recbole_prune.report.page.quality import Quality
from recbole_prune.report.page.scales import NOT_MEASURED, seconds, size, three, whole

_RAMP = 6  # shades from little to much pruned
_PARTS = ("gpu", "cpu", "dram")
Curve = tuple[str, str, list[tuple[float, float]], "float | None"]


def curves_section(study: Study, quality: Quality) -> Markup:
    """Validation scores and training losses of every ticket over its epochs."""
    figures: list[Markup] = []
    for run in study.runs:
        entries = [entry for entry in study.entries if entry.run is run]
        if entries:  # the last is a pruned one, where there is one
            figures += _figures(run, entries[-1].of_run, quality.picked_by(entries[-1]))
    if not figures:
        figures = [parts.paragraph("No validation was recorded.", class_="none")]
    return parts.section(
        "curves", "Learning curves", element("div", figures, class_="pair"),
        parts.paragraph(
            "A line ends in the number of its ticket; 0 is the dense model, drawn with dashes; the stronger a "
            "line, the more is pruned. A circle marks the epoch whose weights were kept.",
            class_="note",
        ),
    )  # fmt: skip


def _figures(run: RunRecord, name: str, metric: str) -> list[Markup]:
    validation = _curves(run, "history")
    losses = _curves(run, "losses")
    found = []
    for what, curves in ((f"validation {metric}", validation), ("training loss", losses)):
        if any(line for _, _, line, _ in curves):
            title = element("h3", f"{name}: {what}")
            found.append(
                element("figure", title, charts.curve_chart(curves, f"{name}: {what} by epoch, a line for each ticket"))
            )
    return found


def _curves(run: RunRecord, field: str) -> list[Curve]:
    """The line of each ticket; a loss that overflowed leaves a gap out."""
    found: list[Curve] = []
    for line in run.tickets:
        recorded = line.get(field) or []
        pairs = enumerate(recorded, 1) if field == "losses" else recorded
        known = [(within_reason(epoch), None if value is None else within_reason(value)) for epoch, value in pairs]
        points = [(epoch, value) for epoch, value in known if epoch is not None and value is not None]
        kind = "dense" if line["ticket"] == 0 else f"k{min(_RAMP - 1, int(_RAMP * min(max(line['sparsity'], 0), 1)))}"
        found.append(
            (str(line["ticket"]), kind, points, within_reason(line["best_epoch"]) if field == "history" else None)
        )
    return found


def epochs_section(study: Study) -> Markup:
    """How many times sooner a ticket is where the dense model ends (figure 6 of the lottery-ticket paper)."""
    pruned = [entry for entry in study.entries if not entry.is_dense]
    known = {id(entry): number_in(entry.line, "relative_epochs") for entry in pruned}
    longest = max([value for value in known.values() if value is not None], default=1.0) or 1.0
    rows: list[list[Child]] = []
    for entry in pruned:
        relative, dense = known[id(entry)], entry.run.dense
        reached = (
            "never"
            if dense is not None and relative is None
            else NOT_MEASURED
            if relative is None
            else f"{three(relative)} times"
        )
        shown = parts.cell(charts.bar(relative / longest) if relative else "", "wide")
        rows.append(
            [
                entry.name,
                str(entry.line["best_epoch"]),
                "-" if dense is None else str(dense["best_epoch"]),
                reached,
                shown,
            ]
        )
    header = [
        "ticket",
        "its best epoch",
        "best epoch of dense",
        "sooner than dense",
        element("span", "bar", class_="hidden"),
    ]
    content: list[Child] = [
        parts.table(
            "How many times fewer epochs a ticket needs to be as good as the dense model on validation", header, rows
        )
        if rows
        else parts.paragraph("No ticket is pruned.", class_="none"),
        parts.paragraph(
            "Best epoch of the dense model over the first epoch at which the ticket is as good; never: at none.",
            class_="note",
        ),
    ]
    return parts.section("epochs", "Relative epochs", content)


def costs_section(study: Study) -> Markup:
    """What training and ranking took, as far as it was measured."""
    header = [
        "ticket",
        "training",
        "evaluation",
        "memory, training",
        "memory, ranking",
        "MACs a user",
        "checkpoint",
        "energy, training",
    ]
    rows = [
        [
            entry.name,
            seconds(number_in(entry.line, "train_seconds")),
            seconds(number_in(entry.line, "eval_seconds")),
            _memory(entry, "training"),
            _memory(entry, "ranking"),
            whole(entry.measured("macs", "inference", "exact")),
            size(entry.measured("checkpoint_bytes")),
            _energy(entry.line),
        ]
        for entry in study.entries
    ]
    threads = sorted(
        {int(each) for entry in study.entries if (each := entry.measured("latency", "threads")) is not None}
    )
    note = "Peak memory is that of the process, and of tensors on a GPU. MACs: multiply-accumulates that are left."
    note += f" Latency was measured with {', '.join(map(str, threads))} thread(s)." if threads else ""
    return parts.section(
        "costs",
        "Costs",
        parts.measured_table("What every ticket cost", header, rows),
        parts.paragraph(note, class_="note"),
    )


def _memory(entry: Entry, what: str) -> str:
    host = entry.measured("peak_memory", what, "host_bytes")
    device = entry.measured("peak_memory", what, "device_bytes")
    return size(host) + (f", GPU {size(device)}" if device is not None else "")


def _energy(line: Mapping[str, Any]) -> str:
    """Joules and mean watts by part of the machine, or why there are none."""
    energy = (line.get("measured") or {}).get("energy")
    train = energy.get("train") if isinstance(energy, Mapping) else None
    said = []
    for part in _PARTS:
        joules, watts = number_in(train, f"{part}_energy_J"), number_in(train, f"{part}_mean_power_W")
        if joules is not None:
            said.append(f"{part} {three(joules)} J" + (f" ({three(watts)} W)" if watts is not None else ""))
    if said or not isinstance(train, Mapping):
        return ", ".join(said) or NOT_MEASURED
    reasons = dict.fromkeys(str(train.get(f"{part}_reason")) for part in _PARTS if train.get(f"{part}_reason"))
    return f"{NOT_MEASURED} ({', '.join(reasons)})" if reasons else NOT_MEASURED
