"""Recall of popular and of unpopular items: in the table of a distilled run, and what teaching or pruning changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

# as the journal calls them, under their headers
GROUPS = {"popular": "popular", "unpopular": "rare"}


def recall_of(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """The recall in a line of the journal, or in what it says of the teacher; empty where it was not measured."""
    return record.get("popularity") or record.get("recall_by_popularity") or {}  # what version 0.1.0 called it


def popularity_legend(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the two columns are, a line; none where no record has them."""
    found = [recall_of(record) for record in records if recall_of(record)]
    return [
        f"popular, rare: test recall@{recall['k']} of the most popular items, which together have "
        f"{100 * recall.get('share', 0.5):g} % of the training interactions, and of all other items"
        for recall in found[:1]
    ]


def popularity_lesson(alone: Mapping[str, Any], taught: Mapping[str, Any], cause: str = "Teaching") -> list[str]:
    """That fewer unpopular items are found than before, a sentence; else none.

    Args:
        alone, taught: lines of the journal of before and of now: of the student alone and taught, or of the dense model
            and a ticket.
        cause: what was done in between, ``Teaching`` or ``Pruning``.
    """
    before, now = recall_of(alone), recall_of(taught)
    if any(recall.get(group) is None for recall in (before, now) for group in GROUPS):
        return []
    shown = {group: (f"{before[group]:.4f}", f"{now[group]:.4f}") for group in ("unpopular", "popular")}
    if now["unpopular"] >= before["unpopular"] or len(set(shown["unpopular"])) == 1:
        return []
    changes = "; ".join(f"{group} items {then} -> {later}" for group, (then, later) in shown.items())
    moved = now["popular"] > before["popular"]
    participle = {"Teaching": "Taught", "Pruning": "Pruned"}[cause]
    said = (
        f"{cause} moved recall away from unpopular items" if moved else f"{participle}, fewer unpopular items are found"
    )
    return [f"{said}: test recall@{now['k']} of {changes}."]
