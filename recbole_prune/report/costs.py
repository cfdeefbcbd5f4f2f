"""What a run cost, in a line."""

from __future__ import annotations

from recbole_prune.run.ticket import Ticket


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


def _in_words(macs: dict[str, int]) -> str:
    return f"{macs['dense']:,} dense, {macs['density_scaled']:,} by density, {macs['exact']:,} exact"
