"""Top-k over inverted lists and over matrix products is the full sort: ties, seen items, empty rows included."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from recbole_prune.sparse import best_products, dense_top_k, inverted_lists
from recbole_prune.sparse.best_products import ProductSearch, Wanted
from recbole_prune.sparse.compiling import available
from recbole_prune.sparse.dense_top_k import DenseItems, by_matrix_products
from recbole_prune.sparse.inverted_lists import InvertedLists, Rows, TopK

needs_numba = pytest.mark.skipif(not available(), reason="numba is not installed: there is no scan to test")
SCALES = st.sampled_from([1.0, -2.5, 1e-3])


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
@given(seed=st.integers(0, 100_000), k=st.integers(1, 30), whole=st.booleans(), scale=SCALES)
def test_dense_tables_equal_the_full_sort(compiled: bool, seed: int, k: int, whole: bool, scale: float) -> None:
    users, items, seen = case(seed, whole)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dense_top_k, "pays", lambda seconds: compiled)
        patch.setattr(dense_top_k, "_USERS_TO_SEARCH", 0)
        found = DenseItems(items).top_k(users, k, *pointers_of(seen), scale=scale)
    assert_equal(found, full_sort(users, items, k, seen, scale))


@needs_numba
@settings(max_examples=150)
@given(
    seed=st.integers(0, 100_000),
    k=st.integers(1, 30),
    whole=st.booleans(),
    scale=SCALES,
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
    assert_equal(by_matrix_products(users, items, 50, *pointers_of(nothing)), expected)
    assert_equal(search(users, items, 50, nothing), expected)


def search(users: NDArray, items: NDArray, k: int, seen: list[NDArray], scale: float = 1.0, threads: int = 1) -> TopK:
    pointers, ids = pointers_of(seen)
    return ProductSearch(items).top_k(Wanted(users, pointers[:-1], pointers[1:], ids, scale), k, threads)


@needs_numba
@settings(max_examples=100)
@given(
    seed=st.integers(0, 100_000),
    k=st.integers(1, 700),
    kind=st.sampled_from(["decaying", "flat", "whole", "equal", "signs", "one length"]),
    size=st.sampled_from([1e-42, 1e-30, 1e-20, 1.0, 1e15]),
    scale=SCALES,
    tried=st.sampled_from([1, 1024]),
)
def test_the_search_equals_the_full_sort(seed: int, k: int, kind: str, size: float, scale: float, tried: int) -> None:
    """Several blocks and depths, many vectors and one: spectra that help bounds and that do not, ties, zeros, sizes."""
    random = np.random.default_rng(seed)
    width, count = int(random.integers(1, 41)), int(random.choice([2, 255, 257, 600, 1500]))
    users, items = (random.standard_normal((n, width)) for n in (int(random.integers(1, 70)), count))
    if kind == "decaying":
        users, items = (table * 0.7 ** np.arange(width) for table in (users, items))
        items *= random.lognormal(0, 1, (count, 1))
    if kind == "whole":
        users, items = np.round(users), np.round(items)
    if kind == "equal":
        items[:] = items[-1] * random.integers(0, 3, (count, 1))
    if kind == "signs":
        users, items = np.sign(users), np.sign(items)
    if kind == "one length":
        items /= np.linalg.norm(items, axis=1)[:, None]
    users[::5] = 0
    items[random.random(count) < 0.1] = 0
    users, items = (users * size).astype(np.float32), items.astype(np.float32)
    seen = [np.flatnonzero(random.random(count) < random.choice([0, 0.1, 0.95])) for _ in users]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(best_products, "_MANY_VECTORS", tried)
        patch.setattr(best_products, "_VECTORS_AT_ONCE", 33)
        found = search(users, items, k, seen, scale, threads=2)
    assert_equal(found, full_sort(users, items, k, seen, scale))
    if size == 1.0:
        assert_equal(
            by_matrix_products(users, items, k, *pointers_of(seen), scale), full_sort(users, items, k, seen, scale)
        )


@needs_numba
def test_tables_that_a_search_cannot_bound_are_multiplied(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is infinite or no number is ranked as without numba."""
    monkeypatch.setattr(dense_top_k, "pays", lambda seconds: True)
    monkeypatch.setattr(dense_top_k, "_USERS_TO_SEARCH", 0)
    users, items, seen = case(5, False)
    for value in (np.nan, np.inf, 3e38):
        users[0, 0], items[1:, 0] = 3e38, value
        with np.errstate(all="ignore"):
            found = DenseItems(items).top_k(users, 3, *pointers_of(seen))
            expected = by_matrix_products(users, items, 3, *pointers_of(seen))
        assert_equal(found, (expected.items, expected.scores, expected.tied))


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
