"""Paired tests over users: the worked examples of the method file, scipy's own tests, what must hold of any data."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from recbole_prune.report.statistics import DRAWS, average_seeds, holm, paired_test, verdicts

DENSE = np.array([0.5, 0.2, 0, 1, 1 / 3, 0.25, 0.4, 0, 0.6, 0.75, 0.1, 0.45])
TICKET = np.array([0.5, 0.25, 0, 0.9, 1 / 3, 0.2, 0.45, 0.05, 0.55, 0.7, 0.1, 0.4])
# differences under two more seeds
SEEDS = (
    np.array([0, 0.05, 0, -0.05, 0, 0, 0.05, 0, -0.1, -0.05, 0.05, -0.05]),
    np.array([0, 0, 0.05, -0.1, 0, -0.05, 0, 0.05, 0, -0.05, 0, 0]),
)


def near(value: float) -> object:
    """As the method file prints it, with six digits."""
    return pytest.approx(value, abs=6e-7)


# ---- the worked example ----------------------------------------------------------------------------------------------


def test_the_block_of_the_method_file() -> None:
    found = paired_test(DENSE, TICKET, 0.01)
    assert (found.users, found.dense, found.mean) == (12, near(0.381944), near(0.369444))
    assert found.change_percent == near(-3.272727)
    assert found.interval_percent == (near(-11.301735), near(4.756281))
    assert found.effect_size == near(-0.258985)
    assert (found.p_difference, found.p_noninferior) == (near(0.388852), near(0.727015))
    assert (found.as_good, found.decidable, found.p_adjusted) == ("open", False, None)


@pytest.mark.parametrize(("margin", "p_value"), [(0.01, 0.727015), (0.02, 0.633121), (0.05, 0.322559), (0.1, 0.046121)])
def test_non_inferiority_of_the_method_file(margin: float, p_value: float) -> None:
    found = paired_test(DENSE, TICKET, margin)
    assert found.p_noninferior == near(p_value)
    assert found.as_good == ("yes" if p_value < 0.05 else "open")


def exact_flips(differences: list[Fraction], two_sided: bool) -> Fraction:
    """Sign-flip p over all signs, in exact numbers."""
    observed, counted = sum(differences, Fraction(0)), 0
    for signs in product((1, -1), repeat=len(differences)):
        drawn = sum((sign * d for sign, d in zip(signs, differences)), Fraction(0))
        counted += abs(drawn) >= abs(observed) if two_sided else drawn >= observed
    return Fraction(counted, 2 ** len(differences))


def test_sign_flips_are_near_the_exact_ones_of_the_method_file() -> None:
    exact = [Fraction(str(d)) for d in (TICKET - DENSE).round(6)]
    allowed = Fraction(5, 100) * Fraction(4_583_333, 12_000_000)
    two_sided, one_sided = exact_flips(exact, True), exact_flips([d + allowed for d in exact], False)
    assert (two_sided, float(one_sided)) == (Fraction(9, 16), near(0.319336))
    found = paired_test(DENSE, TICKET, 0.05)
    for p_value, wanted in ((found.sign_flip_p, two_sided), (found.sign_flip_p_noninferior, one_sided)):
        assert p_value == pytest.approx(float(wanted), abs=4 * 0.5 / np.sqrt(DRAWS)), "four standard deviations"
    assert paired_test(DENSE, TICKET, 0.05) == found, "the draws have a seed"


def test_json_has_every_field() -> None:
    for found in (*verdicts(DENSE, {1: TICKET, 2: DENSE}, 0.05).values(), paired_test([0.0], [0.1], 0.01)):
        read = json.loads(json.dumps(found.to_json(), allow_nan=False))
        expected = {**asdict(found), "interval_percent": list(found.interval_percent), "decidable": found.decidable}
        assert read == expected


def test_holm_of_the_method_file() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005, 0.2]) == pytest.approx([0.04, 0.09, 0.09, 0.025, 0.2])
    assert holm([]) == [] and holm([0.7, 0.6]) == [1.0, 1.0]


# ---- the same by scipy, and properties -------------------------------------------------------------------------------

shares = st.sampled_from([0.0, 0.1, 0.2, 0.25, 1 / 3, 0.5, 2 / 3, 1.0])
samples = st.lists(st.tuples(shares, shares), min_size=3, max_size=40)
margins = st.sampled_from([0.0, 0.01, 0.05, 0.2])


@given(samples, margins)
def test_it_is_what_scipy_says(pairs: list[tuple[float, float]], margin: float) -> None:
    dense, ticket = np.array(pairs).T
    differences = ticket - dense
    assume(dense.mean() > 0 and differences.std() > 1e-9)
    found = paired_test(dense, ticket, margin)
    assert found.p_difference == pytest.approx(stats.ttest_rel(ticket, dense).pvalue)
    worse = stats.ttest_1samp(differences, -margin * dense.mean(), alternative="greater")
    assert found.p_noninferior == pytest.approx(worse.pvalue)
    error = stats.sem(differences)
    ends = stats.t.interval(0.95, len(pairs) - 1, differences.mean(), error)
    assert found.interval_percent == pytest.approx([100 * end / dense.mean() for end in ends])
    assert found.effect_size == pytest.approx(differences.mean() / differences.std(ddof=1))


@given(samples, margins, st.randoms())
def test_users_are_a_set_and_units_do_not_matter(
    pairs: list[tuple[float, float]], margin: float, generator: object
) -> None:
    dense, ticket = np.array(pairs).T
    found = paired_test(dense, ticket, margin)
    order = np.random.default_rng(len(pairs)).permutation(len(pairs))
    again, doubled = paired_test(dense[order], ticket[order], margin), paired_test(2 * dense, 2 * ticket, margin)
    for other in (again, doubled):
        assert other.as_good == found.as_good
        for name in ("change_percent", "effect_size", "p_difference", "p_noninferior"):
            one, two = getattr(found, name), getattr(other, name)
            assert one is two is None or one == pytest.approx(two, rel=1e-6, abs=1e-9)


@given(samples, st.lists(st.integers(-20, 5), min_size=1, max_size=5), margins)
def test_a_family_is_each_alone_but_for_holm(
    pairs: list[tuple[float, float]], shifts: list[int], margin: float
) -> None:
    dense, ticket = np.array(pairs).T
    family = {number: ticket + shift / 100 for number, shift in enumerate(shifts, 1)}
    found = verdicts(dense, family, margin)
    assert list(found) == list(family)
    alone = {number: paired_test(dense, values, margin) for number, values in family.items()}
    tested = [number for number in family if alone[number].p_noninferior is not None]
    expected = dict(zip(tested, holm([alone[number].p_noninferior or 0.0 for number in tested])))
    for number, test in found.items():
        assert replace(test, p_adjusted=None, as_good="") == replace(alone[number], p_adjusted=None, as_good="")
        assert test.p_adjusted == expected.get(number)
        assert (test.as_good == "yes") == (test.identical or (test.p_adjusted is not None and test.p_adjusted < 0.05))
        if test.as_good == "no":
            assert test.interval_percent[1] is not None and test.interval_percent[1] < -100 * margin


@given(samples, st.floats(0, 0.5), st.floats(0, 0.5))
def test_a_wider_margin_is_easier(pairs: list[tuple[float, float]], one: float, other: float) -> None:
    dense, ticket = np.array(pairs).T
    narrow, wide = (paired_test(dense, ticket, margin) for margin in sorted([one, other]))
    if narrow.p_noninferior is not None and wide.p_noninferior is not None:
        assert wide.p_noninferior <= narrow.p_noninferior + 1e-12
    order = {"no": 0, "open": 1, "yes": 2}
    assert order[wide.as_good] >= order[narrow.as_good]


def test_each_of_the_three_answers() -> None:
    generator = np.random.default_rng(3)
    dense = generator.uniform(0.2, 0.4, 5000)
    noise = generator.normal(0, 0.02, 5000)
    family = {1: dense + noise, 2: dense - 0.02 + noise, 3: dense - 0.003 + noise, 4: dense}
    found = verdicts(dense, family, 0.01)
    assert [test.as_good for test in found.values()] == ["yes", "no", "open", "yes"]
    assert found[3].decidable, "on the line, not for want of users"
    assert found[4].identical and not found[1].identical and found[4].p_difference is None
    few = paired_test(dense[:20], (dense + 10 * noise)[:20], 0.01)
    assert few.as_good == "open" and not few.decidable


# ---- the ends of what can be asked -----------------------------------------------------------------------------------


def test_identical_values_are_as_good_without_a_test() -> None:
    found = verdicts(DENSE, {1: DENSE, 2: TICKET}, 0.05)
    assert found[1].as_good == "yes" and found[1].identical and found[1].interval_percent == (0.0, 0.0)
    assert found[1].p_noninferior is None is found[1].sign_flip_p
    assert found[2].p_adjusted == found[2].p_noninferior, "it is alone in its family"


def test_one_difference_for_all_users() -> None:
    dense = np.full(8, 0.5)
    assert paired_test(dense, dense - 0.25, 0.1).as_good == "no"
    better = paired_test(dense, dense + 0.25, 0.1)
    assert (better.as_good, better.p_difference, better.interval_percent) == ("yes", 0.0, (50.0, 50.0))


def test_nothing_is_found_by_the_dense_model() -> None:
    found = paired_test(np.zeros(5), np.array([0, 0, 0.1, 0.0, 0.2]), 0.01)
    assert found.change_percent is None and found.interval_percent == (None, None) and not found.decidable
    assert found.as_good == "open" and found.p_noninferior is not None


def test_one_user_decides_nothing() -> None:
    found = paired_test([0.5], [0.4], 0.01)
    assert (found.as_good, found.p_difference, found.interval_percent) == ("open", None, (None, None))
    assert paired_test([0.5], [0.5], 0.01).as_good == "yes"


@pytest.mark.parametrize(
    ("dense", "ticket", "margin", "said"),
    [
        ([0.1, np.nan], [0.1, 0.2], 0.01, "the dense model must be finite, but 1 are not"),
        ([0.1, 0.1], [0.1, np.inf], 0.01, "ticket 0 must be finite, but 1 are not"),
        ([0.1, 0.1], [0.1], 0.01, "ticket 0 has 1 users, the dense model 2"),
        ([], [], 0.01, "one for each user"),
        ([[0.1]], [[0.1]], 0.01, r"shape \(1, 1\)"),
        ([0.1], [0.1], 1.0, "margin must be a share"),
        ([0.1], [0.1], -0.1, "margin must be a share"),
    ],
)
def test_what_cannot_be_tested_is_refused(dense: list[float], ticket: list[float], margin: float, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        paired_test(dense, ticket, margin)


# ---- seeds -----------------------------------------------------------------------------------------------------------


def test_the_seeds_of_the_method_file() -> None:
    pairs = [(DENSE, TICKET), *((DENSE, DENSE + d) for d in SEEDS)]
    found = average_seeds(pairs)
    assert found.changes == (near(-0.0125), near(-0.008333), near(-0.008333))
    assert found.spread == near(0.002406) and found.worst == near(-0.0125)
    differences = found.ticket - found.dense
    assert (differences.mean(), differences.std(ddof=1)) == (near(-0.009722), near(0.039221))
    test = paired_test(found.dense, found.ticket, 0.01)
    assert test.p_difference == near(0.408834)
    assert stats.ttest_1samp(found.changes, 0).pvalue == near(0.019804), "the other question, which is not asked"


def test_every_seed_has_to_hold() -> None:
    generator = np.random.default_rng(5)
    dense = generator.uniform(0.2, 0.4, 2000)
    steady = average_seeds([(dense, dense + generator.normal(0, 0.01, 2000)) for _ in range(3)])
    test = paired_test(steady.dense, steady.ticket, 0.01)
    assert steady.confirm(test).as_good == test.as_good == "yes"
    mixed = average_seeds(
        [(dense, dense + 0.01), (dense, dense + generator.normal(0.01, 0.01, 2000)), (dense, dense - 0.008)]
    )
    test = paired_test(mixed.dense, mixed.ticket, 0.01)
    assert test.as_good == "yes" and mixed.confirm(test).as_good == "open"
    assert average_seeds([(DENSE, TICKET)]).spread is None


def test_seeds_with_other_users_share_those_they_have() -> None:
    found = average_seeds([([0.1, 0.2, 0.3], [0.1, 0.2, 0.6]), ([0.5, 0.4], [0.4, 0.1])], users=[[7, 3, 5], [5, 7]])
    assert found.dense.tolist() == pytest.approx([0.4, 0.25]) and found.ticket.tolist() == pytest.approx([0.5, 0.1])
    assert found.changes == (pytest.approx(0.15), pytest.approx(-0.2))


@pytest.mark.parametrize(
    ("pairs", "users", "said"),
    [
        ([], None, "no seeds"),
        ([([0.1], [0.1]), ([0.1, 0.2], [0.1, 0.2])], None, "same users, but have 1, 2"),
        ([([0.1], [0.1]), ([0.2], [0.2])], [[1], [2]], "no user in common"),
        ([([0.1], [0.1])], [[1, 2]], "the id of its user"),
        ([([0.1, 0.1], [0.1, 0.1])], [[1, 1]], "several values"),
        ([([np.nan], [0.1])], None, "finite"),
    ],
)
def test_seeds_that_cannot_be_averaged_are_refused(pairs: list, users: list | None, said: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(ValueError, match=said):
        average_seeds(pairs, users)
