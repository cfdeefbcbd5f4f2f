"""Quality against cost and the comparison of all tickets: the part of the page that follows the chosen metric."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from recbole_prune.report.page import charts, comparison, parts
from recbole_prune.report.page.entries import Entry, Study, is_smaller_better
from recbole_prune.report.page.markup import Child, Markup, element, json_text
from recbole_prune.report.page.pareto import Point, cost_scale, front_view, heights_of, places_of
from recbole_prune.report.page.quality import Quality
from recbole_prune.report.page.scales import NOT_MEASURED, short_milliseconds, size
from recbole_prune.report.page.seeds import over_seeds


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


_SIZE = _Cost(
    key="bytes",
    title="Quality and size",
    axis="bytes of the weights in an artifact",
    of=lambda entry: entry.bytes,
    late=lambda entry: None,
    unit=size,
    missing="Sizes: not measured. They are counted when a run ends.",
)
_LATENCY = _Cost(
    key="speed",
    title="Quality and speed",
    axis="median time to rank all items for a user",
    of=lambda entry: entry.measured("latency", "latency_median_s"),
    late=lambda entry: entry.measured("latency", "latency_p95_s"),
    unit=short_milliseconds,
    missing="Speed: not measured. With --measure_latency_users=64 a run times the lists of 64 users one by one.",
)
_RANKING = replace(
    _LATENCY,
    axis="time of the test evaluation for each of its users",
    of=lambda entry: entry.ranking_seconds,
    late=lambda entry: None,
)
_MOST_NAMES = 12
_FOLLOWS = ("valid", "test", "change")  # another metric may have what the first has not
_SAYS_NOTHING = (NOT_MEASURED, "dense", "-")
# of the file that --csv writes
_COPIED = (
    "run",
    "ticket",
    "sparsity",
    "bytes",
    "change_percent",
    "low_percent",
    "high_percent",
    "as_good",
    "latency_median_s",
)


def _positive(cost: float | None) -> float | None:
    """A cost that has a place on a logarithmic axis."""
    return cost if cost is not None and cost > 0 else None


def _costs_of(study: Study) -> tuple[_Cost, _Cost]:
    """Bytes, and seconds: of single lists where they were timed, else of the evaluation of all users together."""
    has_latency = any(_LATENCY.of(entry) is not None for entry in study.entries)
    return _SIZE, (_LATENCY if has_latency else _RANKING)


class FrontSection:
    """Charts and table, with one view for each metric."""

    def __init__(self, study: Study, quality: Quality) -> None:
        self._study, self._quality = study, quality
        self._series = study.series()
        self._costs = _costs_of(study)
        self._points = {c.key: [self._points_of(c, name) for name in study.metrics] for c in self._costs}
        self._places = {cost.key: places_of(self._points[cost.key][0]) for cost in self._costs}
        self._heights = [heights_of(self._points["bytes"][number]) for number in range(len(study.metrics))]
        self._fronts = {c.key: [self._front_of(c, number) for number in range(len(study.metrics))] for c in self._costs}

    def _points_of(self, cost: _Cost, metric: str) -> list[Point]:
        part, interval_of = self._study.part, self._quality.interval_of
        return [
            Point(
                e.name, _positive(cost.of(e)), e.metric(part, metric), interval_of(e, metric), _positive(cost.late(e))
            )
            for e in self._study.entries
        ]

    def _front_of(self, cost: _Cost, number: int) -> dict[str, Any]:
        """The front of a metric and a cost, and what is said of it."""
        points, x, y = self._points[cost.key][number], self._places[cost.key]["x"], self._heights[number]["y"]
        view = front_view(points, x, y, is_smaller_better(self._study.metrics[number]))
        by_cost = sorted(zip(points, view["front"]), key=lambda each: each[0].cost or 0)
        names = [point.name for point, on_front in by_cost if on_front]
        shown = sum(a is not None and b is not None for a, b in zip(x, y))
        more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
        said = f"Nothing is better in both: {', '.join(names[:_MOST_NAMES])}{more}." if names else ""
        others = shown - len(names)
        said += f" Grey, beaten in both by one of these: {others} other{'s' * (others > 1)}." if others else ""
        said += f" Not shown, since not measured: {len(points) - shown}." if shown < len(points) else ""
        return {**view, "caption": said.strip()}

    def views(self) -> Markup:
        """All metrics as JSON for the script, which puts them in place of each other."""
        metrics = [
            {
                "name": name,
                **self._heights[number],
                "fronts": {key: fronts[number] for key, fronts in self._fronts.items()},
                "cells": {
                    column.of_metric: [column.cell(entry) for entry in self._study.entries]
                    for column in self._columns(number)
                    if column.of_metric
                },
            }
            for number, name in enumerate(self._study.metrics)
        ]
        names = [entry.name for entry in self._study.entries]
        marks = [self._series.index(entry.series) % charts.COLOURS for entry in self._study.entries]
        content = {"names": names, "marks": marks, "places": self._places, "metrics": metrics}
        return element("script", json_text(content), type="application/json", id="views")

    def _columns(self, number: int) -> list[comparison.Column]:
        front = [bool(each) for each in self._fronts["bytes"][number]["front"]]
        return comparison.columns_of(self._study, self._quality, self._study.metrics[number], front)

    def charts(self) -> Markup:
        """The two charts, their legend and the choice of the metric."""
        return parts.section(
            "front", "What is smaller, what is faster, what is as good",
            self._choice(), element("div", map(self._figure, self._costs), class_="pair"), self._legend(),
        )  # fmt: skip

    def _figure(self, cost: _Cost) -> Markup:
        metric, places = self._study.metrics[0], self._places[cost.key]
        if not any(x is not None for x in places["x"]):
            return element("figure", parts.paragraph(cost.missing, class_="none"), class_="empty")
        view = {**places, **self._heights[0], **self._fronts[cost.key][0]}
        names, series = zip(*((entry.name, self._series.index(entry.series)) for entry in self._study.entries))
        axis = charts.Axis(cost_scale(self._points[cost.key][0]), cost.unit, cost.axis)
        title = f"{cost.title}: {self._study.part} {metric} against {cost.axis}"
        head = element("h3", f"{cost.title}: {self._study.part} ", element("span", metric, class_="metric"))
        chart = charts.pareto_chart(view, names, series, axis, title)
        return element("figure", head, chart, element("figcaption", view["caption"]), data_chart=cost.key)

    def _choice(self) -> Markup:
        if len(self._study.metrics) < 2:
            return Markup("")
        options = [element("option", name, value=number) for number, name in enumerate(self._study.metrics)]
        return element("p", element("label", "Metric ", element("select", options, id="metric")), class_="choice")

    def _legend(self) -> Markup:
        keys = [element("li", charts.mark(number), name) for number, name in enumerate(self._series)]
        notes: list[Child] = [
            "The line joins what nothing beats in both. Upright: 95 % interval over users of the difference to the "
            "dense model. Level: from the median to the 95th percentile, or to the edge where that is far beyond."
        ]
        return element("div", element("ul", keys, class_="legend"), parts.paragraph(notes, class_="note"))

    def table(self) -> Markup:
        """The comparison of all tickets, with its text for spreadsheets and papers."""
        study, every = self._study, self._columns(0)
        columns = [
            column
            for column in every
            if column.of_metric in _FOLLOWS or any(column.cell(entry) not in _SAYS_NOTHING for entry in study.entries)
        ]
        missing = [column.header for column in every if column not in columns]
        rows: list[Sequence[Child]] = []
        for entry in study.entries:
            cells: list[Child] = [columns[0].cell(entry)]
            for column in columns[1:]:
                text = column.cell(entry)
                kind = " ".join(filter(None, ["text" * column.is_text, "none" * (text == NOT_MEASURED)]))
                cells.append(element("td", text, class_=kind or None))
            rows.append(cells)
        header = [
            element("button", column.header, type="button", class_="sort", data_cell=column.of_metric or None)
            for column in columns
        ]
        return parts.section(
            "comparison", "All tickets",
            parts.table("All tickets, the metric as chosen above; * is what a run exports", header, rows, id="tickets"),
            parts.not_measured(missing),
            self._legend_of_table(),
            over_seeds(study, self._quality),
            self._copy("csv", "Copy as CSV", comparison.csv_text(study, self._quality, _COPIED)),
            self._copy("latex", "Copy as LaTeX", comparison.latex_text(study, self._quality)),
        )  # fmt: skip

    def _legend_of_table(self) -> Markup:
        picked = ", ".join(dict.fromkeys(self._quality.picked_by(entry) for entry in self._study.entries))
        smaller = [name for name in self._study.metrics if is_smaller_better(name)]
        return parts.paragraph(
            f"Change: {self._study.part} value of a ticket beside its dense model, in percent of it, with the 95 % "
            f"interval over users. As good: worse by less than the margin, tested on {picked}, Holm-corrected over the "
            "tickets of a run; open = not decided by these users. Wins: yes = reaches the dense score on validation in "
            "no more epochs, metric = in more epochs. Epoch: the one whose weights were kept, of those trained. Front: "
            "nothing is smaller and better.",
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
