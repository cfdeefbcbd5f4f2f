"""Tables as text, and the words for what stands in them. Loads neither torch nor RecBole."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def figure(metrics: Mapping[str, float | None], name: str) -> str:
    """A metric with four digits; ``undefined`` where the data does not define it, ``-`` where it was not measured."""
    if name not in metrics:
        return "-"
    value = metrics[name]
    return "undefined" if value is None else f"{value:.4f}"


def verdict(record: Mapping[str, Any]) -> str:
    """Whether a ticket wins: ``yes``, ``metric`` (as good but in more epochs), ``no``; ``dense`` for ticket 0."""
    if record["wins"] is None:
        return "dense" if record["ticket"] == 0 else "-"
    return "yes" if record["wins"] else ("metric" if record["wins_metric"] else "no")


def format_rows(header: list[str], rows: list[list[str]]) -> str:
    """Right-aligned columns under their header."""
    widths = [max(map(len, column)) for column in zip(header, *rows)]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths)) for row in [header, *rows]]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])
