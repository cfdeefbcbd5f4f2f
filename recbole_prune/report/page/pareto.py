"""Which tickets nothing else beats at once in quality and in cost, and where a chart shows them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Optional

from recbole_prune.report.page.scales import Scale, scale_over, short

WIDTH, HEIGHT = 460, 300
LEFT, RIGHT, TOP, BOTTOM = 54, 448, 14, 256
_LETTER, _LINE = 7.6, 13  # pixels of a label's letter and of its height
_MOST_LABELS = 9
_MOST_LATE = 3  # times the largest cost

Interval = Optional[tuple[float, float]]
Places = Sequence[Optional[int]]


@dataclass(frozen=True)
class Point:
    """A ticket in the plane of cost and quality.

    Attributes:
        name: as in the tables.
        cost: positive, less is better; None where it was not measured.
        quality: None where it was not measured.
        interval: of the quality, None where it has none.
        late: the cost that few cases exceed (the 95th percentile of latency), None where there is none.
    """

    name: str
    cost: float | None
    quality: float | None
    interval: Interval = None
    late: float | None = None


def front_of(points: Sequence[Point], smaller: bool = False) -> list[bool]:
    """Which points are not dominated: no other is at least as good in both, and better in one.

    Args:
        points: those without cost or quality are never on the front.
        smaller: whether a smaller quality is better.
    """
    sign = -1 if smaller else 1
    known = [
        (p.cost, sign * p.quality, i) for i, p in enumerate(points) if p.cost is not None and p.quality is not None
    ]
    on_front, best, cost_of_best = [False] * len(points), -float("inf"), -float("inf")
    for cost, quality, index in sorted(known, key=lambda each: (each[0], -each[1])):
        if quality > best or (quality == best and cost == cost_of_best):
            on_front[index], best, cost_of_best = True, quality, cost
    return on_front


def heights_of(points: Sequence[Point]) -> dict[str, Any]:
    """Where qualities are, the same for every cost.

    Returns:
        ``y`` of every point (None: not measured), ``whiskers`` (pairs of heights or None), ``ticks`` (height, text).
    """
    qualities = [point.quality for point in points if point.quality is not None]
    ends = [end for point in points if point.quality is not None and point.interval for end in point.interval]
    scale = scale_over([*qualities, *ends], BOTTOM, TOP)
    return {
        "y": [None if point.quality is None else scale(point.quality) for point in points],
        "whiskers": [[scale(end) for end in point.interval] if point.interval else None for point in points],
        "ticks": [[scale(tick), short(tick)] for tick in scale.ticks()],
    }


def places_of(points: Sequence[Point]) -> dict[str, Any]:
    """Where costs are, the same for every metric: ``x`` of every point and of its late cost, ``spans``; None: none."""
    costs = cost_scale(points)
    return {
        "x": [None if point.cost is None else costs(point.cost) for point in points],
        "spans": [
            None if point.cost is None or point.late is None else min(RIGHT, costs(point.late)) for point in points
        ],
    }


def front_view(points: Sequence[Point], x: Places, y: Places, smaller: bool = False) -> dict[str, Any]:
    """The front in a chart.

    Args:
        points: of the chart.
        x, y: where they are.
        smaller: whether a smaller quality is better.

    Returns:
        ``front`` (0 or 1 for every point), ``line`` (its path) and ``labels`` (index, x, y, 1: right, -1: left).
    """
    front = front_of(points, smaller)
    return {
        "front": [int(each) for each in front],
        "line": _staircase([(a, b) for a, b, on in zip(x, y, front) if on and a is not None and b is not None]),
        "labels": _labels(points, x, y, front),
    }


def _staircase(corners: Sequence[tuple[int, int]]) -> str:
    """The border of what the front dominates, from its cheapest point to the right edge."""
    ordered = sorted(set(corners))
    if not ordered:
        return ""
    steps = "".join(f"H{x}V{y}" for x, y in ordered[1:])
    return f"M{ordered[0][0]} {ordered[0][1]}{steps}H{RIGHT}"


def _labels(points: Sequence[Point], x: Places, y: Places, front: Sequence[bool]) -> list[list[int]]:
    """Names of points on the front where there is room, the outermost first; each with its side."""
    boxes = [(a - 6, b - 6, a + 6, b + 6) for a, b in zip(x, y) if a is not None and b is not None]
    placed: list[list[int]] = []
    for index in _outermost_first([i for i, on in enumerate(front) if on and x[i] is not None]):
        if len(placed) == _MOST_LABELS:
            break
        a, b, width = x[index], y[index], len(points[index].name) * _LETTER
        assert a is not None and b is not None
        for side, dy in ((1, 4), (-1, 4), (1, -8), (-1, -8), (1, 16), (-1, 16)):
            left = a + 9 if side == 1 else a - 9 - width
            box = (left, b + dy - _LINE + 3, left + width, b + dy + 3)
            inside = box[0] >= LEFT + 2 and box[2] <= RIGHT + 8 and box[1] >= 0 and box[3] <= BOTTOM
            if inside and not any(_overlap(box, other) for other in boxes):
                boxes.append((round(box[0]), round(box[1]), round(box[2]), round(box[3])))
                placed.append([index, a + 9 * side, b + dy, side])
                break
    return placed


def _outermost_first(indices: Sequence[int]) -> list[int]:
    return [*indices[:1], *indices[-1:], *indices[1:-1]] if len(indices) > 1 else list(indices)


def _overlap(one: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def cost_scale(points: Sequence[Point]) -> Scale:
    """The horizontal axis: logarithmic, since what counts is how many times smaller.

    A late cost far beyond all others (a hiccup of a busy machine) does not squeeze the rest; its span ends at the edge.
    """
    costs = [point.cost for point in points if point.cost]
    late = [point.late for point in points if point.cost and point.late and point.late <= _MOST_LATE * max(costs)]
    return scale_over([*costs, *late], LEFT + 8, RIGHT - 8, log=True, room=0.05)
