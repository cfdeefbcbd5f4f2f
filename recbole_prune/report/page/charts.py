"""Charts as SVG: the Pareto chart, curves over epochs, bars in tables. Colours and fonts are the stylesheet's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from recbole_prune.report.page.markup import Markup, element, joined
from recbole_prune.report.page.pareto import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH
from recbole_prune.report.page.scales import Scale, scale_over, short

# a mark for each series, around (0, 0)
_MARKS = (
    "M-5 0a5 5 0 1 0 10 0a5 5 0 1 0-10 0", "M-4.5-4.5h9v9h-9z", "M0-6 5.5 4h-11z", "M0-6 6 0 0 6-6 0z",
    "M0 6 5.5-4h-11z", "M-2-5.5h4v3.5h3.5v4h-3.5v3.5h-4v-3.5h-3.5v-4h3.5z", "M-6-2.5h12v5h-12z", "M-2.5-6h5v12h-5z",
)  # fmt: skip
COLOURS = len(_MARKS)
_MOST_POINTS = 36  # of a curve
_APART = 11  # pixels between labels


def mark_definitions() -> Markup:
    """The marks, once for a page."""
    symbols = (element("path", id=f"m{number}", d=path) for number, path in enumerate(_MARKS))
    return element("svg", element("defs", symbols), width="0", height="0", aria_hidden="true", class_="hidden")


def mark(series: int) -> Markup:
    """The mark of a series in a legend."""
    use = element("use", href=f"#m{series % COLOURS}", class_=f"c{series % COLOURS}")
    return element("svg", use, viewBox="-8 -8 16 16", class_="key", aria_hidden="true")


@dataclass(frozen=True)
class Axis:
    """A horizontal axis: its scale, what writes its values, what it is."""

    scale: Scale
    unit: Callable[[float], str]
    name: str


def pareto_chart(
    view: Mapping[str, Any], names: Sequence[str], series: Sequence[int], costs: Axis, title: str
) -> Markup:
    """Quality against cost.

    Args:
        view: what :mod:`recbole_prune.report.page.pareto` says of heights, places and the front, together.
        names: of the points.
        series: the number of each point's series.
        costs: the horizontal axis.
        title: what the chart shows, for those who do not see it.
    """
    points = []
    for index, (x, y) in enumerate(zip(view["x"], view["y"])):
        if x is not None and y is not None:
            colour = f"c{series[index] % COLOURS}" if view["front"][index] else "dominated"
            way = whiskers_of(view, index)
            use = element("use", href=f"#m{series[index] % COLOURS}", x=x, y=y)
            points.append(element("g", element("path", d=way) if way else None, use, class_=colour))
    labels = (
        element("text", names[index], x=x, y=y, class_="label" if side == 1 else "label end")
        for index, x, y, side in view["labels"]
    )
    return element(
        "svg",
        _across(costs),
        element("g", _rungs(view["ticks"]), class_="rungs"),
        element("path", class_="front", d=view["line"]),
        element("g", points, class_="points"),
        element("g", labels, class_="labels"),
        viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=title, class_="chart",
    )  # fmt: skip


def whiskers_of(view: Mapping[str, Any], index: int) -> str:
    """The path of a point's interval and of how far its late cost is."""
    whisker, late = view["whiskers"][index], view["spans"][index]
    upright = f"M{view['x'][index]} {whisker[0]}V{whisker[1]}" if whisker else ""
    return upright + (f"M{view['x'][index]} {view['y'][index]}H{late}" if late is not None else "")


def curve_chart(
    curves: Sequence[tuple[str, str, Sequence[tuple[float, float]], float | None]], title: str, height: int = 220
) -> Markup:
    """Lines over epochs.

    Args:
        curves: label, class, (epoch, value) in order, and the epoch to mark of each.
        title: for those who do not see it.
        height: of the chart.
    """
    bottom = height - 44
    points = [point for _, _, line, _ in curves for point in line]
    epochs = scale_over(
        [epoch for epoch, _ in points], LEFT, RIGHT - 34, room=0.0 if len({e for e, _ in points}) > 1 else 0.5
    )
    values = scale_over([value for _, value in points], bottom, TOP)
    lines, marks, ends = [], [], []
    for label, kind, line, marked in curves:
        if not line:
            continue
        shown = _thinned(line, marked)
        way = _steps([(epochs(epoch), values(value)) for epoch, value in shown])
        lines.append(element("path", d=way, class_=f"curve {kind}"))
        best = dict(line).get(marked) if marked is not None else None
        if best is not None and marked is not None:
            marks.append(element("circle", cx=epochs(marked), cy=values(best), r=3, class_=f"best {kind}"))
        ends.append((values(line[-1][1]), epochs(line[-1][0]), label, kind))
    return element(
        "svg",
        _across(Axis(epochs, short, "epoch"), bottom, height),
        element("g", _rungs([[values(tick), short(tick)] for tick in values.ticks()]), class_="rungs"),
        lines, marks, _end_labels(ends, bottom),
        viewBox=f"0 0 {WIDTH} {height}", role="img", aria_label=title, class_="chart",
    )  # fmt: skip


def _steps(points: Sequence[tuple[int, int]]) -> str:
    """A path by the steps from point to point, which are shorter to write than places."""
    steps = (f"{b[0] - a[0]} {b[1] - a[1]}".replace(" -", "-") for a, b in zip(points, points[1:]))
    return f"M{points[0][0]} {points[0][1]}l" + " ".join(steps)


def _thinned(line: Sequence[tuple[float, float]], marked: float | None) -> list[tuple[float, float]]:
    """At most so many points, the first, the last and the marked one among them."""
    step = -(-len(line) // _MOST_POINTS)
    last = len(line) - 1
    return [point for number, point in enumerate(line) if number % step == 0 or number == last or point[0] == marked]


def _end_labels(ends: Sequence[tuple[int, int, str, str]], bottom: int) -> list[Markup]:
    """A label at the end of each line; where lines end together, one below the other in their order."""
    texts = []
    for column in _columns(sorted(ends, key=lambda end: end[1])):
        room = max(1, (bottom - TOP) // _APART)
        shown = sorted(column)[:: -(-len(column) // room)]
        heights = [end[0] for end in shown]
        for number in range(1, len(heights)):
            heights[number] = max(heights[number], heights[number - 1] + _APART)
        for number in reversed(range(len(heights))):
            below = heights[number + 1] - _APART if number + 1 < len(heights) else bottom
            heights[number] = min(heights[number], below)
        texts += [
            element("text", label, x=x + 6, y=y + 4, class_=f"name {kind}")
            for y, (_, x, label, kind) in zip(heights, shown)
        ]
    return texts


def _columns(ends: Sequence[tuple[int, int, str, str]]) -> list[list[tuple[int, int, str, str]]]:
    """Ends in groups that lie above each other."""
    columns: list[list[tuple[int, int, str, str]]] = []
    for end in ends:
        if columns and end[1] - columns[-1][-1][1] < 2 * _APART:
            columns[-1].append(end)
        else:
            columns.append([end])
    return columns


def _across(axis: Axis, bottom: int = BOTTOM, height: int = HEIGHT) -> Markup:
    """The horizontal axis."""
    ticks = [
        joined([
            element("path", d=f"M{axis.scale(tick)} {bottom}v4", class_="tick"),
            element("text", axis.unit(tick), x=axis.scale(tick), y=bottom + 18, class_="across"),
        ])
        for tick in axis.scale.ticks()
    ]  # fmt: skip
    line = element("path", d=f"M{LEFT} {bottom}H{RIGHT}", class_="axis")
    name = element("text", axis.name, x=(LEFT + RIGHT) // 2, y=height - 7, class_="across name")
    return element("g", line, ticks, name)


def _rungs(ticks: Sequence[Sequence[Any]]) -> list[Markup]:
    """Lines across at the ticks of the vertical axis, and their texts."""
    return [
        joined([element("path", d=f"M{LEFT} {y}H{RIGHT}"), element("text", text, x=LEFT - 6, y=y + 4)])
        for y, text in ticks
    ]


def bar(share: float) -> Markup:
    """A bar for a cell of a table, as long as a share of the cell."""
    rectangle = element("rect", width=f"{max(1, min(100, round(100 * share)))}%", height="100%")
    return element("svg", rectangle, class_="bar", aria_hidden="true")
