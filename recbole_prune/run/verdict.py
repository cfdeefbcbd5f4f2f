"""Which tickets win, and which one is chosen.

A ticket **wins** if it reaches the dense model's validation score in no more epochs: ``wins`` in the journal, ``yes``
in the table. ``wins_metric`` is the first half alone: reached, whenever its best epoch came. Whether it is as good is
another question, which is tested over users (``report/as_good.py``).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

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
    tickets: Sequence[Ticket],
    *,
    bigger: bool,
    target: float | None = None,
    reach: float | None = None,
    number: int | None = None,
    tolerance: float | None = None,
    taught: bool = False,
) -> tuple[Ticket, str]:
    """The ticket to export and the reason in a sentence.

    ``number`` (export_ticket) decides if given; else, with a ``tolerance``, the sparsest whose validation score is
    worse than the best of the pruned ones by no more than that share; else the ticket at the target sparsity, or in the
    bytes of a mask of it, if one was asked for; else the sparsest that wins; if none wins, the sparsest that reaches
    the dense model's score in more epochs; if none does, the pruned ticket with the best validation score. ``taught``
    says that the dense model had a teacher. ``reach`` is the sparsity that rows of equally many entries come to where
    the target lies between two of their steps.

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
        return tickets[0], f"the {'taught student, dense' if taught else 'dense model'}; nothing was pruned"
    if tolerance is not None:
        sign = 1 if bigger else -1
        highest = max(sign * ticket.valid_score for ticket in pruned)
        least = highest - tolerance * abs(highest)
        near = _sparsest(ticket for ticket in pruned if sign * ticket.valid_score >= least)
        assert near is not None
        return near, f"the sparsest ticket within prune_tolerance={tolerance:g} of the best pruned one"
    if target is not None and pruned[-1].sparsity >= (target if reach is None else reach) - 1e-3:
        rows = "" if reach is None else ", as near as equal rows come"
        return pruned[-1], f"the ticket at the target sparsity {target:g}{rows}"
    equal_to_kept = pruned[-1].method.get("equal_to_kept", math.inf)  # of models and forms that are no mask
    if target is not None and 1 - equal_to_kept / pruned[-1].prunable >= target - 1e-3:
        return pruned[-1], f"the ticket in the bytes of a mask of the target sparsity {target:g}"
    reaching = _sparsest(ticket for ticket in pruned if ticket.wins_metric)
    winner = _sparsest(ticket for ticket in pruned if ticket.wins)
    if winner is not None and winner is reaching:
        return winner, "the sparsest ticket that wins"
    if winner is not None and reaching is not None:
        return winner, (
            f"the sparsest ticket that wins; ticket {reaching.ticket} reaches the dense model's validation score too, "
            f"but in more epochs (export_ticket={reaching.ticket})"
        )
    if reaching is not None:
        return reaching, "no ticket wins; the sparsest that reaches the dense model's validation score, in more epochs"
    sign = 1 if bigger else -1
    best = max(pruned, key=lambda ticket: (sign * ticket.valid_score, ticket.sparsity))
    if tickets[0].ticket > 0:
        return best, "the best ticket on validation; there is no dense model to compare with"
    return best, "no ticket reaches the dense model's validation score; this pruned one comes closest"


def highest_winning_sparsity(tickets: Iterable[Ticket]) -> float | None:
    """Sparsity of the sparsest ticket that wins, None where none does."""
    winner = _sparsest(ticket for ticket in tickets if ticket.wins)
    return None if winner is None else winner.sparsity


def _sparsest(tickets: Iterable[Ticket]) -> Ticket | None:
    """The sparsest ticket, of equally sparse ones the last; None for no tickets."""
    return max(tickets, key=lambda ticket: (ticket.sparsity, ticket.ticket), default=None)
