"""Lists of products in one loop are those of the whole matrix: ties, what is left out, scores of any sign and size."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from recbole_prune.data.used_ids import UsedIds
from recbole_prune.errors import ConfigError
from recbole_prune.sparse.best_products import ranks_of_products
from recbole_prune.sparse.compiling import available
from recbole_prune.teachers.ranked_lists import Ranked, best_of_products

needs_numba = pytest.mark.skipif(not available(), reason="numba is not installed: there is no loop")
ROWS, COLUMNS = 40, 700


def of_matrix(vectors: torch.Tensor, table: torch.Tensor, excluded: UsedIds, length: int, ids: np.ndarray) -> Ranked:
    scores = vectors @ table.T
    scores[:, 0] = -torch.inf
    for row in range(len(vectors)):
        scores[row, list(excluded[row])] = -torch.inf
    best, order = scores.sort(dim=1, descending=True, stable=True)
    found = np.full((ROWS, length), -1, np.int32), np.zeros((ROWS, length), np.float32)
    there = (best > -torch.inf)[ids, :length].numpy()
    width = there.shape[1]
    found[0][ids, :width] = np.where(there, order[ids, :length].numpy(), -1)
    found[1][ids, :width] = np.where(there, best[ids, :length].numpy(), 0)
    return found


def numbers(kind: str, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Small integers, whose products are exact in any order of sums, so that there are many ties."""
    draws = torch.Generator().manual_seed(width)
    vectors, table = (torch.randint(-3, 4, (count, width), generator=draws).float() for count in (ROWS, COLUMNS))
    if kind == "negative":
        vectors, table = vectors.abs() + 1, -table.abs() - 1
    if kind == "nothing":
        vectors[5:9], table[100:] = 0, -0.0
    table *= torch.randint(1, 9, (COLUMNS, 1), generator=draws)
    return vectors, table


@needs_numba
@pytest.mark.parametrize("kind", ["any", "negative", "nothing"])
@pytest.mark.parametrize(("width", "length"), [(5, 10), (8, 300), (3, 690)])
def test_lists_are_those_of_the_matrix(kind: str, width: int, length: int) -> None:
    stream = np.random.default_rng(1)
    vectors, table = numbers(kind, width)
    most = np.full(690, 7), 1 + np.arange(690)  # of row 7 fewer are left than are asked for
    pairs = np.append(stream.integers(0, ROWS, 900), most[0]), np.append(stream.integers(0, COLUMNS, 900), most[1])
    excluded = UsedIds(*pairs, ROWS, COLUMNS)
    ids = np.delete(np.arange(1, ROWS), 3)
    found = best_of_products(vectors, table, excluded, length, "it", ids)
    for one, other in zip(found, of_matrix(vectors, table, excluded, length, ids)):
        assert one.dtype == other.dtype and np.array_equal(one, other)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_product_that_is_no_number_is_named(value: float) -> None:
    vectors, table = numbers("any", 4)
    vectors[11, 2] = value
    nothing = UsedIds(np.empty(0, np.int64), np.empty(0, np.int64), ROWS, COLUMNS)
    with pytest.raises(ConfigError, match="the first of internal id 11"):
        best_of_products(vectors, table, nothing, 5, "it", np.arange(1, ROWS))


@needs_numba
@pytest.mark.parametrize("asked", [1, 7, 8, 300])
def test_ranks_are_those_among_all_columns(asked: int) -> None:
    vectors, table = numbers("any", 5)
    stream = np.random.default_rng(2)
    ids = np.stack([stream.permutation(np.arange(1, COLUMNS))[:asked] for _ in range(ROWS)]).astype(np.int32)
    ids[4, asked // 2 :] = ids[6] = -1
    scores = (vectors @ table.T).numpy()
    above = (scores[:, None, 1:] > np.take_along_axis(scores, ids.clip(min=0), 1)[:, :, None]).sum(2)
    expected = np.where(ids < 0, 0, above)
    expected[[0, 9]] = 0
    rows = np.delete(np.arange(1, ROWS), 8)
    assert np.array_equal(ranks_of_products(vectors.numpy(), rows, table.numpy(), ids), expected)


@needs_numba
@pytest.mark.parametrize("far", [1.0, 1e30, np.inf])
def test_ranks_of_scores_close_together_and_one_far_away(far: float) -> None:
    """The place of a far score in the range of those asked for is beyond all whole numbers."""
    table = np.array([[5.0], [0.0], [1e-20], [far], [-far], [2e-20]], np.float32)
    asked = np.array([[0, 0, 0], [1, 2, 5]], np.int32)
    found = ranks_of_products(np.ones((2, 1), np.float32), np.array([1]), table, asked)
    assert found.tolist() == [[0, 0, 0], [3, 2, 1]]
