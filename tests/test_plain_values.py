"""Values of datasets as JSON and arrays: they come back, others are refused, and nothing grows beyond its file."""

from __future__ import annotations

import json
import tracemalloc
from collections import defaultdict
from contextlib import suppress
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recbole.utils import FeatureSource, FeatureType
from safetensors.numpy import load, save

from recbole_prune.data.plain_values import Decoder, Encoder, NotPlain


def assert_same(one: Any, other: Any, place: str = "") -> None:
    """Equal in all of it: types, order, dtypes, indices."""
    text = isinstance(one, str) and isinstance(other, str)
    assert text or type(one) is type(other), f"{place}: {type(one)} and {type(other)}"
    if isinstance(one, dict):
        assert_same(list(one), list(other), f"{place} keys")
        for name, value in one.items():
            assert_same(value, other[name], f"{place}.{name}")
    elif isinstance(one, (list, tuple)) or (isinstance(one, np.ndarray) and one.dtype == object):
        assert len(one) == len(other), place
        for number, pair in enumerate(zip(one, other)):
            assert_same(*pair, f"{place}[{number}]")
    elif isinstance(one, np.ndarray):
        assert one.dtype == other.dtype, place
        np.testing.assert_array_equal(one, other, place)
    elif isinstance(one, pd.DataFrame):
        pd.testing.assert_frame_equal(one, other, check_exact=True, check_column_type="exact")
    else:
        assert one == other or (one != one and other != other), place


NUMBERS = st.sampled_from([np.int64, np.float64, np.float32, np.uint8, np.bool_])
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=4)
ARRAYS = st.builds(lambda kind, size: np.arange(size).astype(kind), NUMBERS, st.integers(0, 4))
TEXTS = st.lists(st.text(max_size=3).filter(lambda text: not text.endswith("\0")), min_size=1, max_size=4)
LEAVES = (
    SCALARS
    | ARRAYS
    | TEXTS.map(lambda texts: np.array(texts, dtype="U9"))
    | st.sampled_from([FeatureType.TOKEN_SEQ, FeatureSource.ITEM_ID])
    | TEXTS.map(lambda texts: {text: number for number, text in enumerate(texts)})
    | ARRAYS.map(lambda array: pd.DataFrame({"a": array, "b": array[::-1]}, index=np.arange(len(array)) * 2))
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3),
    max_leaves=8,
)


def there_and_back(value: object) -> Any:
    encoder = Encoder()
    node = json.loads(json.dumps(encoder.encode(value)))
    return Decoder(load(save(encoder.arrays)) if encoder.arrays else {}).decode(node)


@settings(max_examples=150, deadline=None)
@given(value=VALUES)
def test_values_come_back(value: Any) -> None:
    assert_same(value, there_and_back(value))


def test_sequences_of_any_length_and_what_stands_twice_come_back() -> None:
    ragged = np.empty(3, dtype=object)
    for number, length in enumerate((2, 0, 3)):
        ragged[number] = np.arange(length)
    shared = {"a": 1}
    found = there_and_back([{"rows": ragged, "even": np.array([[1, 2], [3, 4]])}, shared, shared])
    assert_same(found[0]["rows"], ragged)
    assert found[1] is found[2]


OTHERS = (
    object(), len, (1, 2), {3}, np.int64(3), torch.zeros(2), np.array([object()]), np.array(["a"], object),
    np.array([], object), np.array(["2024"], "M8[D]"), {1: [object()]}, {(1, 2): 3}, defaultdict(list),
)  # fmt: skip


@pytest.mark.parametrize("value", OTHERS, ids=lambda value: type(value).__name__)
def test_other_values_are_refused(value: object) -> None:
    with pytest.raises(NotPlain):
        Encoder().encode(value)


KINDS = "list dict counts ids array unicode ragged frame again enum".split()
NODES = st.recursive(
    st.none() | st.integers(-2, 3) | st.sampled_from([*"0123x", 1 << 40]),
    lambda inner: st.lists(inner, max_size=4) | st.builds(lambda kind, parts: [kind, *parts, 7], st.sampled_from(KINDS),
                                                          st.lists(inner, max_size=3)),
    max_leaves=12,
)  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(node=NODES)
def test_any_node_is_a_value_or_refused(node: Any) -> None:
    arrays = {"0": np.arange(4), "1": np.array([1, 2, 1]), "2": np.zeros((10**9, 0)), "3": np.array([-3, 3, 4])}
    tracemalloc.start()
    with suppress(NotPlain):
        Decoder(arrays).decode(node)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


ONE = np.arange(4)
EMPTY = np.zeros(0, np.uint8)
GROWING = {
    "texts of no bytes, but wide": (["unicode", ["a", "b"], 1 << 40, 0], {"a": EMPTY, "b": np.zeros(1000, np.int64)}),
    "a width that numpy chooses": (["unicode", ["a", "b"], 0, 0], {"a": np.full(9, 65, np.uint8), "b": np.array([9])}),
    "texts that overlap": (
        ["ids", ["a", "b"], "c", 0],
        {"a": np.full(9, 65, np.uint8), "b": np.array([9, -9, 9]), "c": ONE},
    ),
    "sequences that overlap": (["ragged", "a", "b", 0], {"a": ONE, "b": np.array([4, -4, 4])}),
    "more than there is": (["ragged", "a", "b", 0], {"a": ONE, "b": np.array([4, 1])}),
    "a scalar as a column": (["frame", 1 << 40, [["a", "x"]], None, 0], {}),
    "a dict as a column": (["frame", 1 << 40, [["a", ["dict", [], 1]]], None, 0], {}),
    "a column twice": (["frame", 4, [["a", ["array", "a", 1]], ["b", ["again", 1]]], None, 2], {"a": ONE}),
    "rows without columns": (["frame", 1 << 40, [], None, 0], {}),
    "an array twice": (["list", [["array", "a", 1], ["array", "a", 2]], 3], {"a": ONE}),
    "an array of no bytes": (["array", "a", 1], {"a": np.zeros((1 << 40, 0))}),
    "a key that is a list": (["dict", [[["list", [], 1], 1]], 0], {}),
    "keys of counts": (["counts", ["list", [["list", [1, 2], 1]], 2], 0], {}),
}


@pytest.mark.parametrize(("node", "arrays"), GROWING.values(), ids=GROWING)
def test_nothing_grows_beyond_its_file(node: Any, arrays: dict[str, np.ndarray]) -> None:
    with pytest.raises(NotPlain):
        Decoder(dict(arrays)).decode(node)


def test_what_would_be_refused_is_not_written() -> None:
    with pytest.raises(NotPlain, match="few of them so long"):
        Encoder().encode(np.array(["x" * 20_000, *"abcdefgh" * 1000]))
