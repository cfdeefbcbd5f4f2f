"""The entries of a vector that are not 0."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from recbole_prune.sparse import entries
from recbole_prune.sparse.compiling import available
from recbole_prune.sparse.entries import nonzero_entries

NUMBERS = st.sampled_from([0.0, 0.0, 0.0, -0.0, 1.0, -2.5, 1e-45, float("inf"), float("nan")])


@pytest.mark.parametrize(
    "compiled", [False, pytest.param(True, marks=pytest.mark.skipif(not available(), reason="numba"))]
)
@settings(max_examples=60, deadline=None)
@given(vector=arrays.arrays(np.float32, st.integers(0, 70), elements=NUMBERS))
def test_they_are_those_that_numpy_finds(compiled: bool, vector: np.ndarray) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(entries, "available", lambda: compiled)
        positions, values = nonzero_entries(torch.from_numpy(vector))
    expected = np.flatnonzero(vector)
    assert positions.dtype == torch.int32 and values.dtype == torch.float32
    np.testing.assert_array_equal(positions.numpy(), expected)
    np.testing.assert_array_equal(values.numpy(), vector[expected])
