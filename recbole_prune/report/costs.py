"""What a run cost, in a line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from recbole_prune.run.ticket import Ticket

_SHORTEST_S = 0.25


def macs_line(chosen: Ticket, dense: Ticket | None) -> str:
    """One line under the table: measured seconds first, multiply-accumulates as their footnote."""
    seconds = f"evaluated in {chosen.eval_seconds:.1f} s, trained in {chosen.train_seconds:.1f} s"
    if "distill_epoch_seconds" in chosen.method:
        seconds += f", of which the losses of teaching took {chosen.method['distill_epoch_seconds']:.2f} s an epoch"
    if dense is not None and dense is not chosen:
        seconds += f" (dense {dense.eval_seconds:.1f} s and {dense.train_seconds:.1f} s)"
    record = (chosen.measured or {}).get("macs", {"not_counted": ["by an older version"]})
    if "inference" not in record:
        return f"ticket {chosen.ticket}: {seconds}; MACs not counted: {'; '.join(record['not_counted'])}"
    text = f"ranking a user {_in_words(record['inference'])}"
    if record["training"] is not None:
        text += f"; a training step {_in_words(record['training']['step'])}"
    return f"ticket {chosen.ticket}: {seconds}; MACs (not seconds): {text}"


def times_faster(ticket: Ticket, dense: Ticket | None) -> float | None:
    """How many times faster than the dense model a ticket ranked the test users; None where that was not measured.

    One evaluation of less than a quarter of a second says nothing; latencies, where they were measured, are medians.
    """
    return None if dense is None else speedup(dense.measured or {}, ticket.measured or {})


def speedup(before: Mapping[str, Any], now: Mapping[str, Any]) -> float | None:
    """As :func:`times_faster`, of what was measured (DESIGN section 8)."""
    for name, seconds, shortest in (("ranking", "seconds", _SHORTEST_S), ("latency", "latency_median_s", 0.0)):
        one, other = before.get(name) or {}, now.get(name) or {}
        same = all(one.get(key) == other.get(key) for key in ("users", "threads", "device"))
        if same and min(one.get(seconds) or 0.0, other.get(seconds) or 0.0) > shortest:
            return float(one[seconds] / other[seconds])
    return None


def _in_words(macs: dict[str, int]) -> str:
    return f"{macs['dense']:,} dense, {macs['density_scaled']:,} by density, {macs['exact']:,} exact"
