"""The mean of layers on a graph of users and items, beside that of the whole matrix."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_prune.sparse import bipartite
from recbole_prune.sparse.bipartite import Neighbours, UserScores, mean_of_layers
from recbole_prune.sparse.compiling import available


@pytest.mark.parametrize("pays", [False, pytest.param(True, marks=pytest.mark.skipif(not available(), reason="numba"))])
@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 99),
    users=st.integers(0, 9),
    items=st.integers(0, 30),
    layers=st.integers(1, 4),
    width=st.integers(0, 5),
)
def test_mean_of_layers_is_that_of_the_matrix(
    pays: bool, seed: int, users: int, items: int, layers: int, width: int
) -> None:
    random = np.random.default_rng(seed)
    adjacency = random.random((users, items)) < random.random()
    tables = [random.standard_normal((count, width)).astype(np.float32) for count in (users, items)]
    matrix = np.block([[np.zeros((users, users)), adjacency], [adjacency.T, np.zeros((items, items))]])
    factors = np.diag((matrix.sum(axis=1) + 1e-7) ** -0.5)
    layer = np.concatenate(tables).astype(np.float64)
    total = layer.copy()
    for _ in range(layers):
        layer = factors @ matrix @ factors @ layer
        total += layer
    neighbours = Neighbours(np.concatenate([[0], np.cumsum(adjacency.sum(axis=1))]), np.nonzero(adjacency)[1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bipartite, "pays", lambda seconds: pays)
        patch.setattr(bipartite, "_EDGES_AT_ONCE", 4)
        patch.setattr(bipartite, "_ROWS_AT_ONCE", 4)
        found = mean_of_layers(neighbours, tables[0], tables[1], layers)
    assert all(table.dtype == np.float32 for table in found)
    mean = total / (layers + 1)
    assert np.allclose(np.concatenate(found), mean, rtol=1e-5, atol=1e-6)
    of_user = UserScores(neighbours, tables[0], tables[1], layers)
    for user in range(users):
        assert np.allclose(of_user.of(user), mean[users:] @ mean[user], rtol=1e-12, atol=1e-12)


def test_few_wide_rows_take_no_more_memory_than_many_narrow_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bipartite, "pays", lambda seconds: False)
    users, width = 130, 5000
    pairs = np.meshgrid(np.arange(users), np.arange(users), indexing="ij")
    neighbours = Neighbours(np.arange(0, users * users + 1, users), pairs[1].ravel())
    tables = [np.ones((users, width), np.float32)] * 2
    tracemalloc.start()
    bipartite.mean_of_layers(neighbours, *tables, 1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * (40 * users * width + 32 * (users + users * users)) + (40 << 20)


def test_tables_in_the_order_of_columns_are_propagated_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(1)
    neighbours = Neighbours(np.array([0, 2, 3]), np.array([0, 2, 1]))
    users, items = (random.normal(size=(rows, 40)).astype(np.float32) for rows in (2, 3))
    for seconds in (False, True):
        monkeypatch.setattr(bipartite, "pays", lambda saved, answer=seconds: answer)
        expected = bipartite.mean_of_layers(neighbours, users, items, 2)
        found = bipartite.mean_of_layers(neighbours, np.asfortranarray(users), np.asfortranarray(items), 2)
        monkeypatch.setattr(bipartite, "_NUMBERS_AT_ONCE", 7 * bipartite._EDGES_AT_ONCE)
        in_blocks = bipartite.mean_of_layers(neighbours, users, items, 2)
        for one, other, third in zip(expected, found, in_blocks):
            np.testing.assert_allclose(one, other, rtol=1e-6)
            np.testing.assert_allclose(one, third, rtol=1e-6)
