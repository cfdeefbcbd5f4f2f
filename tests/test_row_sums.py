"""Sums of weighted rows in registers, and the tables that products are written to again and again."""

from __future__ import annotations

import gc

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recbole_prune.sparse.compiling import available
from recbole_prune.sparse.workspace import Workspace

WIDTHS = [1, 2, 3, 4, 5, 7, 15, 16, 17, 31, 32, 33, 50, 63, 64, 65, 100, 128, 130]


@pytest.mark.skipif(not available(), reason="no numba")
@given(
    width=st.sampled_from(WIDTHS),
    kind=st.sampled_from(["float32", "float64"]),
    counts=st.lists(st.integers(0, 40), min_size=1, max_size=6),
    seed=st.integers(0, 99),
)
def test_sums_are_those_of_a_product_at_every_width(width: int, kind: str, counts: list[int], seed: int) -> None:
    from recbole_prune.sparse.graph_kernels import multiply

    random = np.random.default_rng(seed)
    pointers = np.cumsum([0, *counts]).astype(np.uint32)
    columns = random.integers(0, 9, pointers[-1]).astype(np.uint32)
    weights, table = random.normal(size=len(columns)).astype(kind), random.normal(size=(9, width)).astype(kind)
    own, around = random.normal(size=(len(counts), width)).astype(kind), np.full((len(counts) + 2, width), 7, kind)
    number = weights.dtype.type
    multiply(pointers, columns, weights, own, number(0.5), table, number(2), around[1:-1], 0, len(counts))
    matrix = np.zeros((len(counts), 9), kind)
    np.add.at(matrix, (np.repeat(np.arange(len(counts)), counts), columns), weights)
    np.testing.assert_allclose(around[1:-1], 0.5 * own + 2 * (matrix @ table), rtol=1e-4, atol=1e-4)
    assert (around[[0, -1]] == 7).all(), "nothing is written beside the rows"


@pytest.mark.skipif(not available(), reason="no numba")
@given(counts=st.lists(st.integers(0, 5), min_size=1, max_size=6), width=st.integers(1, 9), seed=st.integers(0, 99))
def test_some_rows_and_the_transpose_are_those_of_the_matrix(counts: list[int], width: int, seed: int) -> None:
    from scipy.sparse import csr_matrix

    from recbole_prune.sparse.graph_kernels import some_rows, transpose

    random = np.random.default_rng(seed)
    pointers = np.cumsum([0, *counts]).astype(np.uint32)
    columns = random.integers(0, width, pointers[-1]).astype(np.uint32)
    weights, rows = random.normal(size=len(columns)), random.integers(0, len(counts), 8)
    matrix = csr_matrix((weights, columns.astype(int), pointers.astype(int)), (len(counts), width)).toarray()
    picked = some_rows(pointers, columns, weights, rows)
    turned = transpose(*picked, width)
    for (starts, held, values), expected in ((picked, matrix[rows]), (turned, matrix[rows].T)):
        found = csr_matrix((values, held.astype(int), starts.astype(int)), expected.shape).toarray()
        np.testing.assert_allclose(found, expected)


@pytest.mark.skipif(not available(), reason="no numba")
def test_arrays_that_the_instructions_are_not_written_for_are_refused() -> None:
    from numba.core.errors import TypingError

    from recbole_prune.sparse.graph_kernels import multiply

    rows, columns = np.array([0, 1], np.uint32), np.array([0], np.uint32)
    weights, table, own = np.ones(1, np.float32), np.ones((2, 3), np.float32), np.empty((0, 3), np.float32)
    one = np.float32(1)
    for wrong in ((columns.astype(np.int32), weights, table), (columns, weights.astype(float), table),
                  (columns, weights, np.asfortranarray(table))):  # fmt: skip
        with pytest.raises(TypingError, match="contiguous arrays of one type"):
            multiply(rows, *wrong[:2], own, one, wrong[2], one, np.empty((1, 3), np.float32), 0, 1)


def test_a_workspace_lends_a_table_again_once_nobody_has_it() -> None:
    workspace, like = Workspace(), torch.zeros(0)
    first = workspace.table((3, 2), like)
    place = first.data_ptr()
    second = workspace.table((3, 2), like)
    assert second.data_ptr() != place and second.shape == (3, 2)
    del first
    gc.collect()
    third = workspace.table((3, 2), like)
    assert third.data_ptr() == place
    del third
    gc.collect()
    assert workspace.table((2, 3), like).shape == (2, 3)
    assert workspace.table((3, 2), torch.zeros(0, dtype=torch.float64)).dtype is torch.float64


def test_a_workspace_keeps_no_more_than_is_used_at_once() -> None:
    workspace = Workspace()
    for rows in range(1, 50):
        workspace.table((rows, 2), torch.zeros(0))
    assert len(workspace._lent) == 1
    used = [workspace.table((2, 2), torch.zeros(0)) for _ in range(10)]
    assert len({table.data_ptr() for table in used}) == 10
    assert len(workspace._lent) == 3
