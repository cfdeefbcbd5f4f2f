"""Which tickets win, and which one is chosen."""

from __future__ import annotations

from collections.abc import Sequence

from recbole_prune.errors import ConfigError
from recbole_prune.run.ticket import Ticket


def judge(
    score: float, best_epoch: int, history: Sequence[Sequence[float]], dense: Ticket, bigger: bool
) -> tuple[bool, bool, float | None]:
    """Verdicts of a ticket against the dense model (methods/lottery_ticket.md 2.9 and 2.10).

    Args:
        score: the ticket's best validation score a'.
        best_epoch: epochs it had trained then, j'.
        history: (epochs, score) of each of its validations.
        dense: ticket 0 with its score a and epoch j.
        bigger: whether a higher score is better.

    Returns:
        ``wins_metric`` (a' >= a), ``wins`` (also j' <= j), and the relative training epochs: j over the first
        epoch at which the ticket reached a; None if it never did.
    """

    def reaches(value: float) -> bool:
        return value >= dense.valid_score if bigger else value <= dense.valid_score

    first = next((epoch for epoch, value in history if reaches(value)), None)
    relative = dense.best_epoch / first if first else None
    return reaches(score), reaches(score) and best_epoch <= dense.best_epoch, relative


def choose(
    tickets: Sequence[Ticket], *, bigger: bool, target: float | None = None, number: int | None = None
) -> tuple[Ticket, str]:
    """The ticket to export and the reason in a sentence.

    ``number`` (export_ticket) decides if given; else the ticket at the target sparsity if one was asked for; else
    the sparsest that wins on validation; if none wins, the pruned ticket with the best validation score.

    Raises:
        ConfigError: there is no ticket ``number``.
    """
    if number is not None:
        for ticket in tickets:
            if ticket.ticket == number:
                return ticket, f"ticket {number} was asked for with export_ticket"
        raise ConfigError(f"export_ticket={number}: this run has the tickets 0 to {tickets[-1].ticket}")
    pruned = [ticket for ticket in tickets if ticket.ticket > 0]
    if not pruned:
        return tickets[0], "the dense model, nothing was pruned"
    if target is not None and pruned[-1].sparsity >= target - 1e-3:
        return pruned[-1], f"the ticket at the target sparsity {target}"
    winners = [ticket for ticket in pruned if ticket.wins_metric]
    if winners:
        best = max(winners, key=lambda ticket: (ticket.sparsity, ticket.ticket))
        return best, "the sparsest ticket that is as good as the dense model on validation"
    sign = 1 if bigger else -1
    best = max(pruned, key=lambda ticket: (sign * ticket.valid_score, ticket.sparsity))
    return best, "no ticket is as good as the dense model on validation; this pruned one comes closest"
