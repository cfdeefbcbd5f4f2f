"""Bytes of pruned matrices: the table and the break-even densities of the method file (C14 to C16)."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from recbole_prune.metering import memory
from recbole_prune.metering.sizes import best_format, bytes_by_format, bytes_of_model


def test_the_table_c14() -> None:
    assert bytes_by_format(1000, 64, 12_800) == {
        "dense": 256_000,
        "coo_int64": 256_000,
        "csr_int64": 161_608,
        "csr_int32": 106_404,
        "index_lists": 68_004,
        "bitmap": 59_200,
        "bitmap_rows": 63_204,
    }
    assert best_format(1000, 64, 12_800) == ("bitmap", 59_200)


@pytest.mark.parametrize(
    ("name", "density"),
    [
        ("coo_int64", 0.2),
        ("csr_int64", 1 / 3 - 8 * 1001 / (12 * 64_000)),
        ("csr_int32", 1 / 2 - 1001 / (2 * 64_000)),
        ("index_lists", 0.8 - 4 * 1001 / (5 * 64_000)),
        ("bitmap", 1 - 1 / 32),
    ],
)
def test_break_even_against_dense_c15(name: str, density: float) -> None:
    below, above = (bytes_by_format(1000, 64, round(64_000 * (density + step))) for step in (-0.001, 0.001))
    assert below[name] < below["dense"] and above[name] > above["dense"]


def test_the_best_format_is_never_above_dense_c16() -> None:
    for live in range(0, 64_001, 500):
        assert best_format(1000, 64, live)[1] <= 256_000
    assert best_format(1000, 64, 64_000) == ("dense", 256_000)


@pytest.mark.parametrize(("removed", "csr", "lists", "bitmap"), [
    (0.45, 0.10, -0.3125, -0.41875), (0.60, -0.20, -0.50, -0.56875), (0.70, -0.40, -0.625, -0.66875),
])  # fmt: skip
def test_what_a_percentage_of_pruning_means_in_bytes(removed: float, csr: float, lists: float, bitmap: float) -> None:
    """Without row pointers, as in the method file."""
    rows, columns = 1000, 64
    found = bytes_by_format(rows, columns, round(rows * columns * (1 - removed)))
    pointers = 4 * (rows + 1)
    changes = [(found[name] - less) / found["dense"] - 1 for name, less in (
        ("csr_int32", pointers), ("index_lists", pointers), ("bitmap", 0),
    )]  # fmt: skip
    assert changes == pytest.approx([csr, lists, bitmap], abs=1e-4)


def test_column_numbers_of_wide_matrices_take_more_than_a_byte() -> None:
    assert "index_lists" not in bytes_by_format(10, 257, 100)


def test_of_a_model_what_is_not_pruned_counts_too() -> None:
    found = bytes_of_model([(1000, 64, 12_800), (10, 300, 3_000)], others=7)
    assert found["dense"] == 256_000 + 12_000 + 28
    assert found["best"] == 59_200 + 12_000 + 28
    assert "index_lists" not in found, "one of the matrices has no such form"


def test_no_peak_where_the_system_tells_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A status without the line, or none and no ``resource`` (Windows), costs the figure and no ticket."""
    status = tmp_path / "status"
    monkeypatch.setattr(memory, "_STATUS", status)
    monkeypatch.setitem(sys.modules, "resource", None)
    assert memory.peak_bytes() is None
    status.write_text("VmRSS:\t 12 kB\n")
    assert memory.peak_bytes() is None
    status.write_text("VmHWM:\t 12 kB\n")
    assert memory.peak_bytes() == 12 * 1024
