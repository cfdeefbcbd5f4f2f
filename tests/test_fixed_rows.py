"""Rows of equally many live entries, stored without counts: bytes of the method file (B4), round trips, forgeries."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_artifact import write
from test_encoding import random_table, read_back, through_json

from recbole_prune.artifact import read_artifact
from recbole_prune.artifact.encoding import EncodedTensor, encode
from recbole_prune.artifact.files import TENSORS, TICKET
from recbole_prune.artifact.value_types import VALUE_TYPES
from recbole_prune.errors import ArtifactError


def fixed_mask(rows: int, columns: int, each: int, whole: tuple[int, ...] = (0,), seed: int = 0) -> np.ndarray:
    """Every row has ``each`` live entries in random columns, those of ``whole`` have all."""
    source = np.random.default_rng(seed)
    mask = source.permuted(np.broadcast_to(np.arange(columns) < each, (rows, columns)), axis=1)
    mask[list(whole)] = True
    return mask


def positions(encoded: EncodedTensor) -> int:
    return encoded.nbytes - sum(
        encoded.parts[name].nbytes for name in {"values", "scales", "lows"} & set(encoded.parts)
    )


@pytest.mark.parametrize(("each", "rows", "fixed"), [(4, 153_728, 122_947), (8, 276_671, 245_890)])
def test_the_oracle_of_bytes(each: int, rows: int, fixed: int) -> None:
    """40,981 counted rows of 64 and the padding row: what ``rows`` takes for positions, and what ``fixed`` does."""
    mask = fixed_mask(40_982, 64, each)
    encoded = encode(random_table(mask), mask)
    assert (encoded.encoding, positions(encoded), encoded.count_base) == ("fixed", fixed, each)
    # counts of 64 - each on top of each are as wide in every row
    assert -(-40_982 * (64 - each).bit_length() // 8) + -(-(40_981 * each + 64) * 6 // 8) == rows
    assert encoded.parts["values"].nbytes == 4 * (40_981 * each + 64)


@pytest.mark.parametrize(("each", "expected"), [(10, "fixed"), (11, "bitmap")])
def test_a_bitmap_is_smaller_from_eleven_of_64_on(each: int, expected: str) -> None:
    mask = fixed_mask(40_982, 64, each)
    encoded = encode(random_table(mask), mask)
    assert encoded.encoding == expected and positions(encoded) <= 40_982 * 8 == 327_856


@pytest.mark.parametrize(("each", "expected"), [(13, 4_250_340), (7, 2_355_398), (4, 1_345_941), (1, 336_486)], ids=str)
def test_the_oracle_of_gowalla(each: int, expected: int) -> None:
    """Both tables of the method file (B0), without padding rows and with them, which are stored as they are."""
    sizes = dict.fromkeys(((), (0,)), 0)
    for rows in (29_858, 40_981):
        for whole in sizes:
            mask = fixed_mask(rows + len(whole), 64, each, whole)
            sizes[whole] += encode(mask.astype(np.float32), mask).nbytes
    assert sizes[()] == expected
    assert sizes[(0,)] == expected + 2 * (256 + (8 if each == 13 else 4))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_it_holds_any_such_table_in_the_bytes_of_its_formula(data: st.DataObject) -> None:
    rows, columns = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 20))
    each = data.draw(st.integers(0, columns))
    whole = tuple(sorted(data.draw(st.sets(st.integers(0, rows - 1), max_size=3))))
    mask = fixed_mask(rows, columns, each, whole, data.draw(st.integers(0, 99)))
    table = random_table(mask)
    values = data.draw(st.sampled_from(VALUE_TYPES))
    encoded = through_json(encode(table, mask, values))
    assert np.array_equal(encoded.live(), mask)
    assert np.all(np.abs(encoded.decode() - table) <= encoded.rounding_error())
    assert values != "fp32" or encoded.decode().tobytes() == table.tobytes()
    if encoded.encoding == "fixed":
        bits = (columns - 1).bit_length()
        assert positions(encoded) == -(-(rows - len(whole)) * each * bits // 8) + 4 * len(whole)
        assert encoded.format_version == 2
        pointers, found, kept = encoded.csr()
        assert np.array_equal(np.diff(pointers), mask.sum(1)) and np.array_equal(found, np.nonzero(mask)[1])
        assert np.array_equal(kept, encoded.decode()[mask])
    else:
        assert encoded.format_version == (2 if values == "int4" else 1)


def test_the_older_of_equal_sizes_is_taken() -> None:
    """Without whole rows ``rows`` has no bits for counts either, and every version reads it."""
    mask = fixed_mask(500, 64, 4, whole=())
    encoded = encode(random_table(mask), mask)
    assert (encoded.encoding, encoded.count_bits, encoded.format_version) == ("rows", 0, 1)
    assert encode(np.zeros((9, 64), np.float32), np.zeros((9, 64), bool)).encoding == "rows"


@pytest.fixture
def encoded() -> EncodedTensor:
    mask = fixed_mask(50, 24, 3, (0, 7))
    encoded = encode(random_table(mask), mask)
    assert encoded.encoding == "fixed"
    return encoded


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"count_base": 4}, "do not have 192 entries"),
        ({"count_base": 25}, "do not have 192 entries"),
        ({"count_base": None}, "count_base must be a whole number"),
        ({"kept": 193}, "values has 192 elements where 193 are needed"),
        ({"shape": [51, 24]}, "do not have 192 entries"),
        ({"shape": [1, 24]}, "cannot have 192 live entries"),
        ({"encoding": "rows", "count_bits": 0}, "encoding rows needs columns, counts, values"),
    ],
)
def test_a_forged_description_is_refused(encoded: EncodedTensor, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ArtifactError, match=words):
        read_back({**encoded.describe(), **changes}, encoded.parts)


def test_forged_parts_are_refused(encoded: EncodedTensor) -> None:
    for part in ("columns", "full_rows", "values"):
        with pytest.raises(ArtifactError, match="elements where|do not have"):
            read_back(encoded.describe(), {**encoded.parts, part: encoded.parts[part][:-1]})
        without = {name: value for name, value in encoded.parts.items() if name != part}
        with pytest.raises(ArtifactError, match="encoding fixed needs columns, full_rows, values"):
            read_back(encoded.describe(), without)
    with pytest.raises(ArtifactError, match="full_rows must be uint32, but is int64"):
        read_back(encoded.describe(), {**encoded.parts, "full_rows": encoded.parts["full_rows"].astype(np.int64)})
    for rows in ([7, 0], [7, 7], [0, 50], [0, 2**32 - 1]):
        forged = {**encoded.parts, "full_rows": np.array(rows, np.uint32)}
        with pytest.raises(ArtifactError, match="full_rows must ascend from 0 to at most 49"):
            read_back(encoded.describe(), forged).decode()
    with pytest.raises(ArtifactError, match="columns of a row must ascend from 0 to at most 23"):
        read_back(encoded.describe(), {**encoded.parts, "columns": encoded.parts["columns"] | 255}).decode()
    with pytest.raises(ArtifactError, match="columns of a row must ascend"):
        read_back(encoded.describe(), {**encoded.parts, "columns": encoded.parts["columns"] * 0}).csr()


def test_only_what_needs_it_is_written_in_the_new_format(tmp_path: Path) -> None:
    """So older versions read what they can read, and refuse the rest by its version."""
    mask = fixed_mask(5, 16, 2)
    newer = encode(random_table(mask), mask, "int4")
    assert newer.format_version == 2
    for name, tensors, version in (("old", {}, 1), ("new", {"newer": newer}, 2)):
        tables = {"table": encode(random_table(mask)), **tensors}
        write(tmp_path / name, tensors=tables, tables=["table"], shared={})
        assert json.loads((tmp_path / name / TICKET).read_bytes())["format_version"] == version
        read_artifact(tmp_path / name).state()
        assert (tmp_path / name / TENSORS).is_file()
