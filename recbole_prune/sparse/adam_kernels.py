"""Adam on single rows of a table, and the steps without a gradient that a row has missed.

Adam (Kingma and Ba 2015, arXiv:1412.6980, algorithm 1) moves every row in every step, also one without a gradient,
whose moments decay: after ``j`` such steps they are ``b1^j m`` and ``b2^j v``. What ``k`` of them take from a parameter
is ``m * sum_j w_j / (sqrt(v) d_j + eps)`` with ``w_j = rate_j b1^j`` and ``d_j = b2^(j/2) / c_j``, where ``rate`` and
``c`` hold the corrections of bias. The weights ``w_j`` fall fast and ``d_j`` hardly changes meanwhile, so the sum is
Taylor's series about the weighted mean of ``d``, up to the fourth moment: as much work for many steps as for one.
"""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray

from recbole_prune.sparse.compiling import compile_loop
from recbole_prune.sparse.prefetching import ask_for_row

Whole = NDArray[np.integer]
Real = NDArray[np.floating]
# b1^j is nothing beside its sum after so many steps (0.9^263 = 1e-12)
HORIZON = 263
# the corrections of bias change too fast for the series before this step of a training
FIRST_IN_SERIES = 256
MOMENTS = 5
_AHEAD = 8  # rows between asking for one and stepping it


@compile_loop
def advance(sums: Real, nearest: Real, step: int, rate: float, correction: float, b1: float, b2: float) -> None:
    """Count a step in the sums of every earlier one from which a row may have waited.

    Args:
        sums: ``sum_j w_j (d_j - nearest)^n`` for the steps after each, ``[steps, 5]``; changed.
        nearest: ``d_1`` of each, ``[steps]``; changed.
        step: which one is counted, from 1.
        rate, correction: its learning rate over the first correction of bias, and the root of the second.
        b1, b2: the decay of the moments.
    """
    nearest[step - 1] = np.sqrt(b2) / correction
    weight, decay = rate, 1.0
    for start in range(step - 1, max(-1, step - 1 - HORIZON), -1):
        weight *= b1
        decay *= b2
        term, apart = weight, np.sqrt(decay) / correction - nearest[start]
        for n in range(MOMENTS):
            sums[start, n] += term
            term *= apart


@partial(compile_loop, alone=False, fastmath={"contract"}, divides=True)
def _wait(table: Real, first: Real, second: Real, row: int, missed: int, sums: Real, nearest: float,
    b1: float, b2: float, eps: float,
) -> None:  # fmt: skip
    """Make the missed steps of a row at once."""
    mean = sums[1] / sums[0] if sums[0] else 0.0  # a learning rate of 0
    two = sums[2] - sums[1] * mean
    three = sums[3] - 3 * mean * sums[2] + 2 * mean * mean * sums[1]
    four = sums[4] - 4 * mean * sums[3] + 6 * mean * mean * sums[2] - 3 * mean * mean * mean * sums[1]
    total, middle, m2, m3, m4 = (
        np.float32(sums[0]), np.float32(nearest + mean), np.float32(two), np.float32(three), np.float32(four),
    )  # fmt: skip
    small, fall, decay = np.float32(eps), np.float32(b1**missed), np.float32(b2**missed)
    parameter, m, v = table[row], first[row], second[row]
    for f in range(parameter.size):
        root = np.sqrt(v[f])
        inverse = np.float32(1) / (root * middle + small)
        u = root * inverse
        parameter[f] -= m[f] * inverse * (total + u * u * (m2 - u * (m3 - u * m4)))
        m[f] *= fall
        v[f] *= decay


@partial(compile_loop, alone=False, fastmath={"contract"}, divides=True)
def _wait_step_by_step(table: Real, first: Real, second: Real, row: int, rates: Real, corrections: Real,
    b1: float, b2: float, eps: float,
) -> None:  # fmt: skip
    """Make the missed steps of a row one after the other."""
    fall, decay, small = np.float32(b1), np.float32(b2), np.float32(eps)
    parameter, m, v = table[row], first[row], second[row]
    for step in range(rates.size):
        rate, inverse = np.float32(rates[step]), np.float32(1 / corrections[step])
        for f in range(parameter.size):
            m[f] *= fall
            v[f] *= decay
            parameter[f] -= rate * m[f] / (np.sqrt(v[f]) * inverse + small)


@partial(compile_loop, alone=False)
def _catch_up_row(table: Real, first: Real, second: Real, made: Whole, row: int, before: int, step: int,
    rates: Real, corrections: Real, sums: Real, nearest: Real, b1: float, b2: float, eps: float,
) -> None:  # fmt: skip
    since = made[row]
    if since >= step:
        return
    if before + since < FIRST_IN_SERIES:
        some = slice(since, step)
        _wait_step_by_step(table, first, second, row, rates[some], corrections[some], b1, b2, eps)
    else:
        _wait(table, first, second, row, step - since, sums[since], nearest[since], b1, b2, eps)
    made[row] = step


@partial(compile_loop, alone=False)
def _ask_for(table: Real, first: Real, second: Real, row: int) -> None:
    ask_for_row(table, row)
    ask_for_row(first, row)
    ask_for_row(second, row)


@compile_loop
def catch_up(table: Real, first: Real, second: Real, made: Whole, ids: Whole, before: int, step: int,
    rates: Real, corrections: Real, sums: Real, nearest: Real, b1: float, b2: float, eps: float,
) -> bool:  # fmt: skip
    """Make the steps that some rows have missed.

    Args:
        table, first, second: parameters and their moments, float32 ``[rows, width]``; changed.
        made: how many steps each row has made, ``[rows]``; changed.
        ids: the rows; one may come any number of times.
        before: steps that all rows had made before the first that ``made`` counts.
        step: how many they shall have made.
        rates, corrections: as for :func:`advance`, of every step.
        sums, nearest: as :func:`advance` leaves them.
        b1, b2, eps: Adam's.

    Returns:
        False, and nothing is done, if an id is not a row.
    """
    outside = False
    for i in range(ids.size):
        outside |= (ids[i] < 0) | (ids[i] >= made.size)
    if outside:
        return False
    for i in range(ids.size):
        if i + _AHEAD < ids.size:
            _ask_for(table, first, second, ids[i + _AHEAD])
        _catch_up_row(table, first, second, made, ids[i], before, step, rates, corrections, sums, nearest, b1, b2, eps)
    return True


@partial(compile_loop, alone=False)
def _add_up(ids: Whole, gradients: Real, place: Whole, rows: Whole, totals: Real) -> int:
    """The sum of the gradients of each row; how many rows there are. ``place`` is -1 everywhere, before and after."""
    count = 0
    for i in range(ids.size):
        row = ids[i]
        at = place[row]
        if at < 0:
            place[row], rows[count] = count, row
            totals[count] = gradients[i]
            count += 1
        else:
            total, own = totals[at], gradients[i]
            for f in range(total.size):
                total[f] += own[f]
    for at in range(count):
        place[rows[at]] = -1
    return count


@partial(compile_loop, fastmath={"contract"}, divides=True)
def step_rows(table: Real, first: Real, second: Real, made: Whole, ids: Whole, gradients: Real,
    place: Whole, before: int, step: int, rates: Real, corrections: Real, sums: Real, nearest: Real,
    b1: float, b2: float, eps: float,
) -> None:  # fmt: skip
    """Adam's step of the rows that have a gradient, after those that they missed.

    Args:
        table, first, second, made, before, rates, corrections, sums, nearest, b1, b2, eps: as for :func:`catch_up`.
        ids: rows; one may come any number of times, its gradients are added up.
        gradients: of each of ``ids``, ``[len(ids), width]``.
        place: -1 for every row; it is so again afterwards.
        step: the number of this step.
    """
    rows, totals = np.empty(ids.size, np.int64), np.empty_like(gradients)
    count = _add_up(ids, gradients, place, rows, totals)
    rate, inverse = np.float32(rates[step - 1]), np.float32(1 / corrections[step - 1])
    take, square, keep, small = np.float32(1 - b1), np.float32(1 - b2), np.float32(b2), np.float32(eps)
    for at in range(count):
        row, g = rows[at], totals[at]
        if at + _AHEAD < count:
            _ask_for(table, first, second, rows[at + _AHEAD])
        _catch_up_row(table, first, second, made, row, before, step - 1, rates, corrections, sums, nearest, b1, b2, eps)
        parameter, m, v = table[row], first[row], second[row]
        for f in range(parameter.size):
            m[f] += take * (g[f] - m[f])
            v[f] = keep * v[f] + square * g[f] * g[f]
            parameter[f] -= rate * m[f] / (np.sqrt(v[f]) * inverse + small)
        made[row] = step
