"""Four bits a value: the computed oracles of the method file (B5), bounds, bytes, refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_encoding import masked_tables, random_mask, random_table, read_back, through_json

from recbole_prune.artifact import int4
from recbole_prune.artifact.encoding import EncodedTensor, encode
from recbole_prune.artifact.int4 import CLIPS
from recbole_prune.artifact.value_types import VALUE_TYPES
from recbole_prune.config import schema
from recbole_prune.errors import ArtifactError
from recbole_prune.masking.bound import information_bound_bits

SHORT = [0.9, -0.3, 0.25, -0.2, 0.15, 0.1, -0.05, 0.02]
LONG = [0.5, -0.5, 0.4, -0.4, 0.3, -0.3, 0.2, -0.2, 0.1, -0.1, 0.05, -0.05, 0.02, -0.02, 0.01, 1]
SHORT_CODES = [15, 0, 7, 1, 6, 5, 3, 4]
LONG_CODES = [10, 0, 9, 1, 8, 2, 7, 3, 6, 4, 5, 4, 5, 5, 5, 15]


def row(values: list[float], clip: str) -> EncodedTensor:
    return through_json(encode(np.array([values], np.float32), values="int4", clip=clip))


def squared_error(encoded: EncodedTensor, values: list[float]) -> float:
    return float(((encoded.decode().astype(np.float64) - np.array(values, np.float32)) ** 2).sum())


def codes_of(encoded: EncodedTensor) -> list[int]:
    counts = np.count_nonzero(encoded.live(), axis=1)
    return int4.unpack(encoded.parts["values"], counts[counts > 0]).tolist()


def test_the_oracle_of_packing() -> None:
    """Codes 15, 0, 7, 1, 6: the even place low, a row ends at a whole byte."""
    encoded = encode(np.array([[15, 0, 7, 1, 6], [0, 0, 0, 0, 15]], np.float32), values="int4", clip="none")
    assert encoded.parts["values"].tolist() == [0x0F, 0x17, 0x06, 0x00, 0x00, 0x0F]
    assert encoded.parts["lows"].tolist() == [0, 0] and encoded.parts["scales"].tolist() == [1, 1]
    assert codes_of(encoded) == [15, 0, 7, 1, 6, 0, 0, 0, 0, 15]


@pytest.mark.parametrize(
    ("values", "clip", "low", "scale", "codes", "error"),
    [
        (SHORT, "none", -0.300048828125, 0.08001708984375, SHORT_CODES, 0.00150591),
        (SHORT, "search", -0.2939453125, 0.07879638671875, SHORT_CODES, 0.00135832),
        (LONG, "none", None, None, None, 0.00587602),
        (LONG, "search", -0.492431640625, 0.0994873046875, LONG_CODES, 0.00515771),
    ],
)
def test_the_oracles_of_ranges(
    values: list[float], clip: str, low: float | None, scale: float | None, codes: list[int] | None, error: float
) -> None:
    encoded = row(values, clip)
    assert squared_error(encoded, values) == pytest.approx(error, abs=5e-9)
    if low is not None:
        assert (encoded.parts["lows"].tolist(), encoded.parts["scales"].tolist()) == ([low], [scale])
        assert codes_of(encoded) == codes


@pytest.mark.parametrize("values", [SHORT, LONG])
def test_torch_finds_the_same_range(values: list[float]) -> None:
    """FBGEMM's rule, which the method names, in torch's own implementation."""
    high, low = torch.choose_qparams_optimized(torch.tensor(values), len(values), 200, 0.16, 4)
    parts = row(values, "search").parts
    assert float(parts["lows"][0]) == pytest.approx(float(low), abs=2e-4)
    assert 15 * float(parts["scales"][0]) == pytest.approx(float(high) - float(low), abs=2e-3)


def slow_search(values: np.ndarray) -> tuple[np.float16, np.float16]:
    """The rule of the method file for one row, in plain Python."""

    def rounded(low: float, high: float) -> tuple[np.float16, np.float16]:
        lowest = np.float16(low)
        return lowest, np.float16(max((high - float(lowest)) / 15, 0))

    def error(low: float, high: float) -> float:
        lowest, scale = (float(part) for part in rounded(low, high))
        total = 0.0
        for value in values.tolist():
            code = min(max(round((value - lowest) / scale), 0), 15) if scale else 0
            total += (lowest + code * scale - value) ** 2
        return total

    low, high = float(values.min()), float(values.max())
    step = (high - low) / 200
    ranges = [(low, high)]
    for _ in range(32):
        if error(low + step, high) < error(low, high - step):
            low += step
        else:
            high -= step
        ranges.append((low, high))
    return rounded(*min(ranges, key=lambda ends: error(*ends)))


def test_the_search_over_all_rows_is_the_search_of_each() -> None:
    source = np.random.default_rng(3)
    live = source.random((200, 24)) < source.random((200, 1))
    table = np.where(live, source.standard_normal(live.shape) * source.lognormal(0, 2, (200, 1)), 0).astype(np.float32)
    encoded = encode(table, live, "int4")
    found = list(zip(encoded.parts["lows"], encoded.parts["scales"]))
    expected = [slow_search(values[mask].astype(np.float64)) for values, mask in zip(table, live) if mask.any()]
    same = sum(pair == other for pair, other in zip(found, expected))
    assert len(found) == len(expected) and same >= len(expected) - 2, "sums in another order may part equal errors"


def test_the_search_saves_what_the_method_file_says() -> None:
    """Relative squared error of normal rows of 64: 0.0079 over the range, 0.0066 searched; rows of two are exact."""
    table = np.random.default_rng(0).standard_normal((4000, 64)).astype(np.float32)
    errors = {
        clip: ((encode(table, values="int4", clip=clip).decode() - table) ** 2).sum() / (table**2).sum()
        for clip in CLIPS
    }
    assert errors["none"] == pytest.approx(0.0079, abs=2e-4) and errors["search"] == pytest.approx(0.0066, abs=1e-4)
    pairs = encode(table[:, :2], values="int4").decode()
    assert np.abs(pairs - table[:, :2]).max() <= np.abs(table[:, :2]).max() * 2.0**-10


WIDE = st.floats(-6e4, 6e4, width=32) | st.floats(-(2.0**-20), 2.0**-20, width=32) | st.just(1000.25)


@settings(max_examples=200, deadline=None)
@example((np.full((1, 1), 1e-45, np.float32), np.ones((1, 1), bool)), "search")
@example((np.array([[1000.25, 1000.3]], np.float32), np.ones((1, 2), bool)), "search")
@example((np.array([[-65504, 65504, 0]], np.float32), np.ones((1, 3), bool)), "search")
@given(masked_tables(WIDE), st.sampled_from(CLIPS))
def test_rounding_stays_in_its_bound_and_never_prunes(case: tuple[np.ndarray, np.ndarray], clip: str) -> None:
    tensor, live = case
    encoded = through_json(encode(tensor, live, "int4", clip))
    decoded = encoded.decode()
    assert decoded.dtype == np.float32 and np.array_equal(encoded.live(), live)
    assert np.all(np.abs(decoded.astype(float) - tensor) <= encoded.rounding_error()) and not decoded[~live].any()
    if tensor.ndim == 1:
        assert np.array_equal(decoded, tensor)


@settings(max_examples=100, deadline=None)
@given(masked_tables(st.floats(-100, 100, width=32)))
def test_bytes_are_those_of_the_formula(case: tuple[np.ndarray, np.ndarray]) -> None:
    tensor, live = case
    encoded = encode(tensor, live, "int4", "none")
    if tensor.ndim == 1:
        assert encoded.parts["values"].dtype == np.float32
        return
    counts = np.count_nonzero(live.reshape(encoded.rows, encoded.columns), axis=1)
    sizes = {name: part.nbytes for name, part in encoded.parts.items()}
    assert sizes["values"] == sum(-(-count // 2) for count in counts.tolist())
    assert sizes["lows"] == sizes["scales"] == 2 * np.count_nonzero(counts)
    assert encoded.bound_bytes == information_bound_bits(live.size, int(live.sum()), 4) / 8
    assert encoded.describe()["values"] == "int4" and encoded.format_version == 2


def test_a_dense_table_of_64_columns_takes_36_bytes_a_row() -> None:
    encoded = encode(np.random.default_rng(0).standard_normal((500, 64)).astype(np.float32), values="int4")
    assert (encoded.encoding, encoded.nbytes, encoded.nbytes / encoded.dense_nbytes) == ("dense", 500 * 36, 0.140625)
    # Gowalla's two tables, in the method file: 70,839 rows
    assert 70_839 * 36 == 2_550_204


@pytest.mark.parametrize("sparsity", [0.0, 0.02, 0.5, 0.95, 1.0])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_encoding_holds_the_same_rows(sparsity: float, dtype: type) -> None:
    """What a row is rounded to does not depend on where its live entries stand."""
    live = random_mask(120, 64, sparsity)
    table = random_table(live).astype(dtype)
    encoded = through_json(encode(table, live, "int4"))
    assert encoded.encoding == {0.0: "dense", 0.02: "bitmap", 0.5: "bitmap"}.get(sparsity, "rows")
    decoded = encoded.decode()
    assert decoded.dtype == dtype
    for values, mask, found in zip(table, live, decoded):
        if mask.any():
            alone = encode(values[mask][None], values="int4").decode()[0]
            assert np.array_equal(found[mask], alone)


def test_the_settings_offer_what_there_is() -> None:
    keys = schema.known_keys()
    assert keys["export_values"].choices == list(VALUE_TYPES) and keys["export_int4_clip"].choices == list(CLIPS)


def test_equal_values_have_no_step() -> None:
    encoded = encode(np.full((3, 4), 0.25, np.float32), values="int4")
    assert encoded.parts["scales"].tolist() == [0, 0, 0] and set(codes_of(encoded)) == {0}
    assert np.array_equal(encoded.decode(), np.full((3, 4), 0.25, np.float32))
    assert not encode(np.zeros((3, 4), np.float32), values="int4").decode().any()


def test_what_does_not_fit_is_refused() -> None:
    for value, words in (
        (np.inf, "not finite, so it cannot be stored as int4"),
        (70000, "70000, more than int4 holds"),
    ):
        with pytest.raises(ArtifactError, match=words):
            encode(np.full((2, 2), value, np.float32), values="int4")
    with pytest.raises(ArtifactError, match="4 values are NaN"):
        encode(np.full((2, 2), np.nan, np.float32), values="int4")


def test_forged_parts_are_refused() -> None:
    live = random_mask(40, 64, 0.5)
    live[0], live[1, :3], live[1, 3:] = False, True, False
    encoded = encode(random_table(live), live, "int4")
    for name in ("lows", "scales"):
        with pytest.raises(ArtifactError, match=rf"38 {name} for 39 rows with live entries"):
            read_back(encoded.describe(), {**encoded.parts, name: encoded.parts[name][:-1]}).decode()
        wrong = {**encoded.parts, name: encoded.parts[name].astype(np.float32)}
        with pytest.raises(ArtifactError, match=f"{name} must be float16, but is float32"):
            read_back(encoded.describe(), wrong)
    rest = {name: part for name, part in encoded.parts.items() if name != "scales"}
    with pytest.raises(ArtifactError, match="lows without scales"):
        read_back(encoded.describe(), rest)
    stored = encoded.parts["values"]
    for size in (encoded.kept // 2 - 1, (encoded.kept + 40) // 2 + 1):
        with pytest.raises(ArtifactError, match="values has .* elements where .* to .* are needed"):
            read_back(encoded.describe(), {**encoded.parts, "values": np.resize(stored, size)})
    with pytest.raises(ArtifactError, match=rf"values has {stored.size + 1} elements where {stored.size} are needed"):
        read_back(encoded.describe(), {**encoded.parts, "values": np.resize(stored, stored.size + 1)}).csr()
    dense = encode(random_table(np.ones((4, 6), bool)), values="int4")
    with pytest.raises(ArtifactError, match="int4 has no zeros"):
        read_back({**dense.describe(), "kept": 20}, dense.parts)
    flat = {**dense.describe(), "shape": [24]}
    with pytest.raises(ArtifactError, match=f"{Path('ticket.json')}: tensors.table: .* must be unscaled"):
        read_back(flat, dense.parts)


@pytest.mark.parametrize("special", [np.nan, np.inf])
@pytest.mark.filterwarnings("error")
def test_forged_scales_that_are_no_numbers_are_refused(special: float) -> None:
    encoded = encode(random_table(np.ones((4, 6), bool)), values="int4")
    encoded.parts["scales"][1] = special
    encoded.parts["values"][3] = 0x0F
    with pytest.raises(ArtifactError, match="a value is NaN"):
        through_json(encoded).decode()
