"""Whether a ticket is as good as the dense model: paired tests over users (methods/more_methods.md, part C).

Users are the sample: a test holds the trained models fixed and says nothing about another seed. With thousands of users
nearly every difference is significant, so the question is one of non-inferiority: is the ticket worse by less than a
margin that was fixed before looking? Means are compared, for which t and sign-flip tests are right in samples of this
size (Ihemelandu and Ekstrand, SIGIR 2023, arXiv 2305.02461).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Optional

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtr, stdtrit

LEVEL = 0.05
DRAWS = 9_999
_SEED = 20_230_424
# signs of a block of draws, as float64
_BLOCK_SIGNS = 1 << 21
_Floats = NDArray[np.float64]
Interval = tuple[Optional[float], Optional[float]]


@dataclass(frozen=True)
class PairedTest:
    """A ticket beside the dense model, one metric, user by user; a higher value is better.

    Attributes:
        users: how many.
        margin: share of the dense mean by which the ticket may be worse.
        dense, mean: mean of the dense model's and of the ticket's values.
        change_percent: the mean difference in percent of ``dense``; None where that is 0.
        interval_percent: its 95 % interval; (None, None) where ``dense`` is 0 or there is one user.
        effect_size: the mean difference in its standard deviations over users (d_z); None where that is 0.
        p_difference: two-sided t test of no difference; None where all values are equal or there is one user.
        p_noninferior: one-sided t test of "worse by the margin or more"; None as above.
        p_adjusted: that one after Holm's correction over the tickets of a run; None before it.
        sign_flip_p, sign_flip_p_noninferior: the same two by random signs, which assumes no distribution.
        as_good: ``yes`` = worse by less than the margin (adjusted p below 0.05); ``no`` = the interval lies below the
            margin; ``open`` = neither.
    """

    users: int
    margin: float
    dense: float
    mean: float
    change_percent: float | None
    interval_percent: Interval
    effect_size: float | None
    p_difference: float | None
    p_noninferior: float | None
    p_adjusted: float | None
    sign_flip_p: float | None
    sign_flip_p_noninferior: float | None
    as_good: str

    @property
    def identical(self) -> bool:
        """Whether every user has the same value."""
        return self.as_good == "yes" and self.p_noninferior is None

    @property
    def decidable(self) -> bool:
        """Whether the interval is narrow enough for the margin: where it is not, this many users cannot decide."""
        low, high = self.interval_percent
        return low is not None and high is not None and (high - low) / 2 <= 100 * self.margin

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON has them, and ``decidable``."""
        return {**asdict(self), "interval_percent": list(self.interval_percent), "decidable": self.decidable}


def paired_test(dense: ArrayLike, ticket: ArrayLike, margin: float) -> PairedTest:
    """Test one ticket.

    Args:
        dense, ticket: values of the same users in the same order ``[users]``; a higher value is better.
        margin: share of the dense mean by which the ticket may be worse (``report_margin``).

    Raises:
        ValueError: no users, different numbers of them, a value that is not finite, or a margin that is no share.
    """
    return _tests(dense, {0: ticket}, margin)[0]


def change_of(dense: ArrayLike, ticket: ArrayLike) -> tuple[float | None, Interval]:
    """``change_percent`` and ``interval_percent`` of :class:`PairedTest` alone, whatever is better; as it raises."""
    usual, found = _values(dense, "the dense model"), _values(ticket, "the ticket")
    if len(found) != len(usual):
        raise ValueError(f"the ticket has {len(found)} users, the dense model {len(usual)}")
    test = _tested(usual, found - usual, 0.0, (1.0, 1.0))
    return test.change_percent, test.interval_percent


def verdicts(dense: ArrayLike, tickets: Mapping[int, ArrayLike], margin: float) -> dict[int, PairedTest]:
    """Test the pruned tickets of one run, Holm-corrected over them.

    A ticket whose values are all the dense model's needs no test and does not count.

    Args:
        dense: values of the dense model ``[users]``.
        tickets: by number those of the pruned tickets, of the same users in the same order.
        margin: as for :func:`paired_test`.

    Raises:
        ValueError: as there.
    """
    tests = _tests(dense, tickets, margin)
    tested = [number for number, test in tests.items() if test.p_noninferior is not None]
    adjusted = holm([tests[number].p_noninferior or 0.0 for number in tested])
    for number, p_value in zip(tested, adjusted):
        test = replace(tests[number], p_adjusted=p_value)
        tests[number] = replace(test, as_good=_as_good(p_value, test.interval_percent, margin))
    return tests


def mean_of_users(values: ArrayLike, users: ArrayLike) -> _Floats:
    """One value for each user, in the order of their ids: rows of one user are no independent sample.

    Args:
        values: of rows ``[rows]``.
        users: the id of each row's user ``[rows]``.
    """
    ids, places, counts = np.unique(np.asarray(users), return_inverse=True, return_counts=True)
    sums = np.bincount(places.reshape(-1), np.asarray(values, np.float64), minlength=len(ids))
    found: _Floats = sums / counts
    return found


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment of p values, in their order (Scandinavian Journal of Statistics, 1979)."""
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted


def _as_good(p_value: float, interval: Interval, margin: float) -> str:
    if p_value < LEVEL:
        return "yes"
    return "no" if interval[1] is not None and interval[1] < -100 * margin else "open"


def _values(values: ArrayLike, what: str) -> _Floats:
    found = np.asarray(values, np.float64)
    if found.ndim != 1 or not len(found):
        raise ValueError(f"the values of {what} must be one for each user, but are of shape {found.shape}")
    if not np.isfinite(found).all():
        raise ValueError(f"the values of {what} must be finite, but {int((~np.isfinite(found)).sum())} are not")
    return found


def _tests(dense: ArrayLike, tickets: Mapping[int, ArrayLike], margin: float) -> dict[int, PairedTest]:
    if not 0 <= margin < 1:
        raise ValueError(f"the margin must be a share from 0 to below 1, but is {margin}")
    usual = _values(dense, "the dense model")
    columns = []
    for number, values in tickets.items():
        found = _values(values, f"ticket {number}")
        if len(found) != len(usual):
            raise ValueError(f"ticket {number} has {len(found)} users, the dense model {len(usual)}")
        columns.append(found - usual)
    if not columns:
        return {}
    differences, allowed = np.stack(columns, axis=1), margin * float(usual.mean())
    flips = _sign_flips(differences, allowed)
    return {
        number: _tested(usual, differences[:, place], margin, tuple(flips[:, place].tolist()))
        for place, number in enumerate(tickets)
    }


def _tested(dense: _Floats, differences: _Floats, margin: float, flips: tuple[float, ...]) -> PairedTest:
    users, level, mean = len(dense), float(dense.mean()), float(differences.mean())
    identical, allowed = not differences.any(), margin * level
    deviation = float(differences.std(ddof=1)) if users > 1 else 0.0
    if deviation <= 1e-12 * abs(mean):  # one difference for all users, but for rounding
        deviation = 0.0
    error = deviation / users**0.5
    half = float(stdtrit(users - 1, 1 - LEVEL / 2)) * error if users > 1 else 0.0
    untested = identical or users == 1
    p_noninferior = None if untested else _upper_tail(mean + allowed, error, users - 1)
    known = level > 0 and users > 1
    interval = (100 * (mean - half) / level, 100 * (mean + half) / level) if known else (None, None)
    open_or_no = "open" if p_noninferior is None else _as_good(p_noninferior, interval, margin)
    return PairedTest(
        users=users,
        margin=margin,
        dense=level,
        mean=float((dense + differences).mean()),
        change_percent=100 * mean / level if level > 0 else None,
        interval_percent=interval,
        effect_size=mean / deviation if deviation else None,
        p_difference=None if untested else 2 * _upper_tail(abs(mean), error, users - 1),
        p_noninferior=p_noninferior,
        p_adjusted=None,
        sign_flip_p=None if untested else flips[0],
        sign_flip_p_noninferior=None if untested else flips[1],
        as_good="yes" if identical else open_or_no,
    )


def _upper_tail(distance: float, error: float, freedom: int) -> float:
    """P(T > distance / error) of Student's t distribution."""
    if error:
        return float(stdtr(freedom, -distance / error))
    return 0.5 if not distance else float(distance < 0)


def _sign_flips(differences: _Floats, allowed: float) -> _Floats:
    """Sign-flip tests of every ticket by the same random signs.

    Args:
        differences: of users and tickets ``[users, tickets]``.
        allowed: by how much a ticket may be worse.

    Returns:
        ``[2, tickets]``: p of no difference, two-sided, and of "worse by ``allowed`` or more", one-sided; 1 plus the
        draws that are as extreme, of 1 plus all draws.
    """
    users = len(differences)
    sums, shifted = differences.sum(0), differences.sum(0) + users * allowed
    # what differs by rounding only is as extreme
    slack = 1e-12 * (np.abs(differences).sum(0) + users * allowed)
    columns = np.concatenate([differences, np.full((users, 1), allowed)], axis=1)
    generator, extreme = np.random.default_rng(_SEED), np.zeros((2, len(sums)))
    step = max(1, _BLOCK_SIGNS // users)
    for start in range(0, DRAWS, step):
        draws = min(step, DRAWS - start)
        bits = np.unpackbits(generator.integers(0, 256, (draws, -(-users // 8)), np.uint8), axis=1)[:, :users]
        drawn = 2 * (bits.astype(np.float64) @ columns) - columns.sum(0)
        extreme[0] += (np.abs(drawn[:, :-1]) >= np.abs(sums) - slack).sum(0)
        extreme[1] += (drawn[:, :-1] + drawn[:, -1:] >= shifted - slack).sum(0)
    found: _Floats = (1 + extreme) / (1 + DRAWS)
    return found


@dataclass(frozen=True)
class SeedAverage:
    """Values of the same users under several seeds, averaged, and what each seed says.

    Attributes:
        dense, ticket: averaged values ``[users]``.
        changes: the mean difference under each seed.
    """

    dense: _Floats
    ticket: _Floats
    changes: tuple[float, ...]

    @property
    def spread(self) -> float | None:
        """Standard deviation of the mean differences over seeds; None of a single one."""
        return float(np.std(self.changes, ddof=1)) if len(self.changes) > 1 else None

    @property
    def worst(self) -> float:
        """The smallest mean difference."""
        return min(self.changes)

    def confirm(self, test: PairedTest) -> PairedTest:
        """A test of the averages, ``yes`` only where no seed by itself is worse by the margin."""
        holds = self.worst > -test.margin * test.dense
        return test if holds or test.as_good != "yes" or test.identical else replace(test, as_good="open")


def average_seeds(
    pairs: Sequence[tuple[ArrayLike, ArrayLike]], users: Sequence[ArrayLike] | None = None
) -> SeedAverage:
    """Average the values of each user over seeds; dense model and ticket of one seed share data and split.

    Args:
        pairs: values of the dense model and of the ticket under each seed.
        users: ids of the users of each seed, each once, where splits differ: those that all seeds have are averaged.

    Raises:
        ValueError: nothing, other numbers of users under another seed, no user in common, a value that is not finite.
    """
    if not pairs:
        raise ValueError("there are no seeds to average")
    both = [(_values(dense, "the dense model"), _values(ticket, "the ticket")) for dense, ticket in pairs]
    if users is not None:
        both = _of_common_users(both, [np.asarray(ids) for ids in users])
    counts = sorted({len(values) for pair in both for values in pair})
    if len(counts) > 1:
        raise ValueError(f"seeds must have the same users, but have {', '.join(map(str, counts))}")
    dense, ticket = (np.mean([pair[side] for pair in both], axis=0) for side in (0, 1))
    return SeedAverage(dense, ticket, tuple(float((pruned - usual).mean()) for usual, pruned in both))


def _of_common_users(
    pairs: Sequence[tuple[_Floats, _Floats]], users: Sequence[NDArray[Any]]
) -> list[tuple[_Floats, _Floats]]:
    if len(users) != len(pairs) or any(len(ids) != len(v) for ids, pair in zip(users, pairs) for v in pair):
        raise ValueError("every value must have the id of its user")
    common = users[0]
    for ids in users:
        if len(np.unique(ids)) < len(ids):
            raise ValueError("a user has several values under one seed")
        common = np.intersect1d(common, ids)
    if not len(common):
        raise ValueError("seeds have no user in common")
    places = [np.argsort(ids)[np.searchsorted(np.sort(ids), common)] for ids in users]
    return [(dense[place], ticket[place]) for (dense, ticket), place in zip(pairs, places)]
