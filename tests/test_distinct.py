"""Distinct ids without sorting."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from recbole_prune.sparse.distinct import distinct


@given(st.lists(st.integers(0, 8), max_size=12), st.booleans())
def test_as_sorting_gives_them(ids: list[int], square: bool) -> None:
    asked = torch.tensor(ids, dtype=torch.long)
    asked = torch.stack([asked, asked]) if square else asked
    found, places = distinct(asked, 9)
    expected = asked.unique(return_inverse=True)
    assert torch.equal(found, expected[0]) and torch.equal(places, expected[1])
