"""HetComp's levels: from which state of its training each teacher teaches each user, and when a user moves on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from recbole_prune.teachers.ensemble import DECAY
from recbole_prune.training.parts import State

# earliest state first, the last one is the teacher itself; each int32 [U, length], best first, -1 behind the end
States = Sequence[np.ndarray]

_USERS_AT_ONCE = 2048
_ROUNDING = 1e-12  # of sums in another order
_FALL = 0.995  # of the threshold, from one comparison to the next (HetComp's code)


def discrepancies(student: np.ndarray, teacher: np.ndarray, gain: str) -> np.ndarray:
    """How far students' lists are from teachers': ``1 - DCG / IDCG`` with the gain ``2 ** exp(-t / 10) - 1`` at rank t.

    Args:
        student, teacher: items of some users, best first, then -1, int ``[n, places]``.
        gain: of an item that both have, by its place in the teacher's list (``teacher_rank``) or in the student's
            (``position``: 0 for the same items in any order).

    Returns:
        float64 ``[n]``, 0 where the teacher's list is empty.
    """
    places = max(student.shape[1], teacher.shape[1])
    gains = 2.0 ** np.exp(-np.arange(places) / DECAY) - 1
    discounts = 1 / np.log2(np.arange(places) + 2)
    found = np.zeros(len(student))
    for start in range(0, len(student), _USERS_AT_ONCE):
        mine, theirs = student[start : start + _USERS_AT_ONCE], teacher[start : start + _USERS_AT_ONCE]
        both = (mine[:, :, None] == theirs[:, None, :]) & (mine >= 0)[:, :, None]
        by_teacher = gain == "teacher_rank"
        earned = both @ gains[: theirs.shape[1]] if by_teacher else both.any(2) * gains[: mine.shape[1]]
        ideal = ((theirs >= 0) * (gains * discounts)[: theirs.shape[1]]).sum(1)
        quality = np.divide(earned @ discounts[: mine.shape[1]], ideal, out=np.ones(len(mine)), where=ideal > 0)
        found[start : start + _USERS_AT_ONCE] = 1 - quality
    found[found < _ROUNDING] = 0.0
    return found


class Pace(NamedTuple):
    """When a user moves on to the next state of a teacher.

    Attributes:
        gain: of :func:`discrepancies`.
        threshold: the ``alpha`` of the code: a discrepancy that fell by this factor is small enough.
        places: of the student's lists and of the teachers' that are compared.
        official: as the authors' code where that departs: quality in four digits, nobody moves on from two
            discrepancies of 0, and those who are behind when the last phase begins stay there.
    """

    gain: str
    threshold: float
    places: int = 50
    official: bool = False


class Levels:
    """From which state each teacher teaches each user: earlier ones first, the next one once that is easy (HetComp).

    Args:
        states: of every teacher.
        pace: of moving on.

    Attributes:
        levels: number of the state, int8 ``[teachers, U]``; it never falls.
        last: what a discrepancy is compared with, ``[teachers, U]``; NaN before the first comparison.
        at_end: whether the mean levels have arrived at the last states, in two digits.
    """

    def __init__(self, states: Sequence[States], pace: Pace) -> None:
        self._states, self._pace = states, pace
        shape = len(states), len(states[0][0])
        self._finals = np.array([len(own) - 1 for own in states], np.int8)
        self.levels, self.last = np.zeros(shape, np.int8), np.full(shape, np.nan)
        self.at_end = self._has_arrived()

    def lists(self) -> list[np.ndarray]:
        """What each teacher ranks for every user at the level of both, ``[U, length]`` each."""
        return [_at(own, level) for own, level in zip(self._states, self.levels)]

    def compare(self, student: np.ndarray, number: int) -> None:
        """Let those move on whom the student's lists say to have come nearer to the next state, or not any more.

        The first call only notes discrepancies.

        Args:
            student: its best items of every user, without those of training, int ``[U, places]``.
            number: of the comparison, from 1; the threshold falls with it.
        """
        threshold = self._pace.threshold * _FALL**number
        for own, final, levels, last in zip(self._states, self._finals, self.levels, self.last):
            now = self._distances(student, own, np.minimum(levels + 1, final))
            first = np.isnan(last)
            moves = ~first & (levels < final) & self._enough(last, now, threshold)
            levels[moves] += 1
            last[first] = now[first]
            last[moves] = self._distances(student[moves], own, np.minimum(levels + 1, final)[moves], moves)
        self.at_end = self._has_arrived()
        if self.at_end and not self._pace.official:
            self.levels[:] = self._finals[:, None]

    def means(self) -> list[float]:
        """The mean level of the users for each teacher, in two digits; user 0 is padding."""
        return [round(float(levels[1:].mean()), 2) for levels in self.levels]

    def _has_arrived(self) -> bool:
        return bool(round(sum(self.means()), 2) >= self._finals.sum())

    def _enough(self, last: np.ndarray, now: np.ndarray, threshold: float) -> np.ndarray:
        moves: np.ndarray = (last > threshold * now) | (last < now)
        return moves if self._pace.official else moves | (now == 0)

    def _distances(
        self, student: np.ndarray, own: States, levels: np.ndarray, users: np.ndarray | slice = slice(None)
    ) -> np.ndarray:
        places = self._pace.places
        theirs = _at([state[users, :places] for state in own], levels)
        found = discrepancies(student[:, :places], theirs, self._pace.gain)
        # 1 minus a quality of four digits
        return found.round(4) if self._pace.official else found

    def state(self) -> State:
        """What a resume point needs."""
        return {"levels": self.levels, "last": self.last, "at_end": self.at_end}

    def restore(self, state: State) -> None:
        """Undo :meth:`state`."""
        self.levels, self.last, self.at_end = state["levels"], state["last"], state["at_end"]


def _at(own: States, levels: np.ndarray) -> np.ndarray:
    """Each user's list of the state at its level."""
    found = own[0].copy()
    for number in range(1, len(own)):
        rows = levels == number
        found[rows] = own[number][rows]
    return found
