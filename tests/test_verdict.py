"""Who wins against the dense model, and which ticket is exported."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recbole_prune.errors import ConfigError
from recbole_prune.report.table import legend, ticket_table
from recbole_prune.run.ticket import Ticket
from recbole_prune.run.verdict import choose, highest_winning_sparsity, judge


def ticket(number: int, sparsity: float = 0.0, score: float = 0.5, **changes: Any) -> Ticket:
    """A finished ticket of a table with 1000 entries."""
    record: dict[str, Any] = {
        "ticket": number,
        "sparsity": sparsity,
        "kept": round(1000 * (1 - sparsity)),
        "prunable": 1000,
        "parameters": 1010,
        "epochs": 30,
        "best_epoch": 20,
        "valid": {"ndcg@10": score},
        "test": {"ndcg@10": score},
        "valid_score": score,
        "wins_metric": None if number == 0 else False,
        "wins": None if number == 0 else False,
        "train_seconds": 1.0,
        "eval_seconds": 1.0,
        "seed": 2020,
        "mask_file": f"masks/ticket-{number:03d}.safetensors",
        "mask_sha256": "00",
        "checkpoint_file": f"checkpoints/ticket-{number:03d}.pth",
        "checkpoint_sha256": "00",
        **changes,
    }
    return Ticket(**record)


DENSE = ticket(0, score=0.5, best_epoch=20)


# ---- judge: a' >= a, j' <= j, and j over the first epoch that reaches a


@pytest.mark.parametrize(
    ("score", "best_epoch", "history", "expected"),
    [
        # better and earlier
        (0.6, 15, [(5, 0.4), (10, 0.55), (15, 0.6), (20, 0.5)], (True, True, 2.0)),
        # equal in score and epoch wins on both counts
        (0.5, 20, [(10, 0.4), (20, 0.5)], (True, True, 1.0)),
        # better but its best comes later than the dense one's, although it reached a sooner
        (0.6, 40, [(10, 0.5), (40, 0.6)], (True, False, 2.0)),
        # reaches a later than the dense model did
        (0.5, 80, [(40, 0.4), (80, 0.5)], (True, False, 0.25)),
        # never reaches it
        (0.4999, 5, [(5, 0.4999)], (False, False, None)),
    ],
)
def test_winning_tickets(
    score: float, best_epoch: int, history: list[tuple[int, float]], expected: tuple[bool, bool, Any]
) -> None:
    assert judge(score, best_epoch, history, DENSE, bigger=True) == expected


def test_smaller_is_better_turns_the_comparison_round() -> None:
    dense = ticket(0, score=0.5, best_epoch=10)
    assert judge(0.4, 5, [(5, 0.4)], dense, bigger=False) == (True, True, 2.0)
    assert judge(0.6, 5, [(5, 0.6)], dense, bigger=False) == (False, False, None)
    assert judge(0.5, 12, [(12, 0.5)], dense, bigger=False) == (True, False, 10 / 12)


def test_an_evaluated_untrained_ticket_has_no_relative_epochs() -> None:
    assert judge(0.5, 0, [], DENSE, bigger=True) == (True, True, None)


histories = st.lists(st.floats(0, 1), min_size=1, max_size=8).map(lambda v: [(5 * (i + 1), s) for i, s in enumerate(v)])


@given(histories, st.floats(0, 1), st.integers(1, 60), st.booleans())
def test_verdicts_are_consistent(history: list[tuple[int, float]], a: float, j: int, bigger: bool) -> None:
    dense = ticket(0, score=a, best_epoch=j)
    best_epoch, score = (max if bigger else min)(history, key=lambda point: point[1])
    wins_metric, wins, relative = judge(score, best_epoch, history, dense, bigger)
    assert wins_metric == (score >= a if bigger else score <= a)
    assert wins == (wins_metric and best_epoch <= j)
    assert (relative is not None) == wins_metric
    if relative is not None:
        reached = [epoch for epoch, value in history if (value >= a if bigger else value <= a)]
        assert relative == j / min(reached)
        assert relative >= j / best_epoch
        assert not wins or relative >= 1


# ---- choose


def winner(number: int, sparsity: float, score: float = 0.6, wins: bool = False) -> Ticket:
    return ticket(number, sparsity, score, wins_metric=True, wins=wins)


def test_an_asked_for_ticket_is_chosen_whatever_it_scored() -> None:
    tickets = [DENSE, winner(1, 0.1), ticket(2, 0.2, 0.1)]
    assert choose(tickets, bigger=True, number=2)[0] is tickets[2]
    assert choose(tickets, bigger=True, number=0, target=0.1)[0] is DENSE
    assert "export_ticket" in choose(tickets, bigger=True, number=2)[1]


def test_an_unknown_ticket_is_refused_with_what_there_is() -> None:
    for number in (3, -1):
        with pytest.raises(ConfigError, match=rf"export_ticket={number}: this run has the tickets 0 to 2"):
            choose([DENSE, winner(1, 0.1), winner(2, 0.2)], bigger=True, number=number)


def test_without_pruning_the_dense_model_is_chosen() -> None:
    chosen, reason = choose([DENSE], bigger=True)
    assert chosen is DENSE and "nothing was pruned" in reason
    assert choose([DENSE], bigger=True, target=0.9)[0] is DENSE


def test_the_target_is_chosen_even_if_it_loses() -> None:
    tickets = [DENSE, winner(1, 0.5), ticket(2, 0.9, 0.1)]
    chosen, reason = choose(tickets, bigger=True, target=0.9)
    assert chosen is tickets[2] and "0.9" in reason
    # floor(0.9 * 1001) of 1001 entries is a sparsity just below 0.9
    almost = ticket(2, 900 / 1001, 0.1, prunable=1001)
    assert choose([DENSE, winner(1, 0.5), almost], bigger=True, target=0.9)[0] is almost


def test_a_form_in_the_bytes_of_the_target_is_chosen_though_it_has_more_entries() -> None:
    form = ticket(2, 0.875, 0.1, method={"form": "narrow", "equal_to_kept": 100})
    chosen, reason = choose([DENSE, winner(1, 0.5), form], bigger=True, target=0.9)
    assert chosen is form and reason == "the ticket in the bytes of a mask of the target sparsity 0.9"
    larger = ticket(2, 0.7, 0.1, method={"form": "narrow", "equal_to_kept": 200})
    assert choose([DENSE, winner(1, 0.5), larger], bigger=True, target=0.9)[0].ticket == 1


def test_a_search_that_stopped_before_its_target_falls_back_to_winners() -> None:
    tickets = [DENSE, winner(1, 0.3), ticket(2, 0.5, 0.1)]
    assert choose(tickets, bigger=True, target=0.9)[0] is tickets[1]


@pytest.mark.parametrize(
    ("wins", "chosen", "words", "highest"),
    [
        # ticket: 1 wins, 2 wins, 3 reaches it but later, 4 and 5 are worse
        ((True, True, False), 2, "the sparsest ticket that wins; ticket 3 reaches", 0.5),
        ((True, True, True), 3, "the sparsest ticket that wins", 0.7),
        ((True, False, False), 1, "ticket 3 reaches the dense model's validation score too", 0.1),
        ((False, False, False), 3, "no ticket wins; the sparsest that reaches the dense model's", None),
    ],
)
def test_winning_means_one_thing(wins: tuple[bool, ...], chosen: int, words: str, highest: float | None) -> None:
    """The table's yes, the choice and the highest winning sparsity agree: reached in no more epochs."""
    candidates = [winner(i, (0.1, 0.5, 0.7)[i - 1], wins=won) for i, won in enumerate(wins, 1)]
    tickets = [DENSE, *candidates, ticket(4, 0.8, 0.49), ticket(5, 0.9, 0.1)]
    found, reason = choose(tickets, bigger=True)
    assert (found.ticket, highest_winning_sparsity(tickets)) == (chosen, highest) and words in reason
    table = ticket_table(tickets, "NDCG@10", chosen=found, bytes_of={})
    said = "none" if highest is None else f"{100 * highest:.2f} %"
    assert f"highest winning sparsity: {said}" in legend(tickets, "NDCG@10")
    assert [line.split()[-1] for line in table.splitlines() if line.split()[-1:] == ["yes"]] == ["yes"] * sum(wins)


def test_without_a_dense_model_nothing_is_said_about_it() -> None:
    alone = ticket(1, 0.5, 0.4, wins_metric=None, wins=None)
    found, reason = choose([alone], bigger=True)
    assert found is alone and "no dense model to compare with" in reason


@pytest.mark.parametrize(("bigger", "scores"), [(True, (0.30, 0.45, 0.45, 0.2)), (False, (0.8, 0.6, 0.6, 0.9))])
def test_without_a_winner_the_best_pruned_ticket_is_chosen(bigger: bool, scores: tuple[float, ...]) -> None:
    tickets = [DENSE, *[ticket(i, 0.2 * i, score) for i, score in enumerate(scores, 1)]]
    chosen, reason = choose(tickets, bigger=bigger)
    assert chosen is tickets[3]  # of two equal ones the sparser
    assert "no ticket reaches the dense model's validation score" in reason


# ---- the journal line


def test_records_keep_every_field_and_what_a_method_adds() -> None:
    original = ticket(3, 0.3, method={"min_per_row": 2, "searched": [[0, 0.1]]}, history=[[1, 0.2]])
    record = original.to_record()
    assert record["min_per_row"] == 2 and "method" not in record
    contract = {"ticket", "sparsity", "kept", "prunable", "parameters", "epochs", "best_epoch", "valid", "test", "seed"}
    contract |= {"wins_metric", "wins", "train_seconds", "eval_seconds", "mask_file", "checkpoint_file"}
    assert contract <= set(record)
    assert Ticket.from_record(record) == original
