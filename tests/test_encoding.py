"""Properties of the encodings of masked tables."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from recbole_prune.artifact import bit_packing
from recbole_prune.artifact.bit_packing import pack_bits, unpack_bits
from recbole_prune.artifact.encoding import EncodedTensor, encode
from recbole_prune.artifact.fields import Fields
from recbole_prune.artifact.value_types import VALUE_TYPES
from recbole_prune.errors import ArtifactError
from recbole_prune.masking.bound import information_bound_bits

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
SHAPES = arrays.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=12)


@st.composite
def masked_tables(draw: st.DrawFn, elements: st.SearchStrategy[float] = FLOATS) -> tuple[np.ndarray, np.ndarray]:
    """A float32 tensor of 1 to 3 dimensions and its mask; whole rows are often empty or full."""
    shape = draw(SHAPES)
    tensor = draw(arrays.arrays(np.float32, shape, elements=elements))
    live = draw(arrays.arrays(bool, shape))
    if shape[0]:
        kinds = draw(st.lists(st.sampled_from(["empty", "full", "mixed"]), min_size=shape[0], max_size=shape[0]))
        for row, kind in enumerate(kinds):
            if kind != "mixed":
                live[row] = kind == "full"
    return np.where(live, tensor, np.float32(0)), live


def through_json(encoded: EncodedTensor) -> EncodedTensor:
    """The tensor as a reader gets it."""
    return read_back(encoded.describe(), encoded.parts)


def read_back(description: dict[str, Any], parts: Mapping[str, np.ndarray]) -> EncodedTensor:
    return EncodedTensor.from_description(Fields(description, Path("ticket.json"), "tensors.table"), parts)


def random_mask(rows: int, columns: int, sparsity: float, seed: int = 0) -> np.ndarray:
    """A mask with exactly the wanted number of pruned entries, anywhere."""
    flat = np.ones(rows * columns, dtype=bool)
    flat[np.random.default_rng(seed).permutation(flat.size)[: round(sparsity * flat.size)]] = False
    return flat.reshape(rows, columns)


def random_table(mask: np.ndarray, seed: int = 1) -> np.ndarray:
    return np.where(mask, np.random.default_rng(seed).standard_normal(mask.shape), 0).astype(np.float32)


@settings(max_examples=300, deadline=None)
@given(masked_tables())
def test_fp32_round_trip_is_exact(case: tuple[np.ndarray, np.ndarray]) -> None:
    tensor, live = case
    encoded = through_json(encode(tensor, live))
    decoded = encoded.decode()
    assert decoded.dtype == np.float32 and decoded.shape == tensor.shape
    assert decoded.tobytes() == tensor.tobytes()
    assert np.array_equal(encoded.live(), live)
    assert encoded.kept == np.count_nonzero(live)


@settings(max_examples=200, deadline=None)
@given(masked_tables(), st.sampled_from(VALUE_TYPES))
def test_compressed_rows_hold_the_same_table(case: tuple[np.ndarray, np.ndarray], values: str) -> None:
    tensor, live = case
    tensor = np.clip(tensor, -6e4, 6e4)
    encoded = through_json(encode(tensor, live, values))
    indptr, columns, kept = encoded.csr()
    table = np.zeros((encoded.rows, encoded.columns), dtype=np.float32)
    for row in range(encoded.rows):
        span = slice(indptr[row], indptr[row + 1])
        table[row, columns[span]] = kept[span]
    assert np.array_equal(table.reshape(tensor.shape), encoded.decode())


@settings(max_examples=200, deadline=None)
@example((np.full((1, 1), 1e-45, dtype=np.float32), np.ones((1, 1), dtype=bool)), "int8")
@given(
    masked_tables(st.floats(-6e4, 6e4, width=32) | st.floats(-(2.0**-20), 2.0**-20, width=32)),
    st.sampled_from(["fp16", "int8"]),
)
def test_rounding_stays_in_its_bound_and_never_prunes(case: tuple[np.ndarray, np.ndarray], values: str) -> None:
    tensor, live = case
    encoded = through_json(encode(tensor, live, values))
    decoded = encoded.decode()
    assert np.array_equal(encoded.live(), live)
    assert np.all(np.abs(decoded.astype(float) - tensor) <= encoded.rounding_error())
    assert np.all(decoded[~live] == 0) and np.all(decoded[tensor == 0] == 0)
    if tensor.ndim == 1:
        assert np.array_equal(decoded, tensor)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 40), st.data())
def test_bit_packing_round_trip(width: int, data: st.DataObject) -> None:
    numbers = np.array(data.draw(st.lists(st.integers(0, 2**width - 1), max_size=50)), dtype=np.int64)
    packed = pack_bits(numbers, width)
    assert packed.nbytes == math.ceil(numbers.size * width / 8)
    assert np.array_equal(unpack_bits(packed, width, numbers.size), numbers)


def test_bit_packing_over_several_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = np.random.default_rng(0).integers(0, 2**7, 1000)
    whole = pack_bits(numbers, 7)
    monkeypatch.setattr(bit_packing, "_BLOCK", 64)
    assert np.array_equal(pack_bits(numbers, 7), whole)
    assert np.array_equal(unpack_bits(whole, 7, 1000), numbers)


@pytest.mark.parametrize("special", [-0.0, np.float32(1e-45), np.float32(3.4e38), np.inf, -np.inf])
def test_special_values_survive(special: float) -> None:
    live = random_mask(20, 16, 0.8)
    tensor = random_table(live)
    tensor[tuple(np.argwhere(live)[5])] = special
    assert encode(tensor, live).decode().tobytes() == tensor.tobytes()


def test_live_zeros_are_told_from_pruned_ones() -> None:
    live = np.ones((10, 8), dtype=bool)
    live[0, 0] = False
    tensor = np.zeros((10, 8), dtype=np.float32)
    encoded = encode(tensor, live)
    assert encoded.encoding != "dense" and np.array_equal(encoded.live(), live)
    tensor[live] = 1.0
    # one pruned entry of 80: 4 bytes are fewer than a bitmap, and the zero says where it is
    encoded = encode(tensor, live)
    assert encoded.encoding == "dense" and np.array_equal(encoded.live(), live)


@pytest.mark.parametrize(
    ("sparsity", "expected"), [(0.0, "dense"), (0.01, "dense"), (0.5, "bitmap"), (0.95, "rows"), (1.0, "rows")]
)
def test_the_smallest_encoding_is_chosen(sparsity: float, expected: str) -> None:
    mask = random_mask(500, 64, sparsity)
    encoded = encode(random_table(mask), mask)
    assert encoded.encoding == expected
    kept = 4 * encoded.kept
    assert encoded.nbytes <= min(kept + mask.size // 8, 4 * mask.size)


def test_sizes_by_hand() -> None:
    """Two rows of 64: 3 and 5 live entries. 1 bit is too few for counts 0 and 2 above 3, 6 bits a column."""
    live = np.zeros((2, 64), dtype=bool)
    live[0, [1, 8, 63]] = True
    live[1, [0, 2, 4, 6, 8]] = True
    encoded = encode(np.where(live, np.float32(2), np.float32(0)), live)
    assert (encoded.encoding, encoded.count_base, encoded.count_bits) == ("rows", 3, 2)
    assert {name: part.nbytes for name, part in encoded.parts.items()} == {"values": 32, "counts": 1, "columns": 6}
    assert encode(np.zeros((1000, 64), dtype=np.float32), np.zeros((1000, 64), dtype=bool)).nbytes == 0


@pytest.mark.parametrize("rows", [1000, 20000])
def test_ninety_percent_sparse_tables_are_near_the_information_bound(rows: int) -> None:
    mask = random_mask(rows, 64, 0.9)
    encoded = encode(random_table(mask), mask)
    bound = information_bound_bits(mask.size, encoded.kept, 32) / 8
    assert encoded.bound_bytes == bound
    assert 1.0 < encoded.nbytes / bound <= 1.10


@pytest.mark.parametrize(("values", "ratio"), [("fp16", 2), ("int8", 4)])
def test_rounded_values_take_their_bytes(values: str, ratio: int) -> None:
    mask = random_mask(300, 64, 0.9)
    encoded = encode(random_table(mask), mask, values)
    scales = 2 * 300 if values == "int8" else 0
    assert encoded.parts["values"].nbytes == 4 * encoded.kept // ratio
    assert sum(part.nbytes for name, part in encoded.parts.items() if name == "scales") == scales


def test_int8_does_not_clip_and_uses_the_range() -> None:
    tensor = np.array([[1.0, -0.5, 1e-3], [1000.0, 0.0, -1.0]], dtype=np.float32)
    codes = encode(tensor, values="int8").parts["values"].reshape(2, 3)
    assert abs(int(codes[0, 0])) >= 126 and abs(int(codes[1, 0])) >= 126 and codes[1, 1] == 0


def test_information_bound() -> None:
    assert information_bound_bits(0, 0, 32) == 0
    assert information_bound_bits(64, 0, 32) == 0
    assert information_bound_bits(64, 64, 32) == 64 * 32
    # H2(0.9) = 0.468996 bits
    assert information_bound_bits(1000, 100, 32) == pytest.approx(1000 * (0.4689956 + 3.2), rel=1e-6)


@pytest.mark.parametrize("dtype", [np.int64, np.float64, np.float16, bool])
def test_other_dtypes_are_exact(dtype: type) -> None:
    tensor = np.arange(12).reshape(3, 4).astype(dtype)
    for values in ["fp32"] if dtype is np.float64 else ["fp32", "int8"]:
        decoded = through_json(encode(tensor, values=values)).decode()
        assert decoded.dtype == tensor.dtype and np.array_equal(decoded, tensor)


def test_scalars_and_empty_tensors() -> None:
    for tensor in (np.array(7), np.zeros((0, 5), np.float32), np.zeros((5, 0), np.float32)):
        decoded = through_json(encode(tensor)).decode()
        assert decoded.shape == tensor.shape and decoded.dtype == tensor.dtype and np.array_equal(decoded, tensor)


def test_refusals() -> None:
    tensor = np.ones((2, 2), dtype=np.float32)
    with pytest.raises(ArtifactError, match="1 pruned entries are not 0"):
        encode(tensor, np.array([[True, True], [True, False]]))
    with pytest.raises(ArtifactError, match="70000, more than fp16 holds"):
        encode(tensor * 70000, values="fp16")
    with pytest.raises(ArtifactError, match="too large for int8"):
        encode(tensor * 1e30, values="int8")
    with pytest.raises(ArtifactError, match="not finite"):
        encode(tensor * np.float32(np.inf), values="int8")
    with pytest.raises(ValueError, match="fp32, fp16, int8, int4"):
        encode(tensor, values="int3")
    with pytest.raises(ValueError, match="mask of shape"):
        encode(tensor, np.ones(4, dtype=bool))


@pytest.mark.parametrize("encoding_name", ["bitmap", "rows"])
def test_contradicting_descriptions_are_refused(encoding_name: str) -> None:
    mask = random_mask(40, 64, 0.5 if encoding_name == "bitmap" else 0.95)
    encoded = encode(random_table(mask), mask)
    assert encoded.encoding == encoding_name
    description = encoded.describe()
    changes = [
        {"shape": [40, 32]},
        {"kept": encoded.kept + 1},
        {"encoding": "zip"},
        {"shape": [-40, 64]},
        {"dtype": "nonsense"},
        {"dtype": "object"},
    ]
    for change in changes:
        with pytest.raises(ArtifactError):
            read_back({**description, **change}, encoded.parts)
    for part in encoded.parts:
        with pytest.raises(ArtifactError):
            read_back(description, {**encoded.parts, part: encoded.parts[part][:-1]})
        rest = {name: value for name, value in encoded.parts.items() if name != part}
        with pytest.raises(ArtifactError):
            read_back(description, rest)
    if encoding_name == "rows":
        with pytest.raises(ArtifactError, match="positions"):
            read_back({**description, "count_base": 1}, encoded.parts).decode()


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.95])
def test_nan_is_refused_when_written_and_when_read(sparsity: float) -> None:
    live = random_mask(20, 16, sparsity)
    tensor = random_table(live)
    encoded = encode(tensor, live)
    place = int(np.flatnonzero(encoded.parts["values"])[3])
    encoded.parts["values"][place] = np.nan
    for read in (EncodedTensor.decode, EncodedTensor.csr):
        with pytest.raises(ArtifactError, match="ticket.json: tensors.table: a value is NaN"):
            read(through_json(encoded))
    tensor[tuple(np.argwhere(live)[5])] = np.nan
    for values in ("fp32", "int8"):
        with pytest.raises(ArtifactError, match="1 values are NaN"):
            encode(tensor, live, values)


@pytest.mark.parametrize("values", VALUE_TYPES)
def test_whole_rows_and_columns_take_a_bit_each(values: str) -> None:
    """What units leave is a small dense table; zeros in it stay live."""
    rows, columns = np.arange(40) % 4 != 1, np.arange(64) % 2 == 0
    mask = np.outer(rows, columns)
    table = np.where(mask, np.random.default_rng(1).normal(size=mask.shape), 0).astype(np.float32)
    table[0, 0] = 0.0
    encoded = encode(table, mask, values)
    assert encoded.encoding == "grid" and np.array_equal(encoded.live(), mask)
    assert encoded.parts["row_bits"].nbytes + encoded.parts["column_bits"].nbytes == 5 + 8
    assert np.all(np.abs(encoded.decode() - table) <= encoded.rounding_error())
    description = Fields({**encoded.describe(), "kept": encoded.kept - 32}, Path("ticket.json"))
    stored = encoded.parts["values"]
    wrong = {**encoded.parts, "values": stored[: -32 * stored.size // encoded.kept]}
    with pytest.raises(ArtifactError, match="do not describe"):
        EncodedTensor.from_description(description, wrong).decode()
