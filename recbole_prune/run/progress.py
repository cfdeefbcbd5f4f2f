"""A progress bar over tickets that names the epoch and score inside the current one."""

from __future__ import annotations

from typing import Any

from tqdm import tqdm


class Progress:
    """Bar over the tickets of a run; RecBole's own bars show the batches of an epoch and an evaluation."""

    def __init__(self, total: int | None = None, enabled: bool = True) -> None:
        self._bar: Any = tqdm(total=total, desc="Tickets", unit="ticket", ncols=100, disable=not enabled)
        self._done: set[int] = set()
        self._label = ""

    def ticket_started(self, number: int, sparsity: float) -> None:
        """Announce a ticket."""
        self._label = f"ticket {number} ({100 * sparsity:.1f} %)"
        self._bar.set_postfix_str(self._label)

    def epoch_done(self, trainer: Any) -> None:
        """Show the epoch and the last validation score of the ticket in work."""
        score = f", score {trainer.history[-1][1]:.4f}" if trainer.history else ""
        self._bar.set_postfix_str(f"{self._label} epoch {trainer.epochs_done}/{trainer.epochs}{score}")

    def ticket_done(self, ticket: Any) -> None:
        """Move the bar by one finished ticket, once."""
        if ticket.ticket not in self._done:
            self._done.add(ticket.ticket)
            self._bar.update(1)

    def close(self) -> None:
        """End the bar."""
        self._bar.close()
