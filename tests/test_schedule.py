"""Counts of every schedule against the oracles of the lottery-ticket specification."""

from __future__ import annotations

from decimal import ROUND_FLOOR, Decimal, localcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from recbole_prune.errors import ConfigError
from recbole_prune.masking.schedule import kept_counts, removed_exact, removed_official
from recbole_prune.pruners.magnitude import IterativeMagnitudePruning, OneShotMagnitudePruning
from recbole_prune.training.learning_rate import learning_rate_factor

YELP = 2_230_912
ML_100K = 168_000

# section 6 of the specification: live entries n_i of ticket i at p = 0.1 by the rule of the LTH-MRS code
TICKETS = (1, 3, 10, 29, 30, 49)
OFFICIAL = {
    "Yelp2018 F=32": (YELP, (2_007_820, 1_626_333, 777_868, 105_074, 94_566, 12_770)),
    "Yelp2018 F=64": (4_461_824, (4_015_641, 3_252_668, 1_555_738, 210_153, 189_137, 25_544)),
    "Yelp2018 F=128": (8_923_648, (8_031_283, 6_505_338, 3_111_479, 420_309, 378_278, 51_094)),
    "TikTok F=32": (4_280_160, (3_852_143, 3_120_235, 1_492_396, 201_596, 181_436, 24_505)),
    "Kwai F=32": (2_804_512, (2_524_060, 2_044_487, 977_869, 132_092, 118_882, 16_054)),
    "ml-100k F=64": (ML_100K, (151_199, 122_471, 58_574, 7_908, 7_117, 956)),
}
IDEAL_SPARSITIES = {
    1: 10.00,
    2: 19.00,
    3: 27.10,
    7: 52.17,
    10: 65.13,
    12: 71.76,
    17: 83.32,
    22: 90.15,
    25: 92.82,
    29: 95.29,
    30: 95.76,
    33: 96.91,
    49: 99.43,
}


@pytest.mark.parametrize("table", OFFICIAL)
def test_official_rule_reaches_the_published_counts(table: str) -> None:
    prunable, expected = OFFICIAL[table]
    counts = kept_counts(prunable, rate=0.1, rounds=49, official=True)
    assert counts[0] == prunable
    assert tuple(counts[i] for i in TICKETS) == expected


@pytest.mark.parametrize(
    ("prunable", "expected"),
    [
        (1000, [899, 809, 728, 655, 589]),
        (100, [89, 80, 71, 63, 56]),
        (10, [8, 7, 6]),
    ],
)
def test_official_rule_on_small_sequences(prunable: int, expected: list[int]) -> None:
    assert kept_counts(prunable, rate=0.1, rounds=len(expected), official=True)[1:] == expected


@pytest.mark.parametrize(
    ("prunable", "expected"),
    [(YELP, (2_007_821, 1_626_336, 777_873, 105_084)), (ML_100K, (151_200, 122_472, 58_580, 7_918))],
)
def test_exact_rule_removes_the_floor(prunable: int, expected: tuple[int, ...]) -> None:
    counts = kept_counts(prunable, rate=0.1, rounds=29)
    assert tuple(counts[i] for i in (1, 3, 10, 29)) == expected


@pytest.mark.parametrize(("k", "expected"), [(1, 2_007_820), (3, 1_626_334), (10, 777_870), (29, 105_078)])
def test_one_shot_magnitude_counts_of_the_official_rule(k: int, expected: int) -> None:
    assert YELP - removed_official(1 - 0.9**k, YELP) == expected
    settings = SimpleNamespace(
        prune_rate=0.1, prune_rounds=29, prune_target_sparsity=None, prune_parity="official", explicit=frozenset()
    )
    experiment: Any = SimpleNamespace(settings=settings, scope=SimpleNamespace(prunable=YELP))
    assert OneShotMagnitudePruning(experiment).counts()[k] == expected
    assert IterativeMagnitudePruning(experiment).counts() == kept_counts(YELP, rate=0.1, rounds=29, official=True)


@pytest.mark.parametrize(("k", "expected"), [(1, 2_007_821), (3, 1_626_335), (10, 777_871), (29, 105_079)])
def test_random_counts_are_one_floor_of_the_whole_table(k: int, expected: int) -> None:
    sparsity = 1 - 0.9**k
    assert YELP - removed_exact(sparsity, YELP) == expected
    assert kept_counts(YELP, rate=0.1, rounds=1, target=sparsity) == [YELP, expected]
    assert kept_counts(YELP, rate=0.1, rounds=k, target=sparsity)[-1] == expected


@pytest.mark.parametrize("official", [False, True])
def test_ideal_sparsities(official: bool) -> None:
    counts = kept_counts(YELP, rate=0.1, rounds=49, official=official)
    for i, percent in IDEAL_SPARSITIES.items():
        assert round(100 * (1 - 0.9**i), 2) == percent
        # at most one entry too many or too few is removed per round
        assert 1 - counts[i] / YELP == pytest.approx(1 - 0.9**i, abs=(i + 1) / YELP)


def test_a_rate_is_the_decimal_number_that_was_written() -> None:
    assert int(0.29 * 100) == 28  # what the double product gives
    assert removed_exact(0.29, 100) == 29
    assert removed_official(0.29, 100) == 28 + 1
    assert kept_counts(100, rate=0.29, rounds=1) == [100, 71]
    assert kept_counts(100, rate=0.29, rounds=1, official=True) == [100, 71]
    assert kept_counts(100, rate=0.1, rounds=1, target=0.29) == [100, 71]


def test_the_official_rule_removes_one_entry_at_rate_zero() -> None:
    assert removed_official(0.0, 1000) == 1
    assert removed_exact(0.0, 1000) == 0


def test_numpy_rates_count_like_plain_ones() -> None:
    assert removed_exact(np.float64(0.29), 100) == 29
    assert kept_counts(1000, rate=np.float64(0.1), rounds=3) == [1000, 900, 810, 729]
    assert kept_counts(1000, rate=0.1, rounds=1, target=np.float64(0.3)) == [1000, 700]


def test_rates_in_scientific_notation() -> None:
    assert removed_exact(1e-05, 1_000_000) == 10


@given(st.floats(0, 1, exclude_max=True), st.integers(0, 10**9))
def test_exact_removal_equals_decimal_arithmetic(rate: float, live: int) -> None:
    with localcontext() as context:
        context.prec = 400
        product = Decimal(str(rate)) * live
        expected = int(product.to_integral_value(ROUND_FLOOR))
    assert removed_exact(rate, live) == expected


@given(
    st.integers(2, 10**8),
    st.floats(0.01, 0.95),
    st.integers(1, 60),
    st.sampled_from(["rounds", "target", "both"]),
    st.floats(0.01, 0.999),
)
def test_schedules_fall_strictly_to_their_end(
    prunable: int, rate: float, rounds: int, kind: str, target: float
) -> None:
    wanted: dict[str, Any] = {
        "rounds": {"rounds": rounds},
        "target": {"target": target},
        "both": {"rounds": rounds, "target": target},
    }[kind]
    try:
        counts = kept_counts(prunable, rate=rate, **wanted)
    except ConfigError:
        assume(False)
    assert counts[0] == prunable and counts[-1] >= 1
    assert all(after < before for before, after in zip(counts, counts[1:]))
    if "target" in wanted:
        assert counts[-1] == prunable - removed_exact(target, prunable)
        assert (prunable - counts[-1]) / prunable <= target + 1e-12
    if "rounds" in wanted:
        assert len(counts) == rounds + 1
    if kind == "both":
        ratio = (counts[-1] / prunable) ** (1 / rounds)
        for i, count in enumerate(counts):
            assert count == pytest.approx(prunable * ratio**i, rel=1e-9, abs=0.51)
    if kind == "target":
        removed = [before - after for before, after in zip(counts, counts[1:])]
        # a step of `rate`, the last one shorter; where the rate removes nothing, one step to the goal
        for before, step in zip(counts[:-2], removed[:-1]):
            assert step == removed_exact(rate, before)
        assert removed[-1] <= max(1, removed_exact(rate, counts[-2])) or removed_exact(rate, counts[-2]) == 0


def test_target_is_reached_from_what_is_live_now() -> None:
    assert kept_counts(1000, rate=0.1, rounds=2, target=0.75, current=1000) == [1000, 500, 250]
    assert kept_counts(1000, rate=0.5, target=0.75, current=800) == [800, 400, 250]
    assert kept_counts(1000, rate=0.1, rounds=2, current=500) == [500, 450, 405]


@pytest.mark.parametrize("arguments", [{}, {"rounds": 3}])
def test_target_below_the_current_sparsity_is_refused(arguments: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="prune_target_sparsity=0.3"):
        kept_counts(1000, rate=0.1, target=0.3, current=700, **arguments)


def test_schedules_that_remove_nothing_or_all_are_refused() -> None:
    with pytest.raises(ConfigError, match="at least one entry per round"):
        kept_counts(9, rate=0.1, rounds=1)
    with pytest.raises(ConfigError, match="leaves none"):
        kept_counts(3, rate=0.4, rounds=5, official=True)
    with pytest.raises(ConfigError, match="at least one entry per round"):
        kept_counts(10, rate=0.1, rounds=8, target=0.5)


def test_the_official_rule_has_no_target() -> None:
    with pytest.raises(ConfigError, match="prune_parity=official"):
        kept_counts(1000, rate=0.1, target=0.5, official=True)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
@pytest.mark.parametrize(("epochs", "warmup"), [(1, 0), (10, 0), (10, 3), (10, 9), (100, 20)])
def test_learning_rate_warms_up_and_decays(schedule: str, epochs: int, warmup: int) -> None:
    factors = [learning_rate_factor(schedule, epoch, epochs, warmup) for epoch in range(epochs)]
    assert all(0 < factor <= 1 for factor in factors)
    assert factors[:warmup] == pytest.approx([(epoch + 1) / (warmup + 1) for epoch in range(warmup)])
    assert factors[warmup] == 1.0
    decay = factors[warmup:]
    assert all(after <= before for before, after in zip(decay, decay[1:]))
    if schedule == "constant":
        assert set(decay) == {1.0}
    elif len(decay) > 2:
        middle = learning_rate_factor(schedule, warmup + (epochs - warmup) // 2, epochs, warmup)
        assert decay[-1] < 0.2
        if (epochs - warmup) % 2 == 0:
            assert middle == pytest.approx(0.5)
