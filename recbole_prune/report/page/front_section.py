"""Quality against cost and the comparison of all tickets: the part of the page that follows the chosen metric."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from recbole_prune.report.page import charts, comparison, parts
from recbole_prune.report.page.entries import Entry, Study, is_smaller_better
from recbole_prune.report.page.markup import Child, Markup, element, json_text
from recbole_prune.report.page.pareto import Point, cost_scale, view_of
from recbole_prune.report.page.quality import Quality
from recbole_prune.report.page.scales import NOT_MEASURED, short_milliseconds, size


@dataclass(frozen=True)
class _Cost:
    """A cost that quality is set against."""

    key: str
    title: str
    axis: str
    of: Callable[[Entry], float | None]
    late: Callable[[Entry], float | None]
    unit: Callable[[float], str]
    missing: str


_COSTS = (
    _Cost(
        key="bytes",
        title="Quality and size",
        axis="bytes of the weights in an artifact",
        of=lambda entry: entry.bytes,
        late=lambda entry: None,
        unit=size,
        missing="Sizes: not measured. They are counted when a run ends.",
    ),
    _Cost(
        key="latency",
        title="Quality and speed",
        axis="median time to rank all items for a user",
        of=lambda entry: entry.measured("latency", "latency_median_s"),
        late=lambda entry: entry.measured("latency", "latency_p95_s"),
        unit=short_milliseconds,
        missing="Latency: not measured. With --measure_latency_users=64 a run times the lists of 64 users.",
    ),
)


class FrontSection:
    """Charts and table, with one view for each metric."""

    def __init__(self, study: Study, quality: Quality) -> None:
        self._study, self._quality = study, quality
        self._series = study.series()
        self._shown = {cost.key: [self._points(cost, name) for name in study.metrics] for cost in _COSTS}

    def _points(self, cost: _Cost, metric: str) -> list[Point]:
        part, interval_of = self._study.part, self._quality.interval_of
        return [
            Point(e.name, cost.of(e) or None, e.metric(part, metric), interval_of(e, metric), cost.late(e))
            for e in self._study.entries
        ]

    def _view(self, cost: _Cost, number: int) -> dict[str, Any]:
        points = self._shown[cost.key][number]
        view = view_of(points, cost_scale(points), is_smaller_better(self._study.metrics[number]))
        names = [
            point.name for point, on in sorted(zip(points, view["front"]), key=lambda each: each[0].cost or 0) if on
        ]
        others = sum(x is not None for x in view["x"]) - len(names)
        missing = view["x"].count(None)
        said = f"Nothing is better in both: {', '.join(names)}." if names else ""
        said += f" Grey: {others} others, each beaten in both by one of these." if others else ""
        said += f" Not shown, since not measured: {missing}." if missing else ""
        return {**view, "caption": said.strip()}

    def views(self) -> Markup:
        """All metrics as JSON for the script, which puts them in place of each other."""
        found = []
        for number, metric in enumerate(self._study.metrics):
            drawn = {cost.key: self._view(cost, number) for cost in _COSTS}
            cells = {
                column.of_metric: [column.cell(entry) for entry in self._study.entries]
                for column in self._columns(number)
                if column.of_metric
            }
            found.append({"name": metric, "charts": drawn, "cells": cells})
        content = {"part": self._study.part, "names": [entry.name for entry in self._study.entries],
                   "colours": [self._series.index(entry.series) % charts.COLOURS for entry in self._study.entries],
                   "metrics": found}  # fmt: skip
        return element("script", json_text(content), type="application/json", id="views")

    def _columns(self, number: int) -> list[comparison.Column]:
        front = self._view(_COSTS[0], number)["front"]
        return comparison.columns_of(
            self._study, self._quality, self._study.metrics[number], [bool(each) for each in front]
        )

    def charts(self) -> Markup:
        """The two charts, their legend and the choice of the metric."""
        metric = self._study.metrics[0]
        figures = []
        for cost in _COSTS:
            view = self._view(cost, 0)
            if not any(x is not None for x in view["x"]):
                figures.append(element("figure", parts.paragraph(cost.missing, class_="none"), class_="empty"))
                continue
            names, series = zip(*((entry.name, self._series.index(entry.series)) for entry in self._study.entries))
            costs, said = cost_scale(self._shown[cost.key][0]), f"{cost.title}: {self._study.part} {metric} against"
            chart = charts.pareto_chart(view, names, series, costs, cost.unit, f"{said} {cost.axis}", cost.axis)
            title = element("h3", f"{cost.title}: {self._study.part} ", element("span", metric, class_="metric"))
            figures.append(element("figure", title, chart, element("figcaption", view["caption"]), data_chart=cost.key))
        return parts.section(
            "front", "What is smaller, what is faster, what is as good",
            self._choice(), element("div", figures, class_="pair"), self._legend(),
        )  # fmt: skip

    def _choice(self) -> Markup:
        if len(self._study.metrics) < 2:
            return Markup("")
        options = [element("option", name, value=number) for number, name in enumerate(self._study.metrics)]
        return element("p", element("label", "Metric ", element("select", options, id="metric")), class_="choice")

    def _legend(self) -> Markup:
        keys = [element("li", charts.mark(number), name) for number, name in enumerate(self._series)]
        notes: list[Child] = [
            "The line joins what nothing beats in both. Upright: 95 % interval over users of the difference to the "
            "dense model. Level: from the median to the 95th percentile."
        ]
        return element("div", element("ul", keys, class_="legend"), parts.paragraph(notes, class_="note"))

    def table(self) -> Markup:
        """The comparison of all tickets, with its text for spreadsheets and papers."""
        study, every = self._study, self._columns(0)
        columns = [
            c
            for c in every
            if c.of_metric or any(c.cell(entry) not in (NOT_MEASURED, "dense") for entry in study.entries)
        ]
        missing = [column.header for column in every if column not in columns]
        rows: list[Sequence[Child]] = []
        for entry in study.entries:
            cells: list[Child] = [columns[0].cell(entry)]
            for column in columns[1:]:
                text = column.cell(entry)
                kind = " ".join(filter(None, ["text" * column.is_text, "none" * (text == NOT_MEASURED)]))
                cells.append(element("td", text, class_=kind or None, data_cell=column.of_metric or None))
            rows.append(cells)
        header = [element("button", column.header, type="button", class_="sort") for column in columns]
        return parts.section(
            "comparison", "All tickets",
            parts.table("All tickets, the metric as chosen above; * is what a run exports", header, rows, id="tickets"),
            parts.not_measured(missing),
            self._legend_of_table(),
            self._copy("csv", "Copy as CSV", comparison.csv_text(study, self._quality)),
            self._copy("latex", "Copy as LaTeX", comparison.latex_text(study, self._quality)),
        )  # fmt: skip

    def _legend_of_table(self) -> Markup:
        picked = ", ".join(dict.fromkeys(self._quality.picked_by(entry) for entry in self._study.entries))
        smaller = [name for name in self._study.metrics if is_smaller_better(name)]
        return parts.paragraph(
            f"Change: {self._study.part} value of a ticket beside its dense model, in percent of it, with the 95 % "
            f"interval over users. As good: worse by less than the margin, tested on {picked}, Holm-corrected over the "
            "tickets of a run; open = not decided by these users. Wins: yes = at least as good on validation in no more "
            "epochs, metric = in more epochs. Epoch: the one whose weights were kept, of those trained. Front: nothing "
            "is smaller and better.",
            f" Smaller is better: {', '.join(smaller)}." if smaller else None,
            class_="note",
        )  # fmt: skip

    @staticmethod
    def _copy(key: str, title: str, text: str) -> Markup:
        """A text to be copied: by the button, or from the box where there is no script."""
        button = element("button", title, type="button", class_="copy", data_from=f"text-{key}")
        box = parts.preformatted(text, id=f"text-{key}")
        return parts.details(
            title.replace("Copy as", "As"), parts.paragraph(button, element("output", "", class_="said")), box
        )
