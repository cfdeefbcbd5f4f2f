"""What a run shows while it trains: a line per validation and per ticket, and below them one bar on a terminal."""

from __future__ import annotations

from logging import getLogger
from typing import Any

from tqdm import tqdm

from recbole_prune.run.ticket import Ticket
from recbole_prune.training.parts import Training
from recbole_prune.training.session import Watcher

_BAR = "tickets {n_fmt}/{total_fmt} |{bar}| {elapsed}<{remaining}{postfix}"


class Progress(Watcher):
    """Watches the trainings of a run. The bar is drawn on standard error where that is a terminal.

    Args:
        total: tickets, as far as it is known.
        enabled: False draws no bar anywhere; lines are a matter of the log.
    """

    def __init__(self, total: int | None = None, enabled: bool = True) -> None:
        # without smoothing the time that is left follows from all tickets; miniters=0 lets a batch move the clock
        self._bar: Any = tqdm(
            total=total,
            bar_format=_BAR,
            disable=None if enabled else True,
            dynamic_ncols=True,
            leave=False,
            smoothing=0,
            miniters=0,
        )
        self._logger = getLogger("recbole_prune")
        self._label = self._epoch = ""
        self._batch = self._batches = 0

    def begin_after(self, finished: int) -> None:
        """Count tickets that an earlier process trained; they say nothing about the time that is left."""
        self._bar.initial = self._bar.n = finished

    def ticket_begins(self, number: int, sparsity: float, batches: int) -> None:
        """Announce a ticket whose epochs have about so many batches."""
        self._label, self._batches = _name(number, sparsity), batches
        self._show(self._label)

    def search_begins(self, batches: int) -> None:
        """Announce a search for masks whose epochs have about so many batches."""
        self._label, self._batches = "search", batches
        self._show(self._label)

    def search_done(self, epochs: int, seconds: float) -> None:
        """A line for a search; it is no ticket, so the bar stays."""
        self._logger.info(f"search for masks done: {seconds:.0f} s, {epochs} epochs")

    def epoch_begins(self, trainer: Training) -> None:
        """Count batches anew."""
        self._batch, self._epoch = 0, f"{self._label} epoch {trainer.epoch + 1}/{trainer.epochs}"

    def batch_done(self) -> None:
        """Count a step of an optimizer; some trainers take several in a batch."""
        self._batch += 1
        of_all = f"/{self._batches}" if self._batch <= self._batches else ""
        self._show(f"{self._epoch} batch {self._batch}{of_all}")

    def evaluation_begins(self, what: str) -> None:
        """Say what is evaluated."""
        self._show(f"{self._label} {what}")

    def validated(self, trainer: Training) -> None:
        """A line for the validation that was just done."""
        epoch, score = trainer.history[-1]
        best = (max if trainer.valid_metric_bigger else min)(value for _, value in trainer.history)
        mark = ", the best so far" if score == best else ""
        self._logger.info(f"{self._label}: epoch {epoch}, valid {trainer.valid_metric} {score:.4f}{mark}")

    def ticket_done(self, ticket: Ticket, metric: str) -> None:
        """A line for a ticket, and one step of the bar."""
        seconds = ticket.train_seconds + ticket.eval_seconds
        how = f"{seconds:.0f} s, best epoch {ticket.best_epoch} of {ticket.epochs}" if ticket.epochs else "not trained"
        figure = ticket.test.get(metric)
        test = "" if figure is None else f", test {figure:.4f}"
        name = _name(ticket.ticket, ticket.sparsity)
        self._logger.info(f"{name} done: {how}, {metric} {ticket.valid_score:.4f}{test}")
        self._bar.update(1)

    def close(self) -> None:
        """Remove the bar."""
        self._bar.close()

    def _show(self, text: str) -> None:
        self._bar.set_postfix_str(text, refresh=False)
        self._bar.update(0)


def _name(number: int, sparsity: float) -> str:
    return f"ticket {number} ({100 * sparsity:.2f} %)"
