"""What an artifact scores with its values as they are stored, beside the ticket that was trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from recbole_prune.report.table import format_rows

_DATA = {"validation": ("valid", "stored_valid"), "test": ("test", "stored_test")}


def stored_table(info: Mapping[str, Any]) -> str:
    """Every metric of both, a row for each.

    Args:
        info: ``values``, ``valid``, ``test``, ``stored_valid`` and ``stored_test`` of ticket.json.
    """
    rows = [
        [f"{data} {name}", _shown(info[trained].get(name)), _shown(value)]
        for data, (trained, stored) in _DATA.items()
        for name, value in info[stored].items()
    ]
    return format_rows(["metric", "trained", f"stored as {info['values']}"], rows)


def stored_sentence(info: Mapping[str, Any], metric: str) -> Iterator[str]:
    """How far the metric that picks tickets is from the trained ticket's; nothing where it was not evaluated."""
    said = [
        f"{data} {metric} {_shown(info[trained].get(metric))} -> {_shown(info[stored].get(metric))}"
        for data, (trained, stored) in _DATA.items()
        if metric in info.get(stored, {})
    ]
    if said:
        yield f"With its values as they are stored ({info['values']}): {' and '.join(said)}."


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
