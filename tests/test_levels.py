"""Whose lists teach whom in HetComp: discrepancies, and levels that only rise."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_prune.distillers.levels import Levels, Pace, discrepancies
from recbole_prune.teachers.ensemble import consensus

A, B, C, D = 1, 2, 3, 4


def table(*rows: list[int], width: int = 0) -> np.ndarray:
    """Lists of users, padded with -1; user 0 has none."""
    width = max([width, *map(len, rows)])
    return np.array([[-1] * width, *[[*row, *[-1] * (width - len(row))] for row in rows]], np.int32)


# ---- discrepancies ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("student", "position", "teacher_rank"),
    [((B, A, D), 0.197653, 0.222037), ((C, B, A), 0.0, 0.061105), ((A, B, C), 0.0, 0.0), ((D,), 1.0, 1.0)],
)
def test_discrepancies_of_three_places(student: tuple[int, ...], position: float, teacher_rank: float) -> None:
    mine, theirs = table([*student], width=3), table([A, B, C])
    for gain, expected in (("position", position), ("teacher_rank", teacher_rank)):
        found = discrepancies(mine, theirs, gain)
        assert found[1] == pytest.approx(expected, abs=1e-6) and found[0] == 0, "nothing is to learn from no list"
    ideal = sum((2 ** math.exp(-t / 10) - 1) / math.log2(t + 2) for t in range(3))
    assert ideal == pytest.approx(1.932308, abs=1e-6)


def plain_discrepancy(mine: list[int], theirs: list[int], gain: str) -> float:
    """By the formula, an item at a time."""
    gains = [2 ** math.exp(-t / 10) - 1 for t in range(60)]
    earned = sum(
        gains[theirs.index(item) if gain == "teacher_rank" else place] / math.log2(place + 2)
        for place, item in enumerate(mine)
        if item in theirs
    )
    ideal = sum(gains[place] / math.log2(place + 2) for place in range(len(theirs)))
    return 1 - earned / ideal if ideal else 0.0


LIST = st.lists(st.integers(1, 9), unique=True, max_size=6)


@settings(max_examples=25)
@given(LIST, LIST, st.sampled_from(["position", "teacher_rank"]))
def test_discrepancies_are_those_of_the_formula(mine: list[int], theirs: list[int], gain: str) -> None:
    [_, found] = discrepancies(table(mine, width=1), table(theirs, width=1), gain)
    assert found == pytest.approx(plain_discrepancy(mine, theirs, gain), abs=1e-9) and -1e-12 < found <= 1
    if mine == theirs:
        assert found == 0


# ---- levels ----------------------------------------------------------------------------------------------------------


def pace(gain: str = "teacher_rank", threshold: float = 1.05, places: int = 3, official: bool = False) -> Pace:
    return Pace(gain, threshold, places, official)


EARLY, LATER, LAST = table([A, B, C], [A, B, C]), table([B, C, D], [C, D, A]), table([D, C, B], [D, C, B])


def test_nobody_moves_at_the_first_comparison() -> None:
    levels = Levels([[EARLY, LATER, LAST]], pace())
    levels.compare(LAST, 1)
    assert not levels.levels.any() and not levels.at_end
    assert levels.last[0] == pytest.approx(discrepancies(LAST, LATER, "teacher_rank"))


def test_who_came_nearer_moves_on_and_who_did_not_stays() -> None:
    levels = Levels([[EARLY, LATER, LAST]], pace())
    levels.compare(table([A], [A]), 1)
    far = levels.last.copy()
    levels.compare(table([B, C], [A]), 2)  # the first user's list is nearer now, the other's as near as it was
    assert levels.levels.tolist() == [[1, 1, 0]], "who has no list has nothing to wait for"
    assert levels.last[0, 2] == far[0, 2]
    assert levels.last[0, 1] == pytest.approx(discrepancies(table([B, C]), table([D, C, B]), "teacher_rank")[1])


def test_who_goes_away_moves_on_too() -> None:
    levels = Levels([[EARLY, LATER, LAST]], pace())
    levels.compare(LATER[:, :2], 1)
    levels.compare(LATER[:, :1], 2)
    assert levels.levels.tolist() == [[1, 1, 1]]


@pytest.mark.parametrize(("epoch", "threshold"), [(10, 1.044750), (20, 1.039526), (90, 1.003684), (100, 0.998666)])
def test_the_threshold_falls(epoch: int, threshold: float) -> None:
    """A discrepancy that fell by just less than the threshold is not small enough, just more is."""
    student, number = table([B, C], [C]), epoch // 10
    now = discrepancies(student, LATER, "teacher_rank")
    for factor, moves in ((threshold - 1e-5, False), (threshold + 1e-5, True)):
        levels = Levels([[EARLY, LATER, LAST]], pace())
        levels.last[0] = np.where(now > 0, now * factor, 1.0)
        levels.compare(student, number)
        if factor >= 1:
            assert levels.levels[0, 1:].tolist() == [int(moves)] * 2
        else:
            assert levels.levels[0, 1:].all(), "below 1 everybody moves: nearer or not"


def test_no_discrepancy_moves_on() -> None:
    """The code divides 0 by 0 and never moves; a discrepancy that became 0 moves on in both."""
    for official in (False, True):
        levels = Levels([[EARLY, LATER, LAST]], pace(official=official))
        levels.compare(table([B, C, D], [C]), 1)
        levels.compare(LATER, 2)
        assert levels.levels[0, 1:].tolist() == [0 if official else 1, 1]


def test_the_code_rounds_quality_to_four_digits() -> None:
    levels = Levels([[EARLY, LATER, LAST]], pace("position", official=True))
    levels.compare(table([B, A], [A]), 1)
    exact = discrepancies(table([B, A]), table([B, C, D]), "position")[1]
    assert levels.last[0, 1] == round(exact, 4) != exact


def test_the_phase_ends_with_mean_levels_in_two_digits() -> None:
    """1 of 300 users behind: 0.9967 is 1.00; 2 of 300: 0.9933 is not."""
    for behind, official, at_end in ((1, True, True), (1, False, True), (2, True, False)):
        early, last = (np.tile(np.array(ids, np.int32), (301, 1)) for ids in ([A, B, C], [B, C, D]))
        levels = Levels([[early, last], [last]], pace(official=official))
        student = np.tile(np.array([A, C], np.int32), (301, 1))
        levels.compare(student, 1)
        student[1 + behind :] = [B, C]
        levels.compare(student, 2)
        assert levels.at_end is at_end
        left = 0 if at_end and not official else behind
        assert (levels.levels[0, 1:] == 0).sum() == left, "who is behind arrives with the others, but in the code"


def test_one_state_each_has_nothing_to_wait_for() -> None:
    assert Levels([[LAST], [EARLY]], pace()).at_end
    assert not Levels([[LAST], [EARLY, LAST]], pace()).at_end


@settings(max_examples=25)
@given(st.integers(0, 2**32), st.booleans(), st.sampled_from(["position", "teacher_rank"]))
def test_levels_never_fall_and_end_with_the_teachers_themselves(seed: int, official: bool, gain: str) -> None:
    random = np.random.default_rng(seed)

    def lists() -> np.ndarray:
        return table(*[random.permutation(9)[: random.integers(7)].tolist() for _ in range(6)], width=6)

    states = [[lists() for _ in range(random.integers(1, 5))] for _ in range(random.integers(1, 4))]
    finals = np.array([len(own) - 1 for own in states])
    levels = Levels(states, pace(gain, official=official))
    before = levels.levels.copy()
    for number in range(1, 14):  # at 0.995 ** 10 the threshold is below 1: from then on all move, three states at most
        if not levels.at_end:
            levels.compare(lists(), number)
        rise = levels.levels - before
        assert (rise >= 0).all() and (levels.levels <= finals[:, None]).all()
        assert (rise <= 1).all() or levels.at_end
        before = levels.levels.copy()
    if not official:  # whose 0 / 0 never moves
        assert levels.at_end and (levels.levels == finals[:, None]).all()
        last = consensus([own[-1] for own in states], 8)[0]
        assert consensus(levels.lists(), 8)[0].tolist() == last.tolist()


def test_levels_go_on_from_their_state() -> None:
    whole, students = Levels([[EARLY, LATER, LAST], [LAST, EARLY]], pace()), [LATER, EARLY, LAST, LATER]
    whole.compare(students[0], 1)
    whole.compare(students[1], 2)
    other = Levels([[EARLY, LATER, LAST], [LAST, EARLY]], pace())
    other.restore({name: np.copy(value) if name != "at_end" else value for name, value in whole.state().items()})
    for number, student in enumerate(students[2:], 3):
        for levels in (whole, other):
            levels.compare(student, number)
        assert whole.levels.tolist() == other.levels.tolist()
        np.testing.assert_array_equal(whole.last, other.last)
