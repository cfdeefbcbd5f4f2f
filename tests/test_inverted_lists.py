"""Top-k over inverted lists and over matrix products is the full sort: ties, seen items, empty rows included."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from recbole_prune.sparse import dense_top_k as dense_top_k_module
from recbole_prune.sparse import inverted_lists
from recbole_prune.sparse.compiling import available
from recbole_prune.sparse.dense_top_k import dense_top_k
from recbole_prune.sparse.inverted_lists import InvertedLists, Rows, TopK

needs_numba = pytest.mark.skipif(not available(), reason="numba is not installed: there is no scan to test")


def full_sort(
    users: NDArray, items: NDArray, k: int, seen: list[NDArray], scale: float = 1.0
) -> tuple[NDArray, NDArray, NDArray]:
    """The slow obvious way: all scores in float64 by coordinates, rounded once, sorted stably."""
    scores = np.zeros((len(users), len(items)))
    for column in range(users.shape[1]):
        scores += (scale * users[:, column, None].astype(np.float64)) * items[:, column].astype(np.float64)
    rounded = scores.astype(np.float32)
    rounded[:, 0] = -np.inf
    for row, ids in enumerate(seen):
        rounded[row, ids] = -np.inf
    order = np.argsort(-rounded, axis=1, kind="stable")
    ranked = np.take_along_axis(rounded, order, 1)
    tied = ((ranked[:, 1 : k + 1] == ranked[:, :-1][:, :k]) & np.isfinite(ranked[:, 1 : k + 1])).any(axis=1)
    pad = max(0, k - len(items))
    order, ranked = (
        np.pad(order[:, :k], ((0, 0), (0, pad))),
        np.pad(ranked[:, :k], ((0, 0), (0, pad)), constant_values=-np.inf),
    )
    return np.where(np.isfinite(ranked), order, -1), ranked, tied


def case(seed: int, whole: bool) -> tuple[NDArray, NDArray, list[NDArray]]:
    """Tables with empty rows, repeated rows and, if ``whole``, small whole numbers (many equal scores)."""
    random = np.random.default_rng(seed)
    shape = random.integers(1, 9), int(random.integers(2, 200)), int(random.integers(1, 9))
    density = random.random()
    users, items = (
        (random.standard_normal((n, shape[2])) * (random.random((n, shape[2])) < density)).astype(np.float32)
        for n in shape[:2]
    )
    if whole:
        users, items = np.round(users), np.round(items)
    users[0] = 0
    items[shape[1] // 2 :][:5] = items[-1]
    most = shape[1] if random.random() < 0.3 else 4
    choices = np.arange(1, shape[1])
    seen = [np.sort(random.choice(choices, min(len(choices), random.integers(0, most)), replace=False)) for _ in users]
    return users, items, seen


def pointers_of(seen: list[NDArray]) -> tuple[NDArray, NDArray]:
    return np.concatenate([[0], np.cumsum([len(ids) for ids in seen])]), np.concatenate(seen).astype(np.int64)


def assert_equal(found: TopK, expected: tuple[NDArray, NDArray, NDArray]) -> None:
    assert np.array_equal(found.items, expected[0])
    assert np.array_equal(found.scores, expected[1])
    assert np.array_equal(found.tied, expected[2])


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=needs_numba)])
@settings(max_examples=150)
@given(
    seed=st.integers(0, 100_000),
    k=st.integers(1, 30),
    whole=st.booleans(),
    scale=st.sampled_from([1.0, -2.5, 1e-3]),
    spare=st.sampled_from([1, 12]),
)
def test_matrix_products_equal_the_full_sort(
    compiled: bool, seed: int, k: int, whole: bool, scale: float, spare: int
) -> None:
    users, items, seen = case(seed, whole)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dense_top_k_module, "pays", lambda seconds: compiled)
        patch.setattr(dense_top_k_module, "_SPARE", spare)
        found = dense_top_k(users, items, k, *pointers_of(seen), scale=scale)
    assert_equal(found, full_sort(users, items, k, seen, scale))


@needs_numba
@settings(max_examples=150)
@given(
    seed=st.integers(0, 100_000),
    k=st.integers(1, 30),
    whole=st.booleans(),
    scale=st.sampled_from([1.0, -2.5, 1e-3]),
    block=st.sampled_from([64, 128, 1 << 14]),
    threads=st.integers(1, 3),
)
def test_the_scan_equals_the_full_sort(seed: int, k: int, whole: bool, scale: float, block: int, threads: int) -> None:
    users, items, seen = case(seed, whole)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inverted_lists, "_ITEMS_AT_ONCE", block)
        patch.setattr(inverted_lists, "_USERS_AT_ONCE", 3)
        lists = InvertedLists(Rows.of(items), items.shape[1])
        found = lists.top_k(Rows.of(users), k, *pointers_of(seen), scale=scale, threads=threads)
    assert_equal(found, full_sort(users, items, k, seen, scale))


@needs_numba
def test_near_ties_are_ranked_by_their_exact_scores() -> None:
    """Scores that a float32 sum cannot tell apart, or puts in the wrong order."""
    random = np.random.default_rng(1)
    users = np.full((1, 64), 1.0, np.float32)
    items = np.zeros((3000, 64), np.float32)
    items[:, 0] = 1000
    items[:, 1:] = random.standard_normal((3000, 63)) * 1e-4
    nothing = [np.zeros(0, np.int64)]
    expected = full_sort(users, items, 50, nothing)
    rough = np.argsort(-(items @ users[0]), kind="stable")[:50]
    assert not np.array_equal(rough, expected[0][0])
    assert_equal(InvertedLists(Rows.of(items), 64).top_k(Rows.of(users), 50, *pointers_of(nothing)), expected)
    assert_equal(dense_top_k(users, items, 50, *pointers_of(nothing)), expected)


@given(seed=st.integers(0, 1000))
def test_rows_there_and_back(seed: int) -> None:
    users, _, _ = case(seed, True)
    rows = Rows.of(users)
    assert np.array_equal(rows.dense(users.shape[1]), users)
    chosen = np.random.default_rng(seed).integers(0, len(users), 5)
    assert np.array_equal(rows.some(chosen).dense(users.shape[1]), users[chosen])


@needs_numba
@pytest.mark.parametrize(("columns", "k"), [(700, 2), (700, 30), (701, 43), (40, 3), (5, 5)])
def test_the_largest_of_many_are_those_of_a_sort(columns: int, k: int) -> None:
    """Many are equal, of which the first are taken; where fewer than k are scored the others are none; NaN is none."""
    scores = np.random.default_rng(0).integers(-3, 4, (30, columns)).astype(np.float32)
    scores[:5] += np.arange(columns)
    scores[5, 1:] = -np.inf
    scores[6, ::3] = np.nan
    items, values = inverted_lists.largest(scores, k, 1)
    scores[np.isnan(scores)] = -np.inf
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    assert np.array_equal(values, np.take_along_axis(scores, order, axis=1))
    scored = np.isfinite(values)
    assert np.array_equal(items[scored], order[scored])
