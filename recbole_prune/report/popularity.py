"""Recall of popular and of unpopular items in the table of a distilled run, and what teaching changed about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

# as the journal calls them, under their headers
GROUPS = {"popular": "popular", "unpopular": "rare"}


def recall_of(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """The recall in a line of the journal, or in what it says of the teacher; empty where it was not measured."""
    return record.get("recall_by_popularity") or {}


def popularity_legend(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the two columns are, a line; none where no record has them."""
    lengths = [recall_of(record)["k"] for record in records if recall_of(record)]
    return [
        f"popular, rare: test recall@{length} of the most popular items, which together have half of the training "
        "interactions, and of all other items"
        for length in lengths[:1]
    ]


def popularity_lesson(alone: Mapping[str, Any], taught: Mapping[str, Any]) -> list[str]:
    """That a taught student finds less of the unpopular items than the student alone, a sentence; else none."""
    before, now = recall_of(alone), recall_of(taught)
    if any(recall.get(group) is None for recall in (before, now) for group in GROUPS):
        return []
    shown = {group: (f"{before[group]:.4f}", f"{now[group]:.4f}") for group in ("unpopular", "popular")}
    if now["unpopular"] >= before["unpopular"] or len(set(shown["unpopular"])) == 1:
        return []
    changes = "; ".join(f"{group} items {then} -> {later}" for group, (then, later) in shown.items())
    moved = now["popular"] > before["popular"]
    said = "Teaching moved recall away from unpopular items" if moved else "Taught, fewer unpopular items are found"
    return [f"{said}: test recall@{now['k']} of {changes}."]
